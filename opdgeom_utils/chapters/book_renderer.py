"""Charts that need no network: an Altair renderer for the book and for notebooks opened by hand.

Each chart becomes an image (SVG, inside the page) with its description as alternative text, and its Vega-Lite
specification as data. Where the book's script and the vendored Vega are present, the chart is drawn live over the
image, in the colours of the page's theme; without them (no JavaScript, paper, another notebook viewer) the image stays.
"""

import base64
import html
import json
from typing import Any

import altair as alt
import vl_convert

from opdgeom_utils.errors import ChartDescriptionError

RENDERER = "opdgeom"
#: Width of the image, in CSS pixels, for a chart whose width follows its container.
STATIC_WIDTH = 680
#: Shortest description that can say what is on the axes and what to see.
MIN_DESCRIPTION = 30
FONT = "'Inter Variable', Inter, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
_FONT_CONFIG = {"font": FONT, "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": 500}}


def chart_description(spec: dict[str, Any]) -> str:
    """Return a chart's description in words, for readers who cannot see it.

    Raises ChartDescriptionError if it is missing or shorter than 30 characters.

    >>> chart_description({"description": "Sparsity, 0 to 100 percent, by objective: SFT lowest."})
    'Sparsity, 0 to 100 percent, by objective: SFT lowest.'
    >>> chart_description({"title": "Sparsity"})
    Traceback (most recent call last):
        ...
    opdgeom_utils.errors.ChartDescriptionError: the chart 'Sparsity' has no description...
    """
    description = spec.get("description")
    words = " ".join(description) if isinstance(description, list) else str(description or "")
    words = " ".join(words.split())
    if len(words) < MIN_DESCRIPTION:
        title = spec.get("title")
        name = title.get("text") if isinstance(title, dict) else title
        problem = "no description" if not words else f"a description of {len(words)} characters"
        raise ChartDescriptionError(
            f"the chart {name!r} has {problem}; add .properties(description='what the axes are and what to see'), "
            f"at least {MIN_DESCRIPTION} characters"
        )
    return words


def static_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a specification that can be drawn without a page: fixed width, white background.

    >>> static_spec({"width": "container", "mark": "bar"})["width"]
    680
    """
    copy = json.loads(json.dumps(spec))

    def fix(part: dict[str, Any]) -> None:
        if part.get("width") == "container":
            part["width"] = STATIC_WIDTH
        children = [part["spec"]] if isinstance(part.get("spec"), dict) else []
        for key in ("layer", "concat"):
            children += part.get(key, [])
        for child in children:
            fix(child)

    fix(copy)
    copy["background"] = "white"
    copy["config"] = {**_FONT_CONFIG, **copy.get("config", {})}
    copy["config"].pop("background", None)
    return copy


def render_chart(spec: dict[str, Any], **_options: object) -> dict[str, str]:
    """Altair renderer: one HTML fragment with an image, the description, and the specification as data.

    Raises ChartDescriptionError if the chart does not say in words what it shows.

    >>> spec = {"description": "One bar of height 2, labelled a, to check.", "mark": "bar", "width": "container"}
    >>> bundle = render_chart(spec)
    >>> bundle["text/plain"]
    'One bar of height 2, labelled a, to check.'
    >>> "<img" in bundle["text/html"] and "data:image/svg+xml;base64," in bundle["text/html"]
    True
    """
    words = chart_description(spec)
    svg = vl_convert.vegalite_to_svg(static_spec(spec))
    image = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    # Inside a script element only "</script" and "<!--" are special: \u003c is the same character in JSON.
    data = json.dumps(spec, separators=(",", ":"), sort_keys=True).replace("<", "\\u003c")
    text = html.escape(words, quote=True)
    fragment = (
        f'<figure class="opd-chart" role="group" aria-label="{text}">'
        f'<img class="opd-chart-image" alt="{text}" src="{image}">'
        '<div class="opd-chart-live" hidden></div>'
        f'<script type="application/json" class="opd-chart-spec">{data}</script>'
        "</figure>"
    )
    return {"text/html": fragment, "text/plain": words}


def enable_book_renderer() -> None:
    """Draw every Altair chart of this process by :func:`render_chart`; data of any length travel with the chart.

    >>> enable_book_renderer()
    >>> alt.renderers.active
    'opdgeom'
    """
    alt.renderers.register(RENDERER, render_chart)
    alt.renderers.enable(RENDERER)
    alt.data_transformers.disable_max_rows()
