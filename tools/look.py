"""Open a page of the built book in headless Chromium, as the tests do: offline, at any width, light or dark.

``python -m tools.look book/index --width 390 --scheme dark --out /tmp/index.png`` prints what is wrong with the page
and saves a picture of it.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from tools.browser import SWITCHES, find_browser

ROOT = Path(__file__).resolve().parent.parent
#: What is wrong with a page: charts not drawn, equations not typeset, overflow, images without words, faint text.
CHECKS = (ROOT / "tools" / "page_checks.js").read_text(encoding="utf-8").partition("*/")[2].strip()
READY_MS = 30_000
LOCAL = ("file:", "data:", "blob:", "about:")

#: Unfold everything, so that a folded chart or equation is looked at too.
UNFOLD = """() => {
  document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
  const style = document.createElement("style");
  style.textContent = ".sd-tab-content { display: block !important; }";
  document.head.append(style);
}"""
#: Whether each chart has been dealt with, and MathJax has started if there is anything to typeset.
READY = """() => {
  const charts = [...document.querySelectorAll(".opd-chart")].every(
    (box) => box.dataset.state === "failed" || (box.dataset.state && box.opdBoxWidth === box.clientWidth));
  const equations = !document.querySelector(".math") || (window.MathJax && MathJax.startup && MathJax.startup.promise);
  return charts && Boolean(equations);
}"""


@dataclass
class Visit:
    """One opened page, what it asked for outside this machine, and what it complained about."""

    page: Page
    context: BrowserContext
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def on_request(self, request: Request) -> None:
        """Remember a request that would leave the machine."""
        if not request.url.startswith(LOCAL):
            self.outside.append(f"asked the network for {request.url}")

    def on_console(self, message: ConsoleMessage) -> None:
        """Remember a console error or warning."""
        if message.type in ("error", "warning"):
            self.errors.append(f"console {message.type}: {message.text}")

    def wait_ready(self) -> None:
        """Unfold the page and wait until charts and equations are there."""
        self.page.evaluate(UNFOLD)
        self.page.wait_for_function(READY, timeout=READY_MS)
        self.page.evaluate("() => window.MathJax && MathJax.startup ? MathJax.startup.promise : null")
        self.page.wait_for_timeout(200)

    def problems(self) -> list[str]:
        """Everything wrong with the page: requests, complaints, and what the checks see."""
        return [*self.outside, *self.errors, *self.page.evaluate(CHECKS)]


@contextmanager
def offline_browser() -> Iterator[Browser]:
    """Start a browser that can resolve no host name at all."""
    with sync_playwright() as playwright:
        arguments = [*SWITCHES, "--host-resolver-rules=MAP * ~NOTFOUND"]
        browser = playwright.chromium.launch(executable_path=str(find_browser()), args=arguments)
        yield browser
        browser.close()


def open_page(browser: Browser, path: Path, *, width: int = 1280, scheme: str = "light", scripts: bool = True) -> Visit:
    """Open a file in a fresh context; requests that would leave the machine are recorded and refused."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
        java_script_enabled=scripts,
        is_mobile=width < 600,
        has_touch=width < 600,
        reduced_motion="reduce",
    )
    context.route(lambda url: not url.startswith(LOCAL), lambda route: route.abort())
    visit = Visit(context.new_page(), context)
    visit.page.on("request", visit.on_request)
    visit.page.on("console", visit.on_console)
    visit.page.on("pageerror", lambda error: visit.errors.append(f"script error: {error}"))
    visit.page.on("requestfailed", lambda request: visit.errors.append(f"did not load: {request.url}"))
    visit.page.goto(path.resolve().as_uri(), wait_until="load")
    if scripts:
        visit.wait_ready()
    return visit


def main(arguments: list[str] | None = None) -> int:
    """Print the problems of one page and save its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", help="page as in _toc.yml, such as notebooks/01_toy_world")
    parser.add_argument("--site", type=Path, default=ROOT / "_build" / "site")
    parser.add_argument("--width", type=int, default=1280, help="CSS pixels; under 600 is a phone")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--out", type=Path, help="where the picture goes (PNG)")
    options = parser.parse_args(arguments)
    with offline_browser() as browser:
        path = options.site / f"{options.document}.html"
        visit = open_page(browser, path, width=options.width, scheme=options.scheme)
        problems = visit.problems()
        if options.out:
            visit.page.screenshot(path=options.out, full_page=True)
        visit.context.close()
    for problem in problems:
        print(problem)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
