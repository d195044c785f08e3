"""What a comparison will cost, said before it starts: matrices, bytes, and time and memory estimated on the spot."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import joblib
import pandas as pd
import torch

from opdgeom_utils.checkpoints import OpenCheckpoint, StoredTensor
from opdgeom_utils.diagnose.matrix_rows import measure_checkpoints
from opdgeom_utils.diagnose.settings import Settings
from opdgeom_utils.errors import MetricInputError

#: Matrices that are timed: a small one for the overhead of each tensor, and one as wide as the run's, up to this.
SMALL_SIDE, LARGEST_SIDE = 32, 640
REPEATS = 3
#: Growth of a worker's resident memory: so many times its matrix, so many times its Gram matrix, both in float64, and
#: work space. That is above what was measured for six shapes of 1 to 154 million entries, k 512, nulls on.
MATRICES, GRAMS, WORK_SPACE = 4, 3, 150_000_000
UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Plan:
    """What will be compared, and what it will take.

    ``n_checkpoints``, ``n_matrices``, ``n_vectors``: checkpoints, and for each of them the matrices with every metric
    and the vectors with their sparsity only.
    ``n_entries``, ``n_bytes``: weights of the reference that are compared; bytes to read, of the reference and of every
    checkpoint.
    ``largest``: shape of the largest matrix.
    ``k``, ``n_workers``: dimension of the singular spaces; processes at once.
    ``seconds``, ``memory``: estimated time, and peak memory in bytes.
    ``device``: where the measurement runs, and where the time was estimated.
    """

    n_checkpoints: int
    n_matrices: int
    n_vectors: int
    n_entries: int
    n_bytes: int
    largest: str
    k: int
    n_workers: int
    seconds: float
    memory: float
    device: str

    def table(self) -> pd.DataFrame:
        """Return the plan as two columns of words."""
        rows = {
            "checkpoints against the reference": f"{self.n_checkpoints}",
            "matrices, each with every metric and its nulls": f"{self.n_matrices:,}",
            "vectors, sparsity only": f"{self.n_vectors:,}",
            "weights compared": f"{self.n_entries:,}",
            "largest matrix": self.largest,
            "singular directions compared, k": f"{self.k}",
            "to read": say_bytes(self.n_bytes),
            "processes": f"{self.n_workers} on {self.device}",
            "estimated time, to a factor of two": say_seconds(self.seconds),
            "estimated memory, above the libraries' own": say_bytes(self.memory),
        }
        return pd.DataFrame({"planned": list(rows), "value": list(rows.values())})


def plan_comparison(
    reference: OpenCheckpoint, checkpoints: Sequence[OpenCheckpoint], settings: Settings, *, n_jobs: int = 1
) -> Plan:
    """Say what measuring a run will take, after timing two small matrices on this machine.

    ``reference``, ``checkpoints``: opened, and cut down to the tensors that all of them have.
    ``n_jobs``: processes at once; -1 means one per core.
    Returns exact counts and bytes; time and memory are estimates. Time is linear in entries times small side, from
    matrices of at most 640 x 640; where the disk is slower than the arithmetic it takes longer. Raises MetricInputError
    when ``n_jobs`` is not a number of processes.

    >>> w = OpenCheckpoint("a", {"w": StoredTensor("a", "w", (64, 32), torch.bfloat16)})
    >>> options = Settings(eta=1e-3, alpha=0.3, rank=64, k=16, nulls=False, seed=0, device="cpu")
    >>> plan = plan_comparison(w, [w, w], options)
    >>> plan.n_checkpoints, plan.n_matrices, plan.n_bytes, plan.largest
    (2, 1, 12288, '64 x 32')
    """
    if n_jobs == 0 or n_jobs < -1:
        raise MetricInputError(f"n_jobs is {n_jobs}, expected a number of processes, or -1 for one per core.")
    tensors = list(reference.tensors.values())
    matrices = [tensor for tensor in tensors if len(tensor.shape) == 2]
    largest = max(matrices, key=lambda tensor: math.prod(tensor.shape))
    n_workers = min(joblib.cpu_count() if n_jobs == -1 else n_jobs, len(tensors))
    widest = max(min(tensor.shape) for tensor in matrices)
    side = min(LARGEST_SIDE, widest)
    seconds_each, seconds_per_unit = measured_rate(side, replace(settings, k=max(1, settings.k * side // widest)))
    each = [(seconds_each + seconds_per_unit * _work(tensor)) * len(checkpoints) for tensor in tensors]
    stored = [tensor for one in (reference, *checkpoints) for tensor in one.tensors.values()]
    needs = sorted((8 * (MATRICES * math.prod(m.shape) + GRAMS * min(m.shape) ** 2) for m in matrices), reverse=True)
    return Plan(
        n_checkpoints=len(checkpoints),
        n_matrices=len(matrices),
        n_vectors=len(tensors) - len(matrices),
        n_entries=sum(math.prod(tensor.shape) for tensor in tensors),
        n_bytes=sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in stored),
        largest=" x ".join(map(str, largest.shape)),
        k=settings.k,
        n_workers=n_workers,
        seconds=max(sum(each) / n_workers, *each, 0.0),
        memory=float(sum(need + WORK_SPACE for need in needs[:n_workers])),
        device=settings.device,
    )


def measured_rate(side: int, settings: Settings) -> tuple[float, float]:
    """Time the real measurement on a small and a ``side`` x ``side`` matrix of random numbers, the best of three.

    Returns seconds for each tensor, and seconds for each entry times small side; vectors cost the first alone.
    """
    small, large = (_random_pair(n) for n in (SMALL_SIDE, max(side, SMALL_SIDE + 1)))
    seconds = [_best_time(pair, settings) for pair in (small, large)]
    per_unit = max(seconds[1] - seconds[0], 0.0) / (_work(large[0]) - _work(small[0]))
    return max(seconds[0] - per_unit * _work(small[0]), 0.0), per_unit


def say_bytes(count: float | int) -> str:
    """Write a number of bytes in decimal units.

    >>> say_bytes(12), say_bytes(3_174_936), say_bytes(32_800_000_000)
    ('12 B', '3.17 MB', '32.8 GB')
    """
    power = min(len(UNITS) - 1, int(math.log10(count) // 3)) if count >= 1 else 0
    return f"{count / 1000**power:.3g} {UNITS[power]}"


def say_seconds(seconds: float | int) -> str:
    """Write a duration in the unit that a person would use.

    >>> say_seconds(0.4), say_seconds(75), say_seconds(5400), say_seconds(400_000)
    ('about a second', '75 seconds', '90 minutes', '111 hours')
    """
    if seconds < 1.5:
        return "about a second"
    for unit, size, most in (("seconds", 1, 100), ("minutes", 60, 100), ("hours", 3600, math.inf)):
        if seconds < most * size:
            return f"{seconds / size:.0f} {unit}"
    raise MetricInputError(f"a duration is {seconds} seconds, expected a finite number.")


def _work(tensor: StoredTensor) -> int:
    return math.prod(tensor.shape) * min(tensor.shape) if len(tensor.shape) == 2 else 0


def _random_pair(side: int) -> tuple[StoredTensor, StoredTensor]:
    generator = torch.Generator().manual_seed(side)
    before = torch.randn(side, side, generator=generator)
    after = before + 0.01 * torch.randn(side, side, generator=generator)
    first, second = (StoredTensor("memory", "w", (side, side), torch.float32, held=held) for held in (before, after))
    return first, second


def _best_time(pair: tuple[StoredTensor, StoredTensor], settings: Settings) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        measure_checkpoints("calibration", pair[0], [pair[1]], settings=settings)
        times.append(time.perf_counter() - start)
    return min(times)
