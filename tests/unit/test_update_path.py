"""Tables of the chapter on the path: places, folds over seeds, and the sentences that say what exceeds its null."""

from __future__ import annotations

import pandas as pd
import pytest

from opdgeom_utils.chapters import update_path
from tests.chart_tables import long_table


def test_curves_of_a_null_carry_its_name_and_their_runs_share() -> None:
    rows = update_path.path_curves(
        long_table(), "sim_to_end", side="left", k=4, recipes=["rlvr"], nulls=["activations"]
    )
    assert set(rows["recipe"]) == {"RLVR"}
    assert set(rows["series"]) == {"real inputs, random signals"}
    assert sorted(rows["share"].unique()) == [0.02, 0.1, 0.4, 1.0]


def test_the_sentence_sorts_the_nulls_by_the_sign_of_paired_differences() -> None:
    """In the table the walks lie far below, the real inputs 0.05 above on the right and 0.05 below on the left."""
    right, left = (update_path.beside_nulls(long_table(), "sim_to_end", side, 4) for side in ("right", "left"))
    assert "OPD is above random walk, decaying walk and Adam on noise;" in right
    assert right.endswith("below real inputs, random signals and own steps shuffled.") or right.endswith(
        "below real inputs, random signals."
    )
    assert "above random walk, decaying walk, Adam on noise and real inputs, random signals" in left


def test_each_objective_beside_the_null_that_is_highest_for_it() -> None:
    right = update_path.hardest_nulls(long_table(), "right", 4, ["opd"]).iloc[0]
    assert (right["run"], right["side"]) == ("OPD", "right")
    assert float(right["its similarity"]) > float(right["similarity"])
    assert right["run minus null"].startswith("-")
    none = long_table().query("null == ''")
    assert update_path.hardest_nulls(none, "right", 4).empty


def test_one_seed_says_nothing_about_above_or_below() -> None:
    table = long_table()
    alone = table.loc[table["seed"] == 0]
    assert "OPD is not told apart from random walk" in update_path.beside_nulls(alone, "sim_to_end", "right", 4)


def test_tables_by_k_leave_a_dash_where_nothing_was_measured() -> None:
    table = update_path.early_table(long_table(), "right", [4, 16])
    assert table["process"].tolist()[0] == "OPD"
    assert set(table["K = 16"]) == {"-"}
    later = update_path.later_table(long_table(), "right", [4])
    assert len(later) == 6


def test_shared_rows_average_other_seeds_and_name_other_objectives() -> None:
    rows = update_path.shared_rows(long_table(), "right", 4)
    means = rows.groupby("kind")["value"].mean()
    assert means["other seeds"] == pytest.approx(0.52)
    assert means["RLVR, same seed"] == pytest.approx(0.32)
    assert rows.groupby("kind")["seed"].nunique().eq(5).all()


def test_the_mean_of_later_windows_starts_after_the_early_one() -> None:
    rows = pd.DataFrame(
        {"recipe": "OPD", "series": "OPD", "seed": 0, "share": [0.1, 0.3, 1.0], "value": [9.0, 1.0, 3.0]}
    )
    assert update_path.later(rows)["value"].tolist() == [
        2.0
    ]  # 0.1 and 0.3 are equally near: the earlier is the early one


def test_all_matrices_stand_beside_attention_ones() -> None:
    attention = long_table().query("null == ''")
    both = pd.concat([attention, attention.assign(scope="all", value=attention["value"] / 2)])
    table = update_path.scope_table(both, 4, ["opd"]).iloc[0]
    own, half = (float(table[f"left, {words}"].split()[0]) for words in ("attention", "all matrices"))
    assert half == pytest.approx(own / 2, abs=0.01)
    assert "left, all matrices" not in update_path.scope_table(attention, 4, ["opd"])


def test_the_space_of_the_inputs_is_read_at_the_end_of_each_run() -> None:
    cell = {"recipe": "opd", "scope": "attention", "side": "right", "k": 4, "quantity": "overlap_activations"}
    values = {("", 40): 0.1, ("", 80): 0.3, ("adam_random", 80): 0.02}
    rows = [
        cell | {"null": null, "step": step, "value": value, "seed": seed, "other_recipe": ""}
        for (null, step), value in values.items()
        for seed in (0, 1)
    ]
    table = update_path.inputs_table(pd.DataFrame(rows), 4)
    assert table.to_numpy().tolist() == [["OPD", "0.30 (0.30 to 0.30)", "0.02 (0.02 to 0.02)", "-"]]
