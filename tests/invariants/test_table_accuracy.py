"""The table against a plain float64 decomposition of both matrices, on matrices made to be awkward."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from opdgeom_utils import diagnose_pair, metrics
from opdgeom_utils.linalg import gram, symmetric_eigen
from opdgeom_utils.linalg.factors import MIN_GAP, factorize

SHAPES = [(1, 1), (1, 30), (30, 1), (7, 7), (40, 12), (12, 40), (33, 33), (4096, 3), (2, 4096), (300, 64)]
SPECTRA = ["flat", "steep", "very steep", "repeated", "low rank", "tiny gap", "heavy tail"]


def spectrum(kind, p, k):
    ranks = np.arange(1, p + 1, dtype=float)
    s = {
        "flat": np.linspace(2.0, 1.0, p),
        "steep": 10.0 ** (-6 * (ranks - 1) / p),
        "very steep": 10.0 ** (-14 * (ranks - 1) / p),
        "repeated": np.ones(p),
        "low rank": np.where(ranks <= max(1, p // 3), 1 / ranks, 0.0),
        "tiny gap": np.linspace(2.0, 1.0, p),
        "heavy tail": ranks**-1.2,
    }[kind].copy()
    if kind == "tiny gap" and k < p:
        s[k] = s[k - 1] * (1 - 1e-6)
    return s


@st.composite
def cases(draw):
    shape, kind = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(SPECTRA))
    p = min(shape)
    k = draw(st.integers(1, p))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    u, v = (np.linalg.qr(rng.normal(size=(side, p)))[0] for side in shape)
    w_ref = (u * spectrum(kind, p, k)) @ v.T
    moved = draw(st.sampled_from([0.0, 1e-9, 1e-5, 1e-2, 1.0]))
    size = draw(st.sampled_from([1e-310, 1e-150, 1.0, 1e30]))
    return w_ref * size, (w_ref + moved * rng.normal(size=shape) / math.sqrt(max(shape))) * size, k


def plain_row(w_ref, w_new, k):
    """Spectra, angles and stable rank from LAPACK's decomposition, scaled so that nothing under- or overflows."""
    unit = 2.0 ** math.frexp(abs(w_ref).max())[1]
    (u0, s0, vh0), (u1, s1, vh1) = (np.linalg.svd(w / unit, full_matrices=False) for w in (w_ref, w_new))
    gap = min((s[k - 1] - (s[k] if k < len(s) else 0.0)) / s[0] for s in (s0, s1))
    angles = [
        np.degrees(scipy.linalg.subspace_angles(a[:, :k], b[:, :k])) if k < len(a) else np.zeros(k)
        for a, b in ((u0, u1), (vh0.T, vh1.T))
    ]
    delta = (w_new - w_ref) / unit
    rank = (np.linalg.norm(delta) / np.linalg.norm(delta, 2)) ** 2 if delta.any() else math.nan
    return np.linalg.norm(s1 - s0) / np.linalg.norm(s0), rank, gap, angles


@settings(max_examples=80)
@given(cases())
def test_the_table_equals_a_plain_decomposition(case):
    w_ref, w_new, k = case
    before, after = (nn.Linear(*w.shape[::-1], bias=False, dtype=torch.float64) for w in (w_ref, w_new))
    for layer, w in ((before, w_ref), (after, w_new)):
        layer.weight.data.copy_(torch.from_numpy(w))
    row = diagnose_pair(before, after, k=k, rank=2, nulls=False).iloc[0]
    shift, rank, gap, (left, right) = plain_row(w_ref, w_new, k)
    assert row["normalized_spectral_shift"] == pytest.approx(shift, rel=1e-8, abs=2e-13)
    assert row["stable_rank"] == pytest.approx(rank, rel=1e-8, nan_ok=True)
    if gap > 2 * MIN_GAP:
        assert row["angles_defined"]
        for side, angles in (("left", left), ("right", right)):
            assert row[f"{side}_angle_max_deg"] == pytest.approx(angles.max(), abs=1e-5)
            assert row[f"{side}_angle_mean_deg"] == pytest.approx(angles.mean(), abs=1e-5)
    elif gap < MIN_GAP / 2:
        whole = [k == side for side in w_ref.shape]
        assert bool(row["angles_defined"]) == all(whole)
        for side, is_whole in zip(("left", "right"), whole, strict=True):
            assert (row[f"{side}_angle_max_deg"] == 0.0) if is_whole else math.isnan(row[f"{side}_angle_max_deg"])


def is_visible(before, after, eta):
    """The paper's rule, in fractions: a change of more than ``eta`` times the larger of two bf16 numbers."""
    return abs(Fraction(after) - Fraction(before)) > Fraction(eta) * max(abs(Fraction(before)), abs(Fraction(after)))


@settings(max_examples=60)
@given(cases(), st.sampled_from([0.0, 1e-3, 0.5]))
def test_the_update_mask_is_exact(case, eta):
    w_ref, w_new, _ = case
    before, after = (torch.from_numpy(w) for w in (w_ref, w_new))
    mask = metrics.update_mask(before, after, eta=eta).flatten()
    shown = [w.bfloat16().double().flatten() for w in (before, after)]
    places = torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(0))[:400]
    for place in places.tolist():
        assert bool(mask[place]) == is_visible(float(shown[0][place]), float(shown[1][place]), eta)


@settings(max_examples=60)
@given(cases(), st.sampled_from([0.05, 0.3, 0.9]))
def test_the_reference_masks_hold_the_right_entries(case, alpha):
    w = case[0]
    tensor, count = torch.from_numpy(w), round(alpha * w.size)
    low = metrics.low_magnitude_mask(tensor, alpha=alpha).numpy()
    assert low.sum() == count
    assert abs(w)[low].max(initial=0.0) <= abs(w)[~low].min(initial=math.inf)
    principal = metrics.principal_mask(tensor, rank=2, alpha=alpha).numpy()
    assert principal.sum() == count
    unit = 2.0 ** math.frexp(abs(w).max())[1]
    u, s, vh = np.linalg.svd(w / unit, full_matrices=False)
    if len(s) <= 2 or s[1] - s[2] > 1e-6 * s[0]:  # without a gap at the rank the mask is arbitrary
        leading = abs((u[:, :2] * s[:2]) @ vh[:2])
        assert leading[principal].min(initial=math.inf) >= leading[~principal].max(initial=0.0) - 1e-9 * s[0]


@pytest.mark.parametrize("decay", [0.5, 3.0, 5.0])
def test_a_narrow_gap_deep_in_the_spectrum_is_resolved(decay):
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(side, 40)))[0] for side in (60, 40))
    s = np.arange(1, 41, dtype=float) ** -decay
    factors = factorize(torch.from_numpy((u * s) @ v.T), cuts=(20,))
    angle = np.degrees(scipy.linalg.subspace_angles(v[:, :20], factors.vh.numpy().T)).max()
    assert factors.has_gap(20)
    assert angle < 1e-5


class LargestTensor(TorchDispatchMode):
    """Records the largest number of bytes that one operation returned."""

    n_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.n_bytes = max(self.n_bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("nulls", ["expected", "exact"])
@pytest.mark.parametrize("shape", [(6000, 16), (16, 6000)])
def test_nothing_larger_than_the_matrix_in_float64_is_ever_made(shape, nulls):
    generator = torch.Generator().manual_seed(0)
    before, after = (nn.Linear(*shape[::-1], bias=False, dtype=torch.bfloat16) for _ in range(2))
    before.weight.data.copy_(torch.randn(shape, generator=generator))
    after.weight.data.copy_(before.weight.data + 0.01 * torch.randn(shape, generator=generator))
    with LargestTensor() as largest:
        diagnose_pair(before, after, k=4, rank=4, nulls=nulls)
    assert largest.n_bytes <= 8 * 6000 * 16


DEVICES = ["cpu", *[d for d in ("cuda", "xpu") if getattr(torch, d).is_available()]]


@pytest.mark.parametrize("nulls", ["expected", "exact"])
@pytest.mark.parametrize("device", DEVICES)
def test_devices_agree(device, nulls, monkeypatch):
    """The processor is asked to go the road of the others: Gram matrices and eigenvalues by torch."""
    generator = torch.Generator().manual_seed(0)
    before, after = (nn.Linear(48, 96, bias=False) for _ in range(2))
    before.weight.data.copy_(torch.randn(96, 48, generator=generator))
    after.weight.data.copy_(before.weight.data + 0.01 * torch.randn(96, 48, generator=generator))
    here = diagnose_pair(before, after, k=8, rank=8, nulls=nulls, device="cpu").iloc[0]
    asked = []
    for module in (gram, symmetric_eigen) if device == "cpu" else ():
        monkeypatch.setattr(module, "on_cpu", lambda tensor: bool(asked.append(tensor)))
    there = diagnose_pair(before, after, k=8, rank=8, nulls=nulls, device=device).iloc[0]
    assert asked or device != "cpu"
    exact = [column for column in here.index if "sparsity" in column or "overlap" in column]
    assert here[exact].tolist() == there[exact].tolist()
    words = {"name", "module", "shape", "dtype", "layer", "angles_defined", "note", "null_note"}
    for column in set(here.index) - set(exact) - words:
        assert there[column] == pytest.approx(here[column], rel=1e-8, abs=1e-6 if "deg" in column else 1e-12), column


def test_the_road_of_other_devices_gives_the_same_numbers(monkeypatch):
    """Run the torch branches that an accelerator takes, on the CPU."""
    w = torch.randn(30, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    here = gram.gram_of(w), gram.eigenvalues(w.T @ w), gram.eigenpairs(w.T @ w)[0]
    with monkeypatch.context() as patch:
        patch.setattr(gram, "on_cpu", lambda tensor: False)
        there = gram.gram_of(w), gram.eigenvalues(w.T @ w), gram.eigenpairs(w.T @ w)[0]
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b)
