"""Noise beside the runs of a table: against simulated moves of the real starting weights, and by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from opdgeom_utils import metrics
from opdgeom_utils.errors import MetricInputError, UnknownRecipeError
from opdgeom_utils.measures import noise
from opdgeom_utils.models import load_model
from opdgeom_utils.recipes import load_recipe

PROFILE, RECIPES = "first_regime", ("sft", "opd", "rlvr")
Q = "model.layers.0.self_attn.q_proj.weight"


def tensors(recipe: str) -> dict[str, torch.Tensor]:
    return {name: w.detach().double() for name, w in load_model(load_recipe(recipe, PROFILE).start).named_parameters()}


def row(recipe: str, step: int, name: str, ratio: float) -> dict[str, object]:
    """A row whose update is ``ratio`` times as long as noise, by the root of the sum of squares alone."""
    n = tensors(recipe)[name].numel()
    walk = math.hypot(*noise.rates_of(load_recipe(recipe, PROFILE))[:step])
    keys = {"profile": PROFILE, "recipe": recipe, "seed": 0, "step": step, "name": name, "n_entries": n}
    return keys | {"update_norm": ratio * walk * math.sqrt(n)}


@pytest.mark.parametrize("name", RECIPES)
def test_rates_are_as_many_as_updates_and_as_high_as_the_recipe_says(name: str) -> None:
    recipe = load_recipe(name, PROFILE)
    rates = noise.rates_of(recipe)
    assert len(rates) == recipe.steps
    assert max(rates) == pytest.approx(recipe.learning_rate)


@pytest.mark.parametrize("name", RECIPES)
def test_a_walk_is_where_torchs_adamw_goes_on_noise(name: str) -> None:
    recipe = load_recipe(name, PROFILE)
    steps = min(60, recipe.steps)
    generator = torch.Generator().manual_seed(0)
    weights = torch.nn.Parameter(torch.zeros(20_000, dtype=torch.float64))
    options = {"betas": recipe.betas, "eps": recipe.eps, "weight_decay": recipe.weight_decay}
    running = torch.optim.AdamW([weights], lr=1.0, **options)
    for rate in noise.rates_of(recipe)[:steps]:
        running.param_groups[0]["lr"] = rate
        weights.grad = torch.randn(20_000, generator=generator, dtype=torch.float64)
        running.step()
    walk = noise.walk_of(name, PROFILE, steps)
    assert walk.rms == pytest.approx(float(weights.detach().square().mean().sqrt()), rel=0.015)
    assert walk.ballistic == pytest.approx(sum(noise.rates_of(recipe)[:steps]))
    kept = np.prod([1 - rate * recipe.weight_decay for rate in noise.rates_of(recipe)[:steps]])
    assert walk.shrinkage == pytest.approx(1 - kept)
    assert noise.walk_of(name, PROFILE) == noise.walk_of(name, PROFILE, recipe.steps)


@pytest.mark.parametrize("name", ["sft", "opd"])
def test_sparsity_of_noise_is_that_of_simulated_moves_over_all_tensors(name: str) -> None:
    walk, generator = noise.walk_of(name, PROFILE), torch.Generator().manual_seed(0)
    unchanged = total = 0.0
    for w in tensors(name).values():
        moved = w * (1 - walk.shrinkage) + walk.rms * torch.randn(w.shape, generator=generator, dtype=torch.float64)
        unchanged += metrics.update_sparsity(w, moved) * w.numel()
        total += w.numel()
    assert noise.noise_sparsity_of(name, PROFILE) == pytest.approx(unchanged / total, abs=2e-3)


def test_columns_of_a_table_by_hand() -> None:
    last = load_recipe("opd", PROFILE).steps
    table = pd.DataFrame([row("opd", last, Q, 1.0), row("opd", last, Q, 3.0), row("sft", 1, Q, 1.0)], index=[7, 7, 9])
    table.loc[len(table)] = {**row("opd", last, "model.norm.weight", 1.0), "update_norm": math.nan}
    found = noise.with_noise(table)
    pd.testing.assert_frame_equal(found[list(table)], table)
    ratios = found["walk_ratio"].to_numpy()
    assert ratios[1] / ratios[0] == pytest.approx(3)
    assert ratios[0] == pytest.approx(1, rel=0.12)  # the first steps of Adam point alike, which the root leaves out
    assert ratios[2] == pytest.approx(1)  # exact after one step
    assert math.isnan(found["coherence"].iloc[2])
    assert math.isnan(ratios[3])
    walk = noise.walk_of("opd", PROFILE)
    share = (9 * ratios[0] ** 2 * walk.rms**2 - walk.rms**2) / (walk.ballistic**2 - walk.rms**2)
    assert found["coherence"].iloc[1] == pytest.approx(share)
    w, generator = tensors("opd")[Q], torch.Generator().manual_seed(1)
    moved = w * (1 - walk.shrinkage) + walk.rms * torch.randn(w.shape, generator=generator, dtype=torch.float64)
    assert found["noise_sparsity"].iloc[0] == pytest.approx(metrics.update_sparsity(w, moved), abs=0.01)
    assert 0 < found["noise_sparsity"].iloc[3] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "model.nothing.weight"}, "none of that name"),
        ({"n_entries": 3}, "entries for"),
        ({"step": 10**6}, "expected 1 to"),
        ({"step": 0}, "expected 1 to"),
    ],
)
def test_rows_that_fit_no_start_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(MetricInputError, match=message):
        noise.with_noise(pd.DataFrame([row("opd", 1, Q, 1.0) | change]))


def test_a_table_of_something_else_is_refused() -> None:
    with pytest.raises(MetricInputError, match="no column"):
        noise.with_noise(pd.DataFrame([row("opd", 1, Q, 1.0)]).drop(columns="n_entries"))
    with pytest.raises(UnknownRecipeError):
        noise.walk_of("nothing", PROFILE)
