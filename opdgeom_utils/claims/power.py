"""Whether a rule could pass: its power at the paper's own effect, by the spread of the seeds that were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import optimize, stats

from opdgeom_utils.claims.comparisons import Comparison
from opdgeom_utils.claims.look_up import Cell, LookUp, Path, Sources
from opdgeom_utils.claims.schema import STATISTICS, Claim, Rule, load_reported

ENOUGH = 0.8
_PATHS = {"stable_rank": "stable_rank", "stable_rank_bf16": "stable_rank"}


def power_at(effect: float, values: Sequence[float], rule: Rule, confidence: float) -> float:
    """Chance that the interval of as many new seeds lies wholly on the rule's side, if the effect were ``effect``.

    The seeds are taken as normal with the deviation of ``values``, so the chance is a tail of the noncentral t.

    ``effect``: in the unit of the comparison.
    ``values``: one number per seed; their mean does not matter. Below two finite values, or for ``at_least``, ``nan``.
    ``rule``, ``confidence``: side and threshold, and the level of the interval, 0 to 1.

    An effect at the threshold passes by chance alone: half of 5%. Far above it, it always does.

    >>> rule = Rule("", "above", 0.0, "all", 0.95, 3)
    >>> [round(power_at(effect, [1.0, 2.0, 3.0], rule, 0.95), 3) for effect in (0.0, 2.0, 20.0)]
    [0.025, 0.471, 1.0]
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 2 or math.isnan(effect) or rule.side == "at_least":
        return math.nan
    distance = (effect - rule.threshold) * (-1 if rule.side == "below" else 1)
    error = float(known.std(ddof=1)) / math.sqrt(len(known))
    if error == 0:
        return float(distance > 0)
    return _chance(distance / error, len(known), confidence)


def detectable(values: Sequence[float], rule: Rule, confidence: float) -> float:
    """Smallest effect that passes the rule with a chance of 80%: see :func:`power_at`.

    >>> rule = Rule("", "above", 0.0, "all", 0.95, 3)
    >>> found = detectable([1.0, 2.0, 3.0], rule, 0.95)
    >>> round(found, 2), round(power_at(found, [1.0, 2.0, 3.0], rule, 0.95), 3)
    (3.26, 0.8)
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 2 or rule.side == "at_least":
        return math.nan
    error = float(known.std(ddof=1)) / math.sqrt(len(known))
    reach = error * _reach(len(known), confidence)
    return rule.threshold + (-reach if rule.side == "below" else reach)


def paper_effects(claim: Claim) -> list[Comparison]:
    """Compute the claim's comparisons from the paper's numbers in place of a run's; ``nan`` where it has none.

    Bounds count as printed (">10" is 10). A claim's own ``effect`` stands for words. Without either there is nothing.

    The paper's OPD leaves 43.5 points more unchanged than its SFT, its RLVR 25.6 more than its OPD.

    >>> from opdgeom_utils.claims.schema import load_claims
    >>> [round(c.parts[0].values[0], 3) for c in paper_effects(load_claims()[0])]
    [0.435, 0.256]
    """
    if claim.rule.side == "at_least" or (claim.reported is None and claim.effect is None):
        return []
    statistic: Any = STATISTICS[claim.statistic]
    found: list[Comparison] = statistic(_Reported(Sources(_NOTHING), claim.scope, (0,)), **claim.args)
    if claim.effect is None:
        return found
    return [Comparison(tuple(replace(part, values=(claim.effect,)) for part in c.parts)) for c in found]


def words(effect: float, power: float, smallest: float, shown: Any) -> str:
    """Say in a sentence whether a rule could pass; empty where nothing is known. ``shown`` writes an effect.

    >>> words(0.4, 0.31, 0.9, str)
    "At the paper's effect (0.4) this rule could not pass with 80% power: its chance is 31%. It would from 0.9 on."
    """
    if math.isnan(smallest):
        return ""
    if math.isnan(power):
        return f"The paper prints no such number. By the seeds' spread it has 80% power from {shown(smallest)} on."
    chance = chance_words(power)
    if power < ENOUGH:
        said = (
            f"At the paper's effect ({shown(effect)}) this rule could not pass with 80% power: its chance is {chance}."
        )
        return f"{said} It would from {shown(smallest)} on."
    return f"At the paper's effect ({shown(effect)}) this rule passes with a chance of {chance}."


def chance_words(power: float) -> str:
    """Write a chance in whole percent, and none as certain.

    >>> chance_words(0.314), chance_words(0.9999)
    ('31%', 'more than 99%')
    """
    return "more than 99%" if power > 0.99 else f"{100 * power:.0f}%"


class _Nothing:
    """Tables without a row: the paper's numbers are not in them."""

    geometry = accuracy = measures = None


_NOTHING: Any = _Nothing()


class _Reported(LookUp):
    """Looks up what the paper printed in place of what a run measured."""

    def metric(self, metric: str, recipe: str, at: str, among: Sequence[str] = ()) -> np.ndarray:
        del at, among
        return np.array([_printed().get((metric, recipe), math.nan)])

    def paths(self, cell: Cell) -> list[Path]:
        if cell.get("null") or cell.get("other") or cell.get("seed"):
            return [{}]
        if cell["quantity"] == "sim_to_end":
            known = cell.get("k") == 16 and cell.get("side") == "right"
            value = _printed().get(("sim_to_end", cell["recipe"]), math.nan)
            return [{0: value, 1: value} if known and math.isfinite(value) else {}]
        name = _PATHS.get(cell["quantity"], "")
        ends = [_printed().get((f"{name}:{end}", cell["recipe"]), math.nan) for end in ("first", "last")]
        return [dict(enumerate(ends, start=1)) if name and np.isfinite(ends).all() else {}]


@lru_cache
def _printed() -> dict[tuple[str, str], float]:
    """Read the paper's numbers by (column or quantity, recipe); paths by their two ends."""
    found: dict[tuple[str, str], float] = {}
    for row in load_reported().to_dict("records"):
        recipe, bound = str(row["recipe"]), str(row["bound"])
        if row["quantity"] == "subspace_similarity_first_checkpoint":
            found["sim_to_end", recipe] = float(row["value"])
        elif isinstance(row["metric"], str):
            found |= {(name, recipe): float(row["value"]) for name in row["metric"].split(";")}
        if bound == "band" or bound.startswith("first to last"):
            low, high, last = float(row["low"]), float(row["high"]), float(row["value"])
            first, last = (low, high) if bound == "band" or last == high else (high, low)
            found |= {(f"{row['metric']}:first", recipe): first, (f"{row['metric']}:last", recipe): last}
    return found


def _chance(noncentrality: float, n: int, confidence: float) -> float:
    critical = float(stats.t.ppf((1 + confidence) / 2, n - 1))
    if noncentrality > 10 * critical:
        return 1.0
    return float(stats.nct.sf(critical, n - 1, noncentrality)) if noncentrality > -30 else 0.0


@lru_cache
def _reach(n: int, confidence: float) -> float:
    """Effect beyond the threshold that has a power of 80%, in standard errors."""
    top = 10 * float(stats.t.ppf((1 + confidence) / 2, n - 1))
    return optimize.root_scalar(lambda x: _chance(x, n, confidence) - ENOUGH, bracket=(0.0, top)).root
