"""Figures of the chapter on noise: walks, runs and masks beside what noise gives, and three sliders."""

from __future__ import annotations

import itertools

import altair as alt
import numpy as np
import pandas as pd

from opdgeom_utils.charts.axes import QUARTERS, ends_of_log, value_axis
from opdgeom_utils.charts.names_on_a_map import HEIGHT, Scale, name_layers
from opdgeom_utils.charts.palette import Figure, coloured, shaped, tips
from opdgeom_utils.charts.seed_points import figure, known, need
from opdgeom_utils.intervals import number

LITERAL = "steps as printed"
GATED = "noise through bf16"
WALKS_TALL = 0.42  # height over width of that figure, on a desktop
NEXT = 0.01  # half of the distance between two points of the curve, in powers of ten


@figure
def walks(table: pd.DataFrame) -> Figure:
    """Draw walks that turn at random beside a straight one of as many steps.

    ``table``: ``walker, series, step, x, y``: places after each step; ``series`` is ``drunkards`` or ``straight``.
    """
    need(table, ["walker", "series", "step", "x", "y"])
    rows = known(known(table, "x", "a walk"), "y", "a walk")
    rows = rows.assign(distance=(rows["x"] ** 2 + rows["y"] ** 2) ** 0.5)
    last = rows.sort_values("step").groupby("walker", sort=False).tail(1)
    rows, last = (part.assign(text=part["distance"].map(lambda d: number(d, ".3g"))) for part in (rows, last))
    paces = alt.Axis(format="~r", tickCount=5)  # "~g" would write 20 as 2e+1 here
    across, aside = (rows[name].to_numpy(float) for name in ("x", "y"))
    half = float(max(np.abs(aside).max(), WALKS_TALL * np.ptp(across) / 2))  # a metre is a metre
    x, y = alt.X("x:Q", title="metres ahead", axis=paces), alt.Y("y:Q", title="metres aside", axis=paces)
    y = y.scale(domain=[-half, half])
    base = alt.Chart(rows).encode(x=x, y=y, detail="walker:N", color=coloured("series", rows["series"]))
    lines = base.mark_line(strokeWidth=1.2, opacity=0.7).encode(order="step:Q")
    shown = tips("walker", "step", ("text", "distance from the start"))
    ends = base.mark_point(filled=True, size=60, opacity=1).encode(tooltip=shown).properties(data=last)
    means = last.groupby("series")["distance"].agg("mean").to_dict()
    said = ", ".join(f"{name} {number(mean, '.3g')}" for name, mean in means.items())
    return alt.layer(lines, ends).properties(
        width="container", height=260, description=f"Walks on a plane. Distance from the start at the end: {said}."
    )


@figure
def beside_noise(runs: pd.DataFrame) -> Figure:
    """Draw the unchanged share of runs, measured, against what noise gives their schedule and weights.

    ``runs``: ``run, kind, source, predicted, low, high, sparsity``: shares from 0 to 1. ``kind`` gives the colour,
    ``source`` the shape; ``low`` to ``high`` is the range of the prediction. Where it has ``literal``, the prediction
    by another reading of the steps is drawn too. Where it has ``tag``, runs with one are named by it.
    """
    need(runs, ["run", "kind", "source", "predicted", "low", "high", "sparsity"])
    rows = known(known(runs, "predicted", "update sparsity"), "sparsity", "update sparsity")
    if "literal" in rows:
        other = rows.loc[rows["literal"].notna()]
        rows = pd.concat([rows, other.assign(predicted=other["literal"], low=other["literal"], high=other["literal"],
                                             source=LITERAL)], ignore_index=True)  # fmt: skip
    rows = rows.assign(**{c: rows[c].fillna(rows["predicted"]) for c in ("low", "high")})
    texts = {"measured": "sparsity", "noise": "predicted"}
    rows = rows.assign(**{text: rows[column].map(lambda share: number(share, ".1%")) for text, column in texts.items()})

    def across(field: str) -> alt.X:
        x = alt.X(f"{field}:Q", title="unchanged, as noise gives it").scale(domain=[0, 1])
        return x.axis(format=".0%", values=QUARTERS)

    def upwards(field: str) -> alt.Y:
        y = alt.Y(f"{field}:Q", title="unchanged, measured").scale(domain=[0, 1])
        return y.axis(format=".0%", values=QUARTERS)

    x, y = across("predicted"), upwards("sparsity")
    colour = coloured("kind", rows["kind"]).legend(orient="top", columns=2, symbolOpacity=1)
    shape = shaped("source", rows["source"]).legend(orient="top", columns=1)
    diagonal = alt.Chart(pd.DataFrame({"at": [0.0, 1.0]})).mark_line(color="#7F7F7F", strokeDash=[2, 3], strokeWidth=1)
    base = alt.Chart(rows).encode(y=y, color=colour)
    bands = base.mark_rule(strokeWidth=2, opacity=0.5).encode(x=alt.X("low:Q"), x2="high:Q")
    points = base.mark_point(filled=True, size=75, opacity=0.95).encode(
        x=x, shape=shape, tooltip=tips("run", "measured", ("noise", "noise gives"), "source")
    )
    best = rows.loc[rows["source"] != LITERAL]
    tagged = best.rename(columns={"predicted": "x", "sparsity": "y"})
    tagged = tagged.loc[tagged["tag"].fillna("").ne("")].sort_values("y") if "tag" in tagged else tagged.iloc[:0]
    ends = rows[["low", "high", "sparsity"]].to_numpy(float)
    lines = [((0.0, 0.0), (1.0, 1.0)), *(((low, at), (high, at)) for low, high, at in ends if low < high)]
    spots = [(a, b) for a, b in rows[["predicted", "sparsity"]].to_numpy(float)]
    plot = Scale(0.0, 1.0), Scale(0.0, 1.0)
    names = name_layers(tagged, (across, upwards), plot, spots, lines, size=11) if len(tagged) else []
    said = "; ".join(f"{r} {n}, measured {m}" for r, n, m in best[["run", "noise", "measured"]].values.tolist())
    return alt.layer(diagonal.encode(x=alt.X("at:Q"), y=alt.Y("at:Q")), bands, points, *names).properties(
        width="container", height=HEIGHT, description=f"Share of entries unchanged, noise across, measured up. {said}."
    )


@figure
def gated_overlaps(table: pd.DataFrame) -> Figure:
    """Draw overlaps of update masks beside what bf16 alone gives masks of those densities, and beside chance.

    ``table``: ``pair, measured, gated, chance``: shares from 0 to 1.
    """
    need(table, ["pair", "measured", "gated", "chance"])
    names = {"measured": "measured", "gated": GATED, "chance": "chance"}
    long = table.melt(id_vars="pair", value_vars=list(names), var_name="what", value_name="overlap")
    rows = known(long.assign(series=[names[what] for what in long["what"]]), "overlap", "overlap")
    rows = rows.assign(text=rows["overlap"].map(lambda share: number(share, ".1%")))
    y = alt.Y("pair:N", sort=table["pair"].tolist(), title=None).axis(labelLimit=150)
    x = alt.X("overlap:Q", title="overlap").scale(domain=[0, 1]).axis(format=".0%", values=QUARTERS)
    base = alt.Chart(rows).encode(x=x, y=y, color=coloured("series", names.values()))
    points = base.mark_point(filled=True, size=75, opacity=0.95).encode(
        shape=shaped("series", names.values()), tooltip=tips("pair", "series", ("text", "overlap"))
    )
    said = []
    for pair, own in rows.groupby("pair", sort=False):
        said.append(f"{pair}: " + ", ".join(f"{s} {t}" for s, t in own[["series", "text"]].values.tolist()))
    return alt.layer(points).properties(
        width="container",
        height=26 * rows["pair"].nunique(),
        description=f"Overlaps of update masks. {'; '.join(said)}.",
    )


@figure
def noise_sliders(curve: pd.DataFrame, marks: pd.DataFrame) -> Figure:
    """Draw what bf16 shows of noise against its size, a point that three sliders move, and runs as they were measured.

    ``curve``: ``power, relative, series, value``: shares against the displacement over the size of the weights, whose
    decimal logarithm ``power`` is in steps of 0.02.
    ``marks``: ``run, source, relative, value``: the visible share of runs, where noise along their schedule would be.
    """
    need(curve, ["power", "relative", "series", "value"])
    need(marks, ["run", "source", "relative", "value"])
    rows, runs = known(curve, "value", "visible share"), known(marks, "value", "visible share")
    rows = rows.loc[rows["relative"] > 0]
    runs = runs.loc[runs["relative"] > 0]
    binds = {
        "rate_power": ("learning rate, power of ten ", -7, -3, -6.0),
        "updates_power": ("updates, power of ten ", 0, 5, 2.5),
        "size_power": ("size of the weights, power of ten ", -3, 0, -1.6),
    }
    sliders = [
        alt.param(name=name, value=value, bind=alt.binding_range(min=low, max=high, step=0.1, name=words))
        for name, (words, low, high, value) in binds.items()
    ]
    here = "clamp(rate_power + updates_power / 2 - size_power, -5, 0)"
    sizes = [*rows["relative"], *runs["relative"]]

    def across(field: str) -> alt.X:
        x = alt.X(f"{field}:Q", title="displacement / size of the weights")
        return value_axis(x, "relative", sizes, log=True)

    def upwards(field: str) -> alt.Y:
        y = alt.Y(f"{field}:Q", title="share of entries").scale(domain=[0, 1])
        return y.axis(format=".0%", values=QUARTERS)

    x, y = across("relative"), upwards("value")
    colour = coloured("series", rows["series"]).legend(orient="top", columns=1)
    shown = [*tips("series"), alt.Tooltip("value:Q", format=".1%"), alt.Tooltip("relative:Q", format=".2e")]
    base = alt.Chart(rows).encode(x=x, y=y, color=colour)
    now = base.transform_filter(f"abs(datum.power - {here}) <= {NEXT}")
    points = now.mark_point(filled=True, size=130, opacity=1).encode(tooltip=shown)
    words = now.mark_text(dx=-24, dy=-12, fontSize=12).encode(text=alt.Text("value:Q", format=".0%"))
    measured = alt.Chart(runs).mark_point(filled=True, size=70, opacity=1, color="#D55E00")
    measured = measured.encode(
        x=x,
        y=y,
        shape=shaped("source", runs["source"]).legend(orient="top", columns=1),
        tooltip=[*tips("run"), alt.Tooltip("value:Q", format=".1%")],
    )
    scales = Scale(*ends_of_log(sizes), log=True), Scale(0.0, 1.0)
    spots, curves = (
        [(scales[0].along(a), b) for a, b in own[["relative", "value"]].to_numpy(float)]
        for own in (runs, rows.sort_values(["series", "relative"]))
    )
    lines = [(one, other) for one, other in itertools.pairwise(curves) if one[0] < other[0]]
    tagged = runs.rename(columns={"run": "tag", "relative": "x", "value": "y"})
    names = name_layers(tagged, (across, upwards), scales, spots, lines, size=11)
    said = ", ".join(f"{run} {number(value, '.1%')}" for run, value in runs[["run", "value"]].values.tolist())
    return (
        alt.layer(base.mark_line(), points, words, measured, *names)
        .add_params(*sliders)
        .properties(
            width="container",
            height=340,
            description="Visible share under noise against its displacement over the size of the weights, and the part "
            f"of it on the 30% smallest weights; sliders move a point along both. Measured visible shares: {said}.",
        )
    )
