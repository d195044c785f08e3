"""Spectral shift, stable rank and Hill estimator against hand-worked cases and a plain float64 decomposition."""

import math

import numpy as np
import pytest
import torch

from opdgeom_utils import metrics
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.metrics.spectra import tail_exponent


def test_shift_by_hand():
    before = torch.diag(torch.tensor([3.0, 4.0]))
    assert metrics.normalized_spectral_shift(before, before) == 0.0
    assert metrics.normalized_spectral_shift(before, 2 * before) == pytest.approx(1.0)
    # Values are compared in descending order, wherever they stand: (4, 3) against (6, 3).
    assert metrics.normalized_spectral_shift(before, torch.diag(torch.tensor([6.0, 3.0]))) == pytest.approx(2 / 5)


@pytest.mark.parametrize("shape", [(30, 30), (40, 12), (12, 40), (1, 7), (7, 1)])
@pytest.mark.parametrize("size", [1e-5, 1e-3, 1.0])
def test_shift_equals_a_plain_decomposition(shape, size):
    generator = np.random.default_rng(0)
    before = generator.normal(size=shape)
    after = before + size * generator.normal(size=shape)
    s0, s1 = (np.linalg.svd(w, compute_uv=False) for w in (before, after))
    computed = metrics.normalized_spectral_shift(torch.from_numpy(before), torch.from_numpy(after))
    assert computed == pytest.approx(np.linalg.norm(s1 - s0) / np.linalg.norm(s0), rel=1e-8)


def test_shift_of_low_rank_matrices_has_no_rounding_floor():
    generator = np.random.default_rng(0)
    u, v = (np.linalg.qr(generator.normal(size=(n, 3)))[0] for n in (40, 30))
    before, after = ((u * s) @ v.T for s in (np.array([3.0, 2.0, 1.0]), np.array([3.0, 2.0, 1.0 + 1e-7])))
    computed = metrics.normalized_spectral_shift(torch.from_numpy(before), torch.from_numpy(after))
    assert computed == pytest.approx(1e-7 / math.sqrt(14), rel=1e-6)


def test_shift_from_zero_is_undefined():
    assert math.isnan(metrics.normalized_spectral_shift(torch.zeros(2, 2), torch.eye(2)))
    assert metrics.normalized_spectral_shift(torch.eye(2), torch.zeros(2, 2)) == 1.0


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (torch.eye(5), 5.0),
        (torch.ones(4, 7), 1.0),
        (torch.diag(torch.tensor([2.0, 1.0, 1.0])), 1.5),
        (torch.tensor([[3.0, 4.0]]), 1.0),
        (torch.tensor([[3.0], [4.0]]), 1.0),
        (torch.tensor([[-7.0]]), 1.0),
        (torch.eye(3, dtype=torch.float64) * 1e-200, 3.0),
        (torch.eye(3).bfloat16() * 1e-30, 3.0),
    ],
)
def test_stable_rank_by_hand(delta, expected):
    assert metrics.stable_rank(delta) == pytest.approx(expected, rel=1e-12)


def test_stable_rank_of_no_update_is_undefined():
    assert math.isnan(metrics.stable_rank(torch.zeros(3, 4)))


def test_stable_rank_equals_a_plain_decomposition():
    delta = np.random.default_rng(2).normal(size=(35, 20)) ** 3
    s = np.linalg.svd(delta, compute_uv=False)
    assert metrics.stable_rank(torch.from_numpy(delta)) == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-12)


def test_hill_by_hand():
    # Values 8, 4, 2: the logarithms to the third are 2 log 2 and log 2, their mean 1.5 log 2.
    values = torch.tensor([2.0, 8.0, 0.5, 4.0])
    assert metrics.hill_estimator(values, k=3) == pytest.approx(1 / (1.5 * math.log(2)))
    assert metrics.hill_estimator(values, k=2) == pytest.approx(1 / math.log(2))
    assert metrics.hill_estimator(100 * values, k=3) == pytest.approx(metrics.hill_estimator(values, k=3))


def test_hill_reads_back_a_power_law():
    # sigma_i = i**(-1/a) has tail exponent a, up to the finite sample.
    values = torch.arange(1, 20001, dtype=torch.float64) ** (-1 / 2.5)
    assert metrics.hill_estimator(values, k=20000) == pytest.approx(2.5, rel=1e-2)


def test_hill_at_its_ends():
    assert metrics.hill_estimator(torch.ones(4), k=3) == math.inf
    assert math.isnan(metrics.hill_estimator(torch.tensor([2.0, 1.0, 0.0]), k=3))
    assert math.isnan(metrics.hill_estimator(torch.zeros(3), k=2))


def test_tail_of_a_computed_spectrum_treats_rounding_noise_as_zero():
    spectrum = torch.tensor([4.0, 2.0, 1e-17], dtype=torch.float64)
    assert math.isnan(tail_exponent(spectrum, k=99, largest_side=10))
    assert tail_exponent(spectrum, k=2, largest_side=10) == pytest.approx(1 / math.log(2))
    assert math.isnan(tail_exponent(spectrum[:1], k=5, largest_side=10))


@pytest.mark.parametrize(
    ("values", "k", "words"),
    [
        (torch.ones(3), 1, ["k is 1", "at least 2"]),
        (torch.ones(3), 4, ["k is 4", "at most 3"]),
        (torch.tensor([1.0, -1.0]), 2, ["negative"]),
        (torch.ones(2, 2), 2, ["(2, 2)", "a vector"]),
        (torch.tensor([1.0, float("inf")]), 2, ["1 NaN or infinite"]),
    ],
)
def test_hill_refuses_in_words(values, k, words):
    with pytest.raises(MetricInputError) as caught:
        metrics.hill_estimator(values, k=k)
    assert all(word in str(caught.value) for word in words)


def test_other_metrics_refuse_in_words():
    with pytest.raises(MetricInputError, match=r"delta_w has shape \(3,\)"):
        metrics.stable_rank(torch.ones(3))
    with pytest.raises(MetricInputError, match="one shape"):
        metrics.normalized_spectral_shift(torch.ones(2, 2), torch.ones(3, 3))
