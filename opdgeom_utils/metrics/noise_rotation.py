r"""How far an update without direction turns a matrix's leading singular spaces: see :mod:`.noise_spectrum`."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.linalg.factors import MIN_GAP, factorize, singular_values
from opdgeom_utils.linalg.gram import eigenvalues, gram_of
from opdgeom_utils.metrics.inputs import check_count, check_size, checked
from opdgeom_utils.metrics.noise_spectrum import drawn_matrix, shrunk

#: Noise in gaps at the cut, up to which so many values on each side of it are drawn together, and how often.
NEAR = ((0.3, 8, 128), (1.0, 16, 96), (math.inf, 32, 48))
FEW = 64  # matrices up to this side are drawn whole
LARGE_ANGLE_DEG = 8.0  # above it, all directions mix and not only neighbours
ANGLES, LEVELS = 2**7, 2**11  # angles and singular values that are drawn in all, where one draw has fewer
STEP, POINTS, SETTLED, MOST_TURNS = 0.2, 32, 1e-3, 100  # of the limit: grid in ln(eta), relative error, iterations


@dataclass(frozen=True)
class NoiseAngles:
    """Expected principal angles under noise, in degrees, 0 to 90; nan where the leading space is not defined.

    Attributes
    ----------
    left_deg, right_deg : float
        Mean over the k angles, output side and input side.
    left_max_deg, right_max_deg : float
        Expected largest of them. A single draw scatters around it by half and more.
    """

    left_deg: float
    right_deg: float
    left_max_deg: float = 0.0
    right_max_deg: float = 0.0


@checked(matrices=("w_ref",))
def noise_angles(w_ref: Float[Tensor, "out in"], rms: float | int, *, k: int = 512) -> NoiseAngles:
    r"""Mean principal angles of the leading spaces that are expected when every entry moves at random.

    Parameters
    ----------
    w_ref : Float[Tensor, "out in"]
        The weights before, any floating dtype.
    rms : float
        Root mean square of each entry's displacement, such as :func:`~opdgeom_utils.metrics.noise_walk_rms`.
    k : int
        Dimension of the spaces, at least 1, clipped to ``min(out, in)``.

    Returns
    -------
    NoiseAngles
        Means over the k angles and largest angles. Always the same for the same input.

    Raises
    ------
    MetricInputError
        For anything but a finite floating matrix, a ``k`` below 1, or an ``rms`` that is not finite and not negative.

    Notes
    -----
    To first order the leading space's i-th direction leans on the j-th outside it by a normal number of variance

    .. math:: s^2 (\sigma_i^2 + \sigma_j^2) / (\sigma_i^2 - \sigma_j^2)^2, \qquad i \le k < j,

    on either side, and on the longer side by :math:`s^2/\sigma_i^2` for each of the |out - in| directions that the
    matrix does not reach. The tangents of the angles are the singular values of that matrix of leanings, whose entries
    are independent, with variances :math:`v_{ji}`. Its limit for many directions needs no draw: with

    .. math:: g_i = 1/(\eta + \sum_j v_{ji} h_j), \quad h_j = 1/(\eta + \sum_i v_{ji} g_i), \quad
              \sum_l \theta_l = \int_0^\infty \ln\left|\frac{1 + \eta}{1 - \eta}\right|
              \sum_i (1 - \eta g_i) \frac{d\eta}{\pi \eta},

    directions far from the cut in groups. The 8 to 32 singular values on each side of the cut, where most of the angle
    is, are drawn and decomposed as a small matrix many times; that replaces the limit's answer for them. So a narrow
    gap at k is no harm. The largest angle is that of these draws, with the squared leanings on all other directions
    added. Where the k-th and the next singular value are equal, the leading space is arbitrary before anything moved:
    nan, as in :func:`~opdgeom_utils.diagnose_pair`. Where k is the whole side, 0. Where the mean is above 8 degrees, a
    whole matrix is drawn, with fewer directions and as much more noise where there are many. Against the mean of exact
    draws on matrices of real models: means within 5%, and within 8% above 8 degrees; largest angles within 15%.

    Examples
    --------
    One direction of strength 4 beside one of 3. The variance is s^2 (16 + 9) / 49, the mean size of a normal number
    0.798 of its root.

    >>> angles = noise_angles(torch.diag(torch.tensor([4.0, 3.0])), 0.001, k=1)
    >>> by_hand = math.degrees(0.798 * 0.001 * 5 / 7)
    >>> abs(angles.left_deg / by_hand - 1) < 0.05, abs(angles.right_deg / by_hand - 1) < 0.05
    (True, True)
    """
    check_size("rms", rms)
    check_count("k", k)
    return expected_angles(singular_values(w_ref), tuple(w_ref.shape), rms=float(rms), k=k)


def expected_angles(s: Float[Tensor, " p"], shape: tuple[int, ...], *, rms: float, k: int) -> NoiseAngles:
    """Angles expected for the descending spectrum of a matrix of that shape."""
    s, n, extra = s.cpu().double(), len(s), max(shape) - len(s)
    k = min(k, n)
    defined = float(s[0]) > 0 and (k == n or float(s[k - 1] - s[k]) >= MIN_GAP * float(s[0]))
    shorter, longer = (math.nan, math.nan), (math.nan, math.nan)
    if rms == 0:
        shorter, longer = (0.0, 0.0), (0.0, 0.0)
    elif defined and k < max(shape):
        generator = np.random.default_rng(0)
        found = _limit(s / rms, extra, k, generator) if n > FEW else None
        if found is None or (max(mean for mean, _ in found) > LARGE_ANGLE_DEG and k < n):
            near = found or [(math.nan, math.nan)] * 2  # fewer directions have a smaller largest angle
            means = _whole(s, extra, rms, k, generator)
            found = [(a[0], a[1] if math.isnan(b[1]) else b[1]) for a, b in zip(means, near, strict=True)]
        shorter, longer = found
    sides = [(0.0, 0.0) if k == size else longer if size > n else shorter for size in shape]
    (left, left_max), (right, right_max) = sides
    return NoiseAngles(left, right, left_max, right_max)


def are_drawn(angles: NoiseAngles) -> bool:
    """Whether these expected angles are so large that they come from draws of the whole matrix."""
    return max(angles.left_deg, angles.right_deg) > LARGE_ANGLE_DEG


def _limit(s: Tensor, extra: int, k: int, generator: np.random.Generator) -> tuple[tuple[float, float], ...]:
    """Mean and largest angle, shorter and longer side, for singular values in units of the noise."""
    leading, other = s[:k].flip(0).numpy(), s[k:].numpy()  # each from the cut outwards
    shorter = _sum_of_angles(leading, other, 0) if len(other) else 0.0
    longer = _sum_of_angles(leading, other, extra) if extra else shorter
    if not len(other):
        squares = leading**-2.0  # mean squared tangent that each direction brings; the edge of their spectrum follows
        above = squares[0] * (1 + np.geomspace(1e-3, 1e2, 200))
        edge = (above * (extra + (squares / (above[:, None] - squares)).sum(axis=1))).min()
        return (0.0, 0.0), (longer / k, math.degrees(math.atan(math.sqrt(edge))))
    if max(shorter, longer) > 2 * LARGE_ANGLE_DEG * k:  # so far above that nothing else is asked
        return (shorter / k, math.nan), (longer / k, math.nan)
    half, draws = next((half, draws) for most, half, draws in NEAR if most * (leading[0] - other[0]) >= 1)
    near_leading, near_other = leading[:half], other[:half]
    total, tangents = _near_the_cut(near_leading, near_other, draws, generator)
    correction = total - _sum_of_angles(near_leading, near_other, 0)
    beyond = float(_variances(leading[:1], other[half:]).sum())  # squared leanings of the first on what was not drawn
    sides = []
    for angles, more in ((shorter, 0.0), (longer, extra / leading[0] ** 2)):
        largest = float(np.degrees(np.arctan(np.sqrt(tangents**2 + beyond + more))).mean())
        sides.append((max(0.0, angles + correction) / k, largest))
    return tuple(sides)


def _near_the_cut(
    leading: np.ndarray, other: np.ndarray, draws: int, generator: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Mean sum of the angles between a small matrix's leading space and its draws', and each draw's largest tangent."""
    values = np.concatenate([leading[::-1], other])
    k, n = len(leading), len(values)
    turned, _, turned_right = np.linalg.svd(np.diag(values) + generator.standard_normal((draws, n, n)))
    outside = np.concatenate([turned[:, k:, :k], turned_right[:, :k, k:].transpose(0, 2, 1)])
    sines = np.linalg.svd(outside, compute_uv=False).clip(0, 1 - 1e-12)
    return float(np.degrees(np.arcsin(sines)).sum() / len(sines)), np.tan(np.arcsin(sines[:, 0]))


def _sum_of_angles(leading: np.ndarray, other: np.ndarray, extra: int) -> float:
    """Sum of the angles, in degrees, in the limit of many directions; both spectra go from the cut outwards."""
    (high, columns), (low, rows) = _grouped(leading), _grouped(other)
    variances = _variances(high, low)
    if extra:
        variances, rows = np.vstack([variances, 1 / high**2]), np.append(rows, extra)
    sizes = np.sqrt(rows @ variances)
    least, most = 1e-2 * float(sizes.min()), 10 * float(max(sizes.max(), math.sqrt(variances.max())))
    eta = np.exp(np.arange(math.log(least), math.log(most) + STEP, STEP))
    of_columns = 1 / np.maximum(eta, sizes[:, None])
    for _ in range(MOST_TURNS):
        of_rows = 1 / (eta + (variances * columns) @ of_columns)
        turned = np.sqrt(of_columns / (eta + (variances.T * rows) @ of_rows))  # half-way, which settles sooner
        settled = np.abs(turned / of_columns - 1).max() < SETTLED
        of_columns = turned
        if settled:
            break
    shares = columns @ (1 - eta * of_columns)
    # The weight has a pole of a logarithm at 1, so it is averaged over each step of the grid.
    within = eta[:, None] * np.exp(STEP * ((np.arange(POINTS) + 0.5) / POINTS - 0.5))
    parts = np.log((1 + within) / np.abs(1 - within)).mean(axis=1) / math.pi * shares * STEP
    # Both ends of the grid go on as geometric series.
    return math.degrees(parts.sum() + (parts[0] + parts[-1]) / math.expm1(STEP))


def _variances(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Squared leaning of each direction of the leading space on each other one: (other, leading)."""
    squares = high**2, low[:, None] ** 2
    return (squares[0] + squares[1]) / (squares[0] - squares[1]) ** 2


def _grouped(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, single ones at the cut and more and more of them further out, and how many are in each."""
    edges = [0]
    while edges[-1] < len(values):
        edges.append(min(len(values), edges[-1] + max(1, edges[-1] // 8)))
    sizes = np.diff(edges)
    return np.add.reduceat(values, edges[:-1]) / sizes if len(sizes) else values, sizes


def _whole(s: Tensor, extra: int, rms: float, k: int, generator: np.random.Generator) -> list[tuple[float, float]]:
    """Mean and largest angle over draws of the whole matrix, shorter and longer side."""
    n = len(s)
    s, extra, rms = shrunk(s, extra, rms, n, k=k)
    k = round(k * len(s) / n)
    draws = max(1, min(max(ANGLES // k, FEW // len(s)), LEVELS // len(s)))
    found = np.mean([_of_a_draw(s, extra, rms, k, generator) for _ in range(draws)], axis=0)
    return [(float(mean), float(largest)) for mean, largest in found]


def _of_a_draw(s: Tensor, extra: int, rms: float, k: int, generator: np.random.Generator) -> list[tuple[float, float]]:
    factors = factorize(drawn_matrix(s, extra, rms, generator)[0], cuts=(k,))
    sides = []
    for turned in (factors.vh.T, factors.u):
        outside = turned[k:, :k]
        sines = eigenvalues(gram_of(outside)).clamp(max=1).sqrt() if len(outside) else torch.zeros(1)
        angles = torch.rad2deg(torch.asin(sines))
        sides.append((float(angles.sum()) / k, float(angles.max())))
    return sides
