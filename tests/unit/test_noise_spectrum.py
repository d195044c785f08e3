"""Expected drift and rotation against the mean of exact draws, on matrices of shipped models and by hand."""

import math
from functools import cache

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from opdgeom_utils import metrics
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.metrics import noise_rotation, noise_spectrum
from opdgeom_utils.models import load_model

MODELS = ("anchor", "student_small", "teacher_large")
MODULES = ("q_proj", "k_proj", "o_proj", "down_proj", "gate_proj")
K = 16


@cache
def matrices() -> tuple[Tensor, ...]:
    return tuple(
        parameter.detach().double()
        for name in MODELS
        for key, parameter in load_model(name).named_parameters()
        if "layers.1." in key and key.split(".")[-2] in MODULES
    )


def drawn(w: Tensor, rms: float, n_draws: int) -> list[float]:
    """Mean shift, left angle and right angle of exact draws."""
    generator = torch.Generator().manual_seed(0)
    found = torch.zeros(3)
    for _ in range(n_draws):
        moved = w + rms * torch.randn(w.shape, generator=generator, dtype=torch.float64)
        angles = metrics.principal_angles(w, moved, k=K)
        shift = metrics.normalized_spectral_shift(w, moved)
        found += torch.tensor([shift, float(angles.left_deg.mean()), float(angles.right_deg.mean())]) / n_draws
    return found.tolist()


def expected(w: Tensor, rms: float) -> list[float]:
    angles = metrics.noise_angles(w, rms, k=K)
    return [metrics.noise_spectral_shift(w, rms), angles.left_deg, angles.right_deg]


@pytest.mark.parametrize(("gaps", "shift", "angle"), [(0.1, 0.03, 0.05), (0.6, 0.03, 0.05), (4.0, 0.06, 0.08)])
def test_expectation_is_the_mean_of_exact_draws(gaps, shift, angle):
    """Over matrices of real models, with noise of so many median gaps between singular values."""
    ratios = []
    for w in matrices():
        s = torch.linalg.svdvals(w)
        rms = gaps * float((s[:-1] - s[1:]).median())
        ratios.append([e / d for e, d in zip(expected(w, rms), drawn(w, rms, 12), strict=True)])
    mean = torch.tensor(ratios).mean(dim=0).tolist()
    assert mean[0] == pytest.approx(1, abs=shift)
    assert mean[1:] == pytest.approx([1, 1], abs=angle)


@pytest.mark.parametrize("times", [0.3, 3.0, 20.0])
def test_shift_where_neighbours_push_each_other_apart(times):
    """A spectrum that grows denser to its end; at three times its smallest gap first order is 40% too low."""
    s = torch.arange(1, 301, dtype=torch.float64) ** -0.6
    w = torch.zeros(400, 300, dtype=torch.float64)
    w.diagonal().copy_(s)
    rms = times * float(s[-2] - s[-1])
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(400, 300, generator=generator, dtype=torch.float64) for _ in range(10)]
    mean = sum(metrics.normalized_spectral_shift(w, w + rms * n) for n in noise) / 10
    assert metrics.noise_spectral_shift(w, rms) == pytest.approx(mean, rel=0.04)
    if times == 3.0:
        assert mean > 1.3 * rms * math.sqrt(300) / float(w.norm())


def test_windows_and_whole_draws_agree(monkeypatch):
    s = torch.linspace(5, 1, 300, dtype=torch.float64)
    monkeypatch.setattr(noise_spectrum, "LEVELS", 2**13)  # drawn more often than a table needs
    for rms in (0.002, 0.006, 0.02):
        windows = noise_spectrum.expected_shift(s, longer=400, rms=rms)
        with monkeypatch.context() as patched:
            patched.setattr(noise_spectrum, "WIDTHS", ())
            assert noise_spectrum.is_crowded(s, rms)
            assert noise_spectrum.expected_shift(s, longer=400, rms=rms) == pytest.approx(windows, rel=0.04)
    near = noise_rotation.expected_angles(s, (400, 300), rms=0.002, k=100)
    monkeypatch.setattr(noise_rotation, "LARGE_ANGLE_DEG", 0.0)
    assert noise_rotation.are_drawn(near)
    whole = noise_rotation.expected_angles(s, (400, 300), rms=0.002, k=100)
    assert (near.left_deg, near.right_deg) == pytest.approx((whole.left_deg, whole.right_deg), rel=0.05)


@pytest.mark.parametrize("rms", [0.01, 0.05, 0.2])
def test_equal_singular_values_are_spread_like_a_matrix_of_noise_alone(rms):
    """A hundred ties: their shift is that of a 100 x 100 matrix of noise around them, far above first order."""
    s = torch.cat([torch.linspace(30, 20, 200), torch.full((100,), 12.0), torch.linspace(8, 1, 100)]).double()
    generator = torch.Generator().manual_seed(0)
    w = torch.diag(s)
    noise = [torch.randn(400, 400, generator=generator, dtype=torch.float64) for _ in range(4)]
    mean = sum(metrics.normalized_spectral_shift(w, w + rms * n) for n in noise) / 4
    assert metrics.noise_spectral_shift(w, rms) == pytest.approx(mean, rel=0.04)
    assert mean > 2 * rms * math.sqrt(400) / float(w.norm())


def test_largest_angle_is_the_mean_of_exact_draws():
    ratios = []
    for w in matrices():
        s = torch.linalg.svdvals(w)
        rms = 0.3 * float((s[:-1] - s[1:]).median())
        generator = torch.Generator().manual_seed(1)
        found = [
            metrics.principal_angles(w, w + rms * torch.randn(w.shape, generator=generator, dtype=torch.float64), k=K)
            for _ in range(12)
        ]
        mean = torch.stack([torch.stack([a.left_deg.max(), a.right_deg.max()]) for a in found]).mean(dim=0)
        angles = metrics.noise_angles(w, rms, k=K)
        ratios.append(torch.tensor([angles.left_max_deg, angles.right_max_deg]) / mean)
    assert torch.stack(ratios).mean(dim=0).tolist() == pytest.approx([1, 1], abs=0.15)


def test_the_limit_knows_a_matrix_of_independent_entries():
    """All variances equal: the mean singular value of an n x n normal matrix is 8/(3 pi) of its root n."""
    leading, other = np.full(300, 1e6), np.full(300, 1e-6)
    expected = math.degrees(300 * 8 / (3 * math.pi) * math.sqrt(300) * 1e-6)
    assert noise_rotation._sum_of_angles(leading, other, 0) == pytest.approx(expected, rel=0.01)


def test_transpose_trades_the_sides_and_scale_drops_out():
    w = matrices()[1]
    here, there = metrics.noise_angles(w, 1e-3, k=K), metrics.noise_angles(w.T, 1e-3, k=K)
    assert (here.left_deg, here.right_deg) == (there.right_deg, there.left_deg)
    scaled = metrics.noise_angles(8 * w, 8e-3, k=K)
    assert (scaled.left_deg, scaled.right_deg) == pytest.approx((here.left_deg, here.right_deg), rel=1e-9)
    assert metrics.noise_spectral_shift(8 * w, 8e-3) == pytest.approx(metrics.noise_spectral_shift(w, 1e-3), rel=1e-9)


def test_a_space_that_is_not_defined_has_no_angle_and_a_whole_one_does_not_turn():
    tied = torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0]))
    assert math.isnan(metrics.noise_angles(tied, 1e-3, k=2).left_deg)
    assert metrics.noise_angles(tied, 1e-3, k=1).left_deg > 0
    assert metrics.noise_angles(tied, 1e-3, k=9) == metrics.NoiseAngles(0.0, 0.0)
    tall = metrics.noise_angles(torch.eye(6)[:, :2] * torch.tensor([2.0, 1.0]), 1e-3, k=2)
    assert tall.right_deg == 0.0 < tall.left_deg  # the whole input side; the outputs can still turn
    assert metrics.noise_angles(tied, 0.0, k=1) == metrics.NoiseAngles(0.0, 0.0)


@pytest.mark.parametrize("shape", [(80, 200), (200, 80)])
def test_a_whole_space_of_a_large_matrix_turns_on_its_long_side_only(shape):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    found = torch.zeros(4, dtype=torch.float64)
    for _ in range(5):
        moved = w + 1e-3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        for place, side in enumerate(scipy_angles(w, moved)):
            found[2 * place : 2 * place + 2] += torch.tensor([side.mean(), side.max()]) / 5
    angles = metrics.noise_angles(w, 1e-3, k=512)
    expected = [angles.left_deg, angles.left_max_deg, angles.right_deg, angles.right_max_deg]
    assert expected == pytest.approx(found.tolist(), rel=0.08)
    assert [angle == 0.0 for angle in expected] == [side == 80 for side in shape for _ in range(2)]


def scipy_angles(before: Tensor, after: Tensor) -> list[np.ndarray]:
    """Angles between whole column spaces and whole row spaces, in degrees; SciPy takes any basis."""
    pairs = (before, after), (before.T, after.T)
    return [
        np.degrees(scipy.linalg.subspace_angles(*(w.numpy() for w in pair))) if len(pair[0]) > 80 else np.zeros(80)
        for pair in pairs
    ]


def test_a_narrow_gap_at_the_cut_is_no_tie():
    """Two almost equal directions trade places: that one angle is anything up to 90 degrees, on average 45."""
    s = torch.tensor([8.0, 6.0, 4.0, 4.0 - 1e-6, 2.0, 1.0], dtype=torch.float64)
    angles = metrics.noise_angles(torch.diag(s), 1e-4, k=3)
    assert angles.left_deg == pytest.approx(45 / 3, rel=0.25)


def test_no_noise_and_no_matrix():
    assert metrics.noise_spectral_shift(torch.eye(3), 0.0) == 0.0
    assert math.isnan(metrics.noise_spectral_shift(torch.zeros(3, 3), 1e-3))
    assert math.isnan(metrics.noise_angles(torch.zeros(3, 3), 1e-3, k=1).left_deg)
    with pytest.raises(MetricInputError, match="rms is nan"):
        metrics.noise_spectral_shift(torch.eye(3), math.nan)
    with pytest.raises(MetricInputError, match="k is 0"):
        metrics.noise_angles(torch.eye(3), 1e-3, k=0)


def test_decay_moves_the_spectrum_by_its_share_and_no_direction():
    """Two parts of an update with known spectra: the one that decay made, and one orthogonal to the weights."""
    w, decay = matrices()[0].double(), 0.01
    shrunken = (1 - decay) * w
    assert metrics.normalized_spectral_shift(w, shrunken) == pytest.approx(decay)
    assert float(metrics.principal_angles(w, shrunken, k=K).left_deg.max()) < 1e-5
    rest = torch.randn(w.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rest -= (rest * w).sum() / (w * w).sum() * w
    rest *= 0.02 * w.norm() / rest.norm()
    alone = metrics.normalized_spectral_shift(w, w + rest / (1 - decay))
    both, size = metrics.normalized_spectral_shift(w, shrunken + rest), float((rest - decay * w).norm() / w.norm())
    assert both > 1.5 * alone
    assert metrics.drift_without_decay(both, size, decay) == pytest.approx(alone, rel=1e-6)
    assert noise_spectrum.drift_with_decay(alone, 0.02, decay) == pytest.approx(both, rel=1e-9)


@pytest.mark.parametrize("numbers", [(-0.1, 0.1, 0.1), (0.1, -0.1, 0.1), (0.1, 0.1, -0.1), (0.1, 0.1, 1.0)])
def test_a_number_that_is_no_share_is_refused(numbers):
    with pytest.raises(MetricInputError, match="expected a number from 0 upwards"):
        metrics.drift_without_decay(*numbers)


def test_noise_that_is_mostly_decay_lands_where_decay_puts_it():
    """AdamW on noise, at a rate and decay at which the drift is nearly all decay."""
    w = matrices()[0].double()
    rates = metrics.learning_rate_schedule(2e-5, 100)
    weights = torch.nn.Parameter(w.clone())
    optimizer = torch.optim.AdamW([weights], lr=2e-5, betas=(0.9, 0.98), weight_decay=1.0)
    generator = torch.Generator().manual_seed(5)
    for _ in rates:
        weights.grad = torch.randn(w.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    found = metrics.normalized_spectral_shift(w, weights.detach())
    place = metrics.noise_place(w, rates, betas=(0.9, 0.98), weight_decay=1.0, k=K)
    assert place.normalized_spectral_shift == pytest.approx(found, rel=0.03)
    assert found > 2 * metrics.noise_spectral_shift(w, place.rms)


def test_place_puts_the_parts_together():
    """One simulated training of AdamW on noise, measured, beside where noise was said to land."""
    w = matrices()[0].bfloat16()
    rates = metrics.learning_rate_schedule(1e-4, 60)
    generator = torch.Generator().manual_seed(0)
    weights = torch.nn.Parameter(w.double())
    optimizer = torch.optim.AdamW([weights], lr=1e-4, betas=(0.9, 0.98), weight_decay=0.1)
    for _ in rates:
        weights.grad = torch.randn(w.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    place = metrics.noise_place(w, rates, betas=(0.9, 0.98), weight_decay=0.1, k=K)
    weights = weights.detach()
    mask = metrics.update_mask(w, weights)
    assert place.update_norm == pytest.approx(float((weights - w.double()).norm()), rel=0.03)
    assert place.update_sparsity == pytest.approx(1 - float(mask.double().mean()), abs=0.01)
    for name, reference in (("principal", metrics.principal_mask(w)), ("low_magnitude", metrics.low_magnitude_mask(w))):
        assert getattr(place, f"{name}_overlap") == pytest.approx(metrics.mask_overlap(reference, mask), abs=0.01)
    shift, angles = metrics.normalized_spectral_shift(w, weights), metrics.principal_angles(w, weights, k=K)
    assert place.normalized_spectral_shift == pytest.approx(shift, rel=0.15)  # one draw
    assert place.left_angle_mean_deg == pytest.approx(float(angles.left_deg.mean()), rel=0.3)
    assert place.right_angle_mean_deg == pytest.approx(float(angles.right_deg.mean()), rel=0.3)


@pytest.mark.parametrize("times", [5, 20])
def test_a_smaller_matrix_stands_for_a_large_one_under_much_noise(times):
    """A thousand directions and noise of many gaps: the mean of two exact draws, without decomposing such a matrix."""
    s = 10 * torch.arange(1, 801, dtype=torch.float64) ** -0.5
    rms, k = times * float((s[:-1] - s[1:]).median()), 200
    smaller, extra, more = noise_spectrum.shrunk(s, 100, rms, 100, k=k)
    assert len(smaller) < 300
    assert extra / len(smaller) == pytest.approx(100 / 800, rel=0.05)
    assert more**2 * len(smaller) == pytest.approx(rms**2 * 800)
    generator, found = np.random.default_rng(1), []
    w = torch.cat([torch.diag(s), torch.zeros(100, 800, dtype=torch.float64)])
    for _ in range(2):
        moved = w + rms * torch.from_numpy(generator.standard_normal((900, 800)))
        angles = metrics.principal_angles(w, moved, k=k)
        shift = metrics.normalized_spectral_shift(w, moved)
        found.append([shift, float(angles.left_deg.mean()), float(angles.right_deg.mean())])
    mean = np.mean(found, axis=0)
    assert noise_spectrum.expected_shift(s, longer=900, rms=rms) == pytest.approx(mean[0], rel=0.05)
    angles = noise_rotation.expected_angles(s, (900, 800), rms=rms, k=k)
    assert (angles.left_deg, angles.right_deg) == pytest.approx(mean[1:], rel=0.06)
