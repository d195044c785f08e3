"""The ledger of claims as a page shows it: one folded row for each, a filter over them, and what kind of "no" a no is.

The rows are plain HTML and can be read without scripts. ``book/_static/claim_filter.js`` shows the form above them and
hides the rows that do not fit; it asks nothing of the network.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import pandas as pd

from opdgeom_utils.charts.palette import VERDICT_MARKS
from opdgeom_utils.claims import UNTESTABLE, VERDICTS, path_statistics, setting_statistics, statistics
from opdgeom_utils.intervals import Interval, number
from opdgeom_utils.models import PROJECT

QUESTIONS = {
    "rq1": "1: where OPD lies",
    "rq2": "2: what path it takes",
    "rq3": "3: what controls the path",
    "variants": "other settings",
}
GROUPS = {"paper": "the paper's statement", "control": "our control"}
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
CHAPTERS = {
    6: ("projection", "projection_nulls", "projection_sweep"),
    8: ("mixing", "mix_scale", "moments", "moments_seen"),
    9: ("domain_sweep",),
}
OF_QUESTION = {"rq1": 3, "rq2": 5, "rq3": 7, "variants": 9}
WRONG_SIDE, UNDECIDED = "the opposite is shown", "not decided"


def chapter_of(question: str, condition: str) -> int:
    """Return the number of the chapter that measures a claim.

    >>> chapter_of("rq1", "equal_norm"), chapter_of("rq2", "paper_path"), chapter_of("rq3", "moments")
    (4, 5, 8)
    """
    if condition in MATCHES:
        return 4
    return next((n for n, own in CHAPTERS.items() if condition in own), OF_QUESTION[question])


def link_of(question: str, condition: str, diagnostic: str) -> str:
    """Address of the section that treats a claim, as seen from the scorecard; empty for a chapter not in the book.

    >>> link_of("rq1", "equal_norm", "rotation"), link_of("rq1", "null_opd", "rotation")
    ('04_rq1_is_it_only_step_size.html#matches', '03_rq1_where_opd_lies.html#diag-angles')
    """
    page = _page(chapter_of(question, condition))
    if not page or question != "rq1":
        return page
    return f"{page}#{MATCHES.get(condition) or SECTIONS.get(diagnostic, 'verdicts-at-the-ends')}"


@cache
def _page(chapter: int) -> str:
    found = sorted((PROJECT / "notebooks").glob(f"{chapter:02d}_*.md"))
    return f"{found[0].stem}.html" if found else ""


def function_of(statistic: str) -> str:
    """Return the full name of the function that computes a statistic.

    >>> function_of("ordering"), function_of("settings_off_null")
    ('opdgeom_utils.claims.statistics.ordering', 'opdgeom_utils.claims.setting_statistics.settings_off_null')
    """
    module = next(m for m in (statistics, path_statistics, setting_statistics) if statistic in m.STATISTICS)
    return f"{module.__name__}.{statistic}"


def kind_of_no(side: str, threshold: float, low: float, high: float) -> str:
    """Say whether an interval that does not prove a claim proves the opposite, or leaves both open.

    >>> kind_of_no("above", 0.0, -2.0, -1.0), kind_of_no("above", 0.0, -1.0, 1.0)
    ('the opposite is shown', 'not decided')
    """
    opposite = low > threshold if side == "below" else high < threshold
    return WRONG_SIDE if opposite else UNDECIDED


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
        value = _value(row)
        needed = f"{row['side'].replace('_', ' ')} {number(row['threshold'], unit=row['unit'])}"
        rows.append((row["id"], row["verdict"], value, needed, kind))
    return pd.DataFrame(rows, columns=["claim", "verdict", "value (95% interval)", "needed", "kind"])


def ledger(card: pd.DataFrame) -> str:
    """Write the filter and one folded row per claim, as HTML with every text escaped.

    Parameters
    ----------
    card
        From :func:`opdgeom_utils.claims.scorecard`.
    """
    rows = [{str(k): v for k, v in row.items()} for row in card.to_dict("records")]
    found = {name: {row[name] for row in rows} for name in ("verdict", "question", "group")}
    chapters = sorted({chapter_of(row["question"], row["condition"]) for row in rows})
    choices = {
        "verdict": {v: f"{VERDICT_MARKS[v]} {v}" for v in VERDICTS if v in found["verdict"]},
        "question": {q: words for q, words in QUESTIONS.items() if q in found["question"]},
        "chapter": {str(n): f"chapter {n}" for n in chapters},
        "group": {g: words for g, words in GROUPS.items() if g in found["group"]},
    }
    selects = "".join(_select(name, options) for name, options in choices.items())
    form = f'<form class="opd-filter" hidden>{selects}<output aria-live="polite"></output></form>'
    return f'<div class="opd-ledger">{form}\n' + "\n".join(_row(row) for row in rows) + "</div>"


def _select(name: str, options: Mapping[str, str]) -> str:
    own = "".join(f'<option value="{html.escape(k)}">{html.escape(v)}</option>' for k, v in options.items())
    words = {"question": "research question", "group": "whose"}.get(name, name)
    return f'<label>{words} <select name="{name}"><option value="">all</option>{own}</select></label>'


def _row(row: Mapping[str, Any]) -> str:
    null = number(row["null_value"], unit=row["unit"])
    chapter, link = chapter_of(row["question"], row["condition"]), link_of(*_place(row))
    facts = {
        "In the paper": row["where"],
        "Decided by": row["deciding"],
        "Value (95% interval)": _value(row),
        "Null": f"{null}, {row['null_name']}" if math.isfinite(row["null_value"]) else "inside the comparison, or none",
        "Rule": row["rule"],
        "Reason": row["reason"],
        "Would refute it": row["refuted_by"],
    }
    items = "".join(f"<p><strong>{html.escape(k)}.</strong> {html.escape(v)}</p>" for k, v in facts.items())
    where = (
        f'<a href="{link}">chapter {chapter}</a>' if link else f"chapter {chapter}, which this book does not have yet"
    )
    data = {"verdict": row["verdict"], "question": row["question"], "chapter": chapter, "group": row["group"]}
    attributes = " ".join(f'data-{name}="{html.escape(str(value))}"' for name, value in data.items())
    return (
        f'<details class="opd-claim" {attributes}><summary><strong>{VERDICT_MARKS[row["verdict"]]} '
        f"{html.escape(row['verdict'])}</strong>: {html.escape(row['statement'])} <code>{html.escape(row['id'])}</code>"
        f"</summary>{items}<p><strong>Measured in.</strong> {where}. <strong>Computed by.</strong> "
        f"<code>{function_of(row['statistic'])}</code></p></details>"
    )


def _value(row: Mapping[str, Any]) -> str:
    return Interval(row["value"], row["low"], row["high"], row["n_seeds"]).text(unit=row["unit"])


def _place(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["question"], row["condition"], row["diagnostic"]


def answers(table: pd.DataFrame, card: pd.DataFrame, claims: Mapping[int, list[str]]) -> str:
    """Write what came of each criticism of the paper, as Markdown: computed sentence, then claims by verdict.

    Parameters
    ----------
    table
        From :func:`opdgeom_utils.chapters.verdict_text.criticism_table`.
    card
        From :func:`opdgeom_utils.claims.scorecard`.
    claims
        Ids of the claims that take a criticism up, by its number.
    """
    verdicts = card.set_index("id")["verdict"].to_dict()
    parts = []
    for asked, question, state, found in table.itertuples(index=False):
        lines = [f"**{asked}. {question}** {state.capitalize()}. {found}"]
        for word in VERDICTS:
            own = [name for name in claims.get(asked, []) if verdicts[name] == word]
            if own:
                lines.append(f"- {VERDICT_MARKS[word]} {word}: " + ", ".join(f"`{name}`" for name in own))
        parts.append("\n".join([lines[0], "", *lines[1:]]))
    return "\n\n".join(parts)


def untestable_reasons(card: pd.DataFrame) -> pd.Series:
    """Count why claims could not be tested: one seed, runs or a table that are not there, or something undefined.

    Examples
    --------
    >>> rows = {"verdict": ["not testable at this scale", "partly"], "reason": ["x: 1 usable seed, 3 ... one seed", ""]}
    >>> untestable_reasons(pd.DataFrame(rows)).to_dict()
    {'a sweep over one seed': 1}
    """
    reasons = card.loc[card["verdict"] == UNTESTABLE, "reason"]
    kinds = {
        "one seed": "a sweep over one seed",
        "has not been made": "not measured yet",
        "has nothing for": "some of its runs are not in the tables",
        "there is no run of": "some of its runs are not in the tables",
    }
    said = [
        next((v for k, v in kinds.items() if k in reason), "a number is missing or undefined") for reason in reasons
    ]
    return pd.Series(said, dtype=str).value_counts()
