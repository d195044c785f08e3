"""How many entries bf16 shows unchanged after an update that knows nothing of the weights.

A weight shows a change when it moves by about half a step of the bf16 grid around it, and that step grows with the
weight. So the sizes of the weights and the size of the moves are enough; magnitudes of bf16 are counted, not sampled.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtr
from torch import Tensor

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.metrics.inputs import check_fraction, check_size, checked
from opdgeom_utils.metrics.noise_walk import steps_on_noise
from opdgeom_utils.metrics.schedules import Rates
from opdgeom_utils.metrics.sparsity import INERT_ETA, bf16_realised

N_MAGNITUDES = 0x7F80  # finite magnitudes of bf16, zero included
MAGNITUDES = torch.arange(N_MAGNITUDES, dtype=torch.int16).view(torch.bfloat16).double().numpy()
MIDPOINTS = np.append((MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2, np.inf)  # above each magnitude, where bf16 rounds up
LAWS = ("normal", "laplace")
CHUNK = 2**20
WALKED = 2**12  # entries simulated for each exponent where there is no fp32 copy


@checked(tensors=("w_ref",))
def noise_sparsity(
    w_ref: Float[Tensor, "*shape"],
    rms: float | int,
    *,
    eta: float | int = 1e-3,
    law: str = "normal",
    shrinkage: float | int = 0.0,
) -> float:
    r"""Share of entries that bf16 is expected to show unchanged when every one moves at random.

    Parameters
    ----------
    w_ref : Float[Tensor, "*shape"]
        The weights before, any floating dtype. They and what becomes of them are kept in fp32 and shown in bf16.
    rms : float
        Root mean square of each entry's displacement, such as :func:`~opdgeom_utils.metrics.noise_walk_rms`.
    eta : float
        Relative tolerance, 0 to 1; see :func:`~opdgeom_utils.metrics.update_mask`.
    law : str
        ``normal``, where a displacement is the sum of many steps; ``laplace`` has more small and more large ones.
    shrinkage : float
        Share of itself that every weight loses besides, 0 to 1: :func:`~opdgeom_utils.metrics.decay_shrinkage`.

    Returns
    -------
    float
        0 (every change shows) to 1 (none does).

    Raises
    ------
    MetricInputError
        For anything but a finite floating tensor, an unknown law, or numbers out of range.

    Notes
    -----
    An entry at w shows no change as long as it stays among the numbers that bf16 rounds to what it rounds w to (with
    ``eta`` of 1/256 and more: to anything within the tolerance): for w in bf16, half a step of the grid each way. The
    answer is the mean over the weights of the law's probability of that interval. It is exact: entries of equal
    magnitude are counted, not sampled. Weights that are kept in bf16 themselves lose every step below half a grid step
    for good: see :func:`noise_sparsity_without_master`.

    Examples
    --------
    At 1, bf16 has steps of 1/128 above and 1/256 below; half of them are 1/256 and 1/512. A displacement of rms 1/256
    stays inside with the normal probability of -1/2 to 1.

    >>> round(noise_sparsity(torch.ones(3), 1 / 256), 4), round(float(ndtr(1) - ndtr(-0.5)), 4)
    (0.5328, 0.5328)
    """
    check_move(rms, law)
    check_fraction("eta", eta)
    check_fraction("shrinkage", shrinkage)
    unchanged = 0.0
    for sizes, counts in sizes_of(w_ref):
        low, high, _, _ = unchanged_from(codes_of(sizes), eta)
        unchanged += float(counts @ inside(low, high, sizes * (1 - shrinkage), float(rms), law))
    return min(1.0, unchanged / w_ref.numel())


@checked(tensors=("w_ref", "delta_w"))
def shuffled_sparsity(
    w_ref: Float[Tensor, "*shape"], delta_w: Float[Tensor, "*shape"], *, eta: float | int = 1e-3
) -> float:
    """Share of entries that bf16 is expected to show unchanged when an update's own entries fall on random places.

    Parameters
    ----------
    w_ref, delta_w : Float[Tensor, "*shape"]
        The weights before and their update, of one shape and any floating dtype.
    eta : float
        As for :func:`noise_sparsity`.

    Returns
    -------
    float
        0 to 1: the mean of ``update_sparsity`` over all shuffles of the update, exact, without making one.

    Raises
    ------
    MetricInputError
        For tensors that are not finite, floating and of one shape, or an ``eta`` outside 0 to 1.

    Notes
    -----
    :func:`noise_sparsity` with the update's own distribution in the place of a law. What differs between those two is
    the distribution of step sizes; what differs between this and the measured sparsity is place.

    Examples
    --------
    Both moves are too small to show at 8; only the larger one shows at 1.

    >>> shuffled_sparsity(torch.tensor([1.0, 8.0]), torch.tensor([0.01, 0.001]))
    0.75
    """
    check_fraction("eta", eta)
    moves = delta_w.detach().double().flatten().sort().values.numpy()
    values, counts = (part.numpy() for part in w_ref.detach().double().unique(return_counts=True))
    return float(counts @ hidden_share(values, moves, eta)) / w_ref.numel()


def hidden_share(values: np.ndarray, moves: np.ndarray, eta: float | int) -> np.ndarray:
    """Share of ascending moves that bf16 would not show, at each of some weights.

    >>> hidden_share(np.array([1.0, 8.0]), np.array([0.001, 0.01]), 1e-3).tolist()
    [0.5, 1.0]
    """
    low, high, low_in, high_in = unchanged_from(codes_of(np.abs(values)), eta)
    mirrored = values < 0
    first, last = np.where(mirrored, -high, low) - values, np.where(mirrored, -low, high) - values
    first_in, last_in = np.where(mirrored, high_in, low_in), np.where(mirrored, low_in, high_in)
    below = np.where(first_in, np.searchsorted(moves, first, "left"), np.searchsorted(moves, first, "right"))
    up_to = np.where(last_in, np.searchsorted(moves, last, "right"), np.searchsorted(moves, last, "left"))
    return (up_to - below) / len(moves)


@checked(tensors=("w_ref",))
def noise_sparsity_without_master(
    w_ref: Float[Tensor, "*shape"],
    learning_rates: Rates,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float | int = 1e-8,
) -> float:
    """Share expected to look unchanged under noise where the weights are trained in bf16, with no fp32 copy.

    Parameters
    ----------
    w_ref : Float[Tensor, "*shape"]
        The weights before; they are rounded to bf16 first.
    learning_rates : sequence of float
        The rate of each update.
    betas, eps
        As in :func:`~opdgeom_utils.metrics.noise_walk_rms`. Adam's own averages are kept in fp32.

    Returns
    -------
    float
        0 to 1; its error is below 0.01.

    Raises
    ------
    MetricInputError
        As :func:`~opdgeom_utils.metrics.noise_walk_rms`.

    Notes
    -----
    Each step is rounded to the grid of its weight before the next one comes, so steps below half a grid step are lost
    and a weight beyond some 256 rates never moves. Steps are correlated and the rounding has no closed form: 4,096
    entries are walked on each exponent's grid. What a walk across a power of two would change is left out.

    Examples
    --------
    A rate of 1e-6 can move nothing at 1, and everything at 1e-6; with an fp32 copy it walks 3e-5, no more visible at 1.

    >>> weights = torch.tensor([1.0, 1e-6]).repeat(50)
    >>> round(noise_sparsity_without_master(weights, [1e-6] * 1000), 2)
    0.5
    """
    sizes, counts = next(sizes_of(w_ref.detach().bfloat16()))
    codes = codes_of(sizes)
    exponents, members = np.unique(codes >> 7, return_inverse=True)
    grid = np.diff(MAGNITUDES)[np.minimum(exponents << 7, N_MAGNITUDES - 2)]
    places = np.zeros((len(exponents), WALKED))
    for step in steps_on_noise(learning_rates, betas=betas, eps=eps, n_entries=WALKED):
        places += np.rint(step / grid[:, None])
    stayed = (places == 0).mean(axis=1)
    return min(1.0, float(counts @ stayed[members]) / w_ref.numel())


def visible_by_size(
    w_ref: Float[Tensor, "*shape"], rms: float, *, eta: float | int, shrinkage: float
) -> Float[Tensor, "*shape"]:
    """Probability that each entry, rounded to bf16, shows a normal displacement.

    >>> visible_by_size(torch.tensor([0.0, 1.0]), 1e-6, eta=1e-3, shrinkage=0.0).tolist()
    [1.0, 0.0]
    """
    low, high, _, _ = unchanged_from(np.arange(N_MAGNITUDES), eta)
    shown = 1 - inside(low, high, MAGNITUDES * (1 - shrinkage), rms, "normal")
    codes = w_ref.detach().bfloat16().abs().view(torch.int16).long()
    return torch.from_numpy(shown).to(codes.device)[codes]


def sizes_of(w_ref: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ascending magnitudes with the number of entries of each: all at once in bf16, else in chunks."""
    flat = w_ref.detach().flatten().cpu()
    if flat.dtype == torch.bfloat16:
        counts = torch.bincount(flat.abs().view(torch.int16).long(), minlength=N_MAGNITUDES).numpy()
        used = np.flatnonzero(counts)
        yield MAGNITUDES[used], counts[used].astype(float)
        return
    bf16_realised(flat, name="w_ref")  # refuses what bf16 cannot hold
    for chunk in flat.split(CHUNK):
        yield chunk.double().abs().numpy(), np.ones(len(chunk))


def codes_of(sizes: np.ndarray) -> np.ndarray:
    """Index in MAGNITUDES of what bf16 rounds a magnitude to."""
    return torch.from_numpy(sizes).bfloat16().view(torch.int16).numpy().astype(np.int64)


def unchanged_from(
    codes: np.ndarray, eta: float | int, tolerance: float | int = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Interval of numbers that count as unchanged from each magnitude, and whether its two ends belong to it."""
    lowest = highest = codes
    if eta >= INERT_ETA:
        here = MAGNITUDES[codes]
        lowest = np.searchsorted(MAGNITUDES, here * (1 - eta), "left")
        reach = here / (1 - eta) if eta < 1 else np.full(len(codes), np.inf)
        highest = np.searchsorted(MAGNITUDES, reach, "right") - 1
    beyond = np.where(codes == 0, highest, 0)  # zero is the middle of its interval; others end just below it
    if tolerance > 0:
        here = MAGNITUDES[codes]
        lowest = np.searchsorted(MAGNITUDES, here - tolerance, "left")
        highest = np.searchsorted(MAGNITUDES, here + tolerance, "right") - 1
        beyond = np.searchsorted(MAGNITUDES, np.maximum(tolerance - here, 0), "right") - 1
    low = np.where(lowest > 0, MIDPOINTS[lowest - 1], -MIDPOINTS[beyond])
    # A move onto a midpoint goes to the neighbour whose code is even.
    return low, MIDPOINTS[highest], lowest % 2 == 0, highest % 2 == 0


def inside(low: np.ndarray, high: np.ndarray, centre: np.ndarray, rms: float, law: str) -> np.ndarray:
    """Probability that a displacement from ``centre`` ends between ``low`` and ``high``."""
    if rms == 0:
        return ((low <= centre) & (centre <= high)).astype(float)
    return _below((high - centre) / rms, law) - _below((low - centre) / rms, law)


def _below(x: np.ndarray, law: str) -> np.ndarray:
    if law == "normal":
        return ndtr(x)
    tail = np.exp(-math.sqrt(2) * np.abs(x)) / 2
    return np.where(x < 0, tail, 1 - tail)


def check_move(rms: float | int, law: str) -> None:
    """Refuse a displacement that is not finite and not negative, or an unknown law."""
    check_size("rms", rms)
    if law not in LAWS:
        raise MetricInputError(f"law is {law!r}, expected one of {LAWS}.")
