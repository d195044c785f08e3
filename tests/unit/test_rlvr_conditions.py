"""RLVR's conditions: beside its control and its null objective; the paper's orders with both lengths."""

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
    assert "RLVR lies within 1.2 times of 64-prompt SFT. It lies within 1.2 times of random reward, which had" in said
    alike.loc[alike["recipe"] == "rlvr_random_reward", "left_angle_mean_deg"] = 0.7
    said = rlvr_conditions.beside_control(replace(toy, geometry=alike))
    assert "It lies not within 1.2 times of random reward by left mean angle, which had nothing to learn." in said
