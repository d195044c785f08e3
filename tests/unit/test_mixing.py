"""Gradients of two objectives taken apart: equal norms before they are mixed, and the parts of a real update."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from opdgeom_utils import objectives
from opdgeom_utils.batches import Batch, make_batches
from opdgeom_utils.learner import Learner
from opdgeom_utils.mixing import TermGradients
from opdgeom_utils.models import build_model, build_tokenizer
from opdgeom_utils.recipes import Recipe
from opdgeom_utils.training import apply_update

MakeRecipe = Callable[..., Recipe]


def mixed(opd: Tensor, rlvr: Tensor, alpha: float) -> tuple[Tensor, dict[str, float]]:
    """Mix two gradients of one parameter, each that of a linear loss."""
    weight = torch.nn.Parameter(torch.zeros_like(opd))
    both = TermGradients([weight])
    shared = weight * 1.0  # both losses share a graph, as they do in training
    both.add((shared * opd).sum(), (shared * rlvr).sum())
    log = both.mix(alpha)
    assert weight.grad is not None
    return weight.grad, log


def test_the_two_have_one_norm_before_they_are_mixed() -> None:
    opd, rlvr = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.1])
    for alpha in (0.0, 0.01, 0.5, 1.0):
        gradient, log = mixed(opd, rlvr, alpha)
        torch.testing.assert_close(gradient, alpha * opd + (1 - alpha) * torch.tensor([0.0, 5.0]))
        assert log["opd_grad_norm"] == pytest.approx(5.0)
        assert log["rlvr_grad_norm"] == pytest.approx(0.1)
        assert log["term_cosine"] == pytest.approx(0.8)


def test_scaling_rlvr_s_reward_changes_nothing() -> None:
    opd, rlvr = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed(opd, rlvr, 0.3)[0], mixed(opd, 1000 * rlvr, 0.3)[0])


def test_the_norm_is_over_all_parameters_and_sums_over_micro_batches() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    both = TermGradients(weights)
    for _ in range(2):
        both.add(weights[0][0] * 1.5 + weights[1][0] * 2.0, weights[0][1] + 0.0 * weights[1][0])
    assert both.mix(0.5)["opd_grad_norm"] == pytest.approx(5.0)  # (3, 0) and 4
    first, second = (weight.grad for weight in weights)
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first, torch.tensor([1.5, 2.5]))
    torch.testing.assert_close(second, torch.tensor([2.0]))


@pytest.mark.parametrize("zero", ["opd", "rlvr"])
def test_a_term_without_a_gradient_adds_nothing_and_gives_no_nan(zero: str) -> None:
    some, none = torch.tensor([3.0, 4.0]), torch.zeros(2)
    gradient, log = mixed(*((none, some) if zero == "opd" else (some, none)), 0.25)
    torch.testing.assert_close(gradient, none if zero == "opd" else 0.25 * some)
    assert math.isnan(log["term_cosine"])


def learner_with_batch(recipe: Recipe) -> tuple[Learner, Batch]:
    learner = Learner(recipe, 0, build_model("tiny", 1), build_tokenizer(), build_model("tiny", 2).eval())
    batch = make_batches(learner)[0]
    batch.rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # an untrained student is never right
    rlvr = objectives.rlvr_advantages(batch.rewards, batch.rollouts.mask)
    if batch.terms is not None:
        batch.terms = (batch.terms[0], rlvr)
    elif recipe.objective == "mixed":
        batch.advantages = batch.advantages + (1 - recipe.alpha) * rlvr
    elif recipe.objective == "rlvr":
        batch.advantages = rlvr
    return learner, batch


def gradient_of(recipe: Recipe) -> tuple[Tensor, dict[str, float]]:
    learner, batch = learner_with_batch(recipe)
    log = apply_update(learner, batch)
    return torch.cat([p.grad.flatten() for p in learner.student.parameters() if p.grad is not None]), log


def test_an_equalised_update_is_made_of_the_gradients_of_opd_and_of_rlvr_alone(make_recipe: MakeRecipe) -> None:
    """The same rollouts, three recipes: the mixture's gradient from those of the pure objectives."""
    free = {"grad_clip": 1e9}
    opd, rlvr = (gradient_of(make_recipe(objective=o, **free))[0] for o in ("opd", "rlvr"))
    for alpha in (0.25, 1.0):
        equal, log = gradient_of(make_recipe(objective="mixed", alpha=alpha, equal_gradients=True, **free))
        expected = alpha * opd + (1 - alpha) * rlvr * opd.norm() / rlvr.norm()
        torch.testing.assert_close(equal, expected, rtol=1e-3, atol=1e-5)
        assert log["opd_grad_norm"] == pytest.approx(float(opd.norm()), rel=1e-4)
        assert log["rlvr_grad_norm"] == pytest.approx(float(rlvr.norm()), rel=1e-4)
        assert log["term_cosine"] == pytest.approx(float(opd @ rlvr / opd.norm() / rlvr.norm()), abs=1e-4)


def test_a_raw_mixture_is_the_weighted_sum(make_recipe: MakeRecipe) -> None:
    """On the first update after sampling nothing is clipped, so credits and gradients mix alike."""
    free = {"grad_clip": 1e9}
    opd, rlvr = (gradient_of(make_recipe(objective=o, **free))[0] for o in ("opd", "rlvr"))
    raw, log = gradient_of(make_recipe(objective="mixed", alpha=0.25, **free))
    torch.testing.assert_close(raw, 0.25 * opd + 0.75 * rlvr, rtol=1e-3, atol=1e-5)
    assert "opd_grad_norm" not in log


def test_the_mixture_s_loss_is_the_mixture_of_the_losses(make_recipe: MakeRecipe) -> None:
    values = {
        objective: gradient_of(make_recipe(objective=objective, alpha=0.25, **extra))[1]["loss"]
        for objective, extra in (("opd", {}), ("rlvr", {}), ("mixed", {"equal_gradients": True}))
    }
    assert values["mixed"] == pytest.approx(0.25 * values["opd"] + 0.75 * values["rlvr"], abs=1e-5)
