"""Fewer tokens and another writer where OPD learns: runs of profile ``rq3``, by the rules LOG.md had before them.

Everything is of attention matrices, seed by seed, at the runs' end. What is asked of a variant stands in
:data:`ASKED`; each answer is *yes*, *no* or *not shown*, and *not testable* with fewer than three seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from opdgeom_utils.chapters import control
from opdgeom_utils.chapters.committed_tables import PUBLISHED, BookTables, tables_for
from opdgeom_utils.chapters.confined import LEARNED, SEEDS
from opdgeom_utils.chapters.mismatched import PROFILE as SFT_NULL
from opdgeom_utils.chapters.regime import distance_closed, gap_closed
from opdgeom_utils.chapters.sufficiency import ENOUGH
from opdgeom_utils.chapters.surviving import NO, UNTESTED, YES
from opdgeom_utils.claims.matching import accuracy_gain
from opdgeom_utils.intervals import Interval, seed_interval
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.results import load_tables
from opdgeom_utils.vocabulary import label, listed

PROFILE = "rq3"
VARIANTS = ("opd_top25", "opd_random25", "opd_teacher_writes")
NULL = "opd_random_credit"
PATH, DIRECTION, PROGRESS, ACCURACY = "distance from OPD's path", "cosine with OPD", "progress (OPD's is 1)", "accuracy"
NEAR, HALF = 0.1, 0.5  # of a path, as in the ledger; of what two seeds of OPD have in common
OPEN = "not shown"
ASKED = {PATH: "stays on its path", DIRECTION: "goes its way", PROGRESS: "keeps its progress"}
LEARNERS, NULLS = ("control_sft", "rlvr"), (NULL, "rlvr_random_reward", "control_sft_mismatched")  # beside the same OPD


def trained() -> BookTables:
    """Return the committed tables of the variants where OPD learns."""
    return tables_for(PROFILE, load_recipe("opd", PROFILE).seeds)


def numbers(tables: BookTables, null: pd.DataFrame) -> pd.DataFrame:
    """Return every run's numbers beside OPD of its seed: ``row, panel, kind, seed, value``, as figures draw them.

    The nulls are another seed of OPD and random credit (``null``, from :func:`null_of`). Panels: how far its
    stable-rank path lies from OPD's, the cosine of its update with OPD's, its progress to the teacher as a share of
    OPD's, and sampled accuracy.
    """
    measures, names = tables.measures, list(VARIANTS)
    assert measures is not None
    parts = [control.path_gaps(measures, names).assign(panel=PATH), _cosines(measures, names)]
    skill = control.at_update(measures, names, {"accuracy": ACCURACY, "teacher_distance": PROGRESS})
    begun = pick(measures, recipe="opd", quantity="teacher_distance", step=0).set_index("seed")["value"]
    away = skill["panel"].eq(PROGRESS)
    skill.loc[away, "value"] = skill["seed"].map(begun) - skill["value"]
    own = skill[away & skill["row"].eq("OPD")].set_index("seed")["value"]
    skill.loc[away, "value"] /= skill["seed"].map(own)
    skill = skill[~(away & skill["row"].eq("OPD"))]
    return pd.concat([*parts, skill, null], ignore_index=True)


def null_of(seeds: Sequence[int], until: int) -> pd.DataFrame:
    """Return random credit's numbers beside OPD of its seed, in the toy, as :func:`numbers` does.

    ``until``: the update at which runs are compared. The cosine was measured at the next place only, and a run that
    goes away from its teacher makes no progress.
    """
    toy, row = tables_for(PUBLISHED, list(seeds)), control.variant_label(NULL)
    assert toy.measures is not None
    path = control.path_gaps(toy.measures, [NULL], until=until).query("row == @row").assign(panel=PATH)
    cosine = pick(toy.measures, quantity="update_cosine", scope="attention", recipe=NULL, other_recipe="opd", null="")
    cosine = cosine[(cosine["seed"] == cosine["other_seed"]) & (cosine["step"] >= until)]
    cosine = cosine[cosine["step"] == cosine["step"].min()].assign(panel=DIRECTION)
    scores = accuracy_gain(toy.accuracy[toy.accuracy["recipe"] == NULL])
    scores = scores[scores["step"] == until].rename(columns={"sampled": "value"}).assign(panel=ACCURACY)
    return pd.concat([path, cosine, scores]).assign(row=row, kind="null").filter(items=control.STRIP)


def _cosines(measures: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Cosine of each run's update with OPD's of its seed, and of OPD's with OPD's of the other seeds, by their mean."""
    rows = pick(measures, quantity="update_cosine", scope="attention", null="", other_recipe="opd")
    rows = rows[rows["step"] == control.common_update(measures)]
    same, seeds = rows["recipe"].isin(names) & (rows["seed"] == rows["other_seed"]), rows["recipe"].eq("opd")
    named = pd.concat(
        [
            rows[same].assign(row=rows["recipe"].map(control.variant_label), kind="variant"),
            rows[seeds].assign(row=control.OTHER_SEED, kind="null"),
        ]
    )
    means = named.groupby(["row", "kind", "seed"], sort=False).agg({"value": "mean"}).reset_index()
    return means.assign(panel=DIRECTION)


def answers(found: pd.DataFrame) -> pd.DataFrame:
    """Apply the rules to :func:`numbers`: a row per variant and question, with ``number`` in words and ``holds``."""
    wide = found.pivot_table(index="seed", columns=["panel", "row"], values="value")
    null, rows = control.variant_label(NULL), []
    for name in map(control.variant_label, VARIANTS):
        for panel in ASKED:
            own = wide[panel, name] if (panel, name) in wide else pd.Series(dtype=float)
            holds = UNTESTED if own.count() < SEEDS else _judge(panel, own, wide[panel], null)
            rows.append({"run": name, "asked": panel, "number": _interval(own).text(".2f"), "holds": holds})
    return pd.DataFrame(rows)


def _judge(panel: str, own: pd.Series, there: pd.DataFrame, null: str) -> str:
    """Judge one number of a variant, by seeds: *yes* where its rule holds, *no* where the opposite of a part does."""
    if panel == PROGRESS:
        kept = _interval(own)
        return YES if kept.low >= ENOUGH else NO if kept.high < ENOUGH else OPEN
    beyond = _interval(own - there[null])
    if panel == PATH:
        near = _interval(own)
        good, bad = near.high < NEAR and beyond.high < 0, near.low > NEAR or beyond.low > 0
    else:
        half = _interval(own - HALF * there[control.OTHER_SEED])
        good, bad = half.low > 0 and beyond.low > 0, half.high < 0 or beyond.high < 0
    return YES if good else NO if bad else OPEN


def _interval(values: pd.Series) -> Interval:
    return seed_interval(values.dropna().to_numpy(float))


def shown(judged: pd.DataFrame) -> pd.DataFrame:
    """Lay the answers out as text, a row for each variant and a column for each question."""
    cells = judged.assign(cell=judged["holds"] + ": " + judged["number"], asked=judged["asked"].map(ASKED))
    table = cells.pivot(index="run", columns="asked", values="cell").reindex(index=judged["run"].unique())
    return table[list(ASKED.values())].rename_axis(columns=None).reset_index()


def say(tables: BookTables, found: pd.DataFrame, judged: pd.DataFrame) -> str:
    """Say which variants stay on OPD's path, go its way and keep its progress, where it learns; first the finding."""
    closed, gap = distance_closed(tables).get("fixed", seed_interval([])), seed_interval(gap_closed(tables))
    if judged["holds"].eq(UNTESTED).any():
        return "What fewer tokens and another writer do where OPD learns is not tested: too few seeds.\n"
    lead = "Where OPD learns" if closed.mean >= LEARNED else "Where OPD learned less than was asked"
    by = {panel: dict(rows[["run", "holds"]].to_numpy()) for panel, rows in judged.groupby("asked")}
    said = [_which(by[PATH], "on its stable-rank path", "off it"), _which(by[DIRECTION], "on its way", "off it")]
    said.append(_which(by[PROGRESS], f"at {ENOUGH:.0%} of its progress or more", "below"))
    made, means = load_recipe("opd", tables.profile), found.groupby(["panel", "row"])["value"].agg("mean")
    yards = (control.OTHER_SEED, control.variant_label(NULL))
    beside = {panel: listed(f"{row} {means[panel, row]:.2f}" for row in yards) for panel in (PATH, DIRECTION)}
    paths = paths_of_others(made.steps)
    more, off = (listed(f"{label(n)} {paths[label(n)]:.2f}" for n in names) for names in (LEARNERS, NULLS))
    reached = means[ACCURACY]
    accuracy = listed(f"{row} {reached[row]:.1%}" for row in ("OPD", *map(control.variant_label, (*VARIANTS, NULL))))
    return (
        f"{lead}: {'; '.join(said)}. {_lesson(by)} {_whose_path(paths)}\n"
        f"After {made.steps} updates on {made.prompts_per_update} prompts each OPD has closed {closed.text('.0%')} of "
        f"its distance to the teacher and {gap.text('.0%')} of the gap in accuracy (seeds: {closed.n}). Mean absolute "
        f"log ratio to its path: {beside[PATH]}. In the toy, after as many updates, {more} learn; {off} do not. Cosine "
        f"with its update: {beside[DIRECTION]}. Sampled accuracy: {accuracy}."
    )


def _which(held: dict[str, str], good: str, bad: str) -> str:
    """List runs by what a rule says of them.

    >>> _which({"a": YES, "b": NO, "c": OPEN}, "on its way", "off it")
    'on its way a, off it b, not shown either way c'
    """
    words = {YES: good, NO: bad, OPEN: "not shown either way"}
    parts = [(word, [run for run, verdict in held.items() if verdict == kind]) for kind, word in words.items()]
    return ", ".join(f"{word} {listed(runs)}" for word, runs in parts if runs)


def _lesson(by: dict[str, dict[str, str]]) -> str:
    """Say whether the path tells who learns as much as OPD.

    >>> _lesson({PATH: {"a": YES, "b": NO}, PROGRESS: {"a": NO, "b": YES}})
    'So the path is no sign of learning as much: a stays on it and falls behind; b leaves it and keeps up.'
    """
    path, progress = by[PATH], by[PROGRESS]
    behind = [run for run in path if (path[run], progress[run]) == (YES, NO)]
    ahead = [run for run in path if (path[run], progress[run]) == (NO, YES)]
    kinds = ((behind, "stay{} on it and fall{} behind"), (ahead, "leave{} it and keep{} up"))
    said = [f"{listed(runs)} {words.replace('{}', 's' * (len(runs) == 1))}" for runs, words in kinds if runs]
    if said:
        return f"So the path is no sign of learning as much: {'; '.join(said)}."
    decided = [run for run in path if OPEN not in (path[run], progress[run])]
    if len(decided) == len(path):
        return "So those that stay on the path learn as much, and no other."
    return "Whether the path goes with learning as much is open."


def _whose_path(paths: dict[str, float]) -> str:
    """Say whether other objectives that learn lie nearer to OPD's path than runs with nothing to learn.

    >>> _whose_path(
    ...     {"control SFT": 0.03, "RLVR": 0.06, "random credit": 0.3, "random reward": 0.4, "mismatched control": 0.5}
    ... )
    'Other objectives that learn from its anchor lie near its path too, and runs with nothing to learn do not.'
    """
    learn, nothing = ([paths[label(name)] for name in names] for names in (LEARNERS, NULLS))
    if max(learn) < min(NEAR, *nothing):
        return (
            "Other objectives that learn from its anchor lie near its path too, and runs with nothing to learn do not."
        )
    return "By this distance other objectives that learn are not set apart from runs with nothing to learn."


def paths_of_others(until: int) -> dict[str, float]:
    """How far the stable-rank paths of the toy's other objectives and nulls lie from OPD's, mean over seeds."""
    parts = [tables_for(PUBLISHED, [0, 1, 2, 3, 4]).measures, load_tables(SFT_NULL).measures]
    gaps = control.path_gaps(pd.concat(parts), (LEARNERS[0], *NULLS), until=until).groupby("row")["value"].agg("mean")
    return {label(name): float(gaps[control.variant_label(name)]) for name in (*LEARNERS, *NULLS)}
