"""What transformers says of a type of model: asked only where a name or a shape leaves a doubt, for the import is slow.

A type that the installed version does not know has no such rules: the answer is then empty, and nothing is guessed.
"""

import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from inspect import getclosurevars
from typing import Any

USUAL = {  # parts of a language model's names that every version of transformers keeps
    *("model", "layers", "self_attn", "mlp", "weight", "bias", "embed_tokens", "lm_head", "norm", "q_norm", "k_norm"),
    *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj"),
    *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    *map(str, range(1000)),
}
PARTS = ("vision_config", "audio_config", "thinker_config", "vit_config", "vq_config", "text_config", "llm_config")


def own_renamings(config: Mapping[str, Any], names: Iterable[str] = ()) -> list[tuple[re.Pattern[str], str]]:
    """Return how a type's names are renamed on loading: of one with several parts only where they begin.

    A type without parts has such rules only for names beyond the usual ones.

    >>> own_renamings({"model_type": "qwen3"})
    []
    >>> [target for _, target in own_renamings({"model_type": "nemotron_h"}, ["backbone.layers.0.mixer.D"])]
    ['model.']
    >>> [(pattern.pattern, target) for pattern, target in own_renamings({"model_type": "fuyu", "text_config": {}})][1:]
    [('^language_model', 'model.language_model'), ('^vision_embed_tokens', 'model.vision_embed_tokens')]
    """
    has_parts = any(part in config for part in PARTS)
    if not has_parts and (not config.get("model_type") or {p for n in names for p in n.split(".")} <= USUAL):
        return []
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    stated = (*(config.get("architectures") or ()), config.get("model_type"))
    found = next(filter(None, map(get_checkpoint_conversion_mapping, stated)), [])
    found = [rule for rule in found if not getattr(rule, "operations", None)]
    rules = [(rule.source_patterns, rule.target_patterns) for rule in found]
    return [
        (re.compile(pattern), target)
        for patterns, targets in rules
        for pattern, target in zip(patterns, targets, strict=True)
        if re.match(r"\^\(?[a-z]", pattern) or not has_parts
    ]


def base_prefix(kind: Any) -> str:
    """Return what stands before every name of a type's base model in the whole model, empty if that is not known.

    >>> base_prefix("gpt_neox"), base_prefix("some type of later")
    ('gpt_neox', '')
    """
    try:
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

        return getattr(transformers, MODEL_MAPPING_NAMES[kind]).base_model_prefix
    except (ImportError, KeyError, AttributeError, TypeError):
        return ""


def keeps_experts_out_in(kind: str) -> bool:
    """Say whether packed experts of a type are (expert, out, in), in memory and on disk.

    >>> keeps_experts_out_in("qwen3_moe"), keeps_experts_out_in("gpt_oss"), keeps_experts_out_in("qwen3_vl_moe")
    (True, False, False)
    """
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.models.auto.configuration_auto import model_type_to_module_name

        name = model_type_to_module_name(kind)
        classes = vars(import_module(f"transformers.models.{name}.modeling_{name}")).values()
    except ImportError:
        return False
    inits = [vars(one)["__init__"] for one in classes if isinstance(one, type) and "__init__" in vars(one)]
    ways = [getclosurevars(init).nonlocals.get("is_transposed") for init in inits if init.__closure__]
    converted = get_checkpoint_conversion_mapping(kind) or []
    turned = any("Transpose" in type(step).__name__ for rule in converted for step in getattr(rule, "operations", ()))
    return False in ways and True not in ways and not turned
