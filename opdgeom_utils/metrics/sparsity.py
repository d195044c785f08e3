"""How many weights a bf16 checkpoint shows as changed (the paper's update sparsity, arXiv 2606.07082)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.linalg.bf16_bits import count_true, differing, is_finite
from opdgeom_utils.metrics.inputs import check_fraction, checked

# Two different bf16 numbers, subnormal ones too, differ by at least this part of the larger.
INERT_ETA = 2.0**-8


@checked(tensors=("w_ref", "w_new"))
def update_mask(
    w_ref: Float[Tensor, "*shape"], w_new: Float[Tensor, "*shape"], *, eta: float | int = 1e-3
) -> Bool[Tensor, "*shape"]:
    r"""Mark the entries whose change is visible after both tensors are cast to bf16.

    Parameters
    ----------
    w_ref, w_new : Float[Tensor, "*shape"]
        The weights before and after, of one shape and any floating dtype. Matrices are (out, in).
    eta : float
        Relative tolerance, 0 to 1. Two different normal bf16 numbers differ by at least ``2**-8`` of the larger, so
        every ``eta`` below 0.0039 gives the same mask: "not equal after the cast".

    Returns
    -------
    Bool[Tensor, "*shape"]
        True where the change is visible.

    Raises
    ------
    MetricInputError
        For tensors that are not floating, finite, non-empty and of one shape, or an ``eta`` outside 0 to 1.

    Notes
    -----
    The paper's "update sparsity", arXiv 2606.07082. With both sides cast to bf16 and back, an entry is unchanged if

    .. math:: |w_+ - w_0| \le \eta \max(|w_0|, |w_+|).

    Examples
    --------
    Near 1, bf16 has steps of 1/128, so 1.001 is stored as 1.

    >>> update_mask(torch.tensor([1.0, 1.0]), torch.tensor([1.001, 1.01])).tolist()
    [False, True]
    """
    return visible_changes(w_ref, w_new, eta=eta)


def visible_changes(
    w_ref: Float[Tensor, "*shape"], w_new: Float[Tensor, "*shape"], *, eta: float | int
) -> Bool[Tensor, "*shape"]:
    """Compute the update mask of tensors that are already checked."""
    check_fraction("eta", eta)
    before, after = _bf16(w_ref, "w_ref"), _bf16(w_new, "w_new")
    if eta < INERT_ETA:
        return differing(before, after)
    before, after = before.float(), after.float()
    return (after - before).abs() > eta * torch.maximum(before.abs(), after.abs())


@checked(tensors=("w_ref", "w_new"))
def update_sparsity(
    w_ref: Float[Tensor, "*shape"], w_new: Float[Tensor, "*shape"], *, eta: float | int = 1e-3
) -> float:
    """Fraction of entries that look unchanged after the bf16 cast.

    Parameters
    ----------
    w_ref, w_new, eta
        As for :func:`update_mask`.

    Returns
    -------
    float
        0 (every entry visibly changed) to 1 (no visible change).

    Raises
    ------
    MetricInputError
        As :func:`update_mask`.

    Notes
    -----
    The paper's "update sparsity", arXiv 2606.07082. Over a model, weight each matrix by its number of entries.

    Examples
    --------
    >>> update_sparsity(torch.tensor([[1.0, 2.0, 4.0, 0.0]]), torch.tensor([[1.0, 2.0, 4.0, 1e-9]]))
    0.75
    """
    mask = visible_changes(w_ref, w_new, eta=eta)
    return (mask.numel() - count_true(mask)) / mask.numel()


def bf16_realised(w: Float[Tensor, "*shape"], *, name: str = "w") -> Float[Tensor, "*shape"]:
    """Return the float32 values that a bf16 copy of ``w`` holds.

    Raises MetricInputError when a finite entry is too large for bf16.

    >>> bf16_realised(torch.tensor([1.001, -3.0])).tolist()
    [1.0, -3.0]
    """
    return _bf16(w, name).float()


def _bf16(w: Float[Tensor, "*shape"], name: str) -> Float[Tensor, "*shape"]:
    cast = w.detach().to(torch.bfloat16)
    if w.dtype in (torch.float32, torch.float64) and not is_finite(cast):
        raise MetricInputError(
            f"{name} has entries above 3.39e38, the largest bf16 number; rescale or check the weights."
        )
    return cast
