"""Figures of variants along something: their paths beside OPD's and RLVR's, and curves over a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from opdgeom_utils.charts.axes import begun, tick_format
from opdgeom_utils.charts.palette import Figure, coloured, tips
from opdgeom_utils.charts.rows_of_points import by_panel
from opdgeom_utils.charts.seed_points import figure, fold_seeds, heights, need
from opdgeom_utils.vocabulary import listed, metric_of

PANEL = (235, 150)  # width and height of one, in pixels


@figure
def variant_paths(table: pd.DataFrame) -> Figure:
    """Draw the stable rank of every variant in a panel of its own, with OPD's and RLVR's means and bands behind it.

    ``table``: ``panel, recipe, seed, step, value``, from :func:`opdgeom_utils.chapters.control.path_table`.
    """
    metric, keys = "stable_rank", ["panel", "recipe", "step"]
    curves = fold_seeds(need(table, [*keys, "seed", "value"]), keys, metric)
    title = metric_of(metric).title
    x = alt.X("step:Q", title="updates (square-root scale)").scale(type="sqrt")
    x = x.axis(tickCount=4, format="d", labelOverlap=True)
    axis = alt.Axis(format=tick_format(metric, heights(curves), 4), tickCount=4)
    y, low = (alt.Y(f"{c}:Q", title=title, axis=axis).scale(zero=False) for c in ("value", "low"))
    tip = [*tips(("recipe", "run"), "panel"), "step:Q", *tips(("text", title))]
    panels = list(dict.fromkeys(table.loc[:, "panel"]))
    drawn = []
    for panel in panels:
        own = alt.Chart(curves.loc[curves["panel"] == panel], title=_heading(panel))
        base = own.encode(x=x, color=coloured("recipe", curves.loc[:, "recipe"]))
        layers = [
            base.mark_area(opacity=0.15).encode(y=low, y2="high:Q"),
            base.mark_line().encode(y=y),
            base.mark_point(filled=True, size=18, opacity=1).encode(y=y, tooltip=tip),
        ]
        drawn.append(alt.layer(*layers).properties(width=PANEL[0], height=PANEL[1]))
    ends = curves.sort_values("step").groupby(["panel", "recipe"], sort=False).tail(1)
    said = (
        f"{begun(title)} against updates, a panel for each of {listed(panels)}, with OPD's and RLVR's "
        f"means and 95% intervals over seeds in each. At the last update: {by_panel(ends, 'recipe')}."
    )
    return alt.concat(*drawn, columns=2).resolve_scale(y="shared").properties(description=said)


@figure
def setting_sweep(
    table: pd.DataFrame,
    metric: str,
    *,
    setting: str,
    order: Sequence[str],
    title: str | Mapping[str, str] | None = None,
) -> Figure:
    """Draw curves over a setting whose values are named, not measured: a share of tokens, a weight of the mixture.

    ``table``: ``setting, series, panel, seed, value``, from :func:`opdgeom_utils.chapters.control.sweep`.
    ``setting``: title of the horizontal axis.
    ``order``: values of the setting from left to right; those that no run has are left out.
    ``title``: title of the vertical axes, or that of each panel; each panel has its own range.
    """
    words = metric_of(metric).title if title is None else title
    keys = ["panel", "series", "setting"]
    what = words if isinstance(words, str) else listed(dict.fromkeys(words.values()))
    curves = fold_seeds(need(table, [*keys, "seed", "value"]), keys, metric, what)
    places = [p for p in order if p in set(curves.loc[:, "setting"])]
    names, panels = (list(dict.fromkeys(table.loc[:, column])) for column in ("series", "panel"))
    x = alt.X("setting:N", sort=places, title=setting, axis=alt.Axis(labelAngle=0))
    ordered = curves.assign(
        place=curves["setting"].map(places.index), row=curves["series"] + " at " + curves["setting"]
    )
    drawn = []
    for panel in panels:
        own = ordered.loc[ordered["panel"] == panel]
        upwards = words if isinstance(words, str) else words[panel]
        axis = alt.Axis(format=tick_format(metric, heights(own), 4), tickCount=4)
        y, low = (alt.Y(f"{c}:Q", title=upwards, axis=axis).scale(zero=False) for c in ("value", "low"))
        base = alt.Chart(own, title=_heading(panel)).encode(x=x, color=coloured("series", names))
        tip = [*tips(("series", "curve"), "setting", ("text", upwards))]
        layers = [
            base.mark_rule(strokeWidth=2, opacity=0.5).encode(y=low, y2="high:Q"),
            base.mark_line().encode(y=y, order="place:Q"),
            base.mark_point(filled=True, size=40, opacity=1).encode(y=y, tooltip=tip),
        ]
        drawn.append(alt.layer(*layers).properties(width=PANEL[0], height=170))
    said = f"{begun(what)} over {setting}: {by_panel(ordered, 'row')}."
    return alt.concat(*drawn, columns=2).properties(description=said)


def _heading(panel: str) -> alt.TitleParams:
    return alt.TitleParams(panel, anchor="middle", fontSize=12, fontWeight="normal")
