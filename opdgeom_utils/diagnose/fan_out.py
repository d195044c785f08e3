"""Measure many matrices at once, keep each result as it comes, and pick up where a killed job stopped.

One job is one matrix at all its checkpoints. joblib spreads the jobs: over processes of this machine by default, or
over whatever ``joblib.parallel_config(backend=...)`` names, such as a Dask or a Ray cluster. Only the calling process
writes, one file per matrix, each whole or absent. A file is known by the sha256 of the tensors, the settings and the
measuring code that made it, so a second call measures what is missing or has changed, and nothing twice.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import BACKENDS, DEFAULT_BACKEND, get_active_backend
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from opdgeom_utils import kept
from opdgeom_utils.checkpoints import StoredTensor
from opdgeom_utils.diagnose.matrix_rows import measure_checkpoints
from opdgeom_utils.diagnose.settings import COLUMNS, EXPECTED_COLUMNS, NOISE_COLUMNS, NULL_COLUMNS, Settings
from opdgeom_utils.errors import CheckpointMemoryError, MetricInputError
from opdgeom_utils.storage import locked, parquet_bytes, write_atomic

WAIT_SECONDS = 6 * 3600.0  # for another call that works into the same folder

NOT_FLOATS = ("step", "name", "layer", "module", "shape", "dtype", "n_entries", "angles_defined", "note", "null_note")

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One tensor of the reference, and the same tensor at each checkpoint; nothing is read yet."""

    identity: Row  # name, layer, module: the columns that say which tensor it is
    steps: tuple[int, ...]  # of ``after``
    before: StoredTensor
    after: Sequence[StoredTensor]

    @property
    def cost(self) -> int:
        """Work, in arbitrary units: a matrix costs its entries times its small side."""
        shape = self.before.shape
        return math.prod(shape) * (min(shape) if len(shape) == 2 else 1) * len(self.after)


def fan_out(jobs: Sequence[Job], settings: Settings, *, n_jobs: int, out: Path | None) -> pd.DataFrame:
    """Measure every job and return the table, one row per step and tensor, in the order of ``jobs`` within each step.

    ``n_jobs`` processes have one thread each; -1 means one per core. With 1 the calling process does the work, unless
    ``joblib.parallel_config`` has named another backend. In the folder ``out``, ``parts/`` fills while the work goes
    on, and ``diagnosis.parquet`` is written last. Raises MetricInputError when ``n_jobs`` is not a number of processes.
    Raises StorageError when a result cannot be written. Raises RunLockedError when another call has worked into ``out``
    for hours.
    """
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or n_jobs == 0:
        raise MetricInputError(f"n_jobs is {n_jobs!r}, expected a number of processes, or -1 for one per core.")
    with contextlib.nullcontext() if out is None else locked(out, wait_seconds=WAIT_SECONDS, note=say_waiting):
        try:
            return _fan_out(jobs, settings, n_jobs, out)
        except BrokenExecutor as error:
            raise CheckpointMemoryError(
                f"one of {n_jobs} processes was ended from outside, mostly for want of memory. Take fewer at once "
                "(--jobs 1, JOBS=1, n_jobs=1); what was finished is kept where it has a folder."
            ) from error


def say_waiting(_: str) -> None:
    """Say why nothing happens, where another call works into the same folder."""
    print("another call works into the same folder; waiting for it", file=sys.stderr)


def _fan_out(jobs: Sequence[Job], settings: Settings, n_jobs: int, out: Path | None) -> pd.DataFrame:
    parts = Parts(out / "parts") if out is not None else None
    largest_first = sorted(jobs, key=lambda job: -job.cost)
    calls = [(job, settings, parts.key_of(job) if parts else None, parts is not None) for job in largest_first]
    cost_of = {job.identity["name"]: job.cost for job in jobs}
    measured: dict[str, list[Row]] = {}
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| {postfix} {elapsed}<{remaining}"
    with tqdm(total=sum(cost_of.values()), desc="diagnose", disable=None, bar_format=bar_format) as bar:
        for name, key, rows in _results(calls, n_jobs):
            if parts is not None and rows is not None:
                parts.write(name, key, _frame(rows, settings))
            measured[name] = rows if rows is not None else parts.read(name) if parts else []
            bar.set_postfix_str(f"{len(measured)}/{len(jobs)} tensors", refresh=False)
            bar.update(cost_of[name])
    n_steps = len(jobs[0].steps) if jobs else 0
    table = _frame([measured[job.identity["name"]][i] for i in range(n_steps) for job in jobs], settings)
    if out is not None:
        write_atomic(out / "diagnosis.parquet", parquet_bytes(table))
    return table


class Parts:
    """The folder of finished matrices: ``<sha256 of the name>-<key>.parquet``, one file for each.

    >>> import tempfile
    >>> parts = Parts(Path(tempfile.mkdtemp()) / "parts")
    >>> parts.write("q_proj", "abc", pd.DataFrame({"step": [1]}))
    >>> parts.read("q_proj")
    [{'step': 1}]
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*-*.parquet")) if folder.is_dir() else []:
            older = self._files.setdefault(path.name.partition("-")[0], path)
            if older != path:  # a kill came between writing a part and removing the one before it
                path.unlink(missing_ok=True)

    def key_of(self, job: Job) -> str | None:
        """Key of the whole part that an earlier call left for this tensor, if any; a damaged one is removed."""
        path = self._files.get(_short_hash(job.identity["name"]))
        if path is None:
            return None
        try:
            pq.read_table(path, columns=["step"])
        except (OSError, pa.ArrowException):  # cut short by a full disk or a copy: measured again
            path.unlink(missing_ok=True)
            del self._files[_short_hash(job.identity["name"])]
            return None
        return path.stem.partition("-")[2]

    def read(self, name: str) -> list[Row]:
        """Return the rows of a finished tensor."""
        rows = pd.read_parquet(self._files[_short_hash(name)]).to_dict("records")
        return [{str(column): value for column, value in row.items()} for row in rows]

    def write(self, name: str, key: str, table: pd.DataFrame) -> None:
        """Keep the rows of a tensor, in place of those made by other weights or settings."""
        start = _short_hash(name)
        path, older = self.folder / f"{start}-{key}.parquet", self._files.get(start)
        write_atomic(path, parquet_bytes(table))
        self._files[start] = path
        if older is not None and older != path:
            older.unlink(missing_ok=True)


def _results(calls: list[tuple[Any, ...]], n_jobs: int) -> Iterator[tuple[str, str, list[Row] | None]]:
    """Yield the result of each call as soon as it is there, in any order."""
    backend: Any = get_active_backend()[0]
    parallel: Any = Parallel  # its annotations know neither a generator nor a batch of one
    elsewhere = not isinstance(backend, BACKENDS[DEFAULT_BACKEND])
    if n_jobs == 1 and not elsewhere:
        yield from (_measured(*call) for call in calls)
        return
    work = [delayed(_in_one_thread)(*call) for call in calls]
    if elsewhere:
        workers = None if n_jobs == 1 else n_jobs  # None: as many as the named backend has
        return_as = "generator_unordered" if backend.supports_return_generator else "list"
        yield from parallel(n_jobs=workers, return_as=return_as, batch_size=1)(work)
        return
    with parallel_config(backend="loky", inner_max_num_threads=1):
        yield from parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)(work)


def _in_one_thread(*call: Any) -> tuple[str, str, list[Row] | None]:
    """Measure with one thread in every library: torch's own pool, and the BLAS that SciPy calls."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return _measured(*call)
    finally:
        torch.set_num_threads(n_threads)


def _measured(job: Job, settings: Settings, known: str | None, keyed: bool) -> tuple[str, str, list[Row] | None]:
    """Measure one tensor, or return no rows if what is ``known`` was made from the same values and settings."""
    key = _key(job, settings) if keyed else ""
    name = job.identity["name"]
    if keyed and key == known:
        return name, key, None
    rows = measure_checkpoints(name, job.before, job.after, settings=settings)
    return name, key, [{"step": step} | job.identity | row for step, row in zip(job.steps, rows, strict=True)]


def _key(job: Job, settings: Settings) -> str:
    """Sha256 of everything the rows depend on: values, dtypes, shapes, steps, settings, code."""
    described = [_engine_digest(), job.identity, job.steps, {**dataclasses.asdict(settings), "device": ""}]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for stored in (job.before, *job.after):
        values = stored.read_unchecked().contiguous().cpu()
        digest.update(f"{stored.dtype}{values.dtype}{tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:24]


def _engine_digest() -> str:
    """Sha256 of the measuring code, given the values: a part made by other code is measured again."""
    columns = (COLUMNS, NULL_COLUMNS, EXPECTED_COLUMNS, NOISE_COLUMNS)
    return kept.digest("diagnose.matrix_rows", given=("checkpoints", "vocabulary"), inputs=columns)


def _frame(rows: list[Row], settings: Settings) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=settings.columns())
    floats = {column: "float64" for column in table if column not in NOT_FLOATS}
    return table.astype({**floats, "angles_defined": "boolean"})


def _short_hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def as_folder(out: str | os.PathLike[str] | None) -> Path | None:
    """Return ``out`` as a path; a :class:`MetricInputError` refuses what is not a folder."""
    if out is None:
        return None
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise MetricInputError(f"out is {out}, a file, expected a folder; choose another name.")
    return folder
