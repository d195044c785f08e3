"""Fewer tokens and another writer where OPD learns: runs of profile ``rq3``, by the rules LOG.md had before them.

Everything is of attention matrices, seed by seed, at the runs' end. What is asked of a variant stands in
:data:`ASKED`; each answer is *yes*, *no* or *not shown*, and *not testable* with fewer than three seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from opdgeom_utils.chapters import control
from opdgeom_utils.chapters.committed_tables import PUBLISHED, BookTables, tables_for
from opdgeom_utils.chapters.confined import LEARNED, SEEDS
from opdgeom_utils.chapters.mismatched import PROFILE as SFT_NULL
from opdgeom_utils.chapters.regime import distance_closed, gap_closed
from opdgeom_utils.chapters.sufficiency import ENOUGH
from opdgeom_utils.chapters.surviving import NO, UNTESTED, YES
from opdgeom_utils.intervals import Interval, over_pairs, seed_interval
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.results import load_tables
from opdgeom_utils.vocabulary import label, listed

PROFILE = "rq3"
VARIANTS = {  # and how each was trained
    "opd_top25": "the quarter of the tokens that the teacher objects to most",
    "opd_random25": "a random quarter",
    "opd_teacher_writes": "text that the teacher wrote",
}
NULL = "opd_random_credit"
PATH, DIRECTION, PROGRESS, ACCURACY = "distance from OPD's path", "cosine with OPD", "progress (OPD's is 1)", "accuracy"
OF_OPD = {PATH: 0.0, DIRECTION: 1.0}  # beside itself
NEAR, HALF = 0.1, 0.5  # of a path, as in the ledger; of what two seeds of OPD have in common
OPEN = "not shown"
ASKED = {PROGRESS: "keeps its progress", DIRECTION: "goes its way", PATH: "stays on its path"}
_RANDOM = control.variant_label(NULL)
_HOW = {control.variant_label(name): how for name, how in VARIANTS.items()}
LEARNERS, NULLS = ("control_sft", "rlvr"), (NULL, "rlvr_random_reward", "control_sft_mismatched")  # of the toy


def trained() -> BookTables:
    """Return the committed tables of the variants where OPD learns."""
    return tables_for(PROFILE, load_recipe("opd", PROFILE).seeds)


def numbers(tables: BookTables, names: Sequence[str] = tuple(VARIANTS)) -> pd.DataFrame:
    """Return every run's numbers beside OPD of its seed: ``row, panel, kind, seed, value``, as figures draw them.

    The nulls are another seed of OPD, RLVR where it was trained, and random credit. Panels: how far its stable-rank
    path lies from OPD's, the cosine of its update with OPD's, its progress to the teacher as a share of OPD's (none is
    told of random credit, which goes away from its teacher), and sampled accuracy.
    """
    measures, shown = tables.measures, [*names, NULL]
    assert measures is not None
    parts = [control.path_gaps(measures, shown).assign(panel=PATH)]
    parts += [cosines(measures, [*shown, "rlvr"]).assign(panel=DIRECTION), _progress(measures, names)]
    parts += [control.at_update(measures, shown, {"accuracy": ACCURACY})]
    itself = [("OPD", panel, "null", seed, at) for panel, at in OF_OPD.items() for seed in tables.seeds]
    found = pd.concat([pd.DataFrame(itself, columns=control.STRIP), *parts], ignore_index=True)
    return found.assign(kind=found["kind"].where(~found["row"].isin([_RANDOM, "RLVR"]), "null"))


def _progress(measures: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """How much nearer to the teacher each run has come, on the anchor's text, as a share of OPD's of its seed."""
    away = control.at_update(measures, names, {"teacher_distance": PROGRESS})
    begun = pick(measures, recipe="opd", quantity="teacher_distance", step=0).groupby("seed")["value"].first().to_dict()
    closed = away.assign(value=[begun[seed] - value for seed, value in away[["seed", "value"]].to_numpy()])
    own = closed.loc[closed["row"] == "OPD"].groupby("seed")["value"].first().to_dict()
    return closed.assign(value=[value / own[seed] for seed, value in closed[["seed", "value"]].to_numpy()])


def cosines(measures: pd.DataFrame, names: Sequence[str], other: str = "opd") -> pd.DataFrame:
    """Cosine of each run's update with ``other``'s of its seed, and of that with its other seeds, by their mean."""
    rows = pick(measures, quantity="update_cosine", scope="attention", null="", other_recipe=other)
    rows = rows[rows["step"] == control.common_update(measures)]
    same, seeds = rows["recipe"].isin(names) & (rows["seed"] == rows["other_seed"]), rows["recipe"].eq(other)
    named = pd.concat(
        [
            rows[same].assign(row=rows["recipe"].map(control.variant_label), kind="variant"),
            rows[seeds].assign(row=control.another_seed(other), kind="null"),
        ]
    )
    return named.groupby(["row", "kind", "seed"], sort=False).agg({"value": "mean"}).reset_index()


def answers(found: pd.DataFrame) -> pd.DataFrame:
    """Apply the rules to :func:`numbers`: a row per variant and question, with ``number`` in words and ``holds``."""
    wide = found.pivot_table(index="seed", columns=["panel", "row"], values="value")
    rows = []
    for name in map(control.variant_label, VARIANTS):
        for panel in ASKED:
            own = pd.Series(wide.get((panel, name), pd.Series(dtype=float)))
            holds = UNTESTED if int(own.count()) < SEEDS else judge(panel, own, pd.DataFrame(wide[panel]))
            rows.append({"run": name, "asked": panel, "number": seed_interval(own).text(".2f"), "holds": holds})
    return pd.DataFrame(rows)


def judge(panel: str, own: pd.Series, there: pd.DataFrame) -> str:
    """Judge one number of a variant, by seeds: *yes* where its rule holds, *no* where the opposite of a part does."""
    if panel == PROGRESS:
        kept = seed_interval(own)
        return YES if kept.low >= ENOUGH else NO if kept.high < ENOUGH else OPEN
    beyond = seed_interval(own - there[_RANDOM])
    if panel == PATH:
        near = seed_interval(own)
        good, bad = near.high < NEAR and beyond.high < 0, near.low > NEAR or beyond.low > 0
    else:
        half = seed_interval(own - HALF * over_pairs(there.loc[:, control.OTHER_SEED]))
        good, bad = half.low > 0 and beyond.low > 0, half.high < 0 or beyond.high < 0
    return YES if good else NO if bad else OPEN


def shown(judged: pd.DataFrame, asked: Mapping[str, str] = ASKED) -> pd.DataFrame:
    """Lay answers out as text, a row for each run and a column for each question, by its words in ``asked``."""
    cells = judged.assign(cell=judged["holds"] + ": " + judged["number"]).set_index(["run", "asked"])["cell"].to_dict()
    runs = dict.fromkeys(judged["run"].tolist())
    rows = [{"run": run} | {words: cells[run, panel] for panel, words in asked.items()} for run in runs]
    return pd.DataFrame(rows)


def say(tables: BookTables, found: pd.DataFrame, judged: pd.DataFrame) -> str:
    """Say what of OPD's progress each variant keeps, which go its way, and what the path tells; first the finding."""
    if UNTESTED in judged["holds"].tolist():
        return "What fewer tokens and another writer do where OPD learns is not tested: too few seeds.\n"
    closed, gap = distance_closed(tables).get("fixed", seed_interval([])), seed_interval(gap_closed(tables))
    wide = found.pivot_table(index="seed", columns=["panel", "row"], values="value")
    own = {panel: {run: seed_interval(pd.Series(wide[panel, run])) for run in _HOW} for panel in ASKED}
    shares = listed(f"{own[PROGRESS][run].mean:.0%} with {how}" for run, how in _HOW.items())
    spans = listed(f"{run} {own[PROGRESS][run].text('.0%')}" for run in _HOW)
    made, means = load_recipe("opd", tables.profile), wide.mean()
    yards = {panel: listed_means(means[panel], (control.OTHER_SEED, _RANDOM)) for panel in (PATH, DIRECTION)}
    paths = paths_of_others(made.steps)
    learn, nothing = (listed(f"{label(n)} {paths[label(n)]:.2f}" for n in names) for names in (LEARNERS, NULLS))
    return (
        f"{where(tables)}, {_matters(judged)}of OPD's progress to the teacher a run keeps {shares}"
        f"{_away(tables)}. "
        f"{which(judged, DIRECTION, 'move the weights its way')}. {_path(judged, own[PATH])} {_whose_path(paths)}\n"
        f"After {made.steps} updates on {made.prompts_per_update} prompts each OPD has closed {closed.text('.0%')} of "
        f"its distance to the teacher and {gap.text('.0%')} of the gap in accuracy (seeds: {closed.n}). Progress kept: "
        f"{spans}. Mean absolute "
        f"log ratio to its stable-rank path: {listed_means(means[PATH], _HOW)} ({yards[PATH]}); in the toy, after as "
        f"many updates, {learn}, which get better at their tasks, and {nothing}, which do not. Cosine with its update: "
        f"{listed_means(means[DIRECTION], _HOW)} ({yards[DIRECTION]}). Sampled accuracy: "
        f"{listed_means(means[ACCURACY], ('OPD', *_HOW, _RANDOM), '.1%')}."
    )


def _away(tables: BookTables) -> str:
    """Say how far from its teacher random credit has gone; nothing where it was not measured."""
    assert tables.measures is not None
    apart = pick(tables.measures, quantity="teacher_distance", null="")
    begun = apart.loc[apart["recipe"].eq("opd") & apart["step"].eq(0), "value"].to_numpy(float)
    ends = apart.loc[apart["recipe"] == NULL, "value"].to_numpy(float)
    return (
        f"; with random credit it ends {ends.mean() / begun.mean():.1f} times as far from it as it began"
        if len(ends)
        else ""
    )


def where(tables: BookTables) -> str:
    """Say whether OPD learned in these tables, at the head of a sentence."""
    closed = distance_closed(tables).get("fixed", seed_interval([]))
    return "Where OPD learns" if closed.mean >= LEARNED else "Where OPD learned less than was asked"


def _matters(judged: pd.DataFrame) -> str:
    """Say that what is kept and who writes matters, where one variant keeps OPD's progress and another does not."""
    verdicts = judged.loc[judged["asked"] == PROGRESS, "holds"]
    return "it matters which tokens are kept and who writes: " if {YES, NO} <= set(verdicts) else ""


def listed_means(means: pd.Series, rows: Iterable[str], shown: str = ".2f") -> str:
    """List the means that there are, by the names of the runs."""
    return listed(f"{row} {means[row]:z{shown}}" for row in dict.fromkeys(rows) if row in means)


def which(judged: pd.DataFrame, asked: str, words: str) -> str:
    """Say of which variants a rule holds, of which it does not, and of which neither is shown.

    >>> rows = {"run": ["a", "b", "c"], "asked": PROGRESS, "holds": [YES, NO, OPEN]}
    >>> which(pd.DataFrame(rows), PROGRESS, "keep up"), which(pd.DataFrame(rows)[:1], PROGRESS, "keep up")
    ('That they keep up holds of: a; not b; not shown of c', 'All keep up')
    """
    held = judged[judged["asked"] == asked]
    runs = {kind: held.loc[held["holds"] == kind, "run"].tolist() for kind in (YES, NO, OPEN)}
    said = [
        f"{head}{listed(runs[kind])}" for kind, head in ((YES, ""), (NO, "not "), (OPEN, "not shown of ")) if runs[kind]
    ]
    return f"All {words}" if len(runs[YES]) == len(held) else f"That they {words} holds of: {'; '.join(said)}"


def _path(judged: pd.DataFrame, away: Mapping[str, Interval]) -> str:
    """Say which variants stay on OPD's path, and whether that tells who keeps up.

    ``away``: how far each is from the path.

    >>> rows = {"run": ["a", "b"] * 2, "asked": [PATH] * 2 + [PROGRESS] * 2, "holds": [OPEN, YES, NO, YES]}
    >>> _path(pd.DataFrame(rows), {"a": Interval(0.03, 0.01, 0.05, 3), "b": Interval(0.03, 0.01, 0.05, 3)})
    'Less than 0.1 from its stable-rank path are a and b; nearer than random credit is shown of b. So the path does not
    tell how much is learned: a is near it and does not keep up.'
    """
    by = {asked: dict(rows[["run", "holds"]].to_numpy()) for asked, rows in judged.groupby("asked")}
    near = [run for run, distance in away.items() if distance.high < NEAR]
    on = [run for run, holds in by[PATH].items() if holds == YES]
    same = on == near
    said = f"Less than {NEAR:g} from its stable-rank path {'(and nearer than random credit) ' * same}are "
    said += listed(near) if near else "none"
    said += "." if same else f"; nearer than random credit is shown of {listed(on) if on else 'none'}."
    behind = [run for run in near if by[PROGRESS][run] == NO]
    ahead = [run for run, distance in away.items() if distance.low > NEAR and by[PROGRESS][run] == YES]
    one = ("is near it and does not keep up", "is off it and keeps up")
    more = ("are near it and do not keep up", "are off it and keep up")
    odd = [f"{listed(runs)} {(one if len(runs) == 1 else more)[k]}" for k, runs in enumerate((behind, ahead)) if runs]
    return f"{said} So the path does not tell how much is learned: {'; '.join(odd)}." if odd else said


def _whose_path(paths: dict[str, float]) -> str:
    """Say whether other objectives that learn lie nearer to OPD's path than runs that cannot get better.

    >>> _whose_path(
    ...     {"control SFT": 0.03, "RLVR": 0.06, "random credit": 0.3, "random reward": 0.4, "mismatched control": 0.5}
    ... )
    'Other objectives that learn from its anchor lie near it too, and runs that cannot get better do not.'
    """
    learn, nothing = ([paths[label(name)] for name in names] for names in (LEARNERS, NULLS))
    if max(learn) < min(NEAR, *nothing):
        return "Other objectives that learn from its anchor lie near it too, and runs that cannot get better do not."
    return "By this distance other objectives that learn are not set apart from runs that cannot get better."


def paths_of_others(until: int) -> dict[str, float]:
    """How far the stable-rank paths of the toy's other objectives and nulls lie from OPD's, mean over seeds."""
    toy, nulls = tables_for(PUBLISHED, [0, 1, 2, 3, 4]).measures, load_tables(SFT_NULL).measures
    assert toy is not None
    assert nulls is not None
    gaps = control.path_gaps(pd.concat([toy, nulls]), (LEARNERS[0], *NULLS), until=until)
    means = gaps.groupby("row")["value"].agg("mean").to_dict()
    return {label(name): means[control.variant_label(name)] for name in (*LEARNERS, *NULLS)}
