"""One palette, one typeface, one wording for every figure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

import altair as alt

_Channel = TypeVar("_Channel", alt.X, alt.Y)
Figure = alt.LayerChart | alt.FacetChart
LABELS = {"sft": "SFT", "opd": "OPD", "rlvr": "RLVR", "control_sft": "control SFT"}
PAPER = "paper"
NULLS = {"shuffled": "shuffled null", "random": "random null"}
ROUNDED = "as bf16 shows it"
SERIES = {**NULLS, "bf16": ROUNDED}
PATH_NULLS = {
    "random_walk": "random walk",
    "random_walk_decaying": "decaying walk",
    "adam_random": "Adam on noise",
    "activations": "real inputs, random signals",
    "shuffled_time": "own steps shuffled",
    "rounding": "rounding noise alone",
}
RESCALED = "last update, rescaled"
PALETTE = {
    "SFT": "#0072B2",
    "OPD": "#D55E00",
    "RLVR": "#009E73",
    "control SFT": "#56B4E9",
    "shuffled null": "#7F7F7F",
    "random null": "#A6A6A6",
    ROUNDED: "#B5651D",
    "random walk": "#8A8A8A",
    "decaying walk": "#A6A6A6",
    "Adam on noise": "#6F7F8F",
    "real inputs, random signals": "#AA4499",
    "own steps shuffled": "#999933",
    "rounding noise alone": "#8A8A8A",
    RESCALED: "#AA4499",
    PAPER: "#CC79A7",
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
}
OTHER = ("#E69F00", "#8F6BB3", "#56777A", "#B5651D")
SHAPES = {"shuffled null": "square", "comparison": "square", "random null": "triangle-up", PAPER: "diamond"}
DASHES = {
    "random walk": [2, 3],
    "decaying walk": [6, 3],
    "Adam on noise": [1, 3],
    "real inputs, random signals": [7, 2],
    "own steps shuffled": [3, 2],
    "rounding noise alone": [1, 4],
    RESCALED: [7, 2],
    ROUNDED: [2, 3],
    "control SFT": [5, 3],
    "shuffled null": [2, 3],
    "random null": [1, 3],
}
VERDICT_COLOURS = {
    "reproduced": "#1B7837",
    "partly": "#E1B12C",
    "not reproduced": "#B2432F",
    "not testable at this scale": "#8A94A0",
}
VERDICT_MARKS = {"reproduced": "●", "partly": "◐", "not reproduced": "○", "not testable at this scale": "◌"}
_RING = "M0,-1A1,1,0,1,1,0,1A1,1,0,1,1,0,-1ZM0,-.75A.75,.75,0,1,0,0,.75A.75,.75,0,1,0,0,-.75Z"
_DOT = "a.2,.2,0,1,0,.4,0a.2,.2,0,1,0,-.4,0Z"
_TURNS = [i * math.pi / 4 for i in range(8)]
_DOTS = "".join(f"M{0.82 * math.cos(t) - 0.2:.3f},{0.82 * math.sin(t):.3f}{_DOT}" for t in _TURNS)
VERDICT_SHAPES = {
    "reproduced": "circle",
    "partly": _RING + "M0,-1A1,1,0,0,0,0,1Z",
    "not reproduced": _RING,
    "not testable at this scale": _DOTS,
}
WORDS = {
    "update_sparsity": "update sparsity",
    "left_angle_mean_deg": "left mean angle",
    "right_angle_mean_deg": "right mean angle",
    "left_angle_max_deg": "left largest angle",
    "right_angle_max_deg": "right largest angle",
    "normalized_spectral_shift": "normalized spectral shift",
    "principal_overlap": "principal-mask overlap",
    "low_magnitude_overlap": "low-magnitude overlap",
    "stable_rank": "stable rank",
    "update_norm": "norm of the update",
    "hill": "Hill estimate",
    "sim_to_end": "similarity to the end",
    "sim_consecutive": "similarity to the window before",
    "captured_share": "share of the step captured",
    "overlap": "overlap",
    "singular_value": "singular value",
    "total_norm": "norm of the whole update",
    "relative_norm": "norm of the update / norm of the weights",
    "sampled": "sampled accuracy",
    "gain": "accuracy gained",
    "greedy": "greedy accuracy",
    "reverse_kl_sampled": "reverse KL to the teacher, sampled tokens (nats)",
    "reverse_kl_full_vocab": "reverse KL to the teacher, full vocabulary (nats)",
    "kl_to_anchor": "KL to the anchor (nats)",
    "entropy": "entropy (nats)",
    "grad_norm": "norm of the gradient",
}
QUARTERS = [0, 0.25, 0.5, 0.75, 1]
PERCENT = (
    "update_sparsity", "principal_overlap", "low_magnitude_overlap", "sampled", "greedy", "gain", "reward",
    "grad_clipped", "clip_rate",
)  # fmt: skip
LOGARITHMIC = (
    "left_angle_mean_deg", "right_angle_mean_deg", "left_angle_max_deg", "right_angle_max_deg",
    "normalized_spectral_shift",
)  # fmt: skip


def label(recipe: str) -> str:
    """Name of a recipe on an axis.

    >>> label("control_sft"), label("alpha_0.5")
    ('control SFT', 'alpha 0.5')
    """
    return LABELS.get(recipe, recipe.replace("_", " "))


def metric_title(metric: str) -> str:
    """Axis title of a metric, with its unit.

    >>> metric_title("left_angle_mean_deg"), metric_title("update_sparsity")
    ('left mean angle (degrees)', 'update sparsity')
    """
    words = WORDS.get(metric, metric.replace("_", " "))
    return f"{words} (degrees)" if metric.endswith("_deg") else words


def number_format(metric: str) -> str:
    """How numbers of a metric are printed, in the notation of d3 and of Python alike.

    >>> format(0.1234, number_format("update_sparsity")), format(0.1234, number_format("stable_rank"))
    ('12.3%', '0.123')
    """
    return ".1%" if metric in PERCENT else ".3g"


def axis_format(metric: str) -> str:
    """How tick labels of a metric are printed: whole percents, or up to three digits.

    >>> axis_format("update_sparsity")
    '.0%'
    """
    return ".0%" if metric in PERCENT else "~g"


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


def shape_scale(names: Iterable[str]) -> alt.Scale:
    """Shape of every label: circles for runs, a shape of its own for each null and for the paper.

    >>> shape_scale(["OPD", "paper"]).to_dict()["range"]
    ['circle', 'diamond']
    """
    domain = in_order(names)
    return alt.Scale(domain=domain, range=[SHAPES.get(n, "circle") for n in domain])


def by_dash(names: Iterable[str]) -> list[tuple[list[int], list[str]]]:
    """Labels that share a dash: solid, except the control, the nulls and what bf16 shows.

    >>> by_dash(["OPD", "control SFT", "SFT"])
    [([1, 0], ['SFT', 'OPD']), ([5, 3], ['control SFT'])]
    """
    labels = in_order(names)
    dashes = {name: DASHES.get(name, [1, 0]) for name in labels}
    patterns = [list(pattern) for pattern in dict.fromkeys(map(tuple, dashes.values()))]
    return [(pattern, [name for name in labels if dashes[name] == pattern]) for pattern in patterns]


def log_ticks(low: float, high: float) -> list[float]:
    """Few round ticks between two positive numbers: powers of ten over three decades or more, else some between.

    >>> log_ticks(0.0002, 0.3), log_ticks(0.4, 30.0), log_ticks(0.4, 6.0)
    ([0.001, 0.01, 0.1], [1.0, 3.0, 10.0, 30.0], [0.5, 1.0, 2.0, 5.0])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    parts = (1,) if high / low >= 1000 else (1, 3) if high / low >= 30 else (1, 2, 5)
    steps = range(first, last + 1, 2 if last - first > 6 else 1)
    ticks = [float(f"{m}e{power}") for power in steps for m in parts]
    return [t for t in ticks if low <= t <= high]


def value_axis(channel: _Channel, metric: str, numbers: Iterable[float], *, log: bool | None = None) -> _Channel:
    """Give an axis the scale, the range and the ticks that fit a metric: few, and not forced to start at zero.

    Parameters
    ----------
    channel
        ``alt.X`` or ``alt.Y``.
    metric
        Column that is drawn.
    numbers
        Everything that must fit on the axis.
    log
        Whether the axis is logarithmic; None asks the metric.
    """
    if not (metric in LOGARITHMIC if log is None else log):
        return channel.scale(zero=False, nice=True).axis(format=axis_format(metric), tickCount=5, labelOverlap=True)
    known = [n for n in numbers if n > 0] or [1.0]
    low, high = min(known) / 1.25, max(known) * 1.25
    ticks = log_ticks(low, high)
    return channel.scale(type="log", domain=[low, high], nice=False).axis(format="~g", values=ticks, labelOverlap=True)


def legend(names: Iterable[str]) -> alt.Legend:
    """Legend above the plot; more than four entries share rows of three, so that it fits a phone.

    >>> legend(["SFT", "OPD"]).to_dict()
    {'columns': 0, 'orient': 'top', 'symbolOpacity': 1, 'symbolStrokeWidth': 0}
    """
    return alt.Legend(orient="top", columns=3 if len(set(names)) > 4 else 0, symbolOpacity=1, symbolStrokeWidth=0)
