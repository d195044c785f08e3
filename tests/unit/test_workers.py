"""Several runs at once: all are opened in the order asked for, and a failure names its run and keeps the others."""

import signal
import subprocess
import sys

import pytest

from opdgeom_utils import workers
from opdgeom_utils.errors import OpdGeomError
from opdgeom_utils.runs import Run, load_or_train
from tests.tiny_world import World


class Finished:
    """A training process that has ended."""

    def __init__(self, code: int) -> None:
        self.returncode = code

    def poll(self) -> int:
        return self.returncode


def start(job: tuple[str, int], profile: str, logs: object, measures: bool) -> Finished:
    """Train in this process, as the child would: only here are the tiny models to be had."""
    log = workers._log_of(job, logs)  # pyright: ignore[reportArgumentType]
    try:
        load_or_train(job[0], seed=job[1], profile=profile)
    except OpdGeomError as error:
        log.write_text(str(error))
        return Finished(1)
    return Finished(0)


def test_runs_come_back_in_the_order_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_start", start)
    runs = workers.load_or_train_many([("rlvr", 0), ("sft", 1), ("sft", 0)], profile="tiny")
    assert [(run.recipe.name, run.seed) for run in runs] == [("rlvr", 0), ("sft", 1), ("sft", 0)]
    assert all(isinstance(run, Run) and (run.path / "DONE").is_file() for run in runs)


@pytest.mark.parametrize("asked", [0, -2])
def test_no_number_of_processes_is_refused(asked: int) -> None:
    with pytest.raises(workers.WorkerError, match=f"{asked} processes at once .* expected 1 or more, or -1"):
        workers.load_or_train_many([("sft", 0)], profile="tiny", workers=asked)


def test_a_failure_names_its_run_and_keeps_the_rest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_start", start)
    with pytest.raises(workers.WorkerError, match=r"1 of 2 runs failed(?s:.*)no_such, seed 0(?s:.*)unknown recipe"):
        workers.load_or_train_many([("no_such", 0), ("sft", 0)], profile="tiny")
    assert len(list(world.runs.glob("sft-s0-*/DONE"))) == 1


def test_what_several_runs_say_is_said_once_and_without_bars(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(job: tuple[str, int], profile: str, logs: object, measures: bool) -> Finished:
        bar = f"loading:   0%\rloading: {job[1]}00%"
        workers._log_of(job, logs).write_text(f"{bar}\n\nno model x\n")  # pyright: ignore[reportArgumentType]
        return Finished(1)

    monkeypatch.setattr(workers, "_start", failing)
    with pytest.raises(workers.WorkerError) as told:
        workers.load_or_train_many([("opd", 0), ("opd", 1)], profile="tiny")
    lines = ["2 of 2 runs failed; the rest are kept.", "opd, seed 0; opd, seed 1:", "no model x"]
    assert str(told.value).splitlines() == lines


@pytest.mark.parametrize(
    ("stopped_by", "needs_s", "ends_with"),
    [(SystemExit, 60, -signal.SIGTERM), (KeyboardInterrupt, 0.2, 0)],  # Ctrl-C has reached it too, and it saves
)
def test_no_process_goes_on_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, stopped_by: type[BaseException], needs_s: float, ends_with: int
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def second_fails(*_: object) -> subprocess.Popen[bytes]:
        if started:
            raise stopped_by
        started.append(subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({needs_s})"]))
        return started[0]

    monkeypatch.setattr(workers, "_start", second_fails)
    with pytest.raises(stopped_by):
        workers.load_or_train_many([("sft", 0), ("sft", 1)], profile="tiny")
    assert started[0].wait(timeout=30) == ends_with
