"""The shared factors against a plain float64 decomposition, on easy and on awkward matrices."""

import numpy as np
import pytest
import torch

from opdgeom_utils.linalg.factors import factorize, singular_values


def _awkward_matrices():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rotation, _ = torch.linalg.qr(normal(20, 20))
    steep = rotation @ torch.diag(torch.logspace(0, -14, 20, dtype=torch.float64)) @ rotation.T
    return {
        "square": normal(24, 24),
        "tall": normal(40, 12),
        "wide": normal(12, 40),
        "low rank": normal(30, 3) @ normal(3, 20),
        "repeated values": torch.eye(10, dtype=torch.float64),
        "steep spectrum": steep,
        "zero": torch.zeros(6, 4, dtype=torch.float64),
        "zero rows": torch.cat([normal(3, 8), torch.zeros(4, 8, dtype=torch.float64)]),
        "row": normal(1, 9),
        "column": normal(9, 1),
        "entry": torch.tensor([[-2.0]], dtype=torch.float64),
        "tiny": normal(8, 8) * 1e-200,
        "huge": normal(8, 8) * 1e200,
        "bf16": normal(16, 10).bfloat16(),
    }


AWKWARD = _awkward_matrices()


@pytest.mark.parametrize("name", AWKWARD)
def test_singular_values_equal_a_plain_decomposition(name):
    w = AWKWARD[name]
    plain = np.linalg.svd(w.double().numpy(), compute_uv=False)
    for computed in (factorize(w, cuts=(3,)).s, singular_values(w)):
        np.testing.assert_allclose(computed.numpy(), plain, rtol=1e-9, atol=1e-13 * plain[0])


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("r", [1, 3, 100])
def test_vectors_are_orthonormal_and_rebuild_the_best_approximation(name, r):
    w = AWKWARD[name].double()
    factors = factorize(w, cuts=(r,))
    size = min(r, *w.shape)
    assert factors.u.shape == (w.shape[0], size)
    assert factors.vh.shape == (size, w.shape[1])
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(factors.u.T @ factors.u, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(factors.vh @ factors.vh.T, identity, rtol=0, atol=1e-12)
    plain = torch.linalg.svdvals(w / w.abs().max().clamp(min=1e-300)) * w.abs().max()
    residual = (w - (factors.u * factors.s[:size]) @ factors.vh) / plain[0].clamp(min=1e-300)
    best = (plain[size:] / plain[0].clamp(min=1e-300)).norm()
    assert float(residual.norm()) == pytest.approx(float(best), abs=1e-9)


def test_gap_is_relative_and_says_when_there_is_none():
    factors = factorize(torch.diag(torch.tensor([4.0, 2.0, 2.0])), cuts=(3,))
    assert factors.relative_gap(1) == pytest.approx(0.5)
    assert factors.relative_gap(2) == pytest.approx(0.0, abs=1e-15)
    assert factors.relative_gap(3) == factors.relative_gap(99) == pytest.approx(0.5)
    assert np.isnan(factorize(torch.zeros(2, 2), cuts=(1,)).relative_gap(1))


def test_leading_values_of_a_low_rank_matrix_keep_their_accuracy():
    w = torch.zeros(50, 30)
    w[0, 0], w[1, 1] = 3.0, 1e-5
    assert singular_values(w, leading=1)[0] == 3.0
    assert float(singular_values(w, leading=2)[1]) == pytest.approx(float(torch.tensor(1e-5)), rel=1e-9)
