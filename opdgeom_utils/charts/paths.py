"""Figures of an update's path: linked panels, a slider over training, runs beside their nulls, what runs share."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from opdgeom_utils.charts.series import folded, need
from opdgeom_utils.charts.theme import (
    Figure,
    by_dash,
    colour_scale,
    in_order,
    legend,
    log_ticks,
    metric_title,
    shape_scale,
)
from opdgeom_utils.errors import MetricInputError

COLUMNS = ["recipe", "series", "seed", "step", "share", "value"]
PANEL, NARROW, HEIGHT = 300, 210, 190
SHARES = [0.02, 0.1, 0.2, 0.5, 1]
FIFTH = 0.2
SLIDER_STEP = 0.02
EVERY = "every curve"
PICKED = f"picked == '{EVERY}' || picked == datum.series"


def update_paths(panels: Mapping[str, pd.DataFrame]) -> alt.ConcatChart:
    """Draw several quantities along training, one panel each; a menu picks one objective in all of them.

    Parameters
    ----------
    panels
        Curves (``recipe, series, seed, step, share, value``) by the title of their panel's vertical axis.
    """
    return _panels(panels, "Along each run, by its share of the run's updates. At the end:", at=1.0)


def against_nulls(panels: Mapping[str, pd.DataFrame], quantity: str) -> alt.ConcatChart:
    """Draw a run beside what would happen without learning, one panel for right and one for left spaces.

    Parameters
    ----------
    panels
        Curves by title. All panels have one vertical scale.
    quantity
        What is drawn, for the words.
    """
    words = metric_title(quantity)
    return _panels(panels, f"{words[0].upper()}{words[1:]}, 0 to 1. At a fifth:", at=FIFTH, unit=True)


def rounding_floor(panels: Mapping[str, pd.DataFrame]) -> alt.ConcatChart:
    """Draw the stable rank in fp32 and after rounding to bf16, beside rounding alone, a panel for each objective.

    Parameters
    ----------
    panels
        Curves by title; the vertical axis is logarithmic and the same in every panel.
    """
    return _panels(panels, "Stable rank, logarithmic. At the first checkpoint:", at=0.0, log=True)


def shared_spaces(panels: Mapping[str, pd.DataFrame]) -> alt.ConcatChart:
    """Draw what a run's final space shares with others: points of the seeds, mean and 95% interval.

    Parameters
    ----------
    panels
        ``kind, series, seed, value`` by title; ``kind`` is what it is compared with, ``series`` whose colour it takes.
    """
    names = in_order(
        name for rows in panels.values() for name in need(rows, ["kind", "series", "seed", "value"])["series"]
    )
    charts, said = [], []
    for title, rows in panels.items():
        kinds = list(dict.fromkeys(rows["kind"]))
        means = _fold(rows, ["kind", "series"])
        x = alt.X("value:Q", title=title).scale(domain=[0, 1]).axis(format=".1f", tickCount=5)
        y = alt.Y("kind:N", sort=kinds, title=None).axis(labelLimit=150)
        base = alt.Chart(means).encode(y=y, color=_colour(names))
        whiskers = base.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q").transform_calculate(value="datum.low")
        dots = alt.Chart(rows).mark_point(filled=True, size=18, opacity=0.4)
        marks = base.mark_point(filled=True, size=80, opacity=1).encode(x=x, tooltip=["kind:N", "text:N"])
        layers = (whiskers, dots.encode(x=x, y=y, color=_colour(names), tooltip=["kind:N", "seed:Q"]), marks)
        charts.append(alt.layer(*layers).properties(width=NARROW, height=30 * len(kinds)))
        said.append(f"{title}: {_clauses(means.assign(series=means['kind']))}.")
    words = f"Overlap of OPD's final space with others, 0 to 1. {' '.join(said)}"
    return alt.concat(*charts, columns=2).properties(description=words)


def path_slider(spectrum: pd.DataFrame, panels: Mapping[str, pd.DataFrame], *, start: float = FIFTH) -> alt.ConcatChart:
    """Draw the spectrum of the update at one moment of training, the same moment on other curves, and a slider.

    Parameters
    ----------
    spectrum
        Curves with a column ``index``: singular value ``index`` (from 1) of the update at each checkpoint.
    panels
        Other curves by title; the moment is a large point on them.
    start
        Where the slider stands at first, as a share of the run, 0 to 1.
    """
    need(spectrum, [*COLUMNS, "index"])
    bind = alt.binding_range(min=SLIDER_STEP, max=1, step=SLIDER_STEP, name="share of the run ")
    moment = alt.param(name="moment", value=start, bind=bind)
    now = "datum.from <= moment && moment < datum.until"
    names = in_order(name for rows in (spectrum, *panels.values()) for name in rows["series"])
    charts: list[Figure] = [_spectrum(spectrum, names, now).properties(width=PANEL, height=HEIGHT)]
    said = []
    for title, rows in panels.items():
        means = _spans(_fold(rows, ["series", "step", "share"]))
        line = alt.Chart(means).encode(x=_x(), y=_y(title, rows.loc[:, "value"]), color=_colour(names))
        point = line.mark_point(filled=True, size=110, opacity=1).encode(tooltip=_tip()).transform_filter(now)
        charts.append((line.mark_line(opacity=0.5) + point).properties(width=PANEL, height=HEIGHT))
        said.append(f"{title}, at {start:.0%} of the run: {_clauses(_nearest(means, start))}.")
    words = f"Singular values of the update at a moment that a slider chooses, beside other curves. {' '.join(said)}"
    return alt.concat(*charts, columns=2).add_params(moment).properties(description=words)


def _spectrum(spectrum: pd.DataFrame, names: Sequence[str], now: str) -> Figure:
    """Singular values of the mean over seeds, at the checkpoints that the slider points at."""
    keys = ["series", "step", "share", "index"]
    values = spectrum.groupby(keys, sort=False).agg({"value": "mean"}).reset_index()
    heights = values.loc[:, "value"].to_numpy(float)
    low, high = float(heights.min()) / 1.2, float(heights.max()) * 1.2
    y = alt.Y("value:Q", title="singular value (logarithmic)").scale(type="log", domain=[low, high], nice=False)
    y = y.axis(values=log_ticks(low, high), format="~g", labelOverlap=True)
    x = alt.X("index:Q", title="index of the singular value").axis(format="d", tickCount=5)
    tip = ["series:N", "step:Q", "index:Q", alt.Tooltip("value:Q", format=".3g")]
    drawn = alt.Chart(_spans(values)).encode(x=x, y=y, color=_colour(names), tooltip=tip).transform_filter(now)
    return drawn.mark_line() + drawn.mark_point(filled=True, size=18, opacity=1)


def _panels(
    panels: Mapping[str, pd.DataFrame], opening: str, *, at: float, unit: bool = False, log: bool = False
) -> alt.ConcatChart:
    """Lay out panels of curves that share colours and one choice of a curve."""
    drawn = {title: need(rows, COLUMNS) for title, rows in panels.items() if len(rows)}
    if not drawn:
        raise MetricInputError(f"none of the panels {list(panels)} has a row; a figure needs at least one")
    names = in_order(name for rows in drawn.values() for name in rows["series"])
    bind = alt.binding_select(options=[EVERY, *names], name="show ")
    pick = alt.param(name="picked", value=EVERY, bind=bind)
    together = pd.concat(list(drawn.values())).loc[:, "value"] if log else None
    charts, said = [], []
    for title, rows in drawn.items():
        means = _fold(rows, ["series", "step", "share"])
        y = _y(title, rows.loc[:, "value"] if together is None else together, unit=unit, log=log)
        charts.append(_panel(means, y, names).properties(width=PANEL, height=HEIGHT))
        said.append(f"{title}: {_clauses(_nearest(means, at))}.")
    return alt.concat(*charts, columns=2).add_params(pick).properties(description=f"{opening} {' '.join(said)}")


def _panel(means: pd.DataFrame, y: alt.Y, names: Sequence[str]) -> Figure:
    """Bands, lines by dash and points of the means; what is not picked fades."""
    faded = alt.when(PICKED).then(alt.value(1)).otherwise(alt.value(0.12))
    base = alt.Chart(means).encode(x=_x(), color=_colour(names))
    low = y.copy()
    low.shorthand = "low:Q"
    band = base.mark_area(clip=True).encode(
        y=low, y2="high:Q", opacity=alt.when(PICKED).then(alt.value(0.15)).otherwise(alt.value(0.03))
    )
    lines = [
        base.transform_filter(alt.FieldOneOfPredicate("series", own))
        .mark_line(strokeDash=dash)
        .encode(y=y, opacity=faded)
        for dash, own in by_dash(means["series"])
    ]
    shape = alt.Shape("series:N", title=None, scale=shape_scale(names), legend=legend(names))
    points = base.mark_point(filled=True, size=34).encode(y=y, shape=shape, opacity=faded, tooltip=_tip())
    return alt.layer(band, *lines, points)


def _fold(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Fold seeds into mean and 95% interval at each place."""
    found = []
    for place, own in rows.groupby(list(keys), sort=False):
        names = dict(zip(keys, place if isinstance(place, tuple) else (place,), strict=True))
        found.append(names | folded(own.loc[:, "value"], "value"))
    return pd.DataFrame(found)


def _spans(rows: pd.DataFrame) -> pd.DataFrame:
    """Give every checkpoint the span of the slider in which it is the nearest of its run: ``from`` up to ``until``."""
    parts = []
    for _, own in rows.groupby("series", sort=False):
        places = sorted(own["share"].unique())
        middles = [0.0, *[(a + b) / 2 for a, b in itertools.pairwise(places)], 2.0]
        spans = {place: (middles[i], middles[i + 1]) for i, place in enumerate(places)}
        ends = [spans[place] for place in own.loc[:, "share"]]
        parts.append(own.assign(**{"from": [a for a, _ in ends], "until": [b for _, b in ends]}))
    return pd.concat(parts, ignore_index=True)


def _nearest(means: pd.DataFrame, place: float) -> pd.DataFrame:
    off = means.assign(off=(means["share"] - place).abs()).sort_values("off", kind="stable")
    return off.groupby("series", sort=False).head(1)


def _clauses(means: pd.DataFrame) -> str:
    said = dict(zip(means["series"], means["text"], strict=True))
    return "; ".join(f"{name} {said[name]}" for name in in_order(said))


def _x() -> alt.X:
    axis = alt.X("share:Q", title="share of the run's updates (square-root scale)").scale(type="sqrt", domain=[0, 1])
    return axis.axis(format=".0%", values=SHARES, labelOverlap=True)


def _y(title: str, values: pd.Series, *, unit: bool = False, log: bool = False) -> alt.Y:
    y = alt.Y("value:Q", title=title)
    if log:
        low, high = float(values.min()) / 1.2, float(values.max()) * 1.2
        return y.scale(type="log", domain=[low, high], nice=False).axis(values=log_ticks(low, high), format="~g")
    return (
        y.scale(domain=[0, 1]).axis(format=".1f", tickCount=5)
        if unit
        else y.scale(zero=False, nice=True).axis(format="~g", tickCount=5, labelOverlap=True)
    )


def _colour(names: Sequence[str]) -> alt.Color:
    return alt.Color("series:N", title=None, scale=colour_scale(names), legend=legend(names))


def _tip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("series:N", title="curve"), alt.Tooltip("step:Q", title="update"),
        alt.Tooltip("share:Q", title="share of the run", format=".0%"), alt.Tooltip("text:N", title="value"),
    ]  # fmt: skip
