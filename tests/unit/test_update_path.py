"""Tables of the chapter on the path: places, folds over seeds, and the sentences that say what exceeds its null."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from opdgeom_utils.chapters import path_seen, update_path
from opdgeom_utils.measures import paths
from tests.chart_tables import long_table


def test_curves_of_a_null_carry_its_name_and_their_runs_share() -> None:
    rows = update_path.path_curves(
        long_table(), "sim_to_end", side="left", k=4, recipes=["rlvr"], nulls=["activations"]
    )
    assert set(rows["recipe"]) == {"RLVR"}
    assert set(rows["series"]) == {"noise on real inputs"}
    assert sorted(rows["share"].unique()) == [0.02, 0.1, 0.4, 1.0]


def test_the_sentence_sorts_the_nulls_by_the_sign_of_paired_differences() -> None:
    """In the table the walks lie far below, the real inputs 0.05 above on the right and 0.05 below on the left."""
    right, left = (path_seen.beside_nulls(long_table(), "sim_to_end", side, 4) for side in ("right", "left"))
    assert "OPD is above random walk, decaying walk and Adam on noise;" in right
    assert right.endswith(("below noise on real inputs and own steps shuffled.", "below noise on real inputs."))
    assert "above random walk, decaying walk, Adam on noise and noise on real inputs" in left


def test_one_seed_says_nothing_about_above_or_below() -> None:
    table = long_table()
    alone = table.loc[table["seed"] == 0]
    said = path_seen.beside_nulls(alone, "sim_to_end", "right", 4)
    assert "OPD is not compared, for want of seeds, with random walk" in said


def test_a_grid_leaves_a_dash_where_nothing_was_measured() -> None:
    parts = {"right": update_path.LEARNED_AND_NULLS, "left": [""]}
    found = [update_path.early(long_table(), side, 4, nulls=nulls).assign(side=side) for side, nulls in parts.items()]
    grid = update_path.interval_grid(pd.concat(found), "series", "side").set_index("series")
    assert grid.index[0] == "OPD"
    assert len(grid) == 6
    assert set(grid["left"].iloc[1:]) == {"-"}
    assert (grid["right"] != "-").all()


def test_shared_rows_average_other_seeds_and_name_other_objectives() -> None:
    rows = update_path.shared_rows(long_table(), "right", 4)
    means = rows.groupby("kind")["value"].mean()
    assert means["other seeds"] == pytest.approx(0.52)
    assert means["RLVR"] == pytest.approx(0.32)
    assert rows.groupby("kind")["seed"].nunique().eq(5).all()


def test_later_windows_start_after_the_early_one() -> None:
    """0.1 and 0.3 are equally near a fifth: the earlier is the early one, and what it captured does not count."""
    cell = {"recipe": "opd", "scope": "attention", "side": "right", "k": 4, "quantity": "captured_share"}
    shares = {"": (0.9, 0.5, 0.7), "adam_random": (0.1, 0.4, 0.6)}  # means after the early one: 0.6 and 0.5
    rows = [
        cell | {"null": null, "seed": seed, "step": step, "value": value + 0.01 * seed * (null == "")}
        for null, values in shares.items()
        for step, value in zip((10, 30, 100), values, strict=True)
        for seed in (0, 1, 2)
    ]
    table = pd.DataFrame(rows).assign(other_recipe="")
    assert path_seen.beside_nulls(table, "captured_share", "right", 4) == (
        "share of the step captured, right, K = 4: OPD is above Adam on noise."
    )
    early_only = table.assign(value=table["value"].where(table["step"] == 10, 0.3))
    assert "not told apart from Adam on noise" in path_seen.beside_nulls(early_only, "captured_share", "right", 4)


def test_all_matrices_stand_beside_attention_ones() -> None:
    attention = long_table().query("null == ''")
    both = pd.concat([attention, attention.assign(scope="all", value=attention["value"] / 2)])
    own, half = (update_path.early(both, "left", 4, scope=scope)["value"].to_numpy() for scope in ("attention", "all"))
    assert half == pytest.approx(own / 2)
    assert update_path.early(attention, "left", 4, scope="all").empty


def test_what_comes_out_says_whether_locking_tells_opd_apart():
    """Where OPD is ahead of all on both sides it leads; else those that it is not ahead of are named."""
    table = long_table().copy()
    assert path_seen.came_out(table[table["recipe"] != "opd"], 4) == "No run of OPD is in these tables."
    alike = "Among the runs that learned, OPD is not shown to lock earlier than SFT, RLVR and control SFT."
    assert path_seen.came_out(table, 4).startswith(alike)
    before = table["recipe"].isin(["sft", "control_sft"]) & table["quantity"].eq("sim_to_end") & table["null"].eq("")
    behind = table.assign(value=table["value"] + 0.1 * before)
    later = "OPD locks later than SFT and control SFT, and is not shown to lock earlier than RLVR."
    assert path_seen.came_out(behind, 4).startswith(f"Among the runs that learned, {later}")
    ahead = table["recipe"].eq("opd") & table["quantity"].eq("sim_to_end") & table["null"].eq("")
    table.loc[ahead, "value"] += 0.2
    said = path_seen.came_out(table, 4)
    assert said.startswith("Among the runs that learned, OPD locks earlier than every other.")
    assert "it lies on both sides above every null" in said


def test_runs_with_nothing_to_learn_stand_beside_the_path():
    """At a tenth, the place of 0.1 between two checkpoints."""
    table = long_table()
    own = table[table["recipe"].eq("opd") & table["null"].eq("")]
    both = pd.concat([own, own.assign(recipe="opd_random_credit", value=own["value"] / 2)])
    values = {}
    for side in paths.SIDES:
        rows = own[own["quantity"].eq("sim_to_end") & own["side"].eq(side)].sort_values("step")
        seeds = [np.interp(10, part["step"], part["value"]) for _, part in rows.groupby("seed")]
        values[side] = np.mean(seeds)
    assert path_seen.at_a_fifth(both, 4).startswith(
        "A tenth into its run OPD's 4 leading directions are like its last ones by "
        f"{values['right']:.2f} (inputs) and {values['left']:.2f} (outputs), those of random credit by "
        f"{values['right'] / 2:.2f} and {values['left'] / 2:.2f}. A fifth into its run"
    )


def test_a_run_with_nothing_to_learn_that_locks_as_early_is_named():
    """Random reward as like its end as OPD is on the left, less on the right: named for the left alone."""
    table = long_table()
    own = table[table["recipe"].eq("opd") & table["quantity"].eq("sim_to_end") & table["null"].eq("")]
    lower = own.assign(recipe="rlvr_random_reward", value=own["value"] - 0.2 * own["side"].eq("right"))
    said = path_seen.at_a_fifth(pd.concat([table[table["recipe"] == "opd"], lower]), 4)
    assert said.endswith("It is not shown to be above random reward on that of the outputs.")
    right = own[own["side"].eq("right") & own["k"].eq(4)].groupby("step")["value"].mean()  # steps alike in all
    assert f"random reward {np.interp(20, right.index, right) - 0.2:.2f}) and" in said  # a fifth of 100 updates
    assert "seeds: 5." in said
    assert path_seen.at_a_fifth(None, 4) == path_seen.at_a_fifth(table[table["recipe"] == "sft"], 4) == ""
