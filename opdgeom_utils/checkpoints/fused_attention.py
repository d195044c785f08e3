"""Queries, keys and values stored as one matrix: cut apart where the architecture's order of rows is known.

Each order was read in the architecture's own modelling file in transformers: rows come in equal blocks, and each block
holds some heads of queries, then of keys, then of values. A matrix of another architecture, or with other rows than the
configuration gives, stays whole, with a note that says why.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from opdgeom_utils.checkpoints.stored_tensors import StoredTensor, part_of

FUSED_ATTENTION = re.compile(
    r"(?P<parent>.*)\.(?P<fused>qkv_proj|query_key_value|c_attn|Wqkv|wqkv|W_pack|qkv)\.(?P<kind>weight|bias)"
)
HEADS = ("num_attention_heads", "n_head", "n_heads")
GROUPS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
WIDTH = ("hidden_size", "n_embd", "n_embed", "d_model")
ONE_AFTER_ANOTHER = {"phi3": "qkv_proj", "phi4_multimodal": "qkv_proj", "gpt2": "c_attn", "mpt": "Wqkv"}
HEAD_BY_HEAD = ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon")  # all of them in query_key_value
CONV1D = re.compile(r".*\.(?:c_attn|q_attn|c_proj|c_fc)\.weight")
IN_OUT = ("gpt2",)  # stores its linear maps as (in, out)


def outward(name: str, tensor: StoredTensor, config: Mapping[str, Any]) -> StoredTensor:
    """Turn a matrix that its architecture stores as (in, out) into (out, in).

    >>> import torch
    >>> stored = StoredTensor("memory", "w", (2, 6), torch.float32, held=torch.arange(12.0).reshape(2, 6))
    >>> outward("h.0.attn.c_attn.weight", stored, {"model_type": "gpt2"}).shape
    (6, 2)
    """
    turned = config.get("model_type") in IN_OUT and len(tensor.shape) == 2 and CONV1D.fullmatch(name)
    return part_of(tensor, slice(None), transposed=True) if turned else tensor


def attention_parts(
    fused: re.Match[str], tensor: StoredTensor, config: Mapping[str, Any], notes: list[str]
) -> Iterator[tuple[str, StoredTensor]]:
    """Yield queries, keys and values of an (out, in) matrix or bias apart; the whole, and a note, if it stays so."""
    order, why = _order(fused["fused"], tensor, config)
    if why:
        if fused["kind"] == "weight":
            notes.append(f"{fused.string} stays fused: it mixes queries, keys and values, and {why}")
        yield fused.string, tensor
        return
    blocks, rows = order
    start = 0
    for module, count in zip(("q_proj", "k_proj", "v_proj"), rows, strict=True):
        cut = slice(start, start + count)
        yield f"{fused['parent']}.{module}.{fused['kind']}", part_of(tensor, cut, blocks=blocks)
        start += count


def first_number(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """Return the first of some settings that is a positive whole number.

    >>> first_number({"hidden_size": None, "n_embd": 8}, WIDTH)
    8
    """
    return next((config[name] for name in names if type(config.get(name)) is int and config[name] > 0), None)


def _order(fused: str, tensor: StoredTensor, config: Mapping[str, Any]) -> tuple[tuple[int, tuple[int, ...]], str]:
    """Return the number of blocks and the rows of each kind in a block; or why they are not known."""
    nothing = (0, ())
    heads, width = first_number(config, HEADS), first_number(config, WIDTH)
    size = first_number(config, ("head_dim",)) or (width // heads if width and heads else None)
    if not heads or not size:
        return nothing, "there is no config.json with its head counts"
    kind = config.get("model_type")
    found = _heads_in_blocks(fused, kind, heads, config)
    if found is None:
        return nothing, f"the order of its rows in {kind or 'a model of no stated type'} is not known here"
    blocks, counts = found
    expected = blocks * sum(counts) * size
    if not tensor.shape or tensor.shape[0] != expected:
        return nothing, f"has shape {tensor.shape} where the config.json gives {expected} rows"
    return (blocks, tuple(count * size for count in counts)), ""


def _heads_in_blocks(
    fused: str, kind: Any, heads: int, config: Mapping[str, Any]
) -> tuple[int, tuple[int, int, int]] | None:
    """Return the number of blocks, and how many heads of queries, keys and values each holds."""
    groups = first_number(config, GROUPS) or heads
    head_by_head, one_key_for_all = (heads, (1, 1, 1)), (1, (heads, 1, 1))
    if ONE_AFTER_ANOTHER.get(kind) == fused:
        return 1, (heads, groups, groups)
    if kind in HEAD_BY_HEAD and fused == "query_key_value":
        return head_by_head
    if (kind, fused) == ("falcon", "query_key_value") and config.get("new_decoder_architecture"):
        return groups, (heads // groups, 1, 1)
    if (kind, fused) in (("falcon", "query_key_value"), ("gpt_bigcode", "c_attn")):
        return one_key_for_all if config.get("multi_query", True) else head_by_head
    return None
