"""The rates of a run, update by update, and what follows from them alone."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.metrics.inputs import check_count, check_fraction

Rates = Sequence[float | int] | np.ndarray | Tensor


def learning_rate_schedule(
    learning_rate: float | int,
    updates: int,
    *,
    schedule: str = "constant",
    warmup: float | int = 0.0,
    final_learning_rate: float | int = 0.0,
) -> list[float]:
    """Rates of a whole run from the words of a recipe.

    Parameters
    ----------
    learning_rate : float
        The highest rate.
    updates : int
        How many updates the run has, at least 1.
    schedule : str
        ``constant``, ``linear`` or ``cosine``: how the rate goes on after the warm-up.
    warmup : float
        Share of the updates, 0 to 1, during which the rate rises from 0 in equal steps.
    final_learning_rate : float
        Where a linear or cosine schedule ends.

    Returns
    -------
    list of float
        One rate for each update.

    Raises
    ------
    MetricInputError
        For an unknown schedule or numbers out of range.

    Examples
    --------
    >>> learning_rate_schedule(1.0, 4, schedule="linear", warmup=0.5)
    [0.5, 1.0, 1.0, 0.5]
    """
    if schedule not in ("constant", "linear", "cosine"):
        raise MetricInputError(f"schedule is {schedule!r}, expected constant, linear or cosine.")
    check_count("updates", updates)
    check_fraction("warmup", warmup)
    high, low = (float(rate) for rate in checked_rates([learning_rate, final_learning_rate]))
    rising = round(warmup * updates)
    progress = np.arange(updates - rising) / max(1, updates - rising)
    shapes = {"constant": np.ones_like(progress), "linear": 1 - progress, "cosine": (1 + np.cos(np.pi * progress)) / 2}
    end = high if schedule == "constant" else low
    rates = np.concatenate([high * np.arange(1, rising + 1) / max(1, rising), end + (high - end) * shapes[schedule]])
    return rates.tolist()


def ballistic_rms(learning_rates: Rates) -> float:
    """Displacement of an entry whose gradient is the same at every update.

    Parameters
    ----------
    learning_rates : sequence of float
        The rate of each update; not negative.

    Returns
    -------
    float
        Their sum: Adam's step is then the learning rate, always the same way, from the first update on.

    Raises
    ------
    MetricInputError
        For rates that are not finite and not negative.

    Examples
    --------
    >>> ballistic_rms([0.5, 0.25])
    0.75
    """
    return float(checked_rates(learning_rates).sum())


def decay_shrinkage(learning_rates: Rates, *, weight_decay: float | int) -> float:
    """Share of itself that a weight loses to decoupled weight decay.

    Parameters
    ----------
    learning_rates : sequence of float
        The rate of each update.
    weight_decay : float
        AdamW's coefficient, 0 to 1.

    Returns
    -------
    float
        0 to 1. This part of an update is along the weights and no noise; bf16 begins to show it near 0.002.

    Raises
    ------
    MetricInputError
        For rates that are not finite and not negative, or a ``weight_decay`` out of range.

    Examples
    --------
    >>> decay_shrinkage([0.5, 0.5], weight_decay=0.5)
    0.4375
    """
    check_fraction("weight_decay", weight_decay)
    return 1.0 - float(np.prod(1.0 - checked_rates(learning_rates) * weight_decay))


def checked_rates(learning_rates: Rates, *, what: str = "learning_rates") -> np.ndarray:
    """Return the rates (or ``what`` else comes one for each update) in float64, or refuse them."""
    rates = np.asarray(learning_rates, dtype=np.float64)
    if rates.ndim != 1 or not rates.size or not np.isfinite(rates).all() or (rates < 0).any():
        raise MetricInputError(
            f"{what} has shape {rates.shape}, expected "
            f"{'the rate of each update' if what == 'learning_rates' else 'one for each update'}: one row of finite "
            "numbers, none below 0; for a constant one pass [rate] * updates."
        )
    return rates
