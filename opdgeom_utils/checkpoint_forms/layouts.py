"""From the names that a trainer stored to plain ones: wrappers stripped, fused matrices split, experts apart.

The rules, in order:

1. ``_orig_mod.``, ``_fsdp_wrapped_module.`` and ``_checkpoint_wrapped_module.`` are dropped wherever they stand; so are
   ``module.`` and ``base_model.model.`` at the start, as often as they stand there.
2. ``model.language_model.`` and ``language_model.model.`` at the start become ``model.``; ``language_model.lm_head.``
   becomes ``lm_head.``.
3. ``block_sparse_moe.`` becomes ``mlp.``, and its experts' ``w1, w2, w3`` become ``gate_proj, down_proj, up_proj``.
4. ``qkv_proj`` is cut into the rows of queries, keys and values that the config's head counts give; ``gate_up_proj``
   into two halves, the gate first.
5. ``experts.gate_up_proj`` and ``experts.down_proj`` of three dimensions are cut per expert, and turned into (out, in)
   where the architecture stores (in, out).

No rule looks at the order of tensors. Two tensors that come to one name are ambiguous and left to the comparison to
refuse. Other fused forms (``query_key_value``, ``c_attn``, ``Wqkv``) order their rows differently in each architecture;
they stay whole, and the comparison's report says so.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from opdgeom_utils.checkpoint_forms.stored_tensors import StoredTensor, part_of
from opdgeom_utils.errors import CheckpointDamagedError

WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
OUTER = ("module.", "base_model.model.")
INNER = {"model.language_model.": "model.", "language_model.model.": "model.", "language_model.lm_head.": "lm_head."}
SPARSE = re.compile(r"\.block_sparse_moe\.(?:(experts\.\d+)\.(w[123])\.)?")
SPARSE_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
FUSED = re.compile(r"(?P<parent>.*)\.(?P<fused>qkv_proj|gate_up_proj)\.(?P<kind>weight|bias)")
PACKED = re.compile(r"(?P<parent>.*\.experts)\.(?P<packed>gate_up_proj|down_proj)(?P<bias>_bias)?")
LEFT_WHOLE = ("query_key_value", "c_attn", "Wqkv", "wqkv", "qkv", "in_proj_weight")
IN_OUT_EXPERTS = ("llama4", "llama4_text", "gpt_oss")  # packed as (expert, in, out)
INTERLEAVED_EXPERTS = ("gpt_oss",)  # gate and up in alternate columns


@dataclass(frozen=True)
class PlainTensors:
    """What the rules made of a checkpoint's tensors.

    Attributes
    ----------
    tensors : Mapping of str to StoredTensor
        By plain name; a part of a fused or packed tensor reads only that part.
    ambiguous : tuple of str
        Names that several stored tensors came to, with those.
    notes : tuple of str
        What stayed fused, and why.
    """

    tensors: Mapping[str, StoredTensor]
    ambiguous: tuple[str, ...]
    notes: tuple[str, ...]


def canonical_name(name: str) -> str:
    """Apply the rules for names: 1 to 3.

    Examples
    --------
    >>> canonical_name("module._orig_mod.model.language_model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> canonical_name("base_model.model.model.layers.0.block_sparse_moe.experts.3.w1.weight")
    'model.layers.0.mlp.experts.3.gate_proj.weight'
    """
    name = WRAPPERS.sub("", name)
    while name.startswith(OUTER):
        name = name.removeprefix("module.").removeprefix("base_model.model.")
    for before, after in INNER.items():
        if name.startswith(before):
            name = after + name.removeprefix(before)
    return SPARSE.sub(lambda found: f".mlp.{found[1]}.{SPARSE_NAMES[found[2]]}." if found[2] else ".mlp.", name)


def renamed(tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """Apply the rules for names; a name that two tensors come to is left out and reported.

    Examples
    --------
    >>> import torch
    >>> one = StoredTensor("memory", "w", (1,), torch.float32)
    >>> found, ambiguous = renamed({"w": one, "module.w": one, "b": one})
    >>> list(found), ambiguous
    (['b'], ('w is stored as w and as module.w',))
    """
    owners: dict[str, list[str]] = {}
    for raw in tensors:
        owners.setdefault(canonical_name(raw), []).append(raw)
    plain = {name: tensors[raw[0]] for name, raw in owners.items() if len(raw) == 1}
    return plain, tuple(f"{name} is stored as {' and as '.join(raw)}" for name, raw in owners.items() if len(raw) > 1)


def split(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> PlainTensors:
    """Apply the rules for fused and packed tensors: 4 and 5.

    Parameters
    ----------
    tensors : Mapping of str to StoredTensor
        By name, after :func:`renamed`.
    config : Mapping of str to Any
        The model's configuration; what lies under ``text_config`` counts first.

    Raises
    ------
    CheckpointDamagedError
        When a fused tensor does not have the rows that the configuration gives.
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
    """Return the configuration of the language model.

    Examples
    --------
    >>> text_config({"hidden_size": 1, "text_config": {"hidden_size": 2}})["hidden_size"]
    2
    """
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config


def _parts(
    name: str, tensor: StoredTensor, config: Mapping[str, Any], notes: list[str]
) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the plain tensors in one stored tensor; the tensor itself if it is plain or has to stay whole."""
    packed, fused = PACKED.fullmatch(name), FUSED.fullmatch(name)
    if packed:
        yield from _experts(packed, tensor, config, notes)
    elif fused and fused["fused"] == "gate_up_proj":
        halves = [tensor.shape[0] // 2] * 2 if tensor.shape and tensor.shape[0] % 2 == 0 else []
        yield from _rows(fused, tensor, dict(zip(("gate_proj", "up_proj"), halves, strict=bool(halves))))
    elif fused:
        yield from _rows(fused, tensor, _head_rows(config, name, notes))
    else:
        if any(part in LEFT_WHOLE for part in name.split(".")) and name.split(".")[-1] != "bias":
            notes.append(f"{name} stays fused: the order of its rows is this architecture's own")
        yield name, tensor


def _rows(fused: re.Match[str], tensor: StoredTensor, rows: Mapping[str, int]) -> Iterator[tuple[str, StoredTensor]]:
    if not rows:
        yield fused.string, tensor
        return
    if not tensor.shape or sum(rows.values()) != tensor.shape[0]:
        raise CheckpointDamagedError(
            f"{tensor.where}: tensor {tensor.key} has shape {tensor.shape}, its config.json gives {dict(rows)} rows; "
            "the configuration is not of these weights, copy both again."
        )
    start = 0
    for module, count in rows.items():
        yield f"{fused['parent']}.{module}.{fused['kind']}", part_of(tensor, slice(start, start + count))
        start += count


def _head_rows(config: Mapping[str, Any], name: str, notes: list[str]) -> dict[str, int]:
    """Return the rows of queries, keys and values; empty if the configuration does not say."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    groups = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or (hidden // heads if type(hidden) is int and type(heads) is int and heads else None)
    known = [number for number in (heads, groups, size) if type(number) is int and number > 0]
    if len(known) < 3:
        notes.append(f"{name} stays fused: no config.json with its head counts")
        return {}
    heads, groups, size = known
    return {"q_proj": heads * size, "k_proj": groups * size, "v_proj": groups * size}


def _experts(
    packed: re.Match[str], tensor: StoredTensor, config: Mapping[str, Any], notes: list[str]
) -> Iterator[tuple[str, StoredTensor]]:
    """Cut a packed tensor per expert, and its gate and up halves apart."""
    kind, bias = config.get("model_type"), bool(packed["bias"])
    if len(tensor.shape) != (2 if bias else 3) or not isinstance(kind, str):
        notes.append(f"{packed.string} stays packed: {'no model_type in a config.json' if not kind else tensor.shape}")
        yield packed.string, tensor
        return
    turned = kind in IN_OUT_EXPERTS and not bias
    axis = 2 if turned else 1
    if packed["packed"] == "down_proj":
        cuts = {"down_proj": slice(None)}
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
