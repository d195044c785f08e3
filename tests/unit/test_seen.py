"""The ends of the figures' guides: what they say follows from the table by the rule, in worlds made by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from opdgeom_utils.chapters import moments, path_seen, seen, settings, sufficiency, variants_seen
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
    assert said == "above b; not told apart from c"
    assert seen.beside(values, "a", ["d"]) == "not compared, for want of seeds, with d"
    assert seen.leads(values, "a", ["b", "c", "d"], "run") == "above every run but c"
    assert seen.place(values[["a", "c", "d"]], "a") == "not told apart from the others"
    assert seen.beside(values, "nobody", ["a"]) == "compared with nothing"


@pytest.mark.parametrize(
    ("last", "word"),
    [([2.0, 4.1], "rises"), ([0.5, 1.0], "falls"), ([2.0, 1.0], "shows no certain change")],
)
def test_a_trend_is_read_from_ratios(last: list[float], word: str) -> None:
    first = pd.Series([1.0, 2.0])
    found = seen.trend(first, pd.Series(last))
    assert found == (word, pytest.approx((last[0] / 1.0 * last[1] / 2.0) ** 0.5))
    assert seen.trend(first[:1], pd.Series([3.0])) == ("has one seed", 3.0)


def test_turns_leave_out_one_seed_but_not_in_silence() -> None:
    """Runs are named; a run of one seed is neither risen nor fallen."""
    one = pd.Series([1.0, 2.0])
    risen = {"SFT": (one, 2 * one), "OPD": (one, 3 * one)}
    assert seen.turns(risen) == "rises for SFT and OPD"
    assert seen.turns(risen | {"RLVR": (one[:1], 2 * one[:1])}) == "rises for SFT and OPD"
    assert seen.turns({"RLVR": (one[:1], 2 * one[:1])}) == "has one seed for RLVR"


def test_ends_of_curves_are_those_of_each_seed() -> None:
    first, last = seen.first_and_last(curve("OPD", {8: [3.0, 5.0], 2: [1.0, 2.0]}))["OPD"]
    assert (first.tolist(), last.tolist()) == ([1.0, 2.0], [3.0, 5.0])


def test_paths_say_growth_and_who_is_ahead() -> None:
    """The norm is the root of the share, from 2 to 100 updates; all four runs have the same similarity plus noise."""
    said = path_seen.say_paths(long_table(), 4)
    runs = "SFT, OPD, RLVR and control SFT"
    assert said.startswith(f"The norm of the update rises for {runs}; OPD's is 7.07 times what it was.")
    assert f"The stable rank shows no certain change for {runs}; OPD's is 1.00 times what it was." in said
    assert "By similarity to the end at a fifth, OPD is on both sides not told apart from SFT, RLVR" in said


def test_a_spectrum_that_only_moves_up_keeps_its_ratio() -> None:
    table = long_table()
    said = path_seen.say_shape(table, ["opd"])
    assert said == (
        "How flat a spectrum is, singular value 8 over the first says. "
        "By it the spectrum shows no certain change for OPD (1.00 times)."
    )
    late = table["quantity"].eq("singular_value") & table["k"].eq(8) & table["step"].eq(100)
    doubled = table.assign(value=table["value"].where(~late, 2 * table["value"]))
    assert "grows flatter for OPD (2.00 times)" in path_seen.say_shape(doubled, ["opd"])


def test_the_floor_leaves_rounding_noise_out() -> None:
    said = path_seen.say_floor(rounding_panels())
    runs = "SFT, OPD, RLVR and control SFT"
    assert f"As bf16 shows it, it falls for {runs}." in said
    assert f"In fp32 the stable rank shows no certain change for {runs}." in said
    assert said.count(". ") == 2


def test_a_run_below_one_null_is_not_above_every_one() -> None:
    """Real inputs lie above the runs on the right and below them on the left; the other nulls are lower."""
    without = long_table().query("null != 'shuffled_time'")
    said = path_seen.say_highest(without, 4)
    assert said.startswith("Runs that lie above every one of their nulls: on the right none; on the left SFT, OPD")


def test_the_made_up_null_is_held_against_a_trained_one() -> None:
    table = long_table()
    own = table.loc[table["recipe"].eq("opd") & table["null"].isin(["", "activations"])]
    lower = own.assign(recipe="opd_random_credit", value=own["value"].where(own["null"] != "", 0.01))
    said = path_seen.say_trained_null(pd.concat([own, lower]), 4)
    assert "0.01 on the right, its made-up null" in said
    assert "0.01 on the left, its made-up null" in said
    assert said.endswith("too hard on the side of the inputs and too hard on the side of the outputs (seeds: 5).")
    assert path_seen.say_trained_null(own, 4) == path_seen.say_trained_null(None, 4) == ""


def test_nulls_say_the_exceptions_and_how_far_the_highest_is() -> None:
    without = long_table().query("null != 'shuffled_time'")
    right, left = path_seen.say_nulls(without, "sim_to_end", 4).split("; ")
    assert right == "OPD lies on the right above every null but noise on real inputs, 0.05 short of the highest"
    assert left == "on the left above every null, by 0.05 at the least."


def test_scopes_say_the_widest_move_and_the_order() -> None:
    rows = [("opd", "right, attention", 0.5), ("opd", "right, all", 0.6), ("sft", "right, attention", 0.4)]
    rows += [("sft", "right, all", 0.7), ("opd", "left, attention", 0.5), ("opd", "left, all", 0.5)]
    table = pd.DataFrame([*rows, ("sft", "left, attention", 0.4), ("sft", "left, all", 0.4)])
    table = table.set_axis(["recipe", "column", "value"], axis=1)
    said = path_seen.say_scopes(table)
    assert said == ("The order of the runs changes on the right, and no mean moves by more than 0.30 (SFT).")
    left = table[table["column"].str.startswith("left")]
    assert path_seen.say_scopes(left).startswith("The order of the runs stays, and no mean moves by more than 0.00")


def test_inputs_say_the_way_from_noise() -> None:
    rows = [("OPD", "noise", 0.1), ("OPD", "inputs", 0.5), ("OPD", "own", 0.2)]
    rows += [("SFT", "noise", 0.1), ("SFT", "inputs", 0.5), ("SFT", "own", 0.4)]
    ends = pd.DataFrame(rows, columns=["run", "of", "value"]).assign(seed=0)
    said = "Every run lies between noise and inputs alone: from 25% of the way (OPD) to 75% of the way (SFT)."
    assert path_seen.say_inputs(ends, "noise", "inputs") == said
    beyond = ends.assign(value=ends["value"].replace(0.4, 0.6))
    assert path_seen.say_inputs(beyond, "noise", "inputs").startswith("Not every run lies between")
    assert path_seen.say_inputs(ends, "noise", "other") == "The two nulls are not in these tables."


def test_the_channel_is_asked_of_other_seeds() -> None:
    """In the table other seeds of OPD share 0.5 and more, RLVR 0.3, SFT 0.2, and the early update more than all."""
    said = path_seen.say_channel(long_table(), 4)
    assert "other seeds of OPD lie on both sides above every other row but itself at a fifth." in said
    assert "They share 0.52 on the right" in said


def test_inside_leaves_held_updates_out() -> None:
    rows = [("opd", "early space", 0.4), ("opd", "random space", 0.1), ("opd", "early space, update held", 1.0)]
    inside = pd.DataFrame(rows, columns=["free", "space", "inside"]).assign(sweep="space", isotropic=0.02)
    said = sufficiency.say_inside(inside)
    assert said.startswith("Of OPD's update 60% escapes the early space")
    assert "without direction 98% would" in said
    assert said.endswith("60% to 90% do.")


def test_rulers_are_gains_over_spreads() -> None:
    rulers = pd.DataFrame({"ruler": ["distance", "distance", "accuracy"], "gain": [-0.2, -0.1, 0.02]})
    said = sufficiency.say_rulers(rulers.assign(**{"seed spread": [0.01, 0.02, 0.01]}))
    assert said == (
        "The finer ruler is distance: its gain is at least 5.0 times the spread of the seeds, that by accuracy 2.0 "
        "times."
    )


def test_spaces_are_grouped_by_what_the_difference_says() -> None:
    against = pd.DataFrame(
        {
            "run": "OPD",
            "other space": ["random space", "input activations"],
            sufficiency.ALL_SEEDS: "90%",
            "other keeps": ["60%", "89%"],
            "verdict": ["more", "not told apart"],
        }
    )
    said = sufficiency.say_spaces(against)
    assert said == (
        "OPD's early space keeps 90%: more than random space (60%); not told apart from input activations (89%)."
    )


def test_a_sweep_that_never_keeps_enough_says_so() -> None:
    rows = pd.DataFrame({"share": [0.1, 0.5], "kept": [0.9, 0.7]})
    said = sufficiency.say_sweep(rows, "share", "a start at {:.0%}")
    assert said == "Four fifths are not kept at the last place (a start at 10% keeps 90%, a start at 50% keeps 70%)."


def test_overlaps_count_against_another_seed_and_rlvr() -> None:
    rows = {"near": [0.7, 0.8], "far": [0.1, 0.1], OTHER_SEED: [0.5, 0.5], AGAINST: [0.3, 0.3]}
    said = variants_seen.say_overlaps(strip(rows, "left space", (OTHER_SEED, AGAINST)))
    assert said == (
        "On the left 1 of 2 variants share more with OPD than another seed does, and far less than RLVR does "
        "(another seed 0.50, RLVR 0.30 on the left)."
    )


def test_reached_ranks_name_the_extremes() -> None:
    rows = {"top 50%": [6.0, 6.2], "top 5%": [7.0, 7.2], "OPD": [6.0, 6.1], "RLVR": [5.0, 5.1]}
    said = variants_seen.say_paths(strip(rows, "stable rank", ("OPD", "RLVR")))
    assert said == (
        "At the common update RLVR is below OPD (5.05 and 6.05). The variants end above OPD, furthest top 5% at 7.10."
    )
    assert "end on both sides of OPD" in variants_seen.say_paths(
        strip(rows | {"low": [5.9, 5.8]}, "x", ("OPD", "RLVR"))
    )


def test_bends_go_up_for_distances_and_down_for_overlaps() -> None:
    rows = [("50%", "right space", 0.8), ("25%", "right space", 0.4), ("50%", "distance from OPD's path", 0.1)]
    swept = pd.DataFrame(rows, columns=["setting", "panel", "value"]).assign(series="top")
    said = variants_seen.say_bends(swept, {"right space": 0.5, "distance from OPD's path": 0.2}, ["50%", "25%"])
    assert said == (
        'The curve "top" goes beyond another seed of OPD first at 25% (right space); '
        "nowhere (distance from OPD's path)."
    )


def test_skill_says_extremes_and_whether_the_path_goes_with_it() -> None:
    """Accuracy falls as the distance from the path grows: a rank correlation of -1."""
    skill = strip({"a": [0.6], "b": [0.5], "c": [0.4], "OPD": [0.55]}, "accuracy", ("OPD",))
    gaps = strip({"a": [0.1], "b": [0.2], "c": [0.3]}, "distance from OPD's path")
    said = variants_seen.say_skill(skill, gaps)
    assert said == (
        "Further from OPD's path, accuracy is lower (rank correlation -1.00). By accuracy variants reach 40.0% (c) to "
        "60.0% (a), OPD 55.0%."
    )
    turned = strip({"a": [0.6], "b": [0.4], "c": [0.5], "d": [0.7]}, "accuracy")
    gaps = strip({"a": [0.1], "b": [0.2], "c": [0.3], "d": [0.4]}, "distance from OPD's path")
    assert "accuracy is in no clear order (rank correlation +0.40)" in variants_seen.say_skill(turned, gaps)


def test_corners_name_the_change_that_leaves_more() -> None:
    corners = pd.DataFrame(
        {"what differs": ["loss", "writer", "writer and loss"], "value": [0.5, 0.2, 0.1], "seeds": 1}
    )
    assert variants_seen.say_corners(corners) == (
        "Changing the writer leaves less in common than changing the loss (0.20 and 0.50; single pairs, writer 0.20 to "
        "0.20; loss 0.50 to 0.50; 1 seed at the least)."
    )


def test_moments_are_held_against_random_credit() -> None:
    rows = {"top 50%": [0.8, 0.9], "RLVR": [0.1, 0.2], "random credit": [0.5, 0.6], "other batches of OPD": [0.9, 0.9]}
    said = moments.say_beside_chance(strip(rows, "left moment", ("random credit",)), ["opd_top50", "rlvr"])
    assert said == (
        "Shown to come nearer to OPD's moment than random credit, which has 0.55 (left), are on the left 1 of 2 "
        "(top 50%); by their means they have 0.15 to 0.85."
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
