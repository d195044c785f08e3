"""Every statistic against coherence: the curve of the ladder, and every run beside it."""

from __future__ import annotations

import textwrap

import altair as alt
import pandas as pd

from opdgeom_utils.charts.axes import value_axis
from opdgeom_utils.charts.palette import OF_OPD, Figure, coloured, in_order, shaped, tips
from opdgeom_utils.charts.seed_points import figure, known, need
from opdgeom_utils.intervals import number
from opdgeom_utils.vocabulary import label, metric_of

WIDTH, HEIGHT, TITLE = 160, 140, 28  # pixels, and letters in a line of a title
CURVE = "#7F7F7F"


@figure
def one_curve(points: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw each statistic against coherence, a small panel each: the curve in grey, every run a point.

    ``points``: ``recipe, seed, statistic, metric, coherence, value``, from
    :func:`opdgeom_utils.chapters.one_curve.against_coherence`.
    ``curves``: ``statistic, coherence, value``: the corners of the curve.
    """
    drawn = known(need(points, ["recipe", "seed", "statistic", "metric", "coherence", "value"]), "value", "a statistic")
    null = drawn["recipe"].str.startswith("opd_random_credit")
    ladder = drawn["recipe"].str.startswith("opd_") & ~null & (drawn["recipe"] != "opd_full_vocab")
    shown = drawn["recipe"].map(label).where(~ladder, OF_OPD).where(~null, label("opd_random_credit"))
    drawn = drawn.assign(run=drawn["recipe"].map(label) + ", seed " + drawn["seed"].astype(str), series=shown)
    names = in_order(drawn["series"])
    charts = []
    for statistic, metric in drawn[["statistic", "metric"]].drop_duplicates().itertuples(index=False):
        own = drawn.loc[drawn["statistic"] == statistic]
        texts = [number(value, metric_of(str(metric)).shown) for value in own["value"]]
        own = own.assign(text=texts, at=[f"{c:.2%}" for c in own["coherence"]])
        x = value_axis(alt.X("coherence:Q", title="coherence"), "coherence", own["coherence"], log=False, ticks=3)
        y = value_axis(alt.Y("value:Q", title=None), str(metric), own["value"], log=False)
        line = alt.Chart(curves[curves["statistic"] == statistic]).mark_line(color=CURVE, strokeWidth=1.5)
        dots = alt.Chart(own).mark_point(filled=True, size=45, opacity=0.8)
        tip = tips(("run", "run"), ("at", "coherence"), ("text", "value"))
        dots = dots.encode(x=x, y=y, color=coloured("series", names), shape=shaped("series", names), tooltip=tip)
        panel = alt.layer(line.encode(x=x, y=y), dots)
        charts.append(
            panel.properties(
                width=WIDTH, height=HEIGHT, title=alt.TitleParams(textwrap.wrap(statistic, TITLE), fontSize=11)
            )
        )
    span = drawn.groupby("series")["coherence"].agg(["min", "max"])
    said = "; ".join(f"{n}: coherence {span.loc[n, 'min']:.2%} to {span.loc[n, 'max']:.2%}" for n in names)
    words = f"{len(charts)} statistics against coherence, with the curve of OPD's ladder in grey. {said}."
    return alt.concat(*charts, columns=3).properties(description=words)
