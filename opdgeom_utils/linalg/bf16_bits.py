"""Comparisons and order statistics by counting: 16-bit floats are read as the integers that they are stored as.

Without its sign bit, a bf16 or fp16 number orders like its bits. So nothing is cast, nothing is sorted, and an
elementwise metric costs a few passes over two bytes an entry. On a CPU the passes are NumPy's, which are vectorised for
16-bit integers and booleans; on any other device they are torch's.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16
from torch import Tensor

MAGNITUDE = 0x7FFF  # all bits but the sign
NEGATIVE_ZERO = -(2**15)  # the sign bit alone; also the smallest 16-bit integer
SAMPLE_STRIDE = 61
SAMPLE_FROM = 2**16  # below this size a sample saves nothing


def is_finite(values: Float[Tensor, "*shape"]) -> bool:
    """Whether a non-empty tensor holds neither NaN nor infinity: its extremes say so in one pass.

    >>> is_finite(torch.tensor([1.0, -2.0])), is_finite(torch.tensor([1.0, float("nan")]))
    (True, False)
    """
    return all(math.isfinite(float(extreme)) for extreme in values.detach().aminmax())


def count_true(mask: Bool[Tensor, "*shape"]) -> int:
    """Return the number of True entries.

    >>> count_true(torch.tensor([[True, False], [True, True]]))
    3
    """
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else torch.count_nonzero(mask))


def differing(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Mark where two finite tensors of one 16-bit dtype differ in value; 0 and -0 do not.

    >>> a, b = torch.tensor([[1.0, 0.0], [1.0, 2.0]]).bfloat16()
    >>> differing(a, b).tolist(), differing(torch.zeros(1).half(), -torch.zeros(1).half()).tolist()
    ([False, True], [False])
    """
    if a.device.type != "cpu":
        return a != b
    left, right = (w.detach().view(torch.int16).numpy() for w in (a, b))
    mask = np.not_equal(left, right)
    if NEGATIVE_ZERO in (left.min(initial=0), right.min(initial=0)):
        mask &= ((left | right) & MAGNITUDE) != 0
    return torch.from_numpy(np.asarray(mask))


def lowest(codes: Int16[Tensor, "*shape"], count: int) -> Bool[Tensor, "*shape"]:
    """Mark the ``count`` lowest of codes that are not negative, ties in row-major order.

    >>> lowest(torch.tensor([3, 1, 1, 0], dtype=torch.int16), 2).tolist()
    [False, True, False, True]
    """
    if count == 0:
        return torch.zeros_like(codes, dtype=torch.bool)
    flat = codes.flatten()
    threshold = _threshold(flat.numpy(), count) if flat.device.type == "cpu" else _binned_threshold(flat, count)
    return with_first_ties(_compared(flat, threshold), flat == threshold, count).reshape(codes.shape)


def with_first_ties(mask: Bool[Tensor, " n"], tied: Bool[Tensor, " n"], count: int) -> Bool[Tensor, " n"]:
    """Fill ``mask`` up to ``count`` with the earliest of the tied entries.

    >>> with_first_ties(torch.tensor([True, False, False]), torch.tensor([False, True, True]), 2).tolist()
    [True, True, False]
    """
    missing = count - count_true(mask)
    if mask.device.type == "cpu":
        mask.numpy()[np.flatnonzero(tied.numpy())[:missing]] = True
    else:
        mask[tied.nonzero().squeeze(1)[:missing]] = True
    return mask


def _compared(flat: Int16[Tensor, " n"], threshold: int) -> Bool[Tensor, " n"]:
    return torch.from_numpy(flat.numpy() < threshold) if flat.device.type == "cpu" else flat < threshold


def _binned_threshold(flat: Int16[Tensor, " n"], nth: int) -> int:
    return int(torch.searchsorted(torch.bincount(flat, minlength=2**15).cumsum(0), nth))


def _threshold(flat: np.ndarray, nth: int) -> int:
    """Find the nth lowest code: a sample says about where, counts over all entries say exactly."""
    low, high = 0, MAGNITUDE
    if len(flat) >= SAMPLE_FROM:
        sample = np.sort(flat[::SAMPLE_STRIDE])
        place, margin = nth * len(sample) // len(flat), 3 * math.isqrt(len(sample))
        guesses = int(sample[max(0, place - margin)]), int(sample[min(len(sample) - 1, place + margin)])
        low = guesses[0] if np.count_nonzero(flat < guesses[0]) < nth else 0
        high = guesses[1] if np.count_nonzero(flat <= guesses[1]) >= nth else MAGNITUDE
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if np.count_nonzero(flat <= middle) >= nth else (middle + 1, high)
    return low
