"""One curve or not: the ladder makes it, an objective leaves it by the rule in LOG.md, and words follow."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from opdgeom_utils import charts
from opdgeom_utils.chapters import committed_tables, one_curve
from opdgeom_utils.measures.noise import walk_of, walks_of_runs

LADDER = {"opd_64x8": 0.0, "opd_128": 0.25, "opd": 0.5, "opd_full_vocab": 1.0}


def world(offsets: list[float], at: float = 0.5, recipe: str = "rlvr") -> pd.DataFrame:
    """Ladder on the line value = 2 x coherence; an objective's seeds off it by ``offsets`` at coherence ``at``."""
    rows = [(name, seed, c, 2 * c) for name, c in LADDER.items() for seed in range(2)]
    rows += [(recipe, seed, at, 2 * at + offset) for seed, offset in enumerate(offsets)]
    frame = pd.DataFrame(rows, columns=["recipe", "seed", "coherence", "value"])
    return frame.assign(statistic="stable rank", metric="stable_rank")


@pytest.mark.parametrize(
    ("offsets", "verdict"),
    [
        ([0.5, 0.51, 0.52], "leaves"),
        ([-0.5, -0.51, -0.52], "leaves"),
        ([0.1, 0.1001, 0.0999], "on the curve"),  # seeds agree, but by a twentieth of the range
        ([0.9, -0.3, 0.6], "not decided"),  # far, but the seeds disagree
        ([0.5, 0.51], "not testable"),
    ],
)
def test_an_objective_leaves_where_seeds_agree_on_a_tenth_of_the_range(offsets: list[float], verdict: str) -> None:
    (row,) = one_curve.distances(world(offsets)).to_dict("records")
    assert row["verdict"] == verdict
    assert row["mean"] == pytest.approx(np.mean(offsets))
    assert row["span"] == pytest.approx(2.0)


@pytest.mark.parametrize("at", [-0.1, 1.1])
def test_outside_the_range_of_the_ladder_nothing_is_said(at: float) -> None:
    (row,) = one_curve.distances(world([0.5, 0.5, 0.5], at)).to_dict("records")
    assert row["verdict"] == "not testable"


def test_the_curve_is_a_broken_line_through_the_ladders_means() -> None:
    curve = one_curve.curve_of(world([9.0, 9.0, 9.0]))
    assert curve["coherence"].tolist() == [0.0, 0.25, 0.5, 1.0]
    assert curve["value"].tolist() == [0.0, 0.5, 1.0, 2.0]


def test_random_credit_widens_the_range_and_is_no_part_of_the_curve() -> None:
    """At ten times the curve's height RLVR's 0.5 is less than a tenth of the range, and the curve is what it was."""
    points = pd.concat([world([0.5, 0.5, 0.5]), world([9.0, 9.0, 9.0], recipe="opd_random_credit").iloc[8:]])
    found = one_curve.distances(points).set_index("recipe")
    assert found.loc["rlvr", ["mean", "span", "verdict"]].tolist() == [0.5, pytest.approx(10.0), "on the curve"]
    assert found.loc["opd_random_credit", ["mean", "verdict"]].tolist() == [9.0, "leaves"]


def test_words_say_who_leaves_and_what_cannot_be_tested() -> None:
    learns, null = world([0.01, 0.02, 0.03]), world([1.5, 1.5, 1.5], recipe="rlvr_random_reward")
    found = pd.concat(map(one_curve.distances, [learns, null, world([0.1], recipe="control_sft")]))
    lead, where = one_curve.say(found).split("\n")
    assert lead == (
        "**To a tenth of what separates OPD from random credit, what learns lies on one curve, whatever its objective, "
        "and what has nothing to learn leaves it.** RLVR leaves it in 0 of 1; "
        "with nothing to learn, random reward in 1 of 1 statistics."
    )
    assert "Random reward: stable rank." in where
    assert "Control SFT cannot be tested: " in where
    assert one_curve.as_table(found).iloc[0]["random reward"] == "+75% leaves"


def test_an_objective_off_the_curve_is_not_hidden() -> None:
    off = pd.concat(one_curve.distances(world([0.5, 0.5, 0.5]).assign(statistic=name)) for name in "abc")
    assert one_curve.say(off).startswith("**Not all that learns lies on one curve.** RLVR leaves it in 3 of 3")


def test_coherence_of_a_run_is_that_of_its_whole_update() -> None:
    walk = walk_of("opd", "toy", 400)
    middle = ((walk.rms**2 + walk.ballistic**2) / 2) ** 0.5
    keys = {"profile": "toy", "recipe": "opd", "seed": 0, "step": 400}
    parts = [{"n_entries": 300, "update_norm": middle * 300**0.5}, {"n_entries": 100, "update_norm": middle * 10}]
    geometry = pd.DataFrame([keys | part for part in parts])
    assert walks_of_runs(geometry)["coherence"].to_dict()["opd", 0] == pytest.approx(0.5)


def test_committed_runs_are_placed_and_drawn() -> None:
    tables = committed_tables.tables_for("toy", [0, 1, 2])
    points = one_curve.against_coherence(tables, 400)
    assert points["statistic"].nunique() == len(one_curve.OF_GEOMETRY) + 2
    at = points.groupby("recipe")["coherence"].mean()
    assert at["opd_random_credit"] < at["opd"] < at["opd_full_vocab"]
    curves = pd.concat(one_curve.curve_of(own).assign(statistic=s) for s, own in points.groupby("statistic"))
    described = charts.one_curve(points, curves).to_dict()["description"]
    assert described.startswith("9 statistics against coherence")
    assert "random credit: coherence -0.00% to 0.0" in described


def test_a_figure_without_a_number_says_so() -> None:
    points = world([0.5]).assign(value=np.nan)
    described = charts.one_curve(points, points.head(0)).to_dict()["description"]
    assert described == "Nothing to draw: the table has no defined number of a statistic."


def test_a_statistic_stands_beside_the_coherence_of_its_own_matrices() -> None:
    """Sparsity beside all tensors, the rest beside attention, worked out from the norms."""
    tables = committed_tables.tables_for("toy", [0, 1, 2])
    points = one_curve.against_coherence(tables, 400).set_index(["recipe", "seed", "metric"])["coherence"]
    own = tables.geometry.query("recipe == 'opd_128' and seed == 0 and step == 400")
    attention = own[own["module"].isin(["q_proj", "k_proj", "v_proj", "o_proj"])]
    for metric, rows in (("update_sparsity", own), ("stable_rank", attention)):
        rms = ((rows["update_norm"] ** 2).sum() / rows.loc[rows["update_norm"].notna(), "n_entries"].sum()) ** 0.5
        walk = walk_of("opd_128", "toy", 400)
        expected = (rms**2 - walk.rms**2) / (walk.ballistic**2 - walk.rms**2)
        assert points["opd_128", 0, metric] == pytest.approx(expected)
