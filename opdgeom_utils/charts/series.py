"""From one row per run to the points, means and intervals that a figure draws, and to the words that describe it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from opdgeom_utils.charts.theme import NULLS, PAPER, in_order, label, number_format
from opdgeom_utils.claims import seed_interval
from opdgeom_utils.errors import MetricInputError

COLUMNS = ["recipe", "series", "role", "seed", "value", "low", "high", "n", "text"]


def spread(
    ends: pd.DataFrame,
    metric: str,
    *,
    nulls: Sequence[str] = ("shuffled",),
    reported: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Points of every seed, mean and 95% interval of every recipe, its nulls, and the paper's number.

    Parameters
    ----------
    ends
        One row per run, for instance from :func:`opdgeom_utils.matched.final`.
    metric
        Column to draw.
    nulls
        Suffixes of null columns to draw beside it; those that the table lacks are left out.
    reported
        From :func:`opdgeom_utils.claims.load_reported`; None draws no paper.

    Returns
    -------
    DataFrame
        ``recipe`` (label), ``series`` (the recipe's label, a null's, or ``paper``), ``role`` (seed, mean, paper),
        ``seed, value, low, high, n, text``.

    Raises
    ------
    MetricInputError
        If the table has no such column.
    """
    if metric not in ends:
        raise MetricInputError(f"the table has no column {metric}; it has {list(ends.columns)}")
    rows: list[dict[str, object]] = []
    for recipe in in_order(label(r) for r in ends.loc[:, "recipe"].unique()):
        own = ends.loc[ends.loc[:, "recipe"].map(label) == recipe]
        columns = {recipe: metric} | {NULLS.get(n, f"{n} null"): f"{metric}_{n}" for n in nulls}
        for series, column in columns.items():
            if column in own:
                rows += _rows(own, recipe, series, column, metric)
    table = pd.DataFrame(rows, columns=COLUMNS)
    if reported is not None:
        table = pd.concat([table, _paper(reported, metric, set(table.loc[:, "recipe"]))], ignore_index=True)
    return table


def _rows(own: pd.DataFrame, recipe: str, series: str, column: str, metric: str) -> list[dict[str, object]]:
    known = own.loc[own.loc[:, column].notna()]
    if known.empty:
        return []
    shown = number_format(metric)
    keep = {"recipe": recipe, "series": series}
    seeds = [
        keep | {"role": "seed", "seed": int(s), "value": float(v), "text": f"{v:{shown}}, seed {s}"}
        for s, v in zip(known.loc[:, "seed"], known.loc[:, column], strict=True)
    ]
    interval = seed_interval(known.loc[:, column].to_numpy(float))
    low, high = (interval.mean if math.isnan(x) else x for x in (interval.low, interval.high))
    said = say(interval.mean, low, high, interval.n, metric)
    mean = {"role": "mean", "value": interval.mean, "low": low, "high": high, "n": interval.n, "text": said}
    return [*seeds, keep | mean]


def _paper(reported: pd.DataFrame, metric: str, recipes: set[str]) -> pd.DataFrame:
    named = reported.loc[reported.loc[:, "metric"].fillna("").str.split(";").map(lambda names: metric in names)]
    rows = [
        {"recipe": label(r.recipe), "series": PAPER, "role": "paper", "value": r.value, "text": f"{r.reported} ({r.where})"}
        for r in named.itertuples()
        if label(str(r.recipe)) in recipes and pd.notna(r.value)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def say(mean: float, low: float, high: float, n: int, metric: str) -> str:
    """Mean and interval in words.

    >>> say(0.5, 0.4, 0.6, 5, "update_sparsity")
    '50.0% (95% interval 40.0% to 60.0%, 5 seeds)'
    >>> say(1.25, 1.25, 1.25, 1, "left_angle_mean_deg")
    '1.25 degrees (one seed)'
    """
    shown, unit = number_format(metric), " degrees" if metric.endswith("_deg") else ""
    if n < 2:
        return f"{mean:{shown}}{unit} (one seed)"
    return f"{mean:{shown}}{unit} (95% interval {low:{shown}} to {high:{shown}}, {n} seeds)"


def describe(table: pd.DataFrame) -> str:
    """One clause per recipe: its mean and interval, its nulls, the paper's number.

    Parameters
    ----------
    table
        From :func:`spread`.
    """
    clauses = []
    for recipe in in_order(table.loc[:, "recipe"]):
        own = table.loc[(table.loc[:, "recipe"] == recipe) & (table.loc[:, "role"] != "seed")]
        parts = [
            (f"{series} " if series != recipe else "") + str(text).split(" (95%", 1)[0]
            if series != recipe
            else str(text)
            for series, text in zip(own.loc[:, "series"], own.loc[:, "text"], strict=True)
        ]
        clauses.append(f"{recipe} {', '.join(parts)}")
    return "; ".join(clauses) + "."


def listed(words: Iterable[str]) -> str:
    """Join words as a sentence does.

    >>> listed(["SFT", "OPD", "RLVR"])
    'SFT, OPD and RLVR'
    """
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "nothing"
