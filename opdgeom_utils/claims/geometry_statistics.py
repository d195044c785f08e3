"""The statistics of ``data/paper/claims.yaml``: metrics of the geometry table, run against run and run against null.

See :mod:`opdgeom_utils.claims.comparisons` for what the arguments mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from opdgeom_utils.claims.comparisons import Comparison, comparison_of, functions_of, part_of
from opdgeom_utils.claims.look_up import LookUp
from opdgeom_utils.vocabulary import label

Names = Sequence[str]
UPWARD = "low_magnitude_overlap"  # off the principal directions this overlap rises and the other mask's falls


def ordering(
    look: LookUp, *, metrics: Names, order: Names, at: str, descending: Names = (), minus_null: str = ""
) -> list[Comparison]:
    """Later minus earlier recipe of the order, for each neighbouring pair and metric; reversed for ``descending``."""
    out = []
    for metric in metrics:
        found = {r: look.metric(metric, r, at, order) for r in order}
        if minus_null:
            found = {r: v - look.real.metric(f"{metric}_{minus_null}", r, at, order) for r, v in found.items()}
        for low, high in pairwise(_turned(order, metric, descending)):
            out.append(comparison_of(metric, f"{label(high)} minus {label(low)}", found[high] - found[low]))
    return out


def log10_steps(look: LookUp, *, metrics: Names, order: Names, at: str) -> list[Comparison]:
    """Difference of base-10 logarithms, later minus earlier in the order: decades between neighbours."""
    out = []
    for metric in metrics:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {r: np.log10(look.metric(metric, r, at, order)) for r in order}
            for low, high in pairwise(order):
                words = f"decades between {label(low)} and {label(high)}"
                out.append(comparison_of(metric, words, found[high] - found[low], unit=False))
    return out


def against_level(look: LookUp, *, metrics: Names, recipes: Names, level: float | int, at: str) -> list[Comparison]:
    """Metric minus a fixed level (chance), per recipe."""
    return [
        comparison_of(m, f"{label(r)} minus {level:g}", look.metric(m, r, at) - level) for m in metrics for r in recipes
    ]


def off_principal(look: LookUp, *, metrics: Names, recipes: Names, level: float | int, at: str) -> list[Comparison]:
    """Distance from chance in the off-principal direction: down for the principal mask, up for the small entries."""
    return [_off(look, m, r, at, f"{level:g}", np.asarray(level)) for r in recipes for m in metrics]


def off_principal_against_null(
    look: LookUp, *, metrics: Names, recipes: Names, against: str, at: str
) -> list[Comparison]:
    """Distance from the null in the off-principal direction."""
    words = f"its {against} null"
    return [_off(look, m, r, at, words, look.real.metric(f"{m}_{against}", r, at)) for r in recipes for m in metrics]


def against_null(look: LookUp, *, metrics: Names, recipes: Names, against: str, at: str) -> list[Comparison]:
    """Metric minus its null, per recipe."""
    out = []
    for metric, recipe in ((m, r) for m in metrics for r in recipes):
        gap = look.metric(metric, recipe, at) - look.real.metric(f"{metric}_{against}", recipe, at)
        out.append(comparison_of(metric, f"{label(recipe)} minus its {against} null", gap))
    return out


def ratio_to_null(look: LookUp, *, metrics: Names, recipes: Names, against: str, at: str) -> list[Comparison]:
    """Metric divided by its null, per recipe; ``nan`` where the null is 0."""
    out = []
    for metric, recipe in ((m, r) for m in metrics for r in recipes):
        ratio = _divide(look.metric(metric, recipe, at), look.real.metric(f"{metric}_{against}", recipe, at))
        out.append(comparison_of(metric, f"{label(recipe)} divided by its {against} null", ratio, unit=False))
    return out


def order_in_each_seed(
    look: LookUp, *, metrics: Names, order: Names, at: str, descending: Names = ()
) -> list[Comparison]:
    """1 for a seed in which the whole order holds strictly, 0 for one in which it does not."""
    out = []
    for metric in metrics:
        turned = _turned(order, metric, descending)
        found = np.stack([look.metric(metric, r, at, turned) for r in turned])
        holds = np.where(np.isnan(found).any(axis=0), np.nan, (np.diff(found, axis=0) > 0).all(axis=0).astype(float))
        out.append(comparison_of(metric, "share of seeds in the paper's order", holds, unit=False))
    return out


def between_ends(look: LookUp, *, metrics: Names, recipes: Names, order: Names, at: str) -> list[Comparison]:
    """For each recipe: itself minus the lower end, and the upper end minus itself."""
    low, high = order
    out = []
    for metric in metrics:
        ends = {r: look.metric(metric, r, at) for r in (low, high)}
        for recipe in recipes:
            own = look.metric(metric, recipe, at)
            out.append(comparison_of(metric, f"{label(recipe)} minus {label(low)}", own - ends[low]))
            out.append(comparison_of(metric, f"{label(high)} minus {label(recipe)}", ends[high] - own))
    return out


def surviving_share(look: LookUp, *, metrics: Names, wide: Names, matched: Names, at: str) -> list[Comparison]:
    """Divide the matched gap by the gap at the runs' ends; ``nan`` where the latter is not positive."""
    out = []
    for metric in metrics:
        gap, whole = (
            look.metric(metric, pair[1], where, pair) - look.metric(metric, pair[0], where, pair)
            for pair, where in ((matched, at), (wide, "final"))
        )
        share = _divide(gap, np.where(whole > 0, whole, np.nan))
        out.append(comparison_of(metric, "share of the gap that survives", share, unit=False))
    return out


def objective_outweighs_length(
    look: LookUp, *, metrics: Names, order: Names, descending: Names = ()
) -> list[Comparison]:
    """Gap between two objectives at equal updates, minus what the longer run changes after that."""
    short, long = order
    out = []
    for metric in metrics:
        own, equal = (look.metric(metric, r, "equal_updates", order) for r in order)
        later = np.abs(look.metric(metric, long, "final") - equal)
        words = f"{label(long)} minus {label(short)} at equal updates, less {label(long)}'s later change"
        gap = (own - equal) if metric in descending else (equal - own)
        out.append(comparison_of(metric, words, gap - later))
    return out


def outside_interval(look: LookUp, *, metrics: Names, middle: str, ends: Names, at: str) -> list[Comparison]:
    """Above both ends, or below both ends, for each metric: two comparisons of two parts each."""
    out = []
    for metric in metrics:
        own, *others = (look.metric(metric, r, at, (middle, *ends)) for r in (middle, *ends))
        for sign, way in ((1, "above"), (-1, "below")):
            parts = [
                part_of(metric, f"{label(middle)} {way} {label(end)}", sign * (own - other))
                for end, other in zip(ends, others, strict=True)
            ]
            out.append(Comparison(tuple(parts)))
    return out


STATISTICS = functions_of(__name__)


def _off(look: LookUp, metric: str, recipe: str, at: str, words: str, reference: np.ndarray) -> Comparison:
    sign, way = (1, "above") if metric == UPWARD else (-1, "below")
    distance = sign * (look.metric(metric, recipe, at) - reference)
    return comparison_of(metric, f"{label(recipe)} {way} {words}", distance)


def _turned(order: Names, metric: str, descending: Names) -> Names:
    return order[::-1] if metric in descending else order


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return top / np.where(bottom == 0, np.nan, bottom)
