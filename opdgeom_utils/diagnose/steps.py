"""Which checkpoints a run's folder holds, and at which step each name says that it was saved."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

from opdgeom_utils.checkpoints.opening import CheckpointSource, holds_weights
from opdgeom_utils.checkpoints.pickled_weights import ENDINGS
from opdgeom_utils.checkpoints.rank_files import ACTOR
from opdgeom_utils.checkpoints.weight_files import shortened
from opdgeom_utils.errors import MetricInputError

WORD = r"(?:steps?|checkpoint|ckpt|iter|iteration|update)[_=-]?"
WHOLE = r"(\d+)(?!\d|[a-z]|[.,]\d)"  # neither 10k nor 1.5 nor 1,000
STEP = re.compile(WORD + WHOLE, re.IGNORECASE)
BROKEN = re.compile(rf"{WORD}(?=\d)(?!{WHOLE})", re.IGNORECASE)
EPOCH = re.compile(rf"(?:epoch|stage|phase|round)[_=-]?{WHOLE}", re.IGNORECASE)
NUMBER = re.compile(r"\d+(?:\.\d+)*[a-z]?", re.IGNORECASE)  # 10k is no plain number
FILE = "|".join(map(re.escape, (".safetensors", *ENDINGS)))
STEP_FILE = re.compile(rf"(?:global_?)?{STEP.pattern}(?:{FILE})?", re.IGNORECASE)
#: Folders (and files of weights) that may lie below the one with a step and are no runs of their own.
BELOW_A_STEP = (ACTOR, "actor_rollout", "default", "hf", "hf_model", "huggingface", "lora_adapter", "merged", "model",
                "policy", "student", "weights")  # fmt: skip
DEEPEST = 4  # folders below a run's own: global_step_50/actor/huggingface has three
IN_ORDER = "No name holds a step: the checkpoints are numbered in the order in which they were given."
EPOCHS = "The names hold epochs or stages and no steps: the steps here are those."
ANEW = "The steps start anew in each epoch or stage: the checkpoints are numbered in their order."
ALIKE = "The names differ in one number: it is taken as the step."


@runtime_checkable
class SavedStep(Protocol):
    """A checkpoint of a run: its update number and its file."""

    @property
    def step(self) -> int:
        """Update number."""
        ...

    @property
    def path(self) -> Path:
        """Safetensors file or folder."""
        ...


Checkpoints = Iterable[str | os.PathLike[str] | SavedStep | tuple[SupportsIndex, CheckpointSource]]


def step_in(name: str) -> int | None:
    """Return the step that a path or a hub name holds, in the last of its parts that holds one.

    >>> step_in("run/global_step_50/actor/huggingface"), step_in("maker/model@step_7"), step_in("run/final")
    (50, 7, None)
    """
    return _last(STEP, Path(name).parts)


def numbered(names: Sequence[str]) -> tuple[list[int], str]:
    """Say at which step each of a run's checkpoints was saved.

    ``names``: paths or hub names, in any order; folders that all of them lie in say nothing. Of one name alone the last
    part counts, or the part that :data:`BELOW_A_STEP` leads up to.
    Returns a step for each name, and a sentence where the steps are not plainly written in the names. Raises
    MetricInputError when only some of the names hold a step, two hold the same one, or one is no whole number (10k).

    >>> numbered(["run/checkpoint-1000", "run/checkpoint-200"])
    ([1000, 200], '')
    >>> numbered(["run/epoch_1/step_9", "run/epoch_0/step_9"])[0], numbered(["run/hf-20", "run/hf-3"])[0]
    ([2, 1], [20, 3])
    """
    if len(names) == 1:
        step = _own_step(names[0])
        return [step or 0], IN_ORDER if step is None else ""
    parts = [Path(name).parts for name in names]
    shared = next((i for i, same in enumerate(zip(*parts, strict=False)) if len(set(same)) > 1), 0)
    parts = [own[shared:] for own in parts]
    _check_whole(parts)
    steps, epochs = ([_last(word, own) for own in parts] for word in (STEP, EPOCH))
    pairs = [(epoch, step) for epoch, step in zip(epochs, steps, strict=True) if epoch is not None and step is not None]
    order = sorted(set(pairs))
    in_one_go = sorted({step for _, step in order}) == [step for _, step in order]
    if len(order) == len(names) and not in_one_go:
        return [1 + order.index(pair) for pair in pairs], ANEW
    for found, remark in ((steps, ""), (epochs, EPOCHS), (_differing_number(names), ALIKE)):
        known = [number for number in found if number is not None]
        if known and len(set(known)) < len(names):
            raise MetricInputError(
                f"the names hold the steps {['none' if number is None else number for number in found]}; expected each "
                "to hold its own (checkpoint-50, step_000050.safetensors), or none of them. Name fewer checkpoints."
            )
        if known:
            return known, remark
    return list(range(1, len(names) + 1)), IN_ORDER


def _own_step(name: str) -> int | None:
    """Return the step of a checkpoint that has no other beside it: ``step2/my-run/final`` has none."""
    for part in reversed(Path(name).parts):
        if (step := step_in(part)) is not None:
            return step
        if part.lower() not in BELOW_A_STEP and not part.endswith((".safetensors", *ENDINGS)):
            return None
    return None


def step_before(reference: str, tuned: Sequence[str]) -> int | None:
    """Return at which step of the tuned checkpoints' own run the reference was saved; None if it is of no such run.

    >>> step_before("run/checkpoint-500", ["run/checkpoint-1000"]), step_before("a/step_5", ["b/step_9"])
    (500, None)
    """
    start = _own_step(reference)
    same = {STEP.sub("#", os.path.realpath(name)) for name in (reference, *tuned)}
    return start if len(same) == 1 else None


def checkpoints_inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the checkpoints below a run's folder: those whose path holds a step, and the others.

    A folder with weights is one checkpoint, and nothing below it is looked at. A folder named after a step counts even
    where no weights are found in it, unless there are none anywhere: whoever opens it says what it holds instead.

    ``folder``: the run's folder, which holds no weights of its own but files named after steps. Raises MetricInputError
    when a name holds a step that is no whole number.
    """
    found = sorted(_inside(folder, DEEPEST), key=lambda path: step_in(path.name) is not None)
    paths = sorted({path.resolve(): path for path in found}.values())  # of two links to one folder, the one with a step
    below = {path: path.relative_to(folder).parts for path in paths}
    _check_whole([*below.values()])
    paths = [path for path in paths if ACTOR in below[path]] or paths
    if not any(map(_is_checkpoint, paths)):
        return [], []
    stepped = [path for path in paths if any(_last(word, below[path]) is not None for word in (STEP, EPOCH))]
    return stepped, [path for path in paths if path not in stepped]


def in_step_order(checkpoints: Checkpoints | str | os.PathLike[str]) -> list[tuple[int, CheckpointSource]]:
    """Pair each checkpoint with its step, ascending: those given, or those in a folder; every step once."""
    if isinstance(checkpoints, str | os.PathLike):
        folder = Path(checkpoints).expanduser()
        if not folder.is_dir():
            raise MetricInputError(
                f"checkpoints is {checkpoints}, expected a folder of steps or a list of checkpoints."
            )
        checkpoints, others = checkpoints_inside(folder)
        if not checkpoints:
            found = f"the checkpoints {shortened([path.name for path in others])}" if others else "no checkpoint"
            raise MetricInputError(
                f"{folder} holds {found} and no name with a step (checkpoint-50); give them as a list of pairs "
                "(step, path)."
            )
    given = list(checkpoints)
    paths = [os.fspath(item) for item in given if isinstance(item, str | os.PathLike)]
    found, remark = numbered(paths) if paths else ([], "")
    of_path = {} if remark == IN_ORDER else dict(zip(paths, found, strict=True))
    steps = sorted((_step_and_source(item, of_path) for item in given), key=lambda pair: pair[0])
    numbers = [step for step, _ in steps]
    if not steps or len(set(numbers)) < len(numbers):
        raise MetricInputError(f"checkpoints have steps {numbers}, expected at least one, and each step once.")
    return steps


def _inside(folder: Path, deepest: int) -> Iterator[Path]:
    """Yield the topmost checkpoints below a folder, and the folders named after a step that hold none."""
    files = _step_files(folder)
    yield from files
    for path in folder.iterdir():
        if not path.is_dir() or path.name.startswith("."):
            continue
        if holds_weights(path) and not _step_files(path):
            yield path
            continue
        deeper = list(_inside(path, deepest - 1)) if deepest > 1 else []
        named = step_in(path.name) is not None
        yield from [path] if named and not any(map(_is_checkpoint, deeper)) else deeper


def _step_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if STEP_FILE.fullmatch(path.name) and path.is_file()]


def _is_checkpoint(path: Path) -> bool:
    return path.is_file() or holds_weights(path)


def _check_whole(names: Sequence[Sequence[str]]) -> None:
    """Refuse names, each in its parts, of which one has a step such as 10k and none that is whole."""
    broken = [os.path.join(*own) for own in names if _last(STEP, own) is None and any(map(BROKEN.search, own))]
    if broken:
        raise MetricInputError(
            f"{shortened(broken)}: a step that is no whole number; rename it to one (checkpoint-1500), or give pairs "
            "(step, path) to diagnose_trajectory."
        )


def _last(word: re.Pattern[str], parts: Sequence[str]) -> int | None:
    return next((int(found[-1]) for part in reversed(parts) if (found := word.findall(part))), None)


def _differing_number(names: Sequence[str]) -> list[int | None]:
    """Return the one number in which names differ that are alike in all else."""
    differ = [column for column in zip(*map(NUMBER.findall, names), strict=False) if len(set(column)) > 1]
    alike = len({NUMBER.sub("#", name) for name in names}) == 1
    if not alike or len(differ) != 1 or not all(number.isdigit() for number in differ[0]):
        return [None] * len(names)
    return [int(number) for number in differ[0]]


def _step_and_source(item: Any, of_path: dict[str, int]) -> tuple[int, Any]:
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], SupportsIndex):
        return int(item[0]), item[1]
    if isinstance(item, SavedStep):
        return int(item.step), item.path
    if not isinstance(item, str | os.PathLike) or os.fspath(item) not in of_path:
        raise MetricInputError(
            f"checkpoint {item!r} has no step, expected a name such as step_000050.safetensors, or a pair (step, path)."
        )
    return of_path[os.fspath(item)], item
