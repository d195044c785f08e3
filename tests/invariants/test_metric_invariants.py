"""What must hold for every matrix: symmetries, bounds, and what the definitions leave unchanged."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from opdgeom_utils import metrics

EXAMPLES = settings(max_examples=40)
SIDES = npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7)
ENTRIES = st.one_of(st.integers(-4, 4).map(float), st.floats(-8, 8, allow_nan=False, width=32))


@st.composite
def matrices(draw):
    """Small matrices: often with ties, zeros, low rank or repeated singular values."""
    values = draw(npst.arrays(np.float64, draw(SIDES), elements=ENTRIES))
    return torch.from_numpy(np.where(abs(values) < 1e-6, 0.0, values))


@st.composite
def pairs(draw):
    """Two matrices of one shape."""
    shape = draw(SIDES)
    first, second = (draw(npst.arrays(np.float64, shape, elements=ENTRIES)) for _ in range(2))
    return torch.from_numpy(first), torch.from_numpy(second)


def _orthogonal(size, seed):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double())[0]


def _gap(w, k):
    s = torch.cat([torch.linalg.svdvals(w), torch.zeros(1, dtype=torch.float64)])
    return float(s[k - 1] - s[k]) / max(float(s[0]), 1e-300)


@EXAMPLES
@given(pairs())
def test_sparsity_is_symmetric_bounded_and_counts_its_mask(pair):
    sparsity = metrics.update_sparsity(*pair)
    assert 0.0 <= sparsity <= 1.0
    assert sparsity == metrics.update_sparsity(*reversed(pair))
    assert sparsity == pytest.approx(1 - float(metrics.update_mask(*pair).double().mean()))
    assert metrics.update_sparsity(pair[0], pair[0]) == 1.0


@EXAMPLES
@given(pairs(), st.integers(-20, 20))
def test_powers_of_two_do_not_change_the_mask(pair, power):
    assume(all(bool((w[w != 0].abs() > 1e-20).all()) for w in pair))
    scaled = [w * 2.0**power for w in pair]
    assert torch.equal(metrics.update_mask(*pair), metrics.update_mask(*scaled))


@EXAMPLES
@given(pairs(), st.floats(0, 0.0038))
def test_every_small_eta_means_not_equal_after_the_cast(pair, eta):
    assume(all(bool((w[w != 0].abs() > 1e-20).all()) for w in pair))
    before, after = (w.float().bfloat16() for w in pair)
    assert torch.equal(metrics.update_mask(*pair, eta=eta), before != after)


@EXAMPLES
@given(pairs(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_eta_never_marks_more(pair, eta_a, eta_b):
    low, high = sorted((eta_a, eta_b))
    assert not bool((metrics.update_mask(*pair, eta=high) & ~metrics.update_mask(*pair, eta=low)).any())


@EXAMPLES
@given(pairs(), st.integers(1, 8))
def test_transposing_swaps_left_and_right(pair, k):
    size = min(k, *pair[0].shape)
    assume(all(_gap(w, size) > 1e-3 for w in pair))
    angles = metrics.principal_angles(*pair, k=k)
    swapped = metrics.principal_angles(pair[0].T, pair[1].T, k=k)
    torch.testing.assert_close(angles.left_deg, swapped.right_deg, rtol=0, atol=1e-5)
    torch.testing.assert_close(angles.right_deg, swapped.left_deg, rtol=0, atol=1e-5)
    assert len(angles.left_deg) == len(angles.right_deg) == size
    for side in (angles.left_deg, angles.right_deg):
        assert bool(((side >= 0) & (side <= 90)).all())
        assert bool((side.diff() >= 0).all())


@EXAMPLES
@given(pairs(), st.integers(1, 8), st.floats(0.01, 100))
def test_angles_ignore_order_and_size(pair, k, factor):
    assume(all(_gap(w, min(k, *w.shape)) > 1e-3 for w in pair))
    angles = metrics.principal_angles(*pair, k=k)
    other = metrics.principal_angles(-factor * pair[1], pair[0], k=k)
    torch.testing.assert_close(angles.left_deg, other.left_deg, rtol=0, atol=1e-5)
    torch.testing.assert_close(angles.right_deg, other.right_deg, rtol=0, atol=1e-5)


@EXAMPLES
@given(pairs(), st.integers(1, 8), st.integers(0, 1000))
def test_angles_ignore_a_common_rotation_and_obey_wedin(pair, k, seed):
    before, after = pair[0], pair[0] + 0.01 * pair[1]
    size = min(k, *before.shape)
    gaps = [_gap(w, size) for w in (before, after)]
    assume(min(gaps) > 1e-3)
    left, right = _orthogonal(before.shape[0], seed), _orthogonal(before.shape[1], seed + 1)
    angles = metrics.principal_angles(before, after, k=k)
    turned = metrics.principal_angles(left @ before @ right, left @ after @ right, k=k)
    torch.testing.assert_close(angles.left_deg, turned.left_deg, rtol=0, atol=1e-5)
    torch.testing.assert_close(angles.right_deg, turned.right_deg, rtol=0, atol=1e-5)
    s_before, s_after = torch.linalg.svdvals(before), torch.linalg.svdvals(after)
    gap = float(s_after[size - 1]) - (float(s_before[size]) if size < len(s_before) else 0.0)
    moved = float(torch.linalg.matrix_norm(after - before, 2))
    if gap > moved:
        largest = torch.cat([angles.left_deg, angles.right_deg]).deg2rad().sin().max()
        assert float(largest) <= moved / gap + 1e-9


@EXAMPLES
@given(matrices(), st.integers(1, 8))
def test_identical_matrices_never_turn(w, k):
    angles = metrics.principal_angles(w, w.clone(), k=k)
    assert float(torch.cat([angles.left_deg, angles.right_deg]).max()) < 1e-9


@EXAMPLES
@given(pairs(), st.integers(0, 1000), st.floats(0.01, 100))
def test_shift_ignores_rotations_and_common_scale_and_obeys_mirsky(pair, seed, factor):
    before, after = pair
    assume(float(before.norm()) > 1e-3)
    shift = metrics.normalized_spectral_shift(before, after)
    left, right = _orthogonal(before.shape[0], seed), _orthogonal(before.shape[1], seed + 1)
    assert metrics.normalized_spectral_shift(before, left @ after @ right) == pytest.approx(shift, rel=1e-9, abs=1e-12)
    assert metrics.normalized_spectral_shift(factor * before, factor * after) == pytest.approx(
        shift, rel=1e-9, abs=1e-12
    )
    assert metrics.normalized_spectral_shift(before.T, after.T) == pytest.approx(shift, rel=1e-9, abs=1e-12)
    assert shift <= float((after - before).norm() / before.norm()) + 1e-12
    s0, s1 = torch.linalg.svdvals(before), torch.linalg.svdvals(after)
    assert shift == pytest.approx(float((s1 - s0).norm() / s0.norm()), rel=1e-8, abs=1e-12)


@EXAMPLES
@given(matrices(), st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_stable_rank_lies_between_one_and_the_rank_and_ignores_rotation_and_scale(delta, seed, factor):
    rank = metrics.stable_rank(delta)
    if not bool(delta.any()):
        assert math.isnan(rank)
        return
    assert 1.0 <= rank <= int(torch.linalg.matrix_rank(delta)) + 1e-9
    turned = _orthogonal(delta.shape[0], seed) @ delta @ _orthogonal(delta.shape[1], seed + 1)
    assert metrics.stable_rank(turned) == pytest.approx(rank, rel=1e-10)
    assert metrics.stable_rank(-factor * delta) == pytest.approx(rank, rel=1e-10)
    assert metrics.stable_rank(delta.T) == pytest.approx(rank, rel=1e-10)


@EXAMPLES
@given(matrices(), st.floats(0, 1), st.integers(1, 8))
def test_masks_have_exact_sizes_grow_with_alpha_and_ignore_scale_and_sign(w, alpha, rank):
    count = round(alpha * w.numel())
    low, high = metrics.low_magnitude_mask(w, alpha=alpha), metrics.principal_mask(w, alpha=alpha, rank=rank)
    assert int(low.sum()) == int(high.sum()) == count
    assert torch.equal(low, metrics.low_magnitude_mask(-4.0 * w, alpha=alpha))
    assert torch.equal(high, metrics.principal_mask(-4.0 * w, alpha=alpha, rank=rank))
    assert not bool((metrics.low_magnitude_mask(w, alpha=alpha / 2) & ~low).any())
    assert not bool((metrics.principal_mask(w, alpha=alpha / 2, rank=rank) & ~high).any())


@EXAMPLES
@given(matrices(), st.floats(0, 1))
def test_smallest_entries_are_no_larger_than_the_rest(w, alpha):
    low = metrics.low_magnitude_mask(w, alpha=alpha)
    if 0 < int(low.sum()) < w.numel():
        assert float(w[low].abs().max()) <= float(w[~low].abs().min())


@EXAMPLES
@given(matrices(), st.floats(0, 1))
def test_overlap_with_a_mask_and_its_complement_sum_to_one(w, alpha):
    reference = metrics.low_magnitude_mask(w, alpha=alpha)
    updated = w > 0
    overlap, rest = metrics.mask_overlap(reference, updated), metrics.mask_overlap(~reference, updated)
    if bool(updated.any()):
        assert overlap + rest == pytest.approx(1.0)
    else:
        assert math.isnan(overlap)
        assert math.isnan(rest)


@EXAMPLES
@given(pairs(), st.integers(1, 8), st.floats(0.01, 100))
def test_similarity_is_symmetric_bounded_and_ignores_scale(pair, k, factor):
    assume(all(bool(w.any()) for w in pair))
    size = min(k, *pair[0].shape)
    assume(all(_gap(w, size) > 1e-3 for w in pair))
    similarity = metrics.subspace_similarity(*pair, k=k)
    assert 0.0 <= similarity <= 1.0
    assert metrics.subspace_similarity(-factor * pair[1], pair[0], k=k) == pytest.approx(similarity, abs=1e-8)
    assert metrics.subspace_similarity(pair[0], pair[0], k=k) == pytest.approx(1.0)
    cosines = metrics.principal_angles(*pair, k=k).right_deg.deg2rad().cos()
    assert float(cosines.square().mean()) == pytest.approx(similarity, abs=1e-7)


@EXAMPLES
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=12), st.data())
def test_hill_ignores_scale_and_order_and_powers_divide_it(values, data):
    k = data.draw(st.integers(2, len(values)))
    spectrum = torch.tensor(values, dtype=torch.float64)
    hill = metrics.hill_estimator(spectrum, k=k)
    assert hill > 0
    assume(hill < 1e9)
    assert metrics.hill_estimator(7.0 * spectrum.flip(0), k=k) == pytest.approx(hill, rel=1e-6)
    assert metrics.hill_estimator(spectrum**2, k=k) == pytest.approx(hill / 2, rel=1e-6)
