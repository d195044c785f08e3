"""Runs of variants on disk: stopped and gone on with, dependent on another run, kept when the source is rewritten."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from opdgeom_utils import kept, load_or_train, runs, training
from opdgeom_utils.batches import Batch
from opdgeom_utils.errors import RecipeError
from opdgeom_utils.learner import Learner
from opdgeom_utils.provenance import fingerprint
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.runs import Run
from tests.tiny_world import DEFAULTS, RECIPES, World
from tools import adopt_runs

Halt = Callable[[int], None]


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


@pytest.fixture
def halt(monkeypatch: pytest.MonkeyPatch) -> Halt:
    """Stop training before an update; stop nothing when the number is negative."""
    inner, before = training.apply_update, [-1]

    def stopping(learner: Learner, batch: Batch) -> training.Log:
        if learner.step == before[0] and learner.recipe.projection_space:
            raise Killed
        return inner(learner, batch)

    monkeypatch.setattr(training, "apply_update", stopping)
    return lambda step: before.__setitem__(0, step)


def content_of(run: Run) -> tuple[list[bytes], list[dict[str, float]]]:
    rows = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    log = [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]
    return [checkpoint.path.read_bytes() for checkpoint in run.checkpoints], log


def with_recipes(world: World, **changed: dict[str, object]) -> None:
    """Write the profile again: six updates, five checkpoints, and these recipes changed or added."""
    defaults = {**DEFAULTS, "steps": 6, "checkpoints": [1, 2, 3, 4, 6]}
    content = {"defaults": defaults, "recipes": {**RECIPES, **changed}}
    (world.recipes / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


@pytest.mark.parametrize(("space", "stops"), [("early", [2, 4]), ("complement", [5]), ("activations", [3])])
def test_a_projected_run_killed_before_or_after_its_space_is_taken_ends_the_same(
    space: str, stops: list[int], world: World, tmp_path: Path, halt: Halt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 2 the space is not there yet, from 4 on it must come back from the checkpoint at update 2."""
    with_recipes(world, opd_project_early={**RECIPES["opd_project_early"], "projection_space": space})
    expected = content_of(load_or_train("opd_project_early", profile="tiny"))
    monkeypatch.setenv("OPDGEOM_RUNS", str(tmp_path / "stopped"))
    for stop in stops:
        halt(stop)
        with pytest.raises(Killed):
            load_or_train("opd_project_early", profile="tiny")
    halt(-1)
    assert content_of(load_or_train("opd_project_early", profile="tiny")) == expected
    assert all("update_inside" in row for row in expected[1][2:])


def test_the_held_run_and_the_free_run_share_their_past(world: World) -> None:
    free, held = (load_or_train(name, profile="tiny") for name in ("opd", "opd_project_early"))
    same = [a.path.read_bytes() == b.path.read_bytes() for a, b in zip(free.checkpoints, held.checkpoints, strict=True)]
    assert same == [True, True, False]


def test_a_run_in_another_s_space_trains_the_other_first_and_takes_its_update(world: World, halt: Halt) -> None:
    halt(4)
    with_recipes(world)
    with pytest.raises(Killed):
        load_or_train("opd_project_elsewhere", profile="tiny", seed=1)
    other = load_or_train("rlvr", profile="tiny", seed=1)
    assert (other.path / "DONE").is_file()
    learner = runs.make_learner(Run(load_recipe("opd_project_elsewhere", "tiny"), 1, world.runs / "unused"), "cpu")
    assert learner.other_update is not None
    end = runs.storage.read_tensors(runs.checkpoint_path(other.path, 2))
    for (name, start), update in zip(learner.student.named_parameters(), learner.other_update.values(), strict=True):
        torch.testing.assert_close(update, end[name] - start.detach())


def test_a_space_that_was_not_stored_is_refused_before_any_training(world: World) -> None:
    with_recipes(world, opd_project_elsewhere={**RECIPES["opd_project_elsewhere"], "projection_space": "run:rlvr@5"})
    with pytest.raises(RecipeError, match=r"rlvr at update 5, which has checkpoints \[1, 2, 3, 4, 6\] only"):
        load_or_train("opd_project_elsewhere", profile="tiny")
    assert not list(world.runs.rglob("*.safetensors"))


def test_a_dependent_run_s_name_follows_the_other_run(world: World) -> None:
    names = ("opd_project_elsewhere", "opd_project_early")
    before = {name: fingerprint(load_recipe(name, "tiny"), 0) for name in names}
    with_recipes(world)
    recipes_now = {name: replace(load_recipe(name, "tiny"), steps=4, checkpoints=(1, 2, 4)) for name in names}
    after = {name: fingerprint(recipe, 0) for name, recipe in recipes_now.items()}
    assert after["opd_project_elsewhere"] != before["opd_project_elsewhere"], "rlvr has six updates now"
    assert after["opd_project_early"] == before["opd_project_early"]
    assert fingerprint(recipes_now["opd_project_elsewhere"], 1) != after["opd_project_elsewhere"]


def test_a_writer_s_weights_are_part_of_the_run_s_name(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(load_recipe("opd", "tiny"), writer="base")
    free = fingerprint(load_recipe("opd", "tiny"), 0)
    before = fingerprint(recipe, 0)
    shutil.copytree(world.models, tmp_path / "copied")
    monkeypatch.setattr("opdgeom_utils.models.MODELS", tmp_path / "copied")
    assert fingerprint(recipe, 0) == before != free
    weights = tmp_path / "copied" / "base" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0xFF
    weights.write_bytes(bytes(content))
    assert fingerprint(recipe, 0) != before
    assert fingerprint(load_recipe("opd", "tiny"), 0) == free


# --- the source was rewritten, the numbers were not ------------------------------------------------------------------


@pytest.fixture
def rewritten(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Give every run another fingerprint, as a change of the source would."""
    inner = kept.digest
    return lambda: monkeypatch.setattr(kept, "digest", lambda *a, **k: inner(*a, **k) + "#")


def adopt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["adopt_runs", "--profile", "tiny"])
    assert adopt_runs.main() == 0


def test_runs_whose_numbers_did_not_change_are_kept_dependent_ones_last(
    world: World, rewritten: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {name: load_or_train(name, profile="tiny") for name in ("opd_project_elsewhere", "rlvr")}
    expected = {name: content_of(run) for name, run in old.items()}
    trained = {name: fingerprint(run.recipe, 0) for name, run in old.items()}
    rewritten()
    adopt(monkeypatch)
    assert capsys.readouterr().out.count("kept as") == 2
    monkeypatch.setattr(training, "train", lambda _: pytest.fail("trained again"))
    for name, run in old.items():
        now = load_or_train(name, profile="tiny")
        assert now.path != run.path
        assert not run.path.exists()
        assert content_of(now) == expected[name]
        assert now.provenance["fingerprint"] == fingerprint(now.recipe, 0)
        assert now.provenance["trained_as"] == trained[name] != now.provenance["fingerprint"]


@pytest.mark.parametrize("where", ["first", "projected"])
def test_a_run_whose_numbers_changed_stays_under_its_old_name(
    where: str, world: World, rewritten: Callable[[], None], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A change that shows only once the projection has begun is found too."""
    run = load_or_train("opd_project_early", profile="tiny")
    inner, when = training.apply_update, 0 if where == "first" else 2

    def other(learner: Learner, batch: Batch) -> training.Log:
        if learner.step >= when:
            batch.advantages = batch.advantages * 2 + 1e-3
        return inner(learner, batch)

    monkeypatch.setattr(training, "apply_update", other)
    rewritten()
    adopt(monkeypatch)
    assert "differs, will be trained again" in capsys.readouterr().out
    assert (run.path / "DONE").is_file()


def test_of_two_folders_of_one_run_one_is_kept(
    world: World, rewritten: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_or_train("sft", profile="tiny")
    shutil.copytree(run.path, run.path.with_name("sft-s0-00000000"))
    rewritten()
    adopt(monkeypatch)
    said = capsys.readouterr().out
    assert said.count("kept as sft-s0-") == 2
    assert said.count("already kept") == 1
    assert len(list(world.runs.glob("sft-*"))) == 2


def test_other_recipes_other_profiles_and_unfinished_runs_are_no_candidates(
    world: World, rewritten: Callable[[], None]
) -> None:
    run = load_or_train("sft", profile="tiny")
    assert adopt_runs.candidates("tiny") == [], "under today's name already"
    rewritten()
    assert [old.path for old, _ in adopt_runs.candidates("tiny")] == [run.path]
    with_recipes(world)
    assert adopt_runs.candidates("tiny") == [], "another number of updates"
