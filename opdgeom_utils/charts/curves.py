"""Figures of curves: a metric against the size of the update, against the tolerance, against the masks' settings."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from opdgeom_utils.charts.axes import begun, log_ticks, value_axis
from opdgeom_utils.charts.palette import Figure, colour_scale, coloured, dashed, in_order, shaped, tips
from opdgeom_utils.charts.seed_points import (
    NothingToDraw,
    along,
    describe,
    drawable,
    figure,
    heights,
    in_windows,
    known,
    need,
)
from opdgeom_utils.metrics.sparsity import INERT_ETA
from opdgeom_utils.vocabulary import NULLS, ROUNDED, listed, metric_of

PAPER_ETA = 1e-3
HEIGHT = 300
PANEL = 170
TRAJECTORY = ("stable_rank", "total_norm", "update_sparsity", "normalized_spectral_shift")


@figure
def training_curves(table: pd.DataFrame, column: str = "sampled") -> Figure:
    """Draw a quantity during training: points of the seeds, their mean, a band for the 95% interval.

    ``table``: one row per (recipe, seed, step) or per (recipe, seed, step, family): the accuracy table, or the training
    log. Families are averaged first. Runs with more than 50 steps are averaged over windows.
    """
    title = metric_of(column).title
    rows = known(need(table, ["recipe", "seed", "step", column]), column, metric_of(column).words)
    keys = ["recipe", "seed", "step"]
    means = rows.filter(items=[*keys, column]).groupby(keys, sort=True).agg("mean").reset_index()
    curves = along(in_windows(means, column), "step", column, at=["step"], nulls=())
    said = (
        f"{begun(title)} against optimiser steps, a band for the 95% interval over "
        f"{means.loc[:, 'seed'].nunique()} seeds. At the last step: {_last(curves)}."
    )
    x = alt.X("x:Q", title="optimiser steps (square-root scale)").scale(type="sqrt")
    axis = x.axis(format="d", tickMinStep=1, tickCount=5, labelOverlap=True)
    return alt.layer(*_layers(curves, axis, column)).properties(width="container", height=HEIGHT, description=said)


@figure
def metric_against_norm(
    summary: pd.DataFrame, metric: str, *, norm: str = "total_norm", null: str = "shuffled"
) -> Figure:
    """Draw a metric against the size of the update along the runs, a curve per objective with its null's curve.

    Where the curves of two objectives coincide, the metric sees the size of an update and not its objective. A square
    in the objective's colour marks the end of its null's curve. What bf16 shows of the same update (``null="bf16"``) is
    no null: it is drawn dotted, in the objective's own colour.

    ``summary``: one row per checkpoint, from :func:`opdgeom_utils.claims.matching.summarise`.
    ``norm``: column of the horizontal axis, ``total_norm`` or ``relative_norm``; logarithmic.
    """
    curves = along(summary, norm, metric, at=["step"], nulls=[null])
    title, across = metric_of(metric).title, metric_of(norm).title
    axis = value_axis(alt.X("x:Q", title=f"{across} (log)"), norm, curves.loc[:, "x"], log=True)
    y = value_axis(alt.Y("value:Q", title=title), metric, heights(drawable(curves, metric)))
    nulls = [n.label for n in NULLS.values()]
    means = curves.loc[(curves.loc[:, "role"] == "mean") & curves.loc[:, "series"].isin(nulls)]
    ends = drawable(means.sort_values("step").groupby("recipe", sort=False).tail(1), metric)
    colour = alt.Color("recipe:N", scale=colour_scale(_ink(curves)))
    flags = alt.Chart(ends).mark_point(filled=True, shape="square", size=80, opacity=1)
    flags = [flags.encode(x=axis, y=y, color=colour, tooltip=_tip(norm))] if len(ends) else []
    said = (
        f"{begun(title)} against the {across}, logarithmic, along the checkpoints of each run. "
        f"At the last step: {_last(curves)}."
    )
    layers = [*_layers(curves, axis, metric, x_title=norm), *flags]
    return alt.layer(*layers).properties(width="container", height=HEIGHT, description=said)


@figure
def run_trajectory(summary: pd.DataFrame, metrics: Sequence[str] = TRAJECTORY) -> Figure:
    """Draw what grows and what stays along the checkpoints of runs, a panel for each metric, with its shuffled null.

    Of the stable rank, what bf16 shows of the same update is drawn too; it is no null.

    ``summary``: one row per (run, checkpoint), from :func:`opdgeom_utils.claims.matching.summarise`.
    ``metrics``: columns, a panel for each that has a number.
    """
    panels, said = [], []
    found = [m for m in metrics if m in summary]
    need(summary, metrics if not found else [])
    for metric in (m for m in found if summary.loc[:, m].notna().any()):
        curves = along(summary, "step", metric, at=["step"], nulls=["shuffled", "bf16"])
        x = alt.X("x:Q", title="step").axis(format="d", tickMinStep=1, tickCount=4, labelOverlap=True)
        panels.append(alt.layer(*_layers(curves, x, metric)).properties(width=2 * PANEL - 40, height=PANEL))
        said.append(f"{metric_of(metric).title}: {_last(curves)}")
    if not panels:
        raise NothingToDraw(listed(metric_of(m).words for m in found))
    chart = alt.concat(*panels, columns=2).resolve_scale(color="independent", shape="independent")
    return chart.properties(
        description=f"Along the checkpoints, a panel for each metric. At the last: {'. '.join(said)}."
    )


@figure
def eta_sweep(table: pd.DataFrame) -> Figure:
    """Draw update sparsity against the tolerance eta, with the paper's value and the one below which it is inert.

    ``table``: one row per (recipe, seed, eta): ``update_sparsity`` and, where it was measured, its null.
    """
    etas = sorted(set(need(table, ["eta"]).loc[:, "eta"]))
    floor = min(eta for eta in [*etas, PAPER_ETA] if eta > 0) / 10
    shifted = table.assign(place=table.loc[:, "eta"].clip(lower=floor))
    curves = along(shifted, "place", "update_sparsity", at=["eta"], nulls=["shuffled"])
    marks = pd.DataFrame(
        {
            "eta": [PAPER_ETA, INERT_ETA],
            "text": ["paper", "1/256"],
            "why": ["the paper's tolerance", "inert below this"],
        }
    )
    x = alt.X("x:Q", title="tolerance eta (logarithmic)").scale(type="log", nice=False)
    zero = f"datum.value < {2 * floor:g} ? '0' : datum.label"
    ticks = [*([floor] if etas[0] <= 0 else []), *log_ticks(10 * floor, max([*etas, PAPER_ETA]))]
    axis = x.axis(values=ticks, format=".2~g", labelExpr=zero, labelOverlap=True)
    lines = alt.Chart(marks).mark_rule(strokeDash=[4, 3]).encode(x="eta:Q", tooltip=["text:N", "why:N", "eta:Q"])
    words = [
        alt.Chart(one).mark_text(align="right", dx=-4, fontSize=11, y=8 + 14 * i).encode(x="eta:Q", text="text:N")
        for i, one in enumerate((marks.head(1), marks.tail(1)))
    ]
    off = curves.assign(off=(curves.loc[:, "x"] - PAPER_ETA).abs()).sort_values("off", ascending=False)
    said = (
        f"Update sparsity against the tolerance eta, logarithmic. Dashed lines: the paper's {PAPER_ETA:g}, and "
        f"1/256 ({INERT_ETA:.4f}). At the paper's tolerance, or the nearest to it: {_ends(off)}; "
        f"at the largest: {_last(curves)}."
    )
    return alt.layer(lines, *words, *_layers(curves, axis, "update_sparsity", x_title="eta")).properties(
        width="container", height=HEIGHT, description=said
    )


@figure
def alpha_rank_sweep(table: pd.DataFrame) -> Figure:
    """Draw the overlap with the principal mask, over chance, against the mask's size alpha, a panel for each rank.

    ``table``: one row per (recipe, seed, alpha, rank), or without ``rank``: ``principal_overlap`` and, where
    measured, its null.
    """
    metric = "principal_overlap"
    need(table, ["recipe", "seed", "alpha", metric])
    columns = [c for c in (metric, f"{metric}_shuffled") if c in table]
    ratios = table.assign(**{f"over_chance{c.removeprefix(metric)}": table[c] / table["alpha"] for c in columns})
    at = ["rank", "alpha"] if "rank" in table and table.loc[:, "rank"].nunique() > 1 else ["alpha"]
    curves = along(ratios, "alpha", "over_chance", at=at, nulls=["shuffled"])
    ranks = [f"{rank:g}" for rank in sorted(curves["rank"].unique())] if "rank" in curves else []
    if ranks:
        curves["panel"] = [f"rank {rank:g}" for rank in curves.loc[:, "rank"]]
    x = alt.X("x:Q", title="alpha").scale(zero=False)
    axis = x.axis(tickCount=3, format=".0%", labelOverlap=True)
    chart = alt.layer(*_layers(curves, axis, "over_chance", x_title="alpha", y_title="overlap / chance", level=1.0))
    panels = f", a panel for each rank ({listed(ranks)})" if ranks else ""
    said = (
        f"{begun(metric_of(metric).title)} divided by chance, against alpha{panels}; 1 is chance. "
        f"At the largest alpha{' and rank' if ranks else ''}: {_last(curves)}."
    )
    if not ranks:
        return chart.properties(width="container", height=HEIGHT, description=said)
    panel = chart.properties(width=PANEL, height=180)
    order = [f"rank {rank}" for rank in ranks]
    return panel.facet(facet=alt.Facet("panel:N", sort=order, title=None), columns=3).properties(description=said)


def _layers(
    curves: pd.DataFrame,
    x: alt.X,
    metric: str,
    *,
    x_title: str = "step",
    y_title: str | None = None,
    level: float | None = None,
) -> list[alt.Chart]:
    """Band, points of the seeds, line and points of the means, nulls in grey beneath; a dashed line at ``level``."""
    curves = curves.assign(curve=curves.loc[:, "recipe"] + ", " + curves.loc[:, "series"], ink=_ink(curves))
    names = in_order(curves.loc[:, "ink"])
    curves = drawable(curves, metric)
    title, shape, tip = y_title or metric_of(metric).title, shaped("ink", names), _tip(x_title)
    y, low = (value_axis(alt.Y(f"{c}:Q", title=title), metric, heights(curves)) for c in ("value", "low"))
    data = alt.Chart(curves)
    base = data.encode(x=x, color=coloured("ink", names), detail="curve:N")
    means = base.transform_filter("datum.role == 'mean'")
    beneath = bool((curves["series"] != curves["recipe"]).any())
    of_runs, of_nulls = (means.transform_filter(f"datum.series {sign} datum.recipe") for sign in ("==", "!="))
    seeds = base.transform_filter("datum.role == 'seed'").mark_point(filled=True, size=12, opacity=0.35)
    return [
        *([] if level is None else [data.mark_rule(strokeDash=[4, 3]).encode(y=alt.datum(level))]),
        of_runs.mark_area(opacity=0.15).encode(y=low, y2="high:Q"),
        *([of_nulls.mark_point(filled=True, size=20, opacity=0.5).encode(y=y, shape=shape, tooltip=tip)] * beneath),
        seeds.encode(y=y, shape=shape, tooltip=tip),
        *dashed(means, curves.loc[:, "series"], y=y),
        of_runs.mark_point(filled=True, size=30, opacity=1).encode(y=y, shape=shape, tooltip=tip),
    ]


def _ink(curves: pd.DataFrame) -> pd.Series:
    """Whose colour a curve takes: its null's grey, or its objective's own."""
    return curves.loc[:, "series"].where(curves.loc[:, "series"] != ROUNDED, curves.loc[:, "recipe"])


def _tip(x_title: str) -> list[alt.Tooltip]:
    place = alt.Tooltip("x:Q", title=metric_of(x_title).title, format=".3~g")
    return [*tips(("recipe", "objective"), ("series", "curve")), place, *tips(("text", "value"))]


def _last(curves: pd.DataFrame) -> str:
    """Mean of every curve at its last place."""
    keys = [c for c in ("rank", "alpha", "eta", "step") if c in curves]
    return _ends(curves.loc[curves.loc[:, "role"] == "mean"].sort_values(keys))


def _ends(curves: pd.DataFrame) -> str:
    """Mean of every curve in its last row."""
    means = curves.loc[curves.loc[:, "role"] == "mean"]
    return describe(means.groupby(["recipe", "series"], sort=False).tail(1))
