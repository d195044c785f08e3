"""Several runs at once: one single-threaded process for each, as many as there are cores to feed.

Two single-threaded processes train faster than one process with two threads. From a shell:
``python -m opdgeom_utils.workers toy opd 0 measures`` trains one run and measures it; ``until=80`` in place of
``measures`` stops it after update 80.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm.auto import tqdm

from opdgeom_utils import bf16_products
from opdgeom_utils.errors import OpdGeomError
from opdgeom_utils.measures.of_runs import measures_of_run
from opdgeom_utils.project_files import runs_folder
from opdgeom_utils.results import geometry_of
from opdgeom_utils.runs import Run, load_or_train

Job = tuple[str, int]
SAVING_S = 10.0  # after Ctrl-C


class WorkerError(OpdGeomError, RuntimeError):
    """A training process failed; the message ends with what it printed last."""


def load_or_train_many(
    jobs: Sequence[Job],
    *,
    profile: str = "toy",
    workers: int = 2,
    measures: bool = False,
    until: int | None = None,
) -> list[Run]:
    """Open or train several runs, ``workers`` at a time, each in a process of its own, in the order asked for.

    ``jobs``: pairs of recipe name and seed. Give the longest first: the last to finish decides the time.
    ``workers``: processes at once, each with one thread; -1 for one a core.
    ``measures``: whether to measure each run's path and function too (:mod:`opdgeom_utils.measures.of_runs`).
    ``until``: stop every run at its last checkpoint up to this update, unmeasured; None trains to the end.
    Raises WorkerError if a process fails. The other runs are finished first, and what was trained is kept. Raises it
    too where ``workers`` is no number of processes.
    """
    workers = at_once(workers)
    more = ["measures"] * measures if until is None else [f"until={until}"]
    logs = runs_folder() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running = list(jobs), dict[Job, subprocess.Popen[bytes]]()
    failures: dict[str, list[str]] = {}  # what was said, and the runs that said it
    bar = tqdm(total=len(jobs), desc=f"runs of profile {profile}", unit="run")
    with bar, _ended_with_us(running):
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                running[job] = _start(job, profile, logs, more)
            time.sleep(0.2)
            for job, process in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    bar.update()
                    bar.set_postfix_str(f"{job[0]} seed {job[1]} done")
                    if process.returncode:
                        failures.setdefault(_last_words(_log_of(job, logs)), []).append(f"{job[0]}, seed {job[1]}")
    if failures:
        count = sum(map(len, failures.values()))
        said = "\n".join(f"{'; '.join(named)}:\n{words}" for words, named in failures.items())
        raise WorkerError(f"{count} of {len(jobs)} runs failed; the rest are kept.\n{said}")
    return [load_or_train(name, seed=seed, profile=profile, until=until) for name, seed in jobs]


def at_once(asked: int) -> int:
    """How many processes to run at once: as many as asked for, or one a core for -1.

    >>> at_once(3), at_once(-1) >= 1
    (3, True)
    """
    if asked != -1 and asked < 1:
        raise WorkerError(f"{asked} processes at once are asked for; expected 1 or more, or -1 for one a core")
    return (os.cpu_count() or 1) if asked == -1 else asked


@contextmanager
def _ended_with_us(running: Mapping[Job, subprocess.Popen[bytes]]) -> Iterator[None]:
    """End the processes that still run when something ends this one; what they have trained is kept.

    Ctrl-C in a terminal reaches them too, and they are given time to save; nothing else does.
    """
    try:
        yield
    except BaseException as error:
        until = time.monotonic() + SAVING_S * isinstance(error, KeyboardInterrupt)
        while time.monotonic() < until and any(process.poll() is None for process in running.values()):
            time.sleep(0.1)
        for process in running.values():
            process.terminate()
        raise


def _log_of(job: Job, logs: Path) -> Path:
    return logs / f"{job[0]}-s{job[1]}.log"


def _last_words(log: Path) -> str:
    """Return the end of a process's log, without its progress bars."""
    return re.sub(r"[^\n]*\r[^\n]*\n?", "", log.read_bytes().decode("utf-8", "replace")).strip()[-2000:]


def _start(job: Job, profile: str, logs: Path, more: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "opdgeom_utils.workers", profile, job[0], str(job[1]), *more]
    with _log_of(job, logs).open("w") as log:
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)


def main() -> None:
    """Train one run and measure it, in one thread."""
    profile, name, seed, *more = sys.argv[1:]
    torch.set_num_threads(1)
    until = next((int(word.removeprefix("until=")) for word in more if word.startswith("until=")), None)
    run = load_or_train(name, seed=int(seed), profile=profile, until=until)
    if until is not None:
        return
    geometry_of(run)
    if more == ["measures"]:
        with bf16_products.made_fast():
            measures_of_run(run)


if __name__ == "__main__":
    try:
        main()
    except OpdGeomError as error:  # said in plain words, without a traceback
        sys.exit(f"\n{error}")
