"""RLVR's conditions: its control explains a place off the curve, or not; the paper's orders with both lengths."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from opdgeom_utils.chapters import rlvr_conditions
from opdgeom_utils.chapters.committed_tables import BookTables, tables_for
from opdgeom_utils.chapters.null_objectives import RULERS


@pytest.fixture(scope="module")
def toy() -> BookTables:
    return tables_for("toy", [0])


@pytest.mark.parametrize(
    ("mean", "verdict", "enough"),
    [
        (-0.5, "leaves", "yes"),  # the same side, half as far
        (-0.4, "leaves", "no"),  # not half as far
        (0.9, "leaves", "no"),  # the other side
        (-0.9, "not decided", "no"),
    ],
)
def test_few_prompts_explain_what_the_control_leaves_too(mean: float, verdict: str, enough: str) -> None:
    rlvr = {"statistic": "x", "recipe": "rlvr", "mean": -1.0, "verdict": "leaves"}
    control = {"statistic": "x", "recipe": "control_sft_64", "mean": mean, "verdict": verdict}
    assert rlvr_conditions.few_prompts(pd.DataFrame([rlvr, control]))["enough"].tolist() == [enough]


def test_what_rlvr_does_not_leave_is_not_asked() -> None:
    rlvr = {"statistic": "x", "recipe": "rlvr", "mean": -1.0, "verdict": "on the curve"}
    found = rlvr_conditions.few_prompts(pd.DataFrame([rlvr, rlvr | {"recipe": "control_sft_64"}]))
    assert found.empty
    assert rlvr_conditions.say_few_prompts(found) == ""


def test_an_order_is_asked_with_each_length_of_rlvr(toy: BookTables) -> None:
    geometry = toy.geometry.loc[toy.geometry["recipe"].isin(["sft", "opd", "rlvr"])]
    longer = geometry.loc[geometry["recipe"] == "rlvr"].assign(recipe="rlvr_long", update_sparsity=-1.0)
    found = rlvr_conditions.orders(replace(toy, geometry=pd.concat([geometry, longer])))
    assert len(found) == 5
    assert found.columns[1:].tolist() == ["RLVR, 800 updates", "RLVR, 1,368 updates"]
    sparsity = found.loc[found["measure"].str.contains("sparsity")].iloc[0]
    assert sparsity["RLVR, 1,368 updates"] == "no"  # RLVR last by the paper, and below all here


def test_without_a_run_nothing_is_said(toy: BookTables) -> None:
    without = replace(toy, geometry=toy.geometry.loc[toy.geometry["recipe"] != "sft"])
    assert rlvr_conditions.say_orders(rlvr_conditions.orders(without)) == ""
    assert rlvr_conditions.beside_control(replace(toy, geometry=toy.geometry.query("recipe != 'control_sft_64'"))) == ""
    assert rlvr_conditions.beside_control(replace(toy, geometry=toy.geometry.query("recipe == 'opd'"))) == ""


def test_what_is_said_of_the_control_is_said_of_the_null_too(toy: BookTables) -> None:
    rulers = list(RULERS)
    alike = toy.geometry.loc[toy.geometry["recipe"].isin(["rlvr", "control_sft_64", "rlvr_random_reward"])].copy()
    alike.loc[:, rulers] = 0.5
    said = rlvr_conditions.beside_control(replace(toy, geometry=alike))
    assert "RLVR lies within 1.2 times of 64-prompt SFT. Random reward" in said
    assert "had nothing to learn, lies within 1.2 times." in said
    alike.loc[alike["recipe"] == "rlvr_random_reward", "left_angle_mean_deg"] = 0.7
    said = rlvr_conditions.beside_control(replace(toy, geometry=alike))
    assert "had nothing to learn, lies outside of 1.2 times by left mean angle." in said
