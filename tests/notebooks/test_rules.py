"""What keeps a notebook readable: its size, its parameters, and the two files being one notebook."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from tools.notebooks import parameters_of, read_source, tagged
from tools.pair import stale_pairs

MAX_CODE_CELLS, MAX_CODE_LINES, MAX_CELL_LINES = 30, 150, 20
MIN_WORDS, MAX_WORDS = 1000, 2000


def code_cells(source: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read_source(source).cells if cell.cell_type == "code"]


def lines_of(code: str) -> list[str]:
    return [line for line in code.splitlines() if line.strip()]


def words_of(markdown: str) -> list[str]:
    """Words of prose: no formulas, no directive lines, no link targets."""
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", " formula ", markdown, flags=re.DOTALL)
    text = re.sub(r"^\s*(?::{3,}|`{3,}|:[\w-]+:).*$|^\([\w-]+\)=$", " ", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.findall(r"[A-Za-z][\w'-]*", text)


def test_words_leave_out_what_is_not_prose() -> None:
    assert words_of("(label)=\nA [link](http://x.y) and $x^2$.\n\n:::{note}\n:class: tip\nIt holds.\n:::") == [
        *["A", "link", "and", "formula", "It", "holds"]
    ]


def test_size(source: Path) -> None:
    cells = code_cells(source)
    longest = max(len(lines_of(cell.source)) for cell in cells)
    total = sum(len(lines_of(cell.source)) for cell in cells)
    found = {"code cells": len(cells), "code lines": total, "lines in one cell": longest}
    limits = {"code cells": MAX_CODE_CELLS, "code lines": MAX_CODE_LINES, "lines in one cell": MAX_CELL_LINES}
    assert {name: count for name, count in found.items() if count > limits[name]} == {}


def test_length_of_prose(source: Path) -> None:
    prose = [cell.source for cell in read_source(source).cells if cell.cell_type == "markdown"]
    assert MIN_WORDS <= len(words_of("\n\n".join(prose))) <= MAX_WORDS


def test_no_definitions(source: Path) -> None:
    """What deserves a name lives in the package."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    nodes = [node for cell in code_cells(source) for node in ast.walk(ast.parse(cell.source))]
    assert [node.name for node in nodes if isinstance(node, kinds)] == []


def test_one_parameters_cell_of_annotated_literals(source: Path) -> None:
    assert len(tagged(read_source(source), "parameters")) == 1
    declared = parameters_of(source)
    assert declared.get("profile") == "str"
    assert declared.get("seeds") == "list[int]"


def test_parameters_are_checked_before_anything_uses_them(source: Path) -> None:
    """The first code cell after the parameters calls `check_parameters(globals())`."""
    cells = code_cells(source)
    place = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    assert place == 0
    assert "check_parameters(globals())" in cells[1].source


def test_last_cell_asserts(source: Path) -> None:
    """Properties, such as orderings and bounds, end every notebook."""
    last = code_cells(source)[-1].source
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(last)))


def test_figures_have_prose_on_both_sides(source: Path) -> None:
    """A cell that makes a numbered figure never stands right beside another one."""
    cells = read_source(source).cells
    figures = [i for i, cell in enumerate(cells) if "figure" in cell.metadata.get("mystnb", {})]
    lonely = [i for i in figures if not _prose_around(cells, i)]
    assert lonely == []


def _prose_around(cells: list[nbformat.NotebookNode], place: int) -> bool:
    after = cells[place + 1] if place + 1 < len(cells) else None
    before = next((cell for cell in reversed(cells[:place]) if cell.cell_type == "markdown"), None)
    return before is not None and after is not None and after.cell_type == "markdown"


def test_pairs_are_one_notebook(book_root: Path) -> None:
    assert stale_pairs(book_root) == [], "run `.venv/bin/python -m tools.pair`"


def test_chapters_and_notebooks_agree(book_root: Path) -> None:
    """Each notebook is a page of the book."""
    from tools.build_book import pages_of

    listed = {Path(page).name for page in pages_of(book_root) if page.startswith("notebooks/")}
    assert listed == {path.stem for path in (book_root / "notebooks").glob("[0-9]*.md")}


@pytest.mark.parametrize("name", ["smoke"])
def test_parameter_files_are_mappings(book_root: Path, name: str) -> None:
    from opdgeom_utils.report.papermill_run import read_parameters

    assert read_parameters(book_root / f"notebooks/params/{name}.yaml")["profile"] == name
