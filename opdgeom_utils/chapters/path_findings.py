"""What the book found of paths and of what controls them, in sentences written by the verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from opdgeom_utils.chapters.verdicts import tally, under, verdict_of, verdicts_of
from opdgeom_utils.claims import OPPOSITE, UNTESTABLE, VERDICTS

REPRODUCED, PARTLY, UNDECIDED = VERDICTS[:3]


def path_sentence(card: pd.DataFrame) -> str:
    """Say what came of the second question: the paper's path, its nulls, and training inside the early space."""
    paper = card.loc[under(card, "paper_path")]
    held = paper.loc[paper["verdict"] == REPRODUCED, "statement"].tolist()
    right, left = (tally(verdicts_of(card, f"path_nulls_{side}")) for side in ("right", "left"))
    inside = _by_verdict(card.loc[under(card, "projection", "projection_nulls")])
    return (
        f"{locking_clause(card)}{_beyond_clause(card)}\n"
        f"{early_clause(card)}Of {len(paper)} statements of the paper on the path {len(held)} hold. Of the rules "
        f"that OPD locks earlier than processes that learn nothing {right} hold on the side of the inputs, {left} on "
        "that of the outputs. "
        f"{f'Reproduced{_listed_apart(held)}. ' if held else ''}On training inside the early space: {inside}"
    )


def early_clause(card: pd.DataFrame) -> str:
    """Say whether OPD's update settles early at all; empty where it was not tested."""
    verdict = verdict_of(card, "locking_before_a_tenth")
    if verdict == REPRODUCED:
        return (
            "On the side of the inputs OPD is, at a tenth of its updates, ahead of RLVR and of a random walk, the "
            "weakest null. "
        )
    return "That it settles early is not shown. " if verdict not in ("", UNTESTABLE) else ""


def locking_clause(card: pd.DataFrame) -> str:
    """Say whether OPD's update settles into its final space earlier than SFT's; empty where it was not tested."""
    verdicts = [verdict_of(card, name) for name in ("locking_early_k16", "locking_at_matched_steps")]
    if verdicts[0] in (PARTLY, UNDECIDED) and verdicts[1] == OPPOSITE:
        return "OPD's update settles into its final space no earlier than SFT's; after as many updates SFT's is ahead. "
    said = {
        REPRODUCED: "OPD's update settles into its final space earlier than SFT's. ",
        OPPOSITE: "OPD's update settles into its final space no earlier than SFT's: SFT's is ahead. ",
        PARTLY: "That OPD's update settles into its final space earlier than SFT's is not shown. ",
        UNDECIDED: "That OPD's update settles into its final space earlier than SFT's is not shown. ",
    }
    return said.get(verdicts[0], "")


def _beyond_clause(card: pd.DataFrame) -> str:
    """Say on which side OPD locks earlier than whatever learns nothing.

    >>> rows = [("path_nulls_right", "partly"), ("path_nulls_left", "reproduced")]
    >>> _beyond_clause(pd.DataFrame(rows, columns=["condition", "verdict"]))
    'It locks more than every made-up process that learns nothing on the side of the outputs, not on that of the
    inputs.'
    """
    sides = {"inputs": "path_nulls_right", "outputs": "path_nulls_left"}
    found = {side: verdicts_of(card, condition) for side, condition in sides.items()}
    if not all(found.values()) or all(set(verdicts) <= {UNTESTABLE} for verdicts in found.values()):
        return ""
    more = [side for side, verdicts in found.items() if set(verdicts) == {REPRODUCED}]
    if len(more) == 2:
        return "It locks more than every made-up process that learns nothing, on both sides."
    if not more:
        return "On neither side does it lock more than every made-up process that learns nothing."
    other = next(side for side in sides if side not in more)
    where = f"on the side of the {more[0]}, not on that of the {other}"
    return f"It locks more than every made-up process that learns nothing {where}."


def _by_verdict(rows: pd.DataFrame) -> str:
    """List statements under their verdicts.

    >>> _by_verdict(pd.DataFrame({"verdict": ["partly", "reproduced"], "statement": ["A is B.", "C is D."]}))
    'reproduced: "C is D". Partly: "A is B".'
    """
    found = {v: rows.loc[rows["verdict"] == v, "statement"].tolist() for v in VERDICTS}
    parts = [f"{verdict}{_listed_apart(says)}" for verdict, says in found.items() if says]
    return ". ".join(p if i == 0 else p[:1].upper() + p[1:] for i, p in enumerate(parts)) + "." * bool(parts)


def _listed_apart(statements: Sequence[str]) -> str:
    quoted = ['"' + says.rstrip(".") + '"' for says in statements]
    return f": {'; '.join(quoted)}" if quoted else ""


def control_sentence(card: pd.DataFrame) -> str:
    """Say what came of the third question: tokens, writers, mixing, and whether the measure can tell objectives apart.

    >>> rows = [("tokens", "not testable"), ("mixing", "not testable"), ("power_seen", "not decided")]
    >>> control_sentence(pd.DataFrame(rows, columns=["condition", "verdict"])).splitlines()[0]
    "RLVR itself is not shown to leave OPD's path by more than the rule asks, so no claim on a path can be tested here."
    """
    kept, mixed = (tally(verdicts_of(card, *names)) for names in (("tokens", "writers"), ("mixing",)))
    power = verdicts_of(card, "power_seen")
    first = "The path of RLVR is apart from OPD's, so the measure can tell objectives apart."
    if {PARTLY, UNDECIDED, OPPOSITE} & set(power):
        first = (
            "RLVR itself is not shown to leave OPD's path by more than the rule asks, so no claim on a path can be "
            "tested here."
        )
    elif UNTESTABLE in power or not power:
        first = "Whether the measure can tell RLVR's path from OPD's is not known."
    return (
        f"{first}\n"
        f"Reproduced of the statements that OPD's path stays with fewer tokens or another writer: {kept}. That mixing "
        f"in RLVR moves it as the paper says: {mixed}."
    )
