"""The tables of the settings on a hand-made world: what lies where, what is missing, what is read from cards."""

from pathlib import Path

import pandas as pd
import pytest

from opdgeom_utils import charts, models
from opdgeom_utils.chapters import settings as tables
from opdgeom_utils.claims import load_reported
from tests.unit.test_setting_statistics import place, world


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """One setting at RLVR's place, all others at OPD's."""
    return tables.setting_rows(world(opd_code=1.0))


def test_every_run_stands_where_it_is_compared(rows: pd.DataFrame) -> None:
    """SFT at its end, OPD and the settings after 40 updates, RLVR after 40 x 1023 / 299."""
    steps = rows.groupby("recipe")["step"].first()
    assert steps["sft"] == 200
    assert steps["opd"] == steps["opd_code"] == 40
    assert steps["rlvr"] == pytest.approx(40 * 1023 / 299)
    assert rows["recipe"].value_counts()["opd_code"] == 1
    assert rows["gain"].eq(0).all()


def test_the_place_between_sft_and_rlvr(rows: pd.DataFrame) -> None:
    beside = tables.beside_the_paper(rows, load_reported("table1_sparsity")).set_index("run")
    assert beside.loc[["SFT", "RLVR", "code only"], "place"].tolist() == pytest.approx([0.0, 1.0, 1.0])
    assert beside.loc["OPD", "place"] == pytest.approx(0.5)
    assert beside.loc["OPD", "its place"] == pytest.approx((0.516 - 0.081) / (0.772 - 0.081))


def test_only_the_setting_that_moved_leaves_the_seeds(rows: pd.DataFrame) -> None:
    ranges = tables.in_seed_ranges(rows)
    assert set(ranges.loc[~ranges["inside"], "run"]) == {"code only"}
    assert ranges["run"].iloc[0] == "teacher of two layers"
    assert ranges["run"].str.startswith("OPD, seed").sum() == 5 * 6
    said = tables.say_settings(rows, ranges)
    assert "code only: sparsity 60.0%, gain +0.0%; 6 of 6 diagnostics outside" in said[3]
    assert "mathematics only: sparsity 40.0%, gain +0.0%; 0 of 6" in said[3]
    chart = charts.settings_against_seeds(ranges).to_dict()
    assert "code only update sparsity" in chart["description"]
    assert "OPD, seed" not in chart["description"]


def test_a_seed_of_opd_is_held_against_the_others_only(rows: pd.DataFrame) -> None:
    """Four seeds at the mean and one far off: inside a range that it made itself, it would look like chance."""
    far = rows["recipe"].eq("opd") & rows["seed"].eq(4)
    moved = rows.assign(update_sparsity=rows["update_sparsity"].mask(far, 0.9))
    ranges = tables.in_seed_ranges(moved).query("run == 'OPD, seed 4' and metric == 'update sparsity'")
    assert ranges["inside"].tolist() == [False]


def test_places_in_words(rows: pd.DataFrame) -> None:
    table1 = load_reported("table1_sparsity")
    said = tables.say_places(tables.beside_the_paper(rows, table1), tables.in_seed_ranges(rows))
    assert said.startswith("By update sparsity 6 of 6 settings lie between SFT and RLVR. 1 of 6 leave")
    assert len(tables.papers_places(table1)) == 7
    none = rows[~rows["recipe"].isin(list(tables.SETTINGS))]
    assert "No setting" in tables.say_places(tables.beside_the_paper(none, table1), tables.in_seed_ranges(rows))


def test_settings_that_were_not_run_do_not_appear() -> None:
    whole = world()
    few = type(whole)(whole.geometry.query("recipe in ['sft', 'opd', 'rlvr', 'opd_code']"), whole.accuracy)
    found = tables.setting_rows(few)
    assert list(found["recipe"].unique()) == ["sft", "opd", "opd_code", "rlvr"]
    assert tables.say_settings(found, tables.in_seed_ranges(found))[0] == (
        "**Teacher size.** Not measured in these tables."
    )
    none = type(whole)(few.geometry.query("recipe != 'opd_code'"), whole.accuracy)
    assert list(tables.setting_rows(none)["recipe"].unique()) == ["sft", "opd", "rlvr"]


def test_settings_share_the_colour_of_opd_and_keep_their_rows(rows: pd.DataFrame) -> None:
    shown = rows.assign(recipe=rows["recipe"].replace(tables.SETTINGS))
    like = dict.fromkeys(tables.SETTINGS.values(), "OPD")
    chart = charts.sparsity_comparison(shown, nulls=["shuffled"], like=like).to_dict()
    data = pd.DataFrame(next(iter(chart["datasets"].values())))
    assert set(data["series"]) == {"SFT", "OPD", "RLVR", "shuffled null"}
    assert set(data["row"]) == {"SFT", "OPD", "RLVR", *tables.SETTINGS.values()}
    assert "code only 60.0% (one seed)" in chart["description"]


def test_nulls_are_printed_beside_their_numbers(rows: pd.DataFrame) -> None:
    shown = tables.setting_table(rows).set_index("run")
    assert shown.loc["code only", "update sparsity"] == "60.0% (10.0%)"
    assert shown.loc["OPD", "seeds"] == 5
    assert place(0.5)["update_sparsity_shuffled"] == 0.1


def test_sizes_and_accuracy_come_from_the_shipped_files(tmp_path: Path) -> None:
    found = tables.model_table(["teacher", "no-such-model"])
    assert found["model"].tolist() == ["teacher"]
    card = (models.MODELS / "teacher" / "README.md").read_text(encoding="utf-8")
    assert f"mean greedy {found['greedy'].iloc[0]:.3f}" in card
    assert tables.model_table(["teacher"], tmp_path).empty
