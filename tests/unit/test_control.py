"""The tables of the chapters on control, on a long table whose numbers are known, and the figures made of them."""

import numpy as np
import pandas as pd
import pytest

from opdgeom_utils import charts
from opdgeom_utils.chapters import control, moments
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.measures.long_table import as_measures
from opdgeom_utils.recipes import recipe_names
from opdgeom_utils.vocabulary import OBJECTIVES
from tests.control_world import measures


def paths_of(values: dict[tuple[str, int], dict[int, float]]) -> pd.DataFrame:
    keep = {"profile": "first_regime", "scope": "attention", "quantity": "stable_rank"}
    return as_measures(
        keep | {"recipe": r, "seed": s, "step": t, "value": v}
        for (r, s), path in values.items()
        for t, v in path.items()
    )


def test_every_variant_is_a_recipe_of_the_published_profile() -> None:
    assert set(control.VARIANTS) <= set(recipe_names("first_regime"))
    assert len(set(control.WORDS.values())) == len(control.WORDS)
    same = set(control.WORDS.values()) & {objective.label for objective in OBJECTIVES.values()}
    assert same == {"random credit"}  # one idea, of gradients there and of a whole run here: one colour


def test_distance_of_paths_by_hand() -> None:
    """OPD 4, 4; the variant 8, 4, and 1 where OPD has no checkpoint: the mean of log 2 and 0."""
    table = paths_of({("opd", 0): {2: 4, 40: 4}, ("opd", 1): {2: 2, 40: 4, 80: 99}, ("mix_50", 0): {2: 8, 3: 1, 40: 4}})
    gaps = control.path_gaps(table, ["mix_50", "mix_25"]).set_index(["row", "seed"])["value"]
    assert gaps["alpha 0.5", 0] == pytest.approx(np.log(2) / 2)
    assert gaps[control.OTHER_SEED, 0] == gaps[control.OTHER_SEED, 1] == pytest.approx(np.log(2) / 2)
    assert len(gaps) == 3  # no RLVR, no alpha 0.25, no seed 1 of the variant


def test_rlvr_is_read_off_at_opd_s_places() -> None:
    """RLVR goes from 4 at update 2 to 16 at update 4, half way in the logarithm is 8; beyond its end, nothing."""
    table = paths_of({("opd", 0): {2: 4, 3: 4, 4: 4, 40: 4}, ("rlvr", 0): {2: 4, 4: 16}})
    assert control.path_gaps(table, [])["value"].tolist() == [pytest.approx((0 + np.log(2) + np.log(4)) / 3)]


def test_a_sweep_keeps_the_order_of_its_settings() -> None:
    gaps = control.path_gaps(measures(), ["opd_top50", "opd_top25"])
    swept = control.sweep(gaps, {"top 50%": ("50%", "top"), "top 25%": ("25%", "top")})
    assert list(dict.fromkeys(swept["setting"])) == ["50%", "25%"]
    assert set(swept["series"]) == {"top"}
    assert "there is nothing to hold" in control.say_distances(gaps[gaps["row"] != "RLVR"])


def test_later_gradients_are_those_of_the_last_place_under_way() -> None:
    rows = [
        {"recipe": "opd", "other_recipe": "rlvr", "quantity": "gradient_ratio", "step": step, "value": ratio}
        for step, ratio in ((0, 2.0), (50, 3.0))
    ]
    held = {"quantity": "moment_alignment_independent", "other_recipe": "opd", "step": 50, "side": "left", "k": 4}
    rows += [held | {"recipe": "rlvr", "value": 0.8}, held | {"recipe": "opd", "null": "random_credit", "value": 0.5}]
    made = as_measures(row | {"profile": "rq3", "seed": seed} for row in rows for seed in (0, 1))
    assert moments.say_later(made, ["rlvr"], 4) == (
        "At update 50 OPD's gradient is 3.0 times as long as RLVR's (2.0 at the anchor; seeds: 2). Shown to come "
        "nearer to OPD's moment than random credit, which has 0.50 (left), are on the left 1 of 1 (RLVR); by their "
        "means they have 0.80 to 0.80."
    )


def test_the_easy_bar_in_words() -> None:
    said = moments.say_easy_bar(measures(), ["opd_top25"], 4)
    assert said.startswith("On the same batches, left: masks ")
    assert "RLVR" in said


def test_between_checkpoints_by_a_straight_line_and_never_beyond() -> None:
    table = paths_of({("opd", 0): {20: 1, 40: 2}, ("rlvr", 0): {30: 1, 50: 3}, ("mix_50", 0): {20: 1, 30: 5}})
    found = control.at_update(table, ["mix_50"], {"stable_rank": "rank"})
    assert found[["row", "value"]].values.tolist() == [["OPD", 2.0], ["RLVR", 2.0]]


def test_no_path_of_opd_is_an_error() -> None:
    with pytest.raises(MetricInputError, match="no stable rank of opd"):
        control.common_update(paths_of({("rlvr", 0): {2: 1}}))


def test_overlaps_name_whom_they_are_with() -> None:
    table = control.overlap_table(measures(), ["opd_top25", "mix_01"])
    rows = table.groupby("row", sort=False)["kind"].first()
    assert rows.to_dict() == {
        "top 25%": "variant", "alpha 0.01": "variant", control.OTHER_SEED: "null", control.AGAINST: "null",
        "chance": "null",
    }  # fmt: skip
    assert set(table["panel"]) == {"right space", "left space"}
    assert table.groupby("row")["seed"].nunique().eq(3).all()


def test_a_sweep_over_one_seed_is_called_one() -> None:
    said = control.say_seeds(control.path_gaps(measures(), ["opd_top50", "opd_top5"]))
    assert said == "3 rows have 3 seeds. 1 row has one seed: a sweep, drawn without a bar."
    assert control.say_seeds(pd.DataFrame({"row": [], "seed": []})) == "No run of these is in the tables."


def test_moments_beside_their_nulls() -> None:
    table = moments.moment_table(measures(), ["opd_top25"], "moment_alignment_independent", k=4)
    right = table[table["panel"] == "right moment"].groupby("row", sort=False)["value"].mean()
    assert right.round(3).to_dict() == {
        "top 25%": 0.8, "other batches of OPD": 0.7, "random credit": 0.5, "chance": 0.021,
    }  # fmt: skip


@pytest.mark.parametrize("recipes", [[*control.TOKENS], ["opd_top50"], []])
def test_paths_have_opd_and_rlvr_in_each_panel(recipes: list[str]) -> None:
    table = control.path_table(measures(), recipes)
    drawn = table.groupby("panel")["recipe"].agg(set)
    assert len(drawn) == max(1, len(recipes))
    assert all({"OPD", "RLVR"} <= names for names in drawn)
    assert table["step"].max() == 40


def test_figures_say_what_they_show() -> None:
    nothing = charts.variant_strips(control.path_gaps(measures(), []).assign(value=np.nan), "path_gap").to_dict()
    assert nothing["description"] == "Nothing to draw: the table has no defined number of path gap."
    said = charts.variant_paths(control.path_table(measures(), ["mix_01"])).to_dict()["description"]
    assert "alpha 0.01" in said
    assert "3 seeds" in said
