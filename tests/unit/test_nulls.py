"""The nulls keep what they promise, destroy the rest, and are the same wherever they are drawn."""

import pytest
import torch

from opdgeom_utils.diagnose.nulls import identical_angles, null_generator, random_of_norm, shuffled_update
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.linalg.factors import factorize
from opdgeom_utils.metrics import update_sparsity

DELTA = torch.arange(1.0, 13.0).reshape(3, 4)


def drift_like(update, *, generator):
    return random_of_norm(tuple(update.shape), float(update.norm()), generator=generator)


def test_shuffled_keeps_entries_and_moves_them():
    shuffled = shuffled_update(DELTA, generator=null_generator(0, "w"))
    assert shuffled.shape == DELTA.shape
    assert shuffled.dtype == DELTA.dtype
    assert sorted(shuffled.flatten().tolist()) == DELTA.flatten().tolist()
    assert not torch.equal(shuffled, DELTA)


def test_shuffling_is_fair_to_a_structureless_update_in_float32_and_not_in_bf16():
    generator = torch.Generator().manual_seed(0)
    w_ref = torch.randn(200, 200, generator=generator).bfloat16()
    w_new = w_ref.float() + 2e-3 * torch.randn(200, 200, generator=generator)
    excess = {}
    for stored in (w_new, w_new.bfloat16()):
        shuffled = shuffled_update(stored.double() - w_ref.double(), generator=null_generator(0, "w"))
        null = update_sparsity(w_ref, w_ref.double() + shuffled)
        excess[stored.dtype] = null - update_sparsity(w_ref, stored)
    assert excess[torch.float32] == pytest.approx(0.0, abs=0.01)
    assert excess[torch.bfloat16] > 0.05


def test_shuffled_is_uniform_over_the_places():
    one_entry = torch.zeros(2, 2)
    one_entry[0, 0] = 1.0
    generator = null_generator(0, "uniform")
    landed = sum(shuffled_update(one_entry, generator=generator) for _ in range(2000)) / 2000
    assert torch.allclose(torch.as_tensor(landed), torch.full((2, 2), 0.25), atol=0.04)


def test_random_keeps_the_norm_and_only_the_norm():
    drift = random_of_norm((3, 4), float(DELTA.norm()), generator=null_generator(0, "w"))
    assert float(drift.norm()) == pytest.approx(float(DELTA.norm()), rel=1e-14)
    assert drift.dtype == torch.float64
    assert (drift < 0).any()
    assert not torch.any(random_of_norm((2, 2), 0.0, generator=null_generator(0, "w")))


def test_random_is_gaussian():
    drift = random_of_norm((200, 200), 200.0, generator=null_generator(0, "big")).flatten()
    assert float(drift.mean()) == pytest.approx(0.0, abs=0.02)
    assert float((drift.abs() < 1.0).double().mean()) == pytest.approx(0.6827, abs=0.01)


@pytest.mark.parametrize("draw", [shuffled_update, drift_like])
def test_draws_depend_on_seed_and_name_alone(draw):
    first = draw(DELTA, generator=null_generator(7, "layers.0.q_proj"))
    assert torch.equal(first, draw(DELTA, generator=null_generator(7, "layers.0.q_proj")))
    assert not torch.equal(first, draw(DELTA, generator=null_generator(8, "layers.0.q_proj")))
    assert not torch.equal(first, draw(DELTA, generator=null_generator(7, "layers.1.q_proj")))


def test_seed_of_a_name_is_fixed_for_ever():
    # sha256, not Python's hash(), which changes with every process.
    assert null_generator(0, "w").initial_seed() == 2529535730404094287
    assert null_generator(-3, "w").initial_seed() != null_generator(3, "w").initial_seed()


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    shuffled_update(DELTA, generator=null_generator(0, "w"))
    drift_like(DELTA, generator=null_generator(0, "w"))
    assert torch.equal(torch.rand(1), expected)


def test_identical_matrices_turn_by_rounding_only():
    w = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    angles = identical_angles(factorize(w, cuts=(4,)), k=4)
    assert float(torch.cat([angles.left_deg, angles.right_deg]).max()) < 1e-12


def test_meaningless_input_is_refused_in_words():
    with pytest.raises(MetricInputError, match="delta_w has 1 NaN"):
        shuffled_update(torch.tensor([float("nan")]), generator=null_generator(0, "w"))
    with pytest.raises(MetricInputError, match="seed is True"):
        null_generator(True, "w")
