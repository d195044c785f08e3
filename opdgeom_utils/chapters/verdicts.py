"""Verdicts as pages show them: lists, a grid of matches, the ledger of all claims, and what kind of "no" a no is.

The ledger's rows are plain HTML and can be read without scripts. ``book/_static/claim_filter.js`` shows the form above
them and hides the rows that do not fit; it asks nothing of the network.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import pandas as pd

from opdgeom_utils.charts.palette import VERDICT_MARKS
from opdgeom_utils.charts.verdicts import DIAGNOSTICS
from opdgeom_utils.claims import UNTESTABLE, VERDICTS, Claim, matching
from opdgeom_utils.claims.schema import STATISTICS
from opdgeom_utils.intervals import Interval, number
from opdgeom_utils.project_files import PROJECT

QUESTIONS = {
    "rq1": "1: where OPD lies",
    "rq2": "2: what path it takes",
    "rq3": "3: what controls the path",
    "variants": "other settings",
    "noise": "noise",
}
GROUPS = {"paper": "the paper's statement", "control": "our control"}
OPPOSITE, UNDECIDED = "the opposite is shown", "not decided"
ORDERED = ("update_sparsity", "rotation", "spectral_drift", "principal_mask", "low_magnitude_mask")
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
_OF_QUESTION = {"rq1": 3, "rq2": 5, "rq3": 7, "variants": 9, "noise": 2}
_ANCHORS = {  # of a condition, else of a diagnostic, in the chapters on the first question
    **dict.fromkeys(("equal_updates", "equal_norm", "equal_accuracy"), "matches"),
    **dict.fromkeys(("share", "distinct"), "survives"),
    "update_sparsity": "diag-sparsity",
    "rotation": "diag-angles",
    "spectral_drift": "diag-drift",
    **dict.fromkeys(("principal_mask", "low_magnitude_mask", "both_masks"), "diag-masks"),
}
_CHAPTERS = {
    4: ("equal_updates", "equal_norm", "equal_accuracy", "share", "distinct"),
    6: ("projection", "projection_nulls", "projection_sweep"),
    8: ("mixing", "mix_scale", "moments", "moments_seen"),
    9: ("domain_sweep",),
}


def as_list(card: pd.DataFrame, conditions: Iterable[str], diagnostics: Iterable[str] = ()) -> str:
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
    >>> as_list(pd.DataFrame([row | {"reason": "1 of 2 comparisons hold."}]), ["chance"])
    '- ◐ **partly**: It holds.<br><small>`a`. 1 of 2 comparisons hold.</small>'
    """
    kept = list(diagnostics) or list(card["diagnostic"])
    rows = card.loc[card["condition"].isin(list(conditions)) & card["diagnostic"].isin(kept)]
    return "\n".join(
        f"- {VERDICT_MARKS[word]} **{word}**: {statement}<br><small>`{name}`. {reason[:1].upper()}{reason[1:]}</small>"
        for word, statement, name, reason in rows[["verdict", "statement", "id", "reason"]].itertuples(index=False)
    )


def match_grid(card: pd.DataFrame) -> pd.DataFrame:
    """Lay out the five orders in rows and what is made equal in columns, a verdict in each cell."""
    columns = {"paper_steps" if at == "final" else at: words for at, words in matching.MATCHES.items()}
    orders = card.loc[card["condition"].isin(list(columns)) & card["id"].str.contains("_order")]
    shown = [f"{VERDICT_MARKS[v]} {v.removesuffix(' at this scale')}" for v in orders["verdict"]]
    grid = orders.assign(shown=shown).pivot(index="diagnostic", columns="condition", values="shown")
    grid = grid.reindex(index=list(ORDERED), columns=list(columns)).rename(index=DIAGNOSTICS, columns=columns)
    return grid.rename_axis(index="order of", columns=None).reset_index()


def kind_of_no(side: str, threshold: float, low: float, high: float) -> str:
    """Say whether an interval that does not prove a claim proves the opposite, or leaves both open.

    >>> kind_of_no("above", 0.0, -2.0, -1.0), kind_of_no("above", 0.0, -1.0, 1.0)
    ('the opposite is shown', 'not decided')
    """
    return OPPOSITE if (low > threshold if side == "below" else high < threshold) else UNDECIDED


def negatives(card: pd.DataFrame) -> pd.DataFrame:
    """List the claims that were tested and not fully reproduced, with the kind of their "no".

    Parameters
    ----------
    card
        From :func:`opdgeom_utils.claims.scorecard`.

    Returns
    -------
    DataFrame
        ``claim, verdict, value (95% interval), needed, kind``; the interval is that of the weakest comparison.
    """
    rows = []
    for row in card.loc[card["verdict"].isin(VERDICTS[1:3])].to_dict("records"):
        kind = kind_of_no(row["side"], row["threshold"], row["low"], row["high"])
        needed = f"{row['side'].replace('_', ' ')} {number(row['threshold'], unit=row['unit'])}"
        rows.append((row["id"], row["verdict"], _value(row), needed, kind))
    return pd.DataFrame(rows, columns=["claim", "verdict", "value (95% interval)", "needed", "kind"])


def untestable_reasons(card: pd.DataFrame) -> pd.Series:
    """Count why claims could not be tested: one seed, runs or a table that are not there, or something undefined.

    Examples
    --------
    >>> rows = {"verdict": ["not testable at this scale", "partly"], "reason": ["x: 1 usable seed, 3 ... one seed", ""]}
    >>> untestable_reasons(pd.DataFrame(rows)).to_dict()
    {'a sweep over one seed': 1}
    """
    kinds = {
        "one seed": "a sweep over one seed",
        "has not been made": "not measured yet",
        "has nothing for": "some of its runs are not in the tables",
        "there is no run of": "some of its runs are not in the tables",
        "": "a number is missing or undefined",
    }
    reasons = card.loc[card["verdict"] == UNTESTABLE, "reason"]
    found = [next(kind for words, kind in kinds.items() if words in reason) for reason in reasons]
    return pd.Series(found, dtype=str).value_counts()


def criticism_table(card: pd.DataFrame, claims: Sequence[Claim], answers: Mapping[int, str]) -> pd.DataFrame:
    """Say what a careful reader asks of the paper, which claims here ask it, and what came out.

    Parameters
    ----------
    card
        From :func:`opdgeom_utils.claims.scorecard`.
    claims
        From :func:`opdgeom_utils.claims.load_claims`.
    answers
        Computed sentences for criticisms that no verdict answers, by number.

    Returns
    -------
    DataFrame
        ``criticism`` (its number), ``question, state`` (open or addressed), ``what we found``, ``claims`` (their ids by
        verdict, as lines of Markdown).
    """
    rows, verdicts = [], card.set_index("id")["verdict"].to_dict()
    for criticism, question in CRITICISMS.items():
        ids = [claim.id for claim in claims if criticism in claim.criticism and claim.id in verdicts]
        by_word = {word: [name for name in ids if verdicts[name] == word] for word in VERDICTS}
        by_word = {word: names for word, names in by_word.items() if names}
        found = [answers[criticism]] if criticism in answers else []
        if ids:
            counts = ", ".join(f"{len(names)} {word}" for word, names in by_word.items())
            found.append(f"{len(ids)} claims: {counts}.")
        is_open = criticism not in answers and set(by_word) <= {UNTESTABLE}  # also where there is no claim
        lines = [f"- {VERDICT_MARKS[word]} {word}: {', '.join(f'`{n}`' for n in own)}" for word, own in by_word.items()]
        said = " ".join(found) or "A later chapter's question."
        rows.append((criticism, question, "open" if is_open else "addressed", said, "\n".join(lines)))
    return pd.DataFrame(rows, columns=["criticism", "question", "state", "what we found", "claims"])


def criticisms_answered(table: pd.DataFrame) -> str:
    """Write :func:`criticism_table` as Markdown: each criticism with what was found, then its claims by verdict."""
    parts = []
    for criticism, question, state, found, claims in table.itertuples(index=False):
        parts.append(f"**{criticism}. {question}** {state.capitalize()}. {found}\n\n{claims}".rstrip("\n"))
    return "\n\n".join(parts)


def ledger(card: pd.DataFrame) -> str:
    """Write the filter and one folded row per claim, as HTML with every text escaped.

    Parameters
    ----------
    card
        From :func:`opdgeom_utils.claims.scorecard`.
    """
    rows = [{str(k): v for k, v in row.items()} for row in card.to_dict("records")]
    found = {name: {row[name] for row in rows} for name in ("verdict", "question", "group")}
    chapters = sorted({_chapter(row["question"], row["condition"]) for row in rows})
    selects = [
        _select("verdict", "verdict", {v: f"{VERDICT_MARKS[v]} {v}" for v in VERDICTS if v in found["verdict"]}),
        _select("question", "research question", {q: w for q, w in QUESTIONS.items() if q in found["question"]}),
        _select("chapter", "chapter", {str(n): f"chapter {n}" for n in chapters}),
        _select("group", "whose", {g: w for g, w in GROUPS.items() if g in found["group"]}),
    ]
    form = f'<form class="opd-filter" hidden>{"".join(selects)}<output aria-live="polite"></output></form>'
    return f'<div class="opd-ledger">{form}\n' + "\n".join(_row(row) for row in rows) + "</div>"


def link_of(question: str, condition: str, diagnostic: str) -> str:
    """Address of the section that treats a claim, as seen from the scorecard; empty for a chapter not in the book.

    >>> link_of("rq1", "equal_norm", "rotation"), link_of("rq1", "null_opd", "rotation")
    ('04_rq1_is_it_only_step_size.html#matches', '03_rq1_where_opd_lies.html#diag-angles')
    """
    page = _page(_chapter(question, condition))
    if not page or question != "rq1":
        return page
    return f"{page}#{_ANCHORS.get(condition) or _ANCHORS.get(diagnostic, 'verdicts-at-the-ends')}"


def _chapter(question: str, condition: str) -> int:
    return next((n for n, own in _CHAPTERS.items() if condition in own), _OF_QUESTION[question])


@cache
def _page(chapter: int) -> str:
    found = sorted((PROJECT / "notebooks").glob(f"{chapter:02d}_*.md"))
    return f"{found[0].stem}.html" if found else ""


def _value(row: Mapping[str, Any]) -> str:
    return Interval(row["value"], row["low"], row["high"], row["n_seeds"]).text(unit=row["unit"])


def _function(statistic: str) -> str:
    """Full name of the function that computes a statistic."""
    found = STATISTICS[statistic]
    found = found.args[0] if isinstance(found, partial) else found
    return f"{found.__module__}.{found.__name__}"


def _select(name: str, words: str, options: Mapping[str, str]) -> str:
    own = "".join(f'<option value="{html.escape(k)}">{html.escape(v)}</option>' for k, v in options.items())
    return f'<label>{words} <select name="{name}"><option value="">all</option>{own}</select></label>'


def _row(row: Mapping[str, Any]) -> str:
    null = "inside the comparison, or none"
    if math.isfinite(row["null_value"]):
        null = f"{number(row['null_value'], unit=row['unit'])}, {row['null_name']}"
    facts = {
        "In the paper": row["where"],
        "Decided by": row["deciding"],
        "Value (95% interval)": _value(row),
        "Null": null,
        "Rule": row["rule"],
        "Reason": row["reason"],
        "Would refute it": row["refuted_by"],
    }
    items = "".join(f"<p><strong>{html.escape(k)}.</strong> {html.escape(v)}</p>" for k, v in facts.items())
    chapter = _chapter(row["question"], row["condition"])
    link = link_of(row["question"], row["condition"], row["diagnostic"])
    where = (
        f'<a href="{link}">chapter {chapter}</a>' if link else f"chapter {chapter}, which this book does not have yet"
    )
    data = {"verdict": row["verdict"], "question": row["question"], "chapter": chapter, "group": row["group"]}
    attributes = " ".join(f'data-{name}="{html.escape(str(value))}"' for name, value in data.items())
    return (
        f'<details class="opd-claim" {attributes}><summary><strong>{VERDICT_MARKS[row["verdict"]]} '
        f"{html.escape(row['verdict'])}</strong>: {html.escape(row['statement'])} <code>{html.escape(row['id'])}</code>"
        f"</summary>{items}<p><strong>Measured in.</strong> {where}. <strong>Computed by.</strong> "
        f"<code>{_function(row['statistic'])}</code></p></details>"
    )
