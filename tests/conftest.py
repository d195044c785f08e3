"""What every test has: checked shapes, one thread, deterministic examples, and the book's smoke site on request."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

# Before anything of ours is imported: every annotated shape and type of the package is checked at each call.
HOOK = install_import_hook("opdgeom_utils", "beartype.beartype")

import pytest
import torch
from hypothesis import settings

from tools.build_book import ROOT, Plan, build_book, pages_of, smoke_plan

torch.set_num_threads(1)
settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
settings.load_profile("deterministic")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--book-root", default=str(ROOT), help="project root whose book is tested")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `document` every page of the table of contents, and `source` every notebook."""
    root = Path(metafunc.config.getoption("--book-root"))
    if "document" in metafunc.fixturenames:
        metafunc.parametrize("document", pages_of(root), scope="session")
    if "source" in metafunc.fixturenames:
        sources = sorted((root / "notebooks").glob("[0-9]*.md"))
        metafunc.parametrize("source", sources, ids=[path.stem for path in sources], scope="session")


@pytest.fixture(scope="session")
def book_root(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.getoption("--book-root"))


@pytest.fixture(scope="session")
def smoke_site(book_root: Path) -> Plan:
    """The book of the smoke profile, built once for each state of the sources (other test processes wait for it)."""
    plan = smoke_plan(book_root)
    build_book(plan)
    return plan
