"""Counting over 16-bit codes against plain comparisons and a plain sort."""

import numpy as np
import pytest
import torch

from opdgeom_utils.linalg import bf16_bits as codes
from opdgeom_utils.linalg.bf16_bits import differing, is_finite, lowest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_differ_exactly_where_values_do(dtype):
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0**-14, 1.5], dtype=dtype)
    left, right = values.repeat_interleave(6), values.repeat(6)
    assert torch.equal(differing(left, right), left.float() != right.float())
    square, other = left.reshape(6, 6).T, right.reshape(6, 6)
    assert torch.equal(differing(square, other), square.float() != other.float())


@pytest.mark.parametrize("kind", ["normal", "few values", "ascending", "periodic"])
@pytest.mark.parametrize("part", [1e-5, 0.3, 1.0])
def test_the_lowest_of_many_equal_a_stable_sort(kind, part):
    n = 70_000
    drawn = np.random.default_rng(0).normal(size=n)
    made = {
        "normal": abs(drawn * 3000).astype(np.int16),
        "few values": abs(drawn).astype(np.int16),
        "ascending": np.sort(abs(drawn * 3000)).astype(np.int16),
        "periodic": np.where(np.arange(n) % codes.SAMPLE_STRIDE == 0, 7, abs(drawn * 3000)).astype(np.int16),
    }[kind]
    count = round(part * n)
    expected = np.zeros(n, dtype=bool)
    expected[np.argsort(made, kind="stable")[:count]] = True
    np.testing.assert_array_equal(lowest(torch.from_numpy(made), count).numpy(), expected)
    assert codes._binned_threshold(torch.from_numpy(made), count) == codes._threshold(made, count)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_bad_entry_is_found_in_any_dtype(dtype):
    values = torch.linspace(-2, 2, 50).to(dtype)
    assert is_finite(values)
    for bad in (torch.nan, torch.inf, -torch.inf):
        spoiled = values.clone()
        spoiled[17] = torch.tensor(bad).to(dtype)
        assert not is_finite(spoiled)
