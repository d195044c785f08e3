"""A chapter that is asked for a large model without tables says what is missing, how to make it, and how long."""

import json
from pathlib import Path

import pytest
import yaml

from opdgeom_utils import trained_models
from opdgeom_utils.chapters import missing_runs
from opdgeom_utils.chapters.missing_runs import stop_without_runs
from opdgeom_utils.chapters.parameters import check_parameters
from opdgeom_utils.errors import MissingRunsError, NotebookFailedError
from opdgeom_utils.recipes import load_recipe, recipe_names
from opdgeom_utils.report.papermill_run import run_papermill
from opdgeom_utils.run_files import run_of
from tests.tiny_world import World
from tools.build_book import ROOT


@pytest.fixture
def nothing_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of runs, and no committed tables."""
    monkeypatch.setenv("OPDGEOM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(missing_runs, "are_committed", lambda profile: False)
    return tmp_path / "runs"


def begun(name: str, seed: int, rows: int, *, done: bool = False) -> None:
    """Leave a run as after so many updates: completions of 20 tokens at 100 tokens a second."""
    folder = run_of(load_recipe(name, "smollm2-135m"), seed).path
    folder.mkdir(parents=True)
    log = [{"step": i + 1, "completion_length": 20.0, "tokens_per_second": 100.0} for i in range(rows)]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
    if done:
        (folder / "DONE").write_text("{}")


def message(profile: str = "smollm2-135m") -> str:
    with pytest.raises(MissingRunsError) as told:
        check_parameters({"__annotations__": {"profile": str}, "profile": profile})
    return str(told.value)


def test_it_names_runs_command_and_where_the_time_will_stand(nothing_trained: Path) -> None:
    said, content = message(), yaml.safe_load((ROOT / "data/recipes/smollm2-135m.yaml").read_text())
    seeds = {name: block.get("seeds", content["defaults"]["seeds"]) for name, block in content["recipes"].items()}
    count = sum(map(len, seeds.values()))
    assert f"{count} of {count} runs are missing: sft, seed 0; opd, seeds 0 1 2;" in said
    assert "`make runs PROFILE=smollm2-135m`" in said
    assert f"not known before a run has begun on this machine: each writes it into {nothing_trained / 'logs'}" in said


def test_the_time_is_that_of_runs_that_have_begun(nothing_trained: Path) -> None:
    begun("sft", 0, 300, done=True)
    begun("opd", 1, 8)
    said = message()
    others = [name for name in recipe_names("smollm2-135m") if name != "sft"]
    recipes = {name: load_recipe(name, "smollm2-135m") for name in others}
    size = {name: recipe.prompts_per_update * recipe.group_size for name, recipe in recipes.items()}
    updates = {name: recipe.steps * len(recipe.seeds) for name, recipe in recipes.items()}
    updates["opd"] -= 8
    hours = sum(updates[name] * size[name] for name in recipes) * 0.2 / 3600
    assert "sft, seed 0" not in said
    assert f"about {hours:.1f} hours of one process" in said
    assert "has not begun" not in said


def test_a_kind_that_has_not_begun_is_named(nothing_trained: Path) -> None:
    begun("sft", 0, 300, done=True)
    assert "; and runs of a kind that has not begun here" in message()


def test_small_models_and_finished_runs_are_no_reason(
    world: World, nothing_trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_without_runs("tiny")
    monkeypatch.setattr(trained_models, "LARGE", 100)
    with pytest.raises(MissingRunsError, match="sft, seeds 0 1; opd, seeds 0 1"):
        stop_without_runs("tiny")
    for recipe in missing_runs.recipe_names("tiny"):
        for seed in (0, 1):
            (path := run_of(load_recipe(recipe, "tiny"), seed).path).mkdir(parents=True)
            (path / "DONE").write_text("{}")
    stop_without_runs("tiny")


def test_a_chapter_stops_with_one_message(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("profile: qwen3-0.6b\nseeds: [0]\n")
    out = tmp_path / "out.ipynb"
    with pytest.raises(NotebookFailedError) as told:
        run_papermill(ROOT / "notebooks/12_what_a_verdict_means.ipynb", out, values, ROOT, tmp_path / "log.txt")
    lines = str(told.value).splitlines()
    assert lines[0] == "code cell 3 stopped:"
    assert lines[1].startswith("profile 'qwen3-0.6b' has no tables in data/results/qwen3-0.6b")
    assert "`make runs PROFILE=qwen3-0.6b`" in lines[1]
    assert lines[2].startswith("(whole log:")
