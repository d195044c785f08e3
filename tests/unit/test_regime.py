"""Which regime a chapter's runs are from: the share of the gap is that of the same prompts, and small ones are said."""

import dataclasses
import math

import pandas as pd
import pytest

from opdgeom_utils.chapters import regime
from opdgeom_utils.chapters.committed_tables import BookTables


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> BookTables:
    """Two seeds of OPD that go from 50% to 60 and 54%, and a teacher at 90%."""
    monkeypatch.setattr(regime, "card_accuracy", lambda name: {"sampled": 0.9})
    rows = [
        ("smoke", recipe, seed, step, "sum", n, value)
        for recipe, ends in (("opd", (0.6, 0.54)), ("sft", (0.9, 0.9)))
        for seed, end in enumerate(ends)
        for step, n, value in ((0, 8, 0.1), (0, 64, 0.5), (4, 64, end))
    ]
    columns = ["profile", "recipe", "seed", "step", "family", "n_prompts", "sampled"]
    accuracy = pd.DataFrame(rows, columns=columns)
    return BookTables(accuracy, accuracy, accuracy, profile="smoke", seeds=(0, 1), source="")


def test_the_share_of_the_gap_is_taken_on_the_same_prompts(tables: BookTables) -> None:
    assert regime.gap_closed(tables) == pytest.approx([0.1 / 0.4, 0.04 / 0.4])


@pytest.mark.parametrize(("recipe", "told"), [("opd", True), ("opd_random_credit", False), ("opd_top50", False)])
def test_distance_on_own_text_is_read_where_the_loss_is_that_distance(
    tables: BookTables, recipe: str, told: bool
) -> None:
    steps = range(1, 201)
    log = pd.DataFrame({"recipe": recipe, "seed": 0, "step": steps, "loss": [1.0] * 100 + [0.4] * 100})
    profile = "first_regime" if recipe == "opd_top50" else "toy"
    closed = regime.distance_closed(dataclasses.replace(tables, training=log, profile=profile), recipe)
    assert ({name: share.mean for name, share in closed.items()} == {"own": pytest.approx(0.6)}) == told


@pytest.mark.parametrize(
    ("taught", "why"), [(0.5, " was no better than itself before it"), (math.nan, "'s accuracy is in no table")]
)
def test_without_a_gap_nothing_is_said_of_its_share(
    taught: float, why: str, tables: BookTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regime, "card_accuracy", lambda name: {"sampled": taught})
    assert all(math.isnan(share) for share in regime.gap_closed(tables))
    assert regime.say_regime(tables).endswith(f"4 updates. How much it learned is not known: its teacher{why}.")


def test_a_run_that_hardly_learned_is_called_so(tables: BookTables) -> None:
    assert "closed 18% of the gap in accuracy to its teacher (mean of 2 seeds). So it hardly" in regime.say_regime(
        tables
    )


def test_a_run_that_learned_is_called_so(tables: BookTables) -> None:
    better = tables.accuracy.assign(sampled=tables.accuracy["sampled"].replace({0.6: 0.8, 0.54: 0.7}))
    said = regime.say_regime(dataclasses.replace(tables, accuracy=better))
    assert "closed 62% of the gap" in said
    assert "noise" not in said


def test_without_opd_nothing_is_said(tables: BookTables) -> None:
    other = tables.accuracy.loc[tables.accuracy["recipe"] == "sft"]
    assert regime.say_regime(dataclasses.replace(tables, accuracy=other)) == ""
