"""Colab's badge and first cell: in every chapter where a repository is configured, nowhere else."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from tools.build_book import ROOT, Plan, stage
from tools.colab import CELL, repository_of
from tools.notebooks import Executed
from tools.pair import derived_text

SOURCE = "12_what_a_verdict_means"
ADDRESS = "https://colab.research.google.com/github/ann/book/blob/trunk/notebooks/12_what_a_verdict_means.ipynb"


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A project with one chapter and an address."""
    (tmp_path / "notebooks").mkdir()
    source = tmp_path / f"notebooks/{SOURCE}.md"
    source.write_text((ROOT / f"notebooks/{SOURCE}.md").read_text())
    said = "\nrepository: {url: https://github.com/ann/book.git, branch: trunk}\n"
    (tmp_path / "_config.yml").write_text((ROOT / "_config.yml").read_text() + said)
    return source


def test_an_address_gives_every_chapter_a_badge_and_a_first_cell(configured: Path) -> None:
    notebook = nbformat.reads(derived_text(configured), as_version=4)
    nbformat.validate(notebook)
    title = next(cell.source for cell in notebook.cells if "\n# " in f"\n{cell.source}")
    assert f"\n\n[![Open in Colab](../book/_static/open_in_colab.svg)]({ADDRESS})\n" in title
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].metadata.tags == ["parameters"]
    assert "opdgeom-utils[book] @ git+https://github.com/ann/book@trunk" in code[1].source
    assert "check_parameters(globals())" in code[2].source
    assert (ROOT / "book/_static/open_in_colab.svg").is_file()


def test_without_an_address_nothing_shows(configured: Path) -> None:
    config = configured.parents[1] / "_config.yml"
    config.write_text(config.read_text().replace("https://github.com", "https://example.org"))
    assert repository_of(config.parent) is None
    text = derived_text(configured)
    assert "olab" not in text
    config.unlink()
    assert derived_text(configured) == text


def test_the_page_has_the_badge_and_no_cell(configured: Path, tmp_path: Path) -> None:
    root, folder, vendored = configured.parents[1], tmp_path / "staged", tmp_path / "vendored"
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/index\n")
    executed = tmp_path / "executed.ipynb"
    executed.write_text((ROOT / f"notebooks/{SOURCE}.ipynb").read_text())
    for path in (folder, vendored):
        path.mkdir()
    stage(Plan(root, root / "_build", root / "site", {}), [Executed(SOURCE, executed, True, 0.0)], vendored, folder)
    staged = (folder / f"notebooks/{SOURCE}.ipynb").read_text()
    assert ADDRESS in staged
    assert "google.colab" not in staged


def test_the_cell_installs_and_picks_on_colab_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    monkeypatch.setattr("opdgeom_utils.gpu_check.presets.profile_of_card", lambda own: f"{own} of the card")
    cell, names = CELL.format(name="ann/book", branch="main"), {"profile": "toy"}
    exec(cell, names)
    assert (names["profile"], calls) == ("toy", [])
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    exec(cell, names)
    assert names["profile"] == "toy of the card"
    assert calls == [
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "opdgeom-utils[book] @ git+https://github.com/ann/book@main",
        ]
    ]
