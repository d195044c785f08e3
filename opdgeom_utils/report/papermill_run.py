"""Execute a notebook by papermill, in a process and with a kernel of its own, and say in words why one stopped."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import ValidationError

from opdgeom_utils import errors
from opdgeom_utils.errors import NotebookFailedError, StorageError

#: Longest time, in seconds, that one cell may take.
CELL_SECONDS = 1800
LAST_LINES = 25  # of a traceback or a log
LEAST_FREE = 2**20  # bytes; with fewer a notebook of charts cannot be kept
ANSI = re.compile(r"\x1b\[[0-9;]*m")
KERNEL = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    """Cells of a notebook that carry a tag."""
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def read_parameters(path: Path) -> dict[str, Any]:
    """Read a parameter file, such as ``notebooks/params/smoke.yaml``.

    Raises ValueError if it is no file, or does not hold names and values.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ValueError(f"{path.absolute()}: {error.strerror}; expected a YAML file of parameters") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected `name: value` lines, found {type(values).__name__}")
    return values


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

    ``offline`` forbids the hub's network; without ``cell_seconds`` a cell may take as long as it needs. Neither a
    kernel that the user installed nor what lies in the user's home is looked at or written to.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as own:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
            "PYTHONHASHSEED": "0",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "IPYTHONDIR": own,
            "JUPYTER_RUNTIME_DIR": own,
            "JUPYTER_PATH": own,
        }
        if offline:
            environment["HF_HUB_OFFLINE"] = "1"
        spec = Path(own) / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({**KERNEL, "display_name": "Python 3"}))
        # Names and no paths: papermill fills in whatever stands in braces in a path.
        command = [sys.executable, "-m", "papermill", os.path.relpath(raw, out.parent), out.name]
        command += ["-k", "python3", "-f", str(parameters)]
        command += ["--cwd", str(root / "notebooks"), "--no-progress-bar", "--log-output"]
        if cell_seconds is not None:
            command += ["--execution-timeout", str(cell_seconds)]
        with log.open("w", encoding="utf-8") as stream:
            done = subprocess.run(command, cwd=out.parent, env=environment, stdout=stream, stderr=stream, check=False)
    if done.returncode:
        if shutil.disk_usage(out.parent).free < LEAST_FREE:
            raise StorageError(f"the disk of {out.parent} is full: free some space there, or write elsewhere")
        raise NotebookFailedError(failure_report(out, log))


def failure_report(out: Path, log: Path) -> str:
    """Say which cell failed and how; of our own errors the message, of others the end of the traceback or log."""
    try:
        cells = nbformat.read(out, as_version=4).cells
    except (OSError, ValueError, ValidationError):  # there is none, or it was cut short
        cells = []
    for number, cell in enumerate((c for c in cells if c.cell_type == "code"), start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                trace = ANSI.sub("", "\n".join(output.traceback)).splitlines()[-LAST_LINES:]
                said = [output.evalue] if hasattr(errors, output.ename) else [cell.source, "", *trace]
                return "\n".join([f"code cell {number} stopped:", *said, f"(whole log: {log})"])
    tail = ANSI.sub("", log.read_text(encoding="utf-8", errors="replace")).splitlines()[-LAST_LINES:]
    return "\n".join(tail) + f"\n(whole log: {log})"
