"""The verdict that the tables give a claim, by the rule in its file; none is ever typed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from opdgeom_utils.claims.comparisons import Comparison, Part
from opdgeom_utils.claims.look_up import LookUp, Sources, Tables
from opdgeom_utils.claims.schema import STATISTICS, Claim, Rule, load_claims
from opdgeom_utils.intervals import Interval, number, seed_interval

VERDICTS = ("reproduced", "partly", "not reproduced", "not testable at this scale")
UNTESTABLE = VERDICTS[3]
OF_CLAIM = (
    "id", "question", "group", "diagnostic", "condition", "statement", "where", "refuted_by", "statistic",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What the tables say about a claim. ``value`` and its interval belong to the comparison that decides."""

    verdict: str
    value: float
    low: float
    high: float
    null_value: float
    null_name: str
    unit: str
    n_seeds: int
    n_comparisons: int
    n_hold: int
    deciding: str
    reason: str


def verdict(claim: Claim, tables: Tables | Sources) -> Verdict:
    """Compute the verdict of one claim by its rule.

    Parameters
    ----------
    claim
        From :func:`load_claims`.
    tables
        Anything with ``geometry``, ``accuracy`` and ``measures`` of one profile, as ``results.load_tables`` returns it;
        or these as :class:`~opdgeom_utils.claims.look_up.Sources`, which many claims can share.

    Returns
    -------
    Verdict
        One of the four words of :data:`VERDICTS`, the number that decides with its interval, and a computed sentence.
    """
    sources = tables if isinstance(tables, Sources) else Sources(tables)
    statistic = STATISTICS[claim.statistic]
    look, null = (LookUp(sources, claim.scope, claim.seeds, name) for name in ("", "shuffled"))
    found = [_Judged(c, claim.rule, _level(claim)) for c in statistic(look, **claim.args)]
    nulls = statistic(null, **claim.args)
    word = _decide(found, claim.rule)
    kept = [i for i, judged in enumerate(found) if judged.testable != (word == UNTESTABLE)]
    clearest = max if claim.rule.require == "any" else min
    place = kept[0] if word == UNTESTABLE else clearest(kept, key=lambda i: found[i].clearance)
    deciding = found[place]
    null_value = seed_interval(nulls[place].parts[deciding.weakest].values).mean
    if word == UNTESTABLE:
        reason = _untestable(deciding, claim, look.problems)
    else:
        reason = _reason(deciding, found, claim.rule)
        if math.isfinite(null_value):
            shown = number(null_value, unit=deciding.part.unit)
            reason += f" The same number from {null.null_name} is {shown}."
    part, interval = deciding.part, deciding.interval
    return Verdict(
        word, interval.mean, interval.low, interval.high, null_value, null.null_name, part.unit, interval.n, len(found),
        sum(judged.holds for judged in found), part.label, reason,
    )  # fmt: skip


def scorecard(tables: Tables, claims: Sequence[Claim] | None = None) -> pd.DataFrame:
    """Verdict of every claim, one row each, in the order of ``claims.yaml``.

    Returns
    -------
    DataFrame
        ``id, question, group, diagnostic, condition, statement, where, refuted_by, statistic, rule, threshold,
        side`` of the claim, then ``verdict, value, low, high, null_value, null_name, unit, n_seeds, n_comparisons,
        n_hold, deciding, reason``.
    """
    rows, sources = [], Sources(tables)
    for claim in load_claims() if claims is None else claims:
        row = {name: getattr(claim, name) for name in OF_CLAIM}
        row |= {"rule": claim.rule.words, "threshold": claim.rule.threshold, "side": claim.rule.side}
        rows.append(row | asdict(verdict(claim, sources)))
    return pd.DataFrame(rows)


class _Judged:
    """A comparison with its intervals: whether it can be tested, whether it holds, and which part is the weakest."""

    def __init__(self, comparison: Comparison, rule: Rule, confidence: float) -> None:
        intervals = [seed_interval(part.values, confidence) for part in comparison.parts]
        clearances = [_clearance(*pair, rule) for pair in zip(intervals, comparison.parts, strict=True)]
        self.weakest = min(range(len(clearances)), key=clearances.__getitem__)
        self.part, self.interval = comparison.parts[self.weakest], intervals[self.weakest]
        self.clearance = clearances[self.weakest]
        self.testable = all(interval.n >= rule.min_seeds for interval in intervals)
        self.holds = self.testable and all(_holds(interval, rule) for interval in intervals)


def _holds(interval: Interval, rule: Rule) -> bool:
    if rule.side == "above":
        return interval.low > rule.threshold
    return interval.high < rule.threshold if rule.side == "below" else interval.mean >= rule.threshold


def _clearance(interval: Interval, part: Part, rule: Rule) -> float:
    """Distance of the mean from the threshold on the right side, in standard errors: comparable between metrics."""
    if not math.isfinite(interval.mean):
        return -math.inf
    distance = (interval.mean - rule.threshold) * (-1 if rule.side == "below" else 1)
    known = np.asarray(part.values)[np.isfinite(part.values)]
    error = float(known.std(ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else 0.0
    return distance / error if error > 0 else math.copysign(math.inf, distance) if distance else 0.0


def _decide(found: Sequence[_Judged], rule: Rule) -> str:
    held = sum(j.holds for j in found)
    if rule.require == "any" and held:
        return VERDICTS[0]
    if not all(j.testable for j in found):
        return UNTESTABLE
    if held == len(found):
        return VERDICTS[0]
    return VERDICTS[1] if held and rule.require == "all" else VERDICTS[2]


def _level(claim: Claim) -> float:
    """Confidence of each interval; where any one diagnostic is enough, they share the chance of a false alarm."""
    share = len(claim.args.get("metrics") or claim.args["comparisons"]) if claim.rule.require == "any" else 1
    return 1 - (1 - claim.rule.confidence) / share


def _reason(deciding: _Judged, found: Sequence[_Judged], rule: Rule) -> str:
    part, interval = deciding.part, deciding.interval
    mean, low, high, threshold = (
        number(value, unit=part.unit) for value in (interval.mean, interval.low, interval.high, rule.threshold)
    )
    which = ""
    if len(found) > 1:
        which = f"{sum(j.holds for j in found)} of {len(found)} comparisons hold. "
        which += "Strongest: " if rule.require == "any" else "Weakest: "
    span = "" if rule.side == "at_least" else f", interval {low} to {high}"
    need = f"needed: {rule.side.replace('_', ' ')} {threshold}"
    return f"{which}{part.label}, {mean}{span} over {interval.n} {part.over} ({need})."


def _untestable(deciding: _Judged, claim: Claim, problems: Sequence[str]) -> str:
    part, n, needed = deciding.part, deciding.interval.n, claim.rule.min_seeds
    if problems or len(claim.seeds) >= needed:
        shown = "; ".join(problems[:3]) or "its denominator or its value is undefined in the other seeds"
    else:
        shown = f"this is a sweep over one seed, which gives {number(deciding.interval.mean, unit=part.unit)}"
    over = part.over.removesuffix("s") if n == 1 else part.over
    return f"{part.label}: {n} usable {over}, {needed} are needed; {shown}."
