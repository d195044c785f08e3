"""Update sparsity against cases worked by hand."""

import pytest
import torch

from opdgeom_utils import metrics
from opdgeom_utils.errors import MetricInputError


def test_half_a_step_of_bf16_is_the_border_of_what_shows():
    # Between 1 and 2 a bf16 step is 2**-7. Exactly half a step rounds to the even neighbour, which is 1.
    before = torch.ones(4)
    after = torch.tensor([1.0, 1 + 2**-9, 1 + 2**-8, 1 + 2**-8 + 2**-12])
    assert metrics.update_mask(before, after).tolist() == [False, False, False, True]
    assert metrics.update_sparsity(before, after) == 0.75


def test_small_weights_show_changes_that_large_ones_hide():
    before = torch.tensor([[1.0, 0.001]])
    after = before + 1e-4
    assert metrics.update_mask(before, after).tolist() == [[False, True]]


def test_sign_flips_and_moves_away_from_zero_show():
    before = torch.tensor([0.5, 0.0, 0.0, 2.0])
    after = torch.tensor([-0.5, 1e-30, 0.0, 0.0])
    assert metrics.update_mask(before, after).tolist() == [True, True, False, True]


def test_eta_is_inert_below_its_floor_and_acts_above():
    before = torch.tensor([1.0, 1.0, 1.0])
    after = torch.tensor([1 + 2**-7, 1 - 2**-8, 1.0])  # the smallest steps up and down from 1
    for eta in (0.0, 1e-6, 1e-3, 3.9e-3):
        assert metrics.update_mask(before, after, eta=eta).tolist() == [True, True, False]
    assert metrics.update_mask(before, after, eta=5e-3).tolist() == [True, False, False]
    assert metrics.update_sparsity(before, after, eta=1e-2) == 1.0


def test_dtypes_may_differ_and_inputs_are_untouched():
    before, after = torch.ones(2, 2, dtype=torch.bfloat16), torch.full((2, 2), 1.001)
    kept = after.clone()
    assert metrics.update_sparsity(before, after) == 1.0
    assert torch.equal(after, kept)
    assert after.dtype == torch.float32


def test_single_rows_columns_and_entries():
    for shape in ((1, 5), (5, 1), (1, 1)):
        assert metrics.update_sparsity(torch.ones(shape), torch.ones(shape)) == 1.0
        assert metrics.update_sparsity(torch.ones(shape), 2 * torch.ones(shape)) == 0.0


@pytest.mark.parametrize(
    ("before", "after", "eta", "words"),
    [
        (torch.ones(2, 2), torch.ones(2, 3), 1e-3, ["w_ref (2, 2)", "w_new (2, 3)", "one shape"]),
        (torch.ones(2), torch.tensor([1.0, float("nan")]), 1e-3, ["w_new", "1 NaN or infinite"]),
        (torch.tensor([float("inf"), 1.0]), torch.ones(2), 1e-3, ["w_ref", "1 NaN or infinite"]),
        (torch.ones(2, dtype=torch.int64), torch.ones(2), 1e-3, ["w_ref", "int64", "floating"]),
        (torch.ones(0), torch.ones(0), 1e-3, ["w_ref", "no entries"]),
        (torch.ones(2), torch.ones(2), -1e-3, ["eta", "-0.001", "0 to 1"]),
        (torch.ones(2), torch.ones(2), float("nan"), ["eta", "nan"]),
        (torch.ones(2), torch.full((2,), 3.4e38), 1e-3, ["w_new", "bf16"]),
        ([1.0], torch.ones(1), 1e-3, ["w_ref", "list", "torch.Tensor"]),
    ],
)
def test_meaningless_input_is_refused_in_words(before, after, eta, words):
    with pytest.raises(MetricInputError) as caught:
        metrics.update_sparsity(before, after, eta=eta)
    assert all(word in str(caught.value) for word in words)
