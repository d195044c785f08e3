"""The built site as files: no dead links, nothing loaded from elsewhere, nothing that the book does not use."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tools.build_book import SMOKE_LABEL, Plan

pytestmark = pytest.mark.xdist_group("browser")


class Links(HTMLParser):
    """Collects ids, links and loaded files of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in values:
            self.loads.append(values["src"])
        elif tag == "link" and "href" in values and values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values["href"])


@pytest.fixture(scope="module")
def pages(smoke_site: Plan) -> dict[Path, Links]:
    parsed = {}
    for path in smoke_site.site.rglob("*.html"):
        parsed[path.resolve()] = Links()
        parsed[path.resolve()].feed(path.read_text(encoding="utf-8"))
    return parsed


def test_links_inside_the_book_lead_somewhere(pages: dict[Path, Links]) -> None:
    dead = []
    for page, found in pages.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.exists():
                dead.append(f"{page.name} -> {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                dead.append(f"{page.name} -> {link} (no such place)")
    assert dead == []


def test_pages_load_local_files_that_exist(pages: dict[Path, Links]) -> None:
    wrong = []
    for page, found in pages.items():
        for load in found.loads:
            parts = urlsplit(load)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc or not (page.parent / unquote(parts.path)).exists():
                wrong.append(f"{page.name} loads {load}")
    assert wrong == []


def test_every_page_says_that_it_is_a_smoke_test(smoke_site: Plan, document: str) -> None:
    assert SMOKE_LABEL in (smoke_site.site / f"{document}.html").read_text(encoding="utf-8")


def test_styles_load_nothing_from_elsewhere(smoke_site: Plan) -> None:
    outside = re.compile(r"(?:url\(|@import)\s*['\"]?\s*(?:https?:)?//")
    guilty = [p.name for p in smoke_site.site.rglob("*.css") if outside.search(p.read_text(encoding="utf-8"))]
    assert guilty == []


def test_site_brings_what_it_needs_and_no_more(smoke_site: Plan) -> None:
    static = smoke_site.site / "_static"
    for needed in ("vendor/vega/vega.js", "vendor/mathjax/tex-chtml.js", "book_charts.js", "book.css"):
        assert (static / needed).stat().st_size > 0
    assert (smoke_site.site / ".nojekyll").exists()
    for unused in ("scripts/fontawesome.js", "sphinx-thebe.js"):
        assert not (static / unused).exists()
    text = (smoke_site.site / "book" / "index.html").read_text(encoding="utf-8")
    assert "fontawesome.js" not in text
    assert "thebe" not in text.lower()
