"""Verdicts as pages show them: lists, a grid of matches, power, criticisms, and what kind of "no" a no is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from opdgeom_utils.charts.axes import begun
from opdgeom_utils.charts.palette import VERDICT_MARKS
from opdgeom_utils.charts.verdicts import DIAGNOSTICS
from opdgeom_utils.claims import BEARINGS, UNTESTABLE, VERDICTS, Claim, matching, power
from opdgeom_utils.intervals import Interval, number

QUESTIONS = {
    "rq1": "1: where OPD lies",
    "rq2": "2: what path it takes",
    "rq3": "3: what controls the path",
    "variants": "other settings",
    "noise": "noise",
}
SHOWN = 5  # verdicts that a list shows before it folds
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


def as_list(
    card: pd.DataFrame, conditions: Iterable[str], diagnostics: Iterable[str] = (), only: Sequence[str] = ()
) -> str:
    """List verdicts with their computed reasons, as Markdown: the first :data:`SHOWN`, and the others to be unfolded.

    ``conditions``: which claims to list; those about numbers that had been seen (``_seen``) are listed with the others.
    ``diagnostics``: keep only claims on these; none keeps all.
    ``only``: ids of the claims to list, where a chapter leaves the others to the scorecard; they are counted.

    >>> row = {"id": "a", "condition": "chance", "diagnostic": "x", "statement": "It holds.", "verdict": "partly"}
    >>> as_list(pd.DataFrame([row | {"reason": "1 of 2 comparisons hold."}]), ["chance"])
    '- ◐ **partly**: It holds.<br><small>`a`. 1 of 2 comparisons hold.</small>'
    >>> rest = row | {"id": "b", "reason": ""}
    >>> as_list(pd.DataFrame([row | {"reason": ""}, rest]), ["chance"], only=["a"]).splitlines()[-1]
    '1 more of these are in the scorecard: 1 partly.'
    """
    kept = list(diagnostics) or list(card["diagnostic"])
    rows = card.loc[under(card, *conditions) & card["diagnostic"].isin(kept)]
    rows, left = (rows.loc[rows["id"].isin(only)], rows.loc[~rows["id"].isin(only)]) if only else (rows, rows[:0])
    lines = [
        f"- {VERDICT_MARKS[word]} **{word}**: {statement}<br><small>`{name}`. {begun(reason)}</small>"
        for word, statement, name, reason in rows[["verdict", "statement", "id", "reason"]].itertuples(index=False)
    ]
    if len(left):
        return "\n".join(lines) + f"\n\n{len(left)} more of these are in the scorecard: {_counted(left)}."
    if len(lines) <= SHOWN + 1:
        return "\n".join(lines)
    first, rest = ("\n".join(part) for part in (lines[:SHOWN], lines[SHOWN:]))
    words = _counted(rows.iloc[SHOWN:])
    return f"{first}\n\n<details><summary>{len(lines) - SHOWN} more: {words}</summary>\n\n{rest}\n\n</details>"


def _counted(rows: pd.DataFrame) -> str:
    """Count the rows of each verdict.

    >>> _counted(pd.DataFrame({"verdict": ["partly", "reproduced", "partly"]}))
    '1 reproduced, 2 partly'
    """
    counts = rows["verdict"].value_counts().reindex(VERDICTS).dropna()
    return ", ".join(f"{n:.0f} {word}" for word, n in counts.items())


def under(card: pd.DataFrame, *conditions: str) -> pd.Series:
    """Whether each claim stands under one of the conditions, or under one of them with numbers seen before.

    >>> under(pd.DataFrame({"condition": ["mixing", "mixing_seen", "moments"]}), "mixing").tolist()
    [True, True, False]
    """
    return card["condition"].isin(conditions) | card["condition"].str.removesuffix("_seen").isin(conditions)


def match_grid(card: pd.DataFrame) -> pd.DataFrame:
    """Lay out the five orders in rows and what is made equal in columns, a verdict in each cell."""
    columns = {"paper_steps" if at == "final" else at: words for at, words in matching.MATCHES.items()}
    orders = card.loc[card["condition"].isin(list(columns)) & card["id"].str.contains("_order")]
    shown = [f"{VERDICT_MARKS[v]} {v}" for v in orders["verdict"]]
    grid = orders.assign(shown=shown).pivot(index="diagnostic", columns="condition", values="shown")
    grid = grid.reindex(index=list(ORDERED), columns=list(columns)).rename(index=DIAGNOSTICS, columns=columns)
    return grid.rename_axis(index="order of", columns=None).reset_index()


def negatives(card: pd.DataFrame) -> pd.DataFrame:
    """List the claims that were tested and not fully reproduced, and how many of their comparisons show the opposite.

    Returns ``claim, verdict, value (interval), needed, opposite``; the interval is that of the weakest comparison.
    """
    rows = []
    for row in card.loc[card["verdict"].isin(VERDICTS[1:4])].to_dict("records"):
        needed = f"{row['side'].replace('_', ' ')} {number(row['threshold'], unit=row['unit'])}"
        opposed = f"{row['n_opposite']} of {row['n_comparisons']}"
        rows.append((row["statement"], row["verdict"], value_of(row), needed, opposed))
    return pd.DataFrame(rows, columns=["claim", "verdict", "value (interval)", "needed", "opposite"])


def too_weak(card: pd.DataFrame) -> list[str]:
    """Return the statements whose rule had less than an 80% chance to pass at the paper's effect."""
    return card.loc[card["power"] < power.ENOUGH, "statement"].tolist()


def kinds_of_no(card: pd.DataFrame) -> str:
    """Count the kinds of "no" among the verdicts, and the rules that had little chance to pass.

    >>> rows = {"statement": ["a", "b", "c"], "verdict": ["partly", "the opposite", "reproduced"]}
    >>> rows |= {"power": [0.5, 0.9, float("nan")]}
    >>> for said in kinds_of_no(pd.DataFrame(rows)).split(". "):
    ...     print(said)
    The ledger has 3 claims, of which 3 could be tested
    Of these 1 came out in full
    1 holds in part, 0 are not decided, 1 came out the opposite
    Of the 2 rules that can be held against a number of the paper's, 1 had less than an 80% chance to pass even if that
    number were true here; that such a claim does not pass says little.
    """
    verdicts = card["verdict"].tolist()
    held, partly, undecided, opposite = (verdicts.count(word) for word in VERDICTS[:4])
    known = card["power"].dropna()
    return (
        f"The ledger has {len(card)} claims, of which {held + partly + undecided + opposite} could be tested. Of these "
        f"{held} came out in full. "
        f"{partly} {'hold' if partly != 1 else 'holds'} in part, {undecided} "
        f"{'are' if undecided != 1 else 'is'} not decided, {opposite} came out the opposite. "
        f"Of the {len(known)} rules that can be held against a number of the paper's, {len(too_weak(card))} had "
        "less than an 80% chance to pass even if that number were true here; that such a claim does not pass says "
        "little."
    )


def milder_than_said(card: pd.DataFrame) -> str:
    """Say how many of the verdicts "partly" hide that some comparison shows the opposite.

    >>> rows = {"verdict": ["partly"] * 3, "n_opposite": [1, 1, 0], "id": ["x_order_equal_norm", "y", "z"]}
    >>> milder_than_said(pd.DataFrame(rows))
    'of the claims that hold in part (3), some show the opposite in another part (2). Those among them that are on an
    order (1) are by their own words refuted.'
    """
    partly = card.loc[card["verdict"] == VERDICTS[1]]
    both = partly.loc[partly["n_opposite"] > 0]
    orders = int(both["id"].str.contains("_order").sum())
    return (
        f"of the claims that hold in part ({len(partly)}), some show the opposite in another part ({len(both)}). Those "
        f"among them that are on an order ({orders}) are by their own words refuted."
    )


def bearings(card: pd.DataFrame) -> pd.DataFrame:
    """Count, for each question, which way the verdicts speak: by what a claim would mean and what came of it.

    >>> rows = {"question": ["rq1", "rq1"], "bearing": ["against it", "undecided"]}
    >>> bearings(pd.DataFrame(rows))[["question", "against it", "undecided"]].values.tolist()
    [['1: where OPD lies', 1, 1]]
    """
    counts = pd.crosstab(card["question"], card["bearing"])
    counts = counts.reindex(index=[q for q in QUESTIONS if q in counts.index], columns=list(BEARINGS), fill_value=0)
    return counts.rename(index=QUESTIONS).rename_axis(columns=None).reset_index()


def power_table(card: pd.DataFrame) -> pd.DataFrame:
    """List the claims for which the paper has an effect, with the rule's chance to pass there, the smallest first.

    Returns ``claim, needed, the paper's effect, chance to pass, 80% from``; the last says *no distance* where a
    distance would have to be negative.
    """
    rows = []
    for row in card.loc[card["power"].notna()].sort_values("power", kind="stable").to_dict("records"):
        needed, effect, smallest = (
            number(row[name], unit=row["unit"]) for name in ("threshold", "effect", "detectable")
        )
        chance = power.chance_words(row["power"])
        if row["side"] == "below" and row["detectable"] < 0 < row["threshold"]:
            smallest = "no distance"
        rows.append((row["statement"], f"{row['side']} {needed}", effect, chance, smallest))
    return pd.DataFrame(rows, columns=["claim", "needed", "the paper's effect", "chance to pass", "80% from"])


def withdrawn_list(claims: Sequence[Claim]) -> str:
    """List withdrawn claims as Markdown: what was said, when and why it was taken back, and what asks it now."""
    lines = []
    for claim in claims:
        if claim.withdrawn is None:
            continue
        by = ", ".join(f"`{name}`" for name in claim.withdrawn.replaced_by) or "nothing yet"
        why = f"{claim.withdrawn.date}. {claim.withdrawn.reason} In its place: {by}."
        lines.append(f"- {claim.statement}<br><small>`{claim.id}`. {why}</small>")
    return "\n".join(lines)


def untestable_reasons(card: pd.DataFrame) -> pd.Series:
    """Count why claims could not be tested: a closed gate, one seed, runs that are not there, something undefined.

    >>> rows = {"verdict": ["not testable", "partly"], "reason": ["x: 1 usable seed, 3 ... one seed", ""]}
    >>> untestable_reasons(pd.DataFrame(rows)).to_dict()
    {'a sweep over one seed': 1}
    """
    kinds = {
        "its gate": "a claim that they rest on is not reproduced",
        "one seed": "a sweep over one seed",
        "has not been made": "not measured yet",
        "has nothing for": "some of its runs are not in the tables",
        "there is no run of": "some of its runs are not in the tables",
        "has no recipe": "some of its runs are not in the tables",
        "the claim is about": "its runs are still to come",
        "": "a number is missing or undefined",
    }
    reasons = card.loc[card["verdict"] == UNTESTABLE, "reason"]
    found = [next(kind for words, kind in kinds.items() if words in reason) for reason in reasons]
    return pd.Series(found, dtype=str).value_counts()


def criticism_table(card: pd.DataFrame, claims: Sequence[Claim], answers: Mapping[int, str]) -> pd.DataFrame:
    """Say what a careful reader asks of the paper, which claims here ask it, and what came out.

    ``answers``: computed sentences, by number, from :func:`opdgeom_utils.chapters.asked.answers`.
    Returns ``criticism`` (its number), ``question, state`` (open or addressed), ``what we found``, ``tally``,
    ``claims`` (their ids by verdict, as lines of Markdown).
    """
    rows, verdicts = [], card.set_index("id")["verdict"].to_dict()
    for criticism, question in CRITICISMS.items():
        ids = [claim.id for claim in claims if criticism in claim.criticism and claim.id in verdicts]
        by_word = {word: [name for name in ids if verdicts[name] == word] for word in VERDICTS}
        by_word = {word: names for word, names in by_word.items() if names}
        counts = ", ".join(f"{len(names)} {word}" for word, names in by_word.items())
        is_open = criticism not in answers and set(by_word) <= {UNTESTABLE}  # also where there is no claim
        lines = [f"- {VERDICT_MARKS[word]} {word}: {', '.join(f'`{n}`' for n in own)}" for word, own in by_word.items()]
        said = answers.get(criticism, "Nothing is judged yet." if is_open else "The verdicts are the answer.")
        tally = f"{len(ids)} claim{'s' * (len(ids) != 1)}: {counts}" if ids else ""
        rows.append((criticism, question, "open" if is_open else "addressed", said, tally, "\n".join(lines)))
    return pd.DataFrame(rows, columns=["criticism", "question", "state", "what we found", "tally", "claims"])


def criticisms_answered(table: pd.DataFrame) -> str:
    """Write :func:`criticism_table` as Markdown: what was found, and the tally of the claims to be unfolded."""
    parts = []
    for criticism, question, state, found, tally, claims in table.itertuples(index=False):
        parts.append(f"**{criticism}. {question}** {'Open. ' * (state == 'open')}{found}")
        parts += [f"<details><summary>{tally}</summary>\n\n{claims}\n\n</details>"] if tally else []
    return "\n\n".join(parts)


def value_of(row: Mapping[str, Any]) -> str:
    """Write the deciding number with its interval; a share of settings has none, for each has one seed.

    >>> value_of({"value": 0.5, "low": 0.1, "high": 0.9, "n_seeds": 6, "unit": "", "question": "variants"})
    '0.5 (6 settings, one seed each)'
    """
    if row.get("question") == "variants" and row["n_seeds"] > 0 and pd.notna(row["value"]):
        return f"{number(row['value'], unit=row['unit'])} ({row['n_seeds']:.0f} settings, one seed each)"
    return Interval(row["value"], row["low"], row["high"], row["n_seeds"]).text(unit=row["unit"])


def verdict_of(card: pd.DataFrame, name: str) -> str:
    """Look up the verdict on one claim; empty where the card has not got it."""
    verdicts = card.loc[card["id"] == name, "verdict"].tolist() if "id" in card else []
    return verdicts[0] if verdicts else ""


def verdicts_of(card: pd.DataFrame, *conditions: str) -> list[str]:
    """List the verdicts of the claims under some conditions."""
    return card.loc[under(card, *conditions), "verdict"].tolist()


def tally(verdicts: Sequence[str]) -> str:
    """Say how many of the verdicts are "reproduced", and what became of the others."""
    rest = ", ".join(f"{verdicts.count(word)} {word}" for word in VERDICTS[1:] if word in verdicts)
    return f"{verdicts.count(VERDICTS[0])} of {len(verdicts)}" + (f" ({rest})" if rest else "")
