"""One number per seed: in the order of the seeds, at the place asked for, missing ones named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from opdgeom_utils.claims.look_up import LookUp, Sources, Tables
from opdgeom_utils.errors import MetricInputError
from tests.claim_world import HandTables, hand_tables

SPARSITY = "update_sparsity"
STEPS = {"opd": {1: (1.0, 0.1), 2: (4.0, 0.2)}, "rlvr": {1: (0.5, 0.1), 3: (2.0, 0.2)}}


def growing() -> HandTables:
    """Sparsity is the step in every run."""
    tables = hand_tables({"opd": {SPARSITY: [0.0] * 3}, "rlvr": {SPARSITY: [0.0] * 3}}, STEPS)
    geometry = tables.geometry.assign(update_sparsity=tables.geometry["step"].astype(float))
    return HandTables(geometry, tables.accuracy)


def test_tables_are_recognised_by_their_shape() -> None:
    assert isinstance(growing(), Tables)


def test_values_follow_the_order_of_the_seeds() -> None:
    tables = hand_tables({"opd": {SPARSITY: [0.1, 0.2, 0.3]}})
    assert LookUp(Sources(tables), "attention", (2, 0, 1)).metric(SPARSITY, "opd", "final").tolist() == [0.3, 0.1, 0.2]


def test_a_seed_that_was_not_run_is_nan() -> None:
    tables = hand_tables({"opd": {SPARSITY: [0.1, 0.2]}})
    found = LookUp(Sources(tables), "attention", (0, 7)).metric(SPARSITY, "opd", "final")
    np.testing.assert_array_equal(found, [0.1, np.nan])


@pytest.mark.parametrize(("at", "opd", "rlvr"), [("final", 2, 3), ("equal_norm", 1.5, 3), ("equal_accuracy", 2, 3)])
def test_places(at: str, opd: float, rlvr: float) -> None:
    """Common norm 2: OPD goes from 1 to 4, so log 2 is half way. Common gain 0.2: both ends."""
    look = LookUp(Sources(growing()), "attention", (0, 1, 2))
    among = ("opd", "rlvr")
    assert look.metric(SPARSITY, "opd", at, among).tolist() == pytest.approx([opd] * 3)
    assert look.metric(SPARSITY, "rlvr", at, among).tolist() == pytest.approx([rlvr] * 3)


def test_equal_updates_needs_the_very_checkpoint() -> None:
    """The shortest run ends at step 2; RLVR has checkpoints 1 and 3."""
    look = LookUp(Sources(growing()), "attention", (0, 1, 2))
    assert look.metric(SPARSITY, "opd", "equal_updates", ("opd", "rlvr")).tolist() == [2.0] * 3
    assert np.isnan(look.metric(SPARSITY, "rlvr", "equal_updates", ("opd", "rlvr"))).all()
    assert look.problems == [f"rlvr seed {seed} has no checkpoint at step 2" for seed in range(3)]


def test_the_common_place_depends_on_who_is_compared() -> None:
    """Alone, OPD is its own shortest run and its own smallest norm."""
    look = LookUp(Sources(growing()), "attention", (0, 1, 2))
    assert look.metric(SPARSITY, "opd", "equal_norm").tolist() == pytest.approx([2.0] * 3)


def test_seeds_outside_the_claim_do_not_set_the_place() -> None:
    """Seed 2 of RLVR stops at norm 0.5; a claim on seeds 0 and 1 does not see it."""
    tables = growing()
    short = (tables.geometry["recipe"] == "rlvr") & (tables.geometry["seed"] == 2) & (tables.geometry["step"] == 3)
    look = LookUp(Sources(HandTables(tables.geometry.loc[~short], tables.accuracy)), "attention", (0, 1))
    assert look.metric(SPARSITY, "opd", "equal_norm", ("opd", "rlvr")).tolist() == pytest.approx([1.5] * 2)


def test_scope_chooses_the_matrices() -> None:
    tables = hand_tables({"opd": {SPARSITY: [0.2, 0.2]}})
    mlp = tables.geometry.assign(module="up_proj", n_entries=30, update_sparsity=0.6)
    both = HandTables(pd.concat([tables.geometry, mlp]), tables.accuracy)
    assert LookUp(Sources(both), "attention", (0, 1)).metric(SPARSITY, "opd", "final").tolist() == [0.2, 0.2]
    assert LookUp(Sources(both), "all", (0, 1)).metric(SPARSITY, "opd", "final").tolist() == pytest.approx([0.5, 0.5])


def test_a_null_is_read_in_the_runs_place_and_the_real_look_up_reads_the_run() -> None:
    tables = hand_tables({"opd": {SPARSITY: 0.5, f"{SPARSITY}_shuffled": 0.4}})
    look = LookUp(Sources(tables), "attention", (0,), null="shuffled")
    assert look.metric(SPARSITY, "opd", "final").tolist() == [0.4]
    assert look.real.metric(SPARSITY, "opd", "final").tolist() == [0.5]


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(MetricInputError, match="expected final, equal_updates"):
        LookUp(Sources(growing()), "attention", (0,)).metric(SPARSITY, "opd", "half time")
