"""The ends of the figures' guides: what they say follows from the table by the rule, in worlds made by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from opdgeom_utils.chapters import moments, seen, settings, sufficiency, update_path, variants_seen
from opdgeom_utils.chapters.control import AGAINST, OTHER_SEED, STRIP
from tests.chart_tables import long_table, rounding_panels


def strip(rows: dict[str, list[float]], panel: str, nulls: tuple[str, ...] = ()) -> pd.DataFrame:
    """Rows of a figure of strips: the numbers of each row, seed by seed."""
    found = [
        (row, panel, "null" if row in nulls else "variant", seed, value)
        for row, values in rows.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(found, columns=STRIP)


def curve(name: str, values: dict[int, list[float]]) -> pd.DataFrame:
    rows = [(name, seed, step, v) for step, own in values.items() for seed, v in enumerate(own)]
    return pd.DataFrame(rows, columns=["series", "seed", "step", "value"])


def test_a_wide_difference_tells_nothing_apart_and_one_seed_is_not_compared() -> None:
    values = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [0.9, 1.9, 2.9], "c": [0.0, 4.0, 2.0], "d": [9.0, None, None]})
    said = seen.beside(values, "a", ["b", "c", "d", "nobody"])
    assert said == "above b; not told apart from c; not compared, for want of seeds, with d"
    assert seen.beside(values, "nobody", ["a"]) == "compared with nothing"


@pytest.mark.parametrize(
    ("last", "word"),
    [([2.0, 4.1], "rises (2.02"), ([0.5, 1.0], "falls (0.50"), ([2.0, 1.0], "does not change")],
)
def test_a_trend_is_read_from_ratios(last: list[float], word: str) -> None:
    assert seen.trend(pd.Series([1.0, 2.0]), pd.Series(last)).startswith(word)
    assert seen.trend(pd.Series([1.0]), pd.Series([3.0])) == "has one seed (3.00 times)"


def test_ends_of_curves_are_those_of_each_seed() -> None:
    first, last = seen.first_and_last(curve("OPD", {8: [3.0, 5.0], 2: [1.0, 2.0]}))["OPD"]
    assert (first.tolist(), last.tolist()) == ([1.0, 2.0], [3.0, 5.0])


def test_paths_say_growth_and_who_is_ahead() -> None:
    """The norm is the root of the share, from 2 to 100 updates; all four runs have the same similarity plus noise."""
    said = update_path.say_paths(long_table(), 4)
    assert f"OPD rises ({(100 / 2) ** 0.5:.2f} times)" in said
    assert said.count("Similarity to the end at a fifth") == 2


def test_a_spectrum_that_only_moves_up_keeps_its_ratio() -> None:
    said = update_path.say_shape(long_table(), ["opd"])
    assert said.startswith(f"OPD's first value grows {50**0.5:.1f} times and value 8 {50**0.5:.1f} times")
    assert said.endswith("does not change for certain (1.00 times).")


def test_the_floor_leaves_rounding_noise_out() -> None:
    said = update_path.say_floor(rounding_panels())
    assert "as bf16 shows it, it falls" in said
    assert "rounding noise alone" not in said


def test_a_run_below_one_null_is_not_above_every_one() -> None:
    """Real inputs lie above the runs on the right and below them on the left; the other nulls are lower."""
    without = long_table().query("null != 'shuffled_time'")
    said = update_path.say_highest(without, 4)
    above, rest = said.split(". ")
    assert "OPD (left)" in above
    assert "OPD (right)" in rest


def test_scopes_say_the_widest_move_and_the_order() -> None:
    rows = [("opd", "right, attention", 0.5), ("opd", "right, all", 0.6), ("sft", "right, attention", 0.4)]
    rows += [("sft", "right, all", 0.7), ("opd", "left, attention", 0.5), ("opd", "left, all", 0.5)]
    table = pd.DataFrame([*rows, ("sft", "left, attention", 0.4), ("sft", "left, all", 0.4)])
    said = update_path.say_scopes(table.set_axis(["recipe", "column", "value"], axis=1))
    assert said.startswith(
        "On the right a mean moves by at most 0.30 (SFT), and the order of the runs changes; on the l"
    )
    assert said.endswith("(OPD), and the order of the runs stays.") or said.endswith(
        "(SFT), and the order of the runs stays."
    )


def test_inputs_say_the_way_from_noise() -> None:
    rows = [("OPD", "noise", 0.1), ("OPD", "inputs", 0.5), ("OPD", "own", 0.2)]
    ends = pd.DataFrame(rows, columns=["run", "of", "value"]).assign(seed=0)
    assert update_path.say_inputs(ends, "noise", "inputs") == "Of the way from noise to inputs alone: OPD 25%."
    assert update_path.say_inputs(ends, "noise", "other") == "The two nulls are not in these tables."


def test_the_channel_is_asked_of_other_seeds() -> None:
    """In the table other seeds of OPD share 0.5, RLVR 0.3, SFT 0.2."""
    said = update_path.say_channel(long_table(), 4)
    assert said.count("The overlap with other seeds is above") == 2
    assert "other seeds 0.52" in said


def test_inside_leaves_held_updates_out() -> None:
    rows = [("opd", "early space", 0.4), ("opd", "random space", 0.1), ("opd", "early space, update held", 1.0)]
    inside = pd.DataFrame(rows, columns=["free", "space", "inside"]).assign(sweep="space", isotropic=0.02)
    said = sufficiency.say_inside(inside)
    assert "lies 40% of OPD's update" in said
    assert "2.0%: 60% escapes" in said
    assert said.endswith("10% to 40%.")


def test_rulers_are_gains_over_spreads() -> None:
    rulers = pd.DataFrame({"ruler": ["distance", "distance", "accuracy"], "gain": [-0.2, -0.1, 0.02]})
    said = sufficiency.say_rulers(rulers.assign(**{"seed spread": [0.01, 0.02, 0.01]}))
    assert said == "The gain is by distance 5.0 to 20.0 times and by accuracy 2.0 to 2.0 times the spread of the seeds."


def test_spaces_are_grouped_by_what_the_difference_says() -> None:
    against = pd.DataFrame(
        {
            "run": "OPD",
            "other space": ["random space", "input activations"],
            "early keeps": "90%",
            "other keeps": ["60%", "89%"],
            "verdict": ["more", "not told apart"],
        }
    )
    said = sufficiency.say_spaces(against)
    assert said.startswith("OPD's early space keeps 90%; beside others: more (random space 60%); not told apart (input")


def test_a_sweep_that_never_keeps_enough_says_so() -> None:
    rows = pd.DataFrame({"share": [0.1, 0.5], "kept": [0.9, 0.7]})
    said = sufficiency.say_sweep(rows, "share", "a start at {:.0%}")
    assert said == "a start at 10% keeps 90%, a start at 50% keeps 70%; four fifths are not kept at the last place."


def test_overlaps_count_against_another_seed_and_rlvr() -> None:
    rows = {"near": [0.7, 0.8], "far": [0.1, 0.1], OTHER_SEED: [0.5, 0.5], AGAINST: [0.3, 0.3]}
    said = variants_seen.say_overlaps(strip(rows, "left space", (OTHER_SEED, AGAINST)))
    assert said == (
        f"Left space ({OTHER_SEED} 0.50, {AGAINST} 0.30): 1 of 2 variants lie above another seed; below "
        f'"{AGAINST}" far.'
    )


def test_reached_ranks_name_the_extremes() -> None:
    rows = {"top 50%": [6.0, 6.2], "top 5%": [7.0, 7.2], "OPD": [6.0, 6.1], "RLVR": [5.0, 5.1]}
    said = variants_seen.say_paths(strip(rows, "stable rank", ("OPD", "RLVR")))
    assert said.startswith("At the common update: OPD 6.05, RLVR 5.05; RLVR is below OPD.")
    assert said.endswith("The variants lie between 6.10 (top 50%) and 7.10 (top 5%).")


def test_bends_go_up_for_distances_and_down_for_overlaps() -> None:
    rows = [("50%", "right space", 0.8), ("25%", "right space", 0.4), ("50%", "distance from OPD's path", 0.1)]
    swept = pd.DataFrame(rows, columns=["setting", "panel", "value"]).assign(series="top")
    said = variants_seen.say_bends(swept, {"right space": 0.5, "distance from OPD's path": 0.2}, ["50%", "25%"])
    assert (
        said == "Right space: top passes another seed at 25%. Distance from OPD's path: top never passes another seed."
    )


def test_skill_says_extremes_and_whether_the_path_goes_with_it() -> None:
    """Accuracy falls as the distance from the path grows: a rank correlation of -1."""
    skill = strip({"a": [0.6], "b": [0.5], "c": [0.4], "OPD": [0.55]}, "accuracy", ("OPD",))
    gaps = strip({"a": [0.1], "b": [0.2], "c": [0.3]}, "distance from OPD's path")
    said = variants_seen.say_skill(skill, gaps)
    assert said.startswith("Accuracy: OPD 55.0%; variants from 40.0% (c) to 60.0% (a); rank correlation")
    assert said.endswith("-1.00.")


def test_corners_name_the_change_that_leaves_more() -> None:
    corners = pd.DataFrame(
        {"what differs": ["loss", "writer", "writer and loss"], "value": [0.5, 0.2, 0.1], "seeds": 1}
    )
    assert "changing the loss leaves more (1 seed at the least)" in variants_seen.say_corners(corners)


def test_moments_are_held_against_random_credit() -> None:
    rows = {"top 50%": [0.8, 0.9], "RLVR": [0.1, 0.2], "random credit": [0.5, 0.6], "other batches of OPD": [0.9, 0.9]}
    said = moments.say_beside_chance(strip(rows, "left moment", ("random credit",)), ["opd_top50", "rlvr"])
    assert said == (
        "Left moment (random credit 0.55, other batches of OPD 0.90): above random credit: top 50%; below it: RLVR."
    )


def test_the_cross_term_is_the_widest_gap() -> None:
    mixed = pd.DataFrame({"with cross": [1.0, 1.0], "without": [0.9, 0.7], "with, others": [0.5, 0.4]})
    said = moments.say_cross_term(mixed.assign(**{"without, others": [0.5, 0.38]}))
    assert said == "On the same batches the cross term adds at most 0.30, on the other half at most 0.02."


def test_settings_outside_are_named_and_own_seeds_counted() -> None:
    ranges = pd.DataFrame(
        {
            "run": ["code only", "mathematics only", "OPD, seed 0"],
            "metric": "update sparsity",
            "inside": [False, True, False],
        }
    )
    rows = pd.DataFrame({"update_sparsity": [0.5, 0.6], "update_sparsity_shuffled": [0.5, 0.59]})
    said = settings.say_cloud(rows, ranges)
    assert said.startswith("By sparsity 1 of 2 settings lie in the range of a further seed; outside: code only.")
    assert "1.00 points" in said
    assert settings.say_cells(ranges) == (
        "Outside lie 1 of the settings' 2 cells (code only), and 1 of the 1 of OPD's own seeds."
    )
