"""The committed tables: written whole, read back, refused when they are not today's, and held against a live run."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from opdgeom_utils import results
from opdgeom_utils.errors import StaleResultsError
from opdgeom_utils.measures.long_table import as_measures
from opdgeom_utils.runs import load_or_train
from tests.tiny_world import DEFAULTS, RECIPES, World

TABLES = ("geometry", "training", "accuracy")


@pytest.fixture
def written(world: World, tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    results.write_tables([load_or_train("sft", profile="tiny")], folder)
    return folder


def rewrite_recipes(world: World, recipes: dict[str, dict[str, object]]) -> None:
    content = {"defaults": DEFAULTS, "recipes": recipes}
    (world.recipes / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def test_one_row_for_each_thing_that_was_measured(written: Path) -> None:
    tables = results.load_tables("tiny", written)
    assert set(tables.geometry["step"]) == {1, 2, 4}
    assert not tables.geometry.duplicated(["recipe", "seed", "step", "name"]).any()
    assert tables.training.groupby("seed").size().tolist() == [4]
    assert set(tables.accuracy["step"]) == {0, 1, 2, 4}
    assert {"stable_rank_bf16", "update_sparsity_shuffled", "left_angle_mean_deg_identical"} <= set(tables.geometry)


def test_provenance_names_every_run_and_its_weights(written: Path, world: World) -> None:
    runs = json.loads((written / "provenance.json").read_text())["runs"]
    assert [(run["recipe"]["name"], run["seed"]) for run in runs] == [("sft", 0)]
    assert all(set(run["weights"]) == {"base", "teacher", "anchor"} for run in runs)
    assert all(run["versions"]["torch"] and run["commit"] for run in runs)


def test_the_same_runs_write_the_same_bytes(written: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    results.write_tables([load_or_train("sft", profile="tiny")], again)
    for name in TABLES:
        assert (again / f"{name}.parquet").read_bytes() == (written / f"{name}.parquet").read_bytes()


def test_adding_a_run_keeps_the_rows_of_a_run_whose_folder_is_gone(written: Path, world: World) -> None:
    before = {name: pd.read_parquet(written / f"{name}.parquet") for name in TABLES}
    shutil.rmtree(load_or_train("sft", profile="tiny").path)
    after = vars(results.write_tables([load_or_train("sft", seed=1, profile="tiny")], written, add=True))
    for name, rows in before.items():
        pd.testing.assert_frame_equal(after[name][after[name]["seed"] == 0], rows)
        assert set(after[name]["seed"]) == {0, 1}
    assert [key[1:] for key in results.recorded_runs(written)] == [("sft", 0), ("sft", 1)]
    results.load_tables("tiny", written)


def test_the_long_table_keeps_what_another_run_measured_in_a_variant_s_name(written: Path, world: World) -> None:
    same = {"profile": "tiny", "recipe": "sft", "seed": 0, "step": 0}
    moment, old, new = (same | {"quantity": q, "value": v} for q, v in (("moment_fit", 0.9), ("hill", 1), ("hill", 2)))
    runs = [load_or_train("sft", profile="tiny")]
    results.write_tables(runs, written, measures=as_measures([moment, old]), add=True)
    after = results.write_tables(runs, written, measures=as_measures([new]), add=True).measures
    assert after is not None
    assert dict(zip(after["quantity"], after["value"], strict=True)) == {"moment_fit": 0.9, "hill": 2.0}


def test_adding_a_run_that_is_there_replaces_its_rows(written: Path) -> None:
    before = (written / "training.parquet").read_bytes()
    results.write_tables([load_or_train("sft", profile="tiny")], written, add=True)
    assert (written / "training.parquet").read_bytes() == before
    assert len(json.loads((written / "provenance.json").read_text())["runs"]) == 1


def test_a_changed_recipe_makes_them_stale(written: Path, world: World) -> None:
    rewrite_recipes(world, {**RECIPES, "sft": {**RECIPES["sft"], "learning_rate": 2.0e-3}})
    with pytest.raises(StaleResultsError, match=r"sft, seed 0, is out of date: its recipe has changed.*make runs"):
        results.load_tables("tiny", written)


def test_one_seed_more_does_not_but_a_dropped_recipe_does(written: Path, world: World) -> None:
    rewrite_recipes(world, {**RECIPES, "sft": {**RECIPES["sft"], "seeds": [0, 1, 2]}})
    assert results.load_tables("tiny", written)
    rewrite_recipes(world, {"opd": RECIPES["opd"]})
    with pytest.raises(StaleResultsError, match="no recipe sft any more"):
        results.load_tables("tiny", written)


def test_other_weights_or_another_training_version_make_them_stale(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(StaleResultsError, match="version 99"):
        patch.setattr(results, "TRAINING_VERSION", 99)
        results.load_tables("tiny", written)
    with monkeypatch.context() as patch, pytest.raises(StaleResultsError, match="models it starts from have changed"):
        patch.setattr(results, "weights_of", lambda recipe: {"base": "0"})
        results.load_tables("tiny", written)


def test_a_missing_file_is_named(written: Path, world: World) -> None:
    for name in (*(f"{table}.parquet" for table in TABLES), "provenance.json"):
        content = (written / name).read_bytes()
        (written / name).unlink()
        with pytest.raises(StaleResultsError, match="make runs"):
            results.load_tables("tiny", written)
        (written / name).write_bytes(content)
    assert results.load_tables("tiny", written)


def test_a_live_number_outside_the_seeds_spread_stops() -> None:
    committed = pd.DataFrame({"x": [1.0, 1.1, 0.9, 1.05, 0.95]})
    inside = results.check_live(pd.Series({"x": 1.02}), committed)
    assert inside["inside"].tolist() == [True]
    with pytest.raises(StaleResultsError, match="does not agree with the committed seeds"):
        results.check_live(pd.Series({"x": 5.0}), committed)


def test_what_is_undefined_here_and_there_agrees() -> None:
    """An update that nothing shows has no overlap; a live run without a number where the seeds have one is told."""
    live = pd.Series({"x": 1.0, "overlap": float("nan")})
    seeds = pd.DataFrame({"x": [0.9, 1.0, 1.1], "overlap": [float("nan")] * 3})
    assert results.check_live(live, seeds)["inside"].tolist() == [True, True]
    with pytest.raises(StaleResultsError, match="overlap"):
        results.check_live(live, seeds.assign(overlap=[0.1, 0.2, 0.3]))


def test_measures_are_cut_to_the_profile_and_may_be_missing(tmp_path: Path) -> None:
    row = {"recipe": "opd", "seed": 0, "step": 8, "quantity": "accuracy", "value": 0.5}
    path = tmp_path / "measures.parquet"
    assert results._rows_of(path, "first_regime") is None
    as_measures([row | {"profile": name} for name in ("first_regime", "smoke")]).to_parquet(path)
    found = results._rows_of(path, "first_regime")
    assert found is not None
    assert found["profile"].tolist() == ["first_regime"]
