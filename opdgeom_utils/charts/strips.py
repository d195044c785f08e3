"""Figures of one number per run: rows of points, the mean with its 95% interval, nulls in grey, the paper in pink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from opdgeom_utils.charts.series import describe, drawable, listed, need, spread
from opdgeom_utils.charts.theme import (
    NULLS,
    PALETTE,
    PAPER,
    Figure,
    colour_scale,
    in_order,
    legend,
    metric_title,
    shape_scale,
    value_axis,
)

ANGLES = ("left_angle_mean_deg", "right_angle_mean_deg", "left_angle_max_deg", "right_angle_max_deg")
MASKS = ("principal_overlap", "low_magnitude_overlap")
SLOT = 14
GAP = 10


def sparsity_comparison(
    ends: pd.DataFrame,
    reported: pd.DataFrame | None = None,
    nulls: Sequence[str] = ("shuffled", "random"),
    like: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the share of entries that each objective leaves unchanged, beside its nulls and the paper's number.

    Parameters
    ----------
    ends
        One row per run: ``recipe, seed, update_sparsity`` and its nulls.
    reported
        From :func:`opdgeom_utils.claims.load_reported`; None draws no paper.
    nulls
        Suffixes of the null columns to draw.
    like
        Labels of variants, each with the label whose colour it takes; a row keeps the variant's own label.
    """
    what = "Share of the weight entries that stay unchanged"
    return _one_metric(ends, "update_sparsity", reported, nulls, what, like)


def spectral_drift(
    ends: pd.DataFrame, reported: pd.DataFrame | None = None, nulls: Sequence[str] = ("shuffled", "random")
) -> Figure:
    """Draw the normalized spectral shift of each objective on a logarithmic axis.

    Parameters
    ----------
    ends
        One row per run: ``recipe, seed, normalized_spectral_shift`` and its nulls.
    reported
        From :func:`opdgeom_utils.claims.load_reported`; None draws no paper.
    nulls
        Suffixes of the null columns to draw.
    """
    return _one_metric(
        ends, "normalized_spectral_shift", reported, nulls, "Normalized spectral shift, logarithmic axis"
    )


def rotation_comparison(
    ends: pd.DataFrame,
    reported: pd.DataFrame | None = None,
    nulls: Sequence[str] = ("shuffled",),
    metrics: Sequence[str] = ANGLES[:2],
) -> Figure:
    """Draw how far the leading singular subspaces turned, left and right, on a logarithmic axis.

    Parameters
    ----------
    ends
        One row per run: ``recipe, seed``, the angles and their nulls.
    reported
        From :func:`opdgeom_utils.claims.load_reported`; the paper prints bounds for two of its angles.
    nulls
        Suffixes of the null columns to draw.
    metrics
        Angles to draw, one group of rows each.
    """
    table = _groups(ends, metrics, reported, nulls)
    said = f"Principal angles in degrees, logarithmic axis. {_said(table)}"
    return _strips(table, metrics[0], "principal angle (degrees)", said)


def mask_overlap(
    ends: pd.DataFrame,
    reported: pd.DataFrame | None = None,
    nulls: Sequence[str] = ("shuffled",),
    chance: float = 0.3,
) -> Figure:
    """Draw how often visible updates fall on principal and on small entries, with the line that chance gives.

    Parameters
    ----------
    ends
        One row per run: ``recipe, seed, principal_overlap, low_magnitude_overlap`` and their nulls.
    reported
        From :func:`opdgeom_utils.claims.load_reported`; None draws no paper.
    nulls
        Suffixes of the null columns to draw.
    chance
        Share of the entries that each mask holds, 0 to 1.
    """
    table = _groups(ends, MASKS, reported, nulls)
    said = f"Share of the visible updates that fall on each mask; chance gives {chance:.0%}. {_said(table)}"
    line = (
        alt.Chart(pd.DataFrame({"chance": [chance], "text": [f"chance, {chance:.0%}"]}))
        .mark_rule(strokeDash=[4, 3], strokeWidth=1.5)
        .encode(x="chance:Q", tooltip=alt.Tooltip("text:N", title="line"))
    )
    return _strips(table, MASKS[0], f"overlap (dashed line: chance, {chance:.0%})", said, behind=line)


def matched_controls(places: pd.DataFrame, metric: str, null: str = "shuffled") -> Figure:
    """Draw one metric of each objective at every place where runs can be compared.

    Parameters
    ----------
    places
        One row per (place, run): ``place`` in words, ``recipe, seed``, the metric and its null; for instance the
        pieces of :func:`opdgeom_utils.chapters.where.at_place`, one below the other. Places keep their order.
    metric
        Column to draw.
    null
        Suffix of the null column to draw; it is left out where the table has none.
    """
    need(places, ["place", "recipe", "seed", metric])
    parts = []
    for place, rows in places.groupby("place", sort=False):
        if rows.loc[:, metric].notna().any():
            parts.append(spread(rows, metric, nulls=[null]).assign(row=str(place)))
    table = pd.concat(parts or [spread(places, metric).assign(row="")], ignore_index=True)
    lost = [str(p) for p in places.loc[:, "place"].unique() if str(p) not in set(table.loc[:, "row"])]
    missing = f" No run reaches {listed(lost)}." if lost else ""
    said = (
        f"{metric_title(metric)[0].upper()}{metric_title(metric)[1:]} where runs are compared. {_said(table)}{missing}"
    )
    return _strips(table.assign(slot=_slots(table)), metric, metric_title(metric), said)


def _one_metric(
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
    said = f"{what}. {describe(table)}."
    series = table.loc[:, "series"].replace(dict(like or {}))
    table = table.assign(row=table.loc[:, "recipe"], slot=slot, series=series)
    return _strips(table, metric, metric_title(metric), said)


def _groups(
    ends: pd.DataFrame, metrics: Sequence[str], reported: pd.DataFrame | None, nulls: Sequence[str]
) -> pd.DataFrame:
    """Stack the spread of several metrics, one group of rows each, a slot for every recipe and each of its nulls."""
    parts = [
        spread(ends, m, nulls=nulls, reported=reported).assign(row=metric_title(m).removesuffix(" (degrees)"))
        for m in metrics
    ]
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
    known = ["the run itself", *NULLS.values(), PAPER]
    recipes = ["SFT", "control SFT", *(r for r in PALETTE if r not in ("SFT", "control SFT"))]
    by_recipe = [s for recipe in recipes for s in found if s == recipe or s.startswith(f"{recipe}, ")]
    ordered = [s for s in known if s in found] + [s for s in by_recipe if s not in known]
    return ordered + [s for s in found if s not in ordered]


def _strips(table: pd.DataFrame, metric: str, title: str, description: str, behind: alt.Chart | None = None) -> Figure:
    """Rows of the table's ``row``, each divided into its ``slot``s."""
    rows = list(table.loc[:, "row"].drop_duplicates())
    slots, names = _slot_order(table), in_order(table.loc[:, "series"])
    y = (
        alt.Y("row:N", sort=rows, title=None)
        .scale(paddingInner=0.12, paddingOuter=0.06)
        .axis(grid=True, labelLimit=200)
    )
    offset = alt.YOffset("slot:N", sort=slots).scale(domain=slots, paddingInner=0, paddingOuter=0.2)
    table = drawable(table, metric)
    numbers = table.filter(items=["value", "low", "high"]).stack()
    x, low = (value_axis(alt.X(f"{c}:Q", title=title), metric, numbers) for c in ("value", "low"))
    colour = alt.Color("series:N", title=None, scale=colour_scale(names), legend=legend(names))
    shape = alt.Shape("series:N", title=None, scale=shape_scale(names), legend=legend(names))
    tip = [
        alt.Tooltip("row:N", title="row"),
        alt.Tooltip("recipe:N", title="objective"),
        alt.Tooltip("series:N", title="shown"),
        alt.Tooltip("text:N", title="value"),
    ]
    base = alt.Chart(table).encode(y=y, yOffset=offset, color=colour)
    reach = base.transform_filter("datum.role == 'mean'").mark_rule(strokeWidth=2)
    seeds = base.transform_filter("datum.role == 'seed'").mark_point(filled=True, size=22, opacity=0.45)
    means = base.transform_filter("datum.role != 'seed'").mark_point(filled=True, size=90, opacity=1)
    layers = [
        reach.encode(x=low, x2="high:Q"),
        seeds.encode(x=x, shape=shape, tooltip=tip),
        means.encode(x=x, shape=shape, tooltip=tip),
    ]
    return alt.layer(*([behind] if behind is not None else []), *layers).properties(
        width="container", height=len(rows) * (len(slots) * SLOT + GAP), description=description
    )
