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


def test_a_run_is_one_vector_beside_noise_and_beside_noise_as_strong_as_its_gradients() -> None:
    last = load_recipe("rlvr", PROFILE).steps
    table = pd.DataFrame([row("rlvr", last, Q, 3.0), row("rlvr", last, "model.norm.weight", math.nan)])
    steps, clip = np.arange(1, last + 1), load_recipe("rlvr", PROFILE).grad_clip
    log = pd.DataFrame({"recipe": "rlvr", "seed": 0, "step": steps, "grad_norm": np.linspace(0.1, 3, last) * clip})
    found = noise.walks_of_runs(table, log).loc[("rlvr", 0)]
    assert found["walk_ratio"] == pytest.approx(noise.walks_of_runs(table)["walk_ratio"].item())
    recipe = load_recipe("rlvr", PROFILE)
    grown = metrics.noise_walk_rms(noise.rates_of(recipe), betas=recipe.betas, weight_decay=recipe.weight_decay,
                                   strengths=np.linspace(0.1, 3, last).clip(max=1))  # fmt: skip
    assert found["own_ratio"] == pytest.approx(found["walk_ratio"] * noise.walk_of("rlvr", PROFILE).rms / grown)
    assert found["own_ratio"] < found["walk_ratio"]  # noise that grows goes further
    still = noise.walks_of_runs(table, log.assign(grad_norm=0.0)).loc[("rlvr", 0)]
    assert math.isnan(still["own_ratio"])
    assert still["walk_ratio"] == found["walk_ratio"]


def test_what_is_no_recipe_or_no_update_is_refused() -> None:
    with pytest.raises(MetricInputError, match="expected 1 to"):
        noise.walk_of("opd", PROFILE, 10**6)
    with pytest.raises(UnknownRecipeError):
        noise.walk_of("nothing", PROFILE)
