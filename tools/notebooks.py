"""Notebooks as files: read the MyST source, know its parameters, execute it with papermill, keep the result by key.

The source is ``NN_topic.md``; the ``.ipynb`` beside it is derived from it (see ``tools.pair``). An executed notebook
is kept under a key made of everything it can depend on: its source, its parameters, the package, the data, the lock
file. While the key stands, the notebook is not run again.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml
from filelock import FileLock

from opdgeom_utils.chapters.parameters import check_names, declared_parameters

#: Longest time, in seconds, that one cell may take.
CELL_SECONDS = 1800
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class NotebookFailedError(RuntimeError):
    """A notebook stopped with an error; the message holds the cell and the end of the traceback."""


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


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    """Cells of a notebook that carry a tag."""
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def parameters_of(source: Path) -> dict[str, str]:
    """Names and annotations that a notebook's parameters cell declares (none: an empty dict)."""
    cells = tagged(read_source(source), "parameters")
    return declared_parameters(cells[0].source) if cells else {}


def read_parameters(path: Path) -> dict[str, Any]:
    """Read a parameter file, such as ``notebooks/params/smoke.yaml``."""
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected `name: value` lines, found {type(values).__name__}")
    return values


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
    check_names(parameters, parameters_of(source), source.stem)
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


def run_papermill(
    raw: Path,
    out: Path,
    parameters: Path,
    root: Path,
    log: Path,
    *,
    offline: bool = True,
    cell_seconds: int | None = CELL_SECONDS,
) -> None:
    """Run papermill in its own process, single-threaded; raise with the failing cell if it stops.

    ``offline`` forbids the hub's network; without ``cell_seconds`` a cell may take as long as it needs.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        "PYTHONHASHSEED": "0",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, "-m", "papermill", str(raw), str(out), "-k", "python3", "-f", str(parameters)]
    command += ["--cwd", str(root / "notebooks"), "--no-progress-bar", "--log-output"]
    if cell_seconds is not None:
        command += ["--execution-timeout", str(cell_seconds)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        status = subprocess.run(command, env=environment, stdout=stream, stderr=stream, check=False).returncode
    if status:
        raise NotebookFailedError(failure_report(out, log))


def failure_report(out: Path, log: Path, lines: int = 25) -> str:
    """Say which cell failed and how: its source, the error, the end of the traceback; else the end of the log."""
    cells = nbformat.read(out, as_version=4).cells if out.exists() else []
    for number, cell in enumerate((c for c in cells if c.cell_type == "code"), start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                trace = ANSI.sub("", "\n".join(output.traceback)).splitlines()[-lines:]
                tail = "\n".join(trace)
                return f"code cell {number} stopped:\n{cell.source}\n\n{tail}\n(whole log: {log})"
    tail = ANSI.sub("", log.read_text(encoding="utf-8", errors="replace")).splitlines()[-lines:]
    return "\n".join(tail) + f"\n(whole log: {log})"


def without_run_details(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop times and paths of the run, so that the same inputs give the same file; keep the parameters."""
    details = notebook.metadata.pop("papermill", {})
    notebook.metadata["parameters"] = dict(details.get("parameters", {}))
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
    return notebook
