"""How far the spectrum moved, and how an update's energy is spread over directions (arXiv 2606.07082)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.linalg.factors import singular_values
from opdgeom_utils.linalg.gram import TallMatrix, largest_eigenvalue
from opdgeom_utils.metrics.inputs import check_count, checked


@checked(matrices=("w_ref", "w_new"))
def normalized_spectral_shift(w_ref: Float[Tensor, "out in"], w_new: Float[Tensor, "out in"]) -> float:
    r"""Relative distance between the singular values of two matrices.

    Parameters
    ----------
    w_ref, w_new : Float[Tensor, "out in"]
        The weights before and after, of one shape and any floating dtype.

    Returns
    -------
    float
        0 (same spectrum) upwards, never above :math:`\|W_+ - W_0\|_F / \|W_0\|_F` (Mirsky); nan if ``w_ref`` is zero.

    Raises
    ------
    MetricInputError
        For tensors that are not finite floating matrices of one shape.

    Notes
    -----
    The paper's "spectral drift", arXiv 2606.07082, with all singular values in descending order:

    .. math:: \mathrm{NSS} = \|\sigma(W_+) - \sigma(W_0)\|_2 / \|\sigma(W_0)\|_2.

    Examples
    --------
    Singular values (4, 3) become (4, 2): the shift is 1, the norm is 5.

    >>> normalized_spectral_shift(torch.tensor([[4.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 2.0], [4.0, 0.0]]))
    0.2
    """
    return spectral_shift(singular_values(w_ref), singular_values(w_new))


def spectral_shift(s_ref: Float[Tensor, " p"], s_new: Float[Tensor, " p"]) -> float:
    """Return the normalized spectral shift of two descending spectra; nan if the first is zero."""
    scale = float(s_ref.max())
    if scale == 0:
        return math.nan
    return float(((s_new - s_ref) / scale).norm() / (s_ref / scale).norm())


@checked(matrices=("delta_w",))
def stable_rank(delta_w: Float[Tensor, "out in"]) -> float:
    r"""Effective number of directions that carry an update's energy.

    Parameters
    ----------
    delta_w : Float[Tensor, "out in"]
        An update, any floating dtype.

    Returns
    -------
    float
        1 (one direction) to the rank (all directions alike); nan for a zero update.

    Raises
    ------
    MetricInputError
        For anything but a finite floating matrix.

    Notes
    -----
    The paper's "trajectory of dW_t", arXiv 2606.07082: :math:`\|\Delta W\|_F^2 / \|\Delta W\|_{op}^2`. Rounding an
    update to bf16 adds noise that raises it, so pass float32 updates where there are any.

    Examples
    --------
    Squared singular values 4 and 1: five parts of energy, four in the strongest direction.

    >>> stable_rank(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    1.25
    """
    if not bool(delta_w.any()):
        return math.nan
    return stable_rank_of(TallMatrix.of(delta_w))


def stable_rank_of(delta: TallMatrix) -> float:
    """Stable rank of an update that is already checked: the trace of its Gram matrix over the largest eigenvalue."""
    gram = delta.gram()
    energy = float(gram.trace())
    return max(1.0, energy / float(largest_eigenvalue(gram))) if energy > 0 else math.nan


def stable_rank_from(s: Float[Tensor, " p"]) -> float:
    """Stable rank from all singular values, the largest first; nan if they are 0."""
    return float((s / s[0]).square().sum()) if float(s[0]) > 0 else math.nan


@checked(vectors=("singular_values",))
def hill_estimator(singular_values: Float[Tensor, " p"], *, k: int) -> float:
    r"""Tail exponent of the k largest singular values.

    Parameters
    ----------
    singular_values : Float[Tensor, " p"]
        Not negative, any order, any floating dtype.
    k : int
        How many of the largest to use, from 2 to p.

    Returns
    -------
    float
        Above 0; small means heavy-tailed (a few directions dominate), inf means the top k are equal, nan means that
        fewer than k are above 0.

    Raises
    ------
    MetricInputError
        For anything but a finite floating vector without negative entries, or a ``k`` outside 2 to p.

    Notes
    -----
    The paper's "trajectory of dW_t", arXiv 2606.07082, with values descending:

    .. math:: \left[ \frac{1}{k-1} \sum_{i<k} \log \frac{\sigma_i}{\sigma_k} \right]^{-1}.

    Examples
    --------
    Each value is e times the next: the mean of the logarithms 2 and 1 is 1.5.

    >>> round(hill_estimator(torch.tensor([1.0, math.e, math.e**2]), k=3), 6)
    0.666667
    """
    check_count("k", k, at_least=2)
    if k > len(singular_values):
        raise MetricInputError(f"k is {k}, expected at most {len(singular_values)}, the number of singular values.")
    if bool((singular_values < 0).any()):
        raise MetricInputError("singular_values has negative entries, expected none; pass svdvals, not eigenvalues.")
    top = singular_values.double().sort(descending=True).values[:k]
    if float(top[-1]) == 0:
        return math.nan
    mean_log = float((top[:-1] / top[-1]).log().mean())
    return math.inf if mean_log == 0 else 1.0 / mean_log


def tail_exponent(s: Float[Tensor, " p"], *, k: int, largest_side: int) -> float:
    """Hill estimator of a computed spectrum: ``k`` is clipped, and values at rounding level count as 0."""
    k = min(k, len(s))
    noise = torch.finfo(torch.float64).eps * largest_side * float(s[0])
    return hill_estimator(torch.where(s > noise, s, torch.zeros_like(s)), k=k) if k >= 2 else math.nan
