"""Figures of cells: a diagnostic by layer and kind of matrix, and settings by how far they lie from OPD."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from opdgeom_utils.charts.axes import tick_format
from opdgeom_utils.charts.palette import Figure, tips
from opdgeom_utils.charts.seed_points import by_recipe, figure, known, need
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.intervals import number
from opdgeom_utils.scopes import MODULES
from opdgeom_utils.vocabulary import NULLS, label, listed, metric_of

CELL = 26
LIMIT = 3.0
SHORT = "replace(datum.label, '_proj', '')"


@figure
def localisation(
    geometry: pd.DataFrame,
    metric: str = "update_sparsity",
    *,
    against: str | None = None,
    recipes: Sequence[str] | None = None,
    modules: Sequence[str] = MODULES,
) -> Figure:
    """Draw a metric by layer and kind of matrix, a panel for each objective, at the last step of each run.

    ``geometry``: one row per (recipe, seed, step, matrix), as ``geometry.parquet``. The mean over seeds is drawn.
    ``against``: suffix of a null: then the metric minus that null is drawn, and white means no difference. ``"mean"``:
    minus the objective's own mean over the matrices that are drawn, which shows where inside the network it differs.
    Raises MetricInputError if a column is missing, or the table has no matrix of these kinds in a layer.
    """
    column = f"{metric}_{against}" if against not in (None, "mean") else metric
    need(geometry, ["recipe", "seed", "step", "layer", "module", metric, column])
    rows = geometry if recipes is None else geometry.loc[geometry.loc[:, "recipe"].isin(list(recipes))]
    rows = rows.loc[rows.loc[:, "module"].isin(list(modules)) & (rows.loc[:, "layer"] >= 0)]
    if rows.empty:
        found = sorted(set(geometry.loc[:, "module"]))
        raise MetricInputError(f"no matrix in a layer is one of {list(modules)}; the table holds {found}")
    rows = rows.loc[rows.loc[:, "step"] == rows.groupby(["recipe", "seed"])["step"].transform("max")]
    level = rows.groupby(["recipe", "seed"])[metric].transform("mean") if against == "mean" else rows.loc[:, column]
    rows = rows.assign(value=rows.loc[:, metric] - (level if against else 0))
    cells = rows.groupby(["recipe", "layer", "module"]).agg({"value": ["mean", "min", "max", "count"]})
    null = NULLS[against].label if against in NULLS else against
    title = metric_of(metric).title + (f", minus its {null}" if against else "")
    return _heat(known(cells.loc[:, "value"].reset_index(), "mean", title), metric, against, title, modules)


def _heat(cells: pd.DataFrame, metric: str, against: str | None, title: str, modules: Sequence[str]) -> Figure:
    shown, means = metric_of(metric).shown, cells.loc[:, "mean"]
    ends = {end: [number(n, shown) for n in cells.loc[:, end]] for end in ("mean", "min", "max")}
    cells = cells.assign(
        objective=cells.loc[:, "recipe"].map(label), **{f"{end}_text": text for end, text in ends.items()}
    )
    names = [name for name, _ in by_recipe(cells)]
    low, high = float(means.min()), float(means.max())
    reach = max(-low, high) or 1.0
    scale = alt.Scale(scheme="blueorange", domain=[-reach, reach]) if against else alt.Scale(scheme="viridis")
    if not against and low == high:  # one colour: give it a range, or its legend reads the same at both ends
        scale = alt.Scale(scheme="viridis", domain=[min(low, 0.0), max(high, 0.0) or 1.0])
    ticks = tick_format(metric, [-reach, reach] if against else [low, high], 3)
    bar = alt.Legend(orient="top", format=ticks, gradientLength=200, tickCount=3, titleLimit=320)
    tip = [
        *tips("objective"), "layer:O", "module:N",
        *tips(("mean_text", title), ("min_text", "lowest seed"), ("max_text", "highest seed")),
        alt.Tooltip("count:Q", title="seeds"),
    ]  # fmt: skip
    y = alt.Y("layer:O", title="layer").axis(labelOverlap=True)
    x = alt.X("module:N", sort=list(modules), title=None).axis(labelAngle=-60, labelExpr=SHORT)
    colour = alt.Color("mean:Q", title=title, scale=scale, legend=bar)
    heat = alt.Chart(cells).mark_rect().encode(y=y, x=x, color=colour, tooltip=tip)
    heat = heat.properties(width=160, height=min(360, CELL * cells.loc[:, "layer"].nunique()))
    said = "; ".join(
        f"{name} lowest {_cell(own, own['mean'].idxmin())}, highest {_cell(own, own['mean'].idxmax())}"
        for name, own in by_recipe(cells)
    )
    return heat.facet(facet=alt.Facet("objective:N", sort=names, title=None), columns=4).properties(
        description=f"Heat maps by layer and kind of matrix of {title}, for {listed(names)}. {said}."
    )


def _cell(cells: pd.DataFrame, index: object) -> str:
    row = cells.loc[index]
    return f"{row['mean_text']} in {row['module']} of layer {row['layer']}"


@figure
def settings_against_seeds(ranges: pd.DataFrame) -> Figure:
    """Draw one cell for each run and diagnostic: its distance from OPD's mean, 1 being the reach of a further seed.

    ``ranges``: from :func:`opdgeom_utils.chapters.settings.in_seed_ranges`: settings first, OPD's own seeds after them.
    """
    need(ranges, ["run", "metric", "value", "distance", "inside"])
    runs, metrics = (list(ranges.loc[:, c].drop_duplicates()) for c in ("run", "metric"))
    defined = np.isfinite(ranges.loc[:, "distance"].to_numpy(float))
    table = known(ranges, "distance", "a run's distance from OPD")
    table = table.assign(
        shown=[number(d, "+.1f") for d in table.loc[:, "distance"]], text=[number(v) for v in table.loc[:, "value"]]
    )
    scale = alt.Scale(scheme="blueorange", domain=[-LIMIT, LIMIT], clamp=True)
    base = alt.Chart(table).encode(
        x=alt.X("metric:N", sort=metrics, title=None).axis(labelAngle=-35, labelLimit=150, orient="bottom"),
        y=alt.Y("run:N", sort=runs, title=None).axis(labelLimit=200),
    )
    bar = alt.Legend(orient="top", titleLimit=260, gradientLength=180, format="+.0f")
    colour = alt.Color("distance:Q", title="distance (1: reach of a further seed)", scale=scale, legend=bar)
    tip = [
        *tips("run", "metric", ("text", "value")), alt.Tooltip("distance:Q", format="+.2f"),
        *tips(("inside", "a seed could have done it")),
    ]  # fmt: skip
    strong = alt.condition(f"abs(datum.distance) > {0.6 * LIMIT}", alt.value("#FFFFFF"), alt.value("#222222"))
    cells = base.mark_rect(stroke="#FFFFFF").encode(color=colour, tooltip=tip)
    numbers = base.mark_text(fontSize=11).encode(text="shown:N", color=strong)
    outside = ", ".join(
        f"{run} {metric} {shown}"
        for run, metric, shown, inside in table[["run", "metric", "shown", "inside"]].itertuples(index=False)
        if not inside
    )
    lost = ", ".join(f"{run} {metric}" for run, metric in ranges.loc[~defined, ["run", "metric"]].to_numpy())
    said = f"Distance of each run from OPD's mean, in reaches of a further seed. Outside: {outside or 'none'}."
    said += f" Undefined: {lost}." if lost else ""
    return alt.layer(cells, numbers).properties(width="container", height=26 * len(runs), description=said)
