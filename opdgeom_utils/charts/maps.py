"""Where in the network: a diagnostic by layer and kind of matrix, a panel for each objective."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from opdgeom_utils.charts.series import by_recipe, listed, need
from opdgeom_utils.charts.theme import (
    NULLS,
    axis_format,
    label,
    metric_title,
    number_format,
)
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.scopes import MODULES

WORDS_FOR = {"mean": "mean", **NULLS}
CELL = 26
SHORT = "replace(datum.label, '_proj', '')"


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
