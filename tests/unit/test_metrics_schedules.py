"""Rates of a run against torch's own schedulers, and what follows from rates alone, by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from opdgeom_utils import metrics
from opdgeom_utils.errors import MetricInputError

PEAK, LOW, UPDATES, WARM = 3e-4, 2e-5, 50, 10
REST = UPDATES - WARM
AFTER: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
    "constant": lambda running: ConstantLR(running, factor=1.0),
    "linear": lambda running: LinearLR(running, start_factor=1.0, end_factor=LOW / PEAK, total_iters=REST),
    "cosine": lambda running: CosineAnnealingLR(running, T_max=REST, eta_min=LOW),
}


def of_torch(schedule: str) -> list[float]:
    """Rates that a torch optimiser has, update by update: a warm-up from a tenth of the peak, then the schedule."""
    running = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    warm = LinearLR(running, start_factor=1 / WARM, total_iters=WARM - 1)
    after = AFTER[schedule](running)
    scheduler = SequentialLR(running, [warm, after], milestones=[WARM])
    rates = []
    for _ in range(UPDATES):
        rates.append(running.param_groups[0]["lr"])
        running.step()
        scheduler.step()
    return rates


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("schedule", AFTER)
def test_rates_are_those_of_torchs_schedulers(schedule: str) -> None:
    rates = metrics.learning_rate_schedule(
        PEAK, UPDATES, schedule=schedule, warmup=WARM / UPDATES, final_learning_rate=LOW
    )
    assert rates == pytest.approx(of_torch(schedule), rel=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("updates", [1, 2, 7, 100])
@pytest.mark.parametrize("schedule", AFTER)
def test_a_schedule_has_one_rate_an_update_and_never_leaves_its_bounds(schedule, updates, warmup) -> None:
    rates = metrics.learning_rate_schedule(1.0, updates, schedule=schedule, warmup=warmup, final_learning_rate=0.25)
    assert len(rates) == updates
    assert all(0 < rate <= 1 for rate in rates)
    rising = round(warmup * updates)
    assert rates[:rising] == sorted(rates[:rising])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    assert all(rate >= 0.25 for rate in rates[rising:])


def test_the_sum_of_a_cosine_is_half_of_that_of_a_constant() -> None:
    halves = metrics.ballistic_rms(metrics.learning_rate_schedule(1e-3, 1000, schedule="cosine"))
    assert halves == pytest.approx(0.5, rel=2e-3)


def test_ballistic_is_where_adam_goes_with_one_gradient() -> None:
    rates = metrics.learning_rate_schedule(1e-2, 30, schedule="linear", warmup=0.2)
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    running = torch.optim.Adam([weight], lr=1.0)
    for rate in rates:
        running.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor([1.0, -3.0, 1e-3], dtype=torch.float64)
        running.step()
    assert weight.detach().abs().tolist() == pytest.approx([metrics.ballistic_rms(rates)] * 3, rel=1e-4)


def test_shrinkage_is_what_adamw_takes_from_a_weight_without_a_gradient() -> None:
    rates = metrics.learning_rate_schedule(0.05, 40, schedule="cosine")
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    running = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.3)
    for rate in rates:
        running.param_groups[0]["lr"] = rate
        weight.grad = torch.zeros(1, dtype=torch.float64)
        running.step()
    assert metrics.decay_shrinkage(rates, weight_decay=0.3) == pytest.approx(1 - float(weight.detach()), rel=1e-12)
    assert metrics.decay_shrinkage(rates, weight_decay=0) == 0


def test_rates_may_be_a_list_an_array_or_a_tensor() -> None:
    rates = [0.5, 0.25, 0.0]
    for given in (rates, np.array(rates), torch.tensor(rates)):
        assert metrics.ballistic_rms(given) == 0.75


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.learning_rate_schedule(-1.0, 3), "none below 0"),
        (lambda: metrics.learning_rate_schedule(1.0, 3, final_learning_rate=math.inf), "finite numbers"),
        (lambda: metrics.learning_rate_schedule(1.0, 3, warmup=1.5), "warmup is 1.5"),
        (lambda: metrics.learning_rate_schedule(1.0, 3, schedule="Cosine"), "schedule is 'Cosine'"),
        (lambda: metrics.ballistic_rms(np.ones((1, 1))), r"shape \(1, 1\)"),
        (lambda: metrics.ballistic_rms([]), "expected the rate of each update"),
        (lambda: metrics.decay_shrinkage([1.0], weight_decay=2), "weight_decay is 2"),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(MetricInputError, match=message):
        call()
