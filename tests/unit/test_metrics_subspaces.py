"""Principal angles and subspace similarity against hand-worked cases and scipy's float64 formula."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from opdgeom_utils import metrics
from opdgeom_utils.errors import MetricInputError


def _rotation(n, i, j, radians):
    """A rotation in the plane of axes i and j."""
    turn = torch.eye(n, dtype=torch.float64)
    turn[i, i] = turn[j, j] = math.cos(radians)
    turn[i, j], turn[j, i] = -math.sin(radians), math.sin(radians)
    return turn


def _diagonal(rows, columns, values):
    w = torch.zeros(rows, columns, dtype=torch.float64)
    w[range(len(values)), range(len(values))] = torch.tensor(values, dtype=torch.float64)
    return w


@pytest.mark.parametrize("degrees", [1e-10, 1e-7, 1e-3, 1.0, 30.0, 45.0, 60.0, 89.999])
def test_a_known_rotation_is_read_back(degrees):
    # Axis 2 carries the second singular value, axis 5 none: turning them moves the top-2 left space by that angle.
    before = _diagonal(8, 6, [9.0, 4.0])
    after = _rotation(8, 1, 5, math.radians(degrees)) @ before
    angles = metrics.principal_angles(before, after, k=2)
    assert angles.left_deg.tolist() == pytest.approx([0.0, degrees], rel=1e-9, abs=1e-13)
    assert angles.right_deg.tolist() == pytest.approx([0.0, 0.0], abs=1e-13)


def test_turning_inside_the_leading_space_moves_nothing():
    before = _diagonal(6, 5, [9.0, 4.0])
    after = _rotation(6, 0, 1, 0.7) @ before
    assert metrics.principal_angles(before, after, k=2).left_deg.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert float(metrics.principal_angles(before, after, k=1).left_deg) == pytest.approx(math.degrees(0.7))


def test_orthogonal_spaces_and_a_whole_space():
    before, after = _diagonal(4, 2, [3.0, 2.0]), _diagonal(4, 2, [3.0, 2.0]).roll(2, dims=0)
    angles = metrics.principal_angles(before, after, k=7)  # clipped to 2, the whole input space
    assert angles.left_deg.tolist() == [90.0, 90.0]
    assert angles.right_deg.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("shape", "k"), [((30, 30), 5), ((50, 20), 20), ((20, 50), 7), ((24, 24), 20), ((9, 1), 1)])
@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0])
def test_angles_equal_scipy_on_a_plain_decomposition(shape, k, size):
    generator = np.random.default_rng(0)
    before = generator.normal(size=shape)
    after = before + size * generator.normal(size=shape)
    (u0, _, vh0), (u1, _, vh1) = (np.linalg.svd(w, full_matrices=False) for w in (before, after))
    angles = metrics.principal_angles(torch.from_numpy(before), torch.from_numpy(after), k=k)
    for computed, basis_a, basis_b in ((angles.left_deg, u0, u1), (angles.right_deg, vh0.T, vh1.T)):
        expected = np.degrees(np.sort(scipy.linalg.subspace_angles(basis_a[:, :k], basis_b[:, :k])))
        np.testing.assert_allclose(computed.numpy(), expected, rtol=0, atol=1e-6)
        assert np.all(np.diff(computed.numpy()) >= 0)


@pytest.mark.parametrize("shape", [(50, 20), (20, 50)])
@pytest.mark.parametrize("last", [1.0, 1e-7])
def test_blocks_of_the_long_side_do_not_change_the_angles(shape, last, monkeypatch):
    generator = np.random.default_rng(0)
    u, v = (np.linalg.qr(generator.normal(size=(side, 20)))[0] for side in shape)
    s = np.linspace(2.0, 1.0, 20)
    s[4:] *= last  # singular values too small for their vectors to be images over lengths
    before = (u * s) @ v.T
    after = before + 1e-8 * generator.normal(size=shape)
    whole = metrics.principal_angles(torch.from_numpy(before), torch.from_numpy(after), k=6)
    monkeypatch.setattr("opdgeom_utils.linalg.gram.BLOCK_ENTRIES", 60)
    blocks = metrics.principal_angles(torch.from_numpy(before), torch.from_numpy(after), k=6)
    (u0, _, vh0), (u1, _, vh1) = (np.linalg.svd(w, full_matrices=False) for w in (before, after))
    for side, bases in (("left_deg", (u0[:, :6], u1[:, :6])), ("right_deg", (vh0[:6].T, vh1[:6].T))):
        expected = np.degrees(np.sort(scipy.linalg.subspace_angles(*bases)))
        np.testing.assert_allclose(getattr(whole, side).numpy(), expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(getattr(blocks, side).numpy(), expected, rtol=0, atol=1e-5)


def test_identical_matrices_score_zero_even_without_a_gap():
    for w in (torch.eye(12), torch.randn(20, 14, generator=torch.Generator().manual_seed(3)), torch.zeros(5, 4)):
        angles = metrics.principal_angles(w, w, k=3)
        assert float(torch.cat([angles.left_deg, angles.right_deg]).max()) < 1e-9


def test_low_precision_input_is_measured_in_float64():
    w = torch.randn(16, 12, generator=torch.Generator().manual_seed(1)).bfloat16()
    angles = metrics.principal_angles(w, w.float(), k=4)
    assert angles.left_deg.dtype == torch.float64
    assert float(angles.left_deg.max()) < 1e-9


def test_similarity_by_hand():
    # Right spaces: span(e1, e2) and span(e1, (e2 + e3)/sqrt 2): shares 1 and 1/2 of two directions.
    early = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    late = torch.tensor([[0.0, 1.0, 1.0], [3.0, 0.0, 0.0]])
    assert metrics.subspace_similarity(early, late, k=2) == pytest.approx(0.75)
    assert metrics.subspace_similarity(early, late, k=1) == pytest.approx(1.0)


def test_similarity_sees_right_spaces_only_and_not_size_or_sign():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(10, 8, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(10, 10, generator=generator, dtype=torch.float64))
    assert metrics.subspace_similarity(delta, -5 * turn @ delta, k=3) == pytest.approx(1.0)
    assert metrics.subspace_similarity(delta.T, (turn @ delta).T, k=3) < 0.9


def test_similarity_equals_a_plain_decomposition_and_its_ends():
    generator = np.random.default_rng(1)
    early, late = generator.normal(size=(2, 30, 18))
    v0, v1 = (np.linalg.svd(w)[2][:4] for w in (early, late))
    computed = metrics.subspace_similarity(torch.from_numpy(early), torch.from_numpy(late), k=4)
    assert computed == pytest.approx(np.linalg.norm(v0 @ v1.T) ** 2 / 4, abs=1e-12)
    assert metrics.subspace_similarity(torch.from_numpy(early), torch.from_numpy(late), k=99) == pytest.approx(1.0)


def test_similarity_of_a_zero_update_is_undefined():
    assert math.isnan(metrics.subspace_similarity(torch.zeros(3, 3), torch.eye(3), k=1))
    assert math.isnan(metrics.subspace_similarity(torch.eye(3), torch.zeros(3, 3), k=1))


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "3"])
def test_k_must_be_a_whole_number_from_one(k):
    with pytest.raises((MetricInputError, TypeError)):
        metrics.principal_angles(torch.eye(3), torch.eye(3), k=k)


def test_meaningless_input_is_refused_in_words():
    with pytest.raises(MetricInputError, match=r"w_ref \(2, 3\), w_new \(3, 2\), expected one shape"):
        metrics.principal_angles(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(MetricInputError, match=r"w_ref has shape \(3,\), expected a matrix"):
        metrics.principal_angles(torch.ones(3), torch.ones(3))
    with pytest.raises(MetricInputError, match="delta_end has 1 NaN"):
        metrics.subspace_similarity(torch.ones(1, 2), torch.tensor([[1.0, float("nan")]]))
