"""The ledger of all claims: a filter, and one folded row for each claim.

The rows are plain HTML and can be read without scripts. ``book/_static/claim_filter.js`` shows the form above them and
hides the rows that do not fit; it asks nothing of the network.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import pandas as pd

from opdgeom_utils.chapters.verdicts import QUESTIONS, value_of
from opdgeom_utils.charts.palette import VERDICT_MARKS
from opdgeom_utils.claims import BEARINGS, VERDICTS, power
from opdgeom_utils.claims.schema import STATISTICS
from opdgeom_utils.intervals import number
from opdgeom_utils.project_files import PROJECT

GROUPS = {"paper": "the paper's statement", "control": "our control"}
POLARITIES = {
    "for": "for the paper's reading",
    "against": "against the paper's reading",
    "neither": "neither for the paper's reading nor against it",
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
    5: ("agreement",),
    6: ("projection", "projection_nulls", "projection_sweep"),
    8: ("mixing", "mix_scale", "moments", "moments_seen"),
    9: ("domain_sweep",),
}


def ledger(card: pd.DataFrame) -> str:
    """Write the filter and one folded row per claim, as HTML with every text escaped."""
    rows = [{str(k): v for k, v in row.items()} for row in card.to_dict("records")]
    found = {name: {row[name] for row in rows} for name in ("verdict", "bearing", "question", "group")}
    chapters = sorted({_chapter(row["question"], row["condition"]) for row in rows})
    selects = [
        _select("verdict", "verdict", {v: f"{VERDICT_MARKS[v]} {v}" for v in VERDICTS if v in found["verdict"]}),
        _select("bearing", "speaks", {b: b for b in BEARINGS if b in found["bearing"]}),
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
    base = condition.removesuffix("_seen")
    return next((n for n, own in _CHAPTERS.items() if {condition, base} & set(own)), _OF_QUESTION[question])


@cache
def _page(chapter: int) -> str:
    found = sorted((PROJECT / "notebooks").glob(f"{chapter:02d}_*.md"))
    return f"{found[0].stem}.html" if found else ""


def _power(row: Mapping[str, Any]) -> str:
    shown = partial(number, unit=row["unit"])
    said = power.words(row["effect"], row["power"], row["detectable"], shown)
    return said or "not known: the rule has no interval, or too few seeds."


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
        "Source": row["where"],
        "Decided by": row["deciding"],
        f"Value ({100 * row['level']:.3g}% interval)": value_of(row),
        "Null": null,
        "Rule": row["rule"].replace("not reproduced", "not reproduced (not decided, or the opposite)"),
        "Rests on": row["gate"] or "nothing else",
        "If reproduced, it speaks": POLARITIES[row["polarity"]],
        "Power": _power(row),
        "Reason": row["reason"],
        "Would refute it": row["refuted_by"],
    }
    items = "".join(f"<p><strong>{html.escape(k)}.</strong> {html.escape(v)}</p>" for k, v in facts.items())
    chapter = _chapter(row["question"], row["condition"])
    link = link_of(row["question"], row["condition"], row["diagnostic"])
    where = (
        f'<a href="{link}">chapter {chapter}</a>' if link else f"chapter {chapter}, which this book does not have yet"
    )
    data = {
        "verdict": row["verdict"],
        "bearing": row["bearing"],
        "question": row["question"],
        "chapter": chapter,
        "group": row["group"],
    }
    attributes = " ".join(f'data-{name}="{html.escape(str(value))}"' for name, value in data.items())
    return (
        f'<details class="opd-claim" {attributes}><summary><strong>{VERDICT_MARKS[row["verdict"]]} '
        f"{html.escape(row['verdict'])}</strong>: {html.escape(row['statement'])} <code>{html.escape(row['id'])}</code>"
        f"</summary>{items}<p><strong>Measured in.</strong> {where}. <strong>Computed by.</strong> "
        f"<code>{_function(row['statistic'])}</code></p></details>"
    )
