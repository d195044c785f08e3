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

from opdgeom_utils import storage
from opdgeom_utils.errors import CheckpointNotFoundError, RecipeError
from opdgeom_utils.models import resolve_model
from opdgeom_utils.project_files import runs_folder
from opdgeom_utils.provenance import fingerprint
from opdgeom_utils.recipes import Recipe
from opdgeom_utils.trained_models import is_large


@dataclass(frozen=True)
class Checkpoint:
    """One stored point of a run: fp32 master weights under their Hugging Face names."""

    step: int
    path: Path


@dataclass(frozen=True)
class Run:
    """A run on disk, finished, or trained as far as the checkpoint ``until``."""

    recipe: Recipe
    seed: int
    path: Path
    until: int | None = None

    @cached_property
    def is_large(self) -> bool:
        """Whether its model is large for two cores; less is measured of it then."""
        return is_large(self.recipe)

    @property
    def last(self) -> int:
        """The update of the last stored point."""
        return self.until or self.recipe.steps

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The stored points, in order of step."""
        steps = (step for step in self.recipe.checkpoints if step <= self.last)
        return [Checkpoint(step, checkpoint_path(self.path, step)) for step in steps]

    @property
    def reference(self) -> Path:
        """Folder of the model the run started from: W0 of every delta."""
        return Path(resolve_model(self.recipe.start))

    @cached_property
    def log(self) -> pd.DataFrame:
        """One row for each update."""
        return pd.DataFrame(self.rows("log.jsonl"))

    @cached_property
    def accuracy(self) -> pd.DataFrame:
        """Held-out accuracy: step, domain, family, greedy, sampled, n_prompts."""
        return pd.DataFrame(self.rows("accuracy.jsonl"))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Rows of one of the two logs, up to the last stored point."""
        return [row for row in rows_of(self.path / name) if row["step"] <= self.last]

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Commit, versions, device and command of the process that finished the run."""
        return json.loads((self.path / "provenance.json").read_text(encoding="utf-8"))


def run_of(recipe: Recipe, seed: int, until: int | None = None) -> Run:
    """Return the run of today's source, weights and settings, trained or not.

    ``until`` makes it end at the last checkpoint up to that update.

    Raises
    ------
    RecipeError
        If the recipe has no checkpoint up to ``until``.
    """
    reached = [step for step in recipe.checkpoints if until is None or step <= until]
    if not reached:
        raise RecipeError(
            f"until is {until}; the first checkpoint of recipe {recipe.name!r} of profile {recipe.profile!r} is "
            f"{recipe.checkpoints[0]}, so give that or more"
        )
    path = runs_folder() / f"{recipe.name}-s{seed}-{fingerprint(recipe, seed)[:8]}"
    return Run(recipe, seed, path, reached[-1] if reached[-1] < recipe.steps else None)


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the file of one checkpoint.

    >>> checkpoint_path(Path("r"), 50).as_posix()
    'r/checkpoints/step_000050.safetensors'
    """
    return run / "checkpoints" / f"step_{step:06d}.safetensors"


def fault_of(run: Run) -> str:
    """Say why a run cannot be opened as it is; empty when all that it should hold is there and every file is whole."""
    done = run.path / "DONE"
    if not done.is_file():
        return "not finished" if run.until is None else _fault_so_far(run)
    try:
        recorded = json.loads(done.read_text(encoding="utf-8")).items()
    except (ValueError, AttributeError):
        return "DONE is damaged"
    for name, digest in recorded:
        file = run.path / name
        if not file.is_file() or sha256_of(file) != digest:
            return f"{name} is missing or damaged"
    return ""


def _fault_so_far(run: Run) -> str:
    """Say what is missing or damaged of a run that was trained as far as ``until``."""
    try:
        for point in run.checkpoints:
            storage.read_tensors(point.path)
        steps = [row["step"] for row in run.rows("log.jsonl")]
    except (ValueError, KeyError, CheckpointNotFoundError) as error:
        return str(error)
    return "" if steps == list(range(1, run.last + 1)) else "log.jsonl lacks updates"


def sha256_of(file: Path) -> str:
    """Return a file's checksum."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def lines_of(rows: list[Any]) -> bytes:
    """Write rows as JSON, one a line."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`lines_of` wrote; nothing where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
