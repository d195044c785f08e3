"""Numbers in words, and one number per seed folded to a mean and its interval."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from opdgeom_utils.errors import MetricInputError


@dataclass(frozen=True)
class Interval:
    """Mean over seeds and its t-interval; the ends are ``nan`` below two finite values, the mean without any."""

    mean: float
    low: float
    high: float
    n: int

    def text(self, shown: str = "", unit: str = "", *, over: str = "") -> str:
        """Write the mean with its interval, as :func:`number` writes numbers.

        ``shown``, ``unit``: as for :func:`number`; the unit follows the mean alone.
        ``over``: what ``n`` counts (``"seeds"``), to be said beside the interval; nothing where a heading says it.

        >>> Interval(0.5, 0.4, 0.6, 5).text(".1%"), Interval(0.5, 0.4, 0.6, 5).text(unit="degrees", over="seeds")
        ('50.0% (40.0% to 60.0%)', '0.5 degrees (95% interval 0.4 to 0.6, 5 seeds)')
        >>> Interval(6.21, math.nan, math.nan, 1).text(".1f"), seed_interval([]).text()
        ('6.2 (one value)', 'undefined')
        """
        if not self.n or math.isnan(self.mean):
            return number(math.nan)
        mean = number(self.mean, shown, unit)
        if math.isnan(self.low) or self.n < 2:
            return f"{mean} (one {over.removesuffix('s') or 'value'})"
        span = " to ".join(number(end, shown, unit).removesuffix(f" {unit}") for end in (self.low, self.high))
        return f"{mean} (95% interval {span}, {self.n} {over})" if over else f"{mean} ({span})"


def seed_interval(values: Sequence[float] | np.ndarray | pd.Series, confidence: float = 0.95) -> Interval:
    """Mean of one number per seed and its two-sided Student t-interval; ``nan`` values are left out.

    ``confidence``: level of the interval, between 0 and 1.

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


def over_pairs(means: np.ndarray | pd.Series) -> np.ndarray:
    """Turn each seed's mean over its pairs with all other seeds into one value a seed whose interval is right.

    Pairs share seeds, so these means rise and fall together and their own spread says too little. Returned are the
    jackknife's values: of ``n`` seeds, ``n`` times the mean over all pairs minus ``n - 1`` times that without the seed.
    Their mean is that of the pairs. ``nan`` stays and is no seed; fewer than three seeds make one pair at most, and
    come back as they are.

    Pairs of three seeds at 0.2 (first and second), 0.4 and 0.6: without the first 0.6 is left, and 3 * 0.4 - 2 * 0.6 is
    nothing.

    >>> (over_pairs(np.array([0.3, 0.4, 0.5])).round(3) + 0).tolist()
    [0.0, 0.4, 0.8]
    """
    of_seeds = np.asarray(means, dtype=float)
    n = int(np.isfinite(of_seeds).sum())
    return of_seeds if n < 3 else (2 * (n - 1) * of_seeds - n * np.nanmean(of_seeds)) / (n - 2)


def disjoint(one: Interval, other: Interval) -> bool:
    """Whether two intervals share no number; never where one of them is unknown.

    >>> disjoint(Interval(1.0, 0.9, 1.1, 2), Interval(2.0, 1.9, 2.1, 2)), disjoint(seed_interval([]), seed_interval([]))
    (True, False)
    """
    return one.low > other.high or other.low > one.high


def difference(one: np.ndarray, other: np.ndarray, *, among: int = 1) -> tuple[float, float]:
    """95% interval of the difference of two means of unlike variance (Welch); ``nan`` below two values of either.

    ``among``: how many such differences are looked at together; the interval of each allows for it (Bonferroni).

    Means 1 and 5, variances 2, two values each: the standard error is the root of 2, with two degrees of freedom.

    >>> [round(end, 3) for end in difference(np.array([0.0, 2.0]), np.array([4.0, 6.0]))]
    [-10.085, 2.085]
    """
    if min(len(one), len(other)) < 2:
        return math.nan, math.nan
    low, high = stats.ttest_ind(one, other, equal_var=False).confidence_interval(1 - 0.05 / among)
    return float(low), float(high)


def further_seed(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Range in which one more seed is expected: the mean ``+- t * s * sqrt(1 + 1/n)``; ``nan`` below two values.

    Seeds 0 and 2: mean 1, deviation the root of 2, and the t-value of one degree of freedom is 12.706.

    >>> [round(end, 3) for end in further_seed([0.0, 2.0])]
    [-21.008, 23.008]
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 2:
        return math.nan, math.nan
    reach = float(stats.t.ppf((1 + confidence) / 2, len(known) - 1) * known.std(ddof=1) * (1 + 1 / len(known)) ** 0.5)
    return float(known.mean()) - reach, float(known.mean()) + reach


def number(value: float, shown: str = "", unit: str = "") -> str:
    """Write a number so that what is not zero never prints as zero, and what is not all never as 100%.

    ``shown``: Python's format; by default three significant digits, for points two decimals.
    ``unit``: written behind the number. ``points`` takes a share, 0 to 1, and writes percentage points.

    >>> number(0.1234), number(0.1234, ".1%"), number(0.1234, unit="points"), number(1.5, unit="degrees")
    ('0.123', '12.3%', '12.34 points', '1.5 degrees')
    >>> number(0.0000123, ".3f"), number(0.0000123, ".1%"), number(0.99996, ".1%"), number(math.nan)
    ('1.2e-05', '0.0012%', '99.996%', 'undefined')
    """
    if math.isnan(value):
        return "undefined"
    scaled = 100 * value if unit == "points" else value
    shown = shown or (".2f" if unit == "points" else ".3g")
    text = f"{scaled:{shown}}"
    percent = shown.endswith("%")
    if scaled and not re.search("[1-9]", text):
        text = f"{100 * value:.2g}%" if percent else f"{scaled:.2g}"
    elif percent and value < 1 and float(text[:-1]) == 100:
        text = f"{100 * value:.{math.ceil(-math.log10(100 * (1 - value)))}f}%"
    return f"{text} {unit}" if unit else text
