"""The statistics that ``data/paper/claims.yaml`` names: tables in, one number per seed and comparison out.

Each function takes a :class:`~opdgeom_utils.claims.look_up.Measured` (it looks up a metric of a recipe at a matched
place, seed by seed) and the claim's arguments, and returns comparisons. None of them knows a threshold: the rule does,
in :mod:`opdgeom_utils.claims`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from opdgeom_utils.claims.look_up import Measured
from opdgeom_utils.vocabulary import label, metric_of


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


Statistic = Callable[[Measured, Mapping[str, Any]], list[Comparison]]


def ordering(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Later minus earlier recipe of the order, for each neighbouring pair and metric; reversed for ``descending``."""
    out = []
    for metric in args["metrics"]:
        order = _direction(args, metric)
        found = {r: _less_null(measured, args, metric, r) for r in order}
        for low, high in pairwise(order):
            out.append(_one(f"{label(high)} minus {label(low)}", found[high] - found[low], metric))
    return out


def log10_steps(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Difference of base-10 logarithms, later minus earlier in the order: decades between neighbours."""
    out = []
    for metric in args["metrics"]:
        found = {r: measured.values(metric, r, args["at"], args["order"]) for r in args["order"]}
        for low, high in pairwise(args["order"]):
            with np.errstate(divide="ignore", invalid="ignore"):
                decades = np.log10(found[high]) - np.log10(found[low])
            out.append(_one(f"decades between {label(low)} and {label(high)}", decades, metric, bare=True))
    return out


def against_level(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Metric minus a fixed level (chance), per recipe."""
    return [
        _one(f"{label(r)} minus {args['level']:g}", measured.values(m, r, args["at"]) - args["level"], m)
        for m in args["metrics"]
        for r in args["recipes"]
    ]


def off_principal(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Distance from chance in the off-principal direction: down for the principal mask, up for the small entries."""
    out = []
    for recipe in args["recipes"]:
        for metric in args["metrics"]:
            sign = -1 if metric == "principal_overlap" else 1
            way = "below" if sign < 0 else "above"
            distance = sign * (measured.values(metric, recipe, args["at"]) - args["level"])
            out.append(_one(f"{label(recipe)} {way} {args['level']:g}", distance, metric))
    return out


def off_principal_against_null(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Distance from the null in the off-principal direction."""
    out = []
    for recipe in args["recipes"]:
        for metric in args["metrics"]:
            sign = -1 if metric == "principal_overlap" else 1
            distance = sign * (measured.values(metric, recipe, args["at"]) - _null(measured, args, metric, recipe))
            way = "below" if sign < 0 else "above"
            out.append(_one(f"{label(recipe)} {way} its {args['against']} null", distance, metric))
    return out


def against_null(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Metric minus its null, per recipe."""
    return [
        _one(
            f"{label(r)} minus its {args['against']} null",
            measured.values(m, r, args["at"]) - _null(measured, args, m, r),
            m,
        )
        for m in args["metrics"]
        for r in args["recipes"]
    ]


def ratio_to_null(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Metric divided by its null, per recipe; ``nan`` where the null is 0."""
    out = []
    for metric in args["metrics"]:
        for recipe in args["recipes"]:
            ratio = _divide(measured.values(metric, recipe, args["at"]), _null(measured, args, metric, recipe))
            out.append(_one(f"{label(recipe)} divided by its {args['against']} null", ratio, metric, bare=True))
    return out


def order_in_each_seed(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """1 for a seed in which the whole order holds strictly, 0 for one in which it does not."""
    out = []
    for metric in args["metrics"]:
        order = _direction(args, metric)
        found = np.stack([measured.values(metric, r, args["at"], order) for r in order])
        holds = np.where(np.isnan(found).any(axis=0), np.nan, (np.diff(found, axis=0) > 0).all(axis=0).astype(float))
        out.append(_one("share of seeds in the paper's order", holds, metric, bare=True))
    return out


def between_ends(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """For each recipe: itself minus the lower end, and the upper end minus itself."""
    low, high = args["order"]
    out = []
    for metric in args["metrics"]:
        ends = {r: measured.values(metric, r, args["at"]) for r in (low, high)}
        for recipe in args["recipes"]:
            own = measured.values(metric, recipe, args["at"])
            out.append(_one(f"{label(recipe)} minus {label(low)}", own - ends[low], metric))
            out.append(_one(f"{label(high)} minus {label(recipe)}", ends[high] - own, metric))
    return out


def surviving_share(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Divide the matched gap by the gap at the runs' ends; ``nan`` where the latter is not positive."""
    out = []
    for metric in args["metrics"]:
        gaps = []
        for (low, high), at in ((args["matched"], args["at"]), (args["wide"], "final")):
            low_values = measured.values(metric, low, at, (low, high))
            gaps.append(measured.values(metric, high, at, (low, high)) - low_values)
        share = _divide(gaps[0], np.where(gaps[1] > 0, gaps[1], np.nan))
        out.append(_one("share of the gap that survives", share, metric, bare=True))
    return out


def objective_outweighs_length(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Gap between two objectives at equal updates, minus what the longer run changes after that."""
    order = args["order"]
    longer = order[1]
    out = []
    for metric in args["metrics"]:
        sign = -1 if metric in args.get("descending", ()) else 1
        short, equal = (measured.values(metric, r, "equal_updates", order) for r in order)
        later = np.abs(measured.values(metric, longer, "final") - equal)
        compared = f"{label(longer)} minus {label(order[0])} at equal updates, less {label(longer)}'s later change"
        out.append(_one(compared, sign * (equal - short) - later, metric))
    return out


def outside_interval(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Above both ends, or below both ends, for each metric: two comparisons of two parts each."""
    middle = args["middle"]
    out = []
    for metric in args["metrics"]:
        among = (middle, *args["ends"])
        own = measured.values(metric, middle, args["at"], among)
        gaps = {end: own - measured.values(metric, end, args["at"], among) for end in args["ends"]}
        for sign, way in ((1, "above"), (-1, "below")):
            labels = {end: f"{label(middle)} {way} {label(end)}, {metric_of(metric).words}" for end in gaps}
            out.append(Comparison(tuple(Part(labels[e], tuple(sign * g), _unit(metric)) for e, g in gaps.items())))
    return out


STATISTICS: dict[str, Statistic] = {
    f.__name__: f
    for f in (
        ordering, log10_steps, against_level, off_principal, off_principal_against_null, against_null, ratio_to_null,
        order_in_each_seed, between_ends, surviving_share, objective_outweighs_length, outside_interval,
    )
}  # fmt: skip


def _less_null(measured: Measured, args: Mapping[str, Any], metric: str, recipe: str) -> np.ndarray:
    values = measured.values(metric, recipe, args["at"], args["order"])
    if "minus_null" not in args:
        return values
    return values - measured.values(f"{metric}_{args['minus_null']}", recipe, args["at"], args["order"], bare=True)


def _null(measured: Measured, args: Mapping[str, Any], metric: str, recipe: str) -> np.ndarray:
    return measured.values(f"{metric}_{args['against']}", recipe, args["at"], bare=True)


def _direction(args: Mapping[str, Any], metric: str) -> list[str]:
    return list(args["order"])[:: -1 if metric in args.get("descending", ()) else 1]


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return top / np.where(bottom == 0, np.nan, bottom)


def _one(words: str, values: np.ndarray, metric: str, *, bare: bool = False) -> Comparison:
    """Make a comparison of one part, named after its metric and in its unit; ``bare`` numbers have none."""
    named = f"{words}, {metric_of(metric).words}"
    return Comparison((Part(named, tuple(float(v) for v in values), "" if bare else _unit(metric)),))


def _unit(metric: str) -> str:
    found = metric_of(metric)
    return "points" if found.percent else found.unit
