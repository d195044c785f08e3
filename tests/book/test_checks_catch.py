"""The page checks themselves: a page with one fault is reported for that fault, a page without is not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.look import Visit

pytestmark = pytest.mark.xdist_group("browser")

PAGE = """<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>page</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,"></head>
<body style="background:#fff;color:#222"><article class="bd-article"><p>words</p>{}</article></body></html>"""
CHART = """<figure class="opd-chart" aria-label="bars" data-state="{}"><img alt="bars" src="data:image/gif;base64,
R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="><div class="opd-chart-live"><svg width="9" height="9">{}</svg>
</div></figure><script>const box = document.querySelector("figure"); box.opdBoxWidth = box.clientWidth;</script>"""

FAULTS = {
    "a request that leaves the machine": ('<script src="https://example.org/x.js"></script>', "asked the network"),
    "a font from elsewhere": (
        "<style>@font-face{font-family:x;src:url(https://example.org/x.woff2)} p{font-family:x}</style>",
        "asked the network",
    ),
    "a missing local file": ('<script src="missing.js"></script>', "did not load"),
    "a script that throws": ("<script>undefinedFunction()</script>", "undefinedFunction"),
    "a console error": ('<script>console.error("oh")</script>', "console error: oh"),
    "a chart that failed": (CHART.format("failed", ""), "not drawn"),
    "a chart without marks": (CHART.format("live", ""), "without a single visible mark"),
    "an image without words": (
        '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==">',
        "without alternative text",
    ),
    "a page wider than the phone": ('<div style="width:900px">wide</div>', "px wide in a window of"),
    "text too faint to read": ('<p style="color:#bbb">faint</p>', "contrast"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_reported(open_file: Callable[..., Visit], tmp_path: Path, fault: str) -> None:
    body, expected = FAULTS[fault]
    path = tmp_path / "page.html"
    path.write_text(PAGE.format(body), encoding="utf-8")
    assert any(expected in problem for problem in open_file(path, width=390).problems())


def test_equation_left_as_source_is_reported(open_file: Callable[..., Visit], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    started = "<script>window.MathJax = { startup: { promise: Promise.resolve() } };</script>"
    path.write_text(PAGE.format(started + '<div class="math">x^2</div>'), encoding="utf-8")
    assert "equation not typeset: x^2" in open_file(path).problems()


def test_sound_page_is_not_reported(open_file: Callable[..., Visit], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    mark = '<g class="role-mark"><path d="M0 0H9V9Z"/></g>'
    path.write_text(PAGE.format(CHART.format("live", mark)), encoding="utf-8")
    assert open_file(path, width=390).problems() == []
