"""Verdicts as the chapters print them: a list, a grid of matches, the open criticisms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from opdgeom_utils.chapters.where import PLACES
from opdgeom_utils.charts.palette import VERDICT_MARKS
from opdgeom_utils.charts.verdicts import DIAGNOSTICS
from opdgeom_utils.claims import UNTESTABLE, VERDICTS
from opdgeom_utils.claims.schema import Claim

ORDERED = ("update_sparsity", "rotation", "spectral_drift", "principal_mask", "low_magnitude_mask")


def say_verdicts(card: pd.DataFrame, conditions: Iterable[str], diagnostics: Iterable[str] = ()) -> str:
    """List verdicts with their computed reasons, as Markdown.

    Parameters
    ----------
    card
        From :func:`opdgeom_utils.claims.scorecard`.
    conditions
        Which claims to list.
    diagnostics
        Keep only claims on these; none keeps all.

    Examples
    --------
    >>> row = {"id": "a", "condition": "chance", "diagnostic": "x", "statement": "It holds.", "verdict": "partly"}
    >>> say_verdicts(pd.DataFrame([row | {"reason": "1 of 2 comparisons hold."}]), ["chance"])
    '- ◐ **partly**: It holds.<br><small>`a`. 1 of 2 comparisons hold.</small>'
    """
    kept = list(diagnostics) or list(card["diagnostic"])
    rows = card.loc[card["condition"].isin(list(conditions)) & card["diagnostic"].isin(kept)]
    return "\n".join(
        f"- {VERDICT_MARKS[verdict]} **{verdict}**: {statement}<br><small>`{claim}`. {_begun(reason)}</small>"
        for verdict, statement, claim, reason in rows[["verdict", "statement", "id", "reason"]].itertuples(index=False)
    )


def _begun(reason: str) -> str:
    return reason[:1].upper() + reason[1:]


def match_grid(card: pd.DataFrame) -> pd.DataFrame:
    """Lay out the five orders in rows and the places of comparison in columns, a verdict in each cell.

    Parameters
    ----------
    card
        From :func:`opdgeom_utils.claims.scorecard`.
    """
    conditions = {"paper_steps": PLACES["final"]} | {k: v for k, v in PLACES.items() if k != "final"}
    orders = card.loc[card["condition"].isin(list(conditions)) & card["id"].str.contains("_order")]
    shown = orders.assign(
        place=orders["condition"].map(conditions),
        words=[f"{VERDICT_MARKS[v]} {v.removesuffix(' at this scale')}" for v in orders["verdict"]],
    )
    grid = shown.pivot(index="diagnostic", columns="place", values="words").reindex(
        index=list(ORDERED), columns=list(conditions.values())
    )
    return grid.rename(index=DIAGNOSTICS).rename_axis(index="order of", columns=None).reset_index()


def criticism_table(card: pd.DataFrame, claims: Sequence[Claim], answers: dict[int, str]) -> pd.DataFrame:
    """Say what a careful reader asks of the paper, which claims here ask it, and what came out.

    Parameters
    ----------
    card
        From :func:`opdgeom_utils.claims.scorecard`.
    claims
        From :func:`opdgeom_utils.claims.load_claims`.
    answers
        Computed sentences for criticisms that no verdict answers, by number.
    """
    rows = []
    for number, question in CRITICISMS.items():
        ids = [claim.id for claim in claims if number in claim.criticism]
        verdicts = card.loc[card["id"].isin(ids), "verdict"]
        counts = [f"{int((verdicts == word).sum())} {word}" for word in VERDICTS if (verdicts == word).any()]
        parts = [answers[number]] if number in answers else []
        parts += [f"{len(ids)} claims: {', '.join(counts)}."] if ids else []
        open_ = number not in answers and bool((verdicts == UNTESTABLE).all())  # also where there is no claim
        rows.append(
            (number, question, "open" if open_ else "addressed", " ".join(parts) or "A later chapter's question.")
        )
    return pd.DataFrame(rows, columns=["criticism", "question", "state", "what we found"])


CRITICISMS = {
    1: "Is the order of the objectives only learning rate times steps?",
    2: "How large is the difference between seeds?",
    3: "How does sparsity move with its tolerance?",
    4: "Is locking early also between checkpoints a fifth of the run apart, and in the steps themselves?",
    5: "Does the projection work at another rank, from another start, and better than onto other spaces?",
    6: "Is it the source of the mixed signal that moves the path, or only its scale?",
    7: "Is OPD a regime of its own, or a point on the way from SFT to RLVR?",
    8: "How much of the stable rank is noise of bf16 rounding?",
}
