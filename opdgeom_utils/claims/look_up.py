"""Look up one number per seed: a metric of a recipe, at its last step or at a place shared with other recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd

from opdgeom_utils.claims import matching
from opdgeom_utils.claims.cell_look_up import Index, MeasuredCells
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.scopes import SCOPES


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


@dataclass
class Measured:
    """Seed-by-seed values of any metric of any recipe.

    Parameters
    ----------
    tables
        Result tables of one profile.
    scope
        ``attention`` or ``all``: which matrices are folded together.
    seeds
        The order of every tuple of values.
    suffix
        Added to a metric's name, for the same computation on a null (``"_shuffled"``).
    index
        The table of measures from :func:`opdgeom_utils.claims.cell_look_up.index_measures`, for :attr:`cells`.
    problems
        Filled with the reason of each value that could not be had.
    null_name
        What stands in a run's place where ``suffix`` asks for a null.
    """

    tables: Tables
    scope: str
    seeds: tuple[int, ...]
    suffix: str = ""
    index: Index | None = None
    problems: list[str] = field(default_factory=list)
    null_name: str = "shuffled updates"
    _places: dict[tuple[str, tuple[str, ...]], pd.DataFrame] = field(default_factory=dict)
    _summary: pd.DataFrame | None = None

    def values(self, metric: str, recipe: str, at: str, among: Sequence[str] = (), *, bare: bool = False) -> np.ndarray:
        """Values of ``metric`` in the order of ``seeds``, ``nan`` where missing.

        Parameters
        ----------
        metric
            A column of the geometry table.
        recipe
            Whose runs.
        at
            ``final``, ``equal_updates``, ``equal_norm`` or ``equal_accuracy``.
        among
            The recipes compared; the common place depends on all of them.
        bare
            Use the metric's own name, whatever ``suffix`` says.
        """
        rows = self._place(at, tuple(among) or (recipe,))
        rows = rows.loc[rows.loc[:, "recipe"] == recipe]
        if rows.empty:
            self._say(f"there is no run of {recipe} in the tables")
        column = metric if bare else metric + self.suffix
        if column not in rows:
            self._say(f"the geometry table has no column {column}")
            return np.full(len(self.seeds), np.nan)
        for reason in rows.loc[:, "reason"]:
            self._say(reason)
        return rows.set_index("seed").loc[:, column].reindex(self.seeds).to_numpy(float)

    @cached_property
    def cells(self) -> MeasuredCells:
        """Cells of the table of measures, with the same seeds, scope and list of problems."""
        return MeasuredCells(self.index, self.scope, self.seeds, self.problems)

    def _place(self, at: str, among: tuple[str, ...]) -> pd.DataFrame:
        if (at, among) not in self._places:
            if self._summary is None:
                self._summary = matching.summarise(self.tables.geometry, SCOPES[self.scope])
            known = self._summary.loc[:, ["recipe", "seed"]]
            wanted = known.loc[:, "seed"].isin(self.seeds) & known.loc[:, "recipe"].isin(among)
            runs = self._summary.loc[wanted]
            self._places[at, among] = self._match(at, runs) if len(runs) else runs.assign(reason="")
        return self._places[at, among]

    def _match(self, at: str, runs: pd.DataFrame) -> pd.DataFrame:
        if at == "final":
            return matching.final(runs)
        if at == "equal_updates":
            return matching.at_equal_updates(runs)
        if at == "equal_norm":
            return matching.at_equal_norm(runs)
        if at == "equal_accuracy":
            return matching.at_equal_accuracy(runs, self.tables.accuracy)
        raise MetricInputError(f"at is {at!r}; expected final, equal_updates, equal_norm or equal_accuracy")

    def _say(self, problem: str) -> None:
        if problem and problem not in self.problems:
            self.problems.append(problem)
