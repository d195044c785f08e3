"""Figures of variants: their paths beside OPD's and RLVR's, rows of one number each, and curves over a setting."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from opdgeom_utils.charts.series import folded, listed, need
from opdgeom_utils.charts.theme import Figure, axis_format, colour_scale, in_order, legend, metric_title, shape_scale
from opdgeom_utils.errors import MetricInputError

PANEL, COLUMNS, SLOT = 165, 3, 20
KINDS = {"variant": "this variant", "null": "comparison"}


def variant_paths(table: pd.DataFrame, metric: str = "stable_rank") -> Figure:
    """Draw the path of every variant in a panel of its own, with OPD's and RLVR's means and bands behind it.

    Parameters
    ----------
    table
        ``panel, recipe, seed, step, value``, from :func:`opdgeom_utils.chapters.control.path_table`.
    metric
        What ``value`` is: names the axis.
    """
    curves = _folded(need(table, ["panel", "recipe", "seed", "step", "value"]), ["panel", "recipe", "step"], metric)
    names = in_order(curves.loc[:, "recipe"])
    colour = alt.Color("recipe:N", title=None, scale=colour_scale(names), legend=legend(names))
    x = alt.X("step:Q", title="updates (square-root scale)").scale(type="sqrt")
    base = alt.Chart(curves).encode(x=x.axis(tickCount=4, format="d", labelOverlap=True), color=colour)
    title = metric_title(metric)
    y = alt.Y("value:Q", title=title).scale(zero=False).axis(format=axis_format(metric), tickCount=4)
    low = alt.Y("low:Q", title=title).scale(zero=False).axis(format=axis_format(metric), tickCount=4)
    tip = [alt.Tooltip("recipe:N", title="run"), "panel:N", "step:Q", alt.Tooltip("text:N", title=title)]
    panel = alt.layer(
        base.mark_area(opacity=0.15).encode(y=low, y2="high:Q"),
        base.mark_line().encode(y=y),
        base.mark_point(filled=True, size=18, opacity=1).encode(y=y, tooltip=tip),
    ).properties(width=PANEL, height=130)
    panels = list(dict.fromkeys(table.loc[:, "panel"]))
    ends = curves.sort_values("step").groupby(["panel", "recipe"], sort=False).tail(1)
    said = (
        f"{title[0].upper()}{title[1:]} against updates, a panel for each of {listed(panels)}, with OPD's and RLVR's "
        f"means and 95% intervals over seeds in each. At the last update: {_said(ends, 'recipe')}."
    )
    facet = alt.Facet("panel:N", sort=panels, title=None)
    return panel.facet(facet=facet, columns=COLUMNS).properties(description=said)


def variant_strips(table: pd.DataFrame, metric: str, *, title: str | None = None) -> Figure:
    """Draw one number per run in rows, its seeds and their 95% interval; grey squares are what it is compared with.

    Pointing at a run pales all others, in every panel.

    Parameters
    ----------
    table
        ``row, panel, kind, seed, value``, as the functions of :mod:`opdgeom_utils.chapters.control` return it.
    metric
        What ``value`` is: decides how numbers are printed.
    title
        Title of the horizontal axis.
    """
    means = _folded(need(table, ["row", "panel", "kind", "seed", "value"]), ["panel", "row", "kind"], metric)
    rows, panels = (list(dict.fromkeys(table.loc[:, column])) for column in ("row", "panel"))
    parts = [means.assign(role="mean"), table.dropna(subset=["value"]).assign(role="seed")]
    data = pd.concat(parts).assign(kind=lambda t: t["kind"].map(KINDS))
    names = in_order(data.loc[:, "kind"])
    colour = alt.Color("kind:N", title=None, scale=colour_scale(names), legend=legend(names))
    shape = alt.Shape("kind:N", title=None, scale=shape_scale(names), legend=legend(names))
    y = alt.Y("row:N", sort=rows, title=None, axis=alt.Axis(labelLimit=170))
    axis = alt.Axis(format=_ticks(metric), tickCount=4, labelOverlap=True)
    words = title or metric_title(metric)
    x, low = (alt.X(f"{c}:Q", title=words, axis=axis).scale(zero=False) for c in ("value", "low"))
    base = alt.Chart(data).encode(y=y, color=colour)
    mean = base.transform_filter("datum.role == 'mean'")
    tip = [alt.Tooltip("row:N", title="run"), "panel:N", alt.Tooltip("text:N", title=words)]
    pointed = alt.selection_point(name="pointed", fields=["row"], on="pointerover", clear="pointerout")
    clear, faint = (alt.when(pointed).then(alt.value(v)).otherwise(alt.value(v / 5)) for v in (1, 0.45))
    layers = [
        mean.mark_rule(strokeWidth=2).encode(x=low, x2="high:Q", opacity=clear),
        base.transform_filter("datum.role == 'seed'")
        .mark_point(filled=True, size=14)
        .encode(x=x, shape=shape, opacity=faint),
        mean.mark_point(filled=True, size=55).encode(x=x, shape=shape, tooltip=tip, opacity=clear).add_params(pointed),
    ]
    said = f"{words[0].upper()}{words[1:]}: {_said(means, 'row')}."
    panel = alt.layer(*layers).properties(width=PANEL + 15, height=SLOT * len(rows))
    facet = alt.Facet("panel:N", sort=panels, title=None)
    return panel.facet(facet=facet, columns=2).resolve_scale(x="independent").properties(description=said)


def setting_sweep(
    table: pd.DataFrame, metric: str, *, setting: str, order: Sequence[str], title: str | None = None
) -> Figure:
    """Draw curves over a setting whose values are named, not measured: a share of tokens, a weight of the mixture.

    Parameters
    ----------
    table
        ``setting, series, panel, seed, value``, from :func:`opdgeom_utils.chapters.control.sweep`.
    metric
        What ``value`` is: names the axis.
    setting
        Title of the horizontal axis.
    order
        Values of the setting from left to right; those that no run has are left out.
    title
        Title of the vertical axes; each panel has its own range.
    """
    columns = ["setting", "series", "panel", "seed", "value"]
    curves = _folded(need(table, columns), ["panel", "series", "setting"], metric)
    places = [p for p in order if p in set(curves.loc[:, "setting"])]
    names, panels = (list(dict.fromkeys(table.loc[:, column])) for column in ("series", "panel"))
    colour = alt.Color("series:N", title=None, scale=colour_scale(names), legend=legend(names))
    title = title or metric_title(metric)
    x = alt.X("setting:N", sort=places, title=setting, axis=alt.Axis(labelAngle=0))
    axis = alt.Axis(format=_ticks(metric), tickCount=4)
    y, low = (alt.Y(f"{c}:Q", title=title, axis=axis).scale(zero=False) for c in ("value", "low"))
    base = alt.Chart(curves.assign(place=curves["setting"].map(places.index))).encode(x=x, color=colour)
    tip = [alt.Tooltip("series:N", title="curve"), "setting:N", alt.Tooltip("text:N", title=title)]
    panel = alt.layer(
        base.mark_rule(strokeWidth=2, opacity=0.5).encode(y=low, y2="high:Q"),
        base.mark_line().encode(y=y, order="place:Q"),
        base.mark_point(filled=True, size=40, opacity=1).encode(y=y, tooltip=tip),
    ).properties(width=PANEL + 60, height=170)
    said = f"{title[0].upper()}{title[1:]} over {setting}: {_said(curves.assign(row=_places(curves)), 'row')}."
    return (
        panel.facet(facet=alt.Facet("panel:N", sort=panels, title=None), columns=2)
        .resolve_scale(y="independent")
        .properties(description=said)
    )


def _folded(table: pd.DataFrame, keys: list[str], metric: str) -> pd.DataFrame:
    """Mean and interval over seeds for each combination of keys; refuse a table without a number."""
    known = table.loc[table.loc[:, "value"].notna()]
    if known.empty:
        raise MetricInputError(f"no row of the table has a number of {metric}; a figure needs at least one")
    rows = [
        dict(zip(keys, key, strict=True)) | folded(own.loc[:, "value"], metric)
        for key, own in known.groupby(keys, sort=False)
    ]
    return pd.DataFrame(rows)


def _ticks(metric: str) -> str:
    """Format of tick labels: whole percents, or three digits where a narrow range needs them."""
    return axis_format(metric).replace("~g", ".3~g")


def _places(curves: pd.DataFrame) -> pd.Series:
    return curves.loc[:, "series"] + " at " + curves.loc[:, "setting"]


def _said(means: pd.DataFrame, row: str) -> str:
    """One clause per panel and row."""
    clauses = []
    for panel, own in means.groupby("panel", sort=False):
        parts = [f"{name} {text}" for name, text in zip(own.loc[:, row], own.loc[:, "text"], strict=True)]
        clauses.append(f"{panel}: {', '.join(parts)}")
    return "; ".join(clauses)
