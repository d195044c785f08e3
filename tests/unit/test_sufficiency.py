"""What progress kept is made of, from rows whose answer is known."""

from dataclasses import replace

import pandas as pd
import pytest

from opdgeom_utils.chapters.committed_tables import BookTables, with_measures
from opdgeom_utils.chapters.sufficiency import early_against, projected_runs, say_basis, say_starts, start_and_ends
from opdgeom_utils.errors import StaleResultsError
from opdgeom_utils.measures.long_table import as_measures


def path(recipe: str, seed: int, accuracy: dict[int, float], distance: dict[int, float]) -> list[dict[str, object]]:
    key = {"profile": "first_regime", "recipe": recipe, "seed": seed}
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
    inside = {"profile": "first_regime", "recipe": "opd_project_early", "step": 40, "k": 4, "quantity": "update_inside"}
    return as_measures([
        *path("opd", 0, {0: 0.4, 8: 0.5, 40: 0.6, 80: 0.9}, {0: 0.7, 8: 0.6, 40: 0.5, 80: 0.1}),
        *path("opd", 1, {0: 0.4, 8: 0.5, 40: 0.5, 80: 0.9}, {0: 0.7, 8: 0.6, 40: 0.65, 80: 0.1}),
        *path("rlvr", 0, {0: 0.4, 30: 0.5, 120: 0.6}, {0: 0.7, 30: 0.6, 120: 0.6}),
        *held,
        *(inside | {"seed": seed, "null": null, "value": v} for seed, null, v in
          [(0, "", 0.8), (1, "", 0.7), (0, "isotropic", 0.02), (1, "isotropic", 0.02)]),
    ])  # fmt: skip


def ends() -> pd.DataFrame:
    return start_and_ends(rows(), projected_runs("first_regime"))


def with_progress() -> pd.DataFrame:
    """As the chapter divides."""
    table = ends()
    upwards = table["quantity"].map({"accuracy": 1, "teacher_distance": -1})
    free = table["free_end"] - table["start"]
    return table.assign(kept=((table["held_end"] - table["start"]) / free).where(upwards * free > 0).round(12))


def numbers_of(recipe: str, quantity: str) -> list[list[float]]:
    table = ends()
    own = table[(table["recipe"] == recipe) & (table["quantity"] == quantity)]
    return own[["start", "free_end", "held_end"]].to_numpy().tolist()


def test_three_numbers_of_one_seed() -> None:
    """The free run where the projection begins and at the update where the held one ends, not at its own end."""
    assert numbers_of("opd_project_early", "accuracy") == [[0.5, 0.6, 0.58], [0.5, 0.5, 0.51]]
    assert numbers_of("opd_project_early", "teacher_distance") == [[0.6, 0.5, 0.55], [0.6, 0.65, 0.61]]
    assert numbers_of("opd_project_k8", "accuracy") == [[0.5, 0.6, 0.62]]
    assert numbers_of("rlvr_project_early", "accuracy") == [[0.5, 0.6, 0.55]]


def test_a_null_is_no_run() -> None:
    null = rows().query("quantity == 'accuracy'").assign(null="shuffled", value=9.0)
    pd.testing.assert_frame_equal(start_and_ends(pd.concat([rows(), null]), projected_runs("first_regime")), ends())


def test_the_early_space_against_others_on_common_seeds() -> None:
    table = with_progress()
    assert early_against(table, "teacher_distance").empty
    random = table[table["recipe"] == "opd_project_early"].assign(space="random space", kept=lambda t: t["kept"] - 0.2)
    both = early_against(pd.concat([table, random]), "accuracy")
    assert both[["run", "other space", "seeds"]].to_numpy().tolist() == [
        ["OPD", "random space", 1]
    ]  # seed 1 gains nothing
    assert both[["early keeps", "other keeps", "difference", "verdict"]].to_numpy().tolist() == [
        ["80%", "60%", "+20%", "one seed"]
    ]
    three = pd.concat([random.assign(seed=s, kept=random["kept"] + s / 100) for s in (0, 2, 3)])
    early = three.assign(space="early space", kept=three["kept"] + 0.3)
    sure = early_against(pd.concat([early, three]), "teacher_distance")
    assert sure["verdict"].tolist() == ["more"]
    assert sure["difference"].tolist() == ["+30% (+30% to +30%)"]


def test_a_seed_without_its_free_run_is_left_out() -> None:
    assert "opd_project_random" not in set(ends()["recipe"])


def test_the_nearest_checkpoint_stands_in_and_the_page_says_so() -> None:
    table = ends()
    own = table.loc[table["recipe"] == "rlvr_project_early", ["begins", "ends"]].drop_duplicates()
    assert own.to_numpy().tolist() == [[30, 120]]
    assert say_starts(rows(), table) == (
        "RLVR has no checkpoint at update 24, so that at 30 stands in (accuracy 50.0%; 52.0% at 24)."
    )
    only_opd = table.loc[table["free"] == "opd"]
    assert say_starts(rows(), only_opd) == "Every free run has a checkpoint where its projection begins."


def test_words_and_sweeps() -> None:
    runs = projected_runs("first_regime").set_index("recipe")
    assert runs.loc[["opd_project_early", "opd_project_k8", "opd_project_from4"], "sweep"].tolist() == [
        *["space", "rank", "start"]
    ]
    assert runs.loc[["opd_project_early", "opd_project_k8", "rlvr_project_early"], "rank"].tolist() == [4, 8, 4]
    assert runs.loc["opd_project_rlvr", ["free", "space"]].tolist() == ["opd", "RLVR's early space"]
    assert runs.loc["opd_project_left", "space"] == "early space, left side"
    assert set(ends()["share"]) == {0.2}


def test_the_basis_counts_runs_of_one_seed() -> None:
    assert say_basis(ends()) == (
        "Projected runs: 1 recipe with 2 seeds; 2 with one seed only, so without an interval and no ground for a "
        "verdict."
    )


def test_committed_measures_must_hold_what_the_chapter_reads() -> None:
    frame = pd.DataFrame({"recipe": ["opd"], "seed": [0]})
    tables = BookTables(frame, frame, frame, "first_regime", (0,), "")
    with pytest.raises(StaleResultsError, match="make runs"):
        with_measures(tables, ["opd"])
    held = replace(tables, measures=rows())
    assert with_measures(held, ["opd"], quantities=["update_inside", "hill"]).measures is held.measures
    with pytest.raises(StaleResultsError, match=r"seeds \[0\], have no hill: run `make runs PROFILE"):
        with_measures(held, ["opd"], quantities=["hill"])
    with pytest.raises(StaleResultsError, match=r"no recipe of data/recipes/first_regime\.yaml gives it"):
        with_measures(held, [], quantities=["hill"])
