r"""How far an update without direction moves a matrix's singular values.

Only the matrix's own singular values are needed. In the basis of its singular vectors, :math:`W_0 + sG` with
independent normal entries in G has the law of :math:`\mathrm{diag}(\sigma) + sG`. Where s is small against the gaps
between singular values, perturbation theory gives the answer; near a gap that is not large, a small piece of the matrix
is drawn and decomposed instead; where no gap is large, the whole of it, or a smaller matrix that stands for it.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.linalg.factors import singular_values
from opdgeom_utils.metrics.inputs import check_size, checked

WINDOW = 128  # the most neighbouring singular values that are drawn together
#: Up to so many times the mean gap of a densest quarter of a window, noise does not reach across the window.
WIDTHS = ((0.4, 32), (1.2, 64), (3.0, WINDOW))
SMALLEST = 256  # singular values of a matrix that stands for a larger one
LEVELS = 2**10  # singular values that are drawn in all, where one draw of the matrix has fewer


@checked(matrices=("w_ref",))
def noise_spectral_shift(w_ref: Float[Tensor, "out in"], rms: float | int) -> float:
    r"""Shift of the spectrum, relative to it, that is expected when every entry moves at random.

    Parameters
    ----------
    w_ref : Float[Tensor, "out in"]
        The weights before, any floating dtype.
    rms : float
        Root mean square of each entry's displacement, such as :func:`~opdgeom_utils.metrics.noise_walk_rms`.

    Returns
    -------
    float
        0 upwards; nan if ``w_ref`` is zero. Always the same for the same input.

    Raises
    ------
    MetricInputError
        For anything but a finite floating matrix, or an ``rms`` that is not finite and not negative.

    Notes
    -----
    To first order each singular value moves by :math:`s\,u_i^\top G v_i`, a normal number of rms s, so with r singular
    values

    .. math:: \mathrm{NSS} = s \sqrt{r} / \|W_0\|_F .

    Beyond it neighbours push each other apart. Neighbouring values (32 of them, up to 128 where s is large) are
    therefore drawn together, as the singular values of a small matrix, and what the rest of the spectrum adds is the
    second-order push :math:`\tfrac{s^2}{2} \sum_j [1/(\sigma_i - \sigma_j) + 1/(\sigma_i + \sigma_j)]`. The first-order
    part of the draws is replaced by its expectation. Where s is above three times the mean gap of the densest 32, the
    whole matrix is drawn, or where s is large against most gaps, one with fewer directions and as much more noise,
    which moves alike. Against the mean of exact draws on matrices of real models: within 3% where s is below the median
    gap, within 6% above.

    Examples
    --------
    Two singular values, 3 and 4, each moved by about 1/1000; the norm is 5.

    >>> shift = noise_spectral_shift(torch.diag(torch.tensor([4.0, 3.0])), 0.001)
    >>> round(shift, 6), round(math.gamma(1.5) * math.sqrt(2) * 0.001 / 5, 6)
    (0.000251, 0.000251)
    """
    check_size("rms", rms)
    return expected_shift(singular_values(w_ref), longer=max(w_ref.shape), rms=float(rms))


def drift_without_decay(shift: float, relative_norm: float, shrinkage: float) -> float:
    r"""Shift of the spectrum that an update would show had weight decay not shrunk the weights as well.

    Parameters
    ----------
    shift : float
        Normalized spectral shift, as measured; 0 upwards.
    relative_norm : float
        Frobenius norm of the whole update over that of the weights before.
    shrinkage : float
        Share of themselves that the weights lost: :func:`~opdgeom_utils.metrics.decay_shrinkage`; below 1.

    Returns
    -------
    float
        0 upwards; nan where one of the three is.

    Raises
    ------
    MetricInputError
        For a number below 0, or a ``shrinkage`` of 1 or more.

    Notes
    -----
    Write :math:`W_+ = (1 - \delta) W_0 + D`. Decay alone moves every singular value by :math:`\delta` of itself: a
    shift of exactly :math:`\delta`, and no direction turns. The two parts do not simply add: D makes the spectrum
    longer, decay shorter. If D is uncorrelated with the weights, :math:`\langle W_0, D \rangle = 0`, the lengths of
    both matrices are known, and with all lengths over :math:`\|W_0\|_F`

    .. math:: \mathrm{NSS}^2 = (1 - \delta)\, \Delta^2 + \delta^2 - \frac{\delta}{1 - \delta}\, \|D\|^2 ,

    where :math:`\Delta`, which is returned, is the shift under :math:`D / (1 - \delta)` alone. This project's own
    derivation.

    Examples
    --------
    Nothing but decay, then nothing but another update.

    >>> drift_without_decay(0.25, 0.25, 0.25), drift_without_decay(0.25, 0.5, 0.0)
    (0.0, 0.25)
    """
    for name, value in (("shift", shift), ("relative_norm", relative_norm), ("shrinkage", shrinkage)):
        if value < 0 or (name == "shrinkage" and value >= 1):
            below = ", and below 1" if name == "shrinkage" else ""
            raise MetricInputError(f"{name} is {value}; expected a number from 0 upwards{below}.")
    rest = relative_norm**2 - shrinkage**2
    square = (shift**2 - shrinkage**2 + shrinkage * rest / (1 - shrinkage)) / (1 - shrinkage)
    return square if math.isnan(square) else math.sqrt(max(0.0, square))


def drift_with_decay(shift: float, rest: float, shrinkage: float) -> float:
    """Undo :func:`drift_without_decay`; ``rest``: norm of the update beside decay, over that of the weights before.

    >>> drift_with_decay(0.0, 0.0, 0.25), drift_with_decay(0.25, 0.5, 0.0)
    (0.25, 0.25)
    """
    square = (1 - shrinkage) * shift**2 + shrinkage**2 - shrinkage * rest**2 / (1 - shrinkage)
    return square if math.isnan(square) else math.sqrt(max(0.0, square))


def noise_drift(s: Float[Tensor, " p"], shape: tuple[int, ...], *, rms: float, shrinkage: float) -> float:
    """Shift expected of a matrix with this spectrum and shape under noise and the weight decay of its schedule."""
    size = float(s.norm())
    rest = rms * math.sqrt(math.prod(shape)) / size if size else math.nan
    return drift_with_decay(expected_shift(s, longer=max(shape), rms=rms), rest, shrinkage)


def expected_shift(s: Float[Tensor, " p"], *, longer: int, rms: float) -> float:
    """Shift expected for a descending spectrum; ``longer`` is the longer side of its matrix."""
    size = float(s.norm())
    if size == 0:
        return math.nan
    if rms == 0:
        return 0.0
    s, n, generator = s.cpu() / size, len(s), np.random.default_rng(0)
    rms, extra = rms / size, longer - n
    if n <= WINDOW or is_crowded(s, rms):
        times = int(rms / (1.25 * max(float((s[:-1] - s[1:]).median()), 1e-3 * rms))) if n > WINDOW else 1
        drawn = shrunk(s, extra, rms, times)
        fewer = len(drawn[0])
        squares = [_moved_together(*drawn, generator) * n / fewer for _ in range(max(1, LEVELS // fewer))]
    else:
        width = _width(s, rms) or WINDOW
        draws = max(1, width * LEVELS // (WIDTHS[0][1] * n))  # more where the first-order part says less
        squares = _moved_in_windows(s, extra, rms, generator, width, draws)
    # Of n independent normal moves, the mean of the root of the sum of squares, not the root of its mean.
    root = math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2)) * math.sqrt(2 / n)
    return root * math.sqrt(max(0.0, float(np.mean(squares))))


def is_crowded(s: Float[Tensor, " p"], rms: float) -> bool:
    """Whether noise reaches so far across a descending spectrum that the whole matrix has to be drawn."""
    return len(s) > WINDOW and _width(s, rms) is None


def shrunk(s: Tensor, extra: int, rms: float, times: int, *, k: int = 0) -> tuple[Tensor, int, float]:
    """Spectrum of a matrix so many times smaller that noise moves and turns alike, where it is large against the gaps.

    Neighbouring singular values are averaged, on each side of the k-th by themselves, and the noise is larger by the
    root of how many were: in the limit of many directions only sizes times squared noise count. Never fewer than
    ``SMALLEST`` values, nor 16 on a side of the cut.
    """
    sides = [part for part in (s[:k], s[k:]) if len(part)]
    times = max(1, min(times, len(s) // SMALLEST, *(len(part) // 16 for part in sides)))
    if times == 1:
        return s, extra, rms
    means = torch.cat([torch.stack([some.mean() for some in part.tensor_split(len(part) // times)]) for part in sides])
    share = len(means) / len(s)
    return means, round(extra * share), rms / math.sqrt(share)


def _width(s: Tensor, rms: float) -> int | None:
    """How many neighbours have to be drawn together; None if that is more than a window."""
    for most, width in WIDTHS:
        few = width // 4 - 1
        if rms <= most * float((s[:-few] - s[few:]).min()) / few:
            return width
    return None


def _moved_together(s: Tensor, extra: int, rms: float, generator: np.random.Generator) -> float:
    """Sum of the squared moves in one draw of the whole matrix, the first-order part replaced by its mean."""
    drawn, first = drawn_matrix(s, extra, rms, generator)
    moves = singular_values(drawn) - s if len(s) > WINDOW else torch.linalg.svdvals(drawn) - s
    return float((moves.square() - first.square() + rms**2).sum())


def _moved_in_windows(
    s: Tensor, extra: int, rms: float, generator: np.random.Generator, width: int, draws: int
) -> list[float]:
    """Do the same window by window, each with its neighbours; all windows of all draws are decomposed in one call."""
    n = len(s)
    starts = np.minimum(np.arange(0, n - width // 2, width // 2), n - width)
    places = torch.from_numpy(starts[:, None] + np.arange(width))
    middle = torch.from_numpy(_middles(starts, width, n))
    below = torch.from_numpy(np.sqrt(generator.chisquare(extra, (draws, n)))) * rms if extra else torch.zeros(draws, n)
    noise = torch.from_numpy(generator.standard_normal((draws, len(starts), width, width))).mul_(rms)
    first = noise.diagonal(dim1=2, dim2=3).clone()
    noise.diagonal(dim1=2, dim2=3).add_(s[places])
    # Rows beyond the square lengthen each column by what is at right angles to it.
    values = torch.linalg.svdvals(noise) + below[:, places].square() / (2 * s[places].clamp(min=rms))
    moves = values - s[places] + _push(s, places, rms)
    found = torch.where(middle, moves.square() - first.square() + rms**2, torch.zeros(()))
    return found.sum(dim=(1, 2)).tolist()


def _middles(starts: np.ndarray, width: int, n: int) -> np.ndarray:
    """Which places each window answers for, so that every singular value has one: its middle half, or up to an end."""
    edges = np.concatenate([[0], (starts[1:] + starts[:-1] + width) // 2, [n]])
    places = starts[:, None] + np.arange(width)
    return (places >= edges[:-1, None]) & (places < edges[1:, None])


def drawn_matrix(s: Tensor, extra: int, rms: float, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw diag(s) with noise, the rows beyond its square brought to a triangle; and the noise on the diagonal."""
    noise = torch.from_numpy(generator.standard_normal((len(s), len(s)))).mul_(rms)
    first = noise.diagonal().clone()
    noise.diagonal().add_(s)
    return torch.cat([noise, _wishart_root(len(s), extra, generator) * rms]), first


def _wishart_root(p: int, rows: int, generator: np.random.Generator) -> Tensor:
    """Draw a matrix whose products of columns have the law of those of ``rows`` x ``p`` independent normal numbers."""
    if rows <= p:
        return torch.from_numpy(generator.standard_normal((rows, p)))
    triangle = np.triu(generator.standard_normal((p, p)), 1)
    return torch.from_numpy(triangle + np.diag(np.sqrt(generator.chisquare(rows - np.arange(p)))))


def _push(s: Tensor, places: Tensor, rms: float) -> Tensor:
    """Second-order push on each window's values by all values outside the window."""
    whole = torch.cat([_pushes(some[:, None], s) for some in s.split(WINDOW)])
    near = s[places]
    return rms**2 / 2 * (whole[places] - _pushes(near[:, :, None], near[:, None, :]))


def _pushes(here: Tensor, others: Tensor) -> Tensor:
    """Sum over the last dimension of 1/(difference) + 1/(sum), equal values left out."""
    gaps = here - others
    apart = (1 / gaps).add_(1 / (here + others))
    return apart.masked_fill_(gaps == 0, 0.0).sum(dim=-1)
