"""The book's one picture: where each objective lies by sparsity and rotation, beside the paper's points."""

from __future__ import annotations

import itertools

import altair as alt
import pandas as pd

from opdgeom_utils.charts.axes import ends_of_log, log_ticks, value_axis
from opdgeom_utils.charts.names_on_a_map import HEIGHT, Point, Scale, name_layers
from opdgeom_utils.charts.palette import PAPER, Figure, coloured, in_order, shaped, tips
from opdgeom_utils.charts.rows_of_points import ANGLES
from opdgeom_utils.charts.seed_points import NothingToDraw, bare, figure, floor_of, need, spread, without
from opdgeom_utils.vocabulary import NULLS, label

SPARSITY = "update_sparsity"
ANGLE = "both_sides_angle_mean_deg"
NULL = "shuffled"
ACROSS = "update sparsity: share of entries unchanged (log)"
UPWARDS = "mean principal angle (degrees, log)"


@figure
def hero(ends: pd.DataFrame, reported: pd.DataFrame | None = None) -> Figure:
    """Draw the one picture: how many entries stay unchanged, and how far the leading subspaces turn.

    ``ends``: one row per run: ``recipe, seed, update_sparsity, left_angle_mean_deg, right_angle_mean_deg`` and their
    shuffled nulls; a grey line ties each run's mean to its null. The two sides' angles are averaged.
    ``reported``: from :func:`opdgeom_utils.claims.load_reported`; None draws no paper.
    """
    need(ends, ["recipe", "seed", SPARSITY, *ANGLES])
    table = _points(ends, reported)
    said = "; ".join(
        f"{recipe}{'' if series == recipe else f', {series}'}: {bare(x)} unchanged, {bare(y)}"
        for role, recipe, series, x, y in table.filter(
            items=["role", "recipe", "series", "x_text", "y_text"]
        ).itertuples(index=False)
        if role != "seed"
    )
    lost = without(in_order(ends.loc[:, "recipe"].map(label)), table.loc[:, "recipe"])
    for axis in "xy":
        floor = floor_of(table.loc[:, axis])
        table = table.assign(**{c: table.loc[:, c].clip(lower=floor) for c in (axis, f"{axis}_low", f"{axis}_high")})
    table = table.assign(**{c: table.loc[:, c].clip(upper=1) for c in ("x_low", "x_high")})  # a share stays a share
    return alt.layer(*_layers(table)).properties(
        width="container",
        height=HEIGHT,
        description="Update sparsity across, mean principal angle up, both logarithmic; each objective, its "
        f"{NULLS[NULL].label} in grey, the paper's 8B model in pink. {said}.{lost}",
    )


def _points(ends: pd.DataFrame, reported: pd.DataFrame | None) -> pd.DataFrame:
    """Join the points of both axes: ``x`` and ``y`` with their intervals and words, and the name beside a mark."""
    both = ends.assign(**{ANGLE: ends.loc[:, list(ANGLES)].mean(axis=1)})
    nulls = [f"{side}_{NULL}" for side in ANGLES]
    if set(nulls) <= set(ends.columns):
        both[f"{ANGLE}_{NULL}"] = ends.loc[:, nulls].mean(axis=1)
    both = both.loc[both.loc[:, [SPARSITY, ANGLE]].notna().all(axis=1)]  # a point has both
    if both.empty:
        raise NothingToDraw("update sparsity and mean principal angle together")
    named = None
    if reported is not None:
        named = reported.assign(metric=reported.loc[:, "metric"].replace(";".join(ANGLES), ANGLE))
    across, up = (spread(both, m, nulls=[NULL], reported=named) for m in (SPARSITY, ANGLE))
    joined = across.merge(up, on=["recipe", "series", "role", "seed"], suffixes=("_x", "_y"))
    table = joined.rename(columns={"value_x": "x", "value_y": "y"}).rename(
        columns={f"{c}_{a}": f"{a}_{c}" for c in ("low", "high", "text") for a in "xy"}
    )
    own = (table.loc[:, "role"] == "mean") & (table.loc[:, "series"] == table.loc[:, "recipe"])
    paper = table.loc[:, "series"] == PAPER
    said = "paper's " + table.loc[:, "recipe"] + ", " + table.loc[:, "y_text"].str.split(" ").str[0] + "°"
    tags = table.loc[:, "recipe"].where(own, said)
    return table.assign(tag=tags.where(own | paper, ""))


def _layers(table: pd.DataFrame) -> list[alt.Chart]:
    """Ties from each mean to its null, intervals, seeds, means, and names beside the marks."""
    names = in_order(table.loc[:, "series"])
    start = 0.8 * min(share for share in table.filter(items=["x", "x_low", "x_high"]).stack() if share > 0)
    axis = alt.Axis(format="~%", values=log_ticks(start, 1.0), labelOverlap=True)
    scale = alt.Scale(type="log", domain=[start, 1], nice=False)
    numbers = [*table.filter(items=["y", "y_low", "y_high"]).stack(), 0.7 * float(table.loc[:, "y"].min())]

    def across(field: str) -> alt.X:
        return alt.X(f"{field}:Q", title=ACROSS, scale=scale, axis=axis)

    def upwards(field: str) -> alt.Y:
        return value_axis(alt.Y(f"{field}:Q", title=UPWARDS), ANGLE, numbers)

    x, y = across("x"), upwards("y")
    tip = tips(
        ("recipe", "objective"), ("series", "shown"), ("x_text", "update sparsity"), ("y_text", "mean principal angle")
    )
    base = alt.Chart(table).encode(x=x, y=y, color=coloured("series", names))
    means = base.transform_filter("datum.role == 'mean'")
    ties = alt.Chart(table).transform_filter("datum.role == 'mean'").mark_line(strokeDash=[2, 3], color="#7F7F7F")
    nulls = "datum.role == 'mean' && datum.series != datum.recipe"  # hollow, so that a mark on its null is seen
    points = base.encode(shape=shaped("series", names), tooltip=tip)
    scales = Scale(start, 1.0, log=True), Scale(*ends_of_log(numbers), log=True)
    drawn = table.loc[table.loc[:, "role"] != "seed"]
    tagged = drawn.loc[drawn.loc[:, "tag"] != ""].sort_values("y", ascending=False, kind="stable")
    return [
        ties.encode(x=x, y=y, detail="recipe:N"),
        means.mark_rule(strokeWidth=1.5).encode(y=upwards("y_low"), y2="y_high:Q"),
        means.mark_rule(strokeWidth=1.5).encode(x=alt.X("x_low:Q"), x2="x_high:Q"),
        *name_layers(tagged, (across, upwards), scales, *_drawn(drawn, *scales)),
        points.transform_filter("datum.role == 'seed'").mark_point(filled=True, size=18, opacity=0.5),
        points.transform_filter(nulls).mark_point(filled=False, size=100, strokeWidth=1.5, opacity=1),
        points.transform_filter(f"datum.role != 'seed' && !({nulls})").mark_point(filled=True, size=90, opacity=1),
    ]


def _drawn(drawn: pd.DataFrame, across: Scale, upwards: Scale) -> tuple[list[Point], list[tuple[Point, Point]]]:
    """Return marks and lines of the picture, as fractions of the plot: what no name may stand on."""

    def place(x: float, y: float) -> Point:
        return across.along(x), upwards.along(y)

    lines = []
    for _, own in drawn.loc[drawn.loc[:, "role"] == "mean"].groupby("recipe", sort=False):
        lines += list(itertools.pairwise(place(x, y) for x, y in own.loc[:, ["x", "y"]].to_numpy(float)))
        for x, y, left, right, low, high in own[["x", "y", "x_low", "x_high", "y_low", "y_high"]].to_numpy(float):
            lines += [(place(left, y), place(right, y)), (place(x, low), place(x, high))]
    return [place(x, y) for x, y in drawn.loc[:, ["x", "y"]].to_numpy(float)], lines
