"""A run as a report names it: its reference and its checkpoints, opened and checked before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from opdgeom_utils.charts.theme import NULLS, PALETTE, label
from opdgeom_utils.checkpoints import OpenCheckpoint, module_of, open_checkpoint
from opdgeom_utils.checkpoints.comparison import ComparisonReport, aligned
from opdgeom_utils.checkpoints.pickled_weights import ENDINGS
from opdgeom_utils.diagnose import STEP_IN_NAME
from opdgeom_utils.errors import CheckpointNotFoundError, MetricInputError, NotebookParameterError
from opdgeom_utils.models import resolve_model

TO_FILL_IN = "FILL-IN"
LONGEST_LABEL = 40
PAPER_K, LARGEST_SHARE = 512, 8
WEIGHTS = (".safetensors", *ENDINGS)


@dataclass(frozen=True)
class OpenedRun:
    """A reference and the checkpoints to measure against it, cut down to what all of them have.

    Attributes
    ----------
    label : str
        What the figures call the run.
    reference : OpenCheckpoint
        The model before training.
    checkpoints : tuple of (int, OpenCheckpoint)
        Step and checkpoint, steps ascending. Where no name holds a step: 0, or the place in the list, from 1.
    reports : tuple of ComparisonReport
        For each checkpoint, what is compared with the reference and what is not.
    remarks : tuple of str
        What was decided while opening, in words.
    """

    label: str
    reference: OpenCheckpoint
    checkpoints: tuple[tuple[int, OpenCheckpoint], ...]
    reports: tuple[ComparisonReport, ...]
    remarks: tuple[str, ...] = ()


def open_run(
    reference: str,
    tuned: str | list[str],
    *,
    revision: str | None = None,
    base: str | None = None,
    modules: Sequence[str] | None = None,
    label: str = "your run",
    strict: bool = True,
) -> OpenedRun:
    """Open what a report compares; no matrix is read, except a few rows to know the base of an adapter.

    Parameters
    ----------
    reference : str
        A shipped model's name (``base``), a folder, a file, or a hub name (``name`` or ``name@revision``).
    tuned : str or list of str
        The same; or a folder of steps (``step_000050.safetensors``, ``checkpoint-50``); or a list of checkpoints.
    revision : str, optional
        Branch, tag or commit of every hub name in ``tuned`` that does not carry its own after an ``@``.
    base : str, optional
        What adapters in ``tuned`` are merged over, in place of what their own configuration names.
    modules : sequence of str, optional
        Keep only these kinds of tensor.
    label : str
        Name of the run in figures and sentences.
    strict : bool
        Whether anything that cannot be compared is an error.

    Raises
    ------
    NotebookParameterError
        When a name was not filled in, a list is empty, the label is taken, or steps are missing or given twice.
    CheckpointNotFoundError, CheckpointDamagedError, CheckpointUnsafeError, CheckpointMismatchError
        When a checkpoint is missing, unreadable, not only tensors, or of another architecture.
    MetricInputError
        When a module is unknown, or nothing that is left is a matrix.

    Examples
    --------
    >>> run = open_run("base", "anchor", modules=["q_proj", "k_proj"])
    >>> run.checkpoints[0][0], len(run.reference.tensors), run.reports[0].complete
    (0, 8, True)
    """
    _check_label(label)
    names, remarks = _checkpoints_named(tuned)
    for name in [reference, *names]:
        _check_filled_in(name)
    steps = _steps_of(names)
    opened = sorted(
        ((step, _open(name, revision, base)) for step, name in zip(steps, names, strict=True)), key=lambda pair: pair[0]
    )
    before, after, reports = aligned(_open(reference), [checkpoint for _, checkpoint in opened], strict=strict)
    keep = _kept(before, modules)
    before, *after = (only(one, keep) for one in (before, *after))
    if len(names) > 1 and not any(_step_in(name) for name in names):
        remarks.append("No name holds a step: the checkpoints are numbered in the order in which they were given.")
    pairs = tuple((step, checkpoint) for (step, _), checkpoint in zip(opened, after, strict=True))
    return OpenedRun(label, before, pairs, tuple(reports), tuple(remarks))


def only(checkpoint: OpenCheckpoint, names: Sequence[str]) -> OpenCheckpoint:
    """Cut a checkpoint down to some of its tensors.

    Examples
    --------
    >>> list(only(open_checkpoint(resolve_model("base")), ["model.norm.weight"]).tensors)
    ['model.norm.weight']
    """
    return replace(checkpoint, tensors={name: checkpoint.tensors[name] for name in names})


def matching_k(reference: OpenCheckpoint) -> int:
    """Dimension of the leading singular spaces that stands to the matrices as the paper's 512 stands to width 4096.

    Returns
    -------
    int
        The largest power of two that is at most an eighth of the widest matrix's small side, from 1 to 512. The toy
        models get 16, which their tables have too.

    Examples
    --------
    >>> matching_k(open_checkpoint(resolve_model("base")))
    16
    """
    sides = [min(tensor.shape) for tensor in reference.tensors.values() if len(tensor.shape) == 2]
    widest = max(sides, default=1)
    return min(PAPER_K, 2 ** max(0, (widest // LARGEST_SHARE).bit_length() - 1))


def shown_name(name: str) -> str:
    """Name of a checkpoint as a page shows it: hub names as they are, of an absolute path only the last part.

    Examples
    --------
    >>> shown_name("/home/me/runs/checkpoint-50"), shown_name("Qwen/Qwen3-8B-Base")
    ('checkpoint-50', 'Qwen/Qwen3-8B-Base')
    """
    return Path(name).name if Path(name).is_absolute() else name


def _open(name: str, revision: str | None = None, base: str | None = None) -> OpenCheckpoint:
    """Open a shipped model, a local checkpoint or a hub name; only the last has revisions."""
    below = None if base is None else resolve_model(base)
    is_local = Path(name).expanduser().exists()
    if not is_local:
        name_alone, _, own = name.partition("@")
        try:
            resolved = resolve_model(name_alone)
        except CheckpointNotFoundError:
            resolved = name_alone
        if resolved == name_alone:
            opened = open_checkpoint(name, revision=None if own else revision, base=below)
            return replace(opened, label=name if own or not revision else f"{name}@{revision}")
        return replace(open_checkpoint(resolved, base=below), label=name)
    return replace(open_checkpoint(Path(name).expanduser(), base=below), label=shown_name(name))


def _checkpoints_named(tuned: str | list[str]) -> tuple[list[str], list[str]]:
    """Names of the checkpoints, and what a reader should know about how they were found."""
    if isinstance(tuned, list):
        if not tuned:
            raise NotebookParameterError("tuned is an empty list; expected a name, a folder or a list of checkpoints.")
        return list(tuned), []
    folder = Path(tuned).expanduser()
    if not folder.is_dir():
        return [tuned], []
    stems = {path: path.name.split(".")[0] for path in folder.iterdir()}
    steps = sorted(path for path, stem in stems.items() if STEP_IN_NAME.fullmatch(stem))
    inside = [path for path in steps if path.is_dir() or path.suffix in WEIGHTS]  # no checksums that lie beside them
    if not inside:
        return [tuned], []
    has_weights = any(folder.glob("*.safetensors")) and any(path.is_dir() for path in inside)
    if has_weights:
        return [tuned], [
            f"{shown_name(tuned)} holds weights of its own and {len(inside)} earlier steps, which are not looked at; "
            "give them as a list to see the trajectory."
        ]
    return [str(path) for path in inside], []


def _step_in(name: str) -> str | None:
    found = STEP_IN_NAME.findall(Path(name).name)
    return found[-1] if found else None


def _steps_of(names: Sequence[str]) -> list[int]:
    found = [_step_in(name) for name in names]
    if not any(found):
        return [0] if len(names) == 1 else list(range(1, len(names) + 1))
    steps = [-1 if step is None else int(step) for step in found]
    if -1 in steps or len(set(steps)) < len(steps):
        raise NotebookParameterError(
            f"tuned names the steps {['none' if s < 0 else s for s in steps]}; expected each name to hold its own step "
            "(checkpoint-50, step_000050.safetensors), or none of them."
        )
    return steps


def _kept(reference: OpenCheckpoint, modules: Sequence[str] | None) -> list[str]:
    known = sorted({module_of(name) for name in reference.tensors})
    unknown = sorted(set(modules or []) - set(known))
    if unknown or (modules is not None and not modules):
        raise MetricInputError(f"modules are {list(modules or [])}, expected some of {known}.")
    keep = [name for name in reference.tensors if modules is None or module_of(name) in modules]
    if not any(len(reference.tensors[name].shape) == 2 for name in keep):
        raise MetricInputError(
            f"nothing that is left to compare is a matrix ({', '.join(sorted({module_of(n) for n in keep}))}); "
            f"expected at least one. Choose modules among {known}."
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
    taken = {*PALETTE, *NULLS.values()} - {"your run"}
    if not words.strip() or len(words) > LONGEST_LABEL or label(words) in taken:
        raise NotebookParameterError(
            f"label is {words!r}; expected 1 to {LONGEST_LABEL} characters, and none of {sorted(taken)}, which the "
            "figures use already."
        )
