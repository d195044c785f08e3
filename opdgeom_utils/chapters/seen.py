"""What is seen in a figure, in the words that end its guide: first what the eye sees, then the numbers that matter.

A run is *above* another where the 95% interval of their differences, seed by seed, lies above zero, and *below* where
it lies below zero. Otherwise these seeds do not tell the two apart. What has one seed is compared with nothing. This
is one rule for every comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from opdgeom_utils.charts.palette import in_order
from opdgeom_utils.intervals import Interval, seed_interval
from opdgeom_utils.vocabulary import listed

#: Said where a sentence would be empty, so that no reader waits for it.
NOT_HERE = "Of this nothing can be said here: a run, a seed or a checkpoint that it needs is not in these tables."
ABOVE, APART, BELOW, LONE = "above", "not told apart from", "below", "not compared, for want of seeds, with"


def by_seed(table: pd.DataFrame, columns: str) -> pd.DataFrame:
    """Turn rows of ``seed, value`` into one line per seed and one column for each of ``columns``."""
    return table.pivot_table(index="seed", columns=columns, values="value", sort=False)


def excludes(interval: Interval, value: float) -> bool:
    """Whether an interval lies wholly on one side of a value.

    >>> excludes(Interval(2.0, 1.5, 2.5, 3), 1.0), excludes(Interval(1.2, 0.9, 1.5, 3), 1.0)
    (True, False)
    """
    return bool(interval.low > value or interval.high < value)


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
    """Say what a run is above, what it is below, and what it is not told apart from; what has one seed is left out.

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
    found = _standing(values, own, others)
    words = [how for how in (ABOVE, APART, BELOW) if how in found] or [how for how in (LONE,) if how in found]
    return "; ".join(f"{how} {listed(found[how])}" for how in words) or "compared with nothing"


def leads(values: pd.DataFrame, own: str, others: Iterable[str], what: str) -> str:
    """Say whether a run is above all others, named together by ``what``, and name those that it is not above.

    >>> values = pd.DataFrame({"OPD": [0.5, 0.6], "SFT": [0.4, 0.5], "RLVR": [0.5, 0.7]})
    >>> [leads(values, "OPD", names, "run") for names in (["SFT"], ["RLVR"], ["SFT", "RLVR"], ["base"])]
    ['above every run', 'above no run', 'above every run but RLVR', 'compared with no run']
    """
    found = _standing(values, own, others)
    rest = [name for how in (APART, BELOW) for name in found.get(how, [])]
    if not rest or ABOVE not in found:
        return f"above every {what}" if ABOVE in found else f"{'above' if rest else 'compared with'} no {what}"
    return f"above every {what} but {listed(rest)}"


def place(values: pd.DataFrame, own: str) -> str:
    """Say where a run lies among the others of a table.

    >>> values = pd.DataFrame({"OPD": [0.5, 0.6], "SFT": [0.4, 0.5], "RLVR": [0.5, 0.7]})
    >>> [place(values.filter(items=["OPD", *rest]), "OPD") for rest in (["SFT"], ["RLVR"], ["SFT", "RLVR"], [])]
    ['above the others', 'not told apart from the others', 'among the highest', 'compared with nothing']
    """
    found = _standing(values, own, [str(name) for name in values if name != own])
    above, apart, below = (how in found for how in (ABOVE, APART, BELOW))
    if above and below:
        return "in between"
    if apart:
        return "among the highest" if above else "among the lowest" if below else "not told apart from the others"
    return "above the others" if above else "below the others" if below else "compared with nothing"


def _standing(values: pd.DataFrame, own: str, others: Iterable[str]) -> dict[str, list[str]]:
    """Sort the others that the table has by where the run stands beside them."""
    found: dict[str, list[str]] = {}
    for other in others:
        if own in values and other in values:
            found.setdefault(stands(values.loc[:, own], values.loc[:, other]), []).append(other)
    return found


def each_side(said: Mapping[str, str]) -> str:
    """Say once what holds on both sides; the keys begin with the side.

    >>> each_side({"right": "above SFT", "left": "above SFT"}), each_side({"right space": "a", "left space": "b"})
    ('on both sides above SFT', 'on the right a; on the left b')
    """
    if len(said) > 1 and len(set(said.values())) == 1:
        return f"on both sides {next(iter(said.values()))}"
    return "; ".join(f"on the {side.split()[0]} {words.replace(';', ',')}" for side, words in said.items())


def trend(first: pd.Series, last: pd.Series) -> tuple[str, float]:
    """Say how a positive number goes from a first to a last value, and by what factor.

    Examples
    --------
    >>> trend(pd.Series([1.0, 2.0]), pd.Series([2.0, 4.0])), trend(pd.Series([1.0, 2.0]), pd.Series([2.0, 1.0]))
    (('rises', 2.0), ('shows no certain change', 1.0))
    """
    gap = seed_interval(np.log((last / first).to_numpy(float)).round(12))
    word = "rises" if gap.low > 0 else "falls" if gap.high < 0 else "shows no certain change"
    return (word if gap.n > 1 else "has one seed" if gap.n else "is undefined"), round(math.exp(gap.mean), 9)


def turns(ends: Mapping[str, tuple[pd.Series, pd.Series]], *, factors: bool = False) -> str:
    """Say which runs rise and which fall, from :func:`first_and_last`; what has one seed is left out.

    >>> one = pd.Series([1.0, 2.0])
    >>> turns({"SFT": (one, 2 * one), "OPD": (one, one / 2)}), turns({"OPD": (one, 2 * one)}, factors=True)
    ('rises for SFT; falls for OPD', 'rises for OPD (2.00 times)')
    """
    found: dict[str, list[str]] = {}
    for name, (first, last) in ends.items():
        word, factor = trend(first, last)
        found.setdefault(word, []).append(f"{name} ({factor:.2f} times)" if factors else name)
    known = {word: names for word, names in found.items() if word not in ("has one seed", "is undefined")} or found
    return "; ".join(f"{word} for {listed(names)}" for word, names in known.items())


def first_and_last(curves: pd.DataFrame) -> dict[str, tuple[pd.Series, pd.Series]]:
    """First and last value of each curve by seed, in the palette's order."""
    ends = {}
    for name in in_order(curves["series"]):
        values = curves.loc[curves["series"] == name].sort_values(by="step").groupby("seed")["value"]
        ends[name] = (values.first(), values.last())
    return ends
