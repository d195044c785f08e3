"""What is seen in a figure, in the words that end its guide; one rule for every comparison.

A run is *above* another where the 95% interval of their differences, seed by seed, lies above zero, and *below* where
it lies below zero. Otherwise these seeds do not tell the two apart. What has one seed is compared with nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from opdgeom_utils.charts.palette import in_order
from opdgeom_utils.intervals import number, seed_interval
from opdgeom_utils.vocabulary import listed

ABOVE, APART, BELOW, LONE = "above", "not told apart from", "below", "not compared, for want of seeds, with"


def by_seed(table: pd.DataFrame, columns: str) -> pd.DataFrame:
    """Turn rows of ``seed, value`` into one line per seed and one column for each of ``columns``."""
    return table.pivot_table(index="seed", columns=columns, values="value", sort=False)


def stands(own: pd.Series, other: pd.Series) -> str:
    """Say where one run stands beside another.

    Parameters
    ----------
    own, other
        One number per seed, with the seeds as index.

    Examples
    --------
    >>> one = pd.Series([0.5, 0.6, 0.7])
    >>> [stands(one, other) for other in (one - 0.1, one + 0.1, one * [0.9, 1.1, 1.0], one[:1])]
    ['above', 'below', 'not told apart from', 'not compared, for want of seeds, with']
    """
    gap = seed_interval((own - other).round(12).to_numpy(float))
    if gap.n < 2:
        return LONE
    return ABOVE if gap.low > 0 else BELOW if gap.high < 0 else APART


def beside(values: pd.DataFrame, own: str, others: Iterable[str]) -> str:
    """Say what a run is above, what it is below, and what it is not told apart from.

    Parameters
    ----------
    values
        From :func:`by_seed`.
    own, others
        Columns; those that the table lacks are left out.

    Examples
    --------
    >>> beside(pd.DataFrame({"OPD": [0.5, 0.6], "SFT": [0.4, 0.5], "RLVR": [0.5, 0.7]}), "OPD", ["SFT", "RLVR"])
    'above SFT; not told apart from RLVR'
    """
    words: dict[str, list[str]] = {ABOVE: [], APART: [], BELOW: [], LONE: []}
    for other in others:
        if own in values and other in values:
            words[stands(values.loc[:, own], values.loc[:, other])].append(plain(other))
    return "; ".join(f"{how} {listed(names)}" for how, names in words.items() if names) or "compared with nothing"


def trend(first: pd.Series, last: pd.Series) -> str:
    """Say how a positive number goes from a first to a last value, and by what factor.

    Examples
    --------
    >>> trend(pd.Series([1.0, 2.0]), pd.Series([2.0, 4.0])), trend(pd.Series([1.0, 2.0]), pd.Series([2.0, 1.0]))
    ('rises (2.00 times)', 'does not change for certain (1.00 times)')
    """
    gap = seed_interval(np.log((last / first).to_numpy(float)).round(12))
    if math.isnan(gap.mean):
        return "is undefined"
    factor = f"({math.exp(gap.mean):.2f} times)"
    if gap.n < 2:
        return f"has one seed {factor}"
    return f"{'rises' if gap.low > 0 else 'falls' if gap.high < 0 else 'does not change for certain'} {factor}"


def first_and_last(curves: pd.DataFrame) -> dict[str, tuple[pd.Series, pd.Series]]:
    """First and last value of each curve by seed, in the palette's order."""
    ends = {}
    for name in in_order(curves["series"]):
        values = curves.loc[curves["series"] == name].sort_values(by="step").groupby("seed")["value"]
        ends[name] = (values.first(), values.last())
    return ends


def averages(values: pd.DataFrame, names: Iterable[str], shown: str = ".2f") -> str:
    """List the means over seeds of some columns, those that are there.

    >>> averages(pd.DataFrame({"SFT": [0.25, 0.75], "OPD": [0.5, 0.5]}), ["OPD", "RLVR", "SFT"])
    'OPD 0.50, SFT 0.50'
    """
    return (
        ", ".join(f"{plain(n)} {number(float(values.loc[:, n].mean()), shown)}" for n in names if n in values)
        or "nothing"
    )


def plain(name: str) -> str:
    """Write a name with a comma so that it can stand in a list.

    >>> plain("real inputs, random signals"), plain("OPD")
    ('real inputs (random signals)', 'OPD')
    """
    head, _, rest = name.partition(", ")
    return f"{head} ({rest})" if rest else head
