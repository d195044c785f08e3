"""Cells of the long table: the right number, or none with a reason."""

import math
from typing import Any

import pandas as pd
import pytest

from opdgeom_utils.claims.look_up import LookUp, Sources
from opdgeom_utils.errors import MetricInputError
from tests.claim_world import AGREEING, HandTables, world

ROW = {"recipe": "opd", "scope": "attention", "side": "", "k": 0, "quantity": "x", "null": ""}
ROW |= {"other_recipe": "", "other_seed": -1, "other_step": -1}


def cells(*rows: dict[str, Any], seeds: tuple[int, ...] = (0, 1)) -> LookUp:
    tables = world(AGREEING)
    measures = pd.DataFrame([ROW | row for row in rows]) if rows else None
    return LookUp(Sources(HandTables(tables.geometry, tables.accuracy, measures)), "attention", seeds)


def path(seed: int = 0, **words: Any) -> list[dict[str, Any]]:
    """The value is ten times the step at 2, 4 and 10, plus the seed."""
    return [words | {"seed": seed, "step": step, "value": 10.0 * step + seed} for step in (2, 4, 10)]


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("end", 100.0),
        ("first", 20.0),
        (4, 40.0),
        (7, 70.0),  # between 4 and 10
        (0.5, 50.0),  # half of 10 updates
        ({"near": 8}, 100.0),
        ({"near": 3}, 20.0),  # two equally near: the earlier
        ({"after": 0.35}, 100.0),  # 4 is nearest to 3.5; what comes after it
    ],
)
def test_a_place_on_the_path(at: Any, expected: float) -> None:
    look = cells(*path())
    assert look.cell({"recipe": "opd", "quantity": "x", "at": at}).tolist()[0] == pytest.approx(expected)


def test_a_mean_over_what_comes_after() -> None:
    found = cells(*path(), seeds=(0,)).cell({"recipe": "opd", "quantity": "x", "at": {"after": 0.1}})
    assert found.tolist() == [70.0]  # (40 + 100) / 2


def test_seeds_keep_their_order_and_can_be_shifted() -> None:
    look = cells(*path(0), *path(1), *path(2), seeds=(2, 0, 1))
    assert look.cell({"recipe": "opd", "quantity": "x"}).tolist() == [102.0, 100.0, 101.0]
    assert look.cell({"recipe": "opd", "quantity": "x", "seed": "next"}).tolist() == [100.0, 101.0, 102.0]


def test_another_run_is_the_same_seed_or_the_mean_of_the_rest() -> None:
    rows = [
        {"seed": seed, "step": 8, "value": 10.0 * seed + other + 100 * (step == 80)}
        | {"other_recipe": "opd", "other_seed": other, "other_step": step}
        for seed in range(3)
        for other in range(3)
        for step in (8, 80)
    ]
    look = cells(*rows, seeds=(0, 1, 2))
    cell = {"recipe": "opd", "quantity": "x"}
    assert look.cell(cell | {"other": "opd:{seed}@8"}).tolist() == [0.0, 11.0, 22.0]
    assert look.cell(cell | {"other": "opd:{rest}@8"}).tolist() == [-27.0, 11.0, 49.0]  # 4 times 1.5, less 3 times 11
    assert look.cell(cell | {"other": "opd:{seed}@80"}).tolist() == [100.0, 111.0, 122.0]


def test_pairs_of_two_recipes_are_their_means() -> None:
    rows = [
        {"seed": seed, "step": 8, "value": 10.0 * seed + other, "other_recipe": "rlvr", "other_seed": other}
        | {"other_step": 8}
        for seed in range(3)
        for other in range(3)
    ]
    cell = {"recipe": "opd", "quantity": "x", "other": "rlvr:{rest}@8"}
    assert cells(*rows, seeds=(0, 1, 2)).cell(cell).tolist() == [1.5, 11.0, 20.5]


def test_a_row_without_a_scope_fits_any_and_another_scope_fits_none() -> None:
    cell = {"recipe": "opd", "quantity": "x"}
    assert cells(*path(scope=""), seeds=(0,)).cell(cell).tolist() == [100.0]
    look = cells(*path(scope="all"), seeds=(0,))
    assert math.isnan(look.cell(cell)[0])
    assert look.problems == ["measures has nothing for x of opd over scope attention"]


def test_two_answers_are_a_problem_and_no_mean() -> None:
    look = cells(*path(side="left"), *path(side="right"), seeds=(0,))
    cell = {"recipe": "opd", "quantity": "x"}
    assert look.cell(cell | {"side": "left"}).tolist() == [100.0]
    assert math.isnan(look.cell(cell)[0])
    assert "more than one number" in look.problems[0]


def test_a_step_outside_the_path_is_not_guessed() -> None:
    look = cells(*path(), seeds=(0,))
    assert math.isnan(look.cell({"recipe": "opd", "quantity": "x", "at": 11})[0])
    assert look.problems == ["x of opd is asked for at update 11; measured from 2 to 10"]


def test_no_table_is_a_problem_and_an_unknown_key_an_error() -> None:
    look = cells(seeds=(0,))
    assert math.isnan(look.cell({"recipe": "opd", "quantity": "x"})[0])
    assert "has not been made" in look.problems[0]
    with pytest.raises(MetricInputError, match="sidde"):
        look.cell({"recipe": "opd", "quantity": "x", "sidde": "left"})
