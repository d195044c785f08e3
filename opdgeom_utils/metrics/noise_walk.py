r"""How far Adam carries a weight when its gradients are nothing but noise, and how an update compares with that.

Adam divides each gradient by its own running size, so noise of any strength moves an entry by about the learning rate,
in a random direction. After many updates an entry has walked about :math:`\sqrt{\sum_t \eta_t^2}`; gradients that agree
carry it up to :math:`\sum_t \eta_t`. Neither needs any training to be known.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.linalg.gram import frobenius_norm
from opdgeom_utils.metrics.inputs import check_fraction, check_size, checked
from opdgeom_utils.metrics.schedules import Rates, ballistic_rms, checked_rates, decay_shrinkage

WALKED = 2**18  # entries times updates of the average
FEWEST, MOST = 64, 2**14


@dataclass(frozen=True)
class Walk:
    """How far noise goes along a schedule, and what else the schedule does.

    ``rms``, ``ballistic``: displacement of an entry under noise, and under gradients that never change.
    ``shrinkage``: share of itself that a weight loses to weight decay.

    >>> walk = Walk.along([0.5], weight_decay=0.5)
    >>> round(walk.rms, 6), walk.ballistic, walk.shrinkage
    (0.5, 0.5, 0.25)
    """

    rms: float
    ballistic: float
    shrinkage: float

    @classmethod
    def along(
        cls,
        learning_rates: Rates,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | int = 1e-8,
        weight_decay: float | int = 0.0,
    ) -> "Walk":
        """Walk along these rates, with the options of :func:`noise_walk_rms`."""
        return cls(
            noise_walk_rms(learning_rates, betas=betas, eps=eps, weight_decay=weight_decay),
            ballistic_rms(learning_rates),
            decay_shrinkage(learning_rates, weight_decay=weight_decay),
        )


def noise_walk_rms(
    learning_rates: Rates,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float | int = 1e-8,
    weight_decay: float | int = 0.0,
    seen: float | int = 1.0,
    strengths: Rates | None = None,
) -> float:
    r"""Root-mean-square displacement of an entry that Adam trains on white noise.

    Parameters
    ----------
    learning_rates : sequence of float
        The rate of each update, in order; not negative.
    betas : tuple of float
        Adam's decay rates, each from 0 to below 1.
    eps : float
        Adam's epsilon, in units of the gradient's root mean square. Below 1e-3 it changes nothing.
    weight_decay : float
        Decoupled, as in AdamW: earlier steps fade by ``1 - rate * weight_decay`` at each later update. What it does to
        the weight itself is no noise: :func:`decay_shrinkage`.
    seen : float
        Share of the updates, 0 to 1, in which the entry has a gradient at all. A row of an embedding whose token never
        comes has 0, and does not move.
    strengths : sequence of float, optional
        Size of the gradient at each update, in any unit: the gradient norms that a trainer logs, after clipping. Noise
        that grows walks further, as Adam divides by a size that lags behind. None: the same at all updates.

    Returns
    -------
    float
        In units of the learning rate. It does not depend on the size of the gradients.

    Raises
    ------
    MetricInputError
        For rates or strengths that are negative or not finite, not as many strengths as rates, or options out of range.

    Notes
    -----
    Write :math:`\beta_1, \beta_2` for the decay rates and :math:`g_i` for the gradient of update i. Adam's step is

    .. math:: u_t = \sum_{i \le t} a_{ti}\, g_i / (\sqrt{\hat v_t} + \epsilon), \qquad
              a_{ti} = (1 - \beta_1) \beta_1^{t-i} / (1 - \beta_1^t),

    where :math:`\hat v_t` depends on the :math:`g_i^2` alone. The displacement is therefore
    :math:`D = -\sum_i g_i C_i` with :math:`C_i = \sum_{t \ge i} \eta_t a_{ti} / (\sqrt{\hat v_t} + \epsilon)`. Given
    the sizes :math:`|g_i|`, the signs of white noise are independent and even, so all cross terms vanish and

    .. math:: \mathrm{E}\, D^2 = \mathrm{E} \sum_i g_i^2\, C_i^2 .

    This is exact. Consecutive steps share most of their :math:`g_i`, so they are correlated by :math:`\beta_1`; the sum
    over t inside :math:`C_i` carries that. The outer mean, over sizes of normal noise, is taken over 2**18 sizes from
    one fixed generator; there are no signs left to average over, so its error is below 0.5%, from 50 updates on below
    0.2%.

    For long schedules the answer nears :math:`\sqrt{\sum_t \eta_t^2}`; at 50 updates and ``betas`` of (0.9, 0.999) it
    is 10% above, because the first steps of Adam are all of full size and point alike. The gradients' law matters
    little: Laplace noise walks 1% less far, noise whose strength changes from update to update by a factor of e goes 3
    to 7% less far on average (14% over five updates). Clipping the gradient's norm multiplies all entries by one
    number: where that number is constant Adam divides it out again, and where bursts make it vary it evens them out, to
    within 0.5%. L2 regularisation inside Adam (not decoupled) adds a part to the gradient whose share depends on the
    gradient's strength; no schedule can tell how much.

    Examples
    --------
    The first step of Adam has the size of the learning rate, whatever the gradient.
    >>> round(noise_walk_rms([0.5]), 6)
    0.5
    >>> round(noise_walk_rms([1e-6] * 1000) / 1e-6), round(1000**0.5)
    (32, 32)

    Noise that doubles over the run goes further than noise that stays.
    >>> doubling = [1 + t / 400 for t in range(400)]
    >>> round(noise_walk_rms([1e-4] * 400, strengths=doubling) / noise_walk_rms([1e-4] * 400), 2)
    1.15
    """
    rates = checked_rates(learning_rates)
    check_adam(betas, eps, seen)
    check_fraction("weight_decay", weight_decay)
    sizes = np.ones(len(rates)) if strengths is None else checked_rates(strengths, what="strengths")
    if len(sizes) != len(rates):
        raise MetricInputError(f"strengths has {len(sizes)} numbers, expected one for each of {len(rates)} updates.")
    if seen == 0 or not rates.any() or not sizes.any():
        return 0.0
    unit, sizes = float(rates.max()), sizes / float(np.sqrt(np.mean(sizes**2)))
    squares, steps = _noise_steps(rates / unit, betas, float(eps), float(seen), sizes)
    # What is left, at the end, of a step taken at each update.
    left = np.append(np.cumprod((1 - rates * weight_decay)[::-1])[::-1][1:], 1.0)
    carried, total = np.zeros(steps.shape[1]), np.zeros(steps.shape[1])
    for square, step, share in zip(squares[::-1], steps[::-1], left[::-1], strict=True):
        carried = betas[0] * carried + share * step
        total += square * carried**2
    return unit * math.sqrt(float(total.mean()))


@checked(tensors=("delta_w",))
def walk_ratio(
    delta_w: Float[Tensor, "*shape"],
    learning_rates: Rates,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float | int = 1e-8,
    weight_decay: float | int = 0.0,
) -> float:
    r"""How many times as far as noise an update went.

    Parameters
    ----------
    delta_w : Float[Tensor, "*shape"]
        The update, of fp32 weights where there are any: what bf16 rounds away is not in it.
    learning_rates, betas, eps, weight_decay
        As in :func:`noise_walk_rms`.

    Returns
    -------
    float
        Root mean square of the update's entries over :func:`noise_walk_rms`: 1 for a walk, nan if all rates are 0.

    Raises
    ------
    MetricInputError
        For anything but a finite floating tensor, or as :func:`noise_walk_rms`.

    Notes
    -----
    Weight decay pulls on the weights themselves; where ``decay_shrinkage`` of them is not small beside the update, a
    ratio above 1 need not be signal.

    Examples
    --------
    One update moves noise by its rate, here 1/8. The entries' root mean square is 1/4.

    >>> import torch
    >>> round(walk_ratio(torch.tensor([[0.25, -0.25], [0.25, 0.25]]), [0.125]), 3)
    2.0
    """
    walk = noise_walk_rms(learning_rates, betas=betas, eps=eps, weight_decay=weight_decay)
    return _rms(delta_w) / walk if walk > 0 else math.nan


@checked(tensors=("delta_w",))
def coherence(
    delta_w: Float[Tensor, "*shape"],
    learning_rates: Rates,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float | int = 1e-8,
    weight_decay: float | int = 0.0,
) -> float:
    r"""Share of each update's squared step that would have to be signal, the same at all updates, to go as far.

    Parameters
    ----------
    delta_w : Float[Tensor, "*shape"]
        The update, of fp32 weights where there are any.
    learning_rates, betas, eps, weight_decay
        As in :func:`noise_walk_rms`.

    Returns
    -------
    float
        0 for a walk, 1 for gradients that never change; slightly below 0 for less than a walk; nan where the two ends
        are one, as after a single update.

    Raises
    ------
    MetricInputError
        For anything but a finite floating tensor, or as :func:`noise_walk_rms`.

    Notes
    -----
    Let an entry's gradient be a constant part and white noise, and let c be the constant part's share of its mean
    square. Adam divides by the root of that mean square, so the constant part moves the entry by
    :math:`\sqrt{c}\,B`, with B the sum of the rates (:func:`ballistic_rms`), and the noise by
    :math:`\sqrt{1-c}\,s`, with s the walk. Signs of the noise are independent of the constant part, so squares add:

    .. math:: \mathrm{rms}^2 = c\,B^2 + (1-c)\,s^2 \quad\Rightarrow\quad c = (\mathrm{rms}^2 - s^2)/(B^2 - s^2).

    Over a matrix, c is the mean over its entries. The two limits are exact, the way between them is the model's.

    Examples
    --------
    >>> import torch
    >>> rates = [1e-3] * 100
    >>> round(coherence(torch.full((2, 2), 0.1), rates), 6), round(coherence(torch.zeros(2, 2), rates), 2)
    (1.0, -0.01)
    """
    walk = noise_walk_rms(learning_rates, betas=betas, eps=eps, weight_decay=weight_decay)
    return coherence_of(_rms(delta_w), walk, ballistic_rms(learning_rates))


def coherence_of(rms: float, walk: float, ballistic: float) -> float:
    """Coherence from the three displacements; nan unless the ballistic one is the larger.

    >>> coherence_of(1.0, 1.0, 2.0), coherence_of(2.0, 1.0, 2.0), coherence_of(1.0, 1.0, 1.0)
    (0.0, 1.0, nan)
    """
    room = ballistic**2 - walk**2
    return (rms**2 - walk**2) / room if room > 1e-5 * ballistic**2 else math.nan


def steps_on_noise(
    learning_rates: Rates, *, betas: tuple[float, float], eps: float | int, n_entries: int
) -> Iterator[np.ndarray]:
    """Yield what Adam adds at each update to entries whose gradients are white noise, from one fixed generator."""
    generator = np.random.default_rng(0)
    first, second = np.zeros(n_entries), np.zeros(n_entries)
    for t, rate in enumerate(checked_rates(learning_rates), start=1):
        gradient = generator.standard_normal(n_entries)
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        yield rate * first / (1 - betas[0] ** t) / (np.sqrt(second / (1 - betas[1] ** t)) + eps)


def check_adam(betas: Sequence[float], eps: float | int, seen: float | int) -> None:
    """Refuse options that no Adam has."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise MetricInputError(f"betas is {betas!r}, expected two numbers from 0 to below 1.")
    check_size("eps", eps)
    check_fraction("seen", seen)


def _noise_steps(
    rates: np.ndarray, betas: tuple[float, float], eps: float, seen: float, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Squared gradients, and the factor of each update's own gradient in its step: (updates, entries) both."""
    n_entries = min(MOST, max(FEWEST, math.ceil(WALKED / len(rates))))
    generator = np.random.default_rng(0)
    squares = (sizes[:, None] * generator.standard_normal((len(rates), n_entries))) ** 2
    if seen < 1:
        squares *= generator.random(squares.shape) < seen
    second, steps = np.zeros(n_entries), np.empty_like(squares)
    for t, rate in enumerate(rates, start=1):
        second = betas[1] * second + (1 - betas[1]) * squares[t - 1]
        size = np.sqrt(second / (1 - betas[1] ** t)) + eps
        steps[t - 1] = rate * (1 - betas[0]) / (1 - betas[0] ** t) / np.where(size > 0, size, np.inf)
    return squares, steps


def _rms(delta_w: Tensor) -> float:
    return frobenius_norm(delta_w) / math.sqrt(delta_w.numel())
