"""What a level of 95% means where a claim looks at many comparisons at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from opdgeom_utils.claims.schema import Rule


def levels(p_values: Sequence[float], rule: Rule, *, all_hold: bool = False) -> list[float]:
    """Confidence of the interval of each comparison, after the rule's correction.

    ``p_values``: two-sided p-value of each comparison, 0 to 1; ``nan`` where there is none.
    ``rule``: its ``confidence``, ``correction`` and ``family``. ``bonferroni`` divides the chance of a false alarm by
    the family. ``holm`` does so for the smallest p-value, by one less for the next, and so on until one fails; that one
    and the rest share its level. [Holm, Scandinavian Journal of Statistics 6, 1979].
    ``all_hold``: every comparison holds at the rule's own level, and the rule asks for all: then there is nothing to
    correct, for all of many pass by chance less often than any one of them.

    Three comparisons at 95%: .01 passes 5% / 3, .04 fails 5% / 2, and .03 had passed neither.

    >>> rule = Rule("", "above", 0.0, "all", 0.95, 3, correction="holm")
    >>> [round(level, 4) for level in levels([0.04, 0.01, 0.03], rule)]
    [0.975, 0.9833, 0.975]
    """
    alpha, family = 1 - rule.confidence, rule.family or len(p_values)
    if rule.correction == "none" or (all_hold and rule.require == "all"):
        return [rule.confidence] * len(p_values)
    if rule.correction == "bonferroni":
        return [1 - alpha / family] * len(p_values)
    known = [1.0 if math.isnan(p) else p for p in p_values]
    found, left, stopped = [0.0] * len(known), family, False
    for place in sorted(range(len(known)), key=known.__getitem__):
        share = alpha / max(left, 1)
        found[place] = 1 - share
        stopped = stopped or known[place] >= share
        left -= not stopped
    return found
