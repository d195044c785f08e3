"""Figures of an update's path: linked panels, a slider over training, runs beside their nulls, what runs share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd

from opdgeom_utils.charts.axes import begun, value_axis
from opdgeom_utils.charts.palette import Figure, coloured, dashed, in_order, shaped, tips
from opdgeom_utils.charts.rows_of_points import reach_seeds_means
from opdgeom_utils.charts.seed_points import NothingToDraw, figure, fold_seeds, known, need, without
from opdgeom_utils.intervals import number
from opdgeom_utils.vocabulary import listed, metric_of

COLUMNS = ["recipe", "series", "seed", "step", "share", "value"]
PANEL, NARROW, HEIGHT = 300, 210, 190
SHARES = [0.02, 0.1, 0.2, 0.5, 1]
FIFTH = 0.2
SLIDER_STEP = 0.05
EVERY = "every curve"
PICKED = f"picked == '{EVERY}' || picked == datum.series"


@figure
def update_paths(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw several quantities along training, one panel each; a menu picks one objective in all of them.

    ``panels``: curves (``recipe, series, seed, step, share, value``) by the title of their panel's vertical axis.
    """
    return _panels(panels, "Along each run, by its share of the run's updates. At the end:", at=1.0)


@figure
def against_nulls(panels: Mapping[str, pd.DataFrame], quantity: str) -> Figure:
    """Draw a run beside what would happen without learning, one panel for right and one for left spaces.

    ``panels``: curves by title. All panels have one vertical scale.
    """
    return _panels(panels, f"{begun(metric_of(quantity).title)}, 0 to 1. At a fifth:", at=FIFTH, unit=True)


@figure
def rounding_floor(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the stable rank in fp32 and after rounding to bf16, beside rounding alone, a panel for each objective.

    ``panels``: curves by title; the vertical axis is logarithmic and the same in every panel.
    """
    return _panels(panels, "Stable rank, logarithmic. At the first checkpoint:", at=0.0, log=True)


@figure
def shared_spaces(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw what a run's final space shares with others: points of the seeds, mean and 95% interval.

    ``panels``: ``kind, series, seed, value`` by title; ``kind`` is what it is compared with, ``series`` whose colour it
    takes.
    """
    drawn, lost = _defined(panels, ["kind", "series", "seed", "value"])
    names = in_order(name for rows in drawn.values() for name in rows["series"])
    charts, said = [], []
    for title, rows in drawn.items():
        means = fold_seeds(rows, ["kind", "series"], "value")
        seeds = rows.assign(role="seed", text="seed " + rows["seed"].astype(str))
        table = pd.concat([means.assign(role="mean"), seeds])
        x, low = (alt.X(f"{c}:Q", title=title).scale(domain=[0, 1]) for c in ("value", "low"))
        y = alt.Y("kind:N", sort=list(dict.fromkeys(rows["kind"])), title=None).axis(labelLimit=150)
        base = alt.Chart(table).encode(y=y, color=coloured("series", names))
        x, low = (channel.axis(format=".1f", tickCount=5) for channel in (x, low))
        layers = reach_seeds_means(base, x, low, tips("kind", "text"), sizes=(18, 80), faint=0.4)
        charts.append(alt.layer(*layers).properties(width=NARROW, height=30 * rows["kind"].nunique()))
        said.append(f"{title}: {_clauses(means.assign(series=means['kind']))}.")
    words = f"Overlap of OPD's final space with others, 0 to 1. {' '.join(said)}{lost}"
    return alt.concat(*charts, columns=2).properties(description=words)


@figure
def path_slider(spectrum: pd.DataFrame, panels: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the spectrum of the update at one moment of training, the same moment on other curves, and a slider.

    ``spectrum``: curves with a column ``index``: singular value ``index`` (from 1) of the update at each checkpoint.
    ``panels``: other curves by title; the moment is a large point on them.
    """
    spectrum = known(need(spectrum, [*COLUMNS, "index"]), "value", "singular value")
    spectrum = known(spectrum.assign(value=spectrum["value"].where(spectrum["value"] > 0)), "value", "singular value")
    drawn, lost = _defined(panels, COLUMNS) if panels else ({}, "")
    values = spectrum.groupby(["series", "index", "share"], sort=False).agg({"value": "mean"}).reset_index()
    means = {title: fold_seeds(rows, ["series", "step", "share"], "value") for title, rows in drawn.items()}
    moments = _moments([values, *means.values()])
    start = max(FIFTH, moments[0])
    bind = alt.binding_range(min=moments[0], max=1, step=SLIDER_STEP, name="share of the run ")
    moment = alt.param(name="moment", value=start, bind=bind)
    now = f"abs(datum.share - moment) < {SLIDER_STEP / 2}"
    names = in_order(name for rows in (spectrum, *drawn.values()) for name in rows["series"])
    at_once = _at(values, ["series", "index"], moments)
    charts: list[Figure] = [_spectrum(at_once, names, now).properties(width=PANEL, height=HEIGHT)]
    said = []
    for title, own in means.items():
        at_once = _at(own, ["series"], moments)
        x, y, colour = _x(), _y(title, drawn[title].loc[:, "value"]), coloured("series", names)
        line = alt.Chart(own).mark_line(opacity=0.5).encode(x=x, y=y, color=colour)
        point = alt.Chart(at_once).mark_point(filled=True, size=110, opacity=1)
        share = alt.Tooltip("share:Q", title="share of the run", format=".0%")
        point = point.encode(x=x, y=y, color=colour, tooltip=[*tips(("series", "curve")), share, *tips("text")])
        charts.append((line + point.transform_filter(now)).properties(width=PANEL, height=HEIGHT))
        said.append(f"{title}, at {start:.0%} of the run: {_clauses(_nearest(at_once, start))}.")
    words = f"Singular values of the update at a moment that a slider chooses, beside other curves. {' '.join(said)}"
    return alt.concat(*charts, columns=2).add_params(moment).properties(description=words + lost)


def _spectrum(values: pd.DataFrame, names: Sequence[str], now: str) -> Figure:
    """Singular values of the mean over seeds, at the moment of the slider."""
    y = alt.Y("value:Q", title="singular value (logarithmic)")
    y = value_axis(y, "singular_value", values.loc[:, "value"], log=True, room=1.2)
    x = alt.X("index:Q", title="index of the singular value").axis(format="d", tickCount=5)
    tip = ["series:N", alt.Tooltip("share:Q", format=".0%"), "index:Q", alt.Tooltip("value:Q", format=".3g")]
    drawn = alt.Chart(values).encode(x=x, y=y, color=coloured("series", names), tooltip=tip).transform_filter(now)
    return drawn.mark_line() + drawn.mark_point(filled=True, size=18, opacity=1)


def _moments(curves: Sequence[pd.DataFrame]) -> list[float]:
    """Places of the slider, as shares of the run: from where every curve has a checkpoint behind it."""
    first = max(float(own.loc[:, "share"].min()) for rows in curves for _, own in rows.groupby("series"))
    steps = round(1 / SLIDER_STEP)
    return [i / steps for i in range(max(1, math.ceil(first * steps - 1e-9)), steps + 1)]


def _at(curves: pd.DataFrame, keys: list[str], moments: list[float]) -> pd.DataFrame:
    """Every curve at the same moments, between two checkpoints by the number of updates, as the claims take it."""
    parts = []
    for _, own in curves.sort_values(by="share").groupby(keys, sort=False):
        values = np.interp(moments, own["share"].to_numpy(float), own["value"].to_numpy(float))
        text = [number(value, ".3g") for value in values]
        named = {key: own[key].iloc[0] for key in keys}
        parts.append(pd.DataFrame({"share": moments, "value": values, "text": text, **named}))
    return pd.concat(parts, ignore_index=True)


def _defined(panels: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> tuple[dict[str, pd.DataFrame], str]:
    """Rows with a number of every panel that has one, and the end of a description, which names the others."""
    rows = {title: need(table, columns) for title, table in panels.items() if len(table)}
    drawn = {title: table.loc[np.isfinite(table["value"].to_numpy(float))] for title, table in rows.items()}
    drawn = {title: table for title, table in drawn.items() if len(table)}
    if not drawn:
        raise NothingToDraw(listed(panels))
    return drawn, without(rows, drawn)


def _panels(
    panels: Mapping[str, pd.DataFrame], opening: str, *, at: float, unit: bool = False, log: bool = False
) -> Figure:
    """Lay out panels of curves that share colours and one choice of a curve."""
    drawn, lost = _defined(panels, COLUMNS)
    names = in_order(name for rows in drawn.values() for name in rows["series"])
    bind = alt.binding_select(options=[EVERY, *names], name="show ")
    pick = alt.param(name="picked", value=EVERY, bind=bind)
    together = pd.concat(list(drawn.values())).loc[:, "value"] if log else None
    charts, said = [], []
    for title, rows in drawn.items():
        means = fold_seeds(rows, ["series", "step", "share"], "value")
        y = _y(title, rows.loc[:, "value"] if together is None else together, unit=unit, log=log)
        charts.append(_panel(means, y, names).properties(width=PANEL, height=HEIGHT))
        said.append(f"{title}: {_clauses(_nearest(means, at))}.")
    words = f"{opening} {' '.join(said)}{lost}"
    return alt.concat(*charts, columns=2).add_params(pick).properties(description=words)


def _panel(means: pd.DataFrame, y: alt.Y, names: Sequence[str]) -> Figure:
    """Bands, lines by dash and points of the means; what is not picked fades."""
    faded, pale = (alt.when(PICKED).then(alt.value(a)).otherwise(alt.value(b)) for a, b in ((1, 0.12), (0.15, 0.03)))
    base = alt.Chart(means).encode(x=_x(), color=coloured("series", names))
    low = y.copy()
    low.shorthand = "low:Q"
    points = base.mark_point(filled=True, size=34)
    return alt.layer(
        base.mark_area(clip=True).encode(y=low, y2="high:Q", opacity=pale),
        *dashed(base, means["series"], y=y, opacity=faded),
        points.encode(y=y, shape=shaped("series", names), opacity=faded, tooltip=_tip()),
    )


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
    if unit:
        return y.scale(domain=[0, 1]).axis(format=".1f", tickCount=5)
    return value_axis(y, "value", values, log=log, room=1.2)


def _tip() -> list[alt.Tooltip]:
    share = alt.Tooltip("share:Q", title="share of the run", format=".0%")
    return [*tips(("series", "curve")), alt.Tooltip("step:Q", title="update"), share, *tips(("text", "value"))]
