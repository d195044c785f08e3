"""Nulls of a path against what is known of them: walks, an optimiser's first step, reordered windows, rounding."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from opdgeom_utils.diagnose.nulls import null_generator
from opdgeom_utils.measures import path_nulls, paths
from opdgeom_utils.measures.paths import UpdatePath
from opdgeom_utils.runs import Run

N = 120


def run_norms(*norms: float) -> torch.Tensor:
    """A path whose windows have these norms."""
    stack = torch.zeros(len(norms), N, N)
    stack[:, 0, 0] = torch.tensor(norms).cumsum(0)
    return stack


def test_a_random_walk_has_the_runs_norms_and_the_known_angles() -> None:
    """Random steps are nearly orthogonal: after norms 3 and 4 the walk is at 5, at a cosine of 3/5 with its start."""
    walk = path_nulls.random_walk(run_norms(3.0, 4.0), generator=null_generator(0, "w"))
    assert paths.windows(walk).flatten(1).norm(dim=1).tolist() == pytest.approx([3.0, 4.0], rel=1e-5)
    assert float(walk[1].norm()) == pytest.approx(5.0, abs=0.15)
    assert float((walk[0] * walk[1]).sum() / walk[0].norm() / walk[1].norm()) == pytest.approx(0.6, abs=0.03)


def test_a_space_of_k_holds_k_of_n_of_a_later_random_step() -> None:
    walk = path_nulls.random_walk(run_norms(1.0, 1.0, 1.0), generator=null_generator(0, "w"))
    curves = paths.matrix_curves(walk, 0, (12,), consecutive=False)
    for side in paths.SIDES:
        assert curves["captured_share", side, 12][1:] == pytest.approx([12 / N] * 2, abs=0.02)


def test_a_decaying_walk_does_most_of_its_way_early() -> None:
    """Half way through a cosine to a tenth, nearly all of the squared length is behind."""
    stack = run_norms(1.0, 1.0)
    walk = path_nulls.decaying_walk(stack, [500, 1000], generator=null_generator(0, "w"))
    energy = paths.windows(walk).flatten(1).norm(dim=1).square()
    # (0.55 + 0.45 cos x)^2 over a half turn has mean 0.55^2 + 0.45^2 / 2; the halves differ by 4 * 0.55 * 0.45 / pi
    mean, half = 0.55**2 + 0.45**2 / 2, 2 * 0.55 * 0.45 * 2 / torch.pi
    assert float(energy.sum()) == pytest.approx(2.0, rel=1e-4)
    assert float(energy[0] / energy.sum()) == pytest.approx((mean + half) / (2 * mean), abs=0.002)


@pytest.fixture
def one_step(make_recipe, tmp_path: Path) -> Run:
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "grad_norm": 0.5}) + "\n", encoding="utf-8")
    recipe = make_recipe(steps=1, checkpoints=[1], learning_rate=1e-3, weight_decay=0.0, eps=1e-15)
    return Run(recipe, 0, tmp_path)


def start_of(w: torch.Tensor) -> UpdatePath:
    return UpdatePath((1,), {"l.q_proj.w": w}, {"l.q_proj.w": w[None]})


def test_adam_moves_every_entry_by_the_rate_in_its_first_update(one_step: Run) -> None:
    stacks = path_nulls.adam_path(start_of(torch.zeros(5, 3)), one_step, [], generator=null_generator(0, "a"))
    assert stacks["l.q_proj.w"].shape == (1, 5, 3)
    assert stacks["l.q_proj.w"].abs().flatten().tolist() == pytest.approx([1e-3] * 15, rel=1e-3)


def test_random_signals_on_real_inputs_move_only_what_the_inputs_reach(one_step: Run) -> None:
    """The layer only ever sees its second input, so only that column learns: the right space is the input's own."""
    pool = [{"l.q_proj.w": torch.diag(torch.tensor([0.0, 4.0, 0.0], dtype=torch.float64))}]
    moved = path_nulls.adam_path(start_of(torch.zeros(5, 3)), one_step, pool, generator=null_generator(0, "a"))
    delta = moved["l.q_proj.w"][0]
    assert float(delta[:, 1].abs().min()) > 0
    assert float(delta[:, [0, 2]].abs().max()) == 0
    inputs = paths.factor(pool[0]["l.q_proj.w"], 1)
    assert paths.similarity(paths.factor(delta, 1), inputs, "right", 1) == pytest.approx(1.0)


def test_every_order_of_the_windows_has_the_same_end() -> None:
    stack = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0)).cumsum(0)
    for order in path_nulls.window_orders(4, 0):
        moved, steps = path_nulls.shuffled_windows(stack, [2, 4, 10, 20], order)
        assert torch.allclose(moved[-1], stack[-1], atol=1e-5)
        assert steps[-1] == 20


def test_shuffling_time_leaves_a_straight_path_straight() -> None:
    """Every window in one direction: similarity 1 in any order; and no order speaks before its first window ends."""
    stack = torch.zeros(3, 4, 4)
    stack[:, 0, 0] = torch.tensor([1.0, 2.0, 4.0])
    curves = path_nulls.shuffled_curves(stack, [2, 4, 8], [[2, 0, 1]], (1,))
    assert curves["sim_to_end", "right", 1][1:] == [1.0, 1.0]
    assert math.isnan(curves["sim_to_end", "right", 1][0])


def test_rounding_noise_is_at_most_half_a_step_of_the_grid() -> None:
    """Between 1 and 2 the grid of bf16 has steps of 1/128."""
    generator = torch.Generator().manual_seed(0)
    w_ref = (1.25 + 0.5 * torch.rand(50, 50, generator=generator)).bfloat16().float()
    delta = 0.02 * torch.randn(50, 50, generator=generator)
    noise = path_nulls.rounding_noise(w_ref, delta, generator=generator)
    assert 1 / 1024 < float(noise.abs().max()) <= 1 / 256 + 1e-6


def test_rescaling_a_large_update_shows_its_own_rank_and_a_small_one_the_grids() -> None:
    """A rank-one update that every weight shows keeps stable rank 1; shrunk below the grid, what shows is scattered."""
    generator = torch.Generator().manual_seed(0)
    w_ref = torch.randn(60, 60, generator=generator).bfloat16().float()
    end = torch.outer(torch.randn(60, generator=generator), torch.randn(60, generator=generator))
    curves = path_nulls.rounding_curves(w_ref, torch.stack([1e-3 * end, end]), 0, "w")
    small, large = curves["stable_rank_bf16", "", 0]
    assert large < 1.05
    assert small > 1.3 * large
    assert min(curves["stable_rank", "", 0]) > 5
