"""Verdicts as the chapters print them: a list, a grid of matches, one block for each claim, the open criticisms."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from opdgeom_utils.chapter_tables import PLACES
from opdgeom_utils.charts.theme import VERDICT_MARKS
from opdgeom_utils.claim_schema import Claim
from opdgeom_utils.claims import UNTESTABLE, VERDICTS

CHAPTER_TWO, CHAPTER_THREE = "02_rq1_where_opd_lies", "03_rq1_is_it_only_step_size"
SECTIONS = {
    "update_sparsity": "diag-sparsity",
    "rotation": "diag-angles",
    "spectral_drift": "diag-drift",
    "principal_mask": "diag-masks",
    "low_magnitude_mask": "diag-masks",
    "both_masks": "diag-masks",
}
MATCHES = {
    "equal_updates": "matches",
    "equal_norm": "matches",
    "equal_accuracy": "matches",
    "share": "survives",
    "distinct": "survives",
}
DIAGNOSTICS = {
    "update_sparsity": "update sparsity",
    "rotation": "principal angles",
    "spectral_drift": "spectral drift",
    "principal_mask": "principal-mask overlap",
    "low_magnitude_mask": "low-magnitude overlap",
}


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
    '- ◐ **partly**: It holds. (`a`) 1 of 2 comparisons hold.'
    """
    kept = list(diagnostics) or list(card["diagnostic"])
    rows = card.loc[card["condition"].isin(list(conditions)) & card["diagnostic"].isin(kept)]
    return "\n".join(
        f"- {VERDICT_MARKS[verdict]} **{verdict}**: {statement} (`{claim}`) {reason}"
        for verdict, statement, claim, reason in rows[["verdict", "statement", "id", "reason"]].itertuples(index=False)
    )


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
        index=list(DIAGNOSTICS), columns=list(conditions.values())
    )
    return grid.rename(index=DIAGNOSTICS).rename_axis(index="order of", columns=None).reset_index()


def link_of(condition: str, diagnostic: str) -> str:
    """Address of the section that treats a claim, as seen from the scorecard.

    >>> link_of("equal_norm", "rotation"), link_of("null_opd", "rotation")
    ('03_rq1_is_it_only_step_size.html#matches', '02_rq1_where_opd_lies.html#diag-angles')
    """
    if condition in MATCHES:
        return f"{CHAPTER_THREE}.html#{MATCHES[condition]}"
    return f"{CHAPTER_TWO}.html#{SECTIONS.get(diagnostic, 'verdicts-at-the-ends')}"


def value_text(value: float, low: float, high: float, unit: str) -> str:
    """Say the deciding value of a claim with its interval.

    >>> value_text(0.5, 0.4, 0.6, "points"), value_text(1.5, math.nan, math.nan, "")
    ('50.00 points (40.00 to 60.00)', '1.5')
    """
    if not math.isfinite(value):
        return "undefined"
    scale, shown = (100, ".2f") if unit == "points" else (1, ".3g")
    said = f"{scale * value:{shown}}{f' {unit}' if unit else ''}"
    return f"{said} ({scale * low:{shown}} to {scale * high:{shown}})" if math.isfinite(low) else said


def claim_blocks(card: pd.DataFrame) -> str:
    """Write one folded HTML block per claim: verdict and statement outside; value, null, rule, reason, link inside.

    Parameters
    ----------
    card
        From :func:`opdgeom_utils.claims.scorecard`.

    Returns
    -------
    str
        HTML, every text escaped.
    """
    return "\n".join(_block({str(k): v for k, v in row.items()}) for row in card.to_dict("records"))


def _block(row: Mapping[str, Any]) -> str:
    facts = {
        "Decided by": row["deciding"],
        "Value (95% interval)": value_text(row["value"], row["low"], row["high"], row["unit"]),
        "Same number, shuffled updates": value_text(row["null_value"], math.nan, math.nan, row["unit"]),
        "Rule": row["rule"],
        "Reason": row["reason"],
        "Would refute it": row["refuted_by"],
        "In the paper": row["where"],
    }
    items = "".join(f"<p><strong>{html.escape(k)}.</strong> {html.escape(v)}</p>" for k, v in facts.items())
    verdict = f"{VERDICT_MARKS[row['verdict']]} {html.escape(row['verdict'])}"
    return (
        f'<details class="opd-claim"><summary><strong>{verdict}</strong>: '
        f"{html.escape(row['statement'])} <code>{html.escape(row['id'])}</code></summary>{items}"
        f'<p><a href="{link_of(row["condition"], row["diagnostic"])}">The chapter that measures it</a></p></details>'
    )


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
        open_ = not parts or (len(ids) > 0 and bool((verdicts == UNTESTABLE).all()))
        rows.append(
            (number, question, "open" if open_ else "addressed", " ".join(parts) or "A later chapter's question.")
        )
    return pd.DataFrame(rows, columns=["criticism", "question", "state", "what we found"])


CRITICISMS = {
    1: "Is the order of the objectives only learning rate times steps?",
    2: "How large is the difference between seeds?",
    3: "How does sparsity move with its tolerance?",
    7: "Is OPD a regime of its own, or a point on the way from SFT to RLVR?",
    8: "How much of the stable rank is noise of bf16 rounding?",
}
