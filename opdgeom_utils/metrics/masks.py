"""Which entries of a matrix are principal or small, and whether updates land there (arXiv 2606.07082)."""

import math

import torch
from jaxtyping import Bool, Float, Int16
from torch import Tensor

from opdgeom_utils.linalg.bf16_bits import MAGNITUDE, count_true, lowest, with_first_ties
from opdgeom_utils.linalg.factors import Factors, factorize
from opdgeom_utils.metrics.inputs import check_count, check_fraction, checked

# Magnitudes closer than this part of the largest count as tied, so that rounding noise cannot decide a tie.
TIE_GRID = 2.0**-40
N_BINS = 2**16


@checked(matrices=("w_ref",))
def principal_mask(
    w_ref: Float[Tensor, "out in"], *, rank: int = 64, alpha: float | int = 0.3
) -> Bool[Tensor, "out in"]:
    r"""Mark the largest entries of a matrix's best rank-r approximation.

    Parameters
    ----------
    w_ref : Float[Tensor, "out in"]
        The weights before, any floating dtype.
    rank : int
        Rank of the approximation, at least 1, clipped to ``min(out, in)``; there it is ``w_ref`` itself.
    alpha : float
        Fraction of entries to mark, 0 to 1.

    Returns
    -------
    Bool[Tensor, "out in"]
        Exactly ``round(alpha * n)`` entries are True. Ties go to the earlier entry in row-major order.

    Raises
    ------
    MetricInputError
        For anything but a finite floating matrix, a ``rank`` below 1 or an ``alpha`` outside 0 to 1.

    Notes
    -----
    The paper's "update-mask overlap", arXiv 2606.07082: the top :math:`\alpha` entries by magnitude of the rank-r SVD
    reconstruction of :math:`W_0`. Its text and figure use alpha = 0.3, its appendix 0.5. Magnitudes that differ by less
    than ``2**-40`` of the largest count as ties, so that the mask does not depend on rounding.

    Examples
    --------
    The rank-1 part of diag(3, 1) is its first entry; the other tie at 0, and the earliest is taken.

    >>> principal_mask(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), rank=1, alpha=0.5).tolist()
    [[True, True], [False, False]]
    """
    check_count("rank", rank)
    check_fraction("alpha", alpha)
    if rank >= min(w_ref.shape):
        return top_entries(w_ref.detach().double().abs(), alpha=alpha)
    return principal_mask_from(factorize(w_ref, cuts=(rank,)), rank=rank, alpha=alpha)


def principal_mask_from(factors: Factors, *, rank: int, alpha: float | int) -> Bool[Tensor, "out in"]:
    """Return the principal mask from factors that hold at least ``rank`` vectors."""
    magnitude = factors.approximation(rank).abs_()
    step = TIE_GRID * 2.0 ** math.frexp(float(magnitude.max()))[1]
    return top_entries(magnitude.div_(step).round_() if step > 0 else magnitude, alpha=alpha)


@checked(matrices=("w_ref",))
def low_magnitude_mask(w_ref: Float[Tensor, "out in"], *, alpha: float | int = 0.3) -> Bool[Tensor, "out in"]:
    r"""Mark the smallest entries of a matrix.

    Parameters
    ----------
    w_ref, alpha
        As for :func:`principal_mask`.

    Returns
    -------
    Bool[Tensor, "out in"]
        As of :func:`principal_mask`: exactly ``round(alpha * n)`` entries, ties in row-major order.

    Raises
    ------
    MetricInputError
        For anything but a finite floating matrix, or an ``alpha`` outside 0 to 1.

    Notes
    -----
    The paper's "update-mask overlap", arXiv 2606.07082: the bottom :math:`\alpha` entries of :math:`|W_0|`.

    Examples
    --------
    >>> low_magnitude_mask(torch.tensor([[3.0, -1.0], [1.0, 2.0]]), alpha=0.25).tolist()
    [[False, True], [False, False]]
    """
    check_fraction("alpha", alpha)
    if w_ref.dtype in (torch.bfloat16, torch.float16):
        return lowest(_magnitude_codes(w_ref.detach()), round(alpha * w_ref.numel()))
    return top_entries(-w_ref.detach().abs(), alpha=alpha)


def _magnitude_codes(w: Float[Tensor, "out in"]) -> Int16[Tensor, "out in"]:
    """Bits of 16-bit floats without their sign: integers in the order of the magnitudes."""
    bits = w.contiguous().view(torch.int16)
    return torch.from_numpy(bits.numpy() & MAGNITUDE) if bits.device.type == "cpu" else bits & MAGNITUDE


def top_entries(score: Float[Tensor, "out in"], *, alpha: float | int) -> Bool[Tensor, "out in"]:
    """Mark the ``round(alpha * n)`` highest scores, ties in row-major order, without sorting.

    >>> top_entries(torch.tensor([[1.0, 5.0, 1.0, 1.0]]), alpha=0.5).tolist()
    [[True, True, False, False]]
    """
    flat = score.flatten()
    count = round(alpha * len(flat))
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = _nth_highest(flat, count)
    return with_first_ties(flat > threshold, flat == threshold, count).reshape(score.shape)


def _nth_highest(flat: Float[Tensor, " n"], nth: int) -> Float[Tensor, ""]:
    """Find the n-th highest value: count over 65,536 bins, then search the one bin that holds it."""
    low, high = map(float, flat.aminmax())
    per_unit = (N_BINS - 1) / (high - low) if high > low else math.inf
    if not 0 < per_unit < torch.finfo(flat.dtype).max:
        return flat.kthvalue(len(flat) - nth + 1).values
    bins = flat.sub(low).mul_(per_unit).to(torch.int32)
    n_up_to = torch.bincount(bins, minlength=N_BINS).cumsum(0)
    ascending = len(flat) - nth + 1
    chosen = int(torch.searchsorted(n_up_to, ascending))
    below = int(n_up_to[chosen - 1]) if chosen else 0
    return flat[bins == chosen].kthvalue(ascending - below).values


@checked(masks=("reference_mask", "update_mask"))
def mask_overlap(reference_mask: Bool[Tensor, "*shape"], update_mask: Bool[Tensor, "*shape"]) -> float:
    r"""Fraction of the updated entries that lie in a reference mask.

    Parameters
    ----------
    reference_mask : Bool[Tensor, "*shape"]
        Such as :func:`principal_mask` or :func:`low_magnitude_mask`.
    update_mask : Bool[Tensor, "*shape"]
        Visibly updated entries, from :func:`~opdgeom_utils.metrics.update_mask`.

    Returns
    -------
    float
        0 (updates avoid the reference) to 1 (all inside it); nan if nothing was updated. Updates that ignore the
        reference score its own size, alpha.

    Raises
    ------
    MetricInputError
        For tensors that are not boolean and of one shape.

    Notes
    -----
    The paper's "update-mask overlap", arXiv 2606.07082: :math:`|M_\bullet \cap M| / |M|`.

    Examples
    --------
    >>> mask_overlap(torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False]))
    0.5
    """
    n_updated = count_true(update_mask)
    if n_updated == 0:
        return math.nan
    return count_true(reference_mask & update_mask) / n_updated
