"""Sphinx extension: pages that ask nothing of the network, and no weight that the book does not use.

The theme brings a 1.5 MB icon script beside the icon font that does the same work, and an extension for running cells
on a remote server. Both go. What stays is local: styles, fonts, MathJax, Vega.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

UNUSED = (
    "_static/scripts/fontawesome.js",
    "_static/scripts/fontawesome.js.LICENSE.txt",
    "_static/webpack-macros.html",
    "_static/sbt-webpack-macros.html",
    "_static/sphinx-thebe.js",
    "_static/sphinx-thebe.css",
)
UNUSED_PATTERNS = (
    "_static/**/*.map",
    "_static/locales/**/*.?o",
    "_static/images/logo_*",
    "_static/vendor/fontawesome/webfonts/*.ttf",
)
#: Icon script, settings of the remote-execution extension, and its kernel's name.
UNUSED_ELEMENTS = re.compile(
    r"<!-- So that users can add custom icons -->\s*"
    r"|<script\b[^>]*scripts/fontawesome\.js[^>]*></script>\s*"
    r"|<script type=\"text/x-thebe-config\">.*?</script>\s*"
    r"|<script>\s*kernelName = [^<]*</script>\s*",
    re.DOTALL,
)


def _wanted(asset: object) -> bool:
    body = (getattr(asset, "attributes", None) or {}).get("body") or ""
    name = str(getattr(asset, "filename", None) or "")
    return "thebe" not in name.lower() and "THEBE" not in body and "thebe" not in body


def drop_remote_cells(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, object], doctree: object
) -> None:
    """Take the remote-execution scripts and styles out of each page."""
    for kind in ("script_files", "css_files"):
        assets = context.get(kind)
        if isinstance(assets, list):
            context[kind] = [asset for asset in assets if _wanted(asset)]


def trim_site(app: Sphinx, failure: Exception | None) -> None:
    """Take unused elements out of each page, and unused files out of the site."""
    if failure or app.builder.format != "html":
        return
    site = Path(app.outdir)
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        trimmed = UNUSED_ELEMENTS.sub("", text)
        if trimmed != text:
            page.write_text(trimmed, encoding="utf-8")
    for path in [site / name for name in UNUSED] + [p for pattern in UNUSED_PATTERNS for p in site.glob(pattern)]:
        path.unlink(missing_ok=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the two steps."""
    app.connect("html-page-context", drop_remote_cells, priority=900)
    app.connect("build-finished", trim_site)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
