"""Figures of one number per run: rows of points, the mean with its 95% interval, nulls in grey, the paper in pink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from opdgeom_utils.charts.axes import begun, tick_format, value_axis
from opdgeom_utils.charts.palette import PALETTE, PAPER, Figure, coloured, in_order, shaped, tips
from opdgeom_utils.charts.seed_points import (
    NothingToDraw,
    describe,
    drawable,
    figure,
    fold_seeds,
    heights,
    known,
    need,
    spread,
    without,
)
from opdgeom_utils.intervals import number
from opdgeom_utils.vocabulary import NULLS, label, listed, metric_of

ANGLES = ("left_angle_mean_deg", "right_angle_mean_deg")
MASKS = ("principal_overlap", "low_magnitude_overlap")
KINDS = {"variant": "this variant", "null": "comparison"}
SLOT, GAP = 14, 10


@figure
def sparsity_comparison(
    ends: pd.DataFrame,
    reported: pd.DataFrame | None = None,
    nulls: Sequence[str] = ("shuffled", "random"),
    like: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the share of entries that each objective leaves unchanged, beside its nulls and the paper's number.

    ``ends``: one row per run: ``recipe, seed, update_sparsity`` and its nulls.
    ``reported``: from :func:`opdgeom_utils.claims.load_reported`; None draws no paper.
    ``like``: labels of variants, each with the label whose colour it takes; a row keeps the variant's own label.
    """
    what = "Share of the weight entries that stay unchanged"
    return _row_for_each_recipe(ends, "update_sparsity", reported, nulls, what, like)


@figure
def spectral_drift(
    ends: pd.DataFrame, reported: pd.DataFrame | None = None, nulls: Sequence[str] = ("shuffled", "random")
) -> Figure:
    """Draw the normalized spectral shift of each objective on a logarithmic axis.

    ``ends``, ``reported``, ``nulls``: as for :func:`sparsity_comparison`, of this metric.
    """
    what = "Normalized spectral shift, logarithmic axis"
    return _row_for_each_recipe(ends, "normalized_spectral_shift", reported, nulls, what)


@figure
def rotation_comparison(
    ends: pd.DataFrame,
    reported: pd.DataFrame | None = None,
    nulls: Sequence[str] = ("shuffled",),
) -> Figure:
    """Draw how far the leading singular subspaces turned, left and right, on a logarithmic axis.

    ``ends``, ``reported``, ``nulls``: as for :func:`sparsity_comparison`, of this metric.
    """
    table = _row_for_each_metric(ends, ANGLES, reported, nulls, "principal angle")
    said = f"Principal angles in degrees, logarithmic axis. {_said(table)}"
    return _strips(table, ANGLES[0], "principal angle (degrees)", said)


@figure
def mask_overlap(
    ends: pd.DataFrame, reported: pd.DataFrame | None = None, nulls: Sequence[str] = ("shuffled",), chance: float = 0.3
) -> Figure:
    """Draw how often visible updates fall on principal and on small entries, with the line that chance gives.

    ``ends``, ``reported``, ``nulls``: as for :func:`sparsity_comparison`, of this metric.
    ``chance``: share of the entries that each mask holds, 0 to 1.
    """
    level = number(chance, ".0%")
    table = _row_for_each_metric(ends, MASKS, reported, nulls, "mask overlap")
    said = f"Share of the visible updates that fall on each mask; chance gives {level}. {_said(table)}"
    line = (
        alt.Chart(pd.DataFrame({"chance": [chance], "text": [f"chance, {level}"]}))
        .mark_rule(strokeDash=[4, 3], strokeWidth=1.5)
        .encode(x="chance:Q", tooltip=tips(("text", "line")))
    )
    return _strips(table, MASKS[0], f"overlap (dashed line: chance, {level})", said, behind=[line])


@figure
def matched_controls(places: pd.DataFrame, metric: str) -> Figure:
    """Draw one metric of each objective at every place where runs can be compared.

    ``places``: one row per (place, run): ``place`` in words, ``recipe, seed``, the metric and, where the
    table has one, its shuffled null. Places keep their order.
    """
    need(places, ["place", "recipe", "seed", metric])
    parts = []
    for place, rows in places.groupby("place", sort=False):
        if rows.loc[:, metric].notna().any():
            parts.append(spread(rows, metric, nulls=["shuffled"]).assign(row=str(place)))
    title = metric_of(metric).title
    if not parts:
        raise NothingToDraw(metric_of(metric).words)
    table = pd.concat(parts, ignore_index=True)
    lost = [str(p) for p in places.loc[:, "place"].unique() if str(p) not in set(table.loc[:, "row"])]
    missing = f" No run reaches {listed(lost)}." if lost else ""
    said = f"{begun(title)} where runs are compared. {_said(table)}{missing}"
    return _strips(table.assign(slot=_slots(table)), metric, title, said)


@figure
def variant_strips(table: pd.DataFrame, metric: str, *, title: str | None = None) -> Figure:
    """Draw one number per run in rows, its seeds and their 95% interval; grey squares are what it is compared with.

    Pointing at a run pales all others, in every panel.

    ``table``: ``row, panel, kind, seed, value``, as the functions of :mod:`opdgeom_utils.chapters.control` return it.
    ``metric``: what ``value`` is: decides how numbers are printed.
    """
    words = title or metric_of(metric).title
    means = fold_seeds(need(table, ["row", "panel", "kind", "seed", "value"]), ["panel", "row", "kind"], metric, words)
    rows, panels = (list(dict.fromkeys(table.loc[:, column])) for column in ("row", "panel"))
    shown = metric_of(metric).shown
    seeds = known(table, "value", words).assign(role="seed")
    seeds["text"] = [f"{number(v, shown)}, seed {s}" for v, s in seeds.loc[:, ["value", "seed"]].to_numpy(object)]
    parts = [means.assign(role="mean"), seeds]
    data = pd.concat(parts).assign(kind=lambda t: t["kind"].map(KINDS))
    names = in_order(data.loc[:, "kind"])
    axis = alt.Axis(format=tick_format(metric, heights(data), 4), tickCount=4, labelOverlap=True)
    x, low = (alt.X(f"{c}:Q", title=words, axis=axis).scale(zero=False) for c in ("value", "low"))
    y = alt.Y("row:N", sort=rows, title=None, axis=alt.Axis(labelLimit=170))
    pointed = alt.selection_point(name="pointed", fields=["row"], on="pointerover", clear="pointerout")
    clear, faint = (alt.when(pointed).then(alt.value(v)).otherwise(alt.value(v / 5)) for v in (1, 0.45))
    tip = tips(("row", "run"), "panel", ("text", words))
    base = alt.Chart(data).encode(y=y, color=coloured("kind", names))
    reach, points, marks = reach_seeds_means(base, x, low, tip, shape=shaped("kind", names), sizes=(14, 55))
    layers = [
        reach.encode(opacity=clear),
        points.encode(opacity=faint),
        marks.encode(opacity=clear).add_params(pointed),
    ]
    panel = alt.layer(*layers).properties(width=180, height=20 * len(rows))
    facet = alt.Facet("panel:N", sort=panels, title=None)
    said = f"{begun(words)}: {by_panel(means, 'row')}."
    return panel.facet(facet=facet, columns=2).resolve_scale(x="independent").properties(description=said)


def by_panel(means: pd.DataFrame, row: str) -> str:
    """Say one clause per panel and row."""
    clauses = []
    for panel, own in means.groupby("panel", sort=False):
        parts = [f"{name} {text}" for name, text in zip(own.loc[:, row], own.loc[:, "text"], strict=True)]
        clauses.append(f"{panel}: {', '.join(parts)}")
    return "; ".join(clauses)


def reach_seeds_means(
    base: alt.Chart,
    x: alt.X,
    low: alt.X,
    tip: Sequence[alt.Tooltip],
    *,
    shape: alt.Shape | None = None,
    sizes: tuple[int, int] = (22, 90),
    faint: float = 0.45,
    clip: bool = False,
) -> list[alt.Chart]:
    """Intervals of the means, small points of the seeds, large ones of the means and of the paper, over one base."""
    points = base.encode(x=x, tooltip=list(tip))
    points = points if shape is None else points.encode(shape=shape)
    reach, seeds, means = (
        chart.transform_filter(f"datum.role {of}")
        for chart, of in ((base, "== 'mean'"), (points, "== 'seed'"), (points, "!= 'seed'"))
    )
    return [
        reach.mark_rule(strokeWidth=2, clip=clip).encode(x=low, x2="high:Q"),
        seeds.mark_point(filled=True, size=sizes[0], opacity=faint, clip=clip),
        means.mark_point(filled=True, size=sizes[1], opacity=1, clip=clip),
    ]


def _row_for_each_recipe(
    ends: pd.DataFrame,
    metric: str,
    reported: pd.DataFrame | None,
    nulls: Sequence[str],
    what: str,
    like: Mapping[str, str] | None = None,
) -> Figure:
    table = spread(ends, metric, nulls=nulls, reported=reported)
    own = table.loc[:, "series"] == table.loc[:, "recipe"]
    slot = table.loc[:, "series"].where(~own, "the run itself")
    lost = without(in_order(ends.loc[:, "recipe"].map(label)), table.loc[:, "recipe"])
    said = f"{what}. {describe(table)}.{lost}"
    series = table.loc[:, "series"].replace(dict(like or {}))
    table = table.assign(row=table.loc[:, "recipe"], slot=slot, series=series)
    return _strips(table, metric, metric_of(metric).title, said)


def _row_for_each_metric(
    ends: pd.DataFrame, metrics: Sequence[str], reported: pd.DataFrame | None, nulls: Sequence[str], what: str
) -> pd.DataFrame:
    """Stack the spread of several metrics, one group of rows each, a slot for every recipe and each of its nulls."""
    drawn = [m for m in metrics if need(ends, [m]).loc[:, m].notna().any()]
    parts = [spread(ends, m, nulls=nulls, reported=reported).assign(row=metric_of(m).words) for m in drawn]
    if not parts:
        raise NothingToDraw(what)
    table = pd.concat(parts, ignore_index=True)
    return table.assign(slot=_slots(table))


def _slots(table: pd.DataFrame) -> list[str]:
    """Slot of each line: a recipe's or a null's of it. Control SFT takes SFT's slot where they never meet in a row."""
    sft, control = (set(table.loc[table.loc[:, "recipe"] == r, "row"]) for r in ("SFT", "control SFT"))
    stands_in = {"control SFT": "SFT"} if sft and not sft & control else {}
    recipes = table.loc[:, "recipe"].replace(stands_in)
    own = table.loc[:, "series"].replace(stands_in)
    pairs = zip(recipes, own, strict=True)
    return [recipe if series in (recipe, PAPER) else f"{recipe}, {series}" for recipe, series in pairs]


def _said(table: pd.DataFrame) -> str:
    rows = table.loc[:, "row"].drop_duplicates()
    return " ".join(f"{row}: {describe(table.loc[table.loc[:, 'row'] == row])}." for row in rows)


def _slot_order(table: pd.DataFrame) -> list[str]:
    found = list(table.loc[:, "slot"].drop_duplicates())
    first = ["the run itself", NULLS["shuffled"].label, NULLS["random"].label, PAPER]
    recipes = ["SFT", "control SFT", *(r for r in PALETTE if r not in ("SFT", "control SFT"))]
    by_recipe = [s for recipe in recipes for s in found if s == recipe or s.startswith(f"{recipe}, ")]
    return list(dict.fromkeys([*(s for s in first if s in found), *by_recipe, *found]))


def _strips(table: pd.DataFrame, metric: str, title: str, description: str, behind: Sequence[alt.Chart] = ()) -> Figure:
    """Rows of the table's ``row``, each divided into its ``slot``s."""
    rows = list(table.loc[:, "row"].drop_duplicates())
    slots, names = _slot_order(table), in_order(table.loc[:, "series"])
    y = alt.Y("row:N", sort=rows, title=None).scale(paddingInner=0.12, paddingOuter=0.06)
    offset = alt.YOffset("slot:N", sort=slots).scale(domain=slots, paddingInner=0, paddingOuter=0.2)
    table = drawable(table, metric)
    x, low = (value_axis(alt.X(f"{c}:Q", title=title), metric, heights(table)) for c in ("value", "low"))
    tip = tips("row", ("recipe", "objective"), ("series", "shown"), ("text", "value"))
    base = alt.Chart(table).encode(y=y.axis(grid=True, labelLimit=200), yOffset=offset, color=coloured("series", names))
    layers = [*behind, *reach_seeds_means(base, x, low, tip, shape=shaped("series", names))]
    return alt.layer(*layers).properties(
        width="container", height=len(rows) * (len(slots) * SLOT + GAP), description=description
    )
