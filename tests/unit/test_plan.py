"""The plan against what is counted by hand, and its estimate against the clock that it was made with."""

import pytest
import torch

from opdgeom_utils.checkpoints import OpenCheckpoint, StoredTensor
from opdgeom_utils.diagnose import plan
from opdgeom_utils.diagnose.plan import plan_comparison
from opdgeom_utils.diagnose.settings import Settings
from opdgeom_utils.errors import MetricInputError

SETTINGS = Settings(eta=1e-3, alpha=0.3, rank=2, k=4, nulls=True, seed=0, device="cpu")
SHAPES = {"wide": (8, 4), "small": (4, 4), "norm": (4,)}


def opened(dtype: torch.dtype) -> OpenCheckpoint:
    return OpenCheckpoint(str(dtype), {n: StoredTensor("", n, shape, dtype) for n, shape in SHAPES.items()})


REFERENCE, CHECKPOINTS = opened(torch.bfloat16), [opened(torch.float32), opened(torch.float32)]


@pytest.mark.parametrize(("n_jobs", "seconds"), [(1, 2 * (3 * 1.0 + 128 + 64)), (2, 2 * (1.0 + 128))])
def test_counts_bytes_and_time(monkeypatch: pytest.MonkeyPatch, n_jobs: int, seconds: float) -> None:
    """Two workers cannot be faster than the largest matrix: 8 x 4 entries times 4, at both checkpoints."""
    monkeypatch.setattr(plan, "measured_rate", lambda side, settings: (1.0, 1.0))
    made = plan_comparison(REFERENCE, CHECKPOINTS, SETTINGS, n_jobs=n_jobs)
    assert (made.n_checkpoints, made.n_matrices, made.n_vectors, made.n_entries) == (2, 2, 1, 52)
    assert (made.n_bytes, made.largest) == (52 * 2 + 2 * 52 * 4, "8 x 4")
    assert made.seconds == seconds
    large, small = 8 * (4 * 8 * 4 + 3 * 4**2), 8 * (4 * 4 * 4 + 3 * 4**2)
    assert made.memory == large + 150_000_000 + (small + 150_000_000) * (n_jobs == 2)


def test_rate_is_measured_on_the_real_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts one second for each unit of work gives one second back for each unit."""
    now = [0.0]

    def measured(name: str, before: StoredTensor, after: list[StoredTensor], *, settings: Settings) -> None:
        now[0] += 5.0 + before.shape[0] ** 3

    monkeypatch.setattr(plan, "measure_checkpoints", measured)
    monkeypatch.setattr(plan.time, "perf_counter", lambda: now[0])
    assert plan.measured_rate(64, SETTINGS) == (5.0, 1.0)


def test_plan_is_words_for_a_reader() -> None:
    table = plan_comparison(REFERENCE, CHECKPOINTS, SETTINGS).table().set_index("planned")["value"]
    assert table["to read"] == "520 B"
    assert table["matrices, each with every metric and its nulls"] == "2"
    assert table.str.len().gt(0).all()


@pytest.mark.parametrize("n_jobs", [0, -2])
def test_number_of_processes_is_checked(n_jobs: int) -> None:
    with pytest.raises(MetricInputError, match="n_jobs is"):
        plan_comparison(REFERENCE, CHECKPOINTS, SETTINGS, n_jobs=n_jobs)


def test_duration_must_be_finite() -> None:
    with pytest.raises(MetricInputError, match="finite"):
        plan.say_seconds(float("inf"))
