"""A badge and a first cell for Colab, in every chapter, where ``_config.yml`` has the address of a GitHub repository.

The address stands where Jupyter Book looks for it: ``repository: {url: https://github.com/owner/name, branch: main}``.
Without one nothing is added.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml

from opdgeom_utils.report.papermill_run import tagged

GITHUB = re.compile(r"https://github\.com/(?P<name>[\w.-]+/[\w.-]+?)(?:\.git)?/?")
CELL = """# On Colab: install the package, and take the profile of the card that is there.
import subprocess
import sys

if "google.colab" in sys.modules:
    package = "opdgeom-utils[book] @ git+https://github.com/{name}@{branch}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)
    from opdgeom_utils.gpu_check.presets import profile_of_card

    profile = profile_of_card(profile)"""


@dataclass(frozen=True)
class Repository:
    """A GitHub repository: ``owner/name`` and a branch."""

    name: str
    branch: str


def repository_of(root: Path) -> Repository | None:
    """Return the repository that a project's ``_config.yml`` names, None where it names none on GitHub."""
    path = root / "_config.yml"
    said = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("repository") if path.is_file() else None
    found = GITHUB.fullmatch((said or {}).get("url") or "")
    return Repository(found["name"], said.get("branch") or "main") if said and found else None


def add_badge(notebook: nbformat.NotebookNode, chapter: str, repository: Repository) -> None:
    """Put a badge below a chapter's title; it opens the chapter in Colab."""
    address = (
        f"https://colab.research.google.com/github/{repository.name}/blob/{repository.branch}/notebooks/{chapter}.ipynb"
    )
    badge = f"[![Open in Colab](../book/_static/open_in_colab.svg)]({address})"
    cell = next(
        cell for cell in notebook.cells if cell.cell_type == "markdown" and re.search(r"^# ", cell.source, re.M)
    )
    cell.source = re.sub(r"^(# .*)$", rf"\1\n\n{badge}", cell.source, count=1, flags=re.M)


def add_first_cell(notebook: nbformat.NotebookNode, repository: Repository) -> None:
    """Put the cell for Colab behind the parameters, which need no package; elsewhere it does nothing."""
    place = notebook.cells.index(tagged(notebook, "parameters")[0]) + 1
    cell = nbformat.v4.new_code_cell(CELL.format(name=repository.name, branch=repository.branch), id="cell-colab")
    notebook.cells.insert(place, cell)
