"""The paper's claims and ours, and the verdict that the tables give each of them."""

from opdgeom_utils.claims.judge import (
    BEARINGS,
    OPPOSITE,
    UNDECIDED,
    UNTESTABLE,
    VERDICTS,
    Verdict,
    bearing,
    scorecard,
    verdict,
)
from opdgeom_utils.claims.schema import Claim, ClaimError, Rule, load_claims, load_reported

__all__ = [
    "BEARINGS", "OPPOSITE", "UNDECIDED", "UNTESTABLE", "VERDICTS", "Claim", "ClaimError", "Rule", "Verdict", "bearing",
    "load_claims", "load_reported", "scorecard", "verdict",
]  # fmt: skip
