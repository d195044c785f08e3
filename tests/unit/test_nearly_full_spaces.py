"""Angles between spaces of more than half of all dimensions, held against forty digits and plain decompositions."""

import dataclasses

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch

from opdgeom_utils import metrics
from opdgeom_utils.linalg.factors import factorize
from opdgeom_utils.metrics import subspaces

SHAPES = [(9, 9), (13, 9), (9, 13)]


def _matrix(shape, s, seed=0):
    generator = np.random.default_rng(seed)
    u, v = (np.linalg.qr(generator.normal(size=(side, len(s))))[0] for side in shape)
    return (u * np.asarray(s)) @ v.T


def _angles(before, after, k):
    angles = metrics.principal_angles(torch.from_numpy(before), torch.from_numpy(after), k=k)
    return angles.left_deg.numpy(), angles.right_deg.numpy()


def _leading_right(w, k):
    values, vectors = mpmath.eigsy(w.T * w)
    first = sorted(range(len(values)), key=lambda i: -values[i])[:k]
    return mpmath.matrix([[vectors[row, i] for i in first] for row in range(w.cols)])


def _exact(before, after, k):
    """Angles of the left and of the right spaces to some thirty digits: arcsines of what is left of a projection."""
    both = []
    with mpmath.workdps(40):
        for turned in (False, True):
            w_ref, w_new = (mpmath.matrix((w if turned else w.T).tolist()) for w in (before, after))
            a, b = _leading_right(w_ref, k), _leading_right(w_new, k)
            left = b - a * (a.T * b)
            squares = mpmath.eigsy(left.T * left, eigvals_only=True)
            sines = (mpmath.sqrt(min(max(square, 0), 1)) for square in squares)
            both.append(np.array(sorted(float(mpmath.degrees(mpmath.asin(sine))) for sine in sines)))
    return both


def _plain(before, after, k):
    """Angles of both sides by LAPACK's decomposition and SciPy's formula."""
    (u0, _, vh0), (u1, _, vh1) = (np.linalg.svd(w, full_matrices=False) for w in (before, after))
    pairs = ((u0[:, :k], u1[:, :k]), (vh0[:k].T, vh1[:k].T))
    return [np.degrees(np.sort(scipy.linalg.subspace_angles(*pair))) for pair in pairs]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [5, 8])
@pytest.mark.parametrize("last", [0.3, 1e-4])
@pytest.mark.parametrize("size", [0.01, 1e-7])
def test_angles_equal_forty_digits(shape, k, last, size):
    before = _matrix(shape, np.geomspace(1.0, last, 9))
    after = before + size * np.sqrt(last) * np.random.default_rng(1).normal(size=shape)
    for side, computed, expected in zip(shape, _angles(before, after, k), _exact(before, after, k), strict=True):
        np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-8 if side == 9 else 3e-7)
        if side == 9:
            assert not computed[: 2 * k - 9].any()  # shared directions, exactly


@pytest.mark.parametrize("degrees", [1e-12, 1e-7, 1e-3, 30.0, 89.9, 90.0])
def test_a_known_rotation_keeps_its_digits(degrees):
    radians = np.radians(degrees)
    before, turn = np.diag([9.0, 8.0, 7.0, 6.0, 0.5, 0.25]), np.eye(6)
    turn[2:5:2, 2:5:2] = [[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]]
    for matrix, moved in ((before @ turn, 1), (turn @ before, 0)):
        found = _angles(before, matrix, 4)
        np.testing.assert_allclose(found[moved], [0, 0, 0, degrees], rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(found[1 - moved], 0, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_whole_short_space_does_not_move_and_k_is_clipped(shape):
    before, after = (_matrix(shape, np.linspace(2, 1, 9), seed) for seed in (0, 1))
    for at_nine, at_more, side in zip(_angles(before, after, 9), _angles(before, after, 512), shape, strict=True):
        assert len(at_nine) == 9
        assert np.array_equal(at_nine, at_more)
        assert at_nine.any() == (side > 9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("s", [[1.0] * 9, [3.0] * 4 + [1.0] * 5, [3.0] * 6 + [0.0] * 3, [0.0] * 9])
def test_identical_matrices_score_zero_whatever_their_gaps(shape, s):
    w = _matrix(shape, s)
    assert max(angles.max() for angles in _angles(w, w.copy(), 6)) < 1e-9
    factors = factorize(torch.from_numpy(w), cuts=(6,))
    same = subspaces.angles_between(factors, factors, k=6)
    assert float(torch.cat([same.left_deg, same.right_deg]).max()) < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_ties_at_k_give_some_pair_of_leading_spaces(shape):
    before = _matrix(shape, [3.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5])
    after = before + 1e-3 * np.random.default_rng(1).normal(size=shape)
    for angles in _angles(before, after, 6):
        assert np.all(np.diff(angles) >= 0)
        assert 0 <= angles[0] <= angles[-1] <= 90
        assert angles[2] < 0.1  # the three leading directions and the shared ones are not arbitrary


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-7])
def test_spaces_of_matrices_without_full_rank(shape, size):
    before = _matrix(shape, [3.0, 2.5, 2.0, 1.8, 1.5, 1.0, 0.0, 0.0, 0.0])
    after = before + size * np.outer(*(np.random.default_rng(side).normal(size=side) for side in shape))
    for computed, expected in zip(_angles(before, after, 6), _plain(before, after, 6), strict=True):
        np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-6)


def _roads(monkeypatch):
    taken, plain = [], subspaces._long_angles_deg
    monkeypatch.setattr(subspaces, "_long_angles_deg", lambda *args: (taken.append(args), plain(*args))[1])
    return taken


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-2, 1e-5, 1e-9])
def test_no_long_vectors_are_made_for_an_update(shape, size, monkeypatch):
    taken = _roads(monkeypatch)
    before = _matrix(shape, np.linspace(2, 0.5, 9))
    _angles(before, before + size * np.random.default_rng(1).normal(size=shape), 6)
    assert not taken


@pytest.mark.parametrize("shape", [(13, 9), (9, 13)])
@pytest.mark.parametrize("other", ["unrelated", "far larger", "steep"])
def test_where_an_update_would_be_inexact_long_vectors_are_made(shape, other, monkeypatch):
    taken = _roads(monkeypatch)
    before = _matrix(shape, np.geomspace(1, 1e-7, 9) if other == "steep" else np.linspace(2, 0.5, 9))
    after = before + 1e-9 * np.random.default_rng(1).normal(size=shape) if other == "steep" else _matrix(
        shape, np.linspace(2, 0.5, 9) * (1e200 if other == "far larger" else 1), seed=1
    )  # fmt: skip
    for computed, expected in zip(_angles(before, after, 6), _plain(before, after, 6), strict=True):
        np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-5)
    assert taken


@pytest.mark.parametrize("shape", SHAPES)
def test_units_and_blocks_do_not_change_the_angles(shape, monkeypatch):
    before = _matrix(shape, np.linspace(2, 0.5, 9))
    after = before + 0.01 * np.random.default_rng(1).normal(size=shape)
    after *= 3  # another power of two as its unit
    kept = before.copy(), after.copy()
    whole = _angles(before, after, 6)
    assert np.array_equal(before, kept[0])
    assert np.array_equal(after, kept[1])
    monkeypatch.setattr("opdgeom_utils.linalg.gram.BLOCK_ENTRIES", 36)
    for found in (whole, _angles(before, after, 6)):
        for computed, expected in zip(found, _plain(before, after, 6), strict=True):
            np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("s", [np.linspace(2, 1, 9), np.geomspace(1, 1e-9, 9), [1.0] * 3 + [0.0] * 6, [0.0] * 9])
def test_what_lies_beyond_completes_the_short_side(shape, s):
    w = torch.from_numpy(_matrix(shape, s))
    for r in (4, 5, 8, 9, 11):
        factors = factorize(w, cuts=(r,))
        r = min(r, 9)
        assert factors.beyond.shape == (9, 9 - r if 2 * r > 9 else 0)
        every = torch.cat([factors.short, factors.beyond], dim=1)
        torch.testing.assert_close(every.T @ every, torch.eye(every.shape[1]).double(), rtol=0, atol=1e-12)
        fewer = dataclasses.replace(factors, beyond=factors.beyond[:, :0])
        new = factorize(w + 1e-3 * torch.arange(w.numel()).reshape(w.shape) % 7, cuts=(r,))
        if factors.has_gap(r) and new.has_gap(r) and factors.has_long_lengths(9):
            for side in ("left_deg", "right_deg"):
                few, all_ = (getattr(subspaces.angles_between(f, new, k=r), side) for f in (factors, fewer))
                torch.testing.assert_close(few, all_, rtol=0, atol=2e-6)
