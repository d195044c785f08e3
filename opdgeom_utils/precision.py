"""Numbers in a training step: fp32 throughout, or bf16 products with fp32 weights, sums and attention.

With ``compute: bfloat16`` matrix products run in bf16 (torch's autocast); the weights, their gradients, the optimiser,
softmax and attention stay in fp32. Attention stays, because torch's backward pass of it in bf16 is four times as slow
as in fp32 on a processor: half of a whole update. Fixed models (teacher, anchor) are held in bf16.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ATTENTION = "sdpa_in_fp32"


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    with torch.autocast(query.device.type, enabled=False):
        out, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **options)
    return out.to(query.dtype), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def computing(compute: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which models run: bf16 products, or none of them.

    >>> with computing("bfloat16", torch.device("cpu")):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=compute == "bfloat16")


def prepare(model: PreTrainedModel, compute: str, *, fixed: bool = False) -> PreTrainedModel:
    """Make a model, in place, ready for a kind of compute; fixed ones are cast to bf16 where products are.

    Attention is left alone on a GPU, whose own kernels are fast in bf16, and in families with their own (Gemma 2).
    """
    if compute == "bfloat16":
        if fixed:
            torch.nn.Module.to(model, torch.bfloat16)
        if model.device.type == "cpu" and model._supports_sdpa:
            model.set_attn_implementation(ATTENTION)
    return model
