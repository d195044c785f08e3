"""How a run was trained, as far as noise's ruler needs to know: what its owner says, or what its trainer left behind.

``trainer_state.json`` is text and is read where it lies beside a checkpoint. ``training_args.bin``, which would say
more, is a pickle and is never opened.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np

from opdgeom_utils.diagnose.steps import step_in
from opdgeom_utils.errors import MetricInputError, TrainerStateError, ways
from opdgeom_utils.metrics.inputs import check_count, check_fraction
from opdgeom_utils.metrics.noise_walk import Walk, check_adam
from opdgeom_utils.metrics.schedules import Rates, checked_rates, learning_rate_schedule

STATE = "trainer_state.json"
MOST_STATE_BYTES = 2**28
MOST_UPDATES = 10**6  # a walk keeps a kilobyte for each
MOST_BY_ONE, FEW = 10, 5  # updates that one logged rate may stand for; logged rates that tell a schedule roughly
ADAM = "Adam's betas ({} and {}) and weight decay {}"
FIRST_GROUP = "A trainer logs the rate of its first group of parameters; noise was given it for all weights."
OF_SHAPE = ("updates", "schedule", "warmup", "final_learning_rate")
OPTIONS = ("learning_rate", *OF_SHAPE, "betas", "weight_decay")


@dataclass(frozen=True)
class Schedule:
    """The rate of every update of a run, and its optimiser.

    ``rates``: learning rate of each update, in order.
    ``weight_decay``: decoupled, as in AdamW.
    ``said``: where the rates come from, in words.
    """

    rates: tuple[float, ...]
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    said: str = ""


def walks_at(
    steps: Sequence[int],
    learning_rates: Rates | Mapping[int, Rates] | None,
    *,
    betas: tuple[float, float],
    weight_decay: float | int,
) -> tuple[Walk | None, ...]:
    """Noise's walk up to each checkpoint; nothing where no rates are known.

    ``steps``: of the checkpoints. One checkpoint alone has all the rates if its step is 0.
    ``learning_rates``: the rate of each update of the whole run; a checkpoint at step t has had the first t of them.
    ``betas``, ``weight_decay``: as for :func:`~opdgeom_utils.metrics.noise_walk_rms`.
    Raises MetricInputError for rates that are negative or fewer than a checkpoint's step, or options out of range.

    >>> first, last = walks_at([0, 2], [0.5, 0.25], betas=(0.9, 0.999), weight_decay=0.0)
    >>> first.rms, last.ballistic
    (0.0, 0.75)
    """
    if learning_rates is None:
        return ()
    check_adam(betas, 1e-8, 1.0)
    check_fraction("weight_decay", weight_decay)
    if isinstance(learning_rates, Mapping):
        of_step: dict[int, Rates] = dict(learning_rates)
    else:
        rates = checked_rates(learning_rates)
        if max(steps) > len(rates):
            raise MetricInputError(
                f"the last checkpoint is at step {max(steps)}, and there are {len(rates)} learning rates; expected one "
                "for each update up to it."
            )
        of_step = {step: rates[:step] for step in steps} if len(steps) > 1 or steps[0] else {steps[0]: rates}
    known = {step: len(of_step[step]) for step in steps if step in of_step}
    options: dict[str, Any] = {"betas": betas, "weight_decay": weight_decay}
    found = {n: Walk.along(of_step[step], **options) if n else Walk(0.0, 0.0, 0.0) for step, n in known.items()}
    return tuple(found[known[step]] if step in known else None for step in steps)


def schedule_of(
    given: Mapping[str, Any], checkpoint: str | Path | None, *, updates: int | None
) -> tuple[Schedule | None, str]:
    """Take a run's schedule from what was said of it, or from the ``trainer_state.json`` beside a checkpoint.

    ``given``: ``learning_rate``, ``updates``, ``schedule``, ``warmup``, ``final_learning_rate`` as in
    :func:`~opdgeom_utils.metrics.learning_rate_schedule`, ``betas``, ``weight_decay``; None where nothing was said.
    ``checkpoint``: the last checkpoint, or its name on the hub.
    ``updates``: how many updates came before it, where its name says so.
    Returns the schedule, or None; and what a reader should know about it, or why there is none, or an empty text.
    Raises MetricInputError for numbers out of range, or words that make no schedule.

    >>> schedule_of({"learning_rate": 1e-6, "updates": 2}, None, updates=None)[0].rates
    (1e-06, 1e-06)
    >>> schedule_of({}, None, updates=None)
    (None, '')
    """
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown:
        raise MetricInputError(f"{unknown[0]} is given, expected some of {', '.join(OPTIONS)}.")
    told = {name: value for name, value in given.items() if value is not None}
    optimiser = _optimiser(told)
    assumed = [name for name in ("betas", "weight_decay") if name not in told]
    remark = f"{ADAM.format(*optimiser['betas'], optimiser['weight_decay'])} are assumed." if len(assumed) == 2 else ""
    if "learning_rate" in told:
        rates, said = _as_told(told, updates)
        return Schedule(tuple(rates), said=said, **optimiser), remark
    spare = [name for name in OF_SHAPE if name in told]
    if spare:
        raise MetricInputError(
            f"{spare[0]} is given and no learning rate; expected both. Say the rate: {ways('learning_rate')}."
        )
    state = state_beside(checkpoint)
    if state is None:
        if told:
            raise MetricInputError(
                f"{next(iter(told))} is given and no learning rate, and no {STATE} lies beside the checkpoint. Say the "
                f"rate: {ways('learning_rate')}."
            )
        return None, ""
    try:
        rates, said = rates_of_state(state, updates=updates)
    except TrainerStateError as error:
        return None, f"{error} Without a schedule nothing is said of noise; {ways('learning_rate')} gives one."
    remarks = (remark, FIRST_GROUP, "" if updates else _best_words(_json_of(state)))
    return Schedule(tuple(rates), said=said, **optimiser), " ".join(filter(None, remarks))


def _optimiser(told: Mapping[str, Any]) -> dict[str, Any]:
    """Betas and weight decay, checked."""
    betas = told.get("betas", (0.9, 0.999))
    check_adam(betas, 1e-8, 1.0)
    check_fraction("weight_decay", told.get("weight_decay", 0.0))
    return {"betas": (float(betas[0]), float(betas[1])), "weight_decay": float(told.get("weight_decay", 0.0))}


def _as_told(told: Mapping[str, Any], updates: int | None) -> tuple[list[float], str]:
    """Rates from the words of a recipe."""
    n = told.get("updates", updates)
    if n is None:
        raise MetricInputError(
            f"the learning rate is given and the number of updates is not, nor does the checkpoint's name hold it; "
            f"expected both. Say it: {ways('updates')}."
        )
    check_count("updates", n)
    if n > MOST_UPDATES or (updates and n < updates):
        raise MetricInputError(
            f"updates is {n}, expected {updates or 1} (the last checkpoint's step) to {MOST_UPDATES}."
        )
    if not float(told["learning_rate"]) > 0:
        raise MetricInputError(f"learning_rate is {told['learning_rate']!r}, expected a number above 0.")
    shape = {name: told[name] for name in OF_SHAPE[1:] if name in told}
    rates = learning_rate_schedule(told["learning_rate"], n, **shape)
    high, end, form = told["learning_rate"], shape.get("final_learning_rate", 0), shape.get("schedule", "constant")
    if end and form == "constant" and end != high:
        raise MetricInputError(
            f"final_learning_rate is {end:g} and the schedule is constant, at {high:g}; expected linear or cosine. Say "
            "it: --schedule cosine (opdgeom), SCHEDULE=cosine (make report) or -p schedule cosine (papermill)."
        )
    words = f"{n} update{'s' if n > 1 else ''} at a learning rate of {high:g}, {form}"
    down = f" down to {end:g}" if end and form != "constant" else ""
    warm = f" after a warm-up over {shape['warmup']:.3g} of them" if shape.get("warmup") else ""
    return rates, f"{words}{down}{warm}, as given"


def state_beside(checkpoint: str | Path | None) -> Path | None:
    """Find the ``trainer_state.json`` of a checkpoint: in its folder (a file's too), or in the run's above a step."""
    if checkpoint is None or not Path(checkpoint).expanduser().exists():
        return None
    path = Path(checkpoint).expanduser()
    folders = [path] if path.is_dir() else [path.parent]
    if step_in(folders[0].name) is not None:
        folders.append(folders[0].parent)
    return next((folder / STATE for folder in folders if (folder / STATE).is_file()), None)


def rates_of_state(path: Path, *, updates: int | None = None) -> tuple[list[float], str]:
    """Read the rate of every update from a ``trainer_state.json``.

    ``path``: the file. It logs the rate now and then (``logging_steps``); between two entries, and outside them by no
    more than one such interval, rates are taken from the straight line through the nearest two. One entry alone is
    taken for all, if these are few.
    ``updates``: how many updates to return; by default as many as the trainer had made (``global_step``).
    Returns one rate for each update, and where they come from, in words. Raises TrainerStateError when the file is
    damaged, holds no rates above 0, holds rates that are no numbers from 0 up, or too few of them.
    """
    state = _json_of(path)
    history = state.get("log_history")
    entries = [e for e in history if isinstance(e, dict)] if isinstance(history, list) else []
    pairs = [(e["step"], e["learning_rate"]) for e in entries if {"step", "learning_rate"} <= set(e)]
    if not pairs:
        raise TrainerStateError(f"{path.name} logs no learning rate, so it tells no schedule.")
    sound = all(_is_amount(number) for pair in pairs for number in pair)
    last = (state.get("global_step") or max(step for step, _ in pairs)) if sound else 0
    if type(last) is not int or not 0 < max(last, updates or 0) <= MOST_UPDATES or not last:
        raise TrainerStateError(f"{path.name} logs steps or rates that are no finite numbers from 0 up.")
    logged = dict(pairs)
    n = updates or last
    if n > max(last, *logged):
        raise TrainerStateError(f"{path.name} ends at update {last}, before the checkpoint's {n}.")
    steps = sorted(logged)
    if not any(logged.values()):
        raise TrainerStateError(f"{path.name} logs no learning rate above 0, so it tells no schedule.")
    if len(steps) == 1 and n > MOST_BY_ONE:
        raise TrainerStateError(
            f"{path.name} logs one learning rate, of update {steps[0]:g}, for {n} updates; one tells no schedule."
        )
    gaps = [later - step for step, later in pairwise(steps)] or [steps[0]]
    for first, final, gap in ((1, steps[0] - 1, gaps[0]), (steps[-1] + 1, n, gaps[-1])):
        if final - first >= gap:
            raise TrainerStateError(
                f"{path.name} logs no learning rate of updates {first:g} to {final:g} of {n}, and one interval of its "
                f"log is {gap:g}: it was cut short, or belongs to another run."
            )
    rates = _between(np.arange(1, n + 1), np.array(steps, float), np.array([logged[step] for step in steps], float))
    amount = f"{n} update{'s' if n > 1 else ''}{f' (the first of {last})' if n < last else ''}"
    return rates.tolist(), f"{amount}, their learning rates read from {path.name}{_filled(steps, gaps, n)}"


def _filled(steps: Sequence[float | int], gaps: Sequence[float | int], n: int) -> str:
    """Say how many of the updates a log knows, and what was taken for the others; nothing where it knows all."""
    known = sum(step <= n for step in steps)
    if known >= n:
        return ""
    if len(steps) == 1:
        return f"; it logs one of {n}, and that rate is taken for all"
    after_first = gaps[1:] if steps[0] == 1 and len(gaps) > 1 else gaps  # logging_first_step
    every, longest = mode(after_first), max(after_first)
    often = f", every {every:g}" if every > 1 else ""
    hole = f", with gaps up to {longest:g}" if longest > every else ""
    rough = ". So few tell a schedule roughly: what rises and falls between two is not seen" if known < FEW else ""
    return f"; it logs {known} of {n}{often}{hole}, and the others are on straight lines between them{rough}"


def _best_words(state: Mapping[str, Any]) -> str:
    """Say that a trainer may have put back its best weights, where its log names a checkpoint before the last."""
    best, last = step_in(str(state.get("best_model_checkpoint") or "")), state.get("global_step")
    if best is None or not isinstance(last, int) or best >= last:
        return ""
    return (
        f"{STATE} names update {best} as the best. If the weights are those (load_best_model_at_end), give its folder, "
        f"checkpoint-{best}, in place of this one: noise was given all {last} updates."
    )


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _json_of(path: Path) -> dict[str, Any]:
    """Return the object in the file, or say what is wrong with it."""
    try:
        if path.stat().st_size > MOST_STATE_BYTES:
            raise TrainerStateError(f"{path.name} has {path.stat().st_size} bytes, too many for a trainer's log.")
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainerStateError(f"{path.name} cannot be read ({str(error).splitlines()[0]}).") from error
    if not isinstance(state, dict):
        raise TrainerStateError(f"{path.name} holds a {type(state).__name__}, expected the state of a trainer.")
    return state


def _between(at: np.ndarray, steps: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Straight lines through neighbouring points, and on beyond the first and last two; from 0 to the highest rate."""
    if len(steps) == 1:
        return np.full(len(at), rates[0])
    right = np.clip(np.searchsorted(steps, at), 1, len(steps) - 1)
    slopes = np.diff(rates) / np.diff(steps)
    return np.clip(rates[right - 1] + slopes[right - 1] * (at - steps[right - 1]), 0.0, rates.max())
