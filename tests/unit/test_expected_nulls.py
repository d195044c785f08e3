"""Expected nulls against the mean of many made and measured ones, and the counting of weights against one by one."""

import math

import pandas as pd
import pytest
import torch
from torch import Tensor

from opdgeom_utils import diagnose_pair, metrics
from opdgeom_utils.diagnose import expected_nulls
from opdgeom_utils.diagnose.nulls import null_generator, random_of_norm, shuffled_update
from opdgeom_utils.diagnose.settings import EXPECTED_COLUMNS, NULL_COLUMNS
from opdgeom_utils.errors import MetricInputError

K, RANK = 8, 6
MEASURES = [column.removesuffix("_shuffled") for column in EXPECTED_COLUMNS if column.endswith("_shuffled")]


def holding(w: Tensor) -> torch.nn.Module:
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
    layer.weight.data.copy_(w)
    return layer


def pair(shape: tuple[int, int], dtype: torch.dtype, size: float = 3e-3) -> tuple[Tensor, Tensor]:
    """Weights with a heavy head, and an update with Laplace's tails."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(shape[0], 12, generator=generator) @ torch.randn(12, shape[1], generator=generator)
    w = (torch.randn(shape, generator=generator) + head) / 10
    flat = torch.rand(shape, generator=generator) - 0.5
    update = -size * flat.sign() * (1 - 2 * flat.abs()).clamp(min=1e-6).log() / 2**0.5
    return w.to(dtype), w.to(dtype).double() + update.double()


def made(w: Tensor, update: Tensor, null: str, draws: int) -> pd.Series:
    """Mean of every metric over null updates that were made."""
    rows = []
    for seed in range(draws):
        generator = null_generator(seed, null)
        made = (
            shuffled_update(update, generator=generator)
            if null == "shuffled"
            else random_of_norm(tuple(update.shape), float(update.norm()), generator=generator)
        )
        rows.append(diagnose_pair(holding(w.double()), holding(w.double() + made), k=K, rank=RANK, nulls=False).iloc[0])
    return pd.DataFrame(rows)[MEASURES].astype(float).mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("shape", [(150, 90), (90, 150)], ids=["tall", "wide"])
def test_expected_is_the_mean_of_those_that_were_made(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    w, w_new = pair(shape, dtype)
    row = diagnose_pair(holding(w), holding(w_new), k=K, rank=RANK).iloc[0]
    for null in ("shuffled", "random"):
        mean = made(w, w_new - w.double(), null, 40)
        for name in MEASURES:
            found = row[f"{name}_{null}"]
            if name in ("update_sparsity", "principal_overlap", "low_magnitude_overlap"):
                assert found == pytest.approx(mean[name], abs=0.004), (name, null)
            else:
                rel = 0.15 if "max" in name else 0.08 if "angle" in name else 0.05
                assert found == pytest.approx(mean[name], rel=rel), (name, null)


def test_one_huge_entry_decides_the_stable_rank() -> None:
    update = torch.randn(60, 80, generator=torch.Generator().manual_seed(0))
    update[3, 4] = 60.0
    rms = float(update.norm()) / update.numel() ** 0.5
    found = expected_nulls._stable_rank(update.shape, rms, 60.0)
    assert found == pytest.approx(metrics.stable_rank(update), rel=0.02)
    assert expected_nulls._stable_rank(update.shape, rms, 0.0) > 3 * found


def test_columns_say_which_nulls_they_are() -> None:
    w, w_new = pair((24, 16), torch.float32)
    tables = {nulls: diagnose_pair(holding(w), holding(w_new), k=4, rank=4, nulls=nulls) for nulls in NULLS}
    assert [c for c in tables["expected"] if c in {*NULL_COLUMNS, "null_note"}] == EXPECTED_COLUMNS
    assert [c for c in tables["exact"] if c in {*NULL_COLUMNS, "null_note"}] == NULL_COLUMNS
    pd.testing.assert_frame_equal(tables["exact"], tables[True])
    plain = tables[False]
    assert not {*NULL_COLUMNS, "null_note"} & set(plain)
    pd.testing.assert_frame_equal(tables["expected"][list(plain)], plain)
    with pytest.raises(MetricInputError, match="nulls is 'some', expected 'expected', 'exact'"):
        diagnose_pair(holding(w), holding(w_new), nulls="some")


NULLS: tuple[bool | str, ...] = ("expected", "exact", True, False)


def test_large_updates_say_that_their_nulls_were_drawn() -> None:
    w, w_new = pair((200, 180), torch.float32, size=1e-4)
    small = diagnose_pair(holding(w), holding(w_new), k=K, rank=RANK).iloc[0]
    large = diagnose_pair(holding(w), holding(w.double() + 3000 * (w_new - w.double())), k=K, rank=RANK).iloc[0]
    assert (small["null_note"], large["null_note"]) == ("", expected_nulls.DRAWN)


def test_nothing_moved_and_nothing_there() -> None:
    w = torch.eye(6)
    same = diagnose_pair(holding(w), holding(w), k=2, rank=2).iloc[0]
    assert (same["update_sparsity_shuffled"], same["normalized_spectral_shift_random"]) == (1.0, 0.0)
    assert math.isnan(same["low_magnitude_overlap_shuffled"])
    assert math.isnan(same["stable_rank_shuffled"])
    zero = diagnose_pair(holding(torch.zeros(6, 6)), holding(w), k=2, rank=2).iloc[0]
    assert zero["update_sparsity_shuffled"] == pytest.approx(5 / 6)
    assert math.isnan(zero["left_angle_mean_deg_shuffled"])


def test_weights_are_counted_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expected_nulls, "COUNTED", 100)
    w = (torch.randn(23, 17, generator=torch.Generator().manual_seed(0)) / 50).bfloat16()
    masks = {"principal_overlap": w > 0.01, "low_magnitude_overlap": w.abs() < 0.01}
    values, counts = expected_nulls._weights(w, masks)
    assert counts[""].sum() == w.numel()
    for value, every, first, second in zip(values, *(counts[name] for name in ("", *masks)), strict=True):
        here = w.double() == value
        if value == 0:
            continue
        assert (int(every), int(first), int(second)) == (
            int(here.sum()), int((here & masks["principal_overlap"]).sum()),
            int((here & masks["low_magnitude_overlap"]).sum()),
        )  # fmt: skip
