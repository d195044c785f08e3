"""Paths of updates in closed form: what a sum remembers, what a window captures, on which side."""

from __future__ import annotations

import math

import pytest
import torch

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.measures import path_nulls, paths
from opdgeom_utils.measures.long_table import COLUMNS
from opdgeom_utils.measures.path_nulls import path_null_measures
from opdgeom_utils.measures.path_overlaps import counterparts, missing_counterparts, overlap_measures
from opdgeom_utils.metrics import stable_rank, subspace_similarity
from opdgeom_utils.runs import Run, checkpoint_path, load_or_train
from tests.tiny_world import World


def outer(row: int, column: int, size: float = 1.0) -> torch.Tensor:
    delta = torch.zeros(4, 4)
    delta[row, column] = size
    return delta


def test_an_update_that_only_grows_keeps_its_space_and_its_rank() -> None:
    stack = torch.stack([outer(1, 2, size) for size in (1.0, 2.0, 5.0)])
    curves = paths.matrix_curves(stack, 0, (1,))
    for side in paths.SIDES:
        assert curves["sim_to_end", side, 1] == [1.0, 1.0, 1.0]
        assert curves["captured_share", side, 1] == [1.0, 1.0, 1.0]
        assert curves["sim_consecutive", side, 1][1:] == [1.0, 1.0]
    assert curves["stable_rank", "", 0] == [1.0, 1.0, 1.0]
    assert curves["update_norm", "", 0] == pytest.approx([1.0, 2.0, 5.0])


def test_a_second_window_of_other_inputs_and_the_same_output_is_left_and_not_right() -> None:
    """Both windows write to output 0; the second reads another input, with three times the size."""
    stack = torch.stack([outer(0, 0), outer(0, 0) + outer(0, 1, 3.0)])
    curves = paths.matrix_curves(stack, 0, (1,))
    assert curves["captured_share", "right", 1] == pytest.approx([1.0, 0.0])
    assert curves["captured_share", "left", 1] == pytest.approx([1.0, 1.0])
    assert curves["sim_consecutive", "right", 1][1] == pytest.approx(0.0)
    assert curves["sim_consecutive", "left", 1][1] == pytest.approx(1.0)
    assert curves["sim_to_end", "right", 1] == pytest.approx([0.1, 1.0])  # the end is (1, 3) / sqrt(10)


def test_curves_are_the_public_metrics() -> None:
    stack = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0)).cumsum(0)
    curves = paths.matrix_curves(stack, 1, (2,))
    assert curves["stable_rank", "", 0] == pytest.approx([stable_rank(delta) for delta in stack])
    assert curves["sim_to_end", "right", 2] == pytest.approx([subspace_similarity(d, stack[-1], k=2) for d in stack])
    left = [subspace_similarity(d.T, stack[-1].T, k=2) for d in stack]
    assert curves["sim_to_end", "left", 2] == pytest.approx(left)
    assert curves["singular_value", "", 1] == pytest.approx(
        [float(torch.linalg.svdvals(d)[0]) for d in stack], rel=1e-5
    )
    assert math.isnan(curves["singular_value", "", 6][0])


def test_an_unmoved_matrix_has_no_space_and_is_left_out_of_the_mean() -> None:
    still, moved = torch.zeros(2, 4, 4), torch.stack([outer(0, 0), outer(0, 0, 2.0)])
    curves = {
        "l.q_proj.w": paths.matrix_curves(still, 0, (1,), consecutive=False),
        "l.k_proj.w": paths.matrix_curves(moved, 0, (1,), consecutive=False),
    }
    rows = paths.scope_rows(curves, [2, 4], ["attention"])
    found = {(r["quantity"], r["side"], r["step"]): r["value"] for r in rows}
    assert found["sim_to_end", "left", 2] == 1.0
    assert found["update_norm", "", 4] == pytest.approx(1.0)  # a norm of 0 counts: mean of 0 and 2


def test_early_is_the_checkpoint_nearest_to_a_fifth() -> None:
    updates = {"l.q_proj.w": torch.zeros(4, 1, 1)}
    assert paths.UpdatePath((2, 10, 18, 70), updates, updates).early == 1


def test_every_measure_of_a_whole_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths, nulls and overlaps of three tiny runs: whole tables, kept in the runs' folders, ends like themselves."""
    pool = path_nulls.input_pool
    monkeypatch.setattr(path_nulls, "input_pool", lambda run: pool(run, batches=2, prompts=4))
    runs = [load_or_train(name, seed=seed, profile="tiny") for name, seed in (("opd", 0), ("opd", 1), ("rlvr", 0))]
    own, null = paths.path_measures(runs[0]), path_null_measures(runs[0])
    shared = overlap_measures(runs)
    for table in (own, null, shared):
        assert list(table.columns) == list(COLUMNS)
        assert not table.duplicated(list(COLUMNS)[:-1]).any()
    ends = own.loc[(own["quantity"] == "sim_to_end") & (own["step"] == 4), "value"]
    assert ends.to_list() == pytest.approx([1.0] * len(ends))
    assert {"random_walk", "random_walk_decaying", "adam_random", "activations", "shuffled_time", "rounding"} <= set(
        null["null"]
    )
    assert set(null.loc[null["null"] == "", "quantity"]) == {"overlap_activations"}
    mine = shared.loc[(shared["recipe"] == "opd") & (shared["seed"] == 0)]
    other = ["other_recipe", "other_seed", "other_step"]
    assert set(mine[other].itertuples(index=False, name=None)) == {
        ("opd", 1, 2), ("opd", 1, 4), ("rlvr", 0, 2), ("rlvr", 0, 4)
    }  # fmt: skip
    by_pair = shared.set_index(["recipe", "seed", *other])["value"].sort_index()
    here, there = by_pair.loc["opd", 0, "rlvr", 0, 4], by_pair.loc["rlvr", 0, "opd", 0, 4]
    assert here.to_list() == pytest.approx(there.to_list())
    kept = sorted(p.name.rsplit("-", 1)[0] for p in runs[0].path.glob("*.parquet"))
    assert kept == ["overlaps", "path", "path_nulls"]
    assert paths.path_measures(runs[0]).equals(own)


def test_a_step_that_is_no_checkpoint_is_refused(world: World) -> None:
    with pytest.raises(MetricInputError, match=r"opd has no checkpoint at \[3\]; choose from \[1, 2, 4\]"):
        paths.read_path(load_or_train("opd", profile="tiny"), [3])


def test_variants_are_compared_with_opd_and_rlvr_of_their_seed(make_recipe, tmp_path) -> None:
    held = {
        (name, seed): Run(make_recipe(name=name, steps=8, checkpoints=[2, 6, 8]), seed, tmp_path)
        for name in ("opd", "rlvr") for seed in (0, 1)
    }  # fmt: skip
    variant = Run(make_recipe(name="mix_50", steps=4, checkpoints=[2, 4]), 1, tmp_path)
    assert counterparts(variant, held) == [(4, ("opd", 1, 6)), (4, ("rlvr", 1, 6))]
    projected = Run(make_recipe(name="rlvr_project_early", steps=8, checkpoints=[8]), 0, tmp_path)
    assert counterparts(projected, held) == [(8, ("rlvr", 0, 8))]


def test_a_counterpart_counts_as_there_when_the_one_checkpoint_that_is_asked_for_is(make_recipe, tmp_path) -> None:
    others = [
        Run(make_recipe(name=name, steps=8, checkpoints=[2, 6, 8]), 0, tmp_path / name) for name in ("opd", "rlvr")
    ]
    variant = Run(make_recipe(name="mix_50", steps=4, checkpoints=[4]), 0, tmp_path / "mix_50")
    assert missing_counterparts([variant], others) == [("opd", 0), ("rlvr", 0)]
    half_done = checkpoint_path(others[1].path, 6)
    half_done.parent.mkdir(parents=True)
    half_done.touch()
    assert missing_counterparts([variant], others) == [("opd", 0)]
    assert overlap_measures([variant], others[:1]).empty


def test_sft_is_compared_at_its_own_end_and_others_at_equal_updates(make_recipe, tmp_path) -> None:
    stored = {"opd": [2, 4], "rlvr": [3, 5, 8], "sft": [6, 20]}
    known = {
        (name, 0): Run(make_recipe(name=name, steps=steps[-1], checkpoints=steps), 0, tmp_path)
        for name, steps in stored.items()
    }
    points = {point for step, point in counterparts(known["opd", 0], known) if step == 4}
    assert points == {("rlvr", 0, 5), ("sft", 0, 20)}
