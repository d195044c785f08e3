"""What the book found, in sentences written by the verdicts: nothing in them is typed by hand.

The words are fixed; the counts and the clauses that depend on them come from the scorecard.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from opdgeom_utils.chapters import mismatched, null_objectives, path_findings
from opdgeom_utils.chapters.verdicts import tally, under, verdicts_of
from opdgeom_utils.chapters.where import at_place
from opdgeom_utils.claims import BEARINGS, OPPOSITE, UNTESTABLE, VERDICTS, matching
from opdgeom_utils.claims.look_up import Tables
from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.scopes import ATTENTION, MODULES
from opdgeom_utils.vocabulary import listed

REPRODUCED, PARTLY, UNDECIDED = VERDICTS[:3]
RISES = ("update_sparsity", "low_magnitude_overlap")  # from SFT to RLVR, in the paper; the other measures fall
_MATCHES = {
    "equal_updates": "at equal updates",
    "equal_norm": "at equal norm of the update",
    "equal_accuracy": "at equal accuracy gained",
}
BETWEEN = " Random credit and random reward, with nothing to learn, lie in between there too."


def findings(card: pd.DataFrame, tables: Tables) -> dict[str, str]:
    """Write the landing page's answers: ``short, learned, nothing, ...``; see :func:`for_landing`."""
    return {
        "short": short_sentence(card, tables),
        "learned": null_objectives.learned_sentence(tables),
        "nothing": null_objectives.nothing_sentence(tables),
        "agreement": null_objectives.agreement_sentence(tables),
        "order": order_sentence(card, tables),
        "where": where_sentence(card, tables.geometry),
        "matched": matched_sentence(card),
        "null": null_sentence(card, tables),
        "path": path_findings.path_sentence(card),
        "control": path_findings.control_sentence(card),
    }


def for_landing(name: str, said: str) -> dict[str, str]:
    r"""Cut an answer where its first line ends: ``lead_<name>`` is shown at once, ``answer_<name>`` folded.

    ``head_<name>`` is the first sentence of all, for the first page. Markdown takes the end of a line for a space, so
    the answer is whole wherever else it stands.

    >>> for_landing("x", "**It is so, by 0.5.** That is.\nAll else follows.")
    {'head_x': 'It is so, by 0.5.', 'lead_x': 'It is so, by 0.5. That is.', 'answer_x': 'All else follows.'}
    """
    lead, _, rest = said.replace("**", "").partition("\n")
    return {f"head_{name}": re.split(r"(?<=[.!?]) (?=[A-Z(])", lead)[0], f"lead_{name}": lead, f"answer_{name}": rest}


def glue_answer(name: str, said: str) -> None:
    """Give the pages the parts of an answer, by the names of :func:`for_landing`."""
    from myst_nb import glue  # only a chapter needs the book's tools

    for key, part in for_landing(name, said).items():
        glue(key, part, display=False)


def glue_table(name: str, table: pd.DataFrame) -> None:
    """Give the pages a table of text, without its index."""
    from myst_nb import glue

    glue(name, table.style.hide(axis="index"), display=False)


def short_sentence(card: pd.DataFrame, tables: Tables) -> str:
    """Answer the book's question in three sentences: the order, its null objective, and what learning adds."""
    updates, norm = (verdicts_of(card, condition) for condition in ("equal_updates", "equal_norm"))
    if not updates or not norm or UNTESTABLE in updates + norm:
        return ""
    said = f"After equally many updates, with control SFT in SFT's place, the paper's order is {_how_many(updates)}."
    if null_objectives.lie_between(tables):
        said += BETWEEN
    said += f" Between updates of equal norm the order is {_how_many(norm)}."
    direction = null_objectives.common_direction(tables)
    return f"{said}{direction}{mismatched.common_push(tables) if direction else ''}"


def where_sentence(card: pd.DataFrame, geometry: pd.DataFrame) -> str:
    """Update sparsity of the three objectives at their own ends, and how many of the paper's orders come out."""
    ends = matching.final(matching.summarise(geometry, None)).groupby("recipe")["update_sparsity"].agg("mean").to_dict()
    shares = {r: f"{100 * ends[r]:.1f}%" if r in ends else "an unknown share" for r in ("sft", "opd", "rlvr")}
    orders = verdicts_of(card.loc[card["id"].str.endswith("_order")], "paper_steps")
    known = [ends[r] for r in ("sft", "opd", "rlvr") if r in ends]
    lies = "lies" if len(known) == 3 and sorted(known)[1] == ends["opd"] else "does not lie"
    between = f" By this number OPD {lies} between the other two." if len(known) == 3 else ""
    return (
        f"At the end of each run, as the paper measures it, OPD has left {shares['opd']} of the weight entries "
        f"unchanged, SFT {shares['sft']} and RLVR {shares['rlvr']}.{between} The paper finds one order of the three on "
        f"{len(orders)} diagnostics. Reproduced: {tally(orders)}.{_opposed_clause(card)}"
    )


def _opposed_clause(card: pd.DataFrame) -> str:
    """Say in how many of the paper's orders one pair of neighbours stands the other way round; empty without counts."""
    rows = card.loc[under(card, "paper_steps") & card["id"].str.endswith("_order")]
    if "n_opposite" not in rows or not (rows["n_opposite"] > 0).any():
        return ""
    return f" In {int((rows['n_opposite'] > 0).sum())} of them one pair of neighbours at least is the other way round."


def order_sentence(card: pd.DataFrame, tables: Tables | None = None) -> str:
    """Say in plain words whether the paper's order is there at equal length and at equal size; empty if untested.

    With ``tables``, a second line says where the runs stand in it that had nothing to learn, and what the MLP adds.

    >>> rows = [("equal_updates", "reproduced"), ("equal_norm", "not decided"), ("equal_norm", "the opposite")]
    >>> print(order_sentence(pd.DataFrame(rows, columns=["condition", "verdict"])).replace(". ", "." + chr(10)))
    At one rate and after equally many updates the paper's order is there.
    Between updates of equal norm the order is not there: 0 of 2 (1 not decided, 1 the opposite).
    (Equal norm of the attention matrices; for sparsity, of all tensors.)
    """
    updates, norm = (verdicts_of(card, condition) for condition in ("equal_updates", "equal_norm"))
    if not updates or not norm or UNTESTABLE in updates + norm:
        return ""
    length, size = (_how_many(found) for found in (updates, norm))
    between = BETWEEN if null_objectives.lie_between(tables) else ""
    finding = (
        f"At one rate and after equally many updates the paper's order is {length}.{between} "
        f"Between updates of equal norm the order is {size}: {tally(norm)}."
    )
    more = "(Equal norm of the attention matrices; for sparsity, of all tensors.)"
    more += f"{null_objectives.between_sentence(tables)}{order_with_mlp(tables)}{_shuffled_sentence(tables)}"
    return f"{finding}\n{more.strip()}".strip()


def came_out(card: pd.DataFrame, tables: Tables) -> str:
    """Say what a run leaves that had nothing to learn, beside OPD, and where the updates lie at their ends."""
    beside = for_landing("nothing", null_objectives.nothing_sentence(tables))["lead_nothing"]
    return f"{beside} {where_sentence(card, tables.geometry)}".strip()


def _shuffled_sentence(tables: Tables | None) -> str:
    """Say what part of each neighbouring difference at equal updates the shuffled updates show; empty where unknown."""
    order = ["control_sft", "opd", "rlvr"]
    if tables is None or not set(order) <= set(tables.geometry["recipe"]):
        return ""
    if not {f"{metric}_shuffled" for metric in matching.METRICS} <= set(tables.geometry):
        return ""
    columns = [*matching.METRICS, *(f"{metric}_shuffled" for metric in matching.METRICS)]
    means = at_place(tables, "equal_updates", order).groupby("recipe").agg(dict.fromkeys(columns, "mean"))
    steps = means.loc[order].diff().dropna()
    shares = {metric: (steps[f"{metric}_shuffled"] / steps[metric]).tolist() for metric in matching.METRICS}
    said = []
    rounded = tuple(metric for metric in matching.METRICS if metric not in null_objectives.SPECTRAL)
    for names, words in (
        (rounded, "in sparsity and masks"),
        (null_objectives.SPECTRAL, "in angles and spectral shift"),
    ):
        found = [share for metric in names for share in shares[metric]]
        said.append(f"{min(found):.0%} to {max(found):.0%} {words}")
    return f" Updates shuffled, of the same sizes in other places, keep of these differences {listed(said)}."


def order_with_mlp(tables: Tables | None) -> str:
    """Say in how many measures the paper's order is there once the MLP's matrices count too, by means and by intervals.

    With control SFT in SFT's place. An interval is that of a neighbouring difference, seed by seed; both must lie on
    the paper's side. Begins with a space; empty where a run or the MLP is missing.
    """
    order = ["control_sft", "opd", "rlvr"]
    if (
        tables is None
        or not {*order} <= set(tables.geometry["recipe"])
        or not {*null_objectives.MLP} & set(tables.geometry["module"])
    ):
        return ""
    rows = tables.geometry.loc[tables.geometry["recipe"].isin(order)]
    means: dict[tuple[str, tuple[str, ...]], int] = {}
    shown = dict(means)
    for place, scope in itertools.product(("equal_updates", "equal_norm"), (MODULES, ATTENTION)):
        runs = matching.matched(matching.summarise(rows, scope), place, tables.accuracy)
        means[place, scope] = shown[place, scope] = 0
        for metric in matching.METRICS:
            values = runs.pivot(index="seed", columns="recipe", values=metric)[order].to_numpy(float)
            steps = ((1 if metric in RISES else -1) * np.diff(values, axis=1)).T
            means[place, scope] += bool((steps.mean(axis=1) > 0).all())
            shown[place, scope] += all(seed_interval(step).low > 0 for step in steps)
    updates, norm = (("equal_updates", MODULES), ("equal_norm", MODULES))
    return (
        f" With the MLP's matrices as well the order is there after as many updates in {shown[updates]} of "
        f"{len(matching.METRICS)} measures, and at equal norm in {means[norm]} by their means (attention alone: "
        f"{means['equal_norm', ATTENTION]}), in {shown[norm]} with the intervals of the seeds."
    )


def _how_many(verdicts: Sequence[str]) -> str:
    """Say in a word or three how much of a claim's verdicts hold."""
    held = verdicts.count(REPRODUCED)
    return "there" if held == len(verdicts) else "there in part" if held else "not there"


def matched_sentence(card: pd.DataFrame) -> str:
    """Say whether the paper's orders hang on what is made equal, and how many are left under each match.

    >>> rows = [("equal_updates", "reproduced"), ("equal_norm", "the opposite"), ("equal_accuracy", "not decided")]
    >>> for said in matched_sentence(pd.DataFrame(rows, columns=["condition", "verdict"])).split(": "):
    ...     print(said)
    With SFT's start moved to that of the others, the same orders depend on what is made equal
    reproduced at equal updates 1 of 1, at equal norm of the update 0 of 1 (1 the opposite), at equal accuracy gained
    0 of 1 (1 not decided).
    """
    found = {words: verdicts_of(card, condition) for condition, words in _MATCHES.items()}
    if not {verdict for verdicts in found.values() for verdict in verdicts} - {UNTESTABLE}:
        return "Whether the paper's orders hang on what is made equal cannot be tested in these tables."
    tested = [verdicts for verdicts in found.values() if set(verdicts) - {UNTESTABLE}]
    hang = len({verdicts.count(REPRODUCED) for verdicts in tested}) > 1
    how = "depend on what is made equal" if hang else "come out alike, whatever is made equal"
    if len(tested) < 2:
        how = "can be tested under one match only, so whether they hang on it is open"
    elif not hang and len(tested) < len(found):
        how = "come out alike where they can be tested"
    left = ", ".join(f"{words} {tally(verdicts)}" for words, verdicts in found.items())
    return f"With SFT's start moved to that of the others, the same orders {how}: reproduced {left}."


def null_sentence(card: pd.DataFrame, tables: Tables | None = None) -> str:
    """How many statements hold against updates shuffled inside their own matrices, and what that means.

    Sparsity and masks look through bf16, angles and singular values do not, so the two are spoken of apart.

    >>> rows = {"condition": ["null_opd", "null_rlvr"], "diagnostic": ["update_sparsity", "rotation"]}
    >>> rows |= {"verdict": ["the opposite"] * 2, "least": [0.0, 1.5], "most": [0.0, 2.0]}
    >>> null_sentence(pd.DataFrame(rows | {"n_opposite": [1, 2], "n_comparisons": [1, 2]}))
    'Then each update ... Beside such a null 0 of 2 statements on OPD, RLVR and their order hold. Sparsity and
    mask overlaps show what size and bf16 rounding give by themselves. OPD and RLVR turn the leading directions 1.5 to
    2.0 times as far as their shuffled updates do, so they do not spare them.'
    """
    rows = card.loc[under(card, "null_opd", "null_rlvr", "null_order")]
    verdicts = rows["verdict"].tolist()
    opening = "Then each update is shuffled inside its own matrix, so that it keeps its size and loses its place. "
    if set(verdicts) <= {UNTESTABLE}:
        return opening + "Nothing could be tested with these runs."
    spectral = rows["diagnostic"].isin(["rotation", "spectral_drift"])
    held = f"Beside such a null {verdicts.count(REPRODUCED)} of {len(verdicts)} statements"
    held += " on OPD, RLVR and their order hold"
    clauses = [held, _grid_clause(rows.loc[~spectral, "verdict"].tolist()), _turning_clause(rows.loc[spectral])]
    clauses += [null_objectives.turning_clause(tables)]
    sft = card.loc[under(card, "null_sft")].to_dict("records")
    clauses += [f"SFT's drift, weight decay in it, is {row['value']:.2f} times its shuffled one" for row in sft]
    return f"{opening}{'. '.join(filter(None, clauses))}."


def counts_sentence(card: pd.DataFrame) -> str:
    """Count which way the verdicts speak: a control that is reproduced can speak against the paper's reading.

    >>> words = {"bearing": ["against it", "undecided", "neither"], "verdict": ["the opposite", "partly", "reproduced"]}
    >>> counts_sentence(pd.DataFrame(words))
    "Of 2 claims that bear on the paper's reading 0 speak for it, 1 against it; 1 partly, 0 not decided, 0 not testable.
    1 more speaks for neither side."
    """
    bears = card.loc[card["bearing"] != BEARINGS[3]]
    pro, contra = ((bears["bearing"] == word).sum() for word in BEARINGS[:2])
    rest = ", ".join(f"{(bears['verdict'] == word).sum()} {word}" for word in (PARTLY, UNDECIDED, UNTESTABLE))
    more = len(card) - len(bears)
    return (
        f"Of {len(bears)} claims that bear on the paper's reading {pro} speak for it, {contra} against it; {rest}. "
        f"{more} more {'speaks' if more == 1 else 'speak'} for neither side."
    )


def _grid_clause(verdicts: Sequence[str]) -> str:
    held, total, refuted = verdicts.count(REPRODUCED), len(verdicts), verdicts.count(OPPOSITE)
    if not total:
        return ""
    if held:
        share = "" if held == total else f" on {held} of {total}"
        return f"Sparsity and mask overlaps show more than size and bf16 rounding{share}"
    rest = "" if refuted == total else f" on {refuted} of {total}, and on the others nothing is decided"
    return f"Sparsity and mask overlaps show what size and bf16 rounding give by themselves{rest}"


def _turning_clause(rows: pd.DataFrame) -> str:
    """Compare rotation with the shuffled one: above 1 place favours the spectrum. Drift has weight decay in it."""
    known = rows.loc[rows["least"].notna() & (rows["diagnostic"] == "rotation")]
    if known.empty:
        return ""
    least, most = known["least"].min(), known["most"].max()
    span = (
        f"OPD and RLVR turn the leading directions {least:.1f} to {most:.1f} times as far as their shuffled updates do"
    )
    if (known["n_opposite"] == known["n_comparisons"]).all():
        return f"{span}, so they do not spare them"
    return f"{span}, so they spare them" if (known["verdict"] == REPRODUCED).all() else span
