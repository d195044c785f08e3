"""Drawings of what each measure measures: a few entries, planes and spectra of matrices that the caller gives."""

from __future__ import annotations

import math
from collections.abc import Mapping

import altair as alt
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils import metrics
from opdgeom_utils.charts.palette import Figure, coloured, shaped, tips
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.intervals import number
from opdgeom_utils.metrics.spectra import stable_rank_from

PANEL, HEIGHT = 280, 190
NEAR = 256  # bf16 numbers on either side of a weight, of which the nearest are drawn
VIEW = (-0.95, 0.32)  # turn and height of the eye that looks at two planes, in radians
GREY = "#7F7F7F"
BEFORE, AFTER, EXACT, LANDS, CHANGE = "before", "after", "exact step", "after rounding", "after minus before"
SMALL, OTHER, VISIBLE = "smallest weights", "other weights", "visible change"
ROW, SHADOW = "row of the update", "its shadow"
SIZES = {BEFORE: 36, EXACT: 70, LANDS: 150}


def drawn_grid(w_ref: Float[Tensor, "out in"], w_new: Float[Tensor, "out in"]) -> Figure:
    """Draw the bf16 grid around each entry, the exact step, and where rounding takes it.

    ``w_ref``, ``w_new``: a few positive entries of bf16 before, and the same with their exact steps.
    """
    reach = 3 * float((w_new - w_ref).abs().max())
    grid, marks, said = [], [], []
    for before, after in zip(w_ref.flatten().tolist(), w_new.flatten().tolist(), strict=True):
        code = int(torch.tensor(before).bfloat16().view(torch.int16))
        near = torch.arange(max(code - NEAR, 0), code + NEAR, dtype=torch.int16).view(torch.bfloat16).double() - before
        weight, lands = f"{before:g}", float(torch.tensor(after).bfloat16()) - before
        grid += [{"weight": weight, "distance": d} for d in near.tolist() if -0.3 * reach <= d <= reach]
        places = {LANDS: lands, EXACT: after - before, BEFORE: 0.0}
        marks += [{"weight": weight, "series": s, "distance": d, "size": SIZES[s], "text": f"{d:.2g}"}
                  for s, d in places.items()]  # fmt: skip
        said.append(f"from {weight} it lands {lands:.2g} away" if lands else f"at {weight} it vanishes")
    order = list(dict.fromkeys(mark["weight"] for mark in marks))
    x = alt.X("distance:Q", title="distance from the weight").axis(tickCount=4, format="~g")
    y = alt.Y("weight:N", title="weight", sort=order)
    names = [BEFORE, EXACT, LANDS]
    lines = alt.Chart(pd.DataFrame(grid)).mark_tick(color=GREY, thickness=1, size=18).encode(x=x, y=y)
    points = alt.Chart(pd.DataFrame(marks)).mark_point(filled=True, opacity=1).encode(
        x=x, y=y, color=coloured("series", names), shape=shaped("series", names),
        size=alt.Size("size:Q", scale=None), tooltip=tips("weight", "series", ("text", "distance")),
    )  # fmt: skip
    words = f"One step from each weight, on the grid that bf16 has there: {'; '.join(said)}."
    return alt.layer(lines, points).properties(width="container", height=34 * len(order), description=words)


def drawn_planes(w_ref: Float[Tensor, "out in"], w_new: Float[Tensor, "out in"]) -> Figure:
    """Draw the leading left and right singular planes of two matrices, and the largest angle between them.

    Raises MetricInputError unless they are three by three, so that a plane of two directions can be seen.
    """
    if tuple(w_ref.shape) != (3, 3):
        raise MetricInputError(f"planes are drawn in three dimensions; expected (3, 3), found {tuple(w_ref.shape)}")
    angles = metrics.principal_angles(w_ref, w_new, k=2)
    u, _, vh = torch.linalg.svd(w_ref.double())
    u_new, _, vh_new = torch.linalg.svd(w_new.double())
    sides = {
        "left, outputs": (u[:, :2], u_new[:, :2], float(angles.left_deg[-1])),
        "right, inputs": (vh[:2].T, vh_new[:2].T, float(angles.right_deg[-1])),
    }
    panels = [_planes(*planes).properties(title=title, width=PANEL, height=HEIGHT) for title, planes in sides.items()]
    said = "; ".join(f"{title} {angle:.1f} degrees" for title, (_, _, angle) in sides.items())
    words = f"Planes of the two leading singular directions, before and after, and the largest angle: {said}."
    return alt.concat(*panels, columns=2).properties(description=words)


def _planes(before: Float[Tensor, "3 2"], after: Float[Tensor, "3 2"], angle: float) -> Figure:
    """Draw both planes as seen from the side, the two directions that are furthest apart, and the arc between them."""
    y, _, zh = torch.linalg.svd(before.T @ after)
    ends = {BEFORE: before @ y[:, -1], AFTER: after @ zh[-1]}  # the two directions of the largest angle
    ends[AFTER] = ends[AFTER] * (1.0 if ends[BEFORE] @ ends[AFTER] >= 0 else -1.0)
    corners = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    outlines = _seen({BEFORE: corners @ before.T, AFTER: corners @ after.T})
    spokes = _seen({name: torch.stack([0 * end, end]) for name, end in ends.items()})
    between = [(1 - t) * ends[BEFORE] + t * ends[AFTER] for t in torch.linspace(0, 1, 12)]
    arc = _seen({"angle": torch.stack([0.75 * line / line.norm() for line in between])})
    tag = arc.iloc[[6]].assign(text=f"{angle:.0f}°")
    x, y_axis = (
        alt.X("x:Q", axis=None).scale(domain=[-1.6, 1.6]),
        alt.Y("y:Q", axis=None).scale(domain=[-1.086, 1.086]),
    )
    names = [BEFORE, AFTER]
    base = alt.Chart(outlines).encode(x=x, y=y_axis, color=coloured("series", names), order="place:Q")
    return alt.layer(
        base.mark_line(interpolate="linear-closed", filled=True, opacity=0.2),
        base.mark_line(interpolate="linear-closed", strokeWidth=1.2),
        base.mark_line(strokeWidth=2.5).properties(data=spokes),
        base.mark_point(filled=True, size=45, opacity=1)
        .encode(tooltip=tips(("series", "direction")))
        .properties(data=spokes.query("place == 1")),
        alt.Chart(arc).mark_line(color=GREY).encode(x=x, y=y_axis, order="place:Q"),
        alt.Chart(tag).mark_text(dx=16, fontSize=13, fontWeight=600).encode(x=x, y=y_axis, text="text:N"),
    )


def _seen(lines: Mapping[str, Float[Tensor, "n 3"]]) -> pd.DataFrame:
    """Points of lines in space as an eye sees them: ``series, place, x, y``."""
    turn, height = VIEW
    across = torch.tensor([math.cos(turn), -math.sin(turn), 0.0], dtype=torch.float64)
    up = [math.sin(turn) * math.sin(height), math.cos(turn) * math.sin(height), math.cos(height)]
    rows = [
        {"series": name, "place": i, "x": float(p @ across), "y": float(p @ torch.tensor(up, dtype=torch.float64))}
        for name, points in lines.items()
        for i, p in enumerate(points.double())
    ]
    return pd.DataFrame(rows)


def drawn_spectra(w_ref: Float[Tensor, "out in"], w_new: Float[Tensor, "out in"]) -> Figure:
    """Draw the singular values of a matrix before and after, and by how much each of them moved."""
    before, after = (torch.linalg.svdvals(w.double()) for w in (w_ref, w_new))
    drawn = {BEFORE: (before, "singular value"), AFTER: (after, "singular value"), CHANGE: (after - before, "moved by")}
    rows = pd.DataFrame(
        [{"series": s, "panel": p, "index": i, "value": v} for s, (values, p) in drawn.items()
         for i, v in enumerate(values.tolist(), start=1)]
    )  # fmt: skip
    x = alt.X("index:Q", title="index").axis(format="d", tickCount=5)
    shown = [*tips("series", "index"), alt.Tooltip("value:Q", format=".3g")]
    panels = []
    for title, own in rows.groupby("panel", sort=False):
        y = alt.Y("value:Q", title=str(title)).axis(tickCount=4, format="~g")
        base = alt.Chart(own).encode(x=x, y=y, color=coloured("series", drawn), tooltip=shown)
        marks = base.mark_bar(size=1.5)
        if title != "moved by":  # the wide line shows beside the narrow one where they part
            marks = base.transform_filter(f"datum.series == '{BEFORE}'").mark_point(filled=True, size=60, opacity=0.35)
            marks += base.transform_filter(f"datum.series == '{AFTER}'").mark_point(filled=True, size=9, opacity=1)
        panels.append(marks.properties(width=PANEL, height=HEIGHT))
    shift = metrics.normalized_spectral_shift(w_ref, w_new)
    words = (
        f"Singular values before and after, and their change. The largest goes from {number(float(before[0]), '.3g')} "
        f"to {number(float(after[0]), '.3g')}; the changes together are {shift:.2%} of the values: the spectral shift."
    )
    return alt.concat(*panels, columns=2).properties(description=words)


def drawn_shadow(rows: Float[Tensor, "out 2"], direction: Float[Tensor, " 2"]) -> Figure:
    """Draw the rows of an update in a plane, their shadows on a space of one direction, and the share inside it.

    ``direction``: of the space; its length does not matter.
    """
    line = direction / direction.norm()
    shadows = (rows @ line)[:, None] * line
    share = float(shadows.square().sum() / rows.square().sum())
    tips_of = {ROW: rows.tolist(), SHADOW: shadows.tolist()}
    lines = [
        {"series": s, "line": f"{s} {i}", "x": x * end, "y": y * end} for s, ends in tips_of.items()
        for i, (x, y) in enumerate(ends) for end in (0, 1)
    ]  # fmt: skip
    falls = [
        {"line": i, "x": x, "y": y}
        for i, pair in enumerate(zip(rows.tolist(), shadows.tolist(), strict=True)) for x, y in pair
    ]  # fmt: skip
    parts = (shadows.square().sum(1) / rows.square().sum(1)).tolist()
    tags = [{"x": x, "y": y, "text": f"{p:.0%}"} for (x, y), p in zip(shadows.tolist(), parts, strict=True)]
    most = float(rows.abs().max())
    ground = pd.DataFrame([{"x": end * float(line[0]), "y": end * float(line[1])} for end in (0.0, 1.1 * most)])
    axis = alt.Axis(format="~g", tickCount=5)
    scale = alt.Scale(domain=[0, 1.1 * most], nice=False)
    x, y = alt.X("x:Q", title="first input", axis=axis, scale=scale), alt.Y("y:Q", title="second input", axis=axis)
    y = y.scale(scale)
    base = alt.Chart(pd.DataFrame(lines)).encode(x=x, y=y, detail="line:N", color=coloured("series", tips_of))
    there = base.transform_filter("datum.x || datum.y").encode(tooltip=tips("series", "x", "y"))
    layers = [
        alt.Chart(ground).mark_line(color=GREY, strokeWidth=1).encode(x=x, y=y),
        alt.Chart(pd.DataFrame(falls)).mark_line(color=GREY, strokeDash=[3, 3]).encode(x=x, y=y, detail="line:N"),
        base.mark_line(strokeWidth=3),
        there.mark_point(filled=True, size=80, opacity=1),
        alt.Chart(pd.DataFrame(tags)).mark_text(dx=26, fontSize=12).encode(x=x, y=y, text="text:N"),
    ]
    inside = ", ".join(str(tag["text"]) for tag in tags)
    words = f"Rows and their shadows on one direction. Squared length inside, each: {inside}; together {share:.0%}."
    return alt.concat(alt.layer(*layers).properties(width=PANEL, height=PANEL)).properties(description=words)


def drawn_ranks(updates: Mapping[str, Float[Tensor, "out in"]]) -> Figure:
    """Draw the squared singular values of updates over their largest: their area is the stable rank.

    ``updates``: by a name of the palette, a panel each.
    """
    panels, said = [], []
    for name, delta in updates.items():
        s = torch.linalg.svdvals(delta.double())
        rank = stable_rank_from(s)
        bars = pd.DataFrame({"index": range(1, len(s) + 1), "value": (s / s[0]).square().tolist(), "series": name})
        bars = bars.assign(left=bars["index"] - 1, zero=0.0)
        box = pd.DataFrame({"x": [0.0, rank, rank], "y": [1.0, 1.0, 0.0], "place": [0, 1, 2]})
        x = alt.X("left:Q", title="directions, largest first").scale(domain=[0, len(s)], nice=False)
        y = alt.Y("value:Q", title="square over the largest").scale(domain=[0, 1.08], nice=False)
        x, y = x.axis(tickCount=5), y.axis(values=[0, 0.5, 1])
        base = alt.Chart(bars).mark_bar(opacity=0.75).encode(
            x=x, x2="index:Q", y=y, y2="zero:Q", color=coloured("series", updates),
            tooltip=[*tips(("series", "update"), "index"), alt.Tooltip("value:Q", format=".3f")],
        )  # fmt: skip
        edge = alt.Chart(box).mark_line(color=GREY, strokeDash=[4, 3]).encode(x="x:Q", y="y:Q", order="place:Q")
        corner = alt.Chart(box.iloc[[1]].assign(text=number(rank, ".3g")))
        tag = corner.mark_text(align="left", dx=6, dy=10, fontSize=13).encode(x="x:Q", y="y:Q", text="text:N")
        layers = alt.layer(base, edge, tag)
        panels.append(layers.properties(title=name, width=PANEL, height=HEIGHT))
        said.append(f"{name} {number(rank, '.3g')} of {len(s)}")
    words = f"Squared singular values over the largest. Their area, a box, is the stable rank: {'; '.join(said)}."
    return alt.concat(*panels, columns=2).properties(description=words)


def drawn_mask(w_ref: Float[Tensor, "out in"], w_new: Float[Tensor, "out in"], *, alpha: float = 0.3) -> Figure:
    """Draw a small block of weights: the smallest are shaded, and a dot stands where bf16 shows a change.

    ``alpha``: share of the entries that the low-magnitude mask holds.
    """
    small, seen = metrics.low_magnitude_mask(w_ref, alpha=alpha), metrics.update_mask(w_ref, w_new)
    cells = pd.DataFrame(
        [{"row": i, "column": j, "series": SMALL if small[i, j] else OTHER, "seen": bool(seen[i, j]),
          "weight": f"{float(w_ref[i, j]):.3g}"} for i in range(len(w_ref)) for j in range(w_ref.shape[1])]
    )  # fmt: skip
    names = [SMALL, OTHER, VISIBLE]
    x, y = (alt.X("column:O", axis=None).scale(paddingInner=0.08), alt.Y("row:O", axis=None).scale(paddingInner=0.08))
    shown = tips("weight", ("series", "among the"), ("seen", "change visible"))
    base = alt.Chart(cells).encode(x=x, y=y, color=coloured("series", names), tooltip=shown)
    dots = base.transform_filter("datum.seen").transform_calculate(series=f"'{VISIBLE}'")
    layers = [base.mark_rect(opacity=0.45), dots.mark_point(filled=True, size=60, opacity=1)]
    overlap = metrics.mask_overlap(small, seen)
    words = (
        f"A block of weights: {VISIBLE} in {int(seen.sum())} of {seen.numel()} entries, {int((small & seen).sum())} of "
        f"them among the {int(small.sum())} smallest: an overlap of {overlap:.0%}; chance {alpha:.0%}."
    )
    return alt.layer(*layers).properties(width="container", height=24 * len(w_ref), description=words)
