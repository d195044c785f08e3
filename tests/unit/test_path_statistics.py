"""Statistics over the long table: each by hand, a world in which every claim holds, and worlds that break some."""

import math
from typing import Any

import pandas as pd
import pytest

from opdgeom_utils.claims import VERDICTS, load_claims, scorecard
from opdgeom_utils.claims.look_up import LookUp, Sources
from opdgeom_utils.claims.path_statistics import OPERATIONS, problem_of
from opdgeom_utils.claims.schema import Claim
from tests.claim_world import AGREEING, HandTables, world
from tests.measure_world import agreeing, full_world

REPRODUCED, PARTLY, UNDECIDED, OPPOSITE, UNTESTABLE = VERDICTS
LEDGER = tuple(claim for claim in load_claims() if claim.question in ("rq2", "rq3"))
X, Y = {"recipe": "opd", "quantity": "x"}, {"recipe": "rlvr", "quantity": "x"}


def look(paths: dict[str, dict[int, float]], null: str = "", null_of: str = "") -> LookUp:
    """One seed with a path of ``x`` for each recipe."""
    words = {"seed": 0, "scope": "", "side": "", "k": 0, "quantity": "x", "null": null, "other_recipe": ""}
    rows = [words | {"recipe": r, "step": s, "value": v} for r, path in paths.items() for s, v in path.items()]
    tables = world(AGREEING)
    sources = Sources(HandTables(tables.geometry, tables.accuracy, pd.DataFrame(rows)))
    return LookUp(sources, "attention", (0,), null_of)


@pytest.mark.parametrize(
    ("name", "spec", "expected"),
    [
        ("contrast", {"value": X, "minus": Y}, 6.0),  # 8 - 2
        ("contrast", {"value": 1.0, "minus": {"ratio": {"value": Y, "over": X}}}, 0.75),
        ("distance", {"value": Y, "minus": X}, 6.0),
        ("ratio", {"value": X, "over": Y}, 4.0),
        ("log_change", {"value": X | {"at": "first"}, "over": X}, math.log(2)),  # 4 to 8
        ("band", {"value": X | {"from": 0.0}}, 4.0),  # 8 over 2
        ("band", {"value": X | {"from": 0.3}}, 2.0),  # from update 3 on: 8 and 4
        ("path_gap", {"value": X, "reference": Y, "until": 10}, (math.log(4) + math.log(4)) / 2),  # at 1 and 10
        ("path_gap", {"value": X, "reference": Y, "until": 5}, math.log(4)),  # 4 over 1, at 1
        ("kept_share", {"value": Y, "start": Y | {"at": "first"}, "reference": X, "progress": "up"}, 1 / 7),
    ],
)
def test_each_statistic_by_hand(name: str, spec: dict[str, Any], expected: float) -> None:
    numbers = look({"opd": {1: 4.0, 2: 2.0, 5: 4.0, 10: 8.0}, "rlvr": {1: 1.0, 10: 2.0}})
    assert OPERATIONS[name](numbers, **spec).tolist() == [pytest.approx(expected)]
    assert numbers.problems == []


def test_a_distance_that_shrinks_is_progress_and_none_has_no_share() -> None:
    """From 1.0 the free run comes to 0.5 and the other to 0.6: four fifths are kept."""
    numbers = look({"opd": {1: 1.0, 2: 0.5}, "opd_project_early": {2: 0.6}})
    spec = {"value": X | {"recipe": "opd_project_early"}, "start": X | {"at": 1}, "reference": X}
    assert OPERATIONS["kept_share"](numbers, **spec | {"progress": "down"}).tolist() == [pytest.approx(0.8)]
    assert math.isnan(OPERATIONS["kept_share"](numbers, **spec | {"progress": "up"})[0])
    assert numbers.problems == ["the free run of opd makes no progress in seed 0"]


def test_a_null_stands_in_the_runs_place() -> None:
    numbers = look({"opd": {1: 1.0, 2: 0.5}, "opd_project_random": {2: 0.9}}, null_of="shuffled")
    spec = {"value": X | {"recipe": "opd_project_early"}, "start": X | {"at": 1}, "reference": X, "progress": "down"}
    assert OPERATIONS["kept_share"](numbers, **spec).tolist() == [pytest.approx(0.2)]
    assert numbers.null_name == "a random space of the same rank (gradient projected)"


@pytest.mark.parametrize(
    ("name", "part", "words"),
    [
        ("ratio", {"value": X}, "ratio takes value over"),
        ("ratio", {"value": X, "over": {"rattio": {"value": X, "over": Y}}}, "'rattio' is not one of"),
        ("contrast", {"value": X | {"sidde": "left"}, "minus": 0.0}, "sidde"),
    ],
)
def test_a_misspelt_operand_is_named(name: str, part: dict[str, Any], words: str) -> None:
    assert words in problem_of(name, [{"label": "a"} | part])
    assert "no comparisons" in problem_of(name, [])
    assert "no label" in problem_of("contrast", [{"value": 1.0, "minus": 0.0}])


def verdicts(**changed: Any) -> dict[str, str]:
    """Verdicts of the agreeing world after some quantities were given another number."""

    def value(recipe: str, quantity: str, null: str, other: str, step: int) -> float:
        new = changed.get(quantity)
        old = agreeing(recipe, quantity, null, other, step)
        return old if new is None else new(recipe, null, other, step, old)

    return scorecard(full_world(LEDGER, value), LEDGER).set_index("id")["verdict"].to_dict()


def swept(claim: Claim) -> bool:
    return len(claim.seeds) < claim.rule.min_seeds


def test_every_cell_is_found_and_every_claim_holds_where_all_agrees() -> None:
    found = verdicts()
    assert found.pop("rlvr_contraction_is_rounding") == OPPOSITE  # there the contraction is real
    assert {found.pop(claim.id) for claim in LEDGER if swept(claim)} == {UNTESTABLE}
    assert {name: verdict for name, verdict in found.items() if verdict != REPRODUCED} == {}


def test_a_sweep_over_one_seed_shows_its_number() -> None:
    card = scorecard(full_world(LEDGER), LEDGER).set_index("id")
    row = card.loc["scale_is_part_of_mixing"]
    assert row["verdict"] == UNTESTABLE
    assert row["value"] > 0
    assert "a sweep over one seed, which gives" in row["reason"]


def test_a_run_that_locks_like_its_nulls_keeps_its_order_and_loses_its_meaning() -> None:
    found = verdicts(sim_to_end=lambda recipe, null, other, step, old: 0.85 if recipe == "opd" else old)
    assert found["locking_early_k16"] == REPRODUCED
    assert found["locking_beyond_noise_right_seen"] == found["locking_beyond_noise_left_seen"] == UNDECIDED
    assert found["order_of_steps_matters_right_seen"] == UNDECIDED


def test_a_contraction_that_only_rounding_makes_is_called_so() -> None:
    found = verdicts(stable_rank=lambda recipe, null, other, step, old: 5.0 if recipe == "rlvr" and not null else old)
    assert found["rlvr_rank_contracts"] == UNDECIDED  # a ratio of 1 in every seed: neither below 1 nor above
    assert found["rlvr_contraction_is_rounding"] == REPRODUCED


def test_a_projection_that_harms_nobody_is_no_finding_about_opd() -> None:
    def unharmed(quantity: str) -> Any:
        def value(recipe: str, null: str, other: str, step: int, old: float) -> float:
            return agreeing(recipe.split("_project_")[0], quantity, null, other, step) if "_project_" in recipe else old

        return value

    found = verdicts(accuracy=unharmed("accuracy"), teacher_distance=unharmed("teacher_distance"))
    assert found["projection_leaves_opd_unharmed_by_distance_seen"] == REPRODUCED
    assert found["projection_harms_sft"] == OPPOSITE
    assert found["early_space_beats_random_by_distance_seen"] == UNDECIDED


def test_where_rlvr_stays_on_opds_path_nothing_can_be_said_of_paths() -> None:
    def same(recipe: str, null: str, other: str, step: int, old: float) -> float:
        return 25.0 if recipe == "rlvr" and not null else old

    names = ("rlvr_leaves_opds_path", "token_retention_keeps_path", "mixing_leaves_path_beyond_a_seed_seen")
    few = tuple(claim for claim in LEDGER if claim.id in names)
    leaves, stays = (
        scorecard(full_world(few, value), few).set_index("id")["verdict"].to_dict()
        for value in (agreeing, lambda r, q, n, o, s: same(r, n, o, s, agreeing(r, q, n, o, s)))
    )
    assert leaves == dict.fromkeys(names, REPRODUCED)
    assert stays == dict.fromkeys(names, UNTESTABLE) | {"rlvr_leaves_opds_path": OPPOSITE}


def test_a_missing_table_and_a_missing_run_are_named() -> None:
    claim = next(c for c in LEDGER if c.id == "opd_norm_above_rlvr")
    row = scorecard(world(AGREEING), [claim]).iloc[0]
    assert row["verdict"] == UNTESTABLE
    assert "measures.parquet" in row["reason"]
    tables = full_world((claim,))
    assert tables.measures is not None
    without = HandTables(tables.geometry, tables.accuracy, tables.measures.query("recipe != 'rlvr'"))
    assert "measures has nothing for update_norm of rlvr" in scorecard(without, [claim]).iloc[0]["reason"]
