"""One self-contained HTML file from an executed notebook: prose, tables and charts, with Vega and the style inside.

Nothing on the page asks for another file, on disk or elsewhere. Cells tagged ``book-only`` stay in the book; code is
not shown; what MyST would resolve (references, terms, citations) becomes plain words.
"""

import base64
import html
import re
from collections.abc import Collection, Iterable
from typing import Any

import nbformat
import vl_convert
from markdown_it import MarkdownIt

from opdgeom_utils.project_files import PROJECT

STATIC = PROJECT / "book" / "_static"
BOOK_ONLY = "book-only"
ROLE = re.compile(r"\{(\w[\w:-]*)\}`([^`]*)`")
TARGET = re.compile(r"^\([\w-]+\)=\n", re.MULTILINE)
FACE = re.compile(r"@font-face\s*\{.*?\}\s*", re.DOTALL)
PAGE = """<!doctype html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:image/svg+xml;base64,{icon}">
<script>{theme}</script>
<style>
{style}
</style>
</head>
<body>
<article class="bd-article">
{body}
</article>
<script>
{vega}
</script>
<script>
{charts}
</script>
</body>
</html>
"""
#: The page follows the system's scheme, as the book does.
THEME = """(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const follow = () => { document.documentElement.dataset.theme = dark.matches ? "dark" : "light"; };
  follow();
  dark.addEventListener("change", follow);
})();"""
#: What the book's theme gives to its pages, and this page has to bring along.
PAGE_STYLE = """
:root { --pst-color-text-base: #1f2933; --pst-color-text-muted: #55616e; }
html { background: var(--opd-chart-paper); color: var(--pst-color-text-base); color-scheme: light; }
html[data-theme="dark"] { color-scheme: dark; }
body { margin: 0; font-family: var(--opd-font-text); }
article.bd-article { max-width: 50rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
article.bd-article a { color: var(--pst-color-link); }
article.bd-article th { text-align: left; }
.report-text { white-space: pre-wrap; overflow-wrap: anywhere; font: 0.85rem ui-monospace, monospace; }
"""


def report_page(notebook: nbformat.NotebookNode, *, title: str, leave_out: Collection[str] = (BOOK_ONLY,)) -> str:
    """Write an executed notebook as one page.

    ``notebook``: with outputs.
    ``leave_out``: cells that carry one of these tags are left out.
    """
    numbers = _figure_numbers(notebook, leave_out)
    parts = [part for cell in _shown(notebook, leave_out) for part in _cell_html(cell, numbers)]
    style = FACE.sub("", (STATIC / "book.css").read_text(encoding="utf-8"))
    return PAGE.format(
        title=html.escape(title),
        icon=base64.b64encode((STATIC / "favicon.svg").read_bytes()).decode(),
        theme=THEME,
        style=PAGE_STYLE + style,
        body="\n".join(parts),
        vega=_inline(vega_script()),
        charts=_inline((STATIC / "book_charts.js").read_text(encoding="utf-8")),
    )


def vega_script() -> str:
    """Return Vega and its companions as one classic script (a module would not load from ``file://``)."""
    return "(() => {\n" + vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;") + "\n})();\n"


def _shown(notebook: nbformat.NotebookNode, leave_out: Collection[str]) -> list[nbformat.NotebookNode]:
    """Cells that the page shows: none with a tag that is left out."""
    return [cell for cell in notebook.cells if not set(leave_out) & set(cell.metadata.get("tags", []))]


def _figure_numbers(notebook: nbformat.NotebookNode, leave_out: Collection[str]) -> dict[str, int]:
    """Give each figure of the shown cells its number, from 1."""
    names = [_figure(cell).get("name") for cell in _shown(notebook, leave_out)]
    return {name: number for number, name in enumerate(filter(None, names), start=1)}


def plain_markdown(text: str, numbers: dict[str, int]) -> str:
    r"""Replace what only MyST understands by words.

    >>> plain_markdown("(here)=\n# A {term}`null <nulls>` in {numref}`fig-a` {cite:p}`who2026`.", {"fig-a": 2})
    '# A null in Figure 2.'
    >>> plain_markdown("See the [next chapter](only-step-size).", {})
    'See the next chapter.'
    """

    def say(role: re.Match[str]) -> str:
        kind, content = role.groups()
        if kind.startswith("cite"):
            return ""
        if kind == "numref":
            return f"Figure {numbers[content]}" if content in numbers else "the figure"
        return content.partition(" <")[0]

    text = re.sub(r"\[([^\]]*)\]\((?!https?://)[^)]*\)", r"\1", ROLE.sub(say, TARGET.sub("", text)))
    return re.sub(r" +([.,;:])", r"\1", text)


def _cell_html(cell: nbformat.NotebookNode, numbers: dict[str, int]) -> Iterable[str]:
    if cell.cell_type == "markdown":
        yield _markdown(plain_markdown(cell.source, numbers))
        return
    figure = _figure(cell)
    for output in cell.get("outputs", []):
        yield from _output_html(output, numbers)
    if figure:
        number = numbers[figure["name"]]
        caption = plain_markdown(str(figure["caption"]), numbers)
        yield f'<p class="caption"><span class="caption-number">Figure {number}</span>{html.escape(caption)}</p>'


def _output_html(output: nbformat.NotebookNode, numbers: dict[str, int]) -> Iterable[str]:
    """Write one output: what was printed, a table, a chart, computed Markdown; warnings of libraries are left out."""
    if output.output_type == "stream":
        if output.name == "stdout":
            yield f'<p class="report-text">{html.escape(output.text.strip())}</p>'
        return
    data = output.get("data", {})
    if "text/html" in data:
        yield data["text/html"]
    elif "text/markdown" in data:
        yield _markdown(plain_markdown(data["text/markdown"], numbers))
    elif "text/plain" in data:
        yield f'<p class="report-text">{html.escape(data["text/plain"])}</p>'


def _figure(cell: nbformat.NotebookNode) -> dict[str, Any]:
    return dict(cell.metadata.get("mystnb", {}).get("figure", {}))


def _markdown(text: str) -> str:
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)


def _inline(script: str) -> str:
    r"""Make a script safe inside a script element: in JavaScript strings and patterns ``<\/`` is ``</``."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
