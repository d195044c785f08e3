"""Figures laid out as maps: where in the network, which verdict where, and the book's one picture."""

from __future__ import annotations

import json
from collections.abc import Sequence

import altair as alt
import pandas as pd

from opdgeom_utils.charts.series import by_recipe, floor_of, listed, need, spread
from opdgeom_utils.charts.theme import (
    NULLS,
    PALETTE,
    QUARTERS,
    VERDICT_COLOURS,
    VERDICT_SHAPES,
    Figure,
    axis_format,
    colour_scale,
    in_order,
    label,
    legend,
    metric_title,
    number_format,
    shape_scale,
    value_axis,
)
from opdgeom_utils.errors import MetricInputError

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DIAGNOSTICS = {
    "update_sparsity": "update sparsity",
    "rotation": "principal angles",
    "spectral_drift": "spectral drift",
    "principal_mask": "principal mask",
    "low_magnitude_mask": "small entries",
    "both_masks": "both masks",
    "all": "several",
    "subspace_locking": "early space",
    "captured_share": "later steps",
    "stable_rank": "stable rank",
    "update_norm": "update norm",
    "hill": "Hill estimate",
    "functional_sufficiency": "projection",
    "subspace_overlap": "shared space",
    "second_moment": "second moment",
}
CONDITIONS = {
    "paper_steps": "the paper's steps",
    "seeds": "in every seed",
    "chance": "against chance",
    "settings": "other settings",
    "equal_updates": "equal updates",
    "equal_norm": "equal norm",
    "equal_accuracy": "equal accuracy",
    "share": "what survives",
    "distinct": "OPD outside both",
    "null_opd": "OPD and its null",
    "null_rlvr": "RLVR and its null",
    "null_order": "order less nulls",
    "paper_path": "the paper's path",
    "paper_path_seen": "path, seen before",
    "projection": "the paper's test",
    "spacing": "denser checkpoints",
    "path_matched": "matched SFT",
    "path_matched_seen": "matched SFT, seen",
    "path_nulls_right": "nulls, right",
    "path_nulls_left": "nulls, left",
    "channel_right": "two runs, right",
    "channel_left": "two runs, left",
    "rounding_seen": "rounding, seen",
    "projection_nulls": "other spaces",
    "projection_sweep": "sweep, one seed",
    "tokens": "fewer tokens",
    "writers": "teacher writes",
    "mixing": "mixing with RLVR",
    "power_seen": "can it tell? (seen)",
    "power": "another seed",
    "nearer": "nearer than RLVR",
    "spaces_right": "right spaces",
    "spaces_left": "left spaces",
    "moments": "mechanism",
    "token_sweep": "tokens, one seed",
    "writer_sweep": "writers, one seed",
    "domain_sweep": "domains, one seed",
    "mix_scale": "scale, one seed",
    "two_by_two": "loss or prefix",
}
WORDS_FOR = {"mean": "mean", **NULLS}
CELL = 26
SHORT = "replace(datum.label, '_proj', '')"
SPARSITY = "update_sparsity"
SIDES = ("left_angle_mean_deg", "right_angle_mean_deg")
ANGLE = "both_sides_angle_mean_deg"
# Names stand above the means and below the paper's points; a reader's own run has its name beside it.
TAGS = (("mean", True, "center", 0, -15), ("mean", False, "left", 12, 0), ("paper", True, "center", 0, 17))
UPWARDS = "mean principal angle (degrees, log)"
INK = dict(zip(VERDICT_COLOURS.values(), ("#FFFFFF", "#1A1A1A", "#FFFFFF", "#1A1A1A"), strict=True))


def localisation(
    geometry: pd.DataFrame,
    metric: str = "update_sparsity",
    *,
    against: str | None = None,
    recipes: Sequence[str] | None = None,
    modules: Sequence[str] = MODULES,
) -> alt.FacetChart:
    """Draw a metric by layer and kind of matrix, a panel for each objective, at the last step of each run.

    Parameters
    ----------
    geometry
        One row per (recipe, seed, step, matrix), as ``geometry.parquet``. The mean over seeds is drawn.
    metric
        Column to draw.
    against
        Suffix of a null: then the metric minus that null is drawn, and white means no difference. ``"mean"``: minus
        the objective's own mean over the matrices that are drawn, which shows where inside the network it differs.
    recipes
        Recipes to draw; None draws all.
    modules
        Kinds of matrix to draw, in this order.

    Raises
    ------
    MetricInputError
        If a column is missing, or no matrix of these kinds has a number.
    """
    column = f"{metric}_{against}" if against not in (None, "mean") else metric
    need(geometry, ["recipe", "seed", "step", "layer", "module", metric, column])
    rows = geometry if recipes is None else geometry.loc[geometry.loc[:, "recipe"].isin(list(recipes))]
    rows = rows.loc[rows.loc[:, "module"].isin(list(modules)) & (rows.loc[:, "layer"] >= 0)]
    last = rows.groupby(["recipe", "seed"]).agg({"step": "max"}).loc[:, "step"].rename("last").reset_index()
    rows = rows.merge(last, on=["recipe", "seed"])
    rows = rows.loc[rows.loc[:, "step"] == rows.loc[:, "last"]]
    level = rows.groupby(["recipe", "seed"])[metric].transform("mean") if against == "mean" else rows.loc[:, column]
    rows = rows.assign(value=rows.loc[:, metric] - (level if against else 0))
    keys = ["recipe", "layer", "module"]
    cells = rows.groupby(keys).agg({"value": ["mean", "min", "max", "count"]}).loc[:, "value"].reset_index()
    cells = cells.loc[cells.loc[:, "count"] > 0].assign(objective=[label(r) for r in cells.loc[:, "recipe"]])
    if cells.empty:
        raise MetricInputError(f"no matrix in a layer has a number in {column}; the table holds {sorted(modules)}")
    return _heat(cells, metric, against, modules)


def _heat(cells: pd.DataFrame, metric: str, against: str | None, modules: Sequence[str]) -> alt.FacetChart:
    names = [name for name, _ in by_recipe(cells)]
    title = metric_title(metric) + (f", minus its {WORDS_FOR.get(against, against)}" if against else "")
    shown = number_format(metric)
    extremes = [
        f"{name} lowest {_extreme(own, 'min', shown)}, highest {_extreme(own, 'max', shown)}"
        for name, own in by_recipe(cells)
    ]
    reach = float(cells.loc[:, "mean"].abs().max())
    scale = alt.Scale(scheme="blueorange", domain=[-reach, reach]) if against else alt.Scale(scheme="viridis")
    bar = alt.Legend(orient="top", format=axis_format(metric), gradientLength=200, tickCount=3, titleLimit=320)
    n_layers = cells.loc[:, "layer"].nunique()
    tip = [
        "objective:N", "layer:O", "module:N", alt.Tooltip("mean:Q", format=shown, title=title),
        alt.Tooltip("min:Q", format=shown, title="lowest seed"),
        alt.Tooltip("max:Q", format=shown, title="highest seed"), alt.Tooltip("count:Q", title="seeds"),
    ]  # fmt: skip
    y = alt.Y("layer:O", title="layer").axis(labelOverlap=True)
    x = alt.X("module:N", sort=list(modules), title=None).axis(labelAngle=-60, labelExpr=SHORT)
    heat = (
        alt.Chart(cells)
        .mark_rect()
        .encode(y=y, x=x, color=alt.Color("mean:Q", title=title, scale=scale, legend=bar), tooltip=tip)
        .properties(width=160, height=min(360, CELL * n_layers))
    )
    facet = alt.Facet("objective:N", sort=names, title=None)
    return heat.facet(facet=facet, columns=4).properties(
        description=f"Heat maps by layer and kind of matrix of {title}, for {listed(names)}. {'; '.join(extremes)}."
    )


def _extreme(own: pd.DataFrame, which: str, shown: str) -> str:
    means = own.loc[:, "mean"]
    row = own.loc[means.idxmin() if which == "min" else means.idxmax()]
    return f"{row['mean']:{shown}} in {row['module']} of layer {row['layer']}"


def scorecard(card: pd.DataFrame) -> Figure:
    """Draw the verdict of every claim: what is measured across, how it is compared down.

    Parameters
    ----------
    card
        From :func:`opdgeom_utils.claims.scorecard`.
    """
    need(card, ["id", "diagnostic", "condition", "statement", "verdict", "deciding", "reason"])
    across = [d for d in DIAGNOSTICS if d in set(card.loc[:, "diagnostic"])]
    down = [c for c in CONDITIONS if c in set(card.loc[:, "condition"])]
    strange = set(card.loc[:, "diagnostic"]).union(card.loc[:, "condition"]) - {*across, *down}
    if strange:
        raise MetricInputError(f"the scorecard has no place for {sorted(strange)}; add it to charts/maps.py")
    cell = card.groupby(["diagnostic", "condition"])
    place, among = cell.cumcount(), cell["id"].transform("count")
    column = card.loc[:, "diagnostic"].map(across.index)
    rows = card.filter(items=["id", "statement", "verdict", "deciding", "reason"]).assign(
        left=column + place / among + 0.03,
        right=column + (place + 1) / among - 0.03,
        middle=column + (place + 0.5) / among,
        condition=card.loc[:, "condition"].map(CONDITIONS),
        ink=[INK[VERDICT_COLOURS[v]] for v in card.loc[:, "verdict"]],
    )
    return _matrix(rows, [DIAGNOSTICS[d] for d in across], [CONDITIONS[c] for c in down])


def _matrix(rows: pd.DataFrame, across: Sequence[str], down: Sequence[str]) -> Figure:
    known = [v for v in VERDICT_COLOURS if v in set(rows.loc[:, "verdict"])]
    counts = [f"{int((rows.loc[:, 'verdict'] == v).sum())} {v}" for v in known]
    x = (
        alt.X("left:Q", title=None)
        .scale(domain=[0, len(across)], nice=False)
        .axis(
            values=[i + 0.5 for i in range(len(across))],
            labelExpr=f"{json.dumps(list(across))}[floor(datum.value)]",
            labelAngle=-40, orient="top", grid=False, ticks=False, domain=False, labelOverlap=False,
        )
    )  # fmt: skip
    y = alt.Y("condition:N", sort=list(down), title=None).axis(ticks=False, domain=False)
    bar = alt.Legend(orient="top", columns=2, symbolOpacity=1, symbolStrokeWidth=0)
    colours, shapes = (
        alt.Scale(domain=known, range=[kind[v] for v in known]) for kind in (VERDICT_COLOURS, VERDICT_SHAPES)
    )
    colour = alt.Color("verdict:N", title=None, scale=colours, legend=bar)
    shape = alt.Shape("verdict:N", title=None, scale=shapes, legend=bar)
    tip = ["id:N", "verdict:N", "statement:N", "reason:N"]
    base = alt.Chart(rows).encode(y=y, tooltip=tip)
    cells = base.mark_rect(cornerRadius=3).encode(x=x, x2="right:Q", color=colour)
    middle = x.copy()
    middle["shorthand"] = "middle:Q"
    ink = alt.Fill("ink:N", scale=None, legend=None)
    marks = base.mark_point(size=90, opacity=1, strokeWidth=0).encode(x=middle, shape=shape, fill=ink)
    return alt.layer(cells, marks).properties(
        width="container",
        height=CELL * len(down),
        description=f"Verdicts of {len(rows)} claims, by what is measured and how it is compared: {listed(counts)}.",
    )


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
