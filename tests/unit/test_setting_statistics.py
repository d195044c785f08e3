"""Shares of settings, on numbers that can be worked out in the head."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest

from opdgeom_utils.claims import setting_statistics, verdict
from opdgeom_utils.claims.look_up import LookUp, Sources
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
    assert found.verdict == "not decided"  # one seed of one setting: neither all, nor none
    assert found.value == pytest.approx(5 / 6)


def test_settings_that_all_lie_elsewhere_show_the_opposite() -> None:
    tables = world(**dict.fromkeys(SETTINGS, 1.2))
    assert word("settings_sparsity_order", tables) == word("settings_others_near_opd", tables) == "the opposite"


def test_a_setting_between_but_apart_keeps_its_order_only() -> None:
    tables = world(opd_student_small=0.8)
    assert word("settings_sparsity_order", tables) == word("settings_other_orders", tables) == "reproduced"
    assert word("settings_sparsity_near_opd", tables) == word("settings_others_near_opd", tables) == "not decided"


def test_a_tenth_of_the_distance_is_near_and_outside_the_seeds() -> None:
    """Seeds of OPD lie 0.01 apart: s = 0.0158, t = 4.851 for six at once, so all are expected within 0.084."""
    assert word("settings_sparsity_near_opd", world(opd_code=0.56)) == "reproduced"
    assert word("settings_sparsity_within_seeds_corrected_seen", world(opd_code=0.59)) == "not decided"
    assert word("settings_sparsity_within_seeds_corrected_seen", world(opd_code=0.58)) == "reproduced"


def test_a_run_that_equals_its_own_shuffle_shows_no_place() -> None:
    tables = world()
    of_one = tables.geometry["recipe"] == "opd_teacher_moe"
    for metric in (SPARSITY, SHIFT):
        column = tables.geometry[f"{metric}_shuffled"].where(~of_one, tables.geometry[metric])
        tables = HandTables(tables.geometry.assign(**{f"{metric}_shuffled": column}), tables.accuracy)
    assert word("settings_masks_beyond_null", tables) == "partly"
    assert word("settings_drift_beyond_null", tables) == "not decided"


def test_a_missing_setting_is_named() -> None:
    tables = world()
    rest = HandTables(tables.geometry.loc[tables.geometry["recipe"] != "opd_teacher_large"], tables.accuracy)
    for name in LEDGER:
        found = verdict(LEDGER[name], rest)
        assert found.verdict == "not testable"
        assert "5 usable settings, 6 are needed; there is no run of opd_teacher_large" in found.reason


def share_between(own: float, order: list[str], at: str) -> float:
    """A setting of 299 updates; SFT goes from 0.1 to 0.5, control SFT stays at 0.1, RLVR's sparsity is step / 1023."""
    names = ("sft", "control_sft", "rlvr", "opd_code")
    steps = {"sft": (10, 90), "control_sft": (2, 299), "rlvr": (1, 1023), "opd_code": (150, 299)}
    tables = hand_tables(
        {name: {SPARSITY: [0.1]} for name in names}, {n: dict.fromkeys(steps[n], (1.0, 0.0)) for n in names}
    )
    numbers = {("sft", 90): 0.5, ("rlvr", 1): 1 / 1023, ("rlvr", 1023): 1.0, ("opd_code", 299): own}
    keys = zip(tables.geometry["recipe"], tables.geometry["step"], strict=True)
    geometry = tables.geometry.assign(**{SPARSITY: [numbers.get(key, 0.1) for key in keys]})
    look = LookUp(Sources(HandTables(geometry, tables.accuracy)), "attention", (0,))
    args = {"settings": ["opd_code"], "metrics": [SPARSITY], "order": order, "at": at}
    (found,) = setting_statistics.settings_in_order(look, **args)
    return found.parts[0].values[0]


@pytest.mark.parametrize(
    ("own", "order", "at", "expected"),
    [
        (0.51, ["sft", "rlvr"], "paper_steps", 1.0),  # SFT at its end, 0.5; RLVR at 1023 updates for 299, 1.0
        (0.49, ["sft", "rlvr"], "paper_steps", 0.0),
        (0.99, ["sft", "rlvr"], "paper_steps", 1.0),
        (0.29, ["control_sft", "rlvr"], "equal_updates", 1.0),  # RLVR at 299 updates: 0.2923
        (0.295, ["control_sft", "rlvr"], "equal_updates", 0.0),
        (0.29, ["sft", "rlvr"], "equal_updates", math.nan),  # SFT ends before
    ],
)
def test_where_the_ends_of_an_order_stand(own: float, order: list[str], at: str, expected: float) -> None:
    assert share_between(own, order, at) == pytest.approx(expected, nan_ok=True)


def test_another_match_is_refused() -> None:
    with pytest.raises(MetricInputError, match="expected paper_steps or equal_updates"):
        share_between(0.5, ["sft", "rlvr"], "final")


@pytest.mark.parametrize("seeds", [(0,), (3, 4)])
def test_one_seed_has_no_range_and_only_the_claim_s_seeds_are_read(seeds: tuple[int, ...]) -> None:
    """Settings have seed 0: with it alone OPD has no range, without it there is no setting."""
    look = LookUp(Sources(world()), "attention", seeds)
    args = {"settings": ["opd_code"], "metrics": [SPARSITY], "reference": "opd", "confidence": 0.95}
    (found,) = setting_statistics.settings_within_seeds(look, **args)
    assert math.isnan(found.parts[0].values[0])
    assert look.problems == ([] if 0 in seeds else ["there is no run of opd_code in the tables"])
