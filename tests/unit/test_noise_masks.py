"""What bf16 shows of noise: against simulation, by hand, and against masks that are really drawn."""

import math

import pytest
import torch
from torch import Tensor

from opdgeom_utils import metrics
from opdgeom_utils.errors import MetricInputError


def weights(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    w = torch.randn(300, 400, generator=torch.Generator().manual_seed(0)) * 0.03
    w[0, :40] = 0.0
    return w.to(dtype)


def moves(law: str = "normal", seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(300, 400, generator=generator, dtype=torch.float64)
    if law == "normal":
        return noise
    return noise * torch.empty(300, 400, dtype=torch.float64).exponential_(generator=generator).sqrt()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("eta", [1e-3, 0.01, 0.2])
@pytest.mark.parametrize("law", ["normal", "laplace"])
def test_sparsity_is_what_a_simulation_gives(dtype, eta, law):
    w = weights(dtype)
    for rms, shrinkage in ((1e-5, 0.0), (5e-5, 0.0), (3e-4, 0.01), (1e-2, 0.0)):
        drawn = metrics.update_sparsity(w, w.double() * (1 - shrinkage) + rms * moves(law), eta=eta)
        expected = metrics.noise_sparsity(w, rms, eta=eta, law=law, shrinkage=shrinkage)
        assert expected == pytest.approx(drawn, abs=0.005)


def test_sparsity_by_hand():
    w = torch.tensor([[0.0, 1.0]])
    assert metrics.noise_sparsity(w, 0.0) == 1.0
    assert metrics.noise_sparsity(w, 1e-12) == pytest.approx(0.5)  # any move shows at 0, none of this size at 1
    assert metrics.noise_sparsity(w, 1e6) == pytest.approx(0.0, abs=1e-8)
    assert metrics.noise_sparsity(w, 0.0, shrinkage=0.5) == 0.5  # 0 stays, 1 becomes 1/2
    assert metrics.noise_sparsity(torch.ones(2), 0.0, eta=0.5, shrinkage=0.4) == 1.0


def test_sparsity_does_not_look_at_signs_or_places():
    w = weights()
    turned = -w.flatten()[torch.randperm(w.numel(), generator=torch.Generator().manual_seed(0))].reshape(400, 300)
    assert metrics.noise_sparsity(turned, 1e-4) == pytest.approx(metrics.noise_sparsity(w, 1e-4), rel=1e-12)


def test_sparsity_falls_as_moves_grow():
    found = [metrics.noise_sparsity(weights(), 10.0**power) for power in range(-8, 1)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("eta", [1e-3, 0.01])
@pytest.mark.parametrize("stored", [False, True], ids=["fp32", "bf16"])
def test_shuffled_sparsity_is_the_mean_over_shuffles(eta, stored):
    w = weights()[:100, :100].contiguous()
    update = 1e-4 * moves()[:100, :100].abs() + 3e-5  # no symmetry to lean on
    if stored:  # what bf16 kept of it: moves that end on midpoints elsewhere are frequent
        update = (w.double() + update).bfloat16().double() - w.double()
    generator = torch.Generator().manual_seed(2)
    drawn = [
        metrics.update_sparsity(
            w, w.double() + update.flatten()[torch.randperm(10_000, generator=generator)].reshape(100, 100), eta=eta
        )
        for _ in range(30)
    ]
    mean, spread = float(torch.tensor(drawn).mean()), float(torch.tensor(drawn).std())
    assert metrics.shuffled_sparsity(w, update, eta=eta) == pytest.approx(mean, abs=4 * spread / math.sqrt(30))


def test_shuffled_sparsity_of_a_midpoint_rounds_to_even():
    """From 1, a move of 1/256 ends halfway to 1 + 1/128 and goes back to 1, whose code is even."""
    for w in (torch.tensor([1.0]), torch.tensor([1.0 + 1 / 128]), torch.tensor([-1.0]), torch.tensor([-1.0 - 1 / 128])):
        update = w.sign() / 256
        assert metrics.shuffled_sparsity(w, update) == metrics.update_sparsity(w, w + update)


@pytest.mark.parametrize("rate", [1e-6, 1e-5, 1e-4])
def test_weights_trained_in_bf16_lose_small_steps(rate):
    w = weights()
    generator = torch.Generator().manual_seed(3)
    first, second, now = torch.zeros(300, 400), torch.zeros(300, 400), w.clone()
    for t in range(1, 81):
        gradient = torch.randn(300, 400, generator=generator)
        first, second = 0.9 * first + 0.1 * gradient, 0.98 * second + 0.02 * gradient**2
        step = rate * (first / (1 - 0.9**t)) / (second / (1 - 0.98**t)).sqrt()
        now = (now.float() - step).bfloat16()
    expected = metrics.noise_sparsity_without_master(w, [rate] * 80, betas=(0.9, 0.98))
    assert expected == pytest.approx(metrics.update_sparsity(w, now), abs=0.01)
    assert expected > metrics.noise_sparsity(w, metrics.noise_walk_rms([rate] * 80, betas=(0.9, 0.98)))


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("law", ["normal", "laplace"])
def test_gated_overlap_is_that_of_a_drawn_mask(alpha, law):
    w = weights()
    for rms in (1e-5, 5e-5, 3e-4):
        mask = metrics.update_mask(w, w.double() + rms * moves(law))
        measured = metrics.mask_overlap(metrics.low_magnitude_mask(w, alpha=alpha), mask)
        density = float(mask.double().mean())
        assert metrics.gated_overlap(w, density, alpha=alpha, law=law) == pytest.approx(measured, abs=0.012)


def test_gated_overlap_at_its_ends():
    w = weights()
    assert math.isnan(metrics.gated_overlap(w, 0.0))
    assert metrics.gated_overlap(w, 1.0) == pytest.approx(0.3)
    assert metrics.gated_overlap(w, 1e-4) == pytest.approx(1.0)  # a mask thinner than the zeros lies among them
    overlaps = [metrics.gated_overlap(w, density) for density in (0.01, 0.1, 0.3, 0.6, 0.9)]
    assert overlaps == sorted(overlaps, reverse=True)
    assert metrics.gated_overlap(torch.ones(10), 0.4) == pytest.approx(0.3)  # one size: nothing to prefer


def test_agreement_is_that_of_two_drawn_masks():
    w = weights()
    a, b = (metrics.update_mask(w, w.double() + rms * moves(seed=seed)) for rms, seed in ((5e-5, 4), (1.5e-4, 5)))
    found = metrics.gated_mask_agreement(w, float(a.double().mean()), float(b.double().mean()))
    both, either = float((a & b).sum()), float((a | b).sum())
    measured = (both / float(a.sum()), both / float(b.sum()), both / either)
    assert (found.of_a, found.of_b, found.jaccard) == pytest.approx(measured, abs=0.01)
    assert found.of_a > float(b.double().mean())  # more than masks that do not look at the weights


def test_agreement_turned_around_and_of_empty_masks():
    w = weights()
    one, other = metrics.gated_mask_agreement(w, 0.2, 0.6), metrics.gated_mask_agreement(w, 0.6, 0.2)
    assert (one.of_a, one.of_b, one.jaccard) == pytest.approx((other.of_b, other.of_a, other.jaccard))
    empty = metrics.gated_mask_agreement(w, 0.0, 0.5)
    assert math.isnan(empty.of_a)
    assert (empty.of_b, empty.jaccard) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.noise_sparsity(torch.ones(2), -1.0), "rms is -1.0"),
        (lambda: metrics.noise_sparsity(torch.ones(2), 1.0, law="cauchy"), "law is 'cauchy'"),
        (lambda: metrics.noise_sparsity(torch.full((2,), 3.4e38), 1.0), "largest bf16 number"),
        (lambda: metrics.noise_sparsity(torch.ones(2).long(), 1.0), "floating dtype"),
        (lambda: metrics.gated_overlap(torch.ones(2), 1.5), "density is 1.5"),
        (lambda: metrics.gated_mask_agreement(torch.ones(2), 0.5, -0.1), "density_b is -0.1"),
        (lambda: metrics.shuffled_sparsity(torch.ones(2), torch.ones(3)), "one shape"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(MetricInputError, match=message):
        call()


def test_a_tolerance_hides_changes_of_small_weights_only():
    """Two bf16 numbers up to 1e-5 apart count as equal, as some of the literature has it."""
    w = (weights().float() * 0.3).bfloat16()
    masks = [
        (w.double() - (w.double() + rms * moves(seed=seed)).bfloat16().double()).abs() > 1e-5
        for rms, seed in ((3e-5, 6), (6e-5, 7))
    ]
    densities = [float(mask.double().mean()) for mask in masks]
    agreement = metrics.gated_mask_agreement(w, *densities, tolerance=1e-5)
    both = float((masks[0] & masks[1]).sum())
    assert agreement.of_a == pytest.approx(both / float(masks[0].sum()), abs=0.01)
    assert agreement.of_b == pytest.approx(both / float(masks[1].sum()), abs=0.01)
    overlap = metrics.mask_overlap(metrics.low_magnitude_mask(w), masks[0])
    assert metrics.gated_overlap(w, densities[0], tolerance=1e-5) == pytest.approx(overlap, abs=0.01)
    assert agreement.of_a < metrics.gated_mask_agreement(w, *densities).of_a
