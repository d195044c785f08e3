"""One browser for all page tests; without one they fail with the advice how to get it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tools.browser import BrowserNotFoundError
from tools.build_book import Plan
from tools.look import Visit, offline_browser, open_page


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    try:
        with offline_browser() as launched:
            yield launched
    except BrowserNotFoundError as error:
        pytest.fail(str(error))


@pytest.fixture
def open_file(browser: Browser) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def opened(path: Path, **options: Any) -> Visit:
        visits.append(open_page(browser, path, **options))
        return visits[-1]

    yield opened
    for visit in visits:
        visit.context.close()


@pytest.fixture
def open_document(smoke_site: Plan, open_file: Callable[..., Visit]) -> Callable[..., Visit]:
    """Open a page of the built site by its name in the table of contents."""
    return lambda document, **options: open_file(smoke_site.site / f"{document}.html", **options)
