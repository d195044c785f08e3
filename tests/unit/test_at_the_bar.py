"""OPD at the bar: the rules hold and fail where they should, on the committed tables cut and bent for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opdgeom_utils.chapters import at_the_bar
from opdgeom_utils.chapters.committed_tables import BookTables, tables_for

SHORT = {"opd_long": "opd", "opd_random_credit_long": "opd_random_credit", "rlvr_long": "rlvr"}


@pytest.fixture(scope="module")
def short() -> BookTables:
    """Only the runs that stand in :data:`SHORT`'s values, and SFT."""
    tables = tables_for("toy", [0, 1])
    held = {name: table.loc[table["recipe"].isin([*SHORT.values(), "sft"])] for name, table in _frames(tables).items()}
    return replace(tables, **held)


def _frames(tables: BookTables) -> dict:
    assert tables.measures is not None
    names = ("geometry", "training", "accuracy", "measures")
    return {name: getattr(tables, name) for name in names}


def test_without_long_runs_nothing_can_be_tested(short: BookTables) -> None:
    found = at_the_bar.longer(short)
    assert set(found["holds"]) == {at_the_bar.UNTESTED}
    assert list(at_the_bar.orders(short)) == ["measure", "RLVR, 800 updates"]


def test_rulers_compare_with_random_credit_of_the_same_length(short: BookTables) -> None:
    pair = "opd", "opd_random_credit"
    alike = short.geometry.copy()
    alike.loc[:, list(at_the_bar.RULERS)] = 0.5
    assert at_the_bar._rulers(replace(short, geometry=alike), *pair) == ("1.00, 1.00, 1.00, 1.00", True)
    alike.loc[alike["recipe"] == "opd", "normalized_spectral_shift"] *= 1.3
    assert at_the_bar._rulers(replace(short, geometry=alike), *pair) == ("1.00, 1.00, 1.00, 1.30", False)


def test_orders_follow_the_values_of_one_seed(short: BookTables) -> None:
    made = short.geometry.copy()
    rising = made["recipe"].map({"sft": 0.1, "opd": 0.2, "rlvr": 0.3})
    made["update_sparsity"] = made["low_magnitude_overlap"] = rising
    for metric in ("left_angle_mean_deg", "right_angle_mean_deg", "normalized_spectral_shift", "principal_overlap"):
        made[metric] = 1 - rising
    assert set(at_the_bar.orders(replace(short, geometry=made)).iloc[:, 1]) == {at_the_bar.YES}
    made["update_sparsity"] = 1 - made["update_sparsity"]
    assert at_the_bar.orders(replace(short, geometry=made)).iloc[:, 1].tolist().count(at_the_bar.NO) == 1
