"""What the book found, in sentences written by the verdicts: nothing in them is typed by hand.

The words are fixed; the counts and the clauses that depend on them come from the scorecard.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from opdgeom_utils.claims import UNTESTABLE, VERDICTS, matching
from opdgeom_utils.claims.look_up import Tables

REPRODUCED, PARTLY, NOT = VERDICTS[:3]
_MATCHES = {
    "equal_updates": "at equal updates",
    "equal_norm": "at equal norm of the update",
    "equal_accuracy": "at equal accuracy gained",
}


def findings(card: pd.DataFrame, tables: Tables) -> dict[str, str]:
    """Write the sentences of the landing page: ``where, matched, null, path, control``.

    Parameters
    ----------
    card
        From :func:`opdgeom_utils.claims.scorecard`.
    tables
        The tables the card was computed from.
    """
    return {
        "where": where_sentence(card, tables.geometry),
        "matched": matched_sentence(card),
        "null": null_sentence(card),
        "path": path_sentence(card),
        "control": control_sentence(card),
    }


def where_sentence(card: pd.DataFrame, geometry: pd.DataFrame) -> str:
    """Update sparsity of the three objectives at their own ends, and how many of the paper's orders come out."""
    ends = matching.final(matching.summarise(geometry, None)).groupby("recipe")["update_sparsity"].agg("mean").to_dict()
    shares = {r: f"{100 * ends[r]:.1f}%" if r in ends else "an unknown share" for r in ("sft", "opd", "rlvr")}
    orders = _verdicts(card.loc[card["id"].str.endswith("_order")], "paper_steps")
    known = [ends[r] for r in ("sft", "opd", "rlvr") if r in ends]
    lies = "lies" if len(known) == 3 and sorted(known)[1] == ends["opd"] else "does not lie"
    between = f" By this number OPD {lies} between the other two." if len(known) == 3 else ""
    return (
        f"At the end of each run, as the paper measures it, OPD has left {shares['opd']} of the weight entries "
        f"unchanged, SFT {shares['sft']} and RLVR {shares['rlvr']}.{between} The paper finds one order of the three on "
        f"{len(orders)} diagnostics. Reproduced: {_tally(orders)}."
    )


def matched_sentence(card: pd.DataFrame) -> str:
    """How many of the five orders are left under each match."""
    left = "; ".join(f"{words} {_tally(_verdicts(card, condition))}" for condition, words in _MATCHES.items())
    return (
        "Then SFT starts where the others start, and the runs are made equal in something. How many of the same orders "
        f"are reproduced now? {left[:1].upper()}{left[1:]}."
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
    'Then each update ... Beside such a null 0 of 2 statements hold. Sparsity and mask overlaps show what size and
    bf16 rounding give by themselves. Rotation and drift are 1.8 to 1.8 times the shuffled ones, so these updates do not
    spare the leading directions.'
    """
    rows = card.loc[card["condition"].isin(["null_opd", "null_rlvr", "null_order"])]
    verdicts = rows["verdict"].tolist()
    opening = "Then each update is shuffled inside its own matrix, so that it keeps its size and loses its place. "
    if set(verdicts) <= {UNTESTABLE}:
        return opening + "Nothing could be tested with these runs."
    spectral = rows["diagnostic"].isin(["rotation", "spectral_drift"])
    held = f"Beside such a null {verdicts.count(REPRODUCED)} of {len(verdicts)} statements hold"
    clauses = [held, _grid_clause(rows.loc[~spectral, "verdict"].tolist()), _spectral_clause(rows.loc[spectral])]
    return f"{opening}{'. '.join(filter(None, clauses))}."


def path_sentence(card: pd.DataFrame) -> str:
    """Say what came of the second question: the paper's path, its nulls, and training inside the early space."""
    paper, right, left, projection, others = (
        _tally(_verdicts(card, *conditions))
        for conditions in (
            ("paper_path", "paper_path_seen"), ("path_nulls_right",), ("path_nulls_left",), ("projection",),
            ("projection_nulls",),
        )
    )  # fmt: skip
    return (
        f"Reproduced of what the paper says of the path: {paper}. That it locks earlier than processes that learn "
        f"nothing: {right} on the side of the inputs, {left} on that of the outputs. That the early space is enough to "
        f"train in: {projection}. That it does better than other spaces: {others}."
    )


def control_sentence(card: pd.DataFrame) -> str:
    """Say what came of the third question: tokens, writers, mixing, and whether the measure can tell objectives apart.

    Examples
    --------
    >>> rows = [("tokens", "reproduced"), ("mixing", "partly"), ("power_seen", "not reproduced")]
    >>> control_sentence(pd.DataFrame(rows, columns=["condition", "verdict"])).split(". ")[-1]
    'But the path of RLVR itself is not further from it than the rule asks, so staying on a path shows little here.'
    """
    kept, mixed = (_tally(_verdicts(card, *names)) for names in (("tokens", "writers"), ("mixing",)))
    power = _verdicts(card, "power_seen")
    tail = "The path of RLVR is apart from it, so the measure can tell objectives apart."
    if NOT in power:
        tail = (
            "But the path of RLVR itself is not further from it than the rule asks, so staying on a path shows little "
            "here."
        )
    elif UNTESTABLE in power or not power:
        tail = "Whether the measure can tell RLVR from it is not known."
    return (
        f"Reproduced of the statements that OPD's path stays with fewer tokens or another writer: {kept}. That mixing "
        f"in RLVR moves it as the paper says: {mixed}. {tail}"
    )


def counts_sentence(card: pd.DataFrame) -> str:
    """Count verdicts for the paper's own statements and for our controls on them.

    Examples
    --------
    >>> counts_sentence(pd.DataFrame({"group": ["paper", "control"], "verdict": ["partly", "not reproduced"]}))
    'Of 1 statement of the paper 0 are reproduced, 1 partly, 0 not, 0 could not be tested. Of 1 control of ours on them
    0 came out for the paper, 0 partly, 1 against it, 0 could not be tested.'
    """
    if "question" in card:  # a run that moves as noise does speaks neither for the paper nor against it
        card = card.loc[card["question"] != "noise"]
    counts = [card.loc[card["group"] == group, "verdict"].tolist() for group in ("paper", "control")]
    paper, own = ([len(found), *(found.count(word) for word in VERDICTS)] for found in counts)
    return (
        f"Of {paper[0]} statement{'s' * (paper[0] != 1)} of the paper {paper[1]} are reproduced, {paper[2]} partly, "
        f"{paper[3]} not, {paper[4]} could not be tested. Of {own[0]} control{'s' * (own[0] != 1)} of ours on them "
        f"{own[1]} came out for the paper, {own[2]} partly, {own[3]} against it, {own[4]} could not be tested."
    )


def criticism_answers(tables: Tables) -> dict[int, str]:
    """Answer in a computed sentence the criticisms of the paper that no verdict answers (2, 3 and 8).

    Parameters
    ----------
    tables
        Geometry of one profile, with recipes ``opd`` and ``rlvr``.
    """
    ends = matching.final(matching.summarise(tables.geometry, None))
    spread = {str(r): float(np.std(own["update_sparsity"], ddof=1)) for r, own in ends.groupby("recipe")}
    widest = max(spread, key=lambda recipe: spread[recipe])
    attention = matching.summarise(tables.geometry)
    inflated = "; ".join(_inflation(attention, recipe) for recipe in ("opd", "rlvr"))
    return {
        2: (
            "Every curve and verdict has an interval over seeds. At a run's end, the standard deviation of update "
            f"sparsity over seeds is at most {100 * spread[widest]:.2f} points ({widest})."
        ),
        3: (
            "Below 1/256 not at all: two different bf16 numbers are never closer than that, relative to the larger "
            "one. Chapter 3 sweeps the tolerance."
        ),
        8: f"Rounding to bf16 multiplies the stable rank of the update ({inflated}). Spectra are measured in fp32.",
    }


def _verdicts(card: pd.DataFrame, *conditions: str) -> list[str]:
    return card.loc[card["condition"].isin(conditions), "verdict"].tolist()


def _tally(verdicts: Sequence[str]) -> str:
    """Say how many of the verdicts are "reproduced", and what is in between."""
    counts = {"partly": verdicts.count(PARTLY), "not testable": verdicts.count(UNTESTABLE)}
    rest = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
    return f"{verdicts.count(REPRODUCED)} of {len(verdicts)}" + (f" ({rest})" if rest else "")


def _grid_clause(verdicts: Sequence[str]) -> str:
    held, total = verdicts.count(REPRODUCED), len(verdicts)
    if not total:
        return ""
    if held in (0, total):
        meaning = "more than size and bf16 rounding" if held else "what size and bf16 rounding give by themselves"
        return f"Sparsity and mask overlaps show {meaning}"
    return f"Sparsity and mask overlaps show more than size and bf16 rounding on {held} of {total}"


def _spectral_clause(rows: pd.DataFrame) -> str:
    """Compare rotation and drift with the shuffled ones: a ratio above 1 means that place favours the spectrum."""
    known = rows.loc[rows["value"].notna()]
    if known.empty:
        return ""
    span = f"Rotation and drift are {known['value'].min():.1f} to {known['value'].max():.1f} times the shuffled ones"
    if (known["low"] > 1).all():
        return f"{span}, so these updates do not spare the leading directions"
    return f"{span}, so these updates spare the leading directions" if (known["high"] < 1).all() else span


def _inflation(summary: pd.DataFrame, recipe: str) -> str:
    """Stable rank after rounding over stable rank, mean over seeds, at the first and at the last checkpoint."""
    own = summary.loc[summary["recipe"] == recipe]
    ratio = own["stable_rank_bf16"] / own["stable_rank"]
    first, last = (float(ratio[own["step"] == step].mean()) for step in (own["step"].min(), own["step"].max()))
    return f"{recipe}: by {first:.1f} at the first checkpoint, by {last:.1f} at the last"
