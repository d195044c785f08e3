"""OPD at the bar: the rules hold and fail where they should, on the committed tables cut and bent for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opdgeom_utils.chapters import at_the_bar
from opdgeom_utils.chapters.committed_tables import BookTables, tables_for
from opdgeom_utils.chapters.null_objectives import RULERS


@pytest.fixture(scope="module")
def short() -> BookTables:
    """Only the runs of 400 updates."""
    tables = tables_for("toy", [0, 1])
    held = {
        name: table.loc[table["recipe"].isin(["opd", "opd_random_credit"])] for name, table in _frames(tables).items()
    }
    return replace(tables, **held)


def _frames(tables: BookTables) -> dict:
    assert tables.measures is not None
    names = ("geometry", "training", "accuracy", "measures")
    return {name: getattr(tables, name) for name in names}


def test_without_long_runs_nothing_can_be_tested(short: BookTables) -> None:
    found = at_the_bar.longer(short)
    assert set(found["holds"]) == {at_the_bar.UNTESTED}
    assert at_the_bar.say_seeds(short) == ""


def test_seeds_are_counted(short: BookTables) -> None:
    longer = short.geometry.assign(recipe=short.geometry["recipe"] + "_long")
    assert (
        at_the_bar.say_seeds(replace(short, geometry=longer))
        == "Seeds of the longer runs: 2 of OPD and 2 of random credit."
    )


def test_rulers_compare_with_random_credit_of_the_same_length(short: BookTables) -> None:
    pair = "opd", "opd_random_credit"
    alike = short.geometry.copy()
    alike.loc[:, list(RULERS)] = 0.5
    said, holds = at_the_bar._rulers(replace(short, geometry=alike), *pair)
    assert (said, holds) == ("sparsity 1.00, angles 1.00 and 1.00, shift 1.00", True)
    alike.loc[alike["recipe"] == "opd", "normalized_spectral_shift"] *= 1.3
    said, holds = at_the_bar._rulers(replace(short, geometry=alike), *pair)
    assert (said, holds) == ("sparsity 1.00, angles 1.00 and 1.00, shift 1.30", False)
