"""What a careful reader asks of the paper, answered in words: a verdict chooses each clause, a table each number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from opdgeom_utils.chapters import confined
from opdgeom_utils.chapters.committed_tables import PUBLISHED
from opdgeom_utils.chapters.findings import order_sentence
from opdgeom_utils.chapters.null_objectives import turning_clause
from opdgeom_utils.chapters.path_findings import early_clause, locking_clause
from opdgeom_utils.chapters.verdicts import verdict_of
from opdgeom_utils.claims import OPPOSITE, UNTESTABLE, VERDICTS, matching
from opdgeom_utils.claims.look_up import Tables
from opdgeom_utils.scopes import THROUGHOUT
from opdgeom_utils.vocabulary import label, listed

REPRODUCED, PARTLY, UNDECIDED = VERDICTS[:3]
LITTLE = 1.25  # a factor up to which rounding is called a small part
_SPARSITY = ("opd_sparsity_beyond_null", "opd_principal_mask_beyond_null_seen")
_SPECTRA = ("opd_rotates_less_than_null", "opd_drifts_less_than_null")
_SPACES = {"early_space_beats_random_by_distance_seen": "a random space"}
_SPACES |= {"early_space_beats_activations_by_distance_seen": "the space of the inputs"}
_SPACES |= {"early_space_beats_complement": "all that lies outside it", "early_space_beats_rlvrs": "RLVR's early space"}


def answers(card: pd.DataFrame, tables: Tables) -> dict[int, str]:
    """Answer each question of :data:`opdgeom_utils.chapters.verdicts.CRITICISMS` in a few computed words, by number."""
    found = {
        1: order_sentence(card, tables),
        2: _seeds(tables),
        3: "Below 1/256 not at all: two different bf16 numbers are never closer than that, relative to the larger one. "
        "Chapter 3 sweeps the tolerance.",
        4: _locking(card),
        5: _held_in_a_space(card, tables),
        6: _mixture(card),
        7: _regime(card, tables),
        8: _rounding(tables),
    }
    return {number: said for number, said in found.items() if said}


def chosen(card: pd.DataFrame, name: str, words: Mapping[str, str]) -> str:
    """Choose the clause of a claim's verdict; empty where there is none.

    >>> card = pd.DataFrame({"id": ["a"], "verdict": ["partly"]})
    >>> chosen(card, "a", {"partly": "In part."}), chosen(card, "b", {"partly": "In part."})
    ('In part.', '')
    """
    return words.get(verdict_of(card, name), "")


def _seeds(tables: Tables) -> str:
    """Say how large the spread of the seeds is by update sparsity."""
    ends = matching.final(matching.summarise(tables.geometry, None))
    runs = [(str(r), own["update_sparsity"]) for r, own in ends.groupby("recipe") if len(own) > 1]
    all_runs = {recipe: float(np.std(own, ddof=1)) for recipe, own in runs}
    spread = {recipe: value for recipe, value in all_runs.items() if recipe in THROUGHOUT} or all_runs
    one = (
        "Sweeps have one seed each, and so no verdict; of the other settings, one seed each too, a rule counts the "
        "settings themselves."
    )
    if not spread:
        return one
    widest, of_all = (max(found, key=lambda recipe: found[recipe]) for found in (spread, all_runs))
    more = f"; of the other runs at most {100 * all_runs[of_all]:.2f} ({label(of_all)})" if of_all != widest else ""
    return (
        f"At the end of the main runs their standard deviation of update sparsity is at most "
        f"{100 * spread[widest]:.2f} points ({label(widest)}){more}. {one}"
    )


def _locking(card: pd.DataFrame) -> str:
    """Say whether locking is early between the paper's checkpoints and in the single steps.

    >>> rows = {"locking_before_a_tenth": "reproduced", "later_steps_stay_left": "reproduced"}
    >>> rows |= {"later_steps_stay_right": "partly", "locking_early_k16": "partly"}
    >>> for said in _locking(pd.DataFrame({"id": list(rows), "verdict": list(rows.values())})).split(". "):
    ...     print(said)
    On the side of the inputs OPD is, at a tenth of its updates, ahead of RLVR and of a random walk, the weakest null
    That OPD's update settles into its final space earlier than SFT's is not shown
    Its later steps stay in the early space beyond chance on the side of the outputs, in part on that of the inputs.
    """
    how = {
        REPRODUCED: "beyond chance",
        PARTLY: "in part",
        UNDECIDED: "not for certain",
        OPPOSITE: "by chance only",
    }
    left, right = (chosen(card, f"later_steps_stay_{side}", how) for side in ("left", "right"))
    steps = f"Its later steps stay in the early space {left} on the side of the outputs, {right} on that of the inputs."
    return _joined(early_clause(card).strip(), locking_clause(card).strip(), steps if left and right else "")


def _held_in_a_space(card: pd.DataFrame, tables: Tables) -> str:
    """Say what :func:`_projection` says; of the published tables also which regime that is, and what the later has."""
    found = _projection(card)
    if found and set(tables.geometry["profile"]) == {PUBLISHED}:
        return f"In the first regime: {found} {confined.beside_others()}"
    return f"{found[:1].upper()}{found[1:]}"


def _projection(card: pd.DataFrame) -> str:
    """Say whether the early space beats others, and what is known of other ranks and starts.

    >>> name = "early_space_beats_random_by_distance_seen"
    >>> _projection(pd.DataFrame({"id": [name], "verdict": ["not decided"]}))
    'better than another space it is not shown to be: a random space is not told apart from it.'
    """
    better = [words for name, words in _SPACES.items() if verdict_of(card, name) == REPRODUCED]
    apart = [words for name, words in _SPACES.items() if verdict_of(card, name) in (PARTLY, UNDECIDED)]
    lone = [words for name, words in _SPACES.items() if verdict_of(card, name) == UNTESTABLE]
    are = "is" if len(apart) == 1 else "are"
    first = f"it is better than {listed(better)}." if better else ""
    if apart and not better:
        first = f"better than another space it is not shown to be: {listed(apart)} {are} not told apart from it."
    elif apart:
        first += f" Not told apart from it {are} {listed(apart)}."
    sweeps = [verdict_of(card, f"projection_{what}_sweep") for what in ("rank", "start")]
    rest = "Other ranks and other starts have one seed each, so nothing is judged." if UNTESTABLE in sweeps else ""
    also = f"With one seed each, not judged either: {listed(lone)}." if lone else ""
    return _joined(first, rest, also)


def _mixture(card: pd.DataFrame) -> str:
    """Say whether the source of the mixed signal or its scale moves the path."""
    scale = {
        REPRODUCED: "Scale is a part of it: with equal norms the mixture stays nearer to OPD.",
        **dict.fromkeys((PARTLY, UNDECIDED), "Not decided: a mixture of equal norms is not told apart."),
        OPPOSITE: "The source: with equal norms the mixture is no nearer to OPD.",
        UNTESTABLE: "Not known: the mixtures of equal norms have one seed each.",
    }
    spaces = [verdict_of(card, f"small_alpha_goes_to_rlvr_{side}") for side in ("right", "left")]
    part = "all" if set(spaces) == {REPRODUCED} else "some" if {REPRODUCED, PARTLY} & set(spaces) else "none"
    shared = f"Of the raw mixtures with little OPD in them, {part} share more of their space with RLVR than with OPD."
    return _joined(chosen(card, "scale_is_part_of_mixing", scale), shared if any(spaces) else "")


def _regime(card: pd.DataFrame, tables: Tables | None = None) -> str:
    """Say whether OPD is a regime of its own: beside its shuffled self, and at equal norm.

    >>> rows = dict.fromkeys([*_SPARSITY, *_SPECTRA], "the opposite") | {"opd_distinct_at_equal_norm": "not decided"}
    >>> _regime(pd.DataFrame({"id": list(rows), "verdict": list(rows.values())})).split(". ")[0]
    'A regime of its own is not shown: at equal norm nothing is told apart from both neighbours'
    """
    words = {
        REPRODUCED: "Of its own: at equal norm some diagnostic of OPD lies outside both others.",
        **dict.fromkeys(
            (PARTLY, UNDECIDED),
            "A regime of its own is not shown: at equal norm nothing is told apart from both neighbours.",
        ),
        OPPOSITE: "A point on the way: at equal norm every diagnostic of OPD lies between the others.",
    }
    first = chosen(card, "opd_distinct_at_equal_norm", words)
    size, spectra = ({verdict_of(card, name) for name in names} for names in (_SPARSITY, _SPECTRA))
    null = (
        "Its sparsity and its mask of principal entries are what its shuffled update has too."
        if size == {OPPOSITE}
        else ""
    )
    turned = "It turns the leading directions further than its shuffled update does." if spectra == {OPPOSITE} else ""
    nothing = turning_clause(tables) if turned else ""
    return _joined(first, null, turned, f"{nothing}." if nothing else "")


def _rounding(tables: Tables) -> str:
    """Say how much rounding to bf16 adds to the stable rank, along OPD and RLVR."""
    attention = matching.summarise(tables.geometry)
    found = {r: _inflation(attention, r) for r in ("opd", "rlvr") if r in set(attention["recipe"])}
    if not found or any(np.isnan(both).any() for both in found.values()):
        return ""
    much = "Little, by the end" if max(map(max, found.values())) < LITTLE else "Much of it, where the update is small"
    said = "; ".join(
        f"{label(recipe)}: by {first:.1f} at the first checkpoint, by {last:.1f} at the last"
        for recipe, (first, last) in found.items()
    )
    return f"{much}: rounding multiplies the stable rank of the update ({said}). Spectra are measured in fp32."


def _inflation(summary: pd.DataFrame, recipe: str) -> tuple[float, float]:
    """Stable rank after rounding over stable rank, mean over seeds, at the first and at the last checkpoint."""
    own = summary.loc[summary["recipe"] == recipe]
    ratio = own["stable_rank_bf16"] / own["stable_rank"]
    first, last = (float(ratio[own["step"] == step].mean()) for step in (own["step"].min(), own["step"].max()))
    return first, last


def _joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))
