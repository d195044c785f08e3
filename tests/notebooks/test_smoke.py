"""Every notebook runs from top to bottom under the smoke profile, and refuses parameters that it does not know."""

from pathlib import Path

import nbformat
import pytest

from opdgeom_utils.errors import NotebookFailedError, NotebookParameterError
from opdgeom_utils.report.papermill_run import run_papermill
from tools.build_book import smoke_plan
from tools.notebooks import depended_files, digest_of, execute

CELLS = (
    'profile: str = "toy"\nseeds: list[int] = [0, 1]',
    "from opdgeom_utils.chapters.parameters import check_parameters\n\ncheck_parameters(globals())",
)


@pytest.fixture(scope="session")
def shared(book_root: Path) -> str:
    return digest_of(depended_files(book_root))


def test_runs_under_smoke(source: Path, book_root: Path, shared: str) -> None:
    plan = smoke_plan(book_root)
    result = execute(source, plan.root, plan.build, plan.parameters, shared)
    cells = [cell for cell in nbformat.read(result.path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert [o for cell in cells for o in cell.outputs if o.output_type == "error"] == []


def test_unknown_parameter_stops_the_build(source: Path, book_root: Path, tmp_path: Path) -> None:
    """Before anything runs."""
    with pytest.raises(NotebookParameterError, match=r"unknown parameter: profil\."):
        execute(source, book_root, tmp_path, {"profil": "smoke"}, "key")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("profile: smoke\nseedz: [0]\n", "unknown parameter: seedz. This notebook declares: profile, seeds"),
        ("profile: smoke\nseeds: 3\n", "parameter seeds is 3 (int), expected list[int]"),
    ],
)
def test_papermill_alone_stops_too(book_root: Path, tmp_path: Path, given: str, message: str) -> None:
    """papermill itself only warns about an unknown name: the notebook's own check stops the run, at its first cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in CELLS])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    raw, parameters = tmp_path / "in.ipynb", tmp_path / "parameters.yaml"
    nbformat.write(notebook, raw)
    parameters.write_text(given)
    with pytest.raises(NotebookFailedError) as stopped:
        run_papermill(raw, tmp_path / "out.ipynb", parameters, book_root, tmp_path / "log")
    assert message in str(stopped.value)
