"""From a recipe to a run on disk: train what is missing, resume what was killed, open what is done.

What a run is on disk stands in :mod:`opdgeom_utils.run_files`.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from tqdm.auto import tqdm

from opdgeom_utils import bf16_products, storage, training
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, RecipeError
from opdgeom_utils.evaluation import accuracy_table
from opdgeom_utils.learner import Learner
from opdgeom_utils.models import keep_freed_memory, load_model, load_stored_state, stored_state
from opdgeom_utils.provenance import fingerprint, provenance
from opdgeom_utils.recipes import RUN_SPACE, Recipe, load_recipe
from opdgeom_utils.run_files import Run, checkpoint_path, fault_of, lines_of, rows_of, run_of, sha256_of
from opdgeom_utils.starting import learner_of
from opdgeom_utils.trained_models import keep_trained, models_of, needed_run
from opdgeom_utils.training_plan import Clock, check_memory

WAIT_SECONDS = 6 * 3600.0


def load_or_train(
    recipe_name: str, *, seed: int = 0, profile: str = "toy", device: str = "auto", until: int | None = None
) -> Run:
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
    until
        Stop at the last checkpoint up to this update; a later call goes on from there. None trains to the end.

    Raises
    ------
    UnknownProfileError, UnknownRecipeError, RecipeError
        If the recipe cannot be read, or has no checkpoint up to ``until``.
    CheckpointNotFoundError
        If the model it starts from is missing.
    TrainingDivergedError
        If a loss becomes NaN; the checkpoints so far stay and are whole.
    StorageError
        If the disk is full; nothing half-written is left.
    """
    run = run_of(load_recipe(recipe_name, profile), seed, until)
    bring_models(run.recipe, device)
    if fault_of(run):
        with storage.locked(run.path, wait_seconds=WAIT_SECONDS):
            if fault := fault_of(run):
                if (run.path / "DONE").is_file():
                    print(f"{run.path.name}: {fault}; training the run again from its last good state")
                    (run.path / "DONE").unlink()
                with bf16_products.made_fast():
                    _train(run, device)
    return run


def bring_models(recipe: Recipe, device: str) -> None:
    """Train the runs whose models a recipe starts from or learns from, and keep those models as folders."""
    for name in models_of(recipe):
        if needed := needed_run(name):
            name_of, profile = needed.recipe.name, needed.recipe.profile
            other = load_or_train(name_of, seed=needed.seed, profile=profile, device=device, until=needed.step)
            keep_trained(name, checkpoint_path(other.path, needed.step), fingerprint(other.recipe, other.seed))


def _train(run: Run, device: str) -> None:
    recipe, path = run.recipe, run.path
    storage.write_atomic(
        path / "recipe.yaml", yaml.safe_dump({**recipe.as_dict(), "seed": run.seed}, sort_keys=False).encode()
    )
    plan = check_memory(recipe, device)
    if plan is None:  # where blocks are large, keeping them would cost several times what the plan counts
        keep_freed_memory()
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
            if learner.step == run.until:
                return
    except KeyboardInterrupt:
        _store_where_stopped(run, learner, logs, accuracy)
        raise
    bar.close()
    origin = provenance(recipe, run.seed, str(learner.device))
    storage.write_json(path / "provenance.json", origin)
    for extra in set(path.glob("checkpoints/step_*")) - {p for c in run.checkpoints for p in _with_checksum(c.path)}:
        extra.unlink()  # of updates at which the run was stopped
    files = [c.path for c in run.checkpoints] + [path / "log.jsonl", path / "accuracy.jsonl"]
    storage.write_json(path / "DONE", {str(f.relative_to(path)): sha256_of(f) for f in files})
    for state in path.glob("state_*"):
        state.unlink()


def make_learner(run: Run, device: str) -> Learner:
    """Return the learner of a run, as it is before the first update (:func:`opdgeom_utils.starting.learner_of`)."""
    return learner_of(run.recipe, run.seed, device, _other_update(run, device))


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
    storage.write_atomic(run.path / "log.jsonl", lines_of(logs))
    storage.write_atomic(run.path / "accuracy.jsonl", lines_of(accuracy))
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
            tables = (rows_of(run.path / name) for name in ("log.jsonl", "accuracy.jsonl"))
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
