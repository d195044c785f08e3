"""From one row per run to the points, means and intervals that a figure draws, and to the words that describe it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from opdgeom_utils.charts.theme import LOGARITHMIC, PAPER, SERIES, in_order, label, number_format
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.intervals import seed_interval

COLUMNS = ["recipe", "series", "role", "seed", "value", "low", "high", "n", "text"]
FRACTIONS_OF_A_RUN = 50


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
        One row per run, for instance from :func:`opdgeom_utils.claims.matching.final`.
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
        If the table lacks a column, or holds no number of the metric.

    Examples
    --------
    >>> ends = pd.DataFrame({"recipe": "opd", "seed": [0, 1], "x": [1.0, 3.0], "x_shuffled": [5.0, 5.0]})
    >>> spread(ends, "x").query("role == 'mean'")[["series", "value"]].values.tolist()
    [['OPD', 2.0], ['shuffled null', 5.0]]
    """
    need(ends, ["recipe", "seed", metric])
    rows: list[dict[str, object]] = []
    for recipe, own in by_recipe(ends):
        columns = {recipe: metric} | {SERIES.get(n, f"{n} null"): f"{metric}_{n}" for n in nulls}
        for series, column in columns.items():
            if column in own:
                rows += _rows(own, recipe, series, column, metric)
    if not rows:
        raise MetricInputError(f"no run of the table has a number in column {metric}; a figure needs at least one")
    paper = _paper(reported, metric, {str(row["recipe"]) for row in rows}) if reported is not None else []
    return pd.DataFrame([*rows, *paper], columns=COLUMNS)


def by_recipe(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows of each recipe under its label, in the palette's order."""
    labels = table.loc[:, "recipe"].map(label)
    return [(name, table.loc[labels == name]) for name in in_order(labels)]


def need(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the table, or refuse it because it lacks a column.

    Raises
    ------
    MetricInputError
        Naming the missing columns and those that are there.
    """
    missing = [c for c in columns if c not in table]
    if missing:
        raise MetricInputError(f"the table has no column {missing}; it has {list(table.columns)}")
    return table


def _rows(own: pd.DataFrame, recipe: str, series: str, column: str, metric: str) -> list[dict[str, object]]:
    known = own.loc[own.loc[:, column].notna()]
    if known.empty:
        return []
    shown = number_format(metric)
    keep: dict[str, object] = {"recipe": recipe, "series": series}
    seeds: list[dict[str, object]] = [
        keep | {"role": "seed", "seed": int(s), "value": float(v), "text": f"{v:{shown}}, seed {s}"}
        for s, v in zip(known.loc[:, "seed"], known.loc[:, column], strict=True)
    ]
    return [*seeds, keep | {"role": "mean"} | folded(known.loc[:, column], metric)]


def folded(values: pd.Series, metric: str) -> dict[str, object]:
    """Mean and 95% interval of one number per seed: ``value, low, high, n, text``. One seed has no width.

    >>> folded(pd.Series([1.0]), "x")
    {'value': 1.0, 'low': 1.0, 'high': 1.0, 'n': 1, 'text': '1 (one seed)'}
    """
    interval = seed_interval(values.to_numpy(float))
    low, high = (interval.mean if math.isnan(x) else x for x in (interval.low, interval.high))
    said = say(interval.mean, low, high, interval.n, metric)
    return {"value": interval.mean, "low": low, "high": high, "n": interval.n, "text": said}


def _paper(reported: pd.DataFrame, metric: str, recipes: set[str]) -> list[dict[str, object]]:
    named = reported.loc[reported.loc[:, "metric"].fillna("").str.split(";").map(lambda names: metric in names)]
    columns = ["recipe", "value", "reported", "unit", "where"]
    units = {"percent": "%", "percent (chance 30)": "%", "degree": " degrees"}
    return [
        {
            "recipe": label(recipe), "series": PAPER, "role": "paper", "value": value,
            "text": f"{printed}{units.get(unit, '')} ({where})",
        }
        for recipe, value, printed, unit, where in named.filter(items=columns).itertuples(index=False)
        if label(recipe) in recipes and pd.notna(value)
    ]  # fmt: skip


def along(
    rows: pd.DataFrame, x: str, metric: str, *, at: Sequence[str], nulls: Sequence[str] = ("shuffled",)
) -> pd.DataFrame:
    """Fold runs into curves: at each place the points of the seeds, their mean and the 95% interval.

    Parameters
    ----------
    rows
        One row for each (recipe, seed, place).
    x
        Column of the horizontal axis; its mean over seeds is where the mean is drawn (geometric for norms).
    metric
        Column of the vertical axis.
    at
        Columns that name a place, such as ``["step"]``; seeds are folded within each.
    nulls
        Suffixes of null columns.

    Returns
    -------
    DataFrame
        As :func:`spread`, with ``x`` and the columns of ``at``.
    """
    need(rows, ["recipe", "seed", x, metric, *at])
    logarithmic = x.endswith("_norm")
    out = []
    for recipe, own in by_recipe(rows):
        columns = {recipe: metric} | {SERIES.get(n, f"{n} null"): f"{metric}_{n}" for n in nulls}
        for series, column in columns.items():
            if column not in own:
                continue
            known = own.loc[own.loc[:, column].notna()]
            known = known.loc[known.loc[:, x] > 0] if logarithmic else known
            for place, here in known.groupby(list(at), sort=True):
                keys = dict(zip(at, place, strict=True))
                where = here.loc[:, x].to_numpy(float)
                middle = float(np.exp(np.log(where).mean()) if logarithmic else where.mean())
                folds = _rows(here, recipe, series, column, metric)
                out += [keys | fold | {"x": float(w)} for fold, w in zip(folds, [*where, middle], strict=True)]
    if not out:
        raise MetricInputError(f"no row of the table has a number in column {metric}; a figure needs at least one")
    return pd.DataFrame(out).reindex(columns=list(dict.fromkeys([*at, "x", *COLUMNS])))


def in_windows(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Average long logs over windows, so that each run has at most 50 points; ``step`` is a window's last step.

    >>> rows = pd.DataFrame({"recipe": "opd", "seed": 0, "step": range(1, 101), "x": [0.0, 1.0] * 50})
    >>> in_windows(rows, "x").head(2).values.tolist()
    [['opd', 0, 2, 0.5], ['opd', 0, 4, 0.5]]
    """
    parts = []
    for _, own in rows.groupby("recipe", sort=False):
        steps = np.unique(own.loc[:, "step"])
        size = math.ceil(len(steps) / FRACTIONS_OF_A_RUN)
        last = {s: steps[min(i // size * size + size, len(steps)) - 1] for i, s in enumerate(steps)}
        moved = own.assign(step=own.loc[:, "step"].map(last)).filter(items=["recipe", "seed", "step", metric])
        parts.append(moved.groupby(["recipe", "seed", "step"], sort=True).agg("mean").reset_index())
    return pd.concat(parts, ignore_index=True)


def drawable(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Lift what a logarithmic axis cannot show (zero, or an interval's end below it) to half the smallest positive.

    The words in ``text`` keep the true numbers.

    >>> drawable(pd.DataFrame({"value": [4.0], "low": [-1.0], "high": [9.0]}), "normalized_spectral_shift")[
    ...     "low"
    ... ].tolist()
    [2.0]
    """
    if metric not in LOGARITHMIC:
        return table
    numbers = table.filter(items=["value", "low", "high"])
    floor = floor_of(table.loc[:, "value"])
    return table.assign(**{c: numbers.loc[:, c].clip(lower=floor) for c in numbers})


def floor_of(values: pd.Series) -> float:
    """Half the smallest positive value: where a logarithmic axis draws what is not positive.

    >>> floor_of(pd.Series([0.0, 4.0]))
    2.0
    """
    positive = values.loc[values > 0]
    return float(positive.min()) / 2 if len(positive) else 1e-12


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

    >>> ends = pd.DataFrame({"recipe": "opd", "seed": [0, 1], "x": [1.0, 1.0], "x_shuffled": [5.0, 5.0]})
    >>> describe(spread(ends, "x"))
    'OPD 1 (95% interval 1 to 1, 2 seeds), shuffled null 5'
    """
    clauses = []
    for recipe in in_order(table.loc[:, "recipe"]):
        own = table.loc[(table.loc[:, "recipe"] == recipe) & (table.loc[:, "role"] != "seed")]
        parts = [
            str(text) if series == recipe else f"{series} {str(text).split(' (', 1)[0]}"
            for series, text in zip(own.loc[:, "series"], own.loc[:, "text"], strict=True)
        ]
        clauses.append(f"{recipe} {', '.join(parts)}")
    return "; ".join(clauses)


def listed(words: Iterable[str]) -> str:
    """Join words as a sentence does.

    >>> listed(["SFT", "OPD", "RLVR"])
    'SFT, OPD and RLVR'
    """
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "nothing"
