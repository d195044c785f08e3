"""The run contract: whatever happens to a run, it ends as the run to which nothing happened, byte for byte."""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from opdgeom_utils import load_or_train, runs, storage, training
from opdgeom_utils.batches import Batch
from opdgeom_utils.errors import (
    CheckpointNotFoundError,
    RecipeError,
    RunLockedError,
    StorageError,
    TrainingDivergedError,
    UnknownProfileError,
    UnknownRecipeError,
)
from opdgeom_utils.learner import Learner
from opdgeom_utils.project_files import PROJECT, runs_folder
from opdgeom_utils.provenance import fingerprint, training_source
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.runs import Run, checkpoint_path
from tests.tiny_world import DEFAULTS, RECIPES, World

#: Trains one run in a process of its own, and says after each update that it is done.
DRIVER = """
import sys, time
from pathlib import Path
from opdgeom_utils import models, profile_files, runs, training

models.MODELS, profile_files.RECIPES, go = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
inner = training.apply_update

def told(learner, batch):
    log = inner(learner, batch)
    print("update", learner.step, flush=True)
    return log

training.apply_update = told
print("ready", flush=True)
while not go.exists():
    time.sleep(0.01)
print("done", runs.load_or_train(sys.argv[4], profile="tiny").path, flush=True)
"""
Start = Callable[..., subprocess.Popen[str]]


def checkpoint_bytes(run: Run) -> dict[str, bytes]:
    return {c.path.name: c.path.read_bytes() for c in run.checkpoints}


def without_speed(run: Run) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


def assert_same_run(found: Run, expected: Run) -> None:
    assert checkpoint_bytes(found) == checkpoint_bytes(expected)
    assert without_speed(found) == without_speed(expected)
    assert (found.path / "accuracy.jsonl").read_bytes() == (expected.path / "accuracy.jsonl").read_bytes()
    assert sorted(p.name for p in found.path.rglob("*")) == sorted(p.name for p in expected.path.rglob("*"))


@pytest.fixture
def untouched(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Run]:
    """Train a run to which nothing happens, in a folder of its own."""

    def trained(name: str) -> Run:
        with monkeypatch.context() as patch:
            patch.setenv("OPDGEOM_RUNS", str(tmp_path / "untouched"))
            return load_or_train(name, profile="tiny")

    return trained


@pytest.fixture
def start(world: World, tmp_path: Path) -> Iterator[Start]:
    """Start training in another process; it waits for the file ``go``."""
    processes: list[subprocess.Popen[str]] = []
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPDGEOM_RUNS": str(world.runs)}

    def started(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, str(world.models), str(world.recipes), str(tmp_path / "go"), name]
        out = subprocess.PIPE
        processes.append(
            subprocess.Popen(command, env=env, cwd=PROJECT, stdout=out, stderr=subprocess.STDOUT, text=True)
        )
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


# --- what a run is ---------------------------------------------------------------------------------------------------


def test_a_run_has_all_that_the_contract_says(world: World) -> None:
    run = load_or_train("opd", seed=1, profile="tiny")
    digest = fingerprint(run.recipe, 1)
    assert run.path == world.runs / f"opd-s1-{digest[:8]}"
    assert [c.step for c in run.checkpoints] == [1, 2, 4]
    assert run.reference == world.models / "anchor"
    for checkpoint in run.checkpoints:
        state = load_file(checkpoint.path)
        assert set(state) == set(load_file(run.reference / "model.safetensors"))
        assert {value.dtype for value in state.values()} == {torch.float32}
    assert list(run.log["step"]) == [1, 2, 3, 4]
    assert list(run.accuracy["step"].unique()) == [0, 1, 2, 4]
    assert set(run.accuracy) == {
        "step", "domain", "family", "greedy", "sampled", "n_prompts", "greedy_parsed", "sampled_parsed"
    }  # fmt: skip
    assert yaml.safe_load((run.path / "recipe.yaml").read_text())["learning_rate"] == run.recipe.learning_rate
    assert run.provenance["fingerprint"] == digest
    assert run.provenance["training_source"] == training_source(run.recipe)
    assert run.provenance["training_version"] == training.TRAINING_VERSION
    assert set(run.provenance["versions"]) >= {"torch", "transformers"}
    assert {p.name for p in run.path.iterdir()} == {
        ".lock", "DONE", "accuracy.jsonl", "checkpoints", "log.jsonl", "provenance.json", "recipe.yaml"
    }  # fmt: skip


def test_a_finished_run_is_opened_and_not_trained(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_or_train("sft", profile="tiny")
    monkeypatch.setattr(training, "train", lambda _: pytest.fail("trained again"))
    again = load_or_train("sft", profile="tiny")
    assert again == first
    assert again.log.equals(first.log)


def test_provenance_without_git(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(world.runs / "nowhere"))
    assert load_or_train("sft", profile="tiny").provenance["commit"] == "unknown"


def test_runs_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPDGEOM_RUNS", str(tmp_path))
    assert runs_folder() == tmp_path
    monkeypatch.delenv("OPDGEOM_RUNS")
    assert runs_folder() == PROJECT / "data" / "runs"


# --- killed, and resumed ---------------------------------------------------------------------------------------------


def test_a_run_killed_with_signal_9_ends_as_if_it_had_not_been(
    world: World, start: Start, untouched: Callable[[str], Run], tmp_path: Path
) -> None:
    content = {"defaults": {**DEFAULTS, "steps": 12, "checkpoints": [2, 5, 9, 12]}, "recipes": RECIPES}
    (world.recipes / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    last, pause = random.SystemRandom().randint(1, 11), random.SystemRandom().uniform(0, 0.03)
    (tmp_path / "go").touch()
    process = start("opd")
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line.strip())
        if line.strip() == f"update {last}":
            break
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL, seen
    recipe = load_recipe("opd", "tiny")
    path = world.runs / f"opd-s0-{fingerprint(recipe, 0)[:8]}"
    assert path.is_dir()
    assert not (path / "DONE").exists(), f"killed after update {last}, too late to be a test"
    assert_same_run(load_or_train("opd", profile="tiny"), untouched("opd"))


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


def test_a_run_stopped_before_any_of_its_writes_ends_the_same(
    world: World, untouched: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"defaults": {**DEFAULTS, "steps": 3, "checkpoints": [1, 3]}, "recipes": RECIPES}
    (world.recipes / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    expected, write = untouched("sft"), storage.write_atomic
    for stop in range(100):
        count = iter(range(1000))

        def until(path: Path, data: bytes, count: Iterator[int] = count, stop: int = stop) -> None:
            if next(count) == stop:
                raise Killed
            write(path, data)

        shutil.rmtree(world.runs, ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_atomic", until)
            try:
                load_or_train("sft", profile="tiny")
                break
            except Killed:
                pass
        assert_same_run(load_or_train("sft", profile="tiny"), expected)
    assert stop == 13, "recipe, 6 files at the first checkpoint, 4 at the last, provenance, DONE"


def stopped_after_update_three(monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    inner = training.apply_update

    def stopping(learner: Learner, batch: Batch) -> training.Log:
        if learner.step == 3:
            raise Killed
        return inner(learner, batch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "apply_update", stopping)
        load_or_train(recipe, profile="tiny")


def test_resuming_says_where_it_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_after_update_three(monkeypatch, "rlvr")
    load_or_train("rlvr", profile="tiny")
    assert "resuming after update 2 of 4" in capsys.readouterr().out


# --- two processes ---------------------------------------------------------------------------------------------------


def test_two_processes_train_one_run_once(
    world: World, start: Start, untouched: Callable[[str], Run], tmp_path: Path
) -> None:
    processes = [start("opd"), start("opd")]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
    (tmp_path / "go").touch()
    texts = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    updates = [line for text in texts for line in text.splitlines() if line.startswith("update")]
    assert sorted(updates) == [f"update {step}" for step in (1, 2, 3, 4)], texts
    done = [line.removeprefix("done ") for text in texts for line in text.splitlines() if line.startswith("done")]
    assert done[0] == done[1]
    expected = untouched("opd")
    assert_same_run(Run(expected.recipe, 0, Path(done[0])), expected)


def test_a_run_in_use_is_given_up_after_the_waiting_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "WAIT_SECONDS", 0.3)
    path = world.runs / f"sft-s0-{fingerprint(load_recipe('sft', 'tiny'), 0)[:8]}"
    with storage.locked(path, wait_seconds=1.0), pytest.raises(RunLockedError, match="sft-s0"):
        load_or_train("sft", profile="tiny")


# --- damage ----------------------------------------------------------------------------------------------------------


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["checkpoints/step_000004.safetensors", "checkpoints/step_000001.safetensors", "DONE"])
def test_a_damaged_file_is_found_and_the_run_trained_again(
    name: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_or_train("sft", profile="tiny")
    expected = checkpoint_bytes(run)
    flip_a_byte(run.path / name)
    again = load_or_train("sft", profile="tiny")
    said = capsys.readouterr().out
    assert f"{run.path.name}: {name} is" in said
    assert "damaged" in said
    assert "training the run again" in said
    assert checkpoint_bytes(again) == expected
    assert (run.path / "DONE").is_file()
    load_or_train("sft", profile="tiny")
    assert capsys.readouterr().out == ""


def test_a_missing_file_is_found_and_the_run_trained_again(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_or_train("sft", profile="tiny")
    expected = checkpoint_bytes(run)
    run.checkpoints[1].path.unlink()
    assert checkpoint_bytes(load_or_train("sft", profile="tiny")) == expected
    assert "step_000002.safetensors is missing or damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("state_000002.safetensors", "state_000002.safetensors is damaged"),
        ("state_000002.sha256", "is damaged"),
        ("checkpoints/step_000002.safetensors", "step_000002.safetensors is damaged"),
        ("checkpoints/step_000001.safetensors", "step_000001.safetensors is damaged"),
        ("log.jsonl", ""),
        ("accuracy.jsonl", ""),
    ],
)
def test_damage_to_a_stopped_run_is_found_too(
    name: str, message: str, world: World, untouched: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    expected = untouched("sft")
    stopped_after_update_three(monkeypatch, "sft")
    capsys.readouterr()
    path = next(world.runs.glob("sft-*"))
    if name == "state_000002.sha256":
        (path / name).write_text("0" * 64)
    else:
        flip_a_byte(path / name)
    assert_same_run(load_or_train("sft", profile="tiny"), expected)
    said = capsys.readouterr().out
    assert message in said
    assert "resuming" not in said


# --- a full disk, a lost number --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    where: str, world: World, untouched: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = untouched("sft")
    owner = os if where == "fsync" else Path
    real, count = getattr(owner, where), iter(range(1000))

    def full(*args: object) -> object:
        if next(count) >= 8:  # in the middle of the second checkpoint's files
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left on device"):
        patch.setattr(owner, where, full)
        load_or_train("sft", profile="tiny")
    path = next(world.runs.glob("sft-*"))
    assert not list(path.rglob("*.part"))
    assert not (path / "DONE").exists()
    for file in path.rglob("*.safetensors"):
        storage.read_tensors(file)
    assert_same_run(load_or_train("sft", profile="tiny"), expected)


def test_a_lost_number_stops_the_run_and_keeps_what_was_whole(
    world: World, untouched: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, inner = untouched("sft"), training.apply_update

    def poisoned(learner: Learner, batch: Batch) -> training.Log:
        if learner.step == 2:
            with torch.no_grad():
                next(learner.student.parameters())[3, 0] = math.nan
        return inner(learner, batch)

    with monkeypatch.context() as patch, pytest.raises(TrainingDivergedError, match="update 3"):
        patch.setattr(training, "apply_update", poisoned)
        load_or_train("sft", profile="tiny")
    path = next(world.runs.glob("sft-*"))
    assert not (path / "DONE").exists()
    assert not list(path.rglob("*.part"))
    assert sorted(file.name for file in path.glob("checkpoints/*.safetensors")) == [
        "step_000001.safetensors",
        "step_000002.safetensors",
    ]
    for step in (1, 2):
        found, whole = checkpoint_path(path, step), checkpoint_path(expected.path, step)
        assert found.read_bytes() == whole.read_bytes()
    assert_same_run(load_or_train("sft", profile="tiny"), expected)


def test_poisoned_starting_weights_leave_no_checkpoint(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_models(world, tmp_path, monkeypatch)
    weights = load_file(folder / "base" / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = math.nan
    save_file(weights, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingDivergedError, match="update 1"):
        load_or_train("sft", profile="tiny")
    path = next(world.runs.glob("sft-*"))
    assert sorted(p.name for p in path.iterdir()) == [".lock", "recipe.yaml"]


# --- names, and what makes a run a new one ---------------------------------------------------------------------------


def copy_models(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(world.models, tmp_path / "copied")
    monkeypatch.setattr("opdgeom_utils.models.MODELS", tmp_path / "copied")
    return tmp_path / "copied"


def test_wrong_names_are_clear_errors_and_leave_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownProfileError, match="unknown profile 'tinny'"):
        load_or_train("opd", profile="tinny")
    with pytest.raises(UnknownRecipeError, match="unknown recipe 'odp'"):
        load_or_train("odp", profile="tiny")
    shutil.rmtree(copy_models(world, tmp_path, monkeypatch) / "teacher")
    with pytest.raises(CheckpointNotFoundError, match=r"no model 'teacher'.*\(anchor, base\)"):
        load_or_train("opd", profile="tiny")
    assert not world.runs.exists()


def test_a_model_folder_without_its_weights_is_a_clear_error(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy_models(world, tmp_path, monkeypatch) / "anchor" / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match="anchor"):
        load_or_train("opd", profile="tiny")
    assert not list(world.runs.rglob("*.safetensors"))


def test_fingerprint_follows_recipe_and_seed(world: World) -> None:
    recipe = load_recipe("opd", "tiny")
    content = {"defaults": {**DEFAULTS, "learning_rate": 2e-3}, "recipes": RECIPES}
    (world.recipes / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    changed = load_recipe("opd", "tiny")
    content["defaults"] = {**DEFAULTS, "seeds": [0, 1, 2]}
    (world.recipes / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    more_seeds = load_recipe("opd", "tiny")
    assert len({fingerprint(recipe, 0), fingerprint(recipe, 1), fingerprint(changed, 0)}) == 3
    assert fingerprint(more_seeds, 0) == fingerprint(recipe, 0)


@pytest.mark.parametrize("name", ["anchor", "teacher"])
def test_fingerprint_follows_the_weights(
    name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("opd", "tiny")
    before = fingerprint(recipe, 0)
    folder = copy_models(world, tmp_path, monkeypatch)
    assert fingerprint(recipe, 0) == before
    flip_a_byte(folder / name / "model.safetensors")
    assert fingerprint(recipe, 0) != before


# --- a run that stops at a checkpoint --------------------------------------------------------------------------------


def test_a_run_that_stopped_at_a_checkpoint_goes_on_to_the_same_bytes(
    world: World, untouched: Callable[[str], Run]
) -> None:
    part = load_or_train("opd", profile="tiny", until=3)
    assert [c.step for c in part.checkpoints] == [1, 2]
    assert part.last == 2
    assert list(part.log["step"]) == [1, 2]
    assert part.accuracy["step"].max() == 2
    assert not (part.path / "DONE").exists()
    assert_same_run(load_or_train("opd", profile="tiny"), untouched("opd"))
    again = load_or_train("opd", profile="tiny", until=2)
    assert again.log["step"].max() == 2
    assert (again.path / "DONE").exists()


def test_a_damaged_part_is_trained_again(world: World) -> None:
    part = load_or_train("opd", profile="tiny", until=2)
    before = checkpoint_bytes(part)
    part.checkpoints[0].path.write_bytes(b"damaged")
    assert checkpoint_bytes(load_or_train("opd", profile="tiny", until=2)) == before


def test_a_stop_before_the_first_checkpoint_is_refused(world: World) -> None:
    with pytest.raises(RecipeError, match="until is 0; the first checkpoint of recipe 'opd' of profile 'tiny' is 1"):
        load_or_train("opd", profile="tiny", until=0)
