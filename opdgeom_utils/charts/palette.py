"""What every name looks like: colours, dashes and shapes by the vocabulary's records, and legends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import altair as alt

from opdgeom_utils.scopes import HEADLINE, MAIN, SFT_NULLS
from opdgeom_utils.vocabulary import NULLS, OBJECTIVES, RESCALED, ROUNDED

Figure = alt.Chart | alt.LayerChart | alt.FacetChart | alt.ConcatChart
PAPER = "paper"
_OF_OBJECTIVES = {"sft": "#0072B2", "opd": "#D55E00", "rlvr": "#009E73", "control_sft": "#56B4E9"}
_OF_OBJECTIVES |= {"opd_random_credit": "#B8860B", "rlvr_random_reward": "#6B8E23", "opd_full_vocab": "#8C3A00"}
_OF_OBJECTIVES |= {"control_sft_64": "#4B6C9E", "sft_mismatched": "#4F5D9E", "control_sft_mismatched": "#7C8FB5"}
_OF_NOTHING = {*MAIN, *SFT_NULLS} - {*HEADLINE}
_OF_NULLS = {
    "shuffled": ("#7F7F7F", [2, 3], "square"),
    "random": ("#A6A6A6", [1, 3], "triangle-up"),
    "random_walk": ("#8A8A8A", [2, 3], "square"),
    "random_walk_decaying": ("#B07D62", [6, 3], "diamond"),
    "adam_random": ("#4F5D75", [1, 3], "triangle-up"),
    "activations": ("#AA4499", [7, 2], "diamond"),
    "shuffled_time": ("#999933", [3, 2], "triangle-down"),
    "rounding": ("#8A8A8A", [1, 4], "square"),
}
OF_OPD = "OPD, other batches"
PALETTE = {
    **{OBJECTIVES[name].label: colour for name, colour in _OF_OBJECTIVES.items()},
    **{NULLS[name].label: _OF_NULLS[name][0] for name in ("shuffled", "random")},
    ROUNDED: "#E69F00",
    **{NULLS[name].label: colour for name, (colour, _, _) in _OF_NULLS.items()},
    RESCALED: "#AA4499",
    PAPER: "#CC79A7",
    OF_OPD: "#F0A080",
    "base": "#E69F00",
    "anchor": "#8F6BB3",
    "teacher": "#56777A",
    "this variant": "#8F6BB3",
    "comparison": "#7F7F7F",
    "top": "#8F6BB3",
    "random": "#E69F00",
    "raw": "#8F6BB3",
    "equal norms": "#E69F00",
    "another seed of OPD": "#D55E00",
    "preferences": "#8F6BB3",
    "straight": "#D55E00",
    "drunkards": "#6F7F8F",
    "measured": "#D55E00",
    "noise through bf16": "#6F7F8F",
    "chance": "#A6A6A6",
    "visible share": "#0072B2",
    "of it on small weights": "#009E73",
    "before": "#0072B2",
    "after": "#D55E00",
    "exact step": "#009E73",
    "after rounding": "#CC79A7",
    "after minus before": "#56777A",
    "smallest weights": "#56B4E9",
    "other weights": "#A6A6A6",
    "visible change": "#D55E00",
    "early": "#D55E00",
    "inputs": "#AA4499",
    "all but early": "#0072B2",
    "row of the update": "#0072B2",
    "its shadow": "#D55E00",
}
DASHES = {NULLS[name].label: dash for name, (_, dash, _) in _OF_NULLS.items()}
DASHES |= {OBJECTIVES[name].label: [1, 3] for name in _OF_NOTHING}
DASHES |= {RESCALED: [7, 2], ROUNDED: [2, 3], OBJECTIVES["control_sft"].label: [5, 3]}
SHAPES = {"comparison": "square", PAPER: "diamond", "anchor": "square", "teacher": "triangle-up"}
SHAPES |= {"noise through bf16": "square", "chance": "triangle-up", "this book": "square", "steps as printed": "cross"}
SHAPES |= {NULLS[name].label: shape for name, (_, _, shape) in _OF_NULLS.items()}
SHAPES |= {OBJECTIVES[name].label: "cross" for name in _OF_NOTHING}
SHAPES |= {"exact step": "triangle-up", "after rounding": "diamond"}
ACROSS = 35  # letters of a legend that stand beside each other on a phone
OTHER = ("#E69F00", "#8F6BB3", "#56777A", "#B5651D")
VERDICT_COLOURS = {
    "reproduced": "#1B7837",
    "partly": "#E1B12C",
    "not decided": "#D9CDB4",
    "the opposite": "#B2432F",
    "not testable": "#8A94A0",
}
VERDICT_MARKS = {"reproduced": "●", "partly": "◐", "not decided": "○", "the opposite": "✕", "not testable": "◌"}
_RING = "M0,-1A1,1,0,1,1,0,1A1,1,0,1,1,0,-1ZM0,-.75A.75,.75,0,1,0,0,.75A.75,.75,0,1,0,0,-.75Z"
_CROSS = "M-.9,-.65L-.65,-.9L0,-.25L.65,-.9L.9,-.65L.25,0L.9,.65L.65,.9L0,.25L-.65,.9L-.9,.65L-.25,0Z"
_DOT = "a.2,.2,0,1,0,.4,0a.2,.2,0,1,0,-.4,0Z"
_TURNS = [i * math.pi / 4 for i in range(8)]
_DOTS = "".join(f"M{0.82 * math.cos(t) - 0.2:.3f},{0.82 * math.sin(t):.3f}{_DOT}" for t in _TURNS)
VERDICT_SHAPES = {
    "reproduced": "circle",
    "partly": _RING + "M0,-1A1,1,0,0,0,0,1Z",
    "not decided": _RING,
    "the opposite": _CROSS,
    "not testable": _DOTS,
}


def in_order(names: Iterable[str]) -> list[str]:
    """Sort labels in the palette's order, unknown ones after it in their first order.

    >>> in_order(["paper", "OPD", "alpha 0.5", "SFT"])
    ['SFT', 'OPD', 'paper', 'alpha 0.5']
    """
    found = list(dict.fromkeys(names))
    return [n for n in PALETTE if n in found] + [n for n in found if n not in PALETTE]


def colour_scale(names: Iterable[str]) -> alt.Scale:
    """Colour of every label: the palette's, or a spare one.

    >>> colour_scale(["OPD", "SFT"]).to_dict()["range"]
    ['#0072B2', '#D55E00']
    """
    domain = in_order(names)
    spare = [n for n in domain if n not in PALETTE]
    colours = PALETTE | {n: OTHER[i % len(OTHER)] for i, n in enumerate(spare)}
    return alt.Scale(domain=domain, range=[colours[n] for n in domain])


def legend(names: Iterable[str]) -> alt.Legend:
    """Legend above the plot; more than four entries share rows of three, or of two long ones, so that it fits a phone.

    >>> legend(["SFT", "OPD"]).to_dict()
    {'columns': 0, 'orient': 'top', 'symbolOpacity': 1, 'symbolStrokeWidth': 0}
    """
    letters = sorted(map(len, set(names)))
    columns = 0 if len(letters) <= 4 else 3 if sum(letters[-3:]) <= ACROSS else 2
    return alt.Legend(orient="top", columns=columns, symbolOpacity=1, symbolStrokeWidth=0)


def coloured(field: str, names: Iterable[str]) -> alt.Color:
    """Colour by the labels of a field, with its legend."""
    labels = in_order(names)
    return alt.Color(f"{field}:N", title=None, scale=colour_scale(labels), legend=legend(labels))


def shaped(field: str, names: Iterable[str]) -> alt.Shape:
    """Shape by the labels of a field: circles for runs, a shape of its own for each null and for the paper.

    >>> shaped("series", ["OPD", "paper"]).to_dict()["scale"]["range"]
    ['circle', 'diamond']
    """
    labels = in_order(names)
    scale = alt.Scale(domain=labels, range=[SHAPES.get(n, "circle") for n in labels])
    return alt.Shape(f"{field}:N", title=None, scale=scale, legend=legend(labels))


def by_dash(names: Iterable[str]) -> list[tuple[list[int], list[str]]]:
    """Labels that share a dash: solid, except the control, the nulls and what bf16 shows.

    >>> by_dash(["OPD", "control SFT", "SFT"])
    [([1, 0], ['SFT', 'OPD']), ([5, 3], ['control SFT'])]
    """
    labels = in_order(names)
    dashes = {name: DASHES.get(name, [1, 0]) for name in labels}
    patterns = [list(pattern) for pattern in dict.fromkeys(map(tuple, dashes.values()))]
    return [(pattern, [name for name in labels if dashes[name] == pattern]) for pattern in patterns]


def dashed(base: alt.Chart, names: Iterable[str], **encoding: Any) -> list[alt.Chart]:
    """Lines over a chart's ``series``, each in its dash."""
    return [
        base.transform_filter(alt.FieldOneOfPredicate("series", own)).mark_line(strokeDash=dash).encode(**encoding)
        for dash, own in by_dash(names)
    ]


def tips(*fields: tuple[str, str] | str) -> list[alt.Tooltip]:
    """Lines of a tooltip: fields with their titles.

    >>> [tip.to_dict()["title"] for tip in tips(("text", "value"), "seed")]
    ['value', 'seed']
    """
    pairs = [(field, field) if isinstance(field, str) else field for field in fields]
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in pairs]
