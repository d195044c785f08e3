"""From the names that a trainer stored to plain ones: wrappers stripped, fused matrices split, experts apart.

The rules, in order:

1. ``_orig_mod.``, ``_fsdp_wrapped_module.`` and ``_checkpoint_wrapped_module.`` are dropped wherever they stand; so are
   ``module.``, ``base_model.model.``, ``thinker.`` and a trainer's own ``_forward_module.``, ``policy.``,
   ``pretrained_model.`` and ``model.`` (before a whole model's names) at the start, as often as they stand there.
2. A model's parts stand under ``model.``, whether its names are those of the hub or of memory: ``visual.`` becomes
   ``model.visual.``; ``language_model.`` becomes ``model.``, with or without a ``model.`` on either side of it, and
   ``language_model.lm_head.`` becomes ``lm_head.``. Types with names of their own for the parts are renamed first as
   transformers renames them on loading, and so are, in any type, names beyond the usual ones. Where the layers stand at
   the very start, all but the heads gets the prefix of the type's base model (``base_model_prefix`` in transformers).
3. ``block_sparse_moe.`` becomes ``mlp.``, and experts' ``w1, w2, w3`` become ``gate_proj, down_proj, up_proj``; the
   names that one architecture alone has on disk (GPT-NeoX's head, PhiMoE's router, GraniteMoE's experts) become those
   that it has in memory.
4. Queries, keys and values in one matrix (``qkv_proj``, ``query_key_value``, ``c_attn``, ``Wqkv``) are cut apart where
   the order of rows is known (:mod:`opdgeom_utils.checkpoints.fused_attention`); ``gate_up_proj`` into two halves,
   the gate first.
5. ``gate_up_proj``, ``up_proj`` and ``down_proj`` of ``experts.``, of three dimensions, are cut per expert, and turned
   into (out, in) where their shape and the configuration's hidden size say that they are stored as (in, out).

Rules 4 and 5 hold for the language model; what is fused in a vision or audio tower stays whole. No rule looks at the
order of tensors. Two tensors that come to one name are ambiguous and left to the comparison to refuse. Whatever else is
fused stays whole too, and the comparison's report says so.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from opdgeom_utils.checkpoints.fused_attention import FUSED_ATTENTION, attention_parts, first_number, outward
from opdgeom_utils.checkpoints.parameter_names import OUTPUT, tower_of
from opdgeom_utils.checkpoints.stored_tensors import StoredTensor, part_of
from opdgeom_utils.checkpoints.transformers_rules import base_prefix, keeps_experts_out_in, own_renamings
from opdgeom_utils.errors import CheckpointDamagedError

WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
OUTER = re.compile(
    r"(?:module\.|_forward_module\.|base_model\.model\.|thinker\.|policy\.|pretrained_model\."
    r"|model\.(?=(?:model|lm_head|transformer|gpt_neox|base_model)\.))+"
)
LANGUAGE = re.compile(r"(?:model\.)?language_model\.(?:model\.)*(?P<head>lm_head\.)?")
PART = re.compile(r"(?:visual|(?:vision|image|video|audio|speech)_\w+|\w*projector|connector|merger)\.")
AT_THE_START = re.compile(r"(?:decoder\.)?(?P<kind>layers|h|blocks|block)\.\d+\.")
NO_BODY = re.compile(  # what stands beside a base model
    rf"(?:{'|'.join(OUTPUT)}|score|classifier|v_head|value_head|qa_outputs|mtp|talker|code2wav|token2wav|model)(?:\.|$)"
)
EXPERT_OLD = re.compile(r"(\.experts\.\d+)\.(w[123])\.")
OLD = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
OWN_NAMES = {  # of one architecture on disk, and in memory
    "gpt_neox": {r"^embed_out\.": "lm_head."},
    "phimoe": {r"\.mlp\.gate(?=\.|$)": ".mlp.router"},
    "granitemoe": {
        r"\.mlp\.input_linear\.weight$": ".mlp.experts.gate_up_proj",
        r"\.mlp\.output_linear\.weight$": ".mlp.experts.down_proj",
        r"\.mlp\.router\.layer(?=\.|$)": ".mlp.router",
    },
}
GATE_UP = re.compile(r"(?P<parent>.*)\.gate_up_proj\.(?P<kind>weight|bias)")
PACKED = re.compile(r"(?P<parent>.*\.experts)\.(?P<packed>gate_up_proj|up_proj|down_proj)(?P<bias>_bias)?")
LEFT_WHOLE = ("in_proj_weight", "in_proj_qkv", "in_proj_qkvz")
EXPERT_WIDTH = ("moe_hidden_size", "hidden_size")
# Stored as (expert, in, out); transformers itself says which types it keeps as (expert, out, in).
IN_OUT_EXPERTS = ("llama4", "gpt_oss", "openai_privacy_filter", "aria")
INTERLEAVED_EXPERTS = ("gpt_oss",)  # gate and up in alternate columns


@dataclass(frozen=True)
class PlainTensors:
    """What the rules made of a checkpoint's tensors."""

    tensors: Mapping[str, StoredTensor]  # by plain name; a part of a fused or packed tensor reads only that part
    ambiguous: tuple[str, ...]  # names that several stored tensors came to, with those
    notes: tuple[str, ...]  # what stayed fused, and why


def unwrapped(name: str) -> str:
    """Drop what trainers wrap around a model, rule 1.

    >>> unwrapped("module.base_model.model.model.layers.0._orig_mod.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    """
    name = WRAPPERS.sub("", name)
    outer = OUTER.match(name)
    return name[outer.end() :] if outer else name


def canonical_name(name: str, kind: Any = None) -> str:
    """Apply the rules for names, 1 to 3, as far as they look at one name and no further than its type.

    >>> canonical_name("module._orig_mod.model.language_model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> canonical_name("base_model.model.model.layers.0.block_sparse_moe.experts.3.w1.weight")
    'model.layers.0.mlp.experts.3.gate_proj.weight'
    >>> canonical_name("visual.blocks.0.attn.proj.weight"), canonical_name("language_model.lm_head.weight")
    ('model.visual.blocks.0.attn.proj.weight', 'lm_head.weight')
    """
    name = unwrapped(name)
    language = LANGUAGE.match(name)
    if language:
        name = (language["head"] or "model.") + name[language.end() :]
    elif PART.match(name):
        name = f"model.{name}"
    name = EXPERT_OLD.sub(lambda old: f"{old[1]}.{OLD[old[2]]}.", name.replace(".block_sparse_moe.", ".mlp."))
    family = "granitemoe" if str(kind).startswith("granitemoe") else kind
    for before, after in OWN_NAMES.get(family, {}).items():
        name = re.sub(before, after, name)
    return name


def plain_names(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Apply the rules for names, 1 to 3, to all the names of a checkpoint or an adapter.

    >>> list(plain_names(["h.0.mlp.c_fc.weight", "wte.weight", "lm_head.weight"], {}).values())
    ['transformer.h.0.mlp.c_fc.weight', 'transformer.wte.weight', 'lm_head.weight']
    """
    bare = {raw: unwrapped(raw) for raw in names}
    kind, own = text_config(config).get("model_type"), own_renamings(config, bare.values())
    plain = {}
    for raw, name in bare.items():
        for pattern, target in own:
            old = pattern.search(name)
            done = old is not None and old[0] in target and target in name  # under its new name already
            name = name if done else pattern.sub(target, name, count=1)
        plain[raw] = canonical_name(name, kind)
    found = next(filter(None, map(AT_THE_START.match, plain.values())), None)
    if found:
        prefix = base_prefix(kind) or ("model" if found["kind"] == "layers" else "transformer")
        plain = {raw: name if NO_BODY.match(name) else f"{prefix}.{name}" for raw, name in plain.items()}
    return plain


def renamed(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """Apply the rules for names; a name that two tensors come to is left out and reported.

    >>> import torch
    >>> one = StoredTensor("memory", "w", (1,), torch.float32)
    >>> found, ambiguous = renamed({"w": one, "module.w": one, "b": one}, {})
    >>> list(found), ambiguous
    (['b'], ('w is stored as w and as module.w',))
    """
    owners: dict[str, list[str]] = {}
    for raw, name in plain_names(tensors, config).items():
        owners.setdefault(name, []).append(raw)
    plain = {name: tensors[raw[0]] for name, raw in owners.items() if len(raw) == 1}
    return plain, tuple(f"{name} is stored as {' and as '.join(raw)}" for name, raw in owners.items() if len(raw) > 1)


def split(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> PlainTensors:
    """Apply the rules for fused and packed tensors, 4 and 5, after :func:`renamed`.

    Raises CheckpointDamagedError when packed experts do not have the form that the configuration gives.
    """
    config = text_config(config)
    plain: dict[str, StoredTensor] = {}
    owners: dict[str, list[str]] = {}
    notes: list[str] = []
    for name, tensor in tensors.items():
        for part_name, part in _parts(name, tensor, config, notes):
            plain[part_name] = part
            owners.setdefault(part_name, []).append(name)
    twice = {name: found for name, found in owners.items() if len(found) > 1}
    ambiguous = tuple(f"{name} is stored as {' and in '.join(found)}" for name, found in twice.items())
    return PlainTensors({name: part for name, part in plain.items() if name not in twice}, ambiguous, tuple(notes))


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration of the language model, wherever in the whole it lies.

    >>> text_config({"hidden_size": 1, "text_config": {"hidden_size": 2}})["hidden_size"]
    2
    """
    for key in ("thinker_config", "text_config", "llm_config", "language_config"):
        inner = config.get(key)
        config = {**config, **inner} if isinstance(inner, Mapping) else config
    return config


def _parts(
    name: str, tensor: StoredTensor, config: Mapping[str, Any], notes: list[str]
) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the plain tensors in one stored tensor; the tensor itself if it is plain or has to stay whole."""
    tensor = outward(name, tensor, config)
    packed, halves, attention = PACKED.fullmatch(name), GATE_UP.fullmatch(name), FUSED_ATTENTION.fullmatch(name)
    if packed:
        yield from _experts(packed, tensor, config, notes)
    elif (halves or attention) and _is_foreign(name):
        if name.endswith("weight"):
            notes.append(f"{name} stays fused: it is outside the language model, and its order of rows is not known")
        yield name, tensor
    elif attention:
        yield from attention_parts(attention, tensor, config, notes)
    elif halves and tensor.shape and tensor.shape[0] % 2 == 0:
        half = tensor.shape[0] // 2
        for module, cut in (("gate_proj", slice(0, half)), ("up_proj", slice(half, 2 * half))):
            yield f"{halves['parent']}.{module}.{halves['kind']}", part_of(tensor, cut)
    else:
        if any(part in LEFT_WHOLE for part in name.split(".")) and not name.endswith("bias"):
            notes.append(f"{name} stays fused: the order of its rows is this architecture's own")
        elif len(tensor.shape) == 3 and min(tensor.shape) > 1 and "conv" not in name:
            notes.append(f"{name} stays packed: only the sparsity of its shape {tensor.shape} is measured")
        yield name, tensor


def _experts(
    packed: re.Match[str], tensor: StoredTensor, config: Mapping[str, Any], notes: list[str]
) -> Iterator[tuple[str, StoredTensor]]:
    """Cut a packed tensor per expert, and its gate and up halves apart."""
    kind, bias = config.get("model_type"), bool(packed["bias"])
    turned, why = _is_in_out(packed, tensor, config)
    if why:
        notes.append(f"{packed.string} stays packed: {why}")
        yield packed.string, tensor
        return
    axis = 2 if turned else 1
    if packed["packed"] != "gate_up_proj":
        cuts = {packed["packed"]: slice(None)}
    elif kind in INTERLEAVED_EXPERTS:
        cuts = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}
    else:
        half = tensor.shape[axis] // 2
        cuts = {"gate_proj": slice(0, half), "up_proj": slice(half, 2 * half)}
    if packed["packed"] == "gate_up_proj" and tensor.shape[axis] % 2:
        raise CheckpointDamagedError(
            f"{tensor.where}: tensor {tensor.key} has shape {tensor.shape}, expected an even number of gate and up "
            "rows; the configuration is not of these weights, copy both again."
        )
    for expert in range(tensor.shape[0]):
        for module, cut in cuts.items():
            index = (expert, slice(None), cut) if axis == 2 else (expert, cut)
            name = f"{packed['parent']}.{expert}.{module}.{'bias' if bias else 'weight'}"
            yield name, part_of(tensor, *index, transposed=turned)


def _is_in_out(packed: re.Match[str], tensor: StoredTensor, config: Mapping[str, Any]) -> tuple[bool, str]:
    """Say whether packed experts are stored as (expert, in, out), or why that is not known."""
    kind, shape, bias = config.get("model_type"), tensor.shape, bool(packed["bias"])
    if not isinstance(kind, str):
        return False, "no model_type in a config.json"
    if bias or len(shape) != 3:
        return False, "" if bias and len(shape) == 2 else str(shape)
    width = None if _is_foreign(packed.string) else first_number(config, EXPERT_WIDTH)
    fits = [width in (None, shape[axis]) for axis in (1, 2)]
    in_out, out_in = reversed(fits) if packed["packed"] == "down_proj" else fits
    if not in_out and not out_in:
        raise CheckpointDamagedError(
            f"{tensor.where}: tensor {tensor.key} has shape {shape}, expected {width}, the hidden size in its "
            "config.json, in the second or third place; the configuration is not of these weights, copy both again."
        )
    if in_out != out_in:
        return in_out, ""
    family = kind.removesuffix("_text")
    if family not in IN_OUT_EXPERTS and not keeps_experts_out_in(family):
        return False, f"{kind} may store its shape {shape} as (in, out) or as (out, in)"
    return family in IN_OUT_EXPERTS, ""


def _is_foreign(name: str) -> bool:
    """Say whether a tensor is of a tower that is not built as the language model is; further-token heads are."""
    tower = tower_of(name)
    return bool(tower) and not tower.startswith("mtp")
