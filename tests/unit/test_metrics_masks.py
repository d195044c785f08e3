"""Masks and their overlaps against hand-worked cases and a plain sort."""

import math

import numpy as np
import pytest
import torch

from opdgeom_utils import metrics
from opdgeom_utils.errors import MetricInputError


def _first_by_sort(score, count):
    """The ``count`` highest scores, ties in row-major order, by a stable sort."""
    mask = np.zeros(score.size, dtype=bool)
    mask[np.argsort(-score.ravel(), kind="stable")[:count]] = True
    return mask.reshape(score.shape)


def test_low_magnitude_by_hand_with_ties_in_row_major_order():
    w = torch.tensor([[2.0, -1.0, 1.0], [1.0, 0.0, -3.0]])
    assert metrics.low_magnitude_mask(w, alpha=0.5).tolist() == [[False, True, True], [False, True, False]]
    assert metrics.low_magnitude_mask(torch.zeros(2, 5), alpha=0.3).tolist() == [[True] * 3 + [False] * 2, [False] * 5]


def test_principal_by_hand():
    # Rank 1 of diag(3, 2, 1) is its first entry, rank 2 its first two, rank 3 itself.
    w = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    assert metrics.principal_mask(w, rank=1, alpha=1 / 9).nonzero().tolist() == [[0, 0]]
    assert metrics.principal_mask(w, rank=2, alpha=2 / 9).nonzero().tolist() == [[0, 0], [1, 1]]
    assert metrics.principal_mask(w, rank=3, alpha=3 / 9).nonzero().tolist() == [[0, 0], [1, 1], [2, 2]]
    assert metrics.principal_mask(w, rank=1, alpha=2 / 9).nonzero().tolist() == [[0, 0], [0, 1]]


def test_rounding_noise_does_not_decide_a_tie():
    # All entries of an outer product of signs are equal in size: the first half in row-major order is taken.
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    mask = metrics.principal_mask(torch.outer(signs, signs.flip(0)) / 3, rank=2, alpha=0.5)
    assert mask.flatten().tolist() == [True] * 18 + [False] * 18


@pytest.mark.parametrize("alpha", [0.0, 0.001, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(13, 17), (1, 9), (9, 1), (1, 1)])
def test_counts_are_exact_and_equal_a_sort(shape, alpha):
    w = np.random.default_rng(0).integers(-3, 4, size=shape).astype(np.float64)  # many ties
    count = round(alpha * w.size)
    low = metrics.low_magnitude_mask(torch.from_numpy(w), alpha=alpha)
    whole = metrics.principal_mask(torch.from_numpy(w), rank=99, alpha=alpha)
    assert int(low.sum()) == int(whole.sum()) == count
    np.testing.assert_array_equal(low.numpy(), _first_by_sort(-abs(w), count))
    np.testing.assert_array_equal(whole.numpy(), _first_by_sort(abs(w), count))


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (25, 25)])
def test_principal_equals_a_plain_reconstruction(shape):
    w = np.random.default_rng(3).normal(size=shape)
    u, s, vh = np.linalg.svd(w, full_matrices=False)
    expected = _first_by_sort(abs((u[:, :5] * s[:5]) @ vh[:5]), round(0.3 * w.size))
    np.testing.assert_array_equal(metrics.principal_mask(torch.from_numpy(w), rank=5).numpy(), expected)


def test_a_zero_matrix_gives_the_first_entries():
    assert metrics.principal_mask(torch.zeros(3, 4), rank=1, alpha=0.25).flatten().tolist() == [True] * 3 + [False] * 9


def test_low_precision_is_ranked_exactly():
    w = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = _first_by_sort(-w.double().abs().numpy(), 360)
    np.testing.assert_array_equal(metrics.low_magnitude_mask(w, alpha=0.3).numpy(), expected)


def test_overlap_by_hand():
    reference = torch.tensor([[True, True], [False, False]])
    assert metrics.mask_overlap(reference, torch.tensor([[True, False], [True, True]])) == pytest.approx(1 / 3)
    assert metrics.mask_overlap(reference, reference) == 1.0
    assert metrics.mask_overlap(reference, ~reference) == 0.0
    assert math.isnan(metrics.mask_overlap(reference, torch.zeros(2, 2, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.principal_mask(torch.eye(3), rank=0), ["rank is 0", "at least 1"]),
        (lambda: metrics.principal_mask(torch.eye(3), alpha=1.5), ["alpha is 1.5", "0 to 1"]),
        (lambda: metrics.low_magnitude_mask(torch.eye(3), alpha=-0.1), ["alpha is -0.1"]),
        (lambda: metrics.low_magnitude_mask(torch.ones(3)), ["(3,)", "matrix"]),
        (lambda: metrics.mask_overlap(torch.ones(2), torch.ones(2).bool()), ["reference_mask", "float32", "boolean"]),
        (lambda: metrics.mask_overlap(torch.ones(2).bool(), torch.ones(3).bool()), ["(2,)", "(3,)", "one shape"]),
    ],
)
def test_meaningless_input_is_refused_in_words(call, words):
    with pytest.raises(MetricInputError) as caught:
        call()
    assert all(word in str(caught.value) for word in words)
