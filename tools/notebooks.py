"""Notebooks as files: read the MyST source, know its parameters, execute it with papermill, keep the result by key.

The source is ``NN_topic.md``; the ``.ipynb`` beside it is derived from it (see ``tools.pair``). An executed notebook
is kept under a key made of everything it can depend on: its source, its parameters, the package, the data, the lock
file. While the key stands, the notebook is not run again.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from filelock import FileLock

from opdgeom_utils.chapters.parameters import check_given, declared_parameters
from opdgeom_utils.report.papermill_run import run_papermill, tagged


@dataclass(frozen=True)
class Executed:
    """One executed notebook: its name, where the result is, and whether it had to run (or was kept)."""

    name: str
    path: Path
    ran: bool
    seconds: float


def notebook_sources(root: Path) -> list[Path]:
    """MyST sources of all notebooks, in chapter order."""
    return sorted((root / "notebooks").glob("[0-9]*.md"))


def read_source(source: Path) -> nbformat.NotebookNode:
    """Read a MyST source as a notebook, with the cell ids that the derived ``.ipynb`` has (its position)."""
    notebook = jupytext.read(source)
    for position, cell in enumerate(notebook.cells):
        cell.id = f"cell-{position:03d}"
    return notebook


def parameters_of(source: Path) -> dict[str, str]:
    """Names and annotations that a notebook's parameters cell declares (none: an empty dict)."""
    cells = tagged(read_source(source), "parameters")
    return declared_parameters(cells[0].source) if cells else {}


def depended_files(root: Path) -> list[Path]:
    """Everything outside the notebook that its output can depend on, in a fixed order."""
    files = [root / "requirements.lock", Path(__file__).resolve()]
    for folder, pattern in (("opdgeom_utils", "*.py"), ("data", "*"), ("notebooks/params", "table1_*.yaml")):
        files += sorted((root / folder).rglob(pattern))
    runs, data = root / "data" / "runs", root / "data"
    wanted = [f for f in files if f.is_file() and runs not in f.parents and "__pycache__" not in f.parts]
    # A README of the data folder explains; nothing reads it. Model cards stay: they are shipped with their weights.
    return [f for f in wanted if f != data / "README.md"]


def digest_of(files: Iterable[Path], *texts: str) -> str:
    """Hex digest of the names and contents of files and of some texts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    for path in files:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def execute(source: Path, root: Path, build: Path, parameters: Mapping[str, Any], shared: str) -> Executed:
    """Execute one notebook with papermill, or return the kept result of the same key.

    Parameters
    ----------
    source : Path
        The MyST file.
    root, build : Path
        Project root and build folder.
    parameters : Mapping[str, Any]
        papermill parameters; each must be declared by the notebook.
    shared : str
        Digest of :func:`depended_files`, computed once for all notebooks.

    Raises
    ------
    NotebookParameterError
        If a parameter is not declared.
    NotebookFailedError
        If a cell raises.
    """
    check_given(parameters, parameters_of(source), source.stem)
    given = json.dumps(dict(parameters), sort_keys=True)
    key = digest_of([source], given, shared, sys.version)
    kept = build / "executed" / f"{source.stem}-{key}.ipynb"
    if kept.exists():
        return Executed(source.stem, kept, ran=False, seconds=0.0)
    work = build / "executing" / f"{source.stem}-{key}"
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work.with_suffix(".lock")):
        if kept.exists():  # another process has just made it
            return Executed(source.stem, kept, ran=False, seconds=0.0)
        start = time.monotonic()
        raw, out, values = work / "in.ipynb", work / "out.ipynb", work / "parameters.yaml"
        nbformat.write(read_source(source), raw)
        values.write_text(given, encoding="utf-8")
        run_papermill(raw, out, values, root, build / "logs" / f"{source.stem}-{key}.log")
        keep(out, kept, dict(parameters))
        shutil.rmtree(work)
    return Executed(source.stem, kept, ran=True, seconds=time.monotonic() - start)


def keep(out: Path, kept: Path, parameters: dict[str, Any]) -> None:
    """Move an executed notebook to its place, and drop older results of the same notebook and parameters."""
    partial = kept.with_suffix(f".{os.getpid()}.part")
    kept.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(without_run_details(nbformat.read(out, as_version=4)), partial)
    for old in kept.parent.glob(f"{kept.stem.rpartition('-')[0]}-*.ipynb"):
        if json.loads(old.read_text(encoding="utf-8"))["metadata"].get("parameters") == parameters:
            old.unlink()
    partial.replace(kept)


def without_run_details(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop times and paths of the run, so that the same inputs give the same file; keep the parameters."""
    details = notebook.metadata.pop("papermill", {})
    notebook.metadata["parameters"] = dict(details.get("parameters", {}))
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
    return notebook
