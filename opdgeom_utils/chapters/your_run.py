"""A run as a report names it: its reference and its checkpoints, opened and checked before anything is measured."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from opdgeom_utils.charts.palette import PALETTE
from opdgeom_utils.checkpoints import OpenCheckpoint, module_of, open_checkpoint
from opdgeom_utils.checkpoints.comparison import ComparisonReport, aligned
from opdgeom_utils.checkpoints.opening import holds_weights
from opdgeom_utils.diagnose.schedule import schedule_of, state_beside
from opdgeom_utils.diagnose.steps import ALIKE, checkpoints_inside, numbered, step_before
from opdgeom_utils.diagnose.trajectory import selected
from opdgeom_utils.errors import CheckpointNotFoundError, MetricInputError, NotebookParameterError, ways
from opdgeom_utils.models import MODELS, resolve_model
from opdgeom_utils.vocabulary import label, listed

TO_FILL_IN = "FILL-IN"
LONGEST_LABEL = 40
PAPER_K, LARGEST_SHARE = 512, 8
SWAPPED = (
    "A trainer left its trainer_state.json beside REFERENCE and none beside TUNED. REFERENCE is the model before "
    "training: if it is the trained one, exchange the two."
)

BACKWARDS = (
    "REFERENCE was saved at step {} of the run, after TUNED (step {}). REFERENCE is the model before training: "
    "exchange the two. Noise's ruler is left out."
)
ADAPTED = (
    "Noise's ruler is left out. What was opened is an adapter: Adam moved its factors, not the matrices that they "
    "make. Watched in training, the factors are set beside noise (`GeometryCallback`)."
)


@dataclass(frozen=True)
class OpenedRun:
    """A reference and the checkpoints to measure against it, cut down to what all of them have.

    ``label``: what the figures call the run.
    ``checkpoints``: step and checkpoint, steps ascending. Where no name holds a step: 0, or the place in the list, from
    1.
    ``reports``: for each checkpoint, what is compared with the reference and what is not.
    ``remarks``: what was decided while opening, in words.
    ``last_name``: the last checkpoint as it was named, or its path.
    ``counted``: whether the steps are numbers of updates, as the names have them.
    ``start``: step of the run at which its reference was saved; 0 unless that is an earlier checkpoint of the same run.
    """

    label: str
    reference: OpenCheckpoint
    checkpoints: tuple[tuple[int, OpenCheckpoint], ...]
    reports: tuple[ComparisonReport, ...]
    remarks: tuple[str, ...] = ()
    last_name: str = ""
    counted: bool = False
    start: int = 0

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is among the checkpoints."""
        return any(checkpoint.adapted is not None for _, checkpoint in self.checkpoints)


def open_run(
    reference: str,
    tuned: str | list[str],
    *,
    revision: str | None = None,
    base: str | None = None,
    modules: Sequence[str] | None = None,
    label: str = "your run",
    strict: bool = True,
    allow_pickle: bool = False,
) -> OpenedRun:
    """Open what a report compares; no matrix is read, except a few rows to know the base of an adapter.

    ``reference``: a shipped model's name (``base``), a folder, a file, or a hub name (``name`` or ``name@revision``).
    ``tuned``: the same; or a run's folder, whose steps may lie deeper (``checkpoint-50``, ``global_step_50/actor``,
    ``epoch_1/step_50``); or a list of checkpoints, in any order where their names hold steps.
    ``revision``: branch, tag or commit of every hub name in ``tuned`` that does not carry its own after an ``@``.
    ``base``: what adapters in ``tuned`` are merged over, in place of what their own configuration names.
    Raises NotebookParameterError when a name was not filled in, a list is empty, or the label is taken. Raises
    CheckpointNotFoundError, CheckpointDamagedError, CheckpointUnsafeError, CheckpointMismatchError when a checkpoint is
    missing, unreadable, not only tensors, or of another architecture. Raises MetricInputError when steps are missing or
    given twice, a module is unknown, or nothing that is left is a matrix.

    >>> run = open_run("base", "anchor", modules=["q_proj", "k_proj"])
    >>> run.checkpoints[0][0], len(run.reference.tensors), run.reports[0].complete
    (0, 8, True)
    """
    _check_label(label)
    names, remarks = _checkpoints_named(tuned)
    for name in [reference, *names]:
        _check_filled_in(name)
    _check_once(names)
    steps, remark = numbered(names)
    if remark and len(names) > 1:
        remarks.append(remark)
    if state_beside(_found(reference)) and not any(state_beside(_found(name)) for name in names):
        remarks.append(SWAPPED)
    start, counted = step_before(reference, names) or 0, remark in ("", ALIKE)
    if counted and start > max(steps):
        remarks.append(BACKWARDS.format(start, max(steps)))
    shown = _distinct([reference, *names])
    opening = partial(_open, revision=revision, base=base, allow_pickle=allow_pickle)
    opened = [opening(name, shown[name]) for name in names]
    before, after, reports = aligned(
        _open(reference, shown[reference], allow_pickle=allow_pickle),
        [checkpoint for _, checkpoint in sorted(zip(steps, opened, strict=True), key=lambda pair: pair[0])],
        strict=strict,
    )
    keep = _kept(before, modules)
    before, *after = (only(one, keep) for one in (before, *after))
    last = max(zip(steps, names, strict=True))[1]
    return OpenedRun(
        label, before, tuple(zip(sorted(steps), after, strict=True)), tuple(reports), tuple(remarks),
        last_name=last, counted=counted, start=start,
    )  # fmt: skip


def noise_options(run: OpenedRun, **given: Any) -> tuple[dict[str, Any], list[str]]:
    """Options of :func:`~opdgeom_utils.diagnose_trajectory` that set a run beside noise, and sentences about them.

    ``run``: from :func:`open_run`.
    ``**given``: of :data:`opdgeom_utils.diagnose.schedule.OPTIONS`; None where nothing was said. Without a learning
    rate, a ``trainer_state.json`` beside the last checkpoint is read.
    Returns ``learning_rates, betas, weight_decay``, or nothing where no schedule is known or an adapter was opened.
    Then what a reader should know: first where the rates come from. Raises MetricInputError for numbers out of range,
    or words that make no schedule.

    >>> options, said = noise_options(open_run("base", "anchor", modules=["q_proj"]), learning_rate=1e-6, updates=2)
    >>> options["learning_rates"], said[0]
    ({0: (1e-06, 1e-06)}, 'Noise was given 2 updates at a learning rate of 1e-06, constant, as given.')
    """
    steps = [step for step, _ in run.checkpoints]
    schedule, remark = schedule_of(given, _found(run.last_name), updates=steps[-1] if run.counted else None)
    if schedule is None:
        return {}, [remark] if remark else []
    if run.has_adapter:
        return {}, [ADAPTED]
    if run.counted and run.start > steps[-1]:
        return {}, []  # a remark of the run says it
    said = [f"Noise was given {schedule.said}.", *([remark] if remark else [])]
    rates: dict[int, tuple[float, ...]] = {steps[-1]: schedule.rates}
    if run.counted:
        rates = {step: schedule.rates[run.start : step] for step in steps if step >= run.start}
        if run.start or len(schedule.rates) > steps[-1]:
            after = f" and REFERENCE at step {run.start}" if run.start else ""
            said.append(
                f"By the names, the last checkpoint is at step {steps[-1]}{after}: of these updates, "
                f"{steps[-1] - run.start} count."
            )
    elif len(steps) > 1:
        said.append("No name holds a number of updates, so only the last checkpoint is set beside noise.")
    return {"learning_rates": rates, "betas": schedule.betas, "weight_decay": schedule.weight_decay}, said


def only(checkpoint: OpenCheckpoint, names: Sequence[str]) -> OpenCheckpoint:
    """Cut a checkpoint down to some of its tensors.

    >>> list(only(open_checkpoint(resolve_model("base")), ["model.norm.weight"]).tensors)
    ['model.norm.weight']
    """
    return replace(checkpoint, tensors={name: checkpoint.tensors[name] for name in names})


def matching_k(reference: OpenCheckpoint) -> int:
    """Dimension of the leading singular spaces that stands to the matrices as the paper's 512 stands to width 4096.

    Returns the largest power of two that is at most an eighth of the widest matrix's small side, from 1 to 512. The toy
    models get 16, which their tables have too.

    >>> matching_k(open_checkpoint(resolve_model("base")))
    16
    """
    sides = [min(tensor.shape) for tensor in reference.tensors.values() if len(tensor.shape) == 2]
    widest = max(sides, default=1)
    return min(PAPER_K, 2 ** max(0, (widest // LARGEST_SHARE).bit_length() - 1))


def _check_once(names: Sequence[str]) -> None:
    """Refuse one checkpoint under two names: its step would count twice in every mean."""
    first: dict[str, str] = {}
    for name in names:
        place = os.path.realpath(_found(name)) if os.path.exists(_found(name)) else name
        if place in first:
            raise MetricInputError(f"{first[place]} and {name} are one checkpoint, {place}. Give it once.")
        first[place] = name


def _distinct(names: Sequence[str]) -> dict[str, str]:
    """Name checkpoints as a page shows them: hub names as they are, of paths as few last parts as tell them apart."""
    paths = {name: Path(name).expanduser().absolute() for name in names if Path(name).expanduser().exists()}
    for n in range(1, 1 + max((len(path.parts) for path in paths.values()), default=0)):
        shown = {name: "/".join(path.parts[-n:]) for name, path in paths.items()}
        if len(set(shown.values())) == len(set(paths.values())):
            return {name: name for name in names} | shown
    return {name: name for name in names}


def _open(
    name: str, shown: str, *, revision: str | None = None, base: str | None = None, allow_pickle: bool
) -> OpenCheckpoint:
    """Open a shipped model, a local checkpoint or a hub name; only the last has revisions."""
    source = _found(name)
    own = revision if source == name and not Path(name).exists() and "@" not in name else None
    below = None if base is None else _found(base)
    try:
        opened = open_checkpoint(source, revision=own, base=below, allow_pickle=allow_pickle)
    except CheckpointNotFoundError as error:
        shipped = [path.name for path in MODELS.iterdir()] if MODELS.is_dir() else []
        near = difflib.get_close_matches(name, shipped, 1)
        if source != name or not near:
            raise
        raise CheckpointNotFoundError(f"{error} Or did you mean {near[0]!r}, which comes with the book?") from error
    return replace(opened, label=f"{name}@{own}" if own else shown)


def _found(name: str) -> str:
    """Return the folder of a shipped model, the path of what is here, or the name itself, for the hub.

    Warns where a shipped model and something here have one name.
    """
    path = Path(name).expanduser()
    if path.exists() and path.name != name:  # a path, and no bare name
        return str(path)
    try:
        found = resolve_model(name)
    except CheckpointNotFoundError:
        return str(path) if path.exists() else name
    if path.exists() and path.resolve() != Path(found).resolve():
        said = f"{name} is taken for the model that comes with the book; for what lies here write ./{name}"
        warnings.warn(said, stacklevel=2)
    return found


def _checkpoints_named(tuned: str | list[str]) -> tuple[list[str], list[str]]:
    """Names of the checkpoints, and what a reader should know about how they were found."""
    if isinstance(tuned, list):
        if not tuned:
            raise NotebookParameterError("tuned is an empty list; expected a name, a folder or a list of checkpoints.")
        return list(tuned), []
    folder = Path(tuned).expanduser()
    if not tuned.strip() or not folder.is_dir():
        return [tuned], []
    steps, others = checkpoints_inside(folder)
    folders = [path for path in steps if path.is_dir()]
    if folders and holds_weights(folder):
        return [tuned], [
            f"{folder.name} holds weights of its own and {len(folders)} earlier steps, which are not looked at; "
            "give them as a list to see the trajectory."
        ]
    if steps:
        names = listed([path.name for path in others])
        return [str(path) for path in steps], [f"Left out, for it names no step: {names}."] if others else []
    if len(others) > 1 and not holds_weights(folder):
        raise NotebookParameterError(
            f"{tuned} holds several checkpoints and none names a step: {listed([str(path) for path in others])}. Name "
            "one of them, or several in their order."
        )
    return [str(others[0])] if others and not holds_weights(folder) else [tuned], []


def _kept(reference: OpenCheckpoint, modules: Sequence[str] | None) -> list[str]:
    keep = selected(list(reference.tensors), modules)
    if not any(len(reference.tensors[name].shape) == 2 for name in keep):
        raise MetricInputError(
            f"nothing that is left to compare is a matrix ({', '.join(sorted({module_of(n) for n in keep}))}); "
            f"expected at least one. Choose among {sorted({module_of(name) for name in reference.tensors})}: "
            f"{ways('modules')}."
        )
    return keep


def _check_filled_in(name: str) -> None:
    if TO_FILL_IN in name:
        raise NotebookParameterError(
            f"the checkpoint is named {name!r}: the paper does not print who publishes it. Put the owner's name on the "
            f"hub, or a folder, in place of {TO_FILL_IN}, and run again."
        )
    if not name.strip():
        raise NotebookParameterError("a checkpoint's name is empty; expected a hub name, a folder or a shipped model.")


def _check_label(words: str) -> None:
    taken = set(PALETTE)
    if not words.strip() or len(words) > LONGEST_LABEL or label(words) in taken:
        raise NotebookParameterError(
            f"label is {words!r}; expected 1 to {LONGEST_LABEL} characters, and none of {sorted(taken)}, which the "
            "figures use already."
        )
