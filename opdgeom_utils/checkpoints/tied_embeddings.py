"""Embeddings that input and output share: once in a checkpoint, and apart where an adapter changes one of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from opdgeom_utils.checkpoints.layouts import text_config
from opdgeom_utils.checkpoints.parameter_names import embedding_and_head
from opdgeom_utils.checkpoints.stored_tensors import OpenCheckpoint, StoredTensor

BLOCK = 2**20  # entries compared at once
TURNED = {"lora_embedding_A": "lora_B", "lora_embedding_B": "lora_A"}  # a product's factors, of the matrix turned


def declared_tied(config: Mapping[str, Any]) -> bool | None:
    """Return what a configuration says of its embeddings, None if nothing.

    >>> declared_tied({"text_config": {"tie_word_embeddings": True}}), declared_tied({})
    (True, None)
    """
    tied = text_config(config).get("tie_word_embeddings")
    return tied if isinstance(tied, bool) else None


def tied_once(tensors: Mapping[str, StoredTensor], declared: bool | None) -> dict[str, StoredTensor]:
    """Keep one of two equal embeddings, under the name of the input embedding.

    Both are read, block by block, if both are stored in one form and not declared to be apart. Bits are compared, so
    that NaN is equal to itself.

    >>> nan = torch.full((2, 1), float("nan"))
    >>> both = {n: StoredTensor("x", n, (2, 1), nan.dtype, held=nan.clone()) for n in ("wte.weight", "lm_head.weight")}
    >>> list(tied_once(both, True)), list(tied_once(both, False))
    (['wte.weight'], ['wte.weight', 'lm_head.weight'])
    """
    embedding, head = embedding_and_head(tensors)
    if head not in tensors or declared is False:
        return dict(tensors)
    others = {name: tensor for name, tensor in tensors.items() if name != head}
    if embedding not in tensors:
        return others | {embedding: tensors[head]} if declared else dict(tensors)
    one, other = tensors[embedding], tensors[head]
    same_form = (one.shape, one.dtype) == (other.shape, other.dtype)
    return others if same_form and same_bits(one.read_unchecked(), other.read_unchecked()) else dict(tensors)


def with_own_head(tensors: Mapping[str, StoredTensor], declared: bool | None) -> dict[str, StoredTensor]:
    """Give the head, where it is the embedding, an entry of its own with the same values.

    >>> one = {"wte.weight": StoredTensor("x", "wte", (2, 1), torch.float32)}
    >>> with_own_head(one, True)["lm_head.weight"].key, list(with_own_head(one, False))
    ('wte', ['wte.weight'])
    """
    embedding, head = embedding_and_head(tensors)
    if head in tensors or embedding not in tensors or declared is False:
        return dict(tensors)
    return {**tensors, head: tensors[embedding]}


def changed_alike(embedding: Mapping[str, StoredTensor], head: Mapping[str, StoredTensor]) -> bool:
    """Say whether an adapter changes both embeddings in one way, by its factors or what it has ``whole`` of each.

    >>> values = torch.tensor([[1.0, 2.0]])
    >>> a, b = (StoredTensor("x", "w", tuple(v.shape), v.dtype, held=v) for v in (values, values.T))
    >>> changed_alike({"lora_embedding_A": a, "lora_embedding_B": b}, {"lora_A": a, "lora_B": b})
    True
    >>> changed_alike({"whole": a}, {})
    False
    """
    partners = {part: TURNED.get(part, part) for part in embedding}
    if set(partners.values()) != set(head):
        return False
    for part, partner in partners.items():
        values = embedding[part].read_unchecked()
        if not same_bits(values.T if part in TURNED else values, head[partner].read_unchecked()):
            return False
    return True


def heads_apart(*checkpoints: OpenCheckpoint) -> list[OpenCheckpoint]:
    """Give every checkpoint a head of its own if one among them has untied it: an adapter, or a model that says so.

    Beside a full model only what is tied gets one, by its configuration or by transformers' default for its type: what
    has no head at all must not be compared with one.

    >>> embedding = StoredTensor("x", "embedding", (2, 1), torch.float32)
    >>> both = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    >>> untied = OpenCheckpoint("b", both, {"tie_word_embeddings": False})
    >>> base = OpenCheckpoint("a", {"model.embed_tokens.weight": embedding}, {"tie_word_embeddings": True})
    >>> [list(one.tensors) for one in heads_apart(base, untied)]
    [['model.embed_tokens.weight', 'lm_head.weight'], ['model.embed_tokens.weight', 'lm_head.weight']]
    """
    heads = [one for one in checkpoints if _has_head(one)]
    if any(one.adapted is not None for one in heads):
        return [_with_head(one) for one in checkpoints]
    if any(declared_tied(one.config) is False for one in heads):
        return [_with_head(one) if not _has_head(one) and _is_tied(one) else one for one in checkpoints]
    return list(checkpoints)


def _has_head(checkpoint: OpenCheckpoint) -> bool:
    return embedding_and_head(checkpoint.tensors)[1] in checkpoint.tensors


def _is_tied(checkpoint: OpenCheckpoint) -> bool:
    declared = declared_tied(checkpoint.config)
    if declared is not None or not checkpoint.config:
        return bool(declared)
    try:
        from transformers import AutoConfig  # takes a second

        settings = AutoConfig.for_model(**checkpoint.config)
        return bool(settings.get_text_config(decoder=True).tie_word_embeddings)
    except Exception:  # a type that this version does not know, or settings that it refuses
        return False


def _with_head(checkpoint: OpenCheckpoint) -> OpenCheckpoint:
    embedding, head = embedding_and_head(checkpoint.tensors)
    tensors = with_own_head(checkpoint.tensors, declared_tied(checkpoint.config))
    adapted = checkpoint.adapted
    if adapted is not None and head not in checkpoint.tensors and embedding in adapted:
        adapted |= {head}
    return replace(checkpoint, tensors=tensors, adapted=adapted)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors hold the same bits, a block of rows at a time; NaN is equal to itself.

    >>> nan = torch.tensor([1.0, float("nan")])
    >>> same_bits(nan, nan.clone()), same_bits(nan, nan[:1]), same_bits(nan, nan.double())
    (True, False, False)
    """
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if not one.ndim or not one.numel():
        return _bytes_equal(one, other)
    rows = max(1, BLOCK * len(one) // one.numel())
    return all(_bytes_equal(*pair) for pair in zip(one.split(rows), other.split(rows), strict=True))


def _bytes_equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(*(part.reshape(-1).contiguous().view(torch.uint8) for part in (one, other)))
