"""What the book found, in sentences written by the verdicts: nothing in them is typed by hand.

The words are fixed; the counts and the clauses that depend on them come from the scorecard.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from opdgeom_utils.chapters import null_objectives
from opdgeom_utils.chapters.verdicts import under
from opdgeom_utils.chapters.where import at_place
from opdgeom_utils.claims import BEARINGS, OPPOSITE, UNTESTABLE, VERDICTS, matching
from opdgeom_utils.claims.look_up import Tables
from opdgeom_utils.vocabulary import listed

REPRODUCED, PARTLY, UNDECIDED = VERDICTS[:3]
SPECTRAL = ("left_angle_mean_deg", "right_angle_mean_deg", "normalized_spectral_shift")  # the others look through bf16
_MATCHES = {
    "equal_updates": "at equal updates",
    "equal_norm": "at equal norm of the update",
    "equal_accuracy": "at equal accuracy gained",
}


def findings(card: pd.DataFrame, tables: Tables) -> dict[str, str]:
    """Write the landing page's answers: ``learned, nothing, agreement, order, where, ...``; see :func:`for_landing`."""
    return {
        "learned": null_objectives.learned_sentence(tables),
        "nothing": null_objectives.nothing_sentence(tables),
        "agreement": null_objectives.agreement_sentence(tables),
        "order": order_sentence(card, tables),
        "where": where_sentence(card, tables.geometry),
        "matched": matched_sentence(card),
        "null": null_sentence(card, tables),
        "path": path_sentence(card),
        "control": control_sentence(card),
    }


def for_landing(name: str, said: str) -> dict[str, str]:
    r"""Cut an answer where its first line ends: ``lead_<name>`` is shown at once, ``answer_<name>`` folded.

    Markdown takes the end of a line for a space, so the answer is whole wherever else it stands.

    >>> for_landing("x", "**It is so, by 0.5.** That is.\nAll else follows.")
    {'lead_x': 'It is so, by 0.5. That is.', 'answer_x': 'All else follows.'}
    """
    lead, _, rest = said.replace("**", "").partition("\n")
    return {f"lead_{name}": lead, f"answer_{name}": rest}


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
        f"{len(orders)} diagnostics. Reproduced: {_tally(orders)}.{_opposed_clause(card)}"
    )


def _opposed_clause(card: pd.DataFrame) -> str:
    """Say in how many of the paper's orders one pair of neighbours stands the other way round; empty without counts."""
    rows = card.loc[under(card, "paper_steps") & card["id"].str.endswith("_order")]
    if "n_opposite" not in rows or not (rows["n_opposite"] > 0).any():
        return ""
    return f" In {int((rows['n_opposite'] > 0).sum())} of them one pair of neighbours at least is the other way round."


def order_sentence(card: pd.DataFrame, tables: Tables | None = None) -> str:
    """Say in plain words whether the paper's order is there at equal length and at equal size; empty if untested.

    With ``tables`` also where the runs stand in it that had nothing to learn.

    >>> rows = [("equal_updates", "reproduced"), ("equal_norm", "not decided"), ("equal_norm", "the opposite")]
    >>> print(order_sentence(pd.DataFrame(rows, columns=["condition", "verdict"])).replace(". ", "." + chr(10)))
    At one rate and after equally many updates the paper's order is there.
    Between updates of equal size the order is not there: 0 of 2 (1 not decided, 1 the opposite).
    """
    updates, norm = (_verdicts(card, condition) for condition in ("equal_updates", "equal_norm"))
    if not updates or not norm or UNTESTABLE in updates + norm:
        return ""
    length, size = (_how_many(found) for found in (updates, norm))
    return (
        f"At one rate and after equally many updates the paper's order is {length}{_shuffled_clause(tables)}."
        f"{null_objectives.between_sentence(tables)} Between updates of equal size the order is {size}: {_tally(norm)}."
        f"{null_objectives.order_with_mlp(tables)}"
    )


def came_out(card: pd.DataFrame, tables: Tables) -> str:
    """Say what a run leaves that had nothing to learn, beside OPD, and where the updates lie at their ends."""
    beside = for_landing("nothing", null_objectives.nothing_sentence(tables))["lead_nothing"]
    return f"{beside} {where_sentence(card, tables.geometry)}".strip()


def _shuffled_clause(tables: Tables | None) -> str:
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
    rounded = tuple(metric for metric in matching.METRICS if metric not in SPECTRAL)
    for names, words in ((rounded, "in sparsity and masks"), (SPECTRAL, "in angles and spectral shift")):
        found = [share for metric in names for share in shares[metric]]
        said.append(f"{min(found):.0%} to {max(found):.0%} of the same differences {words}")
    return f"; updates shuffled, so that only their size is left, show {listed(said)}"


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
    found = {words: _verdicts(card, condition) for condition, words in _MATCHES.items()}
    hang = len({verdicts.count(REPRODUCED) for verdicts in found.values()}) > 1
    left = ", ".join(f"{words} {_tally(verdicts)}" for words, verdicts in found.items())
    return (
        "With SFT's start moved to that of the others, the same orders "
        f"{'depend on what is made equal' if hang else 'come out alike, whatever is made equal'}: reproduced {left}."
    )


def null_sentence(card: pd.DataFrame, tables: Tables | None = None) -> str:
    """How many statements hold against updates shuffled inside their own matrices, and what that means.

    Sparsity and masks look through bf16, angles and singular values do not, so the two are spoken of apart.

    >>> rows = {"condition": ["null_opd", "null_rlvr"], "diagnostic": ["update_sparsity", "rotation"]}
    >>> rows |= {"verdict": ["the opposite"] * 2, "least": [0.0, 1.5], "most": [0.0, 2.0]}
    >>> null_sentence(pd.DataFrame(rows | {"n_opposite": [1, 2], "n_comparisons": [1, 2]}))
    'Then each update ... Beside such a null 0 of 2 statements on OPD, RLVR and their order hold. Sparsity and
    mask overlaps show what size and bf16 rounding give by themselves. Rotation and drift of OPD and RLVR are 1.5 to
    2.0 times the shuffled ones, so these updates do not
    spare the leading directions.'
    """
    rows = card.loc[card["condition"].isin(["null_opd", "null_rlvr", "null_order"])]
    verdicts = rows["verdict"].tolist()
    opening = "Then each update is shuffled inside its own matrix, so that it keeps its size and loses its place. "
    if set(verdicts) <= {UNTESTABLE}:
        return opening + "Nothing could be tested with these runs."
    spectral = rows["diagnostic"].isin(["rotation", "spectral_drift"])
    held = f"Beside such a null {verdicts.count(REPRODUCED)} of {len(verdicts)} statements"
    held += " on OPD, RLVR and their order hold"
    clauses = [held, _grid_clause(rows.loc[~spectral, "verdict"].tolist()), _spectral_clause(rows.loc[spectral])]
    clauses += [null_objectives.spectral_clause(tables)]
    sft = card.loc[under(card, "null_sft")].to_dict("records")
    clauses += [f"SFT's drift is {row['value']:.2f} times its shuffled one" for row in sft]
    return f"{opening}{'. '.join(filter(None, clauses))}."


def path_sentence(card: pd.DataFrame) -> str:
    """Say what came of the second question: the paper's path, its nulls, and training inside the early space."""
    paper = card.loc[under(card, "paper_path")]
    held = paper.loc[paper["verdict"] == REPRODUCED, "statement"].tolist()
    right, left = (_tally(_verdicts(card, f"path_nulls_{side}")) for side in ("right", "left"))
    inside = _by_verdict(card.loc[under(card, "projection", "projection_nulls")])
    return (
        f"{early_clause(card)}{locking_clause(card)}{_beyond_clause(card)}\n"
        f"Of {len(paper)} statements of the paper on the path {len(held)} hold. Of the rules that OPD locks earlier "
        f"than processes that learn nothing {right} hold on the side of the inputs, {left} on that of the outputs. "
        f"{f'Reproduced{_listed_apart(held)}. ' if held else ''}On training inside the early space: {inside}"
    )


def early_clause(card: pd.DataFrame) -> str:
    """Say whether OPD's update settles early at all; empty where it was not tested."""
    verdict = verdict_of(card, "locking_before_a_tenth")
    if verdict == REPRODUCED:
        early = "at a tenth of its updates it is ahead of RLVR and of a random walk"
        return f"On the side of the inputs OPD settles early: {early}. "
    return "That it settles early is not shown. " if verdict not in ("", UNTESTABLE) else ""


def _beyond_clause(card: pd.DataFrame) -> str:
    """Say on which side OPD locks earlier than whatever learns nothing.

    >>> rows = [("path_nulls_right", "partly"), ("path_nulls_left", "reproduced")]
    >>> _beyond_clause(pd.DataFrame(rows, columns=["condition", "verdict"]))
    'It locks more than every made-up process that learns nothing on the side of the outputs, not on that of the
    inputs.'
    """
    sides = {"inputs": "path_nulls_right", "outputs": "path_nulls_left"}
    found = {side: _verdicts(card, condition) for side, condition in sides.items()}
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


def control_sentence(card: pd.DataFrame) -> str:
    """Say what came of the third question: tokens, writers, mixing, and whether the measure can tell objectives apart.

    >>> rows = [("tokens", "not testable"), ("mixing", "not testable"), ("power_seen", "not decided")]
    >>> control_sentence(pd.DataFrame(rows, columns=["condition", "verdict"])).splitlines()[0]
    "RLVR itself is not shown to leave OPD's path by more than the rule asks, so no claim on a path can be tested here."
    """
    kept, mixed = (_tally(_verdicts(card, *names)) for names in (("tokens", "writers"), ("mixing",)))
    power = _verdicts(card, "power_seen")
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


def verdict_of(card: pd.DataFrame, name: str) -> str:
    """Look up the verdict on one claim; empty where the card has not got it."""
    verdicts = card.loc[card["id"] == name, "verdict"].tolist() if "id" in card else []
    return verdicts[0] if verdicts else ""


def _verdicts(card: pd.DataFrame, *conditions: str) -> list[str]:
    return card.loc[under(card, *conditions), "verdict"].tolist()


def _tally(verdicts: Sequence[str]) -> str:
    """Say how many of the verdicts are "reproduced", and what became of the others."""
    rest = ", ".join(f"{verdicts.count(word)} {word}" for word in VERDICTS[1:] if word in verdicts)
    return f"{verdicts.count(REPRODUCED)} of {len(verdicts)}" + (f" ({rest})" if rest else "")


def _grid_clause(verdicts: Sequence[str]) -> str:
    held, total, refuted = verdicts.count(REPRODUCED), len(verdicts), verdicts.count(OPPOSITE)
    if not total:
        return ""
    if held:
        share = "" if held == total else f" on {held} of {total}"
        return f"Sparsity and mask overlaps show more than size and bf16 rounding{share}"
    rest = "" if refuted == total else f" on {refuted} of {total}, and on the others nothing is decided"
    return f"Sparsity and mask overlaps show what size and bf16 rounding give by themselves{rest}"


def _spectral_clause(rows: pd.DataFrame) -> str:
    """Compare rotation and drift with the shuffled ones: a ratio above 1 means that place favours the spectrum."""
    known = rows.loc[rows["least"].notna()]
    if known.empty:
        return ""
    least, most = known["least"].min(), known["most"].max()
    span = f"Rotation and drift of OPD and RLVR are {least:.1f} to {most:.1f} times the shuffled ones"
    if (known["n_opposite"] == known["n_comparisons"]).all():
        return f"{span}, so these updates do not spare the leading directions"
    return f"{span}, so these updates spare the leading directions" if (known["verdict"] == REPRODUCED).all() else span
