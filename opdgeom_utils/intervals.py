"""One number per seed, folded: the mean and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from opdgeom_utils.errors import MetricInputError


@dataclass(frozen=True)
class Interval:
    """Mean over seeds and its t-interval; the ends are ``nan`` below two finite values, the mean without any."""

    mean: float
    low: float
    high: float
    n: int


def seed_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean of one number per seed and its two-sided Student t-interval; ``nan`` values are left out.

    Parameters
    ----------
    values
        One number per seed.
    confidence
        Level of the interval, between 0 and 1.

    Examples
    --------
    Two seeds, 0 and 2: the standard error is 1, and the 97.5% point of t with one degree of freedom is 12.706.

    >>> interval = seed_interval([0.0, 2.0])
    >>> interval.mean, round(interval.low, 3), round(interval.high, 3), interval.n
    (1.0, -11.706, 13.706, 2)
    """
    if not 0 < confidence < 1:
        raise MetricInputError(f"confidence is {confidence}; expected a number between 0 and 1")
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    n = len(known)
    if n < 2:
        return Interval(float(known.mean()) if n else math.nan, math.nan, math.nan, n)
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * float(known.std(ddof=1)) / math.sqrt(n)
    mean = float(known.mean())
    return Interval(mean, mean - reach, mean + reach, n)
