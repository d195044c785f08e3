"""Look up one number per seed: a metric of a recipe where runs are compared, or a cell of the long table.

A cell is written as ``claims_rq2.yaml`` writes it: ``{recipe: opd, quantity: sim_to_end, at: 0.2, side: right}``. What
it leaves out must have one answer in the table; two answers are a problem that is noted, and not a mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import pandas as pd

from opdgeom_utils.claims import matching
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.intervals import over_pairs
from opdgeom_utils.measures.long_table import nearest_step, pick
from opdgeom_utils.scopes import SCOPES

CELL_KEYS = frozenset(("recipe", "quantity", "at", "side", "k", "scope", "null", "other", "seed", "from"))
PLACE_KEYS = ("recipe", "quantity", "null", "side", "k", "other")  # with the scope, they say where a path stands
OWN_SEED, OTHER_SEEDS = "{seed}", "{rest}"
SAME_STEP = "same"  # as many updates as the run itself
Cell = Mapping[str, Any]
Path = dict[int, float]
Runs = Mapping[tuple[str, int], pd.DataFrame]
PathsOfSeeds = Mapping[int, tuple[Path, str]]  # with what is wrong where there is no path


@runtime_checkable
class Tables(Protocol):
    """What a verdict needs: the geometry, the accuracy and, if it was made, the long table of one profile."""

    @property
    def geometry(self) -> pd.DataFrame:
        """One row per (recipe, seed, step, matrix)."""
        ...

    @property
    def accuracy(self) -> pd.DataFrame:
        """One row per (recipe, seed, step, family)."""
        ...

    @property
    def measures(self) -> pd.DataFrame | None:
        """One row per number of the path, of function and of control; None where nothing of it was measured."""
        ...


class Sources:
    """The tables of one profile, each folded and grouped once, however many claims read it."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._summaries: dict[str, pd.DataFrame] = {}
        self._runs: dict[str, Runs] = {}
        self._matched: dict[tuple[object, ...], pd.DataFrame] = {}
        self._paths: dict[tuple[object, ...], PathsOfSeeds] = {}

    def summary(self, scope: str) -> pd.DataFrame:
        """One row per checkpoint, over the matrices of the scope."""
        if scope not in self._summaries:
            self._summaries[scope] = matching.summarise(self.tables.geometry, SCOPES[scope])
        return self._summaries[scope]

    def runs(self, scope: str) -> Runs:
        """Rows of each run, by recipe and seed."""
        if scope not in self._runs:
            self._runs[scope] = runs_of(self.summary(scope))
        return self._runs[scope]

    def matched(self, scope: str, seeds: tuple[int, ...], at: str, among: tuple[str, ...]) -> pd.DataFrame:
        """One row per run of these recipes and seeds, where they are compared."""
        key = (scope, seeds, at, among)
        if key not in self._matched:
            rows = self.summary(scope)
            rows = rows.loc[rows["seed"].isin(seeds) & rows["recipe"].isin(among)]
            found = matching.matched(rows, at, self.tables.accuracy) if len(rows) else rows.assign(reason="")
            self._matched[key] = found
        return self._matched[key]

    @cached_property
    def cells(self) -> Mapping[tuple[str, str, str], pd.DataFrame] | None:
        """The long table by recipe, quantity and null; None where it was not made."""
        if self.tables.measures is None:
            return None
        groups = self.tables.measures.groupby(["recipe", "quantity", "null"], sort=False)
        return {cast("tuple[str, str, str]", key): rows for key, rows in groups}

    def paths(self, cell: Cell, scope: str) -> PathsOfSeeds:
        """Every step of a cell, by seed. ``scope``: of a cell that names none."""
        key = (cell.get("scope", scope), *(cell.get(name) for name in PLACE_KEYS))
        if key not in self._paths:
            by_seed = self._rows(cell, key[0]).groupby("seed")
            self._paths[key] = {cast("int", seed): _path(cell, rows) for seed, rows in by_seed}
        return self._paths[key]

    def _rows(self, cell: Cell, scope: str) -> pd.DataFrame:
        rows = (self.cells or {}).get((cell["recipe"], cell["quantity"], cell.get("null", "")))
        if rows is None:
            return pd.DataFrame(columns=["seed"])
        recipe, _, place = cell.get("other", "").partition(":")
        named = {key: cell[key] for key in ("side", "k") if key in cell}
        rows = pick(rows, scope=[scope, ""], other_recipe=recipe, **named)
        if not place:
            return rows
        seed, _, step = place.partition("@")
        same = rows["other_seed"] == rows["seed"]
        then = rows["step"] if step == SAME_STEP else int(step)
        return rows.loc[(rows["other_step"] == then) & (same if seed == OWN_SEED else ~same)]


@dataclass
class LookUp:
    """Numbers seed by seed, for one claim.

    ``scope``: ``attention`` or ``all``: which matrices are folded together; rows of the long table without one fit any.
    ``seeds``: the order of every array.
    ``null``: suffix of the null that stands in every metric's place (``"shuffled"``); empty for the runs themselves.
    ``problems``: filled with the reason of each value that could not be had.
    ``null_name``: what stands in a run's place where a null is asked for.
    """

    sources: Sources
    scope: str
    seeds: tuple[int, ...]
    null: str = ""
    problems: list[str] = field(default_factory=list)
    null_name: str = "shuffled updates"

    @property
    def real(self) -> LookUp:
        """The same look-up of the runs themselves."""
        return replace(self, null="") if self.null else self

    def metric(self, metric: str, recipe: str, at: str, among: Sequence[str] = ()) -> np.ndarray:
        """Values of a column of the geometry table, ``nan`` where missing.

        ``at``: a key of :data:`opdgeom_utils.claims.matching.MATCHES`.
        ``among``: the recipes compared; where they are equal depends on all of them.
        """
        rows = self.sources.matched(self.scope, self.seeds, at, tuple(among) or (recipe,))
        rows = rows.loc[rows.loc[:, "recipe"] == recipe]
        if rows.empty:
            self.note(f"there is no run of {recipe} in the tables")
        column = f"{metric}_{self.null}" if self.null else metric
        if column not in rows:
            self.note(f"the geometry table has no column {column}")
            return self.undefined()
        for reason in rows.loc[:, "reason"]:
            self.note(reason)
        return rows.set_index("seed").loc[:, column].reindex(self.seeds).to_numpy(float)

    def cell(self, cell: Cell) -> np.ndarray:
        """Value of a cell of the long table, ``nan`` where missing; of pairs of one recipe's seeds, the jackknife's."""
        values = np.array([self._at(path, cell) for path in self.paths(cell)])
        return over_pairs(values) if cell.get("other", "").startswith(f"{cell['recipe']}:{OTHER_SEEDS}") else values

    def paths(self, cell: Cell) -> list[Path]:
        """Every step of a cell, one dictionary per seed; empty where there is none.

        Raises MetricInputError if the cell has a key that no cell has.
        """
        unknown = set(cell) - CELL_KEYS
        if unknown:
            raise MetricInputError(f"a cell has the keys {sorted(unknown)}; expected some of {sorted(CELL_KEYS)}")
        if self.sources.cells is None:
            self.note("the table of measures (measures.parquet) has not been made")
            return [{} for _ in self.seeds]
        turn = 1 if cell.get("seed") == "next" else 0
        key = (cell["recipe"], cell["quantity"], cell.get("null", ""))
        of = f" over scope {cell.get('scope', self.scope)}" if key in self.sources.cells else ""
        nothing, found = ({}, f"measures has nothing for {_named(cell)}{of}"), []
        known = self.sources.paths(cell, self.scope)
        for seed in self.seeds[turn:] + self.seeds[:turn]:
            path, problem = known.get(seed, nothing)
            self.note(problem)
            found.append(path)
        return found

    def undefined(self) -> np.ndarray:
        """No number for any seed."""
        return np.full(len(self.seeds), np.nan)

    def note(self, problem: str) -> None:
        """Note a problem once."""
        if problem and problem not in self.problems:
            self.problems.append(problem)

    def _at(self, path: Path, cell: Cell) -> float:
        at = cell.get("at", "end")
        if not path:
            return float("nan")
        steps = list(path)
        if at in ("end", "first"):
            return path[steps[-1 if at == "end" else 0]]
        if isinstance(at, Mapping):
            ((kind, wanted),) = at.items()
            if kind == "near":
                return path[nearest_step(steps, wanted)]
            later = [path[s] for s in steps if s > nearest_step(steps, wanted * steps[-1])]
            return float(np.mean(later)) if later else float("nan")
        step = at * steps[-1] if isinstance(at, float) else at
        if not steps[0] <= step <= steps[-1]:
            self.note(f"{_named(cell)} is asked for at update {step:g}; measured from {steps[0]} to {steps[-1]}")
            return float("nan")
        return float(np.interp(step, steps, [path[s] for s in steps]))


def runs_of(summary: pd.DataFrame) -> Runs:
    """Split one row per checkpoint into one table per run, by recipe and seed, in step order.

    >>> list(runs_of(pd.DataFrame({"recipe": ["opd", "opd"], "seed": 0, "step": [8, 4]}))["opd", 0]["step"])
    [4, 8]
    """
    parts = summary.sort_values("step").groupby(["recipe", "seed"], sort=False)
    return {cast("tuple[str, int]", key): part for key, part in parts}


def value_at(runs: Runs, recipe: str, seed: int, step: float | None, metric: str) -> float:
    """Look up the number of one run at a step; between two checkpoints it is interpolated, outside them ``nan``.

    ``runs``: from :func:`runs_of`.
    ``step``: number of updates; None takes the run's last checkpoint.

    Half way between 30 and 50 updates lies half way between their numbers.

    >>> runs = runs_of(pd.DataFrame({"recipe": "rlvr", "seed": 0, "step": [30, 50], "x": [1.0, 3.0]}))
    >>> [value_at(runs, "rlvr", 0, step, "x") for step in (40.0, None, 60.0)]
    [2.0, 3.0, nan]
    """
    rows = runs.get((recipe, seed))
    if rows is None or metric not in rows:
        return float("nan")
    steps, values = rows["step"].to_numpy(float), rows[metric].to_numpy(float)
    return float(np.interp(steps[-1] if step is None else step, steps, values, left=np.nan, right=np.nan))


def _path(cell: Cell, rows: pd.DataFrame) -> tuple[Path, str]:
    """One number for each step of one seed, the mean over other seeds; what is wrong where a step has several."""
    found: dict[int, list[float]] = {}
    for step, value in zip(rows["step"].to_list(), rows["value"].to_list(), strict=True):
        found.setdefault(step, []).append(value)
    if len(found) < len(rows) and len(rows.drop_duplicates(["step", "scope", "side", "k"])) > len(found):
        return {}, f"measures has more than one number for {_named(cell)}: name its side, k or scope"
    if len(found) < len(rows) and OTHER_SEEDS not in cell.get("other", ""):
        return {}, f"measures says {_named(cell)} twice"
    return {step: float(np.mean(values)) for step, values in sorted(found.items())}, ""


def _named(cell: Cell) -> str:
    rest = [f"{key} {cell[key]}" for key in ("side", "k", "null", "other") if cell.get(key)]
    return f"{cell['quantity']} of {cell['recipe']}" + (f" ({', '.join(rest)})" if rest else "")
