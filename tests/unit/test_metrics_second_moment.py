"""Second moments of gradients against closed forms: what masks, noise and mixtures do to them is known there."""

import math

import pytest
import torch

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.metrics import second_moment as sm


def gradients(seed: int, n: int = 40, out: int = 5, inner: int = 7) -> torch.Tensor:
    return torch.randn(n, out, inner, generator=torch.Generator().manual_seed(seed))


def test_moments_are_the_mean_outer_products() -> None:
    g = gradients(0)
    assert torch.allclose(sm.right_second_moment(g), sum(m.T @ m for m in g.double()) / 40)
    assert torch.allclose(sm.left_second_moment(g), sum(m @ m.T for m in g.double()) / 40)


def test_left_moment_is_the_right_one_of_the_transposes() -> None:
    g = gradients(1)
    assert torch.allclose(sm.left_second_moment(g), sm.right_second_moment(g.mT.contiguous()))


@pytest.mark.parametrize("side", sm.SIDES)
@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.25, 0.5, 1.0])
def test_formula_of_the_mixture_is_an_identity_on_the_same_batches(side: str, alpha: float) -> None:
    a, b = gradients(2), gradients(3) + 0.5 * gradients(2)
    own, other, mixed = (sm.moment_products(g, g, side=side).mean(0) for g in (a, b, alpha * a + (1 - alpha) * b))
    cross = sm.cross_second_moment(a, b, side=side)
    assert sm.explained_share(mixed, sm.mixed_moment(own, other, cross, alpha=alpha)) == pytest.approx(1, abs=1e-9)


def test_without_the_cross_term_correlated_gradients_are_explained_less() -> None:
    a = gradients(4)
    moment = sm.right_second_moment(a)  # both objectives have one gradient: the mixture is it again, the formula half
    half = sm.mixed_moment(moment, moment, None, alpha=0.5)
    assert sm.explained_share(moment, half) == pytest.approx(0.75)


def test_masking_independent_entries_at_random_gives_a_multiple_and_noise() -> None:
    """A gradient is a sum of tokens; keeping each with chance p and rescaling adds (1/p - 1) times their own moment."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(4000, 16, 1, 6, generator=generator) + torch.tensor([2.0, 0, 0, 0, 0, 0])
    keep = (torch.rand(4000, 16, 1, 1, generator=generator) < 0.5) / 0.5
    full, masked = (sm.right_second_moment(t.sum(1)) for t in (tokens, tokens * keep))
    fit = sm.fit_moment(masked, full, noise=True)
    assert fit.r2 > 0.999
    assert fit.noise > 10
    assert sm.moment_alignment(masked, full, k=1) > 0.99


def test_fit_recovers_scale_and_noise_and_never_gets_worse_with_it() -> None:
    base = sm.right_second_moment(gradients(6))
    target = 2.5 * base + 0.7 * torch.eye(7)
    fit, plain = sm.fit_moment(target, base, noise=True), sm.fit_moment(target, base)
    assert (fit.scale, fit.noise, fit.r2) == pytest.approx((2.5, 0.7, 1.0))
    assert plain.noise == 0
    assert plain.r2 < fit.r2


def test_fit_is_free_of_units() -> None:
    base, target = (sm.right_second_moment(gradients(seed)) for seed in (7, 8))
    small = sm.fit_moment(1e-12 * target, 1e-12 * base, noise=True)
    assert small.r2 == pytest.approx(sm.fit_moment(target, base, noise=True).r2)


def test_what_has_no_answer() -> None:
    zero, eye = torch.zeros(3, 3), torch.eye(3)
    assert math.isnan(sm.moment_alignment(zero, eye, k=1))
    assert math.isnan(sm.explained_share(zero, eye))
    assert sm.fit_moment(eye, zero).r2 == 0
    assert sm.fit_moment(eye, zero, noise=True).r2 == pytest.approx(1)
    assert sm.fit_moment(2 * eye, eye, noise=True).scale == 0


def test_random_spaces_meet_by_chance() -> None:
    bases = [torch.linalg.qr(gradients(seed, 1, 60, 6)[0].double()).Q for seed in range(40)]
    found = torch.stack([sm.space_overlap(a, b) for a, b in zip(bases[::2], bases[1::2], strict=True)])
    assert float(found.mean()) == pytest.approx(6 / 60, rel=0.2)


def test_bootstrap_resamples_batches() -> None:
    weights = sm.bootstrap_weights(10, 500, seed=1)
    assert torch.allclose(weights.sum(1), torch.ones(500).double())
    assert float(weights.mean()) == pytest.approx(0.1)
    assert float(weights.var()) == pytest.approx(0.1 * 0.9 / 10, rel=0.1)  # ten draws with chance a tenth, over ten


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: sm.moment_products(torch.ones(2, 3, 1), torch.ones(2, 3, 1), side="top"),
        lambda: sm.left_second_moment(torch.full((1, 2, 2), math.nan)),
        lambda: sm.moment_alignment(torch.eye(2), torch.eye(3), k=1),
        lambda: sm.moment_alignment(torch.eye(2), torch.eye(2), k=0),
        lambda: sm.mixed_moment(torch.eye(2), torch.eye(2), None, alpha=1.5),
    ],
)
def test_refusals(wrong) -> None:
    with pytest.raises(MetricInputError):
        wrong()
