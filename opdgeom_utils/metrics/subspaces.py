"""How far the leading singular spaces turned, and how much two updates share (arXiv 2606.07082)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.linalg.factors import Factors, cholesky, factorize
from opdgeom_utils.linalg.gram import eigenvalues, gram_of, sum_of_grams
from opdgeom_utils.metrics.inputs import check_count, checked

# Squared sines above this part of 1 (or cosines, near 90 degrees) may be taken as differences from 1.
SMALL = 1e-14
# Error of a squared sine that is found from an update, as a part of the update's size over the smallest singular value.
ROUNDING = 1e-15
TOLERANCE = 5e-9  # radians, 3e-7 degree


@dataclass(frozen=True)
class PrincipalAngles:
    """Angles between the leading singular spaces of two matrices.

    Attributes
    ----------
    left_deg, right_deg : Float[Tensor, " k"]
        Output side and input side, in degrees from 0 (shared direction) to 90 (orthogonal), ascending, float64.
    """

    left_deg: Float[Tensor, " k"]
    right_deg: Float[Tensor, " k"]


@checked(matrices=("w_ref", "w_new"))
def principal_angles(
    w_ref: Float[Tensor, "out in"], w_new: Float[Tensor, "out in"], *, k: int = 512
) -> PrincipalAngles:
    r"""Principal angles between the top-k left, and top-k right, singular spaces of two matrices.

    Parameters
    ----------
    w_ref, w_new : Float[Tensor, "out in"]
        The weights before and after, of one shape and any floating dtype.
    k : int
        Dimension of the spaces, at least 1, clipped to ``min(out, in)``.

    Returns
    -------
    PrincipalAngles
        ``k`` angles on each side, in degrees, ascending.

    Raises
    ------
    MetricInputError
        For tensors that are not finite floating matrices of one shape, or a ``k`` below 1.

    Notes
    -----
    The paper's "principal angles", arXiv 2606.07082: the cosines are the singular values of
    :math:`U_{0,k}^\top U_{+,k}` and :math:`V_{0,k}^\top V_{+,k}`. An arccos of a cosine near 1 loses every digit, so
    angles below 45 degrees are taken from their sines, the singular values of
    :math:`(I - U_{0,k} U_{0,k}^\top)\, U_{+,k}` (a departure from the paper, for accuracy only). Where ``k`` equals
    ``out`` (or ``in``) the left (right) space is the whole space and its angles are 0. Where ``k`` is more than half of
    it, two such spaces share ``2k - out`` directions at least, whose angles are 0; the others are the angles between
    their orthogonal complements. Where the k-th and the next singular value of a matrix are equal, its top-k space is
    arbitrary, and so are the angles.

    Examples
    --------
    The leading right vector turns from the first axis to the second; the leading left vector stays.

    >>> angles = principal_angles(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]]), k=1)
    >>> angles.left_deg.tolist(), angles.right_deg.tolist()
    ([0.0], [90.0])
    """
    check_count("k", k)
    return angles_between(factorize(w_ref, cuts=(k,)), factorize(w_new, cuts=(k,)), k=k)


def angles_between(reference: Factors, new: Factors, *, k: int) -> PrincipalAngles:
    """Principal angles from factors already computed; ``k`` is clipped to the vectors at hand."""
    k = min(k, len(reference.s))
    if all(0 < factors.beyond.shape[1] == len(factors.s) - k for factors in (reference, new)):
        short = _complement_angles_deg(reference.beyond, new.beyond, k)
        long = _nearly_full_angles_deg(reference, new, k)
    else:
        short = space_angles_deg(reference.short[:, :k], new.short[:, :k])
        long = _long_angles_deg(reference, new, k)
    left, right = (short, long) if reference.is_wide else (long, short)
    return PrincipalAngles(left_deg=left, right_deg=right)


def _complement_angles_deg(
    beyond_a: Float[Tensor, "n few"], beyond_b: Float[Tensor, "n few"], k: int
) -> Float[Tensor, " k"]:
    """Angles between two spaces of ``k`` of ``n`` dimensions, more than half, given what is orthogonal to each.

    The angles that can differ from 0 are those between the two complements; the spaces share all other directions.
    """
    overlap = beyond_a.T @ beyond_b
    sines = torch.linalg.svdvals(beyond_b - beyond_a @ overlap).flip(0).clamp(max=1.0)
    cosines = torch.linalg.svdvals(overlap).clamp(max=1.0)
    few = torch.rad2deg(torch.where(cosines**2 > 0.5, torch.asin(sines), torch.acos(cosines)))
    return torch.cat([few.new_zeros(k - len(few)), few.sort().values])


def _nearly_full_angles_deg(reference: Factors, new: Factors, k: int) -> Float[Tensor, " k"]:
    """Angles on the long side where ``k`` is more than half of the short one."""
    if reference.long_beyond is not None and new.long_beyond is not None:
        return _complement_angles_deg(reference.long_beyond, new.long_beyond, k)
    found = None
    if new is not reference and len(reference.tall.rows) > len(reference.s):
        found = _small_angles_deg(reference, new, k)
    return _long_angles_deg(reference, new, k) if found is None else found


def _small_angles_deg(reference: Factors, new: Factors, k: int) -> Float[Tensor, " k"] | None:
    """Angles on the long side from those vectors of the short side that are there; None where they would be inexact.

    What the leading long space of the reference leaves of a new long vector has two parts: what the update brought in,
    and what the new short vector holds of the vectors ``beyond`` of the reference. Both are as small as the update. So
    the squared sines, which are their products, are exact to its size, and no long vector is made.
    """
    ratio, n = reference.tall.scale / new.tall.scale, len(reference.s)  # of the two units
    s, s_new = reference.lengths(n), new.lengths(k)
    cross, gram = torch.zeros(2, n, n, dtype=s.dtype, device=s.device)
    for before, after in zip(reference.tall.blocks(), new.tall.blocks(), strict=True):
        delta = torch.sub(after, before, alpha=ratio)
        cross += before.T @ delta
        gram += gram_of(delta)
    size = float(gram.abs().sum(0).max() / s_new[-1] ** 2)
    rounding = ROUNDING * float(s[0] / s[k - 1] * s_new[0] / s_new[-1])  # of squared sines, over their size
    if not (size < 1 and rounding * size < TOLERANCE):
        return None
    vectors = new.short[:, :k] / s_new
    brought_in = gram - gram_of((reference.short[:, :k] / s[:k]).T @ cross)
    turned_in = ratio * reference.beyond.T @ vectors
    mixed = turned_in.T @ (reference.beyond.T @ cross @ vectors)
    squares = eigenvalues(vectors.T @ brought_in @ vectors + mixed + mixed.T + gram_of(s[k:, None] * turned_in))
    largest, smallest = float(squares[0]), float(squares[-1])
    if largest > 0.5 or rounding * (size + largest) > TOLERANCE * max(TOLERANCE, 2 * smallest**0.5):
        return None
    return torch.rad2deg(torch.asin(squares.sqrt())).flip(0)


def space_angles_deg(basis_a: Float[Tensor, "n k"], basis_b: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    """Principal angles between two spaces given by orthonormal columns, in degrees, ascending, float64.

    >>> axis = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    >>> diagonal = torch.tensor([[1.0], [1.0]], dtype=torch.float64) / 2**0.5
    >>> round(float(space_angles_deg(axis, diagonal)), 12)
    45.0
    """
    n, k = basis_a.shape
    if k == n:
        return torch.zeros(k, dtype=torch.float64, device=basis_a.device)
    overlap = basis_a.T @ basis_b
    return _angles_deg(overlap, lambda: gram_of(basis_b - basis_a @ overlap))


def _long_angles_deg(reference: Factors, new: Factors, k: int) -> Float[Tensor, " k"]:
    """Angles on the long side; the new matrix's vectors are made block by block and not kept."""
    kept = reference.long
    n, device = len(kept.near), kept.near.device
    if k == n:
        return torch.zeros(k, dtype=torch.float64, device=device)
    if new is reference or not new.has_long_lengths(k):
        return space_angles_deg(kept.orthonormal()[:, :k], new.long.orthonormal()[:, :k])
    vectors = new.short[:, :k] / new.lengths(k)
    overlap, products = torch.zeros(2, k, k, dtype=torch.float64, device=device)
    for near, block in _side_by_side(reference, new):
        images = block @ vectors
        overlap += near[:, :k].T @ images
        products += gram_of(images)
    triangle, new_triangle = kept.triangle[:k, :k], cholesky(products)
    overlap = torch.linalg.solve_triangular(new_triangle, overlap, upper=True, left=False)
    overlap = torch.linalg.solve_triangular(triangle.T, overlap, upper=False)

    def residual() -> Float[Tensor, "k k"]:
        turned = torch.linalg.solve_triangular(new_triangle, vectors, upper=True, left=False)
        inside = torch.linalg.solve_triangular(triangle, overlap, upper=True)
        return sum_of_grams(block @ turned - near[:, :k] @ inside for near, block in _side_by_side(reference, new))

    return _angles_deg(overlap, residual)


def _side_by_side(reference: Factors, new: Factors) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of the new matrix, each beside the same rows of the reference's long vectors."""
    start = 0
    for block in new.tall.blocks():
        yield reference.long.near[start : start + len(block)], block
        start += len(block)


def _angles_deg(overlap: Float[Tensor, "k k"], residual: Callable[[], Float[Tensor, "k k"]]) -> Float[Tensor, " k"]:
    """Angles between two spaces from the products of their orthonormal bases.

    The squared sines are the eigenvalues of ``I - overlap.T @ overlap``, with an absolute error of some 1e-15. That is
    at most 2e-6 degree if the smallest is above ``SMALL``. If it is not, they are taken from the Gram matrix of what
    the first space leaves of the second, ``residual``; then an angle far below the largest one carries an error of up
    to 2e-8 of the largest, at most 2e-6 degree.
    """
    identity = torch.eye(len(overlap), dtype=overlap.dtype, device=overlap.device)
    squares = eigenvalues(identity - gram_of(overlap))
    if float(squares[-1]) < SMALL:
        squares = eigenvalues(residual())
    sines = squares.sqrt().flip(0).clamp(max=1.0)
    radians = torch.asin(sines)
    if float(squares[0]) > 1 - SMALL:
        cosines = torch.linalg.svdvals(overlap).clamp(max=1.0)
        radians = torch.where(cosines**2 > 0.5, radians, torch.acos(cosines))
    return torch.rad2deg(radians).sort().values


@checked(matrices=("delta_t", "delta_end"))
def subspace_similarity(delta_t: Float[Tensor, "out in"], delta_end: Float[Tensor, "out in"], *, k: int = 16) -> float:
    r"""Share of the final update's top-k right singular space that an earlier update already spans.

    Parameters
    ----------
    delta_t, delta_end : Float[Tensor, "out in"]
        Cumulative updates :math:`W_t - W_0` at time t and at the end, of one shape and any floating dtype.
    k : int
        Dimension of the spaces, at least 1, clipped to ``min(out, in)``. With ``k = in`` the answer is always 1.

    Returns
    -------
    float
        0 (orthogonal) to 1 (the same space); nan if either update is zero. Two independent random spaces score k/in.

    Raises
    ------
    MetricInputError
        For tensors that are not finite floating matrices of one shape, or a ``k`` below 1.

    Notes
    -----
    The paper's "trajectory of dW_t", arXiv 2606.07082: :math:`\mathrm{Sim}_K = \|V_K(t)^\top V_K(end)\|_F^2 / K`. For
    left spaces, pass the transposes. Directions beyond an update's rank are arbitrary: keep ``k`` below the rank.

    Examples
    --------
    The two updates share one of their two leading input directions.

    >>> early = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> late = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    >>> subspace_similarity(early, late, k=2)
    0.5
    """
    check_count("k", k)
    if not bool(delta_t.any()) or not bool(delta_end.any()):
        return math.nan
    k = min(k, *delta_t.shape)
    right_t, right_end = (factorize(delta, cuts=(k,)).vh for delta in (delta_t, delta_end))
    return min(1.0, float((right_t @ right_end.T).square().sum()) / k)
