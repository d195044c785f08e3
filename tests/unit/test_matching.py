"""Places of comparison, beyond the worked examples: runs that do not get there, noise, weights, gaps."""

import math

import numpy as np
import pandas as pd
import pytest

from opdgeom_utils.claims import matching
from opdgeom_utils.errors import MetricInputError


def run(recipe: str, steps: list[int], **columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"profile": "first_regime", "recipe": recipe, "seed": 0, "step": steps, **columns})


def accuracy(recipe: str, steps: list[int], sampled: list[float]) -> pd.DataFrame:
    return run(recipe, steps, sampled=sampled).assign(domain="code", family="runs")


def geometry(**columns: list[float]) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    keys = {"profile": "first_regime", "recipe": "opd", "seed": 0, "step": 1, "module": ["q_proj"] * n}
    return pd.DataFrame({**keys, "update_norm": [1.0] * n, "reference_norm": [2.0] * n, **columns})


def test_sparsity_is_weighted_by_entries_where_it_is_defined() -> None:
    rows = geometry(n_entries=[1, 3, 100], update_sparsity=[1.0, 0.0, math.nan])
    assert matching.summarise(rows)["update_sparsity"].tolist() == [0.25]


def test_a_table_glued_together_with_repeated_labels_is_summed_once() -> None:
    rows = geometry(n_entries=[1, 3], update_sparsity=[1.0, 0.0])
    twice = pd.concat([rows, rows.assign(seed=1)])
    assert matching.summarise(twice)["update_sparsity"].tolist() == [0.25, 0.25]


def test_no_matrix_of_the_kind_is_an_error_that_says_what_there_is() -> None:
    with pytest.raises(MetricInputError, match="q_proj"):
        matching.summarise(geometry(n_entries=[1], update_sparsity=[1.0]), ["k_proj"])


def test_a_norm_that_a_run_does_not_reach_leaves_a_reason() -> None:
    """RLVR ends at norm 2; SFT starts above it, OPD passes it half way from 1 to 4."""
    rows = pd.concat([
        run("opd", [1, 2], total_norm=[1.0, 4.0], x=[0.0, 1.0]), run("rlvr", [1], total_norm=[2.0], x=[5.0]),
        run("sft", [1, 2], total_norm=[3.0, 9.0], x=[7.0, 8.0]),
    ])  # fmt: skip
    there = matching.matched(rows, "equal_norm").set_index("recipe")
    assert there["x"].to_dict() == pytest.approx({"opd": 0.5, "rlvr": 5.0, "sft": math.nan}, nan_ok=True)
    assert there["matched_at"].tolist() == [2.0] * 3
    assert there["reason"].to_dict() == {
        "opd": "", "rlvr": "", "sft": "sft seed 0 does not pass a norm of 2 at any checkpoint"
    }  # fmt: skip


def test_a_share_of_the_common_norm() -> None:
    """A quarter of 4 is 1, half way from 0.5 to 2 on a logarithmic scale."""
    rows = pd.concat([
        run("opd", [1, 2, 3], total_norm=[0.5, 2.0, 4.0], x=[0.0, 1.0, 9.0]),
        run("rlvr", [1, 2], total_norm=[1.0, 5.0], x=[3.0, 4.0]),
    ])  # fmt: skip
    there = matching.matched(rows, "equal_norm", share=0.25)
    assert there["x"].tolist() == pytest.approx([0.5, 3.0])
    with pytest.raises(MetricInputError, match="expected a number above 0 and at most 1"):
        matching.matched(rows, "equal_norm", share=0.0)


def test_a_norm_that_falls_back_counts_only_where_it_is_new() -> None:
    """Norms 1, 3, 2, 4: the third checkpoint is left out, so norm 2 lies between the first two."""
    rows = run("opd", [1, 2, 3, 4], total_norm=[1.0, 3.0, 2.0, 4.0], x=[0.0, 1.0, 50.0, 2.0])
    found = matching.matched(rows, "equal_norm", share=0.5)["x"].iloc[0]
    assert found == pytest.approx(np.log(2) / np.log(3))


def test_equal_accuracy_is_linear_in_the_running_best() -> None:
    summary = pd.concat([run("opd", [1, 2, 3], x=[0.0, 10.0, 20.0]), run("rlvr", [1, 2], x=[0.0, 4.0])])
    table = pd.concat([
        accuracy("opd", [0, 1, 2, 3], [0.5, 0.5, 0.4, 0.7]), accuracy("rlvr", [0, 1, 2], [0.5, 0.5, 0.6]),
    ])  # fmt: skip
    there = matching.matched(summary, "equal_accuracy", table).set_index("recipe")
    assert there["matched_at"].tolist() == pytest.approx([0.1, 0.1])
    assert there.loc["opd", "x"] == pytest.approx(10.0)  # half way from gain 0 at step 1 to gain 0.2 at step 3
    assert there.loc["rlvr", "x"] == pytest.approx(4.0)


def test_without_a_gain_there_is_no_common_accuracy() -> None:
    summary = pd.concat([run("opd", [1], x=[1.0]), run("rlvr", [1], x=[1.0])])
    table = pd.concat([accuracy("opd", [0, 1], [0.5, 0.9]), accuracy("rlvr", [0, 1], [0.5, 0.4])])
    there = matching.matched(summary, "equal_accuracy", table)
    assert there["x"].isna().all()
    assert there["reason"].str.contains("no common accuracy").all()
    with pytest.raises(MetricInputError, match="needs the table of accuracy"):
        matching.matched(summary, "equal_accuracy")


def test_equal_updates_is_the_end_of_the_shortest_run() -> None:
    rows = pd.concat([run("opd", [2, 8], x=[1.0, 2.0]), run("rlvr", [2, 8, 30], x=[3.0, 4.0, 5.0])])
    assert matching.matched(rows, "equal_updates")["x"].tolist() == [2.0, 4.0]
    assert matching.matched(rows.query("recipe == 'rlvr'"), "equal_updates")["x"].tolist() == [5.0]


def test_no_run_and_an_unknown_match_are_refused() -> None:
    rows = run("opd", [1], x=[1.0])
    with pytest.raises(MetricInputError, match="no run to compare"):
        matching.matched(rows.query("recipe == 'nothing'"), "equal_updates")
    with pytest.raises(
        MetricInputError, match="expected final, equal_updates, equal_norm, equal_accuracy or equal_distance"
    ):
        matching.matched(rows, "half time")


def away(recipe: str, steps: list[int], nats: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"profile": "first_regime", "recipe": recipe, "seed": 0, "step": steps, "value": nats})


def test_equal_distance_is_linear_in_the_part_closed_of_the_common_start() -> None:
    """OPD closes a half and then three quarters of 0.8 nats, the control at most a quarter, and falls back."""
    summary = pd.concat([run("opd", [1, 2], x=[10.0, 20.0]), run("control_sft", [1, 2, 3], x=[0.0, 4.0, 9.0])])
    table = pd.concat([away("opd", [0, 1, 2], [0.8, 0.8, 0.2]), away("control_sft", [1, 2, 3], [0.7, 0.6, 0.65])])
    there = matching.matched(summary, "equal_distance", distance=table).set_index("recipe")
    assert there["matched_at"].tolist() == pytest.approx([0.25, 0.25])
    assert there.loc["opd", "x"] == pytest.approx(10 + 10 / 3)
    assert there.loc["control_sft", "x"] == pytest.approx(4.0)


def test_a_run_that_comes_no_nearer_has_no_common_distance() -> None:
    summary = pd.concat([run("opd", [1], x=[1.0]), run("control_sft", [1], x=[1.0])])
    table = pd.concat([away("opd", [0, 1], [0.8, 0.2]), away("control_sft", [1], [0.9])])
    there = matching.matched(summary, "equal_distance", distance=table)
    assert there["x"].isna().all()
    assert there["reason"].str.contains("comes least near").all()
    for lacking in (None, table.query("step > 0")):
        with pytest.raises(MetricInputError, match="at step 0"):
            matching.matched(summary, "equal_distance", distance=lacking)
