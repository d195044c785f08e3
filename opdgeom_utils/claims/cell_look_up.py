"""Look up cells of the long table ``measures``: one number per seed, at a step, at a share of the run, or a whole path.

A cell is written as ``claims_rq2.yaml`` writes it: ``{recipe: opd, quantity: sim_to_end, at: 0.2, side: right}``.
What a cell leaves out must have one answer in the table; two answers are a problem that is said, and not a mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.measures.long_table import nearest

CELL_KEYS = frozenset(("recipe", "quantity", "at", "side", "k", "scope", "null", "other", "seed", "from"))
SEED, REST = "{seed}", "{rest}"
Cell = Mapping[str, Any]
Path = dict[int, float]


class Measure(NamedTuple):
    """What tells two numbers of one (recipe, quantity, null) apart, and the number."""

    seed: int
    step: int
    scope: str
    side: str
    k: int
    other_recipe: str
    other_seed: int
    other_step: int
    value: float


Index = Mapping[tuple[str, str, str], Sequence[Measure]]


def index_measures(measures: pd.DataFrame | None) -> Index | None:
    """Group the long table by recipe, quantity and null; None stays None.

    Parameters
    ----------
    measures
        ``recipe, seed, step, scope, side, k, quantity, null, other_recipe, other_seed,
        other_step, value``, one row per number.

    Examples
    --------
    >>> row = {"recipe": "opd", "seed": 0, "step": 8, "scope": "", "side": "", "k": 0, "quantity": "accuracy"}
    >>> index = index_measures(pd.DataFrame([row | {"null": "", "other_recipe": "", "value": 0.5}]))
    >>> index["opd", "accuracy", ""][0].value
    0.5
    """
    if measures is None:
        return None
    index: dict[tuple[str, str, str], list[Measure]] = {}
    keys = measures.filter(items=["recipe", "quantity", "null"]).itertuples(index=False, name=None)
    rows = measures.filter(items=list(Measure._fields)).reindex(columns=list(Measure._fields))
    for key, row in zip(keys, rows.itertuples(index=False, name=None), strict=True):
        index.setdefault(key, []).append(Measure(*row))
    return index


@dataclass
class MeasuredCells:
    """Values of cells, seed by seed.

    Parameters
    ----------
    index
        From :func:`index_measures`; None where no such table was made.
    scope
        The claim's scope; rows whose scope is empty fit any.
    seeds
        The order of every array.
    problems
        Filled with the reason of each value that could not be had.
    """

    index: Index | None
    scope: str
    seeds: tuple[int, ...]
    problems: list[str] = field(default_factory=list)

    def value(self, cell: Cell) -> np.ndarray:
        """Value of a cell in the order of ``seeds``, ``nan`` where missing."""
        return np.array([self._at(path, cell) for path in self.paths(cell)])

    def paths(self, cell: Cell) -> list[Path]:
        """Every step of a cell, one dictionary per seed; empty where there is none.

        Raises
        ------
        MetricInputError
            If the cell has a key that no cell has.
        """
        unknown = set(cell) - CELL_KEYS
        if unknown:
            raise MetricInputError(f"a cell has the keys {sorted(unknown)}; expected some of {sorted(CELL_KEYS)}")
        if self.index is None:
            self.say("the table of measures (data/results/measures.parquet) has not been made")
            return [{} for _ in self.seeds]
        turn = 1 if cell.get("seed") == "next" else 0
        seeds = [self.seeds[(i + turn) % len(self.seeds)] for i in range(len(self.seeds))]
        return [self._path(cell, seed) for seed in seeds]

    def say(self, problem: str) -> None:
        """Note a problem once."""
        if problem not in self.problems:
            self.problems.append(problem)

    def _path(self, cell: Cell, seed: int) -> Path:
        assert self.index is not None
        rows = self.index.get((cell["recipe"], cell["quantity"], cell.get("null", "")), ())
        found: dict[int, list[Measure]] = {}
        for row in rows:
            if row.seed == seed and self._fits(row, cell):
                found.setdefault(row.step, []).append(row)
        if not found:
            self.say(f"measures has nothing for {describe(cell)}")
        averaged = REST in cell.get("other", "")
        if any(len({(r.scope, r.side, r.k) for r in own}) > 1 for own in found.values()):
            self.say(f"measures has more than one number for {describe(cell)}: name its side, k or scope")
            return {}
        if not averaged and any(len(own) > 1 for own in found.values()):
            self.say(f"measures says {describe(cell)} twice")
            return {}
        return {step: float(np.mean([r.value for r in own])) for step, own in sorted(found.items())}

    def _fits(self, row: Measure, cell: Cell) -> bool:
        if row.scope != cell.get("scope", self.scope) and row.scope:
            return False
        if row.side != cell.get("side", row.side) or row.k != cell.get("k", row.k):
            return False
        recipe, _, place = cell.get("other", "").partition(":")
        if not place:
            return row.other_recipe == recipe
        seed, _, step = place.partition("@")
        same = seed == SEED
        return (row.other_recipe, row.other_step, row.other_seed == row.seed) == (recipe, int(step), same)

    def _at(self, path: Path, cell: Cell) -> float:
        at = cell.get("at", "end")
        if not path:
            return float("nan")
        steps = list(path)
        if at in ("end", "first"):
            return path[steps[-1 if at == "end" else 0]]
        if isinstance(at, Mapping):
            ((kind, place),) = at.items()
            if kind == "near":
                return path[nearest(steps, place)]
            later = [path[s] for s in steps if s > nearest(steps, place * steps[-1])]
            return float(np.mean(later)) if later else float("nan")
        step = at * steps[-1] if isinstance(at, float) else at
        if not steps[0] <= step <= steps[-1]:
            self.say(f"{describe(cell)} is asked for at update {step:g}; measured from {steps[0]} to {steps[-1]}")
            return float("nan")
        return float(np.interp(step, steps, [path[s] for s in steps]))


def describe(cell: Cell) -> str:
    """Name a cell in words for a reason.

    >>> describe({"recipe": "opd", "quantity": "sim_to_end", "at": 0.2, "side": "right", "k": 4})
    'sim_to_end of opd (side right, k 4)'
    """
    rest = [f"{key} {cell[key]}" for key in ("side", "k", "null", "other") if cell.get(key)]
    return f"{cell['quantity']} of {cell['recipe']}" + (f" ({', '.join(rest)})" if rest else "")
