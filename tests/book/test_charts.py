"""The chart script on a page of its own: it draws, follows the theme and the window, stacks panels on a phone."""

import shutil
from collections.abc import Callable
from pathlib import Path

import altair as alt
import pandas as pd
import pytest

from opdgeom_utils.chapters.book_renderer import render_chart
from opdgeom_utils.charts.rows_of_points import variant_strips
from tools.build_book import ROOT
from tools.look import Visit
from tools.vendor import vendor

pytestmark = pytest.mark.xdist_group("browser")
Opener = Callable[..., Visit]

PAGE = """<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>charts</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<link rel="stylesheet" href="static/book.css"><script defer src="static/book_charts.js"></script></head>
<body style="margin:0;background:var(--opd-chart-paper)"><article class="bd-article">{}</article></body></html>"""
ROWS = pd.DataFrame(
    {"step": [0, 1, 2] * 2, "value": [1.0, 2.0, 4.0, 1.0, 3.0, 2.0], "objective": ["sft"] * 3 + ["opd"] * 3}
)
LABEL = "document.querySelector('.opd-chart-live .role-axis-label text')"


def charts() -> list[alt.TopLevelMixin]:
    """One of each kind of layout that the book has: following its box, side by side, a grid of one chart."""
    lines = alt.Chart(ROWS).mark_line().encode(x="step:Q", y="value:Q", color="objective:N")
    rule = alt.Chart(pd.DataFrame({"y": [2.0]})).mark_rule(color="black").encode(y="y:Q")
    panel = (lines + rule).properties(width=420, height=90)
    said = {"description": "Value by step for two objectives, to try the layout of panels."}
    return [
        lines.properties(width="container", height=120, title="A title too long for the width of a phone", **said),
        alt.concat(panel, panel, columns=2).properties(**said),
        lines.properties(width=420, height=90).facet(facet="objective:N", columns=2).properties(**said),
    ]


@pytest.fixture(scope="module")
def chart_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("charts")
    shutil.copytree(ROOT / "book/_static", folder / "static")
    shutil.copytree(vendor(ROOT / "_build"), folder / "static/vendor")
    fragments = [render_chart(chart.to_dict())["text/html"] for chart in charts()]
    page = folder / "page.html"
    page.write_text(PAGE.format("".join(fragments)), encoding="utf-8")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_layout_fits(open_file: Opener, chart_page: Path, width: int, scheme: str) -> None:
    visit = open_file(chart_page, width=width)
    visit.page.evaluate(f"document.documentElement.dataset.theme = '{scheme}'")
    visit.page.wait_for_function(
        f"[...document.querySelectorAll('.opd-chart')].every(b => b.dataset.theme === '{scheme}')"
    )
    assert visit.problems() == []


def test_charts_follow_the_theme(open_file: Opener, chart_page: Path) -> None:
    """The reader's theme button redraws each chart; plain black becomes the theme's ink."""
    visit = open_file(chart_page)
    light = visit.page.evaluate(f"{LABEL}.getAttribute('fill')")
    visit.page.evaluate("document.documentElement.dataset.theme = 'dark'")
    visit.page.wait_for_function("[...document.querySelectorAll('.opd-chart')].every(b => b.dataset.theme === 'dark')")
    assert visit.page.evaluate(f"{LABEL}.getAttribute('fill')") != light
    rules = visit.page.evaluate(
        "[...document.querySelectorAll('.mark-rule.role-mark line')].map(r => r.getAttribute('stroke'))"
    )
    assert rules
    assert "black" not in rules


def test_panels_stack_on_a_phone(open_file: Opener, chart_page: Path) -> None:
    """Turning the device redraws each chart at its new width: two columns become one, and stay inside."""
    visit = open_file(chart_page)
    wide = visit.page.evaluate("[...document.querySelectorAll('.opd-chart')].map(b => b.clientHeight)")
    visit.page.set_viewport_size({"width": 400, "height": 900})
    visit.page.wait_for_timeout(400)
    visit.wait_ready()
    narrow = visit.page.evaluate("[...document.querySelectorAll('.opd-chart')].map(b => b.clientHeight)")
    assert all(after > 1.5 * before for before, after in list(zip(wide, narrow, strict=True))[1:])
    assert visit.problems() == []


def test_images_without_scripts(open_file: Opener, chart_page: Path) -> None:
    """With JavaScript off, each chart is a picture with a description."""
    visit = open_file(chart_page, scripts=False)
    images = visit.page.locator("img.opd-chart-image")
    assert images.count() == len(charts())
    shown = images.first.bounding_box()
    assert shown is not None
    assert shown["height"] > 100
    assert len(images.first.get_attribute("alt") or "") >= 30


def test_pointing_at_a_run_pales_the_others_in_every_panel(open_file: Opener, chart_page: Path) -> None:
    rows = [
        {"row": row, "panel": panel, "kind": "variant", "seed": 0, "value": value}
        for panel in ("right", "left")
        for row, value in (("one", 0.2), ("two", 0.8))
    ]
    chart = variant_strips(pd.DataFrame(rows), "overlap")
    page = chart_page.with_name("pointed.html")
    page.write_text(PAGE.format(render_chart(chart.to_dict())["text/html"]), encoding="utf-8")
    visit = open_file(page)
    count = (
        "[...document.querySelectorAll('.opd-chart-live .mark-symbol path')].filter(p => p.getAttribute('opacity') {})"
    )
    pale = count.format("< 0.3") + ".length"
    assert visit.page.evaluate(pale) == 0
    place = visit.page.evaluate(
        count.format("> 0.9")
        + ".map(p => p.getBoundingClientRect()).map(b => [b.x + b.width / 2, b.y + b.height / 2])[0]"
    )
    visit.page.mouse.move(*place)
    visit.page.wait_for_function(f"{pale} === 4")  # a mean and a seed of the other run, in either panel
    visit.page.mouse.move(5, 5)
    visit.page.wait_for_function(f"{pale} === 0")
    assert visit.problems() == []
