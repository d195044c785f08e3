"""The tables of the settings on a hand-made world: what lies where, what is missing, what is read from cards."""

import pandas as pd
import pytest

from opdgeom_utils import charts
from opdgeom_utils.chapters import settings as tables
from tests.unit.test_setting_statistics import world


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


def test_only_the_setting_that_moved_leaves_the_seeds(rows: pd.DataFrame) -> None:
    ranges = tables.in_seed_ranges(rows)
    assert set(ranges.loc[~ranges["inside"], "run"]) == {"code only"}
    assert ranges.loc[ranges["run"] == "code only", "inside"].tolist() == [False] * 6
    assert ranges["run"].iloc[0] == "teacher of two layers"
    assert ranges["run"].str.startswith("OPD, seed").sum() == 5 * 6
    chart = charts.settings_against_seeds(ranges).to_dict()
    assert "code only update sparsity" in chart["description"]
    assert "OPD, seed" not in chart["description"]


def test_a_seed_of_opd_is_held_against_the_others_only(rows: pd.DataFrame) -> None:
    """Four seeds at the mean and one far off: inside a range that it made itself, it would look like chance."""
    far = rows["recipe"].eq("opd") & rows["seed"].eq(4)
    moved = rows.assign(update_sparsity=rows["update_sparsity"].mask(far, 0.9))
    ranges = tables.in_seed_ranges(moved).query("run == 'OPD, seed 4' and metric == 'update sparsity'")
    assert ranges["inside"].tolist() == [False]


def test_settings_that_were_not_run_do_not_appear() -> None:
    whole = world()
    few = type(whole)(whole.geometry.query("recipe in ['sft', 'opd', 'rlvr', 'opd_code']"), whole.accuracy)
    found = tables.setting_rows(few)
    assert list(found["recipe"].unique()) == ["sft", "opd", "opd_code", "rlvr"]
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
