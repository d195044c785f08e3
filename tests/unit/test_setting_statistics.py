"""Shares of settings, on numbers that can be worked out in the head."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import pandas as pd
import pytest

from opdgeom_utils.claims import setting_statistics as statistics
from opdgeom_utils.claims import verdict
from opdgeom_utils.claims.look_up import Measured
from opdgeom_utils.claims.schema import PAPER, load_claims
from opdgeom_utils.errors import MetricInputError
from tests.claim_world import HandTables, hand_tables

SPARSITY, SHIFT = "update_sparsity", "normalized_spectral_shift"
LEDGER = {claim.id: claim for claim in load_claims(PAPER / "claims_variants.yaml")}
SETTINGS = LEDGER["settings_sparsity_order"].args["settings"]
NAMES = [
    SPARSITY, "left_angle_mean_deg", "right_angle_mean_deg", SHIFT, "principal_overlap", "low_magnitude_overlap",
]  # fmt: skip
DOWN = LEDGER["settings_other_orders"].args["descending"]


def place(share: float, spread: float = 0.0) -> dict[str, list[float] | float]:
    """Every metric ``share`` of the way from SFT to RLVR, seeds ``spread`` apart, a shuffled null that is far off."""
    seeds = [share + spread * (seed - 2) for seed in range(5)]
    own = {m: [0.2 + 0.4 * (1 - s if m in DOWN else s) for s in seeds] for m in NAMES}
    return own | {f"{m}_shuffled": 0.1 for m in NAMES}


@lru_cache
def world(**settings: float) -> HandTables:
    """SFT at 0, RLVR at 1, OPD at 0.5, the settings (one seed each) where they are told to be, by default at 0.5."""
    values = {"sft": place(0.0), "control_sft": place(0.0), "rlvr": place(1.0), "opd": place(0.5, 0.01)}
    steps = {name: {10: (1.0, 0.0), 200: (2.0, 0.0)} for name in ("sft", "rlvr")}
    steps |= {name: {40: (1.0, 0.0), 80: (2.0, 0.0)} for name in ("opd", "control_sft")}
    for name in SETTINGS:
        share = settings.get(name, 0.5)
        values[name] = {k: v[:1] if isinstance(v, list) else v for k, v in place(share).items()}
        steps[name] = {40: (1.0, 0.0)}
    tables = hand_tables(values, steps)
    alone = tables.geometry["recipe"].isin(SETTINGS) & (tables.geometry["seed"] > 0)
    return HandTables(tables.geometry.loc[~alone], tables.accuracy)


def word(name: str, tables: HandTables) -> str:
    return verdict(LEDGER[name], tables).verdict


@pytest.mark.parametrize("name", LEDGER)
def test_every_claim_holds_in_a_world_where_settings_change_nothing(name: str) -> None:
    found = verdict(LEDGER[name], world())
    assert found.verdict == "reproduced", found.reason
    assert "over 6 settings" in found.reason


@pytest.mark.parametrize("name", [n for n in LEDGER if "null" not in n])
def test_one_setting_elsewhere_breaks_every_claim_about_places(name: str) -> None:
    found = verdict(LEDGER[name], world(opd_code=1.2))
    assert found.verdict == "not reproduced"
    assert found.value == pytest.approx(5 / 6)


def test_a_setting_between_but_apart_keeps_its_order_only() -> None:
    tables = world(opd_student_small=0.8)
    assert word("settings_sparsity_order", tables) == word("settings_other_orders", tables) == "reproduced"
    assert word("settings_sparsity_near_opd", tables) == word("settings_others_near_opd", tables) == "not reproduced"
    assert word("settings_others_within_seeds", tables) == "not reproduced"


def test_a_tenth_of_the_distance_is_near_and_outside_the_seeds() -> None:
    """Seeds of OPD lie 0.01 apart: s = 0.0158, t = 2.776, so a further seed is expected within 0.048."""
    tables = world(opd_code=0.56)
    assert word("settings_sparsity_near_opd", tables) == "reproduced"
    assert word("settings_sparsity_within_seeds", tables) == "not reproduced"
    assert word("settings_sparsity_within_seeds", world(opd_code=0.54)) == "reproduced"


def test_a_run_that_equals_its_own_shuffle_shows_no_place() -> None:
    tables = world()
    of_one = tables.geometry["recipe"] == "opd_teacher_moe"
    for metric in (SPARSITY, SHIFT):
        column = tables.geometry[f"{metric}_shuffled"].where(~of_one, tables.geometry[metric])
        tables = HandTables(tables.geometry.assign(**{f"{metric}_shuffled": column}), tables.accuracy)
    assert word("settings_masks_beyond_null", tables) == "partly"
    assert word("settings_drift_beyond_null", tables) == "not reproduced"


def test_a_missing_setting_is_named() -> None:
    tables = world()
    rest = HandTables(tables.geometry.loc[tables.geometry["recipe"] != "opd_teacher_large"], tables.accuracy)
    for name in LEDGER:
        found = verdict(LEDGER[name], rest)
        assert found.verdict == "not testable at this scale"
        assert "5 usable settings, 6 are needed; there is no run of opd_teacher_large" in found.reason


def test_places_of_the_ends() -> None:
    """At the paper's proportion 40 updates of OPD stand beside 136.9 of RLVR; SFT is taken at its end."""
    rows = pd.DataFrame(
        {"recipe": ["sft"] * 2 + ["rlvr"] * 2, "seed": 0, "step": [10, 90, 0, 1023], "x": [1.0, 5, 0, 1]}
    )
    setting = statistics.Setting("opd_code", 0, 299, statistics.runs_of(rows))
    assert setting.ends("x", ["sft", "rlvr"], "paper_steps") == pytest.approx((5.0, 1.0))
    low, high = setting.ends("x", ["sft", "rlvr"], "equal_updates")
    assert math.isnan(low)
    assert high == pytest.approx(299 / 1023)
    with pytest.raises(MetricInputError, match="expected paper_steps or equal_updates"):
        setting.ends("x", ["sft", "rlvr"], "final")


def test_nothing_is_said_of_a_single_seed_of_the_reference() -> None:
    rows = pd.DataFrame({"recipe": "opd", "seed": [0], "step": 4, "x": [1.0]})
    found: Any = statistics.seed_range(
        statistics.Setting("opd_code", 0, 4, statistics.runs_of(rows)), "opd", "x", (0, 1)
    )
    assert all(math.isnan(end) for end in found)


def test_only_the_claim_s_seeds_are_read() -> None:
    (found,) = statistics.settings_of(Measured(world(), "attention", (3, 4)), ["opd_code"])
    assert found is None
