"""Every page of the built site in a real browser, opened from disk: phone and desktop, light and dark."""

from collections.abc import Callable

import pytest

from tools.build_book import Plan
from tools.look import Visit

pytestmark = pytest.mark.xdist_group("browser")
Opener = Callable[..., Visit]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_sound(open_document: Opener, document: str, width: int, scheme: str) -> None:
    """Asks nothing of the network, complains of nothing, draws, typesets, fits its window, can be read."""
    visit = open_document(document, width=width, scheme=scheme)
    assert visit.page.evaluate("document.documentElement.dataset.theme") == scheme
    assert visit.problems() == []


def test_first_page_leads_into_the_book(open_file: Opener, smoke_site: Plan) -> None:
    visit = open_file(smoke_site.site / "index.html", scripts=False)
    visit.page.wait_for_url("**/book/index.html")
    assert visit.page.locator("article h1").count() == 1
