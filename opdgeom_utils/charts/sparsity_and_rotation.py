"""The book's one picture: where each objective lies by sparsity and rotation, beside the paper's points."""

from __future__ import annotations

import itertools
import math

import altair as alt
import pandas as pd

from opdgeom_utils.charts.axes import log_ticks, value_axis
from opdgeom_utils.charts.palette import PALETTE, PAPER, Figure, coloured, in_order, shaped, tips
from opdgeom_utils.charts.seed_points import NothingToDraw, bare, figure, floor_of, need, spread, without
from opdgeom_utils.vocabulary import NULLS, label

SPARSITY = "update_sparsity"
SIDES = ("left_angle_mean_deg", "right_angle_mean_deg")
ANGLE = "both_sides_angle_mean_deg"
UPWARDS = "mean principal angle (degrees, log)"
WIDTH, HEIGHT = 560, 340
#: Where a name stands, by its side of the mark: alignment and offset in pixels.
TAGS = {"above": ("center", 0, -15), "right": ("left", 12, 0), "below": ("center", 0, 17)}
#: Near an end of the axis a name grows inwards, so that on a phone it stays off the axis's own labels.
EDGES = {"left": ("left", -8), "right": ("right", 8)}
EDGE = 0.2  # of the axis
LETTER = 6.5  # width of one, in pixels
CROWDED = (90, 30)  # pixels across and up: objectives nearer than that go by their colour, not by name


@figure
def hero(ends: pd.DataFrame, reported: pd.DataFrame | None = None, null: str = "shuffled") -> Figure:
    """Draw the one picture: how many entries stay unchanged, and how far the leading subspaces turn.

    ``ends``: one row per run: ``recipe, seed, update_sparsity, left_angle_mean_deg, right_angle_mean_deg`` and their
    nulls. The two sides' angles are averaged.
    ``reported``: from :func:`opdgeom_utils.claims.load_reported`; None draws no paper.
    ``null``: suffix of the null; a grey line ties each run's mean to it.
    """
    need(ends, ["recipe", "seed", SPARSITY, *SIDES])
    table = _points(ends, null, reported)
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
        f"{NULLS[null].label if null in NULLS else null} in grey, the paper's 8B model in pink. {said}.{lost}",
    )


def _points(ends: pd.DataFrame, null: str, reported: pd.DataFrame | None) -> pd.DataFrame:
    """Join the points of both axes: ``x`` and ``y`` with their intervals and words, and the name beside a mark."""
    both = ends.assign(**{ANGLE: ends.loc[:, list(SIDES)].mean(axis=1)})
    nulls = [f"{side}_{null}" for side in SIDES]
    if set(nulls) <= set(ends.columns):
        both[f"{ANGLE}_{null}"] = ends.loc[:, nulls].mean(axis=1)
    both = both.loc[both.loc[:, [SPARSITY, ANGLE]].notna().all(axis=1)]  # a point has both
    if both.empty:
        raise NothingToDraw("update sparsity and mean principal angle together")
    named = None
    if reported is not None:
        named = reported.assign(metric=reported.loc[:, "metric"].replace(";".join(SIDES), ANGLE))
    across, up = (spread(both, m, nulls=[null], reported=named) for m in (SPARSITY, ANGLE))
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
    x = alt.X("x:Q", title="update sparsity: share of entries unchanged (log)")
    x = x.scale(type="log", domain=[start, 1], nice=False).axis(
        format="~%", values=log_ticks(start, 1.0), labelOverlap=True
    )
    numbers = [*table.filter(items=["y", "y_low", "y_high"]).stack(), 0.7 * float(table.loc[:, "y"].min())]
    y, low = (value_axis(alt.Y(f"{c}:Q", title=UPWARDS), ANGLE, numbers) for c in ("y", "y_low"))
    tip = tips(
        ("recipe", "objective"), ("series", "shown"), ("x_text", "update sparsity"), ("y_text", "mean principal angle")
    )
    base = alt.Chart(table).encode(x=x, y=y, color=coloured("series", names))
    means = base.transform_filter("datum.role == 'mean'")
    ties = alt.Chart(table).transform_filter("datum.role == 'mean'").mark_line(strokeDash=[2, 3], color="#7F7F7F")
    nulls = "datum.role == 'mean' && datum.series != datum.recipe"  # hollow, so that a mark on its null is seen
    points = base.encode(shape=shaped("series", names), tooltip=tip)
    decades = math.log(max(numbers) / min(n for n in numbers if n > 0))
    along = table.loc[:, "x"].map(lambda share: math.log(share / start) / -math.log(start))
    up = table.loc[:, "y"].map(math.log) / decades if decades else table.loc[:, "y"] * 0.0
    sides = _sides(table.assign(across=along * WIDTH, up=up * HEIGHT))
    return [
        ties.encode(x=x, y=y, detail="recipe:N"),
        means.mark_rule(strokeWidth=1.5).encode(y=low, y2="y_high:Q"),
        means.mark_rule(strokeWidth=1.5).encode(x=alt.X("x_low:Q"), x2="x_high:Q"),
        points.transform_filter("datum.role == 'seed'").mark_point(filled=True, size=24, opacity=0.5),
        points.transform_filter(nulls).mark_point(filled=False, size=150, strokeWidth=2, opacity=1),
        points.transform_filter(f"datum.role != 'seed' && !({nulls})").mark_point(filled=True, size=110, opacity=1),
        *(
            alt.Chart(rows).mark_text(align=alt.Align(align), dx=dx, dy=dy, fontSize=12).encode(x=x, y=y, text="tag:N")
            for rows, align, dx, dy in _tags(table, sides, along)
        ),
    ]


def _tags(table: pd.DataFrame, sides: pd.Series, along: pd.Series) -> list[tuple[pd.DataFrame, str, int, int]]:
    """Rows whose names stand alike, with their alignment and offsets; ``along``: place on the axis, 0 to 1."""
    edges = {"left": along < EDGE, "right": along > 1 - EDGE, "": along.between(EDGE, 1 - EDGE)}
    found = []
    for (side, (align, dx, dy)), (edge, near) in itertools.product(TAGS.items(), edges.items()):
        rows = table.loc[(sides == side) & near]
        if len(rows):
            inwards = edge and align == "center"
            found.append((rows, *(EDGES[edge] if inwards else (align, dx)), dy))
    return found


def _sides(table: pd.DataFrame) -> pd.Series:
    """Where each name stands: above a mean, beside a reader's own, below the paper's; never on the tie to its null.

    ``across, up``: places in pixels. Objectives that lie close together have no name beside their marks.
    """
    means = table.loc[(table.loc[:, "role"] == "mean") & (table.loc[:, "series"] != table.loc[:, "recipe"])]
    nulls = {str(recipe): (float(x), float(y)) for recipe, x, y in means[["recipe", "across", "up"]].to_numpy()}
    runs = table.loc[(table.loc[:, "role"] == "mean") & (table.loc[:, "series"] == table.loc[:, "recipe"])]
    places = runs.loc[:, ["recipe", "across", "up"]].to_numpy().tolist()
    sides = []
    for tag, series, recipe, x, y in table[["tag", "series", "recipe", "across", "up"]].itertuples(index=False):
        side = "below" if series == PAPER else "above" if recipe in PALETTE else "right"
        if series == recipe and recipe in nulls:
            across, up = nulls[recipe][0] - x, nulls[recipe][1] - y
            if side == "above" and up > 8 and 15 * abs(across) < up * LETTER * len(tag) / 2:
                side = "below"
            elif side == "right" and across > 8 and 12 * abs(up) < 8 * across:
                side = "above"
        others = (place for place in places if place[0] != recipe)
        crowd = any(abs(a - x) < CROWDED[0] and abs(b - y) < CROWDED[1] for _, a, b in others)
        named = tag and not (crowd and series == recipe and recipe in PALETTE)
        sides.append(side if named else "")
    return pd.Series(sides, index=table.index)
