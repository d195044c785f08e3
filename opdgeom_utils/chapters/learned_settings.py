"""Other teachers, another student and other data where OPD learns: runs of profile ``rq3``, by the rules of LOG.md.

Everything is at the runs' end, seed by seed, beside OPD of the same seed. Where a setting lies is one number, the mean
over the six diagnostics of how far it is from OPD, and is held against the same number of other objectives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from opdgeom_utils.chapters import control, mismatched, one_curve
from opdgeom_utils.chapters import learned_variants as learned
from opdgeom_utils.chapters.committed_tables import PUBLISHED, BookTables, tables_for
from opdgeom_utils.chapters.confined import SEEDS
from opdgeom_utils.chapters.first_nulls import runs_at
from opdgeom_utils.chapters.learned_variants import DIRECTION, OPEN, PATH
from opdgeom_utils.chapters.regime import distance_closed
from opdgeom_utils.chapters.surviving import NO, UNTESTED, YES
from opdgeom_utils.claims import matching
from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.vocabulary import label, listed

ASKED = ("opd_mathematics", "opd_code", "opd_teacher_small", "opd_teacher_moe", "opd_student_small")
OTHER_SIZE = "opd_student_small"  # no cosine with OPD is taken of it
OBJECTIVES, NULLS = ("rlvr", "control_sft"), ("rlvr_random_reward", "control_sft_mismatched")  # of the toy
CLOSED = 0.15  # of the distance to the setting's own teacher
PLACE, SPARSITY, OWN = "distance from OPD's place", "update sparsity", "distance to its teacher closed"
RULES = {
    OWN: "learned",
    PLACE: "nearer than other objectives and a null",
    SPARSITY: "between control SFT and RLVR",
    DIRECTION: "goes OPD's way",
    PATH: "stays on OPD's path",
}
_RANDOM = control.variant_label(learned.NULL)


def held(tables: BookTables) -> list[str]:
    """Return the settings that the tables have, in the order in which they are told."""
    return [name for name in ASKED if name in set(tables.geometry["recipe"])]


def toy() -> BookTables:
    """Return the toy's committed tables with SFT's nulls: the other objectives, of the same recipe and anchor."""
    return mismatched.joined(tables_for(PUBLISHED, [0, 1, 2, 3, 4]))


def numbers(tables: BookTables, beside: BookTables) -> pd.DataFrame:
    """Return every setting's numbers, as figures draw them: ``row, panel, kind, seed, value``.

    ``tables``: of profile ``rq3``. ``beside``: from :func:`toy`, for the other objectives, each beside the toy's OPD.
    Panels: distance from OPD's place, update sparsity (a share), cosine with OPD's update, distance from its
    stable-rank path, sampled accuracy on all families.
    """
    names = held(tables)
    found = learned.numbers(tables, names)
    found = found.loc[found["panel"].isin([PATH, DIRECTION, learned.ACCURACY])]
    small = found["row"].eq(control.variant_label(OTHER_SIZE)) & found["panel"].eq(DIRECTION)
    own = places(tables, [*names, learned.NULL])
    others = places(beside, [*OBJECTIVES, *NULLS], until=control.common_update(_measures(tables)))
    others = others.loc[~others["row"].isin(["OPD", control.OTHER_SEED]) & others["seed"].isin(tables.seeds)]
    parts = [own, others, found.loc[~small]]
    table = pd.concat(parts, ignore_index=True)
    rows = {control.variant_label(name) for name in names}
    return table.assign(kind=["variant" if row in rows else "null" for row in table["row"]])


def _measures(tables: BookTables) -> pd.DataFrame:
    assert tables.measures is not None
    return tables.measures


def places(tables: BookTables, names: Sequence[str], until: int | None = None) -> pd.DataFrame:
    """Return how far runs lie from OPD of their seed, and their sparsity: ``row, panel, kind, seed, value``.

    The distance is the mean over the six diagnostics of ``|log(run / OPD)|``: 0.1 is about a tenth. Another seed of OPD
    is the next one. ``until``: the update; None takes the common one.
    """
    at = control.common_update(_measures(tables)) if until is None else until
    columns = ["recipe", "seed", *matching.METRICS]
    runs = {(recipe, seed): np.array(own) for recipe, seed, *own in runs_at(tables, at)[columns].to_numpy().tolist()}
    sparsity = matching.METRICS.index("update_sparsity")
    seeds = [seed for recipe, seed in runs if recipe == "opd"]
    turned = dict(zip(seeds, seeds[1:] + seeds[:1], strict=True))
    pairs = [(control.variant_label(name), (name, seed), seed) for name in names for seed in seeds]
    pairs += [(control.OTHER_SEED, ("opd", turned[seed]), seed) for seed in seeds if turned[seed] != seed]
    rows = []
    for row, key, seed in pairs:
        if key in runs:
            rows.append((row, PLACE, "null", seed, float(np.abs(np.log(runs[key] / runs["opd", seed])).mean())))
    shown = [(control.variant_label(n), (n, seed), seed) for n in ("opd", *names) for seed in seeds]
    rows += [(row, SPARSITY, "null", seed, runs[key][sparsity]) for row, key, seed in shown if key in runs]
    return pd.DataFrame(rows, columns=control.STRIP)


def answers(tables: BookTables, found: pd.DataFrame) -> pd.DataFrame:
    """Apply the rules to :func:`numbers`: ``run, asked, number`` (in words), ``holds``, a row per setting and rule."""
    wide = found.pivot_table(index="seed", columns=["panel", "row"], values="value")
    rows = []
    for name in held(tables):
        run = control.variant_label(name)
        closed = distance_closed(tables, name).get("own", seed_interval([]))
        rows.append((run, OWN, closed.text(".0%"), _untested(closed.n) or (YES if closed.mean >= CLOSED else NO)))
        for panel in (PLACE, SPARSITY, DIRECTION, PATH):
            if (panel, run) not in wide:
                rows.append((run, panel, "-", UNTESTED))
                continue
            own = pd.Series(wide[panel, run])
            shown = ".1%" if panel == SPARSITY else ".2f"
            holds = _untested(int(own.count())) or _judge(panel, own, pd.DataFrame(wide[panel]))
            rows.append((run, panel, seed_interval(own).text(shown), holds))
    return pd.DataFrame(rows, columns=["run", "asked", "number", "holds"])


def _untested(seeds: int) -> str:
    return UNTESTED if seeds < SEEDS else ""


def _judge(panel: str, own: pd.Series, there: pd.DataFrame) -> str:
    """Judge one number of a setting by its seeds.

    >>> beside = pd.DataFrame({"RLVR": [0.3, 0.3, 0.3], "control SFT": [0.5, 0.5, 0.5], "random credit": [0.9, 1, 1]})
    >>> [_judge(PLACE, pd.Series(own), beside) for own in ([0.1, 0.1, 0.11], [0.4, 0.41, 0.4], [0.1, 0.3, 0.5])]
    ['yes', 'no', 'not shown']
    """
    if panel in (DIRECTION, PATH):
        return learned.judge(panel, own, there)
    objectives = [label(name) for name in OBJECTIVES]
    if panel == SPARSITY:
        low, high = sorted(there[name].mean() for name in objectives)
        return YES if own.dropna().between(low, high).all() else NO
    gaps = {name: seed_interval(own - there[name]) for name in (*objectives, _RANDOM)}
    if all(gap.high < 0 for gap in gaps.values()):
        return YES
    return NO if any(gaps[name].low > 0 for name in objectives) else OPEN


def on_the_curve(tables: BookTables, beside: BookTables) -> pd.DataFrame:
    """Hold settings, and the variants of profile ``rq3``, against the curve that OPD's rungs of the toy draw.

    At the common update, by the statistics that need no path. Returns the rows of
    :func:`opdgeom_utils.chapters.one_curve.distances`.
    """
    names, at = [*held(tables), *learned.VARIANTS], control.common_update(_measures(tables))
    own = tables.geometry.loc[tables.geometry["recipe"].isin(names)]
    null = beside.geometry["recipe"].isin([*one_curve.LADDER, one_curve.NOTHING[0]])
    both = replace(beside, geometry=pd.concat([beside.geometry.loc[null], own], ignore_index=True), measures=None)
    points = one_curve.against_coherence(both, at, (*names, one_curve.NOTHING[0]))
    return one_curve.distances(points, asked=names)


def curve_counts(found: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Count, by the name of a run, in how many statistics it leaves the curve, and in how many it was tested."""
    counts = {}
    for recipe, own in found.groupby("recipe", sort=False):
        tested = [verdict for verdict in own["verdict"].tolist() if verdict in one_curve.TESTED]
        counts[control.variant_label(str(recipe))] = (tested.count(one_curve.TESTED[0]), len(tested))
    return counts


def curve_table(found: pd.DataFrame) -> pd.DataFrame:
    """Lay out :func:`on_the_curve`: a row for each run, in how many statistics it leaves, and how far off it lies."""
    rows = []
    for recipe, own in found.groupby("recipe", sort=False):
        run = control.variant_label(str(recipe))
        left, tested = curve_counts(own)[run]
        away = own.loc[own["verdict"] == one_curve.TESTED[0], "statistic"].tolist()
        known = own.loc[own["verdict"].isin(one_curve.TESTED)]
        most = f"{(known['mean'].abs() / known['span']).max():.0%}" if tested else "-"
        on = "yes" if one_curve.is_on(left, tested) else "no"
        which = listed(away) if away else "-"
        rows.append((run, on if tested else UNTESTED, f"{left} of {tested}", which, most))
    return pd.DataFrame(rows, columns=["run", "on the curve", "leaves it in", "which", "furthest, of the range"])


def say(tables: BookTables, found: pd.DataFrame, judged: pd.DataFrame) -> str:
    """Say whether the setting or the objective decides where OPD lies, and what settings share; first the finding."""
    runs = dict.fromkeys(judged["run"].tolist())
    by = {asked: rows.set_index("run")["holds"].to_dict() for asked, rows in judged.groupby("asked")}
    if not runs or UNTESTED in by[PLACE].values():
        return "What another teacher, student or task does where OPD learns is not tested: too few seeds.\n"
    means = found.groupby(["panel", "row"])["value"].agg("mean")
    place, sparsity, cosine, path = (pd.Series(means[panel]) for panel in (PLACE, SPARSITY, DIRECTION, PATH))

    def those(asked: str, word: str) -> list[str]:
        return [run for run in runs if by[asked].get(run) == word]

    near, far = those(PLACE, YES), those(PLACE, NO)
    yards = [control.OTHER_SEED, _RANDOM, *map(label, OBJECTIVES)]
    told = [run for run in runs if not _no_further(found, run)]
    beyond = f"further than by RLVR or control SFT by {listed(far)}" if far else ""
    less = f"less than by RLVR, control SFT and random credit by {listed(near)}" if near else ""
    lead = (
        f"OPD's place is shown to be moved {' and '.join(filter(None, (less, beyond)))}."
        if near or far
        else "no setting is shown to move OPD's place less than each of RLVR, control SFT and random credit does, and "
        "none further than RLVR or control SFT."
    )
    lead += f" {_by_means(place, runs)} Shown to move it further than another seed: {listed(told) if told else 'none'}."
    little = those(OWN, NO)
    aside = f" (Learned less than was asked: {listed(little)}.)" if little else ""
    order = those(SPARSITY, YES)
    low, high = sorted(sparsity[label(name)] for name in OBJECTIVES)
    idle = [name for name in (_RANDOM, *map(control.variant_label, NULLS)) if name in sparsity]
    within = [name for name in idle if low < sparsity[name] < high]
    too = f" ({listed(within)} too)" if within else ""
    rows = [*runs, *yards, *map(control.variant_label, NULLS)]
    return (
        f"{learned.where(tables)}, {lead}{aside} By update sparsity {len(order)} of {len(runs)} lie between control "
        f"SFT and RLVR after as many updates{too}. {learned.which(judged, DIRECTION, 'go its way')}. "
        f"{learned.which(judged, PATH, 'stay on its path')}.\n"
        f"Mean absolute log ratio to OPD over six diagnostics: {learned.listed_means(place, rows)}. Update sparsity: "
        f"{learned.listed_means(sparsity, ['OPD', *rows], '.1%')}. Cosine with OPD's update: "
        f"{learned.listed_means(cosine, rows)}. Distance from its stable-rank path: "
        f"{learned.listed_means(path, rows)}. Seeds: {found.loc[found['panel'] == PLACE, 'seed'].nunique()}."
    )


def _by_means(place: pd.Series, runs: Iterable[str]) -> str:
    """Sort settings by how far they move OPD's place, by means, beside another seed, random credit and objectives.

    >>> place = pd.Series({"a": 0.02, "b": 0.05, "c": 0.2, control.OTHER_SEED: 0.02, "RLVR": 0.08, "control SFT": 0.3})
    >>> print(_by_means(place, ["a", "b", "c"]))
    By means (log ratio over six diagnostics) another seed moves it 0.02, RLVR 0.08 and control SFT 0.30. No further
    than another seed: a 0.02. Between another seed and RLVR: b 0.05. As far as RLVR or further: c 0.20.
    """
    yards = learned.listed_means(place, [control.OTHER_SEED, _RANDOM, *map(label, OBJECTIVES)])
    yards = yards.replace(control.OTHER_SEED, "another seed moves it", 1)
    seed, rlvr = (round(place[row], 2) for row in (control.OTHER_SEED, label(OBJECTIVES[0])))
    at = {run: round(place[run], 2) for run in runs}
    groups = {
        "No further than another seed": [run for run in at if at[run] <= seed],
        "Between another seed and RLVR": [run for run in at if seed < at[run] < rlvr],
        "As far as RLVR or further": [run for run in at if at[run] >= max(rlvr, seed)],
    }
    said = [f"{words}: {learned.listed_means(place, members)}." for words, members in groups.items() if members]
    return f"By means (log ratio over six diagnostics) {yards}. {' '.join(said)}"


def _no_further(found: pd.DataFrame, run: str) -> bool:
    """Whether a setting is not shown to lie further from OPD's place than another seed: the interval holds 0."""
    wide = found.loc[found["panel"] == PLACE].pivot_table(index="seed", columns="row", values="value")
    return not seed_interval(wide[run] - wide[control.OTHER_SEED]).low > 0


def say_curve(found: pd.DataFrame) -> str:
    """Say how many kinds of run that the one curve had not seen lie on it.

    ``found``: from :func:`on_the_curve`.

    >>> rows = {"recipe": ["opd_code"] * 2 + ["opd_top25"] * 2 + ["opd_mathematics"]}
    >>> rows |= {"verdict": ["leaves", "leaves", "on the curve", "not decided", "not testable"]}
    >>> print(say_curve(pd.DataFrame(rows)))
    Held against runs that it had not seen, it has 1 of 2 kinds on it.
    That is, on it: top 25%; off it, in so many statistics: code only (2 of 2); not to be tested, for too few seeds or a
    coherence outside that of the toy's runs of OPD: mathematics only.
    """
    counts = curve_counts(found)
    tested = {run: n for run, n in counts.items() if n[1]}
    untested = [run for run in counts if run not in tested]
    why = "for too few seeds or a coherence outside that of the toy's runs of OPD"
    aside = f"not to be tested, {why}: {listed(untested)}" if untested else ""
    if not tested:
        return f"None of the runs that it had not seen can be held against it; {aside}."
    on = [run for run, n in tested.items() if one_curve.is_on(*n)]
    off = [f"{run} ({left} of {of})" for run, (left, of) in tested.items() if run not in on]
    said = [f"on it: {listed(on) if on else 'none'}"] + (
        [f"off it, in so many statistics: {listed(off)}"] if off else []
    )
    said = "; ".join([*said, aside] if aside else said)
    return f"Held against runs that it had not seen, it has {len(on)} of {len(tested)} kinds on it.\nThat is, {said}."
