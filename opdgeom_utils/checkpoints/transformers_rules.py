"""What transformers says of a type of model: asked only where a name or a shape leaves a doubt, for the import is slow.

A type that the installed version does not know has no such rules: the answer is then empty, and nothing is guessed.
"""

import re
from collections.abc import Mapping
from importlib import import_module
from inspect import getclosurevars
from typing import Any

PARTS = ("vision_config", "audio_config", "thinker_config", "vit_config", "vq_config", "text_config", "llm_config")


def own_renamings(config: Mapping[str, Any]) -> list[tuple[re.Pattern[str], str]]:
    """Return how a type with several parts is renamed on loading, at the start of its names.

    >>> own_renamings({"model_type": "qwen3"})
    []
    >>> [(pattern.pattern, target) for pattern, target in own_renamings({"model_type": "fuyu", "text_config": {}})][1:]
    [('^language_model', 'model.language_model'), ('^vision_embed_tokens', 'model.vision_embed_tokens')]
    """
    if not any(part in config for part in PARTS):
        return []
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    stated = (*(config.get("architectures") or ()), config.get("model_type"))
    found = next(filter(None, map(get_checkpoint_conversion_mapping, stated)), [])
    rules = [(rule.source_patterns, rule.target_patterns) for rule in found if not hasattr(rule, "operations")]
    return [
        (re.compile(pattern), target)
        for patterns, targets in rules
        for pattern, target in zip(patterns, targets, strict=True)
        if re.match(r"\^\(?[a-z]", pattern)
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
