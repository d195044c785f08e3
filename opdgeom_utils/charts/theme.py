"""One palette, one typeface, one wording for every figure."""

from __future__ import annotations

from collections.abc import Iterable

import altair as alt

LABELS = {"sft": "SFT", "opd": "OPD", "rlvr": "RLVR", "control_sft": "control SFT"}
PAPER = "paper"
NULLS = {"shuffled": "shuffled null", "random": "random null"}
PALETTE = {
    "SFT": "#0072B2",
    "OPD": "#D55E00",
    "RLVR": "#009E73",
    "control SFT": "#56B4E9",
    "shuffled null": "#7F7F7F",
    "random null": "#A6A6A6",
    PAPER: "#CC79A7",
    "base": "#E69F00",
    "anchor": "#8F6BB3",
    "teacher": "#56777A",
}
OTHER = ("#E69F00", "#8F6BB3", "#56777A", "#B5651D")
SHAPES = {"shuffled null": "square", "random null": "triangle-up", PAPER: "diamond"}
DASHES = {"control SFT": [5, 3], "shuffled null": [2, 3], "random null": [1, 3]}
VERDICT_COLOURS = {
    "reproduced": "#1B7837",
    "partly": "#E1B12C",
    "not reproduced": "#B2432F",
    "not testable at this scale": "#8A94A0",
}
FONT = "'Inter Variable', Inter, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
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
}
PERCENT = ("update_sparsity", "principal_overlap", "low_magnitude_overlap")
LOGARITHMIC = ("left_angle_mean_deg", "right_angle_mean_deg", "normalized_spectral_shift")


@alt.theme.register("opdgeom", enable=False)
def _theme() -> alt.theme.ThemeConfig:
    return {
        "config": {
            "font": FONT,
            "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": 500, "gridOpacity": 0.6},
            "legend": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500, "symbolSize": 70},
            "header": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": 500},
            "title": {"fontSize": 14, "fontWeight": 600, "anchor": "start"},
            "view": {"stroke": "transparent"},
        }
    }


def enable_theme() -> None:
    """Use the book's typeface and sizes in every chart of this process; the background stays the page's own.

    Examples
    --------
    >>> enable_theme()
    >>> alt.theme.active
    'opdgeom'
    """
    alt.theme.enable("opdgeom")


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


def dash_scale(names: Iterable[str]) -> alt.Scale:
    """Dash of every label: solid, except the control and the nulls.

    >>> dash_scale(["OPD", "control SFT"]).to_dict()["range"]
    [[1, 0], [5, 3]]
    """
    domain = in_order(names)
    return alt.Scale(domain=domain, range=[DASHES.get(n, [1, 0]) for n in domain])


def scale_kind(metric: str) -> str:
    """``log`` for metrics that spread over decades, ``linear`` for the others.

    >>> scale_kind("normalized_spectral_shift"), scale_kind("update_sparsity")
    ('log', 'linear')
    """
    return "log" if metric in LOGARITHMIC else "linear"
