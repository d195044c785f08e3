"""Is the early space enough where OPD learns: runs of profile ``confined``, by the rules that LOG.md had before them.

Progress is distance to the teacher, from where the projection begins to the free run's end, as in
:mod:`opdgeom_utils.chapters.sufficiency`.
"""

from __future__ import annotations

import pandas as pd

from opdgeom_utils.chapters.committed_tables import BookTables, tables_for
from opdgeom_utils.chapters.regime import distance_closed, gap_closed
from opdgeom_utils.chapters.sufficiency import ENOUGH, SPACES, projected_runs, start_and_ends
from opdgeom_utils.chapters.surviving import NO, UNTESTED, YES
from opdgeom_utils.intervals import Interval, seed_interval
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.vocabulary import listed

PROFILE = "confined"
LEARNED, SEEDS = 1 / 5, 3  # of the distance to the teacher; fewer seeds test nothing
EARLY, _, RANDOM, INPUTS = SPACES.values()
HELD = {"gradient held": "", "update held": ", update held"}  # and what the names of its spaces end with
WORDS = {EARLY: "its early space", INPUTS: "the space of its inputs", RANDOM: "a random space"}


def confined() -> BookTables:
    """Return the committed tables of the runs that are held in a space where OPD learns."""
    return tables_for(PROFILE, load_recipe("opd", PROFILE).seeds)


def progress(tables: BookTables) -> pd.DataFrame:
    """Return the progress to the teacher that each held run ``kept``, as chapter 6 counts it."""
    assert tables.measures is not None
    ends = start_and_ends(tables.measures, projected_runs(tables.profile))
    ends = ends[ends["quantity"] == "teacher_distance"]
    return ends.assign(kept=(ends["held_end"] - ends["start"]) / (ends["free_end"] - ends["start"]))


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
    for how, ending in HELD.items():
        own = _interval(wide, ("opd", EARLY + ending))
        rule = f"{how}: the early space keeps {ENOUGH:.0%} of the progress"
        found.append((rule, own.text(".0%"), own.n, own.low >= ENOUGH))
        for other in (INPUTS, RANDOM):
            gap = _interval(wide, ("opd", EARLY + ending), ("opd", other + ending))
            found.append((f"{how}: it keeps more than {WORDS[other]}", gap.text("+.0%"), gap.n, gap.low > 0))
    gap = _interval(wide, ("opd", EARLY), ("control_sft", EARLY))
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
    closed, gap = distance_closed(tables)["fixed"], seed_interval(gap_closed(tables))
    said = [
        f"{_lead(wide, learned=closed.mean >= LEARNED)}\nIn {made.steps} updates on {made.prompts_per_update} prompts "
        f"each, every word judged, free OPD closes {closed.mean:.0%} of its distance to the teacher and {gap.mean:.0%} "
        "of the gap in accuracy"
    ]
    for how, ending in HELD.items():
        kept_in = [(f"in {WORDS[space]}", ("opd", space + ending)) for space in (EARLY, INPUTS, RANDOM)]
        said += [f"With its {how} from step {begins} on, it keeps of the progress {_shares(wide, kept_in)}"]
    if ("control_sft", EARLY) in wide:
        own = [("in its own early space", ("control_sft", EARLY))]
        said += [f"Control SFT, its gradient held, keeps {_shares(wide, own)}"]
    alone = "" if "opd_random_credit" in set(tables.accuracy["recipe"]) else " No run with random credit is beside it."
    return f"{'. '.join(said)}. Seeds: {len(wide)} where nothing else is said.{alone}"


def _shares(wide: pd.DataFrame, kept_in: list[tuple[str, tuple[str, str]]]) -> str:
    """List means, with their seeds where these are not all."""
    shares = [(words, _interval(wide, column)) for words, column in kept_in if column in wide]
    return listed(f"{own.mean:.0%} {words}{f' (seeds: {own.n})' * (own.n < len(wide))}" for words, own in shares)


def _lead(wide: pd.DataFrame, *, learned: bool) -> str:
    """Say whether the early space is enough, by gradients and by steps that are held, and whether another would do."""
    ending = HELD["update held"]
    loose, strict = _interval(wide, ("opd", EARLY)), _interval(wide, ("opd", EARLY + ending))
    if min(loose.n, strict.n) < SEEDS:
        return "Whether the early space is enough where OPD learns is not tested: too few seeds."
    enough = "is" if loose.low >= ENOUGH else "is not" if loose.high < ENOUGH else "is not shown to be"
    how = []
    for space in (RANDOM, INPUTS):
        gap = _interval(wide, ("opd", EARLY + ending), ("opd", space + ending))
        word = "keeps more than" if gap.low > 0 else "keeps less than" if gap.high < 0 else "is not told apart from"
        how += [f"{word} {WORDS[space]}"]
    return (
        f"{'Where OPD learns' if learned else 'Where OPD learned less than was asked'}, its early space {enough} "
        f"enough: it keeps {loose.text('.0%')} of its progress with its gradient held there, {strict.text('.0%')} with "
        f"its updates held (which shortens them too). Held so, the early space {listed(how)}."
    )


def _interval(wide: pd.DataFrame, one: tuple[str, str], less: tuple[str, str] | None = None) -> Interval:
    """Mean and interval of one column, or of its difference from another, over the seeds that have both."""
    if one not in wide or (less is not None and less not in wide):
        return seed_interval([])
    values = wide[one] if less is None else wide[one] - wide[less]
    return seed_interval(values.dropna().to_numpy(float))
