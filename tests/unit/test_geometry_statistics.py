"""Each statistic on numbers that can be worked out in the head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from opdgeom_utils.claims import geometry_statistics as statistics
from opdgeom_utils.claims.comparisons import Comparison
from tests.claim_world import look_up

SPARSITY = "update_sparsity"
ANGLE = "left_angle_mean_deg"


def values_of(found: list[Comparison]) -> list[list[float]]:
    """Values of the only part of each comparison."""
    assert all(len(comparison.parts) == 1 for comparison in found)
    return [list(comparison.parts[0].values) for comparison in found]


def test_ordering_takes_neighbours_seed_by_seed() -> None:
    """0.2 - 0.1 and 0.4 - 0.1, then 0.5 - 0.2 and 0.5 - 0.4."""
    look = look_up({"sft": {SPARSITY: [0.1, 0.1]}, "opd": {SPARSITY: [0.2, 0.4]}, "rlvr": {SPARSITY: [0.5, 0.5]}})
    args = {"metrics": [SPARSITY], "order": ["sft", "opd", "rlvr"], "at": "final"}
    found = statistics.ordering(look, **args)
    assert values_of(found) == [pytest.approx([0.1, 0.3]), pytest.approx([0.3, 0.1])]
    assert found[0].parts[0].label == "OPD minus SFT, update sparsity"
    assert found[0].parts[0].unit == "points"


def test_ordering_turns_round_for_descending_metrics() -> None:
    """SFT turns most: SFT minus OPD is 10 - 1 = 9 degrees."""
    look = look_up({"sft": {ANGLE: [10.0, 10.0]}, "opd": {ANGLE: [1.0, 2.0]}})
    args = {"metrics": [ANGLE], "order": ["sft", "opd"], "at": "final", "descending": [ANGLE]}
    (comparison,) = statistics.ordering(look, **args)
    assert comparison.parts[0].values == (9.0, 8.0)
    assert comparison.parts[0].unit == "degrees"


def test_ordering_takes_off_each_runs_own_null() -> None:
    """(0.5 - 0.45) - (0.2 - 0.18) = 0.03."""
    look = look_up({
        "sft": {SPARSITY: 0.2, f"{SPARSITY}_shuffled": 0.18},
        "opd": {SPARSITY: 0.5, f"{SPARSITY}_shuffled": 0.45},
    })  # fmt: skip
    args = {"metrics": [SPARSITY], "order": ["sft", "opd"], "at": "final", "minus_null": "shuffled"}
    assert values_of(statistics.ordering(look, **args)) == [pytest.approx([0.03] * 5)]


def test_log10_steps_counts_decades() -> None:
    """From 1e-4 to 1e-3 is one decade, to 1e-2 two; zero has no logarithm."""
    shift = "normalized_spectral_shift"
    look = look_up({"opd": {shift: [1e-4, 1e-4, 0.0]}, "sft": {shift: [1e-3, 1e-2, 1e-3]}})
    args = {"metrics": [shift], "order": ["opd", "sft"], "at": "final"}
    (values,) = values_of(statistics.log10_steps(look, **args))
    assert values[:2] == pytest.approx([1.0, 2.0])
    assert not math.isfinite(values[2])


def test_against_level() -> None:
    look = look_up({"opd": {"principal_overlap": [0.25, 0.35]}})
    args = {"metrics": ["principal_overlap"], "recipes": ["opd"], "level": 0.3, "at": "final"}
    assert values_of(statistics.against_level(look, **args)) == [pytest.approx([-0.05, 0.05])]


OVERLAPS = {"principal_overlap": 0.27, "low_magnitude_overlap": 0.5}
NULLS = {"principal_overlap_shuffled": 0.29, "low_magnitude_overlap_shuffled": 0.4}


def test_off_principal_counts_down_for_one_mask_and_up_for_the_other() -> None:
    look = look_up({"opd": OVERLAPS})
    args = {"metrics": list(OVERLAPS), "recipes": ["opd"], "level": 0.3, "at": "final"}
    assert values_of(statistics.off_principal(look, **args)) == [pytest.approx([0.03] * 5), pytest.approx([0.2] * 5)]


def test_off_principal_against_null_does_the_same_from_the_null() -> None:
    look = look_up({"opd": OVERLAPS | NULLS})
    args = {"metrics": list(OVERLAPS), "recipes": ["opd"], "against": "shuffled", "at": "final"}
    found = statistics.off_principal_against_null(look, **args)
    assert values_of(found) == [pytest.approx([0.02] * 5), pytest.approx([0.1] * 5)]
    assert found[0].parts[0].label == "OPD below its shuffled null, principal-mask overlap"


def test_against_null_subtracts_and_ratio_to_null_divides() -> None:
    look = look_up({"opd": {ANGLE: [2.0, 3.0], f"{ANGLE}_shuffled": [4.0, 0.0]}})
    args = {"metrics": [ANGLE], "recipes": ["opd"], "against": "shuffled", "at": "final"}
    assert values_of(statistics.against_null(look, **args)) == [[-2.0, 3.0]]
    (ratios,) = values_of(statistics.ratio_to_null(look, **args))
    assert ratios[0] == 0.5
    assert math.isnan(ratios[1])


def test_order_in_each_seed_wants_the_whole_order_strictly() -> None:
    """Seed 0 holds, seed 1 has a tie, seed 2 is upside down, seed 3 lacks a run."""
    look = look_up({
        "sft": {SPARSITY: [0.1, 0.1, 0.9, 0.1]},
        "opd": {SPARSITY: [0.2, 0.2, 0.5, math.nan]},
        "rlvr": {SPARSITY: [0.3, 0.2, 0.1, 0.3]},
    })  # fmt: skip
    args = {"metrics": [SPARSITY], "order": ["sft", "opd", "rlvr"], "at": "final"}
    (values,) = values_of(statistics.order_in_each_seed(look, **args))
    assert values[:3] == [1.0, 0.0, 0.0]
    assert math.isnan(values[3])


def test_between_ends_measures_both_distances() -> None:
    look = look_up({"sft": {SPARSITY: 0.1}, "opd": {SPARSITY: 0.4}, "rlvr": {SPARSITY: 0.5}})
    args = {"metrics": [SPARSITY], "recipes": ["opd"], "order": ["sft", "rlvr"], "at": "final"}
    assert values_of(statistics.between_ends(look, **args)) == [pytest.approx([0.3] * 5), pytest.approx([0.1] * 5)]


def test_surviving_share_divides_the_matched_gap_by_the_wide_one() -> None:
    """(0.5 - 0.3) / (0.5 - 0.1) = 0.5; in seed 1 the wide gap is negative, so there is no share."""
    look = look_up({
        "sft": {SPARSITY: [0.1, 0.6]}, "control_sft": {SPARSITY: [0.3, 0.3]}, "opd": {SPARSITY: [0.5, 0.5]},
    })  # fmt: skip
    args = {"metrics": [SPARSITY], "wide": ["sft", "opd"], "matched": ["control_sft", "opd"], "at": "equal_updates"}
    (shares,) = values_of(statistics.surviving_share(look, **args))
    assert shares[0] == pytest.approx(0.5)
    assert math.isnan(shares[1])


def test_objective_outweighs_length_subtracts_what_comes_later() -> None:
    """At step 2: RLVR 0.7, OPD 0.5. RLVR ends at 0.6. So (0.7 - 0.5) - |0.6 - 0.7| = 0.1."""
    look = look_up({"opd": {SPARSITY: 0.5}, "rlvr": {SPARSITY: 0.7}}, {
        "opd": {2: (1.0, 0.0)}, "rlvr": {2: (1.0, 0.0), 6: (2.0, 0.0)},
    })  # fmt: skip
    geometry = look.sources.tables.geometry
    geometry.loc[(geometry["recipe"] == "rlvr") & (geometry["step"] == 6), SPARSITY] = 0.6
    args = {"metrics": [SPARSITY], "order": ["opd", "rlvr"]}
    assert values_of(statistics.objective_outweighs_length(look, **args)) == [pytest.approx([0.1] * 5)]
    turned = statistics.objective_outweighs_length(look, **args, descending=[SPARSITY])
    assert values_of(turned) == [pytest.approx([-0.3] * 5)]


def test_outside_interval_asks_for_above_both_or_below_both() -> None:
    """OPD 0.9 is 0.8 above SFT and 0.4 above RLVR."""
    look = look_up({"control_sft": {SPARSITY: 0.1}, "opd": {SPARSITY: 0.9}, "rlvr": {SPARSITY: 0.5}})
    args = {"metrics": [SPARSITY], "middle": "opd", "ends": ["control_sft", "rlvr"], "at": "final"}
    above, below = statistics.outside_interval(look, **args)
    assert [part.values[0] for part in above.parts] == pytest.approx([0.8, 0.4])
    assert [part.values[0] for part in below.parts] == pytest.approx([-0.8, -0.4])


@pytest.mark.parametrize("missing", ["recipe", "metric"])
def test_what_is_missing_is_nan_with_a_reason(missing: str) -> None:
    look = look_up({"opd": {SPARSITY: 0.5}})
    args: Mapping[str, Any] = {"metrics": [SPARSITY], "recipes": ["rlvr"], "level": 0.3, "at": "final"}
    if missing == "metric":
        args = {"metrics": ["principal_overlap"], "recipes": ["opd"], "level": 0.3, "at": "final"}
    (values,) = values_of(statistics.against_level(look, **args))
    assert all(math.isnan(v) for v in values)
    assert len(look.problems) == 1
    assert missing in look.problems[0] or "no run of rlvr" in look.problems[0] or "no column" in look.problems[0]
