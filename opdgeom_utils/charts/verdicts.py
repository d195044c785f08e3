"""Which verdict where: the claims of one question by what is measured and how it is compared."""

from __future__ import annotations

import json
from collections.abc import Sequence

import altair as alt
import pandas as pd

from opdgeom_utils.charts.palette import VERDICT_COLOURS, VERDICT_SHAPES, Figure
from opdgeom_utils.charts.seed_points import NothingToDraw, figure, need
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.vocabulary import listed

DIAGNOSTICS = {
    "update_sparsity": "update sparsity", "rotation": "principal angles", "spectral_drift": "spectral drift",
    "principal_mask": "principal mask", "low_magnitude_mask": "small entries", "both_masks": "both masks",
    "all": "several", "subspace_locking": "early space", "captured_share": "later steps",
    "stable_rank": "stable rank", "update_norm": "update norm", "hill": "Hill estimate",
    "functional_sufficiency": "projection", "subspace_overlap": "shared space", "second_moment": "second moment",
}  # fmt: skip
CONDITIONS = {
    "paper_steps": "the paper's steps", "seeds": "in every seed", "chance": "against chance",
    "settings": "other settings", "equal_updates": "equal updates", "equal_norm": "equal norm",
    "equal_accuracy": "equal accuracy", "share": "what survives", "distinct": "OPD outside both",
    "null_opd": "OPD, and shuffled", "null_rlvr": "RLVR, and shuffled", "null_order": "order less shuffled",
    "paper_path": "the paper's path", "paper_path_seen": "path, seen before", "projection": "the paper's test",
    "spacing": "denser checkpoints", "path_matched": "matched SFT", "path_matched_seen": "matched SFT, seen",
    "path_nulls_right": "learns nothing, right", "path_nulls_left": "learns nothing, left", "steps": "order of steps",
    "channel_right": "two runs, right", "channel_left": "two runs, left", "rounding_seen": "rounding, seen",
    "projection_nulls": "other spaces", "projection_sweep": "sweep, one seed", "tokens": "fewer tokens",
    "writers": "teacher writes", "mixing": "mixing with RLVR", "mixing_seen": "mixing, seen",
    "power_seen": "can it tell? (seen)", "power": "another seed", "nearer": "nearer than RLVR",
    "nearer_seen": "nearer, seen", "spaces_right": "right spaces", "spaces_left": "left spaces",
    "moments": "mechanism", "moments_seen": "mechanism, seen", "token_sweep": "tokens, one seed",
    "writer_sweep": "writers, one seed", "domain_sweep": "domains, one seed", "mix_scale": "scale, one seed",
    "two_by_two": "loss or prefix", "null_sft": "SFT, and shuffled", "agreement": "between seeds",
    "noise_seen": "beside noise, seen", "noise_blind": "beside noise",
}  # fmt: skip
CELL, MARK = 26, 90  # pixels of a row, and of a mark that has its cell to itself
NARROW = 480  # pixels of a drawing whose names stand upright, or the last would leave it
INK = dict(zip(VERDICT_COLOURS.values(), ("#FFFFFF", "#1A1A1A", "#1A1A1A", "#FFFFFF", "#1A1A1A"), strict=True))


@figure
def scorecard(card: pd.DataFrame) -> Figure:
    """Draw the verdict of every claim: what is measured across, how it is compared down."""
    need(card, ["id", "diagnostic", "condition", "statement", "verdict", "deciding", "reason"])
    if card.empty:
        raise NothingToDraw("a verdict")
    across = [d for d in DIAGNOSTICS if d in set(card.loc[:, "diagnostic"])]
    found = set(card.loc[:, "condition"])
    down = [
        c for name in CONDITIONS for c in (name, f"{name}_seen") if c in found and (c == name or c not in CONDITIONS)
    ]
    strange = set(card.loc[:, "diagnostic"]).union(card.loc[:, "condition"]) - {*across, *down}
    if strange:
        raise MetricInputError(
            f"the scorecard has no place for {sorted(strange)}; add it to CONDITIONS or DIAGNOSTICS of charts.verdicts"
        )
    cell = card.groupby(["diagnostic", "condition"])
    place, among = cell.cumcount(), cell["id"].transform("count")
    column, row = card.loc[:, "diagnostic"].map(across.index), card.loc[:, "condition"].map(down.index)
    high = among.gt(2).add(1)  # three and more share their cell in two rows: slivers cannot be told apart
    wide = (among + high - 1) // high
    rows = card.filter(items=["id", "statement", "verdict", "deciding", "reason"]).assign(
        left=column + place % wide / wide + 0.03,
        right=column + (place % wide + 1) / wide - 0.03,
        middle=column + (place % wide + 0.5) / wide,
        top=row + place // wide / high + 0.04,
        bottom=row + (place // wide + 1) / high - 0.04,
        centre=row + (place // wide + 0.5) / high,
        size=MARK / (wide * high),
        condition=card.loc[:, "condition"].map(_words),
        ink=[INK[VERDICT_COLOURS[v]] for v in card.loc[:, "verdict"]],
    )
    return _matrix(rows, [DIAGNOSTICS[d] for d in across], [_words(c) for c in down])


def _words(condition: str) -> str:
    """Label of a condition; one about numbers that had been seen says so."""
    return CONDITIONS.get(condition) or f"{CONDITIONS[condition.removesuffix('_seen')]}, seen"


def _matrix(rows: pd.DataFrame, across: Sequence[str], down: Sequence[str]) -> Figure:
    known = [v for v in VERDICT_COLOURS if v in set(rows.loc[:, "verdict"])]
    counts = [f"{int((rows.loc[:, 'verdict'] == v).sum())} {v}" for v in known]
    x = (
        alt.X("left:Q", title=None)
        .scale(domain=[0, len(across)], nice=False)
        .axis(
            values=[i + 0.5 for i in range(len(across))],
            labelExpr=f"{json.dumps(list(across))}[floor(datum.value)]",
            labelAngle=alt.ExprRef(f"width < {NARROW} ? -90 : -40"), labelAlign="left", labelBaseline="middle",
            labelPadding=7, orient="top", grid=False, ticks=False, domain=False, labelOverlap=False,
        )
    )  # fmt: skip
    y = (
        alt.Y("top:Q", title=None)
        .scale(domain=[len(down), 0], nice=False)
        .axis(
            values=[i + 0.5 for i in range(len(down))],
            labelExpr=f"{json.dumps(list(down))}[floor(datum.value)]",
            grid=False, ticks=False, domain=False, labelOverlap=False, labelBaseline="middle",
        )
    )  # fmt: skip
    bar = alt.Legend(orient="top", columns=2, symbolOpacity=1, symbolStrokeWidth=0)
    colours, shapes = (
        alt.Scale(domain=known, range=[kind[v] for v in known]) for kind in (VERDICT_COLOURS, VERDICT_SHAPES)
    )
    colour = alt.Color("verdict:N", title=None, scale=colours, legend=bar)
    shape = alt.Shape("verdict:N", title=None, scale=shapes, legend=bar)
    tip = ["id:N", "verdict:N", "statement:N", "reason:N"]
    base = alt.Chart(rows).encode(tooltip=tip)
    cells = base.mark_rect(cornerRadius=3).encode(x=x, x2="right:Q", y=y, y2="bottom:Q", color=colour)
    middle, centre = x.copy(), y.copy()
    middle["shorthand"], centre["shorthand"] = "middle:Q", "centre:Q"
    ink = alt.Fill("ink:N", scale=None, legend=None)
    size = alt.Size("size:Q", scale=None, legend=None)
    marks = base.mark_point(opacity=1, strokeWidth=0).encode(x=middle, y=centre, shape=shape, fill=ink, size=size)
    return alt.layer(cells, marks).properties(
        width="container",
        height=CELL * len(down),
        description=f"Verdicts of {len(rows)} claims, by what is measured and how it is compared: {listed(counts)}.",
    )
