"""What every statistic takes and returns.

A statistic is a public function of ``geometry_statistics``, ``path_statistics`` or ``setting_statistics``; a claim
names it and gives its keyword arguments. It looks numbers up, seed by seed, and returns comparisons. None knows a
threshold: the claim's rule does. The arguments mean the same everywhere:

``metrics``, ``recipes``, ``settings``
    Columns of the geometry table, and runs; one comparison for each.
``order``, ``descending``
    Recipes from the smallest value to the largest; the metrics that run the other way.
``at``
    Where runs are compared, a key of :data:`opdgeom_utils.claims.matching.MATCHES`; of settings, see there.
``against``, ``minus_null``
    Suffix of the null that a number is held against, or that is taken off each run first.
``level``, ``reference``, ``fraction``, ``margin``, ``confidence``
    A fixed number, a recipe, and how near to it counts.
``comparisons``
    Operands by name, each with a ``label``; several ``together`` must all hold.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from opdgeom_utils.vocabulary import metric_of


@dataclass(frozen=True)
class Part:
    """One number per seed; ``nan`` where a seed has none. ``unit`` is how to print it: points, degrees, or nothing.

    ``over`` says what the numbers stand for, where it is not seeds.
    """

    label: str
    values: tuple[float, ...]
    unit: str = ""
    over: str = "seeds"


@dataclass(frozen=True)
class Comparison:
    """What holds or does not hold as one: usually one part; more than one when they must hold together."""

    parts: tuple[Part, ...]


def part_of(metric_name: str, label: str, values: np.ndarray, *, unit: bool = True, over: str = "seeds") -> Part:
    """Numbers made of a metric: its words end the label; its unit is theirs too, unless they are ratios.

    >>> part_of("update_sparsity", "OPD minus SFT", np.array([0.25]))
    Part(label='OPD minus SFT, update sparsity', values=(0.25,), unit='points', over='seeds')
    """
    known = metric_of(metric_name)
    own = "points" if known.percent else known.unit
    return Part(f"{label}, {known.words}", tuple(float(v) for v in values), own if unit else "", over)


def comparison_of(metric_name: str, label: str, values: np.ndarray, *, unit: bool = True) -> Comparison:
    """Make a comparison of one :func:`part_of` a metric."""
    return Comparison((part_of(metric_name, label, values, unit=unit),))


def functions_of(module: str) -> dict[str, Callable[..., Any]]:
    """Public functions that a module defines, by name: a statistic is registered by being written.

    >>> "ordering" in functions_of("opdgeom_utils.claims.geometry_statistics")
    True
    """
    found = vars(sys.modules[module]).items()
    return {n: f for n, f in found if inspect.isfunction(f) and f.__module__ == module and not n.startswith("_")}
