"""Is the early space enough where OPD learns: runs of profile ``confined``, by the rules that LOG.md had before them.

Progress is distance to the teacher, from where the projection begins to the free run's end, as in
:mod:`opdgeom_utils.chapters.sufficiency`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import pandas as pd

from opdgeom_utils.chapters.committed_tables import BookTables, tables_for
from opdgeom_utils.chapters.regime import distance_closed, gap_closed
from opdgeom_utils.chapters.sufficiency import ENOUGH, SPACES, projected_runs, start_and_ends
from opdgeom_utils.chapters.surviving import NO, UNTESTED, YES
from opdgeom_utils.intervals import Interval, seed_interval
from opdgeom_utils.measures.long_table import pick
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


def progress(tables: BookTables, quantity: str = "teacher_distance") -> pd.DataFrame:
    """Return the progress that each held run ``kept``, as chapter 6 counts it, by distance to the teacher or accuracy.

    The ``space`` of a run that is held in more directions than the first of its kind says in how many: ``early space of
    16, update held``.
    """
    assert tables.measures is not None
    ends = start_and_ends(tables.measures, projected_runs(tables.profile))
    ends = ends[ends["quantity"] == quantity]
    wider = ends["space"].str.partition(", ")
    wider = wider[0] + " of " + ends["rank"].astype(str) + wider[1] + wider[2]
    kept = (ends["held_end"] - ends["start"]) / (ends["free_end"] - ends["start"])
    return ends.assign(space=ends["space"].where(ends["sweep"] != "rank", wider), kept=kept)


def passed(tables: BookTables) -> dict[str, float]:
    """Return the share of each step's squared norm that lies in the space of a run, by its space; means over seeds.

    Where the update is held that is what is left of it: a run in a space that lets less through takes shorter steps.
    """
    assert tables.measures is not None
    inside = pick(tables.measures, quantity="update_inside", null="").groupby("recipe")["value"].agg("mean").to_dict()
    runs = progress(tables).drop_duplicates(["free", "space"])
    named = zip(runs["recipe"], runs["free"], runs["space"], strict=True)
    return {space: float(inside[name]) for name, free, space in named if free == "opd" and name in inside}


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
        own = seed_interval(_kept(wide, EARLY + ending))
        rule = f"{how}: the early space keeps {ENOUGH:.0%} of the progress"
        found.append((rule, own.text(".0%"), own.n, own.low >= ENOUGH))
        for other in (INPUTS, RANDOM):
            gap = seed_interval(_lead(wide, ending, other))
            found.append((f"{how}: it keeps more than {WORDS[other]}", gap.text("+.0%"), gap.n, gap.low > 0))
        if ending not in HELD.values():
            gap = seed_interval(_lead(wide, ending, RANDOM) - _lead(wide, HELD[STRICT], RANDOM))
            rule = f"{how}: its lead over {WORDS[RANDOM]} is smaller than with fewer"
            found.append((rule, gap.text("+.0%"), gap.n, gap.high < 0))
    gap = seed_interval(_kept(wide, EARLY) - _kept(wide, EARLY, "control_sft"))
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
    let = passed(tables)
    said = [
        f"{_answer(wide, rank, closed, let)}{_lengths(let, wide)} In {made.steps} updates on "
        f"{made.prompts_per_update} prompts each, every word judged, free OPD closes {closed.mean:.0%} of its distance "
        f"to the teacher and {gap.mean:.0%} of the gap in accuracy"
    ]
    for how, ending in _held(wide).items():
        kept_in = [(f"in {WORDS[space]}", _kept(wide, space + ending)) for space in (EARLY, INPUTS, RANDOM)]
        width = "" if ending not in HELD.values() else narrow
        said += [f"With its {how}{width} from step {begins} on, it keeps of the progress {_shares(wide, kept_in)}"]
    own = _kept(wide, EARLY, "control_sft")
    more = seed_interval(_kept(wide, EARLY) - own).text("+.0%")
    shares = _shares(wide, [("in its own early space", own)])
    if len(own):
        said += [
            f"Control SFT, its gradient held{narrow}, keeps {shares}; OPD minus control SFT, seed by seed: {more} by "
            f"distance to the teacher, which only OPD is asked to close{_by_accuracy(tables)}"
        ]
    alone = "" if "opd_random_credit" in set(tables.accuracy["recipe"]) else " No run with random credit is beside it."
    return f"{'. '.join(said)}. Seeds: {len(wide)} where nothing else is said.{alone}"


def beside_others() -> str:
    """Say, from the committed tables, which spaces the early one beats where OPD learns and its update is held.

    >>> print(beside_others())
    Where OPD learns a little (chapter 6; outside this ledger), with its updates held, the early space keeps more than a
    random space and is not told apart from the space of its inputs; in 16 directions it keeps more than a random space
    and is not told apart from the space of its inputs.
    """
    tables = confined()
    wide, closed = by_seed(progress(tables)), distance_closed(tables)["fixed"]
    told = [_told(wide, ending) for how, ending in _held(wide).items() if how.startswith(STRICT)]
    widths = [how.removeprefix(STRICT).strip() for how in _held(wide) if how.startswith(STRICT)]
    said = "; ".join(f"{width} it {words}" if width else words for width, words in zip(widths, told, strict=True))
    how = _learns(closed)
    return f"Where OPD {how} (chapter 6; outside this ledger), with its updates held, the early space {said}."


def _learns(closed: Interval) -> str:
    """Say how much was learned, by the share of the distance to the teacher that was closed.

    >>> [_learns(Interval(*found, 3)) for found in ((0.3, 0.25, 0.35), (0.21, 0.18, 0.24), (0.1, 0.05, 0.15))]
    ['learns', 'learns a little', 'hardly learns']
    """
    if closed.mean < LEARNED:
        return "hardly learns"
    return "learns" if closed.low >= LEARNED else "learns a little"


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


def _shares(wide: pd.DataFrame, kept_in: list[tuple[str, pd.Series]]) -> str:
    """List means, with their seeds where these are not all."""
    shares = [(words, seed_interval(values.to_numpy(float))) for words, values in kept_in if len(values)]
    return listed(f"{own.mean:.0%} {words}{f' (seeds: {own.n})' * (own.n < len(wide))}" for words, own in shares)


def _by_accuracy(tables: BookTables) -> str:
    """Say by how much more OPD keeps in its early space than control SFT by accuracy, the ruler of SFT; or nothing."""
    if tables.measures is None or "accuracy" not in set(tables.measures["quantity"]):
        return ""
    kept = by_seed(progress(tables, "accuracy"))
    more = seed_interval(_kept(kept, EARLY) - _kept(kept, EARLY, "control_sft"))
    return f"; by accuracy {more.text('+.0%')}" if more.n else ""


def _lengths(inside: Mapping[str, float], wide: pd.DataFrame) -> str:
    """Say what part of each step a space lets through where the update is held, and what that leaves open."""
    said = []
    for ending in list(_held(wide).values())[1:]:
        let = [inside.get(space + ending, math.nan) for space in (EARLY, INPUTS, RANDOM)]
        if not any(map(math.isnan, let)):
            said.append("{:.0%}, {:.0%} and {:.0%}".format(*let))
    if not said:
        return "(An update that is held is shorter too.)"
    return (
        "An update that is held is shorter too: of each step's squared norm the early space, the inputs' and a random "
        f"one let through {'; with more directions '.join(said)}. How much of a lead "
        "over a random space is length is not known."
    )


def _answer(wide: pd.DataFrame, rank: int, closed: Interval, inside: Mapping[str, float]) -> str:
    """Say whether the early space is enough, by gradients and by steps that are held, and whether another would do."""
    loosely, strictly = HELD.values()
    loose, strict = (seed_interval(_kept(wide, EARLY + ending)) for ending in (loosely, strictly))
    if min(loose.n, strict.n) < SEEDS:
        return "Whether the early space is enough where OPD learns is not tested: too few seeds.\n"
    wider = []
    for how, ending in [*_held(wide).items()][len(HELD) :]:
        own, where = seed_interval(_kept(wide, EARLY + ending)), how.removeprefix(STRICT).strip().capitalize()
        if own.n >= SEEDS:
            wider.append(f"{where} it keeps {own.text('.0%')}; there the early space {_told(wide, ending)}.")
    let = [inside.get(space + strictly, math.nan) for space in (EARLY, RANDOM)]
    steps = "" if any(map(math.isnan, let)) else f"{math.sqrt(let[0] / let[1]):.1f} times as long as in a random one"
    longer = f" In the early space its steps are {steps}." if steps else ""
    as_paper = "" if ("opd", f"{EARLY} of {PAPER_RANK}") in wide else ", not run here"
    said = (
        f"Where OPD {_learns(closed)}, with its gradient held in {rank} directions of its early space (the paper: "
        f"{PAPER_RANK}{as_paper}) it keeps {loose.text('.0%')} of its progress: {_enough(loose)}; it "
        f"{_told(wide, loosely)}. With its updates held it keeps {strict.text('.0%')}: {_enough(strict)}; it "
        f"{_told(wide, strictly)}.{longer}"
    )
    return f"{said}\n{''.join(f'{words} ' for words in wider)}"


def _enough(kept: Interval) -> str:
    """Say on which side of what is called enough an interval lies."""
    if kept.low >= ENOUGH:
        return "enough by its rule"
    return f"less than the {ENOUGH:.0%} asked" if kept.high < ENOUGH else "not shown to be enough"


def _told(wide: pd.DataFrame, ending: str) -> str:
    """Say on which side of a random space, and of the inputs', the early one is."""
    how = []
    for space in (RANDOM, INPUTS):
        gap = seed_interval(_lead(wide, ending, space))
        word = "keeps more than" if gap.low > 0 else "keeps less than" if gap.high < 0 else "is not told apart from"
        how += [f"{word} {WORDS[space]}"]
    return listed(how)
