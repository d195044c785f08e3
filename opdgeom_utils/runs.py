"""From a recipe to a run on disk: train what is missing, resume what was killed, open what is done.

A run lives in ``data/runs/<recipe>-s<seed>-<fingerprint8>/`` (``OPDGEOM_RUNS`` moves the parent folder). The
fingerprint covers the recipe, the training version, the training source and the starting, teacher and anchor weights:
change any and the run is a new one. ``DONE`` is written last; it lists the sha256 of every checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
import torch
import yaml
from tqdm.auto import tqdm

from opdgeom_utils import storage, training
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, RecipeError
from opdgeom_utils.evaluation import accuracy_table
from opdgeom_utils.learner import Learner
from opdgeom_utils.models import (
    PROJECT,
    UNTRAINED,
    build_model,
    build_tokenizer,
    keep_freed_memory,
    load_model,
    load_stored_state,
    load_tokenizer,
    pick_device,
    resolve_model,
    stored_state,
)
from opdgeom_utils.provenance import fingerprint, provenance
from opdgeom_utils.recipes import RUN_SPACE, Recipe, load_recipe

WAIT_SECONDS = 6 * 3600.0


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
        return pd.DataFrame(_rows(self.path / "log.jsonl"))

    @cached_property
    def accuracy(self) -> pd.DataFrame:
        """Held-out accuracy: step, domain, family, greedy, sampled, n_prompts."""
        return pd.DataFrame(_rows(self.path / "accuracy.jsonl"))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Commit, versions, device and command of the process that finished the run."""
        return json.loads((self.path / "provenance.json").read_text(encoding="utf-8"))


def runs_folder() -> Path:
    """Return where runs are kept."""
    return Path(os.environ.get("OPDGEOM_RUNS", PROJECT / "data" / "runs"))


def run_of(recipe: Recipe, seed: int) -> Run:
    """Return the run of today's source, weights and settings, trained or not."""
    return Run(recipe, seed, runs_folder() / f"{recipe.name}-s{seed}-{fingerprint(recipe, seed)[:8]}")


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the file of one checkpoint.

    >>> checkpoint_path(Path("r"), 50).as_posix()
    'r/checkpoints/step_000050.safetensors'
    """
    return run / "checkpoints" / f"step_{step:06d}.safetensors"


def load_or_train(recipe_name: str, *, seed: int = 0, profile: str = "toy", device: str = "auto") -> Run:
    """Open a finished run, or train it first (or the rest of it, if it was stopped).

    Parameters
    ----------
    recipe_name
        Name of a recipe of the profile: ``sft``, ``opd``, ``rlvr`` or a variant.
    seed
        Decides prompts and sampling.
    profile
        File name in ``data/recipes`` without its ending.
    device
        ``auto`` takes CUDA when there is one.

    Raises
    ------
    UnknownProfileError, UnknownRecipeError, RecipeError
        If the recipe cannot be read.
    CheckpointNotFoundError
        If the model it starts from is missing.
    TrainingDivergedError
        If a loss becomes NaN; the checkpoints so far stay and are whole.
    StorageError
        If the disk is full; nothing half-written is left.
    """
    run = run_of(load_recipe(recipe_name, profile), seed)
    if _fault(run):
        with storage.locked(run.path, wait_seconds=WAIT_SECONDS):
            if fault := _fault(run):
                if (run.path / "DONE").is_file():
                    print(f"{run.path.name}: {fault}; training the run again from its last good state")
                    (run.path / "DONE").unlink()
                _train(run, device)
    return run


def _fault(run: Run) -> str:
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
        if not file.is_file() or _sha256(file) != digest:
            return f"{name} is missing or damaged"
    return ""


def _train(run: Run, device: str) -> None:
    keep_freed_memory()
    recipe, path = run.recipe, run.path
    storage.write_atomic(
        path / "recipe.yaml", yaml.safe_dump({**recipe.as_dict(), "seed": run.seed}, sort_keys=False).encode()
    )
    learner = make_learner(run, device)
    logs, accuracy = _resume(run, learner)
    if learner.step == 0 and not accuracy:  # on both sets of prompts, so that a gain is a gain on the same prompts
        for per_family in sorted({recipe.eval_per_family, recipe.final_eval_per_family}):
            accuracy += _evaluate(learner, per_family)
    bar = tqdm(total=recipe.steps, initial=learner.step, desc=path.name, unit="update", mininterval=2.0, disable=None)
    for log in training.train(learner):
        logs.append(log)
        bar.update()
        if learner.step in recipe.checkpoints:
            last = learner.step == recipe.steps
            rows = _evaluate(learner, recipe.final_eval_per_family if last else recipe.eval_per_family)
            accuracy += rows
            _store(run, learner, logs, accuracy)
            bar.set_postfix(sampled=f"{mean(row['sampled'] for row in rows):.2f}", loss=f"{log['loss']:.3f}")
    bar.close()
    origin = provenance(recipe, run.seed, str(learner.device))
    storage.write_json(path / "provenance.json", origin)
    files = [c.path for c in run.checkpoints] + [path / "log.jsonl", path / "accuracy.jsonl"]
    storage.write_json(path / "DONE", {str(f.relative_to(path)): _sha256(f) for f in files})
    for state in path.glob("state_*"):
        state.unlink()


def make_learner(run: Run, device: str) -> Learner:
    """Load the student and the models beside it, as they are before the first update."""
    recipe, where = run.recipe, pick_device(device)
    if recipe.start.startswith(UNTRAINED):
        student, tokenizer = build_model(recipe.start.removeprefix(UNTRAINED), run.seed), build_tokenizer()
        torch.nn.Module.to(student, where)
    else:
        student, tokenizer = load_model(recipe.start, where), load_tokenizer(recipe.start)
    names = {recipe.teacher, recipe.anchor, recipe.writer}
    fixed = {name: load_model(name, where).eval() if name else None for name in names}
    return Learner(
        recipe, run.seed, student, tokenizer, fixed[recipe.teacher], fixed[recipe.anchor], fixed[recipe.writer],
        other_update=_other_update(run, device),
    )  # fmt: skip


def _other_update(run: Run, device: str) -> dict[str, torch.Tensor] | None:
    """Return the cumulative update of the run whose space this one is projected onto, trained first if it must be."""
    found = RUN_SPACE.fullmatch(run.recipe.projection_space)
    if not found:
        return None
    step, stored = int(found["step"]), load_recipe(found["recipe"], run.recipe.profile).checkpoints
    if step not in stored:  # said before any training
        raise RecipeError(
            f"recipe {run.recipe.name!r} is projected onto {found['recipe']} at update {step}, which has checkpoints "
            f"{list(stored)} only"
        )
    other = load_or_train(found["recipe"], seed=run.seed, profile=run.recipe.profile, device=device)
    return _update_since_start(other, checkpoint_path(other.path, step))


def _update_since_start(run: Run, checkpoint: Path) -> dict[str, torch.Tensor]:
    end, start = storage.read_tensors(checkpoint), stored_state(load_model(run.recipe.start))
    return {name: end[name] - start[name] for name in start}


def _evaluate(learner: Learner, per_family: int) -> list[dict[str, Any]]:
    table = accuracy_table(learner.student, learner.tokenizer, learner.recipe.held_out, per_family)
    return table.assign(step=learner.step).to_dict("records")


def _store(run: Run, learner: Learner, logs: list[training.Log], accuracy: list[dict[str, Any]]) -> None:
    """Write a checkpoint and, last, the state to resume from; the state before it is removed only then."""
    storage.write_atomic(run.path / "log.jsonl", _lines(logs))
    storage.write_atomic(run.path / "accuracy.jsonl", _lines(accuracy))
    storage.write_tensors(checkpoint_path(run.path, learner.step), stored_state(learner.student))
    if learner.step == run.recipe.steps:
        return
    moments = learner.optimizer.state_dict()["state"]
    tensors = {f"{i}.{key}": value for i, entry in moments.items() for key, value in entry.items()}
    state = run.path / f"state_{learner.step:06d}.safetensors"
    storage.write_tensors(state, tensors)
    for old in run.path.glob("state_*"):
        if not old.name.startswith(state.stem):
            old.unlink()


def _resume(run: Run, learner: Learner) -> tuple[list[training.Log], list[dict[str, Any]]]:
    """Put the newest whole state back; return the log and accuracy rows up to it."""
    for leftover in run.path.rglob(".*.part"):
        leftover.unlink()
    for state in sorted(run.path.glob("state_*.safetensors"), reverse=True):
        step = int(state.stem.removeprefix("state_"))
        try:
            weights, tensors = storage.read_tensors(checkpoint_path(run.path, step)), storage.read_tensors(state)
            for earlier in (c for c in run.checkpoints if c.step < step):
                storage.read_tensors(earlier.path)
            tables = (_rows(run.path / name) for name in ("log.jsonl", "accuracy.jsonl"))
            logs, accuracy = ([row for row in rows if row["step"] <= step] for rows in tables)
            if [row["step"] for row in logs] != list(range(1, step + 1)):
                raise CheckpointDamagedError(f"{run.path / 'log.jsonl'} lacks updates; the run will be trained again")
        except (ValueError, KeyError, TypeError, CheckpointNotFoundError) as error:
            print(f"{run.path.name}: {error}")
            continue
        load_stored_state(learner.student, weights)
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        learner.optimizer.load_state_dict({**learner.optimizer.state_dict(), "state": moments})
        learner.step = step
        if step > run.recipe.projection_from > 0 and run.recipe.projection_space in ("early", "complement"):
            learner.other_update = _update_since_start(run, checkpoint_path(run.path, run.recipe.projection_from))
        print(f"{run.path.name}: resuming after update {step} of {run.recipe.steps}")
        return logs, accuracy
    return [], []


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
