"""The book's answer in three sentences, written by the verdicts: nothing in them is typed by hand.

The first sentence says what the paper's own comparison gives, the second what is left when runs are matched, the
third what is left beside shuffled updates. The words are fixed; the counts and the clauses that depend on them come
from the scorecard.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from opdgeom_utils.claims import UNTESTABLE, VERDICTS
from opdgeom_utils.verdicts import matched
from opdgeom_utils.verdicts.measured import Tables

REPRODUCED, PARTLY, NOT = VERDICTS[:3]
MATCHES = (
    ("equal_updates", "at equal updates"),
    ("equal_norm", "at equal norm of the update"),
    ("equal_accuracy", "at equal accuracy gained"),
)
NULLS = ("null_opd", "null_rlvr", "null_order")
SPECTRAL = ("rotation", "spectral_drift")


def answer_sentences(card: pd.DataFrame, tables: Tables) -> tuple[str, str, str]:
    """Write the three sentences of the landing page.

    Parameters
    ----------
    card
        From :func:`opdgeom_utils.claims.scorecard`.
    tables
        The tables the card was computed from.
    """
    return where_sentence(card, tables.geometry), matched_sentence(card), null_sentence(card)


def where_sentence(card: pd.DataFrame, geometry: pd.DataFrame) -> str:
    """Update sparsity of the three objectives at their own ends, and how many of the paper's orders come out."""
    ends = matched.final(matched.summarise(geometry, None)).groupby("recipe")["update_sparsity"].agg("mean").to_dict()
    shares = {r: f"{100 * ends[r]:.1f}%" if r in ends else "an unknown share" for r in ("sft", "opd", "rlvr")}
    orders = verdicts_of(card.loc[card["id"].str.endswith("_order")], "paper_steps")
    return (
        "With each run measured at its own end, as the paper does it, on-policy distillation leaves "
        f"{shares['opd']} of the weight entries unchanged, supervised fine-tuning {shares['sft']} and RLVR "
        f"{shares['rlvr']}; the paper's order of the three is {tally(orders, 'diagnostics')}."
    )


def matched_sentence(card: pd.DataFrame) -> str:
    """How many of the five orders are left under each match."""
    parts = [f"{tally(verdicts_of(card, condition))} {place}" for condition, place in MATCHES]
    return (
        "With supervised fine-tuning started at the same anchor and the runs matched, the same orders are "
        f"{'; '.join(parts)}."
    )


def null_sentence(card: pd.DataFrame) -> str:
    """How many statements hold against updates shuffled inside their own matrices, and what that means.

    Sparsity and masks look through bf16, angles and singular values do not, so the two are spoken of apart.

    Examples
    --------
    >>> rows = {
    ...     "condition": ["null_opd", "null_rlvr"],
    ...     "diagnostic": ["update_sparsity", "rotation"],
    ...     "verdict": ["not reproduced", "not reproduced"],
    ...     "value": [0.0, 1.8],
    ...     "low": [-0.01, 1.7],
    ...     "high": [0.01, 1.9],
    ... }
    >>> null_sentence(pd.DataFrame(rows))
    'Beside updates ... 0 of 2 statements hold: sparsity and mask overlaps show what size and bf16 rounding give by
    themselves; rotation and drift are 1.8 to 1.8 times the shuffled ones, so these updates do not spare the leading
    directions.'
    """
    rows = card.loc[card["condition"].isin(NULLS)]
    verdicts = rows["verdict"].tolist()
    opening = "Beside updates shuffled inside their own matrices, which keep their size and lose their place, "
    if verdicts.count(UNTESTABLE) == len(verdicts):
        return opening + "nothing could be tested with these runs."
    spectral = rows["diagnostic"].isin(SPECTRAL)
    clauses = [_grid_clause(rows.loc[~spectral]), _spectral_clause(rows.loc[spectral])]
    held = f"{verdicts.count(REPRODUCED)} of {len(verdicts)} statements hold"
    return f"{opening}{held}: {'; '.join(c for c in clauses if c)}."


def _grid_clause(rows: pd.DataFrame) -> str:
    verdicts = rows["verdict"].tolist()
    held, total = verdicts.count(REPRODUCED), len(verdicts)
    if not total:
        return ""
    if held in (0, total):
        meaning = "more than size and bf16 rounding" if held else "what size and bf16 rounding give by themselves"
        return f"sparsity and mask overlaps show {meaning}"
    return f"sparsity and mask overlaps show more than size and bf16 rounding on {held} of {total}"


def _spectral_clause(rows: pd.DataFrame) -> str:
    """Compare rotation and drift with the shuffled ones: a ratio above 1 means that place favours the spectrum."""
    known = rows.loc[rows["value"].notna()]
    if known.empty:
        return ""
    span = f"rotation and drift are {known['value'].min():.1f} to {known['value'].max():.1f} times the shuffled ones"
    if (known["low"] > 1).all():
        return f"{span}, so these updates do not spare the leading directions"
    return f"{span}, so these updates spare the leading directions" if (known["high"] < 1).all() else span


def verdicts_of(card: pd.DataFrame, *conditions: str) -> list[str]:
    """Return the verdicts of the claims made under one of the conditions, in the card's order."""
    return card.loc[card["condition"].isin(conditions), "verdict"].tolist()


def tally(verdicts: Sequence[str], of: str = "") -> str:
    """Count verdicts in words; ``of`` names what is counted.

    Examples
    --------
    >>> tally(["reproduced", "partly", "reproduced"])
    'reproduced on 2 of 3 (partly on 1)'
    >>> tally(["not testable at this scale", "not reproduced"], "diagnostics")
    'reproduced on 0 of 2 diagnostics (not testable on 1)'
    """
    counts = {word: verdicts.count(word) for word in VERDICTS}
    rest = [
        f"{word} on {counts[full]}" for full, word in ((PARTLY, "partly"), (UNTESTABLE, "not testable")) if counts[full]
    ]
    named = f" {of}" if of else ""
    return f"reproduced on {counts[REPRODUCED]} of {len(verdicts)}{named}" + (f" ({', '.join(rest)})" if rest else "")


def criticism_answers(tables: Tables) -> dict[int, str]:
    """Answer in a computed sentence the criticisms of the paper that no verdict answers (2, 3 and 8).

    Parameters
    ----------
    tables
        Geometry of one profile, with recipes ``opd`` and ``rlvr``.
    """
    ends = matched.final(matched.summarise(tables.geometry, None))
    spread = {str(r): float(np.std(own["update_sparsity"], ddof=1)) for r, own in ends.groupby("recipe")}
    widest = max(spread, key=lambda recipe: spread[recipe])
    attention = matched.summarise(tables.geometry)
    inflated = "; ".join(_inflation(attention, recipe) for recipe in ("opd", "rlvr"))
    return {
        2: (
            "Every curve and verdict has an interval over seeds. At a run's end, the standard deviation of update "
            f"sparsity over seeds is at most {100 * spread[widest]:.2f} points ({widest})."
        ),
        3: (
            "Below 1/256 not at all: two different bf16 numbers are never closer than that, relative to the larger "
            "one. Chapter 2 sweeps the tolerance."
        ),
        8: f"Rounding to bf16 multiplies the stable rank of the update ({inflated}). Spectra are measured in fp32.",
    }


def _inflation(summary: pd.DataFrame, recipe: str) -> str:
    """Stable rank after rounding over stable rank, mean over seeds, at the first and at the last checkpoint."""
    own = summary.loc[summary["recipe"] == recipe]
    ratio = own["stable_rank_bf16"] / own["stable_rank"]
    first, last = (float(ratio[own["step"] == step].mean()) for step in (own["step"].min(), own["step"].max()))
    return f"{recipe}: by {first:.1f} at the first checkpoint, by {last:.1f} at the last"
