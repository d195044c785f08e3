"""From one row per run to the points, means and intervals that a figure draws, and to the words that describe it."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec

import altair as alt
import numpy as np
import pandas as pd

from opdgeom_utils.charts.palette import PAPER, Figure, in_order
from opdgeom_utils.claims.matching import need
from opdgeom_utils.claims.schema import reported_of
from opdgeom_utils.intervals import Interval, number, seed_interval
from opdgeom_utils.vocabulary import NULLS, ROUNDED, label, metric_of

COLUMNS = ["recipe", "series", "role", "seed", "value", "low", "high", "n", "text"]
FRACTIONS_OF_A_RUN = 50
_P = ParamSpec("_P")


class NothingToDraw(Exception):  # noqa: N818 (no error: a figure of words takes its place)
    """A figure's table has rows, and none of them a number of what it draws."""


def figure(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Let a figure whose numbers are all undefined say so, in the plot and in its description.

    >>> @figure
    ... def spread_of(table: pd.DataFrame) -> Figure:
    ...     return alt.Chart(known(table, "hill", "Hill estimate"))
    >>> spread_of(pd.DataFrame({"hill": [math.nan]})).to_dict()["description"]
    'Nothing to draw: the table has no defined number of Hill estimate.'
    """

    @functools.wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        try:
            return draw(*args, **kwargs)
        except NothingToDraw as missing:
            said = f"Nothing to draw: the table has no defined number of {missing}."
            lines = pd.DataFrame({"words": [textwrap.fill(said, 40)]})
            message = alt.Chart(lines).mark_text(fontSize=12, lineBreak="\n").encode(text="words:N")
            return message.properties(width="container", height=100, description=said)

    return drawn


def known(table: pd.DataFrame, column: str, what: str) -> pd.DataFrame:
    """Rows with a finite number in a column; without any, there is nothing to draw of ``what``."""
    rows = table.loc[np.isfinite(table.loc[:, column].to_numpy(float))]
    if rows.empty:
        raise NothingToDraw(what)
    return rows


def by_recipe(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows of each recipe under its label, in the palette's order."""
    labels = table.loc[:, "recipe"].map(label)
    return [(name, table.loc[labels == name]) for name in in_order(labels)]


def spread(
    ends: pd.DataFrame, metric: str, *, nulls: Sequence[str] = ("shuffled",), reported: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Points of every seed, mean and 95% interval of every recipe, its nulls, and the paper's number.

    ``ends``: one row per run, for instance from :func:`opdgeom_utils.claims.matching.final`.
    ``nulls``: suffixes of null columns to draw beside it; those that the table lacks are left out.
    ``reported``: from :func:`opdgeom_utils.claims.load_reported`; None draws no paper.
    Returns ``recipe`` (label), ``series`` (the recipe's label, a null's, or ``paper``), ``role`` (seed, mean, paper),
    ``seed, value, low, high, n, text``. Raises MetricInputError if the table lacks a column. Raises NothingToDraw if it
    holds no number of the metric.

    >>> ends = pd.DataFrame({"recipe": "opd", "seed": [0, 1], "x": [1.0, 3.0], "x_shuffled": [5.0, 5.0]})
    >>> spread(ends, "x").query("role == 'mean'")[["series", "value"]].values.tolist()
    [['OPD', 2.0], ['shuffled null', 5.0]]
    """
    need(ends, ["recipe", "seed", metric])
    rows: list[dict[str, object]] = []
    for recipe, series, column, own in _columns(ends, metric, nulls):
        rows += _rows(own, recipe, series, column, metric)
    if not rows:
        raise NothingToDraw(metric_of(metric).words)
    paper = _paper(reported, metric, {str(row["recipe"]) for row in rows}) if reported is not None else []
    return pd.DataFrame([*rows, *paper], columns=COLUMNS)


def along(
    rows: pd.DataFrame, x: str, metric: str, *, at: Sequence[str], nulls: Sequence[str] = ("shuffled",)
) -> pd.DataFrame:
    """Fold runs into curves: at each place the points of the seeds, their mean and the 95% interval.

    ``rows``: one row for each (recipe, seed, place).
    ``x``: column of the horizontal axis; its mean over seeds is where the mean is drawn (geometric for norms).
    ``at``: columns that name a place, such as ``["step"]``; seeds are folded within each.
    Returns the columns of :func:`spread`, ``x`` and those of ``at``.
    """
    need(rows, ["recipe", "seed", x, metric, *at])
    logarithmic = x.endswith("_norm")
    out = []
    for recipe, series, column, own in _columns(rows, metric, nulls):
        defined = own.loc[own.loc[:, x] > 0] if logarithmic else own.loc[own.loc[:, x].notna()]
        for place, here in defined.groupby(list(at), sort=True):
            keys = dict(zip(at, place, strict=True))
            where = here.loc[:, x].to_numpy(float)
            middle = float(np.exp(np.log(where).mean()) if logarithmic else where.mean())
            folds = _rows(here, recipe, series, column, metric)
            out += [keys | fold | {"x": float(w)} for fold, w in zip(folds, [*where, middle], strict=True)]
    if not out:
        raise NothingToDraw(metric_of(metric).words)
    return pd.DataFrame(out).reindex(columns=list(dict.fromkeys([*at, "x", *COLUMNS])))


def fold_seeds(table: pd.DataFrame, keys: Sequence[str], metric: str, what: str = "") -> pd.DataFrame:
    """Mean and interval of ``value`` over seeds for each combination of keys, in order of appearance."""
    defined = known(table, "value", what or metric_of(metric).words)
    return pd.DataFrame(
        [
            own.iloc[0].filter(items=list(keys)).to_dict() | folded(own.loc[:, "value"], metric)
            for _, own in defined.groupby(list(keys), sort=False)
        ]
    )


def folded(values: pd.Series, metric: str) -> dict[str, object]:
    """Mean and 95% interval of one number per seed: ``value, low, high, n, text``. One seed has no width.

    >>> folded(pd.Series([1.0]), "x")
    {'value': 1.0, 'low': 1.0, 'high': 1.0, 'n': 1, 'text': '1 (one seed)'}
    """
    found, numbers = metric_of(metric), values.to_numpy(float)
    same = len(numbers) > 1 and np.ptp(numbers) == 0  # no rounding of the mean may give equal numbers a width
    first = float(numbers[0]) if same else math.nan
    interval = Interval(first, first, first, len(numbers)) if same else seed_interval(numbers)
    low, high = (interval.mean if math.isnan(x) else x for x in (interval.low, interval.high))
    text = interval.text(found.shown, found.unit, over="seeds")
    return {"value": interval.mean, "low": low, "high": high, "n": interval.n, "text": text}


def _columns(table: pd.DataFrame, metric: str, nulls: Sequence[str]) -> Iterable[tuple[str, str, str, pd.DataFrame]]:
    """Recipe, series, column and rows with a number in it: of the metric, then of each null that the table has."""
    for recipe, own in by_recipe(table):
        named = {n: ROUNDED if n == "bf16" else NULLS[n].label if n in NULLS else f"{n} null" for n in nulls}
        for series, column in {recipe: metric, **{named[n]: f"{metric}_{n}" for n in nulls}}.items():
            if column in own:
                yield recipe, series, column, own.loc[np.isfinite(own.loc[:, column].to_numpy(float))]


def _rows(own: pd.DataFrame, recipe: str, series: str, column: str, metric: str) -> list[dict[str, object]]:
    if own.empty:
        return []
    shown = metric_of(metric).shown
    keep: dict[str, object] = {"recipe": recipe, "series": series}
    seeds: list[dict[str, object]] = [
        keep | {"role": "seed", "seed": int(s), "value": float(v), "text": f"{number(v, shown)}, seed {s}"}
        for s, v in zip(own.loc[:, "seed"], own.loc[:, column], strict=True)
    ]
    return [*seeds, keep | {"role": "mean"} | folded(own.loc[:, column], metric)]


def _paper(reported: pd.DataFrame, metric: str, recipes: set[str]) -> list[dict[str, object]]:
    named = reported_of(reported, metric).filter(items=["recipe", "value", "reported", "unit", "where"])
    units = {"percent": "%", "percent (chance 30)": "%", "degree": " degrees"}
    return [
        {
            "recipe": label(recipe), "series": PAPER, "role": "paper", "value": value,
            "text": f"{printed}{units.get(unit, '')} ({where})",
        }
        for recipe, value, printed, unit, where in named.itertuples(index=False)
        if label(recipe) in recipes and pd.notna(value)
    ]  # fmt: skip


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
    if not metric_of(metric).logarithmic:
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


def heights(table: pd.DataFrame) -> pd.Series:
    """Every number that an axis of values has to hold."""
    return pd.Series(table.filter(items=["value", "low", "high"]).stack())


def bare(text: object) -> str:
    """Leave the interval out of a written mean.

    >>> bare("50.0% (95% interval 40.0% to 60.0%, 5 seeds)")
    '50.0%'
    """
    return str(text).split(" (", 1)[0]


def describe(table: pd.DataFrame) -> str:
    """One clause per recipe: its mean and interval, its nulls, the paper's number.

    >>> ends = pd.DataFrame({"recipe": "opd", "seed": [0, 1], "x": [1.0, 1.0], "x_shuffled": [5.0, 5.0]})
    >>> describe(spread(ends, "x"))
    'OPD 1 (95% interval 1 to 1, 2 seeds), shuffled null 5'
    """
    clauses = []
    for recipe in in_order(table.loc[:, "recipe"]):
        own = table.loc[(table.loc[:, "recipe"] == recipe) & (table.loc[:, "role"] != "seed")]
        said = dict(zip(own.loc[:, "series"], own.loc[:, "text"], strict=True))
        others = [f"{series} {bare(text)}" for series, text in said.items() if series != recipe]
        clauses.append(", ".join([f"{recipe} {said.get(recipe, 'undefined')}", *others]))
    return "; ".join(clauses)


def without(given: Iterable[str], drawn: Iterable[str]) -> str:
    """Name what has no number, as the end of a description.

    >>> without(["SFT", "OPD"], ["OPD"]), without(["OPD"], ["OPD"])
    (' Without a number: SFT.', '')
    """
    found = set(drawn)
    lost = [name for name in dict.fromkeys(given) if name not in found]
    return f" Without a number: {', '.join(lost)}." if lost else ""
