"""The noise walk against simulations of torch's own Adam and AdamW on noise, and by hand."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from opdgeom_utils import metrics
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.training import learning_rate_at

WARM_COSINE = metrics.learning_rate_schedule(5e-4, 400, schedule="cosine", warmup=0.1, final_learning_rate=5e-5)
N_ENTRIES = 20_000


def trained_on(
    draw: Callable[[torch.Generator], Tensor],
    rates: Sequence[float],
    betas: tuple[float, float],
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    start: float = 0.0,
    **options: float,
) -> Tensor:
    """Where torch's optimiser takes 20,000 equal weights whose gradients come from ``draw``."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.nn.Parameter(torch.full((N_ENTRIES,), start, dtype=torch.float64))
    running = optimizer([weights], lr=1.0, betas=betas, **options)
    for rate in rates:
        running.param_groups[0]["lr"] = rate
        weights.grad = draw(generator)
        running.step()
    return weights.detach()


def white(generator: torch.Generator) -> Tensor:
    return torch.randn(N_ENTRIES, generator=generator, dtype=torch.float64)


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.0, 0.99), (0.95, 0.9)])
@pytest.mark.parametrize("rates", [[1.0], [1.0] * 2, [1.0] * 60, WARM_COSINE], ids=["1", "2", "60", "cosine"])
def test_walk_is_where_torchs_adam_goes(rates, betas):
    """20,000 simulated entries leave an error of 0.5% themselves."""
    assert metrics.noise_walk_rms(rates, betas=betas) == pytest.approx(rms(trained_on(white, rates, betas)), rel=0.015)


def test_walk_nears_the_root_of_the_sum_of_squares():
    assert metrics.noise_walk_rms([1e-6] * 3000) == pytest.approx(1e-6 * math.sqrt(3000), rel=0.01)
    assert metrics.noise_walk_rms([1.0] * 50) > 1.08 * math.sqrt(50)  # the first steps point alike


def test_strength_of_the_noise_does_not_matter_and_its_law_hardly():
    rates, betas = [1.0] * 200, (0.9, 0.98)
    walk = metrics.noise_walk_rms(rates, betas=betas)
    strong = trained_on(lambda g: 1e4 * white(g), rates, betas)
    assert rms(strong) == pytest.approx(rms(trained_on(white, rates, betas)), rel=1e-6)
    laplace = trained_on(lambda g: white(g) * torch.empty(N_ENTRIES).exponential_(generator=g).sqrt(), rates, betas)
    assert 0.97 < rms(laplace) / walk < 1.01
    paths = [iter(torch.randn(200, generator=torch.Generator().manual_seed(seed)).exp()) for seed in range(8)]
    bursts = [rms(trained_on(lambda g, path=path: white(g) * next(path), rates, betas)) for path in paths]
    assert 0.88 < np.mean(bursts) / walk < 1.0


@pytest.mark.parametrize("strengths", [np.linspace(1, 3, 200), np.linspace(3, 1, 200), np.geomspace(1e-9, 1e-6, 200)])
def test_noise_of_a_known_strength_at_each_update_walks_as_torchs_adam_does(strengths):
    rates, betas, path = [1.0] * 200, (0.9, 0.98), iter(strengths)
    end = trained_on(lambda g: 1e8 * next(path) * white(g), rates, betas)
    walk = metrics.noise_walk_rms(rates, betas=betas, strengths=strengths)
    assert walk == pytest.approx(rms(end), rel=0.015)
    assert (walk > metrics.noise_walk_rms(rates, betas=betas)) == (strengths[-1] > strengths[0])
    assert walk == pytest.approx(metrics.noise_walk_rms(rates, betas=betas, strengths=7 * strengths), rel=1e-9)


def test_an_update_without_gradient_goes_on_with_its_momentum_only():
    assert metrics.noise_walk_rms([1.0] * 5, strengths=[0.0] * 5) == 0.0
    assert metrics.noise_walk_rms([1.0, 1.0], betas=(0.0, 0.9), strengths=[0.0, 1.0]) == pytest.approx(
        math.sqrt((1 - 0.9**2) / (1 - 0.9)), rel=1e-6
    )


def test_clipping_the_norm_changes_nothing_but_evens_out_bursts():
    rates, betas = [1.0] * 200, (0.9, 0.98)

    def clipped(generator: torch.Generator) -> Tensor:
        burst = white(generator) * torch.randn((), generator=generator).exp()
        return burst / burst.norm()

    walk = metrics.noise_walk_rms(rates, betas=betas)
    assert rms(trained_on(clipped, rates, betas)) == pytest.approx(walk, rel=0.015)


def test_decoupled_weight_decay_fades_old_steps_and_shrinks_the_weight():
    rates, decay = [1e-3] * 500, 1.0
    end = trained_on(white, rates, (0.9, 0.999), torch.optim.AdamW, start=1.0, weight_decay=decay)
    assert metrics.noise_walk_rms(rates, weight_decay=decay) == pytest.approx(float(end.std()), rel=0.015)
    assert metrics.noise_walk_rms(rates, weight_decay=decay) < 0.9 * metrics.noise_walk_rms(rates)
    assert 1 - metrics.decay_shrinkage(rates, weight_decay=decay) == pytest.approx(float(end.mean()), abs=1e-3)


@pytest.mark.parametrize("seen", [0.3, 0.03])
def test_rows_that_are_seldom_seen(seen):
    def sparse(generator: torch.Generator) -> Tensor:
        return white(generator) * (torch.rand(N_ENTRIES, generator=generator) < seen)

    end = trained_on(sparse, [1.0] * 200, (0.9, 0.999))
    assert metrics.noise_walk_rms([1.0] * 200, seen=seen) == pytest.approx(rms(end), rel=0.03)


def test_rows_that_are_never_seen_and_rates_of_zero_do_not_move():
    assert metrics.noise_walk_rms([1.0] * 5, seen=0) == 0.0
    assert metrics.noise_walk_rms([0.0, 0.0]) == 0.0
    assert math.isnan(metrics.walk_ratio(torch.ones(2, 2), [0.0]))


def test_walk_scales_with_the_rate_and_takes_any_row_of_numbers():
    rates = [0.5, 0.25, 0.125]
    walk = metrics.noise_walk_rms(rates)
    assert metrics.noise_walk_rms([2.0**-40 * rate for rate in rates]) == pytest.approx(2.0**-40 * walk, rel=1e-6)
    assert metrics.noise_walk_rms(np.array(rates)) == metrics.noise_walk_rms(torch.tensor(rates)) == walk


def test_coherence_of_known_mixtures():
    """A constant part and white noise: the share of squares that is constant comes back."""
    rates, betas = [1.0] * 400, (0.9, 0.999)
    for share in (0.0, 0.05, 0.3, 1.0):
        end = trained_on(lambda g, c=share: math.sqrt(c) + math.sqrt(1 - c) * white(g), rates, betas)
        assert metrics.coherence(end, rates, betas=betas) == pytest.approx(share, abs=0.015)
    assert metrics.walk_ratio(end, rates, betas=betas) > 15
    assert metrics.coherence(torch.full((3,), 400.0), rates, betas=betas) == pytest.approx(1.0)


def test_one_update_tells_nothing_of_coherence():
    assert math.isnan(metrics.coherence(torch.ones(2, 2), [1.0]))


@pytest.mark.parametrize("name", ["sft", "opd", "rlvr"])
def test_schedule_is_that_of_the_books_own_training(name):
    recipe = load_recipe(name, "first_regime")
    rates = metrics.learning_rate_schedule(
        recipe.learning_rate,
        recipe.steps,
        schedule=recipe.schedule,
        warmup=recipe.warmup_fraction,
        final_learning_rate=recipe.final_learning_rate,
    )
    assert rates == pytest.approx([learning_rate_at(recipe, step) for step in range(recipe.steps)])


def test_linear_schedule_by_hand():
    assert metrics.learning_rate_schedule(4.0, 4, schedule="linear") == [4.0, 3.0, 2.0, 1.0]
    assert metrics.ballistic_rms(metrics.learning_rate_schedule(1e-6, 10)) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.noise_walk_rms([]), "expected the rate of each update"),
        (lambda: metrics.noise_walk_rms([-1.0]), "none below 0"),
        (lambda: metrics.noise_walk_rms([math.nan]), "finite numbers"),
        (lambda: metrics.noise_walk_rms([1.0], betas=(0.9, 1.0)), "from 0 to below 1"),
        (lambda: metrics.noise_walk_rms([1.0], eps=-1), "eps is -1"),
        (lambda: metrics.noise_walk_rms([1.0], seen=2), "seen is 2"),
        (lambda: metrics.noise_walk_rms([1.0], strengths=[1.0, 1.0]), "2 numbers, expected one for each of 1"),
        (lambda: metrics.noise_walk_rms([1.0], strengths=[math.nan]), "strengths has shape"),
        (lambda: metrics.learning_rate_schedule(1.0, 0), "updates is 0"),
        (lambda: metrics.learning_rate_schedule(1.0, 5, schedule="step"), "constant, linear or cosine"),
        (lambda: metrics.walk_ratio(torch.tensor([math.inf]), [1.0]), "infinite"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(MetricInputError, match=message):
        call()
