"""What a run is on disk: its folder, its checkpoints and its two logs, and whether all of it is whole.

A run lives in ``data/runs/<recipe>-s<seed>-<fingerprint8>/`` (``OPDGEOM_RUNS`` moves the parent folder). The
fingerprint covers the recipe, the training version, the training source and the starting, teacher and anchor weights:
change any and the run is a new one. ``DONE`` is written last; it lists the sha256 of every checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from opdgeom_utils.models import resolve_model
from opdgeom_utils.project_files import runs_folder
from opdgeom_utils.provenance import fingerprint
from opdgeom_utils.recipes import Recipe


@dataclass(frozen=True)
class Checkpoint:
    """One stored point of a run: fp32 master weights under their Hugging Face names."""

    step: int
    path: Path


@dataclass(frozen=True)
class Run:
    """A finished run on disk."""

    recipe: Recipe
    seed: int
    path: Path

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The stored points, in order of step."""
        return [Checkpoint(step, checkpoint_path(self.path, step)) for step in self.recipe.checkpoints]

    @property
    def reference(self) -> Path:
        """Folder of the model the run started from: W0 of every delta."""
        return Path(resolve_model(self.recipe.start))

    @cached_property
    def log(self) -> pd.DataFrame:
        """One row for each update."""
        return pd.DataFrame(rows_of(self.path / "log.jsonl"))

    @cached_property
    def accuracy(self) -> pd.DataFrame:
        """Held-out accuracy: step, domain, family, greedy, sampled, n_prompts."""
        return pd.DataFrame(rows_of(self.path / "accuracy.jsonl"))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Commit, versions, device and command of the process that finished the run."""
        return json.loads((self.path / "provenance.json").read_text(encoding="utf-8"))


def run_of(recipe: Recipe, seed: int) -> Run:
    """Return the run of today's source, weights and settings, trained or not."""
    return Run(recipe, seed, runs_folder() / f"{recipe.name}-s{seed}-{fingerprint(recipe, seed)[:8]}")


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the file of one checkpoint.

    >>> checkpoint_path(Path("r"), 50).as_posix()
    'r/checkpoints/step_000050.safetensors'
    """
    return run / "checkpoints" / f"step_{step:06d}.safetensors"


def fault_of(run: Run) -> str:
    """Say why a run cannot be opened as it is; empty when it is finished and every file is whole."""
    done = run.path / "DONE"
    if not done.is_file():
        return "not finished"
    try:
        recorded = json.loads(done.read_text(encoding="utf-8")).items()
    except (ValueError, AttributeError):
        return "DONE is damaged"
    for name, digest in recorded:
        file = run.path / name
        if not file.is_file() or sha256_of(file) != digest:
            return f"{name} is missing or damaged"
    return ""


def sha256_of(file: Path) -> str:
    """Return a file's checksum."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def lines_of(rows: list[Any]) -> bytes:
    """Write rows as JSON, one a line."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`lines_of` wrote; nothing where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
