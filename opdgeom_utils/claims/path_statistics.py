"""The statistics of ``claims_rq2.yaml`` and ``claims_rq3.yaml``: cells of the long table in, comparisons out.

Each operation takes operands by name. An operand is a number, a cell (see :mod:`opdgeom_utils.claims.look_up`), or an
operation again, written ``{ratio: {value: ..., over: ...}}``.

Asked for a null (``look.null`` is set), the same is computed on what learned nothing: a random walk with the run's own
steps in place of the run, a random space in place of a projection's, another seed of OPD in place of a variant whose
path is compared with OPD's. A cell that is a null already has no second one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from opdgeom_utils.claims.comparisons import Comparison, Part, functions_of
from opdgeom_utils.claims.look_up import CELL_KEYS, Cell, LookUp

Operand = float | int | Mapping[str, Any]
StandIn = Callable[[LookUp, Cell], Cell | None]


def contrast(look: LookUp, *, value: Operand, minus: Operand) -> np.ndarray:
    """``value - minus``, seed by seed."""
    return _numbers(look, value) - _numbers(look, minus)


def distance(look: LookUp, *, value: Operand, minus: Operand) -> np.ndarray:
    """``|value - minus|``, seed by seed."""
    return np.abs(_numbers(look, value, _another_seed) - _numbers(look, minus, _itself))


def ratio(look: LookUp, *, value: Operand, over: Operand) -> np.ndarray:
    """``value / over``, seed by seed; ``nan`` where ``over`` is 0."""
    below = _numbers(look, over)
    return _numbers(look, value) / np.where(below == 0, np.nan, below)


def log_change(look: LookUp, *, value: Operand, over: Operand) -> np.ndarray:
    """``|log(value / over)|``, seed by seed; ``nan`` where either is not positive."""
    return np.abs(_log(_numbers(look, value)) - _log(_numbers(look, over)))


def band(look: LookUp, *, value: Cell) -> np.ndarray:
    """Largest over smallest value of a path, from the share ``from`` of its last step on; 1 for a flat path."""
    cell = _walk(look, value)
    if cell is None:
        return look.undefined()
    out = []
    for path in look.paths(cell):
        kept = [v for step, v in path.items() if step >= cell["from"] * max(path)]
        out.append(max(kept) / min(kept) if kept and min(kept) > 0 else np.nan)
    return np.array(out)


def kept_share(look: LookUp, *, value: Cell, start: Cell, reference: Cell, progress: str) -> np.ndarray:
    """``(value - start) / (reference - start)``: progress under a constraint over free progress.

    ``progress`` says whether the quantity falls (``down``) or rises (``up``) as a run learns. A seed whose free run
    makes no progress has no share. 1: nothing was lost; 0: nothing was learned; below 0: ground was lost.
    """
    sign = -1 if progress == "down" else 1
    begin = _numbers(look, start, _itself)
    gain = sign * (_numbers(look, value, _random_space) - begin)
    free = sign * (_numbers(look, reference, _itself) - begin)
    for seed in (s for s, g in zip(look.seeds, free, strict=True) if g <= 0):
        look.note(f"the free run of {reference['recipe']} makes no progress in seed {seed}")
    return gain / np.where(free > 0, free, np.nan)


def path_gap(look: LookUp, *, value: Cell, reference: Cell, until: int) -> np.ndarray:
    """Mean over common steps, up to ``until``, of ``|log(value / reference)|``; 0 for the same path."""
    out = []
    for own, other in zip(look.paths(_another_seed(look, value)), look.paths(reference), strict=True):
        common = [step for step in own if step in other and step <= until]
        gaps = np.abs(_log(np.array([own[s] for s in common])) - _log(np.array([other[s] for s in common])))
        out.append(float(gaps.mean()) if len(common) else np.nan)
    return np.array(out)


OPERATIONS = functions_of(__name__)


def _compare(operation: Callable[..., np.ndarray], look: LookUp, *, comparisons: Sequence[Any]) -> list[Comparison]:
    found = []
    for entry in comparisons:
        parts = []
        for spec in entry.get("together", [entry]):
            values = operation(look, **{name: operand for name, operand in spec.items() if name != "label"})
            parts.append(Part(spec["label"], tuple(float(v) for v in values)))
        found.append(Comparison(tuple(parts)))
    return found


STATISTICS = {name: partial(_compare, operation) for name, operation in OPERATIONS.items()}


def problem_of(name: str, comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Say what is wrong with a claim's operands; empty if nothing is.

    >>> problem_of("ratio", [{"label": "a over b", "value": 1.0, "under": 2.0}])
    "ratio takes value over, not ['under', 'value']"
    """
    for spec in (part for entry in comparisons for part in entry.get("together", [entry])):
        wrong = _wrong(name, {k: v for k, v in spec.items() if k != "label"})
        if wrong or "label" not in spec:
            return wrong or f"a comparison of {name} has no label"
    return "" if comparisons else "there are no comparisons"


def _wrong(name: str, spec: Mapping[str, Any]) -> str:
    if name not in OPERATIONS:
        return f"{name!r} is not one of {sorted(OPERATIONS)}"
    _, *taken = inspect.signature(OPERATIONS[name]).parameters
    if set(spec) != set(taken):
        return f"{name} takes {' '.join(taken)}, not {sorted(spec)}"
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


def _itself(_look: LookUp, cell: Cell) -> Cell:
    return cell


def _walk(look: LookUp, cell: Cell) -> Cell | None:
    if not look.null or cell.get("seed") == "next":
        return cell
    if cell.get("null") or cell["quantity"] not in ("sim_to_end", "stable_rank", "captured_share"):
        return None
    return _named(look, "a random walk with the run's own steps", {**cell, "null": "random_walk"})


def _random_space(look: LookUp, cell: Cell) -> Cell:
    random = f"{cell['recipe'].split('_project_')[0]}_project_random"
    name = "a random space of the same rank (gradient projected)"
    return _named(look, name, {**cell, "recipe": random}) if look.null else cell


def _another_seed(look: LookUp, cell: Cell) -> Cell:
    return _named(look, "another OPD seed", {**cell, "recipe": "opd", "seed": "next"}) if look.null else cell


def _named(look: LookUp, name: str, cell: Cell) -> Cell:
    look.null_name = name
    return cell


def _numbers(look: LookUp, operand: Operand, stand_in: StandIn = _walk) -> np.ndarray:
    if not isinstance(operand, Mapping):
        return np.full(len(look.seeds), float(operand))
    if "recipe" not in operand:
        ((name, spec),) = operand.items()
        return OPERATIONS[name](look, **spec)
    cell = stand_in(look, operand)
    return look.undefined() if cell is None else look.cell(cell)


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.where(values > 0, values, np.nan))
