"""Matrix products in bf16 where a processor has no unit for them: made in float32, of rounded numbers, and rounded.

Without AVX-512 or AMX (many laptops, many public CI machines) torch multiplies bf16 some 25 times as slowly as float32.
A unit for bf16 multiplies rounded numbers, adds up in float32 and rounds the sum once. So does this, forwards and
backwards, at the speed of float32. Only the order of the sums differs, as it does between any two processors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

PRODUCTS = {
    *(torch.nn.functional.linear, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.baddbmm),
}
BACKWARDS = {Tensor.backward, torch.autograd.backward, torch.autograd.grad}


def are_slow() -> bool:
    """Whether this processor has no fast product in bf16."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and not supported()


def made_fast() -> AbstractContextManager[Any]:
    """Return the context in which bf16 products on the processor cost no more than float32's; none where they do not.

    >>> with made_fast(), torch.autocast("cpu", torch.bfloat16):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16
    """
    return RoundedProducts() if are_slow() else nullcontext()


class RoundedProducts(TorchFunctionMode):
    """Make every product that would be in bf16 on the processor in float32, from operands rounded to bf16."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Pass everything else on as it is. What goes backwards through such a product is made in float32 by itself."""
        named = dict(kwargs or {})
        if func in BACKWARDS:  # called under autocast, it would make bf16 of them again
            with torch.autocast("cpu", enabled=False):
                return func(*args, **named)
        if func not in PRODUCTS or not _in_bf16([*args, *named.values()]):
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            product = func(*map(_rounded, args), **{name: _rounded(value) for name, value in named.items()})
        return product.bfloat16()


def _in_bf16(given: Sequence[Any]) -> bool:
    """Whether torch would make this product in bf16: all of its tensors are, or autocast would make them so."""
    kinds = {value.dtype for value in given if isinstance(value, Tensor) and value.device.type == "cpu"}
    if any(isinstance(value, Tensor) and value.device.type != "cpu" for value in given) or not kinds:
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
        return kinds <= {torch.bfloat16, torch.float16, torch.float32}
    return kinds == {torch.bfloat16}


def _rounded(value: Any) -> Any:
    return value.bfloat16().float() if isinstance(value, Tensor) else value
