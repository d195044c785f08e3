"""From a recipe to a run on disk: train what is missing, resume what was killed, open what is done.

A run lives in ``data/runs/<recipe>-s<seed>-<fingerprint8>/`` (``OPDGEOM_RUNS`` moves the parent folder). The
fingerprint covers the recipe, the training version, the training source and the starting, teacher and anchor weights:
change any and the run is a new one. ``DONE`` is written last; it lists the sha256 of every checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
import torch
import yaml
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from opdgeom_utils import storage, training
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, RecipeError
from opdgeom_utils.evaluation import accuracy_table
from opdgeom_utils.learner import Learner
from opdgeom_utils.models import (
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
from opdgeom_utils.precision import prepare
from opdgeom_utils.project_files import runs_folder
from opdgeom_utils.provenance import fingerprint, provenance
from opdgeom_utils.recipes import RUN_SPACE, Recipe, load_recipe
from opdgeom_utils.scoring import check_head
from opdgeom_utils.trained_models import keep_trained, models_of, needed_run
from opdgeom_utils.training_plan import Clock, check_memory
from opdgeom_utils.world import load_world

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

    Runs whose models it needs are trained before it. A large model gets a plan first.

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
    bring_models(run.recipe, device)
    if _fault(run):
        with storage.locked(run.path, wait_seconds=WAIT_SECONDS):
            if fault := _fault(run):
                if (run.path / "DONE").is_file():
                    print(f"{run.path.name}: {fault}; training the run again from its last good state")
                    (run.path / "DONE").unlink()
                _train(run, device)
    return run


def bring_models(recipe: Recipe, device: str) -> None:
    """Train the runs whose models a recipe starts from or learns from, and keep those models as folders."""
    for name in models_of(recipe):
        if needed := needed_run(name):
            other = load_or_train(needed.recipe.name, seed=needed.seed, profile=needed.recipe.profile, device=device)
            keep_trained(name, checkpoint_path(other.path, needed.step), fingerprint(other.recipe, other.seed))


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
    plan = check_memory(recipe, device)
    learner = make_learner(run, device)
    logs, accuracy = _resume(run, learner)
    clock = Clock(plan, recipe, learner.step)
    if learner.step == 0 and not accuracy:  # on both sets of prompts, so that a gain is a gain on the same prompts
        for per_family in sorted({recipe.eval_per_family, recipe.final_eval_per_family}):
            began = time.perf_counter()
            accuracy += _evaluate(learner, per_family)
            clock.evaluated(time.perf_counter() - began, per_family)
    bar = tqdm(total=recipe.steps, initial=learner.step, desc=path.name, unit="update", mininterval=2.0, disable=None)
    try:
        for log in training.train(learner):
            logs.append(log)
            bar.update()
            if said := clock.updated(learner.step):
                bar.write(f"{path.name}: {said}")
            if learner.step in recipe.checkpoints:
                last = learner.step == recipe.steps
                rows = _evaluate(learner, recipe.final_eval_per_family if last else recipe.eval_per_family)
                accuracy += rows
                _store(run, learner, logs, accuracy)
                bar.set_postfix(sampled=f"{mean(row['sampled'] for row in rows):.2f}", loss=f"{log['loss']:.3f}")
    except KeyboardInterrupt:
        _store_where_stopped(run, learner, logs, accuracy)
        raise
    bar.close()
    origin = provenance(recipe, run.seed, str(learner.device))
    storage.write_json(path / "provenance.json", origin)
    for extra in set(path.glob("checkpoints/step_*")) - {p for c in run.checkpoints for p in _with_checksum(c.path)}:
        extra.unlink()  # of updates at which the run was stopped
    files = [c.path for c in run.checkpoints] + [path / "log.jsonl", path / "accuracy.jsonl"]
    storage.write_json(path / "DONE", {str(f.relative_to(path)): _sha256(f) for f in files})
    for state in path.glob("state_*"):
        state.unlink()


def make_learner(run: Run, device: str) -> Learner:
    """Load the student and the models beside it, as they are before the first update."""
    recipe, where, world = run.recipe, pick_device(device), load_world(run.recipe.profile)
    _check_device(recipe, where)
    if recipe.start.startswith(UNTRAINED):
        student, tokenizer = build_model(recipe.start.removeprefix(UNTRAINED), run.seed), build_tokenizer()
        torch.nn.Module.to(student, where)
    else:
        student, tokenizer = load_model(recipe.start, where), load_tokenizer(recipe.start)
    prepare(student, recipe.compute)
    world.with_end(tokenizer)
    fixed: dict[str | None, PreTrainedModel | None] = {None: None}
    for name in {n for n in (recipe.teacher, recipe.anchor, recipe.writer) if n}:
        fixed[name] = prepare(load_model(name, where).eval(), recipe.compute, fixed=True)
    vocabulary = shared_vocabulary(student, tokenizer, {n: (m, load_tokenizer(n)) for n, m in fixed.items() if n and m})
    learner = Learner(
        recipe, run.seed, student, tokenizer, fixed[recipe.teacher], fixed[recipe.anchor], fixed[recipe.writer],
        vocabulary, world, other_update=_other_update(run, device),
    )  # fmt: skip
    if not recipe.on_policy:
        _check_demonstrations(learner)
    return learner


def _check_device(recipe: Recipe, device: torch.device) -> None:
    """Warn of a card that has no bf16 of its own: T4, V100 and older emulate it, several times slower."""
    half = recipe.compute == "bfloat16" and device.type == "cuda"
    if half and not torch.cuda.is_bf16_supported(including_emulation=False):
        warnings.warn(
            f"{torch.cuda.get_device_name(device)} has no bf16 of its own, and emulates it slowly; set compute: "
            "float32 in the recipe (more memory), or take a card of the Ampere generation or later",
            stacklevel=2,
        )


def _check_demonstrations(learner: Learner) -> None:
    """Refuse SFT on problems that come without a demonstration."""
    problems = learner.tasks.draw(learner.recipe.mixture, 64, "demonstrations", weights=learner.recipe.weights)
    if without := sorted({p.family for p in problems if not p.completion}):
        raise RecipeError(
            f"recipe {learner.recipe.name!r} is SFT, and problems of {', '.join(without)} have no demonstration; name "
            "the column that has it, or leave them to opd and rlvr"
        )


def shared_vocabulary(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    others: Mapping[str, tuple[PreTrainedModel, PreTrainedTokenizerFast]],
) -> int | None:
    """Return how many tokens all models share, where some pad their vocabulary; None where all have as many.

    Raises
    ------
    RecipeError
        If two tokenizers differ in a token, or a model has fewer rows than the student's tokenizer has tokens.
    """
    own, sizes = tokenizer.get_vocab(), {student.config.vocab_size}
    for name, (model, other) in others.items():
        check_head(model)
        theirs = other.get_vocab()
        if differing := sorted(set(own.items()) ^ set(theirs.items()), key=lambda pair: (pair[1], pair[0])):
            shown = ", ".join(f"{token!r} ({number})" for token, number in differing[:4])
            raise RecipeError(
                f"the tokenizers of the student and of {name} differ in {len(differing)} entries, such as {shown}; "
                "token by token they cannot be compared. Choose a teacher of the same tokenizer"
            )
        sizes.add(model.config.vocab_size)
    check_head(student)
    if min(sizes) < len(own):
        raise RecipeError(f"the tokenizer has {len(own)} tokens, the smallest model {min(sizes)} rows for them")
    if len(sizes) == 1:
        return None
    print(f"vocabularies are padded to {sorted(sizes)}: the first {min(sizes)} tokens are compared")
    return min(sizes)


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
    recipe = learner.recipe
    table = accuracy_table(
        learner.student, learner.tokenizer, recipe.held_out, per_family, tasks=learner.tasks, world=learner.world,
        max_new_tokens=recipe.max_new_tokens, compute=recipe.compute, vocabulary=learner.vocabulary,
    )  # fmt: skip
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


def _store_where_stopped(run: Run, learner: Learner, logs: list[training.Log], accuracy: list[dict[str, Any]]) -> None:
    """Keep what an interrupted process has trained, if it stands between two rounds of rollouts with its log whole."""
    if learner.step == len(logs) > 0 and learner.step % run.recipe.updates_per_rollout == 0:
        _store(run, learner, logs, accuracy)
        print(f"{run.path.name}: stopped after update {learner.step}; the same call goes on from there")


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


def _with_checksum(checkpoint: Path) -> tuple[Path, Path]:
    return checkpoint, checkpoint.with_suffix(".sha256")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
