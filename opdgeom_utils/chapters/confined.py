"""Is the early space enough where OPD learns: runs of profile ``confined``, by the rules that LOG.md had before them.

Progress is distance to the teacher, from where the projection begins to the free run's end, as in
:mod:`opdgeom_utils.chapters.sufficiency`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

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
LEARNED, SEEDS = 1 / 5, 3  # of the distance to the teacher; fewer seeds test nothing
ASKED = {"opd": LEARNED, "opd_long": 1 / 3}  # of the free runs
PARTS = {1 / 5: "a fifth", 1 / 3: "a third"}
PAPER = ("gradient", 16)  # what the paper holds, and in how many directions
EARLY, _, RANDOM, INPUTS = SPACES.values()
WORDS = {EARLY: "its early space", INPUTS: "the space of its inputs", RANDOM: "a random space"}
AS_LONG_WIDTH = 47  # of a random space whose steps are to be as long as those in the narrow early space
AS_LONG = "opd", f"{RANDOM} of {AS_LONG_WIDTH}, update held"
ALIKE = "is not told apart from"
SHARE_OF_LENGTH = 0.9  # that it lets through at least, of what that one does of each step's squared norm


@dataclass(frozen=True)
class Way:
    """One way of holding OPD in a space: what is held, in how many directions a matrix, and in which free run.

    ``ending`` is what the names of its spaces have after the space: `` of 16, update held``.
    """

    free: str
    held: str
    width: int
    begins: int
    ends: int
    ending: str

    def space(self, name: str) -> tuple[str, str]:
        """Name a column of :func:`by_seed`: this way of holding, in the early space or another."""
        return self.free, name + self.ending

    @property
    def of_sft(self) -> tuple[str, str]:
        """The same of control SFT, in its own early space."""
        return f"control_sft{self.free.removeprefix('opd')}", EARLY + self.ending

    @property
    def words(self) -> str:
        """How it is held, as a rule says it."""
        longer = "" if self.free == "opd" else f", {self.ends} updates"
        return f"{self.held} held in {self.width} directions{longer}"


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


def passed(tables: BookTables) -> dict[tuple[str, str], float]:
    """Return the share of each step's squared norm that lies in the space of a run, by its free run and space.

    Means over seeds. Where the update is held that is what is left of it: a run in a space that lets less through takes
    shorter steps.
    """
    assert tables.measures is not None
    inside = pick(tables.measures, quantity="update_inside", null="").groupby("recipe")["value"].agg("mean").to_dict()
    runs = progress(tables).drop_duplicates(["free", "space"])
    named = zip(runs["recipe"], runs["free"], runs["space"], strict=True)
    return {(free, space): float(inside[name]) for name, free, space in named if name in inside}


def by_seed(kept: pd.DataFrame) -> pd.DataFrame:
    """Progress kept, a row per seed and a column for each ``(free run, space)``."""
    return kept.pivot_table(index="seed", columns=["free", "space"], values="kept")


def ways(kept: pd.DataFrame) -> list[Way]:
    """How OPD is held in its early space: the gradient, then the update, narrow before wide; longer runs last."""
    early = kept.loc[kept["space"].str.startswith(EARLY) & kept["free"].isin([*ASKED])]
    columns = early[["free", "space", "rank", "starts", "steps"]].drop_duplicates().itertuples(index=False)
    found = [
        Way(free, "update" if "update held" in space else "gradient", rank, begins, ends, space.removeprefix(EARLY))
        for free, space, rank, begins, ends in columns
    ]
    return sorted(found, key=lambda way: (way.free, way.held, way.width))


def answers(tables: BookTables, kept: pd.DataFrame) -> pd.DataFrame:
    """Apply the rules.

    Returns
    -------
    DataFrame
        ``rule`` in words; what was ``found``, mean and 95% interval over seeds; ``holds``: *yes*, *no* or *not
        testable*, which is what fewer than three seeds are, and a random space whose steps are shorter than asked.
    """
    wide, found = by_seed(kept), []

    def asked(rule: str, gap: pd.Series, *, below: bool = False, tested: bool = True) -> None:
        more = seed_interval(gap)
        held = more.high < 0 if below else more.low > 0
        found.append((rule, more.text("+.0%"), more.n, held if tested else None))

    narrow: dict[tuple[str, str], Way] = {}
    for way in ways(kept):
        if way.free not in {free for free, _ in narrow}:
            closed, bar = distance_closed(tables, way.free).get("fixed", seed_interval([])), ASKED[way.free]
            rule = f"free, {way.ends} updates: OPD closes {PARTS[bar]} of its distance"
            found.append((rule, closed.text(".0%"), closed.n, closed.mean >= bar))
        own = seed_interval(_kept(wide, way.space(EARLY)))
        found.append(
            (
                f"{way.words}: the early space keeps {ENOUGH:.0%} of the progress",
                own.text(".0%"),
                own.n,
                own.low >= ENOUGH,
            )
        )
        for other in (INPUTS, RANDOM):
            asked(f"{way.words}: it keeps more than {WORDS[other]}", _more(wide, way, way.space(other)))
        less = narrow.setdefault((way.free, way.held), way)
        if less is not way:
            more = _more(wide, way, way.space(RANDOM)) - _more(wide, less, less.space(RANDOM))
            asked(f"{way.words}: its lead over {WORDS[RANDOM]} is smaller than in {less.width}", more, below=True)
        elif len(gap := _more(wide, way, AS_LONG)) and way.held == "update":
            rule = f"{way.words}: it keeps more than {WORDS[RANDOM]} of {AS_LONG_WIDTH}, whose steps are as long"
            asked(rule, gap, tested=_is_as_long(passed(tables), way))
        if len(more := _more(wide, way, way.of_sft)):
            asked(f"{way.words}: OPD keeps more in its early space than control SFT in its own", more)
    table = pd.DataFrame(found, columns=["rule", "found", "seeds", "holds"])
    tested = zip(table["seeds"], table["holds"], strict=True)
    return table.assign(holds=[UNTESTED if n < SEEDS or held is None else YES if held else NO for n, held in tested])


def say(tables: BookTables, kept: pd.DataFrame) -> str:
    """Say whether the early space is enough, how much free OPD learned, and what it keeps in each space.

    The first line is the answer; it begins with the paper's own test, of the runs that learned most.
    """
    wide, let = by_seed(kept), passed(tables)
    how = [way for way in ways(kept) if len(_kept(wide, way.space(EARLY))) >= SEEDS]
    if not how:
        return "Whether the early space is enough where OPD learns is not tested: too few seeds.\n"
    first = max(how, key=lambda way: (way.held == PAPER[0], way.width == PAPER[1], way.ends))
    closed = distance_closed(tables, first.free)["fixed"]
    test = "the paper's own test" if (first.held, first.width) == PAPER else f"the paper: {PAPER[1]}, not run here"
    answer = [
        f"Where OPD {_learns(closed)} ({closed.mean:.0%} of its distance to the teacher), with its {first.held} held "
        "in "
        f"{first.width} directions of its early space ({test}) it {_found(wide, first)}.",
        _beside_sft(wide, first),
        *[f"With its {way.words} it {_found(wide, way)}." for way in how if way.held == "update"][:1],
        _length(wide, how, let),
    ]
    said = [_shares_let_through(how, let)]
    for free in dict.fromkeys(way.free for way in how):
        made, gap = load_recipe(free, tables.profile), seed_interval(gap_closed(tables, free))
        said.append(
            f"In {made.steps} updates on {made.prompts_per_update} prompts each, every word judged, free OPD closes "
            f"{distance_closed(tables, free)['fixed'].mean:.0%} of its distance to the teacher and {gap.mean:.0%} of "
            "the gap in accuracy."
        )
        said += [_in_each(wide, way) for way in how if way.free == free]
    said += [*_minus_sft(tables, wide, how), f"Seeds: {len(wide)} where nothing else is said."]
    return "\n".join(" ".join(filter(None, part)) for part in (answer, said))


def beside_others() -> str:
    """Say, from the committed tables, what the early space keeps where OPD learns, in the paper's own test first.

    >>> print(beside_others()[:85])
    In chapter 6 (outside this ledger), where OPD learns a little (21% of its distance to
    """
    answer = say(tables := confined(), progress(tables)).partition("\n")[0]
    return f"{answer.partition('. ')[0].replace('Where OPD', 'In chapter 6 (outside this ledger), where OPD', 1)}."


def _learns(closed: Interval) -> str:
    """Say how much was learned, by the share of the distance to the teacher that was closed.

    >>> [_learns(Interval(*found, 3)) for found in ((0.3, 0.25, 0.35), (0.21, 0.18, 0.24), (0.1, 0.05, 0.15))]
    ['learns', 'learns a little', 'hardly learns']
    """
    if closed.mean < LEARNED:
        return "hardly learns"
    return "learns" if closed.low >= LEARNED else "learns a little"


def _kept(wide: pd.DataFrame, space: tuple[str, str]) -> pd.Series:
    """Progress kept in a space by seed; empty where nothing was held in it."""
    return wide.loc[:, space].dropna() if space in wide else pd.Series(dtype=float)


def _more(wide: pd.DataFrame, way: Way, other: tuple[str, str]) -> pd.Series:
    """By how much OPD keeps more in its early space than a run in another space, by seed."""
    return (_kept(wide, way.space(EARLY)) - _kept(wide, other)).dropna()


def _found(wide: pd.DataFrame, way: Way) -> str:
    """Say what is kept in the early space, whether that is enough, and on which side of the other spaces it is."""
    own, sides = seed_interval(_kept(wide, way.space(EARLY))), {}
    for space in (RANDOM, INPUTS):
        sides.setdefault(_side(_more(wide, way, way.space(space))), []).append(WORDS[space])
    told = listed(f"{side} {(' or ' if side == ALIKE else ' and ').join(spaces)}" for side, spaces in sides.items())
    return f"keeps {own.text('.0%')} of its progress: {_enough(own)}; it {told}"


def _side(lead: pd.Series) -> str:
    """Say on which side of something a lead over it is."""
    gap = seed_interval(lead)
    return "keeps more than" if gap.low > 0 else "keeps less than" if gap.high < 0 else ALIKE


def _enough(kept: Interval) -> str:
    """Say on which side of what is called enough an interval lies."""
    if kept.low >= ENOUGH:
        return "enough by its rule"
    return f"less than the {ENOUGH:.0%} asked" if kept.high < ENOUGH else "not shown to be enough"


def _in_each(wide: pd.DataFrame, way: Way) -> str:
    """List what is kept in each space, with the seeds where these are not all."""
    kept = [(WORDS[space], _kept(wide, way.space(space))) for space in (EARLY, INPUTS, RANDOM)]
    shares = [
        f"{values.mean():.0%} in {words}{f' (seeds: {len(values)})' * (len(values) < len(wide))}"
        for words, values in kept
        if len(values)
    ]
    return f"With its {way.words} from update {way.begins} on, it keeps of its progress {listed(shares)}."


def _beside_sft(wide: pd.DataFrame, way: Way) -> str:
    """Say what control SFT keeps in its own early space; nothing where that was not run."""
    own = seed_interval(_kept(wide, way.of_sft))
    side = _side(_more(wide, way, way.of_sft))
    return f"Control SFT keeps {own.text('.0%')} in its own: OPD {side} that." if own.n else ""


def _minus_sft(tables: BookTables, wide: pd.DataFrame, how: list[Way]) -> list[str]:
    """Say by how much more OPD keeps in its early space than control SFT in its own, by either ruler."""
    assert tables.measures is not None
    by_accuracy = by_seed(progress(tables, "accuracy")) if "accuracy" in set(tables.measures["quantity"]) else None
    said = []
    for way in how:
        if not len(more := _more(wide, way, way.of_sft)):
            continue
        words = f"{way.words}, OPD minus control SFT, seed by seed: {seed_interval(more).text('+.0%')}"
        if by_accuracy is not None:
            words += f", by accuracy {seed_interval(_more(by_accuracy, way, way.of_sft)).text('+.0%')}"
        said.append(f"{words[0].upper()}{words[1:]}.")
    return [*said, "Only OPD is asked to close its distance to the teacher."] if said else []


def _length(wide: pd.DataFrame, how: list[Way], let: Mapping[tuple[str, str], float]) -> str:
    """Say whether the lead of the early space, where the update is held, is the length of its steps."""
    strict = next((way for way in how if way.held == "update"), None)
    if strict is None or not {strict.space(EARLY), strict.space(RANDOM)} <= set(let):
        return ""
    times = math.sqrt(let[strict.space(EARLY)] / let[strict.space(RANDOM)])
    said = f"In the early space of {strict.width} its steps are {times:.1f} times as long as in a random one"
    if not _is_as_long(let, strict):
        return f"{said}: how much of its lead is length is not known."
    own = seed_interval(_kept(wide, AS_LONG))
    side = _side(_more(wide, strict, AS_LONG))
    return f"{said}; it {side} a random one of {AS_LONG_WIDTH}, whose steps are as long: that keeps {own.text('.0%')}."


def _is_as_long(let: Mapping[tuple[str, str], float], way: Way) -> bool:
    """Whether the steps in the wide random space are as long as those in an early space, or longer."""
    return way.held == "update" and let.get(AS_LONG, 0) >= SHARE_OF_LENGTH * let.get(way.space(EARLY), math.inf)


def _shares_let_through(how: list[Way], let: Mapping[tuple[str, str], float]) -> str:
    """Say what part of each step a space lets through where the update is held."""
    said = []
    for way in (way for way in how if way.held == "update"):
        shares = [let.get(way.space(space), math.nan) for space in (EARLY, INPUTS, RANDOM)]
        if not any(map(math.isnan, shares)):
            said.append("{:.0%}, {:.0%} and {:.0%} in {}".format(*shares, way.width))
    if not said:
        return ""
    more = f"; the random one of {AS_LONG_WIDTH} {let[AS_LONG]:.0%}" if AS_LONG in let else ""
    return (
        "An update that is held is shorter too: of each step's squared norm the early space, the inputs' and a random "
        f"one let through {'; '.join(said)} directions{more}."
    )
