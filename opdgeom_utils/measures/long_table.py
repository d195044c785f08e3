"""The long table behind research questions 2 and 3: one row is one number, with the words that say which.

``profile, recipe, seed, step`` say which weights; ``scope`` which matrices (``attention``: q, k, v and o of every
layer; ``all``: these and the three of the MLP; unweighted mean; or one matrix by its name), ``side`` whether right or
left singular spaces, ``k`` their dimension, ``quantity`` what was measured. ``null`` is empty for the run itself, or
names the process without learning that gave the number. ``other_recipe, other_seed, other_step`` say which weights the
run is compared with; the seed and the step are -1 where only a recipe is meant, and the recipe is empty where there is
no other. ``value`` is a float64; NaN where undefined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from opdgeom_utils import kept
from opdgeom_utils.errors import MetricInputError

COLUMNS = {
    "profile": "str", "recipe": "str", "seed": "int64", "step": "int64", "scope": "str", "side": "str", "k": "int64",
    "quantity": "str", "null": "str", "other_recipe": "str", "other_seed": "int64", "other_step": "int64",
    "value": "float64",
}  # fmt: skip
DEFAULTS = {"scope": "", "side": "", "k": 0, "null": "", "other_recipe": "", "other_seed": -1, "other_step": -1}


def as_measures(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Make the table from rows that leave out what does not apply; refuse unknown words and two numbers for one thing.

    Raises
    ------
    MetricInputError
        If a row lacks a column, has an unknown one, or says the same as another.

    Examples
    --------
    >>> row = {"profile": "first_regime", "recipe": "opd", "seed": 0, "step": 8, "quantity": "accuracy", "value": 0.5}
    >>> as_measures([row])[["recipe", "scope", "k", "value"]].values.tolist()
    [['opd', '', 0, 0.5]]
    """
    full = [{**DEFAULTS, **row} for row in rows]
    wrong = [row for row in full if set(row) != set(COLUMNS)]
    if wrong:
        raise MetricInputError(f"a measure has columns {sorted(wrong[0])}, expected {sorted(COLUMNS)}")
    table = pd.DataFrame(full, columns=list(COLUMNS)).astype(COLUMNS)
    twice = table[table.duplicated(list(COLUMNS)[:-1])]
    if len(twice):
        raise MetricInputError(f"{len(twice)} measures are given twice, the first is {twice.iloc[0].to_dict()}")
    return table


def kept_measures(
    folder: Path, name: str, make: Callable[[], pd.DataFrame], module: str, *inputs: object
) -> pd.DataFrame:
    """Return the table that an earlier call left in a run's folder, or make it: its age is decided by :mod:`kept`.

    The folder's name stands for the run and its recipe.
    """
    return kept.table(folder, name, make, module, given=("runs", "recipes"), inputs=inputs)


def pick(table: pd.DataFrame, **cell: Any) -> pd.DataFrame:
    """Rows whose columns have these values; a list means any of them.

    >>> table = pd.DataFrame({"recipe": ["opd", "rlvr"], "value": [1.0, 2.0]})
    >>> pick(table, recipe=["rlvr", "sft"])["value"].tolist()
    [2.0]
    """
    keep = pd.Series(True, index=table.index)
    for column, wanted in cell.items():
        keep &= table[column].isin(wanted if isinstance(wanted, list) else [wanted])
    return pd.DataFrame(table[keep])


def nearest_step(steps: Sequence[int], to: float | int) -> int:
    """Return the step nearest to a number of updates; of two equally near, the earlier.

    >>> nearest_step([2, 16, 30, 50], 24), nearest_step([20, 10], 15)
    (30, 10)
    """
    return min(steps, key=lambda step: (abs(step - to), step))
