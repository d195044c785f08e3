"""Progress kept, from rows whose answer is known."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from opdgeom_utils.chapters import sufficiency
from opdgeom_utils.chapters.committed_tables import PUBLISHED, BookTables
from opdgeom_utils.chapters.sufficiency import (
    inside_table,
    kept_table,
    progress,
    ruler_table,
    say_basis,
    say_starts,
)
from opdgeom_utils.errors import MetricInputError, StaleResultsError
from opdgeom_utils.measures.long_table import as_measures


def path(recipe: str, seed: int, accuracy: dict[int, float], distance: dict[int, float]) -> list[dict[str, object]]:
    key = {"profile": "toy", "recipe": recipe, "seed": seed}
    quantities = {"accuracy": accuracy, "teacher_distance": distance}
    return [key | {"quantity": q, "step": s, "value": v} for q, values in quantities.items() for s, v in values.items()]


def rows() -> pd.DataFrame:
    """OPD gains 10 points and 0.1 nats from 8 to 40 in seed 0, nothing in seed 1; RLVR was not stored at 24."""
    held = [
        *path("opd_project_early", 0, {40: 0.58}, {40: 0.55}),
        *path("opd_project_early", 1, {40: 0.51}, {40: 0.61}),
        *path("opd_project_k8", 0, {40: 0.62}, {40: 0.50}),
        *path("opd_project_random", 3, {40: 0.62}, {40: 0.50}),  # of a seed without its free run
        *path("rlvr_project_early", 0, {24: 0.52, 120: 0.55}, {24: 0.6, 120: 0.6}),
    ]
    inside = {"profile": "toy", "recipe": "opd_project_early", "step": 40, "k": 4, "quantity": "update_inside"}
    return as_measures([
        *path("opd", 0, {0: 0.4, 8: 0.5, 40: 0.6, 80: 0.9}, {0: 0.7, 8: 0.6, 40: 0.5, 80: 0.1}),
        *path("opd", 1, {0: 0.4, 8: 0.5, 40: 0.5, 80: 0.9}, {0: 0.7, 8: 0.6, 40: 0.65, 80: 0.1}),
        *path("rlvr", 0, {0: 0.4, 30: 0.5, 120: 0.6}, {0: 0.7, 30: 0.6, 120: 0.6}),
        *held,
        *(inside | {"seed": seed, "null": null, "value": v} for seed, null, v in
          [(0, "", 0.8), (1, "", 0.7), (0, "isotropic", 0.02), (1, "isotropic", 0.02)]),
    ])  # fmt: skip


def kept_of(recipe: str, quantity: str) -> list[float]:
    table = progress(rows(), "toy")
    return table.loc[(table["recipe"] == recipe) & (table["quantity"] == quantity), "kept"].tolist()


def test_the_early_space_against_others_on_common_seeds() -> None:
    table = progress(rows(), "toy")
    none = sufficiency.early_against(table, "teacher_distance")
    assert sufficiency.say_early_against(none) == "- No other space was tried."
    random = table[table["recipe"] == "opd_project_early"].assign(space="random space", kept=lambda t: t["kept"] - 0.2)
    both = sufficiency.early_against(pd.concat([table, random]), "accuracy")
    assert both["seeds"].tolist() == [1]  # the free run of seed 1 gains nothing
    assert both["difference"].tolist() == ["+20%"]
    assert "one seed" in sufficiency.say_early_against(both)
    three = pd.concat([random.assign(seed=s, kept=random["kept"] + s / 100) for s in (0, 2, 3)])
    early = three.assign(space="early space", kept=three["kept"] + 0.3)
    sure = sufficiency.early_against(pd.concat([early, three]), "teacher_distance")
    assert sure["verdict"].tolist() == ["more"]
    assert sure["difference"].tolist() == ["+30% (+30% to +30%)"]


def test_progress_by_hand() -> None:
    assert kept_of("opd_project_early", "accuracy")[0] == pytest.approx(0.8)
    assert kept_of("opd_project_early", "teacher_distance")[0] == pytest.approx(0.5)
    assert kept_of("opd_project_k8", "accuracy") == pytest.approx([1.2])
    assert kept_of("rlvr_project_early", "accuracy") == pytest.approx([0.5])


def test_a_seed_whose_free_run_gains_nothing_has_no_share() -> None:
    assert math.isnan(kept_of("opd_project_early", "accuracy")[1])
    assert math.isnan(kept_of("opd_project_early", "teacher_distance")[1])
    assert math.isnan(kept_of("rlvr_project_early", "teacher_distance")[0])


def test_a_seed_without_its_free_run_is_left_out() -> None:
    assert "opd_project_random" not in set(progress(rows(), "toy")["recipe"])


def test_the_nearest_checkpoint_stands_in_and_the_page_says_so() -> None:
    kept = progress(rows(), "toy")
    ends = kept.loc[kept["recipe"] == "rlvr_project_early", ["begins", "ends"]].drop_duplicates()
    assert ends.to_numpy().tolist() == [[30, 120]]
    assert say_starts(kept, rows(), "toy") == (
        "RLVR has no checkpoint at update 24, so that at 30 stands in (accuracy 50.0%; 52.0% at 24)."
    )
    only_opd = kept.loc[kept["free"] == "opd"]
    assert say_starts(only_opd, rows(), "toy") == "Every free run has a checkpoint where its projection begins."


def test_words_and_sweeps() -> None:
    kept = progress(rows(), "toy").drop_duplicates("recipe").set_index("recipe")
    assert kept["sweep"].to_dict() == {
        "opd_project_early": "space",
        "opd_project_k8": "rank",
        "rlvr_project_early": "space",
    }
    assert kept["rank"].to_dict() == {"opd_project_early": 4, "opd_project_k8": 8, "rlvr_project_early": 4}
    assert set(kept["share"]) == {0.2}


def test_the_basis_counts_runs_of_one_seed() -> None:
    assert say_basis(progress(rows(), "toy")) == (
        "Projected runs: 1 recipe with 2 seeds; 2 with one seed only, so without an interval and no ground for a "
        "verdict."
    )


def test_the_smallest_share_of_an_update_stands_for_frozen_matrices() -> None:
    kept = progress(rows(), "toy").assign(space="random space, update held")
    inside = pd.DataFrame({"space": ["random space, update held", "early space"], "inside": [0.02, 0.001]})
    said = sufficiency.say_nearly_frozen(inside, kept)
    assert "*random space, update held*: of each update of a matrix 2.0% of the squared norm" in said
    assert sufficiency.say_nearly_frozen(inside.tail(1), kept) == "No run here has its update held."


def test_the_table_counts_the_seeds_that_have_a_share() -> None:
    table = kept_table(progress(rows(), "toy"), "accuracy").set_index("recipe")
    assert table.loc["opd_project_early", ["progress kept", "95% interval", "seeds"]].tolist() == [
        "80%",
        "one seed",
        "1 of 2",
    ]
    assert table.loc["opd_project_k8", "progress kept"] == "120%"
    with pytest.raises(MetricInputError, match="expected one of"):
        kept_table(progress(rows(), "toy"), "greedy")


def test_rulers_show_gain_and_sampling_error() -> None:
    table = ruler_table(progress(rows(), "toy"), 100, 4).set_index(["run", "ruler"])
    opd = table.loc[("OPD", "sampled accuracy")]
    assert opd["gain"] == pytest.approx(0.05)
    assert opd["sampling error"] == pytest.approx(0.5 / 20)
    assert table.loc[("OPD", "distance to the teacher"), "sampling error"] == "none"
    assert table.loc[("OPD", "distance to the teacher"), "gain"] == pytest.approx(-0.025)


def test_inside_stands_beside_chance() -> None:
    table = inside_table(rows(), "toy")
    assert table[["recipe", "seed", "inside", "isotropic"]].to_numpy().tolist() == [
        ["opd_project_early", 0, 0.8, 0.02],
        ["opd_project_early", 1, 0.7, 0.02],
    ]


def test_committed_rows_are_cut_to_seeds_and_quantities() -> None:
    frame = pd.DataFrame({"recipe": ["opd"], "seed": [0]})
    tables = BookTables(frame, frame, frame, PUBLISHED, (0,), "")
    with pytest.raises(StaleResultsError, match="make runs"):
        sufficiency.function_table(tables)
    measures = pd.concat([rows(), rows().iloc[:1].assign(quantity="stable_rank")])
    found = sufficiency.function_table(replace(tables, measures=measures))
    assert set(found["seed"]) == {0}
    assert set(found["quantity"]) == {"accuracy", "teacher_distance", "update_inside"}
    with pytest.raises(StaleResultsError, match=r"seeds \[7\]"):
        sufficiency.function_table(replace(tables, measures=measures, seeds=(7,)))
