"""The verdict that the tables give a claim, by the rule in its file; none is ever typed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from opdgeom_utils.claims import multiplicity, power
from opdgeom_utils.claims.comparisons import Comparison, Part
from opdgeom_utils.claims.look_up import LookUp, Sources, Tables
from opdgeom_utils.claims.schema import STATISTICS, Claim, Rule, load_claims
from opdgeom_utils.intervals import Interval, number, seed_interval

VERDICTS = ("reproduced", "partly", "not decided", "the opposite", "not testable")
REPRODUCED, PARTLY, UNDECIDED, OPPOSITE, UNTESTABLE = VERDICTS
OF_CLAIM = (
    "id", "question", "group", "polarity", "profile", "diagnostic", "condition", "statement", "where", "refuted_by",
    "statistic",
)  # fmt: skip
BEARINGS = ("for the paper's reading", "against it", "undecided", "neither")


@dataclass(frozen=True)
class Verdict:
    """What the tables say about a claim. ``value`` and its interval belong to the comparison that decides.

    ``least`` and ``most`` are the smallest and the largest mean of all comparisons. ``power`` is the rule's chance to
    pass at the paper's own ``effect``, of the comparison where it is smallest (largest, where any is enough), and
    ``detectable`` the effect that the deciding comparison would see with a chance of 80%.
    """

    verdict: str
    value: float
    low: float
    high: float
    null_value: float
    null_name: str
    unit: str
    level: float
    n_seeds: int
    n_comparisons: int
    n_hold: int
    n_opposite: int
    least: float
    most: float
    effect: float
    power: float
    detectable: float
    deciding: str
    reason: str


def verdict(claim: Claim, tables: Tables | Sources) -> Verdict:
    """Compute the verdict of one claim by its own rule; its gates are :func:`scorecard`'s business.

    ``tables``: anything with ``geometry``, ``accuracy`` and ``measures`` of one profile, as ``results.load_tables``
    returns it; or these as :class:`~opdgeom_utils.claims.look_up.Sources`, which many claims can share.
    Returns one of the five words of :data:`VERDICTS`, the number that decides with its interval, and a computed
    sentence.
    """
    sources = tables if isinstance(tables, Sources) else Sources(tables)
    statistic = STATISTICS[claim.statistic]
    look, null = (LookUp(sources, claim.scope, claim.seeds, name) for name in ("", "shuffled"))
    found = _judged(statistic(look, **claim.args), claim.rule)
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
    means = [m for judged in found for m in judged.means if math.isfinite(m)] or [math.nan]
    return Verdict(
        word, interval.mean, interval.low, interval.high, null_value, null.null_name, part.unit, deciding.confidence,
        interval.n, len(found),
        sum(judged.holds for judged in found), sum(judged.opposes for judged in found), min(means), max(means),
        *_power(claim, found), power.detectable(part.values, claim.rule, _needed_level(deciding, claim.rule)),
        part.label, reason,
    )  # fmt: skip


def scorecard(tables: Tables, claims: Sequence[Claim] | None = None) -> pd.DataFrame:
    """Verdict of every claim that stands, one row each, in the order of the files.

    A claim whose gate is not reproduced is "not testable", whatever its own numbers say; they stay in its row. Returns
    ``id, question, group, polarity, profile, diagnostic, condition, statement, where, refuted_by, statistic, rule,
    threshold, side, contrary, gate`` of the claim, then ``bearing``, of :data:`BEARINGS`, and ``verdict, value, low,
    high, null_value, null_name, unit, level, n_seeds, n_comparisons, n_hold, n_opposite, least, most, effect, power,
    detectable, deciding, reason``.
    """
    rows, sources = [], Sources(tables)
    given = load_claims() if claims is None else [claim for claim in claims if claim.withdrawn is None]
    by_id = {claim.id: claim for claim in given}
    gates = {name for claim in given for name in claim.gate}
    if not gates <= set(by_id):
        by_id = {claim.id: claim for claim in load_claims()} | by_id
    opened = {name: verdict(by_id[name], sources) for name in gates}
    for claim in given:
        row = {name: getattr(claim, name) for name in OF_CLAIM}
        row |= {"rule": claim.rule.words, "threshold": claim.rule.threshold, "side": claim.rule.side}
        found = _gated(opened.get(claim.id) or verdict(claim, sources), {name: opened[name] for name in claim.gate})
        row |= {
            "contrary": claim.rule.contrary,
            "gate": ", ".join(claim.gate),
            "bearing": bearing(claim.polarity, found.verdict),
        }
        rows.append(row | asdict(found))
    return pd.DataFrame(rows)


def bearing(polarity: str, word: str) -> str:
    """Say what a verdict means for the paper's reading, given which way the claim speaks when it is reproduced.

    >>> bearing("for", "reproduced"), bearing("against", "reproduced"), bearing("against", "the opposite")
    ("for the paper's reading", 'against it', "for the paper's reading")
    >>> bearing("for", "partly"), bearing("neither", "reproduced")
    ('undecided', 'neither')
    """
    if polarity == "neither":
        return BEARINGS[3]
    if word not in (REPRODUCED, OPPOSITE):
        return BEARINGS[2]
    return BEARINGS[0] if (word == REPRODUCED) == (polarity == "for") else BEARINGS[1]


def _gated(own: Verdict, gates: Mapping[str, Verdict]) -> Verdict:
    """Close a claim whose gates are not all reproduced, and say which one closed it."""
    closed = [(name, gate.verdict) for name, gate in gates.items() if gate.verdict != REPRODUCED]
    if not closed or own.verdict == UNTESTABLE:
        return own
    (name, word), *_ = closed
    said = f"its gate {name} came out as {word!r}, so this number says nothing. By its own rule alone: {own.verdict}."
    return replace(own, verdict=UNTESTABLE, reason=f"{said} {own.reason}")


class _Judged:
    """A comparison with its intervals: whether it can be tested, holds or shows the opposite, and its weakest part."""

    def __init__(self, comparison: Comparison, rule: Rule, confidence: float) -> None:
        intervals = [seed_interval(part.values, confidence) for part in comparison.parts]
        clearances = [_clearance(*pair, rule) for pair in zip(intervals, comparison.parts, strict=True)]
        self.parts, self.means, self.confidence = comparison.parts, [i.mean for i in intervals], confidence
        self.weakest = min(range(len(clearances)), key=clearances.__getitem__)
        self.part, self.interval = comparison.parts[self.weakest], intervals[self.weakest]
        self.clearance = clearances[self.weakest]
        self.testable = all(interval.n >= rule.min_seeds for interval in intervals)
        self.holds = self.testable and all(_holds(interval, rule) for interval in intervals)
        self.opposes = self.testable and any(_opposes(interval, rule) for interval in intervals)
        self.p_value = self._p_value(rule) if self.testable else math.nan

    def _p_value(self, rule: Rule) -> float:
        """Of the side that its weakest part lies on: two-sided, as the intervals are."""
        away = self.clearance if self.clearance > 0 else _clearance(self.interval, self.part, rule, contrary=True)
        return float(2 * stats.t.sf(abs(away) if away * self.clearance > 0 else 0.0, self.interval.n - 1))


def _judged(comparisons: Sequence[Comparison], rule: Rule) -> list[_Judged]:
    """Judge all comparisons, each at the level that the rule's correction leaves it."""
    plain = [_Judged(comparison, rule, rule.confidence) for comparison in comparisons]
    found = multiplicity.levels([j.p_value for j in plain], rule, all_hold=all(j.holds for j in plain))
    return [_Judged(comparison, rule, level) for comparison, level in zip(comparisons, found, strict=True)]


def _holds(interval: Interval, rule: Rule) -> bool:
    if rule.side == "above":
        return interval.low > rule.threshold
    return interval.high < rule.threshold if rule.side == "below" else interval.mean >= rule.threshold


def _opposes(interval: Interval, rule: Rule) -> bool:
    """Whether the whole interval lies beyond the contrary level; of a share, whether nothing holds."""
    if rule.side == "above":
        return interval.high < rule.contrary
    return interval.low > rule.contrary if rule.side == "below" else interval.mean <= rule.contrary


def _clearance(interval: Interval, part: Part, rule: Rule, *, contrary: bool = False) -> float:
    """Distance of the mean from the threshold on the right side, in standard errors: comparable between metrics."""
    if not math.isfinite(interval.mean):
        return -math.inf
    level = rule.contrary if contrary else rule.threshold
    distance = (interval.mean - level) * (-1 if rule.side == "below" else 1)
    known = np.asarray(part.values)[np.isfinite(part.values)]
    error = float(known.std(ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else 0.0
    return distance / error if error > 0 else math.copysign(math.inf, distance) if distance else 0.0


def _decide(found: Sequence[_Judged], rule: Rule) -> str:
    """Any that must hold alone, or all together; where none holds, one that is contrary refutes a claim of all."""
    held = sum(j.holds for j in found)
    if rule.require == "any" and held:
        return REPRODUCED
    if not all(j.testable for j in found):
        return UNTESTABLE
    if held == len(found):
        return REPRODUCED
    if held and rule.require == "all":
        return PARTLY
    against = [j.opposes for j in found]
    return OPPOSITE if (all(against) if rule.require == "any" else any(against)) else UNDECIDED


def _needed_level(judged: _Judged, rule: Rule) -> float:
    """Level at which a comparison must hold for the whole claim to be reproduced."""
    return judged.confidence if rule.require == "any" else rule.confidence


def _power(claim: Claim, found: Sequence[_Judged]) -> tuple[float, float]:
    """Find the paper's effect and the power there, where the rule is weakest; ``nan`` where the paper has none."""
    effects = power.paper_effects(claim)
    known = [
        (power.power_at(e, p.values, claim.rule, _needed_level(judged, claim.rule)), e)
        for comparison, judged in zip(effects, found, strict=True)
        for (e, *_), p in zip([part.values for part in comparison.parts], judged.parts, strict=True)
    ] if effects else []  # fmt: skip
    known = [pair for pair in known if math.isfinite(pair[0])]
    chance, effect = (max if claim.rule.require == "any" else min)(known, default=(math.nan, math.nan))
    return effect, chance


def _reason(deciding: _Judged, found: Sequence[_Judged], rule: Rule) -> str:
    part, interval = deciding.part, deciding.interval
    mean, low, high, threshold = (
        number(value, unit=part.unit) for value in (interval.mean, interval.low, interval.high, rule.threshold)
    )
    which = ""
    if len(found) > 1:
        opposed = sum(j.opposes for j in found)
        against = f", {opposed} {'show' if opposed > 1 else 'shows'} the opposite" if opposed else ""
        which = f"{sum(j.holds for j in found)} of {len(found)} comparisons hold{against}. "
        which += "Strongest: " if rule.require == "any" else "Weakest: "
    span = "" if rule.side == "at_least" else f", interval {low} to {high}"
    need = f"needed: {rule.side.replace('_', ' ')} {threshold}"
    if deciding.confidence != rule.confidence:
        span += f" at {100 * deciding.confidence:.3g}%"
    return f"{which}{part.label}, {mean}{span} over {interval.n} {part.over} ({need})."


def _untestable(deciding: _Judged, claim: Claim, problems: Sequence[str]) -> str:
    part, n, needed = deciding.part, deciding.interval.n, claim.rule.min_seeds
    if problems or len(claim.seeds) >= needed:
        undefined = "its denominator or its value is undefined"
        undefined += " in the other seeds, or these are not in the tables" if n else ""
        shown = "; ".join(problems[:3]) or undefined
    else:
        shown = f"this is a sweep over one seed, which gives {number(deciding.interval.mean, unit=part.unit)}"
    over = part.over.removesuffix("s") if n == 1 else part.over
    return f"{part.label}: {n} usable {over}, {needed} are needed; {shown}."
