"""A browser that may open files of this machine only, and a visit that remembers what each page asked for and said."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from tools.browser import SWITCHES, BrowserNotFoundError, find_browser
from tools.build_book import Plan

READY_MS = 60_000
LOCAL = ("file:", "data:", "blob:", "about:")

#: Unfold everything, then wait until each chart and each equation has been dealt with.
UNFOLD = """() => {
  document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
  const style = document.createElement("style");
  style.textContent = ".sd-tab-content { display: block !important; }";
  document.head.append(style);
}"""
READY = """() => {
  const charts = [...document.querySelectorAll(".opd-chart")].every((box) => box.dataset.state);
  const equations = !document.querySelector(".math") || (window.MathJax && MathJax.startup && MathJax.startup.promise);
  return charts && Boolean(equations);
}"""


@dataclass
class Visit:
    """One opened page, what it asked for outside this machine, and what went wrong in it."""

    page: Page
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def on_request(self, request: Request) -> None:
        if not request.url.startswith(LOCAL):
            self.outside.append(request.url)

    def on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"console {message.type}: {message.text}")

    def on_failed(self, request: Request) -> None:
        self.errors.append(f"did not load: {request.url}")


Opener = Callable[..., Visit]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    try:
        path = find_browser()
    except BrowserNotFoundError as error:
        pytest.fail(str(error))
    with sync_playwright() as playwright:
        nowhere = "--host-resolver-rules=MAP * ~NOTFOUND"
        launched = playwright.chromium.launch(executable_path=str(path), args=[*SWITCHES, nowhere])
        yield launched
        launched.close()


@pytest.fixture
def open_file(browser: Browser) -> Iterator[Opener]:
    """Open a file in a fresh context; requests that would leave the machine are recorded and refused."""
    contexts: list[BrowserContext] = []

    def opened(
        path: Path, *, width: int = 1280, scheme: str = "light", scripts: bool = True, wait: bool = True
    ) -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
            java_script_enabled=scripts,
            is_mobile=width < 600,
            has_touch=width < 600,
            device_scale_factor=1,
            reduced_motion="reduce",
        )
        contexts.append(context)
        context.route(lambda url: not url.startswith(LOCAL), lambda route: route.abort())
        visit = Visit(context.new_page())
        visit.page.on("request", visit.on_request)
        visit.page.on("console", visit.on_console)
        visit.page.on("pageerror", lambda error: visit.errors.append(f"script error: {error}"))
        visit.page.on("requestfailed", visit.on_failed)
        visit.page.goto(path.as_uri(), wait_until="load")
        if scripts and wait:
            visit.page.evaluate(UNFOLD)
            visit.page.wait_for_function(READY, timeout=READY_MS)
            visit.page.evaluate("() => window.MathJax && MathJax.startup ? MathJax.startup.promise : null")
            visit.page.wait_for_timeout(200)
        return visit

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def open_page(smoke_site: Plan, open_file: Opener) -> Opener:
    """Open a page of the built site by its document name."""

    def opened(document: str, **options: object) -> Visit:
        return open_file(smoke_site.site / f"{document}.html", **options)

    return opened
