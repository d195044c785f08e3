"""Is the early space enough where OPD learns: runs of profile ``confined``, by the rules that LOG.md had before them.

Progress is distance to the teacher, from where the projection begins to the free run's end, as in
:mod:`opdgeom_utils.chapters.sufficiency`.
"""

from __future__ import annotations

import re

import pandas as pd

from opdgeom_utils.chapters.committed_tables import BookTables, tables_for
from opdgeom_utils.chapters.regime import distance_closed, gap_closed
from opdgeom_utils.chapters.sufficiency import ENOUGH, SPACES, projected_runs, start_and_ends
from opdgeom_utils.chapters.surviving import NO, UNTESTED, YES
from opdgeom_utils.intervals import Interval, seed_interval
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.vocabulary import listed

PROFILE = "confined"
PAPER_RANK = 16  # directions in which the paper holds the gradient
LEARNED, SEEDS = 1 / 5, 3  # of the distance to the teacher; fewer seeds test nothing
EARLY, _, RANDOM, INPUTS = SPACES.values()
STRICT = "update held"
HELD = {"gradient held": "", STRICT: f", {STRICT}"}  # and what the names of its spaces end with
WORDS = {EARLY: "its early space", INPUTS: "the space of its inputs", RANDOM: "a random space"}


def confined() -> BookTables:
    """Return the committed tables of the runs that are held in a space where OPD learns."""
    return tables_for(PROFILE, load_recipe("opd", PROFILE).seeds)


def progress(tables: BookTables) -> pd.DataFrame:
    """Return the progress to the teacher that each held run ``kept``, as chapter 6 counts it.

    The ``space`` of a run that is held in more directions than the first of its kind says in how many: ``early space of
    16, update held``.
    """
    assert tables.measures is not None
    ends = start_and_ends(tables.measures, projected_runs(tables.profile))
    ends = ends[ends["quantity"] == "teacher_distance"]
    wider = ends["space"].str.partition(", ")
    wider = wider[0] + " of " + ends["rank"].astype(str) + wider[1] + wider[2]
    kept = (ends["held_end"] - ends["start"]) / (ends["free_end"] - ends["start"])
    return ends.assign(space=ends["space"].where(ends["sweep"] != "rank", wider), kept=kept)


def by_seed(kept: pd.DataFrame) -> pd.DataFrame:
    """Progress kept, a row per seed and a column for each ``(free run, space)``."""
    return kept.pivot_table(index="seed", columns=["free", "space"], values="kept")


def answers(tables: BookTables, kept: pd.DataFrame) -> pd.DataFrame:
    """Apply the rules.

    Returns
    -------
    DataFrame
        ``rule`` in words; what was ``found``, mean and 95% interval over seeds; ``holds``: *yes*, *no* or *not
        testable*, which is what fewer than three seeds are.
    """
    wide, closed = by_seed(kept), distance_closed(tables).get("fixed", seed_interval([]))
    found = [("free, OPD closes a fifth of its distance", closed.text(".0%"), closed.n, closed.mean >= LEARNED)]
    for how, ending in _held(wide).items():
        own = _interval(_kept(wide, EARLY + ending))
        rule = f"{how}: the early space keeps {ENOUGH:.0%} of the progress"
        found.append((rule, own.text(".0%"), own.n, own.low >= ENOUGH))
        for other in (INPUTS, RANDOM):
            gap = _interval(_lead(wide, ending, other))
            found.append((f"{how}: it keeps more than {WORDS[other]}", gap.text("+.0%"), gap.n, gap.low > 0))
        if ending not in HELD.values():
            gap = _interval(_lead(wide, ending, RANDOM) - _lead(wide, HELD[STRICT], RANDOM))
            rule = f"{how}: its lead over {WORDS[RANDOM]} is smaller than with fewer"
            found.append((rule, gap.text("+.0%"), gap.n, gap.high < 0))
    gap = _interval(_kept(wide, EARLY) - _kept(wide, EARLY, "control_sft"))
    rule = "gradient held: OPD keeps more in its early space than control SFT in its own"
    found.append((rule, gap.text("+.0%"), gap.n, gap.low > 0))
    table = pd.DataFrame(found, columns=["rule", "found", "seeds", "holds"])
    tested = zip(table["seeds"], table["holds"], strict=True)
    return table.assign(holds=[UNTESTED if n < SEEDS else YES if held else NO for n, held in tested])


def say(tables: BookTables, kept: pd.DataFrame) -> str:
    """Say whether the early space is enough, how much free OPD learned, and what it keeps in each space.

    The first line is the answer.
    """
    wide, made, begins = by_seed(kept), load_recipe("opd", tables.profile), kept["starts"].iloc[0]
    rank = int(kept["rank"].to_numpy(int).min())
    narrow = f" in {rank} directions"
    closed, gap = distance_closed(tables)["fixed"], seed_interval(gap_closed(tables))
    said = [
        f"{_answer(wide, rank, learned=closed.mean >= LEARNED)} In {made.steps} updates on {made.prompts_per_update} "
        f"prompts each, every word judged, free OPD closes {closed.mean:.0%} of its distance to the teacher and "
        f"{gap.mean:.0%} of the gap in accuracy"
    ]
    for how, ending in _held(wide).items():
        kept_in = [(f"in {WORDS[space]}", _kept(wide, space + ending)) for space in (EARLY, INPUTS, RANDOM)]
        width = "" if ending not in HELD.values() else narrow
        said += [f"With its {how}{width} from step {begins} on, it keeps of the progress {_shares(wide, kept_in)}"]
    own = _kept(wide, EARLY, "control_sft")
    more = _interval(_kept(wide, EARLY) - own).text("+.0%")
    shares = _shares(wide, [("in its own early space", own)])
    if len(own):
        said += [
            f"Control SFT, its gradient held{narrow}, keeps {shares}; OPD minus control SFT, seed by seed: {more} (by "
            "distance to the teacher, which only OPD is asked to close)"
        ]
    alone = "" if "opd_random_credit" in set(tables.accuracy["recipe"]) else " No run with random credit is beside it."
    return f"{'. '.join(said)}. Seeds: {len(wide)} where nothing else is said.{alone}"


def _held(wide: pd.DataFrame) -> dict[str, str]:
    """Return :data:`HELD` and, from narrow to wide, what was held strictly in more directions than the first."""
    form = re.compile(f"{EARLY} of (\\d+){HELD[STRICT]}")
    widths = sorted(int(found[1]) for free, space in wide if free == "opd" and (found := form.fullmatch(space)))
    return HELD | {f"{STRICT} in {width} directions": f" of {width}{HELD[STRICT]}" for width in widths}


def _kept(wide: pd.DataFrame, space: str, free: str = "opd") -> pd.Series:
    """Progress kept in a space by seed; empty where nothing was held in it."""
    return wide.loc[:, (free, space)].dropna() if (free, space) in wide else pd.Series(dtype=float)


def _lead(wide: pd.DataFrame, ending: str, other: str) -> pd.Series:
    """By how much the early space keeps more than another that is held alike."""
    return _kept(wide, EARLY + ending) - _kept(wide, other + ending)


def _interval(values: pd.Series) -> Interval:
    return seed_interval(values.dropna().to_numpy(float))


def _shares(wide: pd.DataFrame, kept_in: list[tuple[str, pd.Series]]) -> str:
    """List means, with their seeds where these are not all."""
    shares = [(words, seed_interval(values.to_numpy(float))) for words, values in kept_in if len(values)]
    return listed(f"{own.mean:.0%} {words}{f' (seeds: {own.n})' * (own.n < len(wide))}" for words, own in shares)


def _answer(wide: pd.DataFrame, rank: int, *, learned: bool) -> str:
    """Say whether the early space is enough, by gradients and by steps that are held, and whether another would do."""
    loosely, strictly = HELD.values()
    loose, strict = (_interval(_kept(wide, EARLY + ending)) for ending in (loosely, strictly))
    if min(loose.n, strict.n) < SEEDS:
        return "Whether the early space is enough where OPD learns is not tested: too few seeds.\n"
    wider = []
    for how, ending in [*_held(wide).items()][len(HELD) :]:
        own, where = _interval(_kept(wide, EARLY + ending)), how.removeprefix(STRICT).strip().capitalize()
        if own.n >= SEEDS:
            wider.append(f"{where} it keeps {own.text('.0%')}; there the early space {_told(wide, ending)}.")
    where = "Where OPD learns" if learned else "Where OPD learned less than was asked"
    said = (
        f"{where}, with its gradient held in {rank} directions of its early space (the paper: {PAPER_RANK}) it keeps "
        f"{loose.text('.0%')} of its progress: {_enough(loose)}; it {_told(wide, loosely)}. With its updates held it "
        f"keeps {strict.text('.0%')}: {_enough(strict)}; it {_told(wide, strictly)}."
    )
    return f"{said}\n{' '.join(['(An update that is held is shorter too.)', *wider])}"


def _enough(kept: Interval) -> str:
    """Say on which side of what is called enough an interval lies."""
    if kept.low >= ENOUGH:
        return "enough by its rule"
    return f"less than the {ENOUGH:.0%} asked" if kept.high < ENOUGH else "not shown to be enough"


def _told(wide: pd.DataFrame, ending: str) -> str:
    """Say on which side of a random space, and of the inputs', the early one is."""
    how = []
    for space in (RANDOM, INPUTS):
        gap = _interval(_lead(wide, ending, space))
        word = "keeps more than" if gap.low > 0 else "keeps less than" if gap.high < 0 else "is not told apart from"
        how += [f"{word} {WORDS[space]}"]
    return listed(how)
