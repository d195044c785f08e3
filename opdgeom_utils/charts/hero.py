"""The book's one picture: where each objective lies by sparsity and rotation, beside the paper's points."""

from __future__ import annotations

import altair as alt
import pandas as pd

from opdgeom_utils.charts.series import floor_of, need, spread
from opdgeom_utils.charts.theme import (
    NULLS,
    PALETTE,
    QUARTERS,
    Figure,
    colour_scale,
    in_order,
    legend,
    shape_scale,
    value_axis,
)

SPARSITY = "update_sparsity"
SIDES = ("left_angle_mean_deg", "right_angle_mean_deg")
ANGLE = "both_sides_angle_mean_deg"
# Names stand above the means and below the paper's points; a reader's own run has its name beside it.
TAGS = (("mean", True, "center", 0, -15), ("mean", False, "left", 12, 0), ("paper", True, "center", 0, 17))
UPWARDS = "mean principal angle (degrees, log)"


def hero(ends: pd.DataFrame, reported: pd.DataFrame | None = None, null: str = "shuffled") -> Figure:
    """Draw the one picture: how many entries stay unchanged, and how far the leading subspaces turn.

    Parameters
    ----------
    ends
        One row per run: ``recipe, seed, update_sparsity, left_angle_mean_deg, right_angle_mean_deg`` and their nulls.
        The two sides' angles are averaged.
    reported
        From :func:`opdgeom_utils.claims.load_reported`; None draws no paper.
    null
        Suffix of the null; a grey line ties each run's mean to it.
    """
    need(ends, ["recipe", "seed", SPARSITY, *SIDES])
    table, pairs = _hero_table(ends, null, reported)
    floor = floor_of(table.loc[:, "y"])
    table = table.assign(**{c: table.loc[:, c].clip(lower=floor) for c in ("y", "y_low", "y_high")})
    table = table.assign(**{c: table.loc[:, c].clip(0, 1) for c in ("x_low", "x_high")})  # a share stays a share
    return alt.layer(*_hero_layers(table)).properties(
        width="container",
        height=340,
        description="Update sparsity across, mean principal angle up, logarithmic; each objective, its "
        f"{NULLS.get(null, null)} in grey, the paper's 8B model in pink. {'; '.join(pairs)}.",
    )


def _hero_layers(table: pd.DataFrame) -> list[alt.Chart]:
    """Ties from each mean to its null, intervals, seeds, means, and names beside the marks."""
    names, known = in_order(table.loc[:, "series"]), table.loc[:, "recipe"].isin(list(PALETTE))
    x = alt.X("x:Q", title="update sparsity: share of entries unchanged").scale(domain=[0, 1])
    x = x.axis(format=".0%", values=QUARTERS)
    heights = [*table.filter(items=["y", "y_low", "y_high"]).stack(), 0.7 * float(table.loc[:, "y"].min())]
    y, low = (value_axis(alt.Y(f"{c}:Q", title=UPWARDS), ANGLE, heights, log=True) for c in ("y", "y_low"))
    colour = alt.Color("series:N", title=None, scale=colour_scale(names), legend=legend(names))
    shape = alt.Shape("series:N", title=None, scale=shape_scale(names), legend=legend(names))
    tip = [
        alt.Tooltip("recipe:N", title="objective"), alt.Tooltip("series:N", title="shown"),
        alt.Tooltip("x_text:N", title="update sparsity"), alt.Tooltip("y_text:N", title="mean principal angle"),
    ]  # fmt: skip
    base = alt.Chart(table).encode(x=x, y=y, color=colour)
    means = base.transform_filter("datum.role == 'mean'")
    ties = alt.Chart(table).transform_filter("datum.role == 'mean'").mark_line(strokeDash=[2, 3], color="#7F7F7F")
    left = alt.X("x_low:Q")
    layers = [
        ties.encode(x=x, y=y, detail="recipe:N"),
        means.mark_rule(strokeWidth=1.5).encode(y=low, y2="y_high:Q"),
        means.mark_rule(strokeWidth=1.5).encode(x=left, x2="x_high:Q"),
        base.transform_filter("datum.role == 'seed'")
        .mark_point(filled=True, size=24, opacity=0.5)
        .encode(shape=shape, tooltip=tip),
        base.transform_filter("datum.role != 'seed'")
        .mark_point(filled=True, size=110, opacity=1)
        .encode(shape=shape, tooltip=tip),
        *(
            alt.Chart(table.loc[(table.loc[:, "tag"] != "") & (table.loc[:, "role"] == role) & (known == ours)])
            .mark_text(align=alt.Align(align), dx=dx, dy=dy, fontSize=12)
            .encode(x=x, y=y, text="tag:N")
            for role, ours, align, dx, dy in TAGS
            if ((table.loc[:, "role"] == role) & (known == ours)).any()
        ),
    ]
    return layers


def _hero_table(ends: pd.DataFrame, null: str, reported: pd.DataFrame | None) -> tuple[pd.DataFrame, list[str]]:
    """Join the points of both axes, and say each pair in words."""
    both = ends.assign(**{ANGLE: ends.loc[:, list(SIDES)].mean(axis=1)})
    nulls = [f"{side}_{null}" for side in SIDES]
    if set(nulls) <= set(ends.columns):
        both[f"{ANGLE}_{null}"] = ends.loc[:, nulls].mean(axis=1)
    named = None
    if reported is not None:
        named = reported.assign(metric=reported.loc[:, "metric"].replace(";".join(SIDES), ANGLE))
    parts = [spread(both, m, nulls=[null], reported=named) for m in (SPARSITY, ANGLE)]
    keys = ["recipe", "series", "role", "seed"]
    joined = parts[0].merge(parts[1], on=keys, suffixes=("_x", "_y"))
    table = joined.rename(columns={"value_x": "x", "value_y": "y"}).rename(
        columns={f"{c}_{a}": f"{a}_{c}" for c in ("low", "high", "text") for a in "xy"}
    )
    own = (table.loc[:, "role"] == "mean") & (table.loc[:, "series"] == table.loc[:, "recipe"])
    paper = table.loc[:, "role"] == "paper"
    printed = table.loc[:, "y_text"].str.split(" ").str[0]
    tags = table.loc[:, "recipe"].where(own, "paper: " + printed + "°")
    table["tag"] = tags.where(own | paper, "")
    said = table.loc[table.loc[:, "role"] != "seed"]
    columns = ["recipe", "series", "x_text", "y_text"]
    short = said.filter(items=columns).apply(lambda texts: texts.str.split(" (", regex=False).str[0])
    words = [
        f"{recipe}{'' if series == recipe else f', {series}'}: {x} unchanged, {y}"
        for recipe, series, x, y in short.itertuples(index=False)
    ]
    return table, words
