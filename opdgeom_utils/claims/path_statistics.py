"""The statistics that ``claims_rq2.yaml`` and ``claims_rq3.yaml`` name: cells of the long table in, comparisons out.

Each takes operands by name. An operand is a number, a cell (see :mod:`opdgeom_utils.claims.cell_look_up`), or one
of these statistics again, written ``{ratio: {value: ..., over: ...}}``. A comparison is a label with operands, or
several of them ``together``: parts that must all hold. No statistic knows a threshold; the rule does, in
:mod:`opdgeom_utils.claims`.

Asked for a null (``measured.suffix`` is set), the same statistic is computed on what learned nothing: a random walk
with the run's own steps in place of the run, a random space in place of a projection's, another seed of OPD in place of
a variant whose path is compared with OPD's. A cell that is a null already has no second one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from opdgeom_utils.claims.cell_look_up import CELL_KEYS, Cell
from opdgeom_utils.claims.look_up import Measured
from opdgeom_utils.claims.statistics import Comparison, Part, Statistic

OPERANDS = {
    "contrast": "value minus",
    "distance": "value minus",
    "ratio": "value over",
    "log_change": "value over",
    "band": "value",
    "kept_share": "value start reference progress",
    "path_gap": "value reference until",
}
WALK, SPACE, OTHER_SEED = (
    "a random walk with the run's own steps",
    "a random space of the same rank",
    "another OPD seed",
)
Spec = Mapping[str, Any]


def contrast(measured: Measured, spec: Spec) -> np.ndarray:
    """``value - minus``, seed by seed."""
    return _operand(measured, spec["value"]) - _operand(measured, spec["minus"])


def distance(measured: Measured, spec: Spec) -> np.ndarray:
    """``|value - minus|``, seed by seed."""
    return np.abs(_operand(measured, _variant(measured, spec["value"])) - _operand(measured, spec["minus"], real=True))


def ratio(measured: Measured, spec: Spec) -> np.ndarray:
    """``value / over``, seed by seed; ``nan`` where ``over`` is 0."""
    over = _operand(measured, spec["over"])
    return _operand(measured, spec["value"]) / np.where(over == 0, np.nan, over)


def log_change(measured: Measured, spec: Spec) -> np.ndarray:
    """``|log(value / over)|``, seed by seed; ``nan`` where either is not positive."""
    return np.abs(_log(_operand(measured, spec["value"])) - _log(_operand(measured, spec["over"])))


def band(measured: Measured, spec: Spec) -> np.ndarray:
    """Largest over smallest value of a path, from the share ``from`` of its last step on; 1 for a flat path."""
    cell = _as_walk(measured, spec["value"])
    out = []
    for path in measured.cells.paths(cell) if cell else [{}] * len(measured.seeds):
        kept = [v for step, v in path.items() if step >= cell["from"] * max(path)] if cell else []
        out.append(max(kept) / min(kept) if kept and min(kept) > 0 else np.nan)
    return np.array(out)


def kept_share(measured: Measured, spec: Spec) -> np.ndarray:
    """``(value - start) / (reference - start)``: progress under a constraint over free progress.

    ``progress`` says whether the quantity falls (``down``) or rises (``up``) as a run learns. A seed whose free run
    makes no progress has no share. 1: nothing was lost; 0: nothing was learned; below 0: ground was lost.
    """
    sign = -1 if spec["progress"] == "down" else 1
    start, reference = (_operand(measured, spec[name], real=True) for name in ("start", "reference"))
    gain = sign * (_operand(measured, _random_space(measured, spec["value"]), real=True) - start)
    free = sign * (reference - start)
    for seed in (s for s, g in zip(measured.seeds, free, strict=True) if g <= 0):
        measured.cells.say(f"the free run of {spec['reference']['recipe']} makes no progress in seed {seed}")
    return gain / np.where(free > 0, free, np.nan)


def path_gap(measured: Measured, spec: Spec) -> np.ndarray:
    """Mean over common steps, up to ``until``, of ``|log(value / reference)|``; 0 for the same path."""
    ours, theirs = (measured.cells.paths(c) for c in (_variant(measured, spec["value"]), spec["reference"]))
    out = []
    for own, other in zip(ours, theirs, strict=True):
        common = [step for step in own if step in other and step <= spec["until"]]
        gaps = np.abs(_log(np.array([own[s] for s in common])) - _log(np.array([other[s] for s in common])))
        out.append(float(gaps.mean()) if len(common) else np.nan)
    return np.array(out)


OPERATIONS: dict[str, Callable[[Measured, Spec], np.ndarray]] = {
    f.__name__: f for f in (contrast, distance, ratio, log_change, band, kept_share, path_gap)
}


def compare(name: str, measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Turn a claim's comparisons into numbers.

    Parameters
    ----------
    name
        One of :data:`OPERATIONS`.
    measured
        The look-up; with a suffix it asks for the null.
    args
        ``comparisons``: a list of operands with a ``label``, or of ``together``, a list of these.
    """
    found = []
    for entry in args["comparisons"]:
        parts = entry.get("together", [entry])
        values = [tuple(float(v) for v in OPERATIONS[name](measured, part)) for part in parts]
        found.append(Comparison(tuple(Part(p["label"], v) for p, v in zip(parts, values, strict=True))))
    return found


STATISTICS: dict[str, Statistic] = {
    name: partial(compare, name) for name in ("contrast", "ratio", "band", "kept_share", "path_gap")
}


def problem_of(name: str, args: Mapping[str, Any]) -> str:
    """Say what is wrong with a claim's operands; empty if nothing is.

    Examples
    --------
    >>> problem_of("ratio", {"comparisons": [{"label": "a over b", "value": 1.0, "under": 2.0}]})
    "ratio takes value over, not ['under', 'value']"
    """
    for entry in args.get("comparisons", ()):
        for part in entry.get("together", [entry]):
            wrong = _wrong(name, {k: v for k, v in part.items() if k != "label"})
            if wrong or "label" not in part:
                return wrong or f"a comparison of {name} has no label"
    return "" if args.get("comparisons") else "there are no comparisons"


def _wrong(name: str, spec: Spec) -> str:
    if name not in OPERANDS:
        return f"{name!r} is not one of {sorted(OPERANDS)}"
    if set(spec) != set(OPERANDS[name].split()):
        return f"{name} takes {OPERANDS[name]}, not {sorted(spec)}"
    for operand in (v for v in spec.values() if isinstance(v, Mapping)):
        if "recipe" not in operand:
            ((inner, inner_spec),) = operand.items()
            wrong = _wrong(inner, inner_spec)
        else:
            unknown = sorted(set(operand) - CELL_KEYS)
            wrong = f"a cell has the unknown keys {unknown}" if unknown else ""
        if wrong:
            return wrong
    return ""


def _operand(measured: Measured, expression: Any, *, real: bool = False) -> np.ndarray:
    if expression is None:
        return np.full(len(measured.seeds), np.nan)
    if not isinstance(expression, Mapping):
        return np.full(len(measured.seeds), float(expression))
    if "recipe" not in expression:
        ((name, spec),) = expression.items()
        return OPERATIONS[name](measured, spec)
    cell = expression if real else _as_walk(measured, expression)
    return np.full(len(measured.seeds), np.nan) if cell is None else measured.cells.value(cell)


def _as_walk(measured: Measured, cell: Cell) -> Cell | None:
    """Put the random walk in a run's place, if a null is asked for; None where the cell has none."""
    if not measured.suffix or cell.get("seed") == "next":
        return cell
    if cell.get("null") or cell["quantity"] not in ("sim_to_end", "stable_rank", "captured_share"):
        return None
    return _named(measured, WALK, {**cell, "null": "random_walk"})


def _random_space(measured: Measured, cell: Cell) -> Cell:
    """Put the random space in a projection's place, if a null is asked for."""
    if not measured.suffix:
        return cell
    return _named(measured, SPACE, {**cell, "recipe": f"{cell['recipe'].split('_project_')[0]}_project_random"})


def _variant(measured: Measured, cell: Cell) -> Cell:
    """Put another seed of OPD in a variant's place, if a null is asked for."""
    if not measured.suffix:
        return cell
    return _named(measured, OTHER_SEED, {**cell, "recipe": "opd", "seed": "next"})


def _named(measured: Measured, name: str, cell: Cell) -> Cell:
    measured.null_name = name
    return cell


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.where(values > 0, values, np.nan))
