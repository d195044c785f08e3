"""Gram matrices and their eigenvalues: sizes, blocks, proofs."""

import numpy as np
import pytest
import torch

from opdgeom_utils.linalg import gram as module
from opdgeom_utils.linalg.gram import TallMatrix, eigenvalues, frobenius_norm, gram_of, largest_eigenvalue

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5), (1, 7), (7, 1), (1, 1)])
@pytest.mark.parametrize("block_entries", [1, 10, 2**22])
def test_blocks_do_not_change_the_gram_matrix(shape, block_entries, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ENTRIES", block_entries)
    w = normal(*shape)
    tall = TallMatrix.of(w)
    long = w if shape[0] >= shape[1] else w.T
    torch.testing.assert_close(tall.gram() * tall.scale**2, long.T @ long)
    torch.testing.assert_close(tall.images(torch.eye(min(shape)).double()) * tall.scale, long)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_a_sum_is_made_block_by_block(shape, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 10)
    w, other = normal(*shape).float(), normal(*shape)
    for tall, whole in ((TallMatrix.of(w, plus=other), w + other), (TallMatrix.of(w, minus=other), w - other)):
        assert tall.scale == TallMatrix.of(whole).scale
        torch.testing.assert_close(tall.gram(), TallMatrix.of(whole).gram())


@pytest.mark.parametrize("view", ["rows", "columns", "slice of columns"])
def test_memory_order_does_not_change_the_product(view):
    w = normal(6, 8)
    block = {"rows": w, "columns": w.T, "slice of columns": w[:, 2:5]}[view]
    torch.testing.assert_close(gram_of(block), block.T @ block)


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1.0, 1e200])
def test_the_scale_is_a_power_of_two_that_neither_overflows_nor_vanishes(size):
    tall = TallMatrix.of(torch.tensor([[3.0, -5.0]], dtype=torch.float64) * size)
    assert 1.0 <= float(next(tall.blocks()).abs().max()) < 2.0
    assert float(np.frexp(tall.scale)[0]) == 0.5
    assert frobenius_norm(torch.tensor([3.0, -4.0], dtype=torch.float64) * size) == pytest.approx(5.0 * size)


def test_norm_of_zeros():
    assert frobenius_norm(torch.zeros(3, 2)) == 0.0


@pytest.mark.parametrize("kind", ["gaussian", "repeated", "zero", "low rank", "one direction"])
def test_the_largest_eigenvalue_of_large_matrices_is_proven(kind):
    n = module.LANCZOS_FROM + 10
    block = {
        "gaussian": lambda: normal(2 * n, n),
        "repeated": lambda: torch.eye(n, dtype=torch.float64),
        "zero": lambda: torch.zeros(n, n, dtype=torch.float64),
        "low rank": lambda: normal(n, 3) @ normal(3, n),
        "one direction": lambda: torch.outer(normal(n), normal(n)),
    }[kind]()
    square = gram_of(block)
    expected = float(np.linalg.eigvalsh(square.numpy())[-1])
    assert float(largest_eigenvalue(square)) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_a_wrong_answer_of_the_search_is_caught(monkeypatch):
    square = gram_of(normal(400, module.LANCZOS_FROM))
    monkeypatch.setattr(module, "_lanczos", lambda gram: 0.999 * float(eigenvalues(gram)[0]))
    assert float(largest_eigenvalue(square)) == float(eigenvalues(square)[0])
