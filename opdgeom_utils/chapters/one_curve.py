"""Every statistic against coherence: whether all runs lie on one curve, or one of them leaves it.

Runs of one rate from one anchor have, after equally many updates, the same noise walk and the same straight line behind
them; coherence says where between the two an update lies. It is taken over the matrices that the statistic is of. Runs
of OPD that differ in nothing but how much signal an update has (:data:`LADDER`) draw a curve; other objectives, and
runs with nothing to learn, are held against it. The rule, and the one that it replaced, stand in LOG.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from opdgeom_utils.chapters import seen
from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.update_path import K, early
from opdgeom_utils.chapters.where import at_place
from opdgeom_utils.charts.palette import in_order
from opdgeom_utils.intervals import number, seed_interval
from opdgeom_utils.measures.noise import walks_of_runs
from opdgeom_utils.scopes import ATTENTION
from opdgeom_utils.vocabulary import label, listed, metric_of

LADDER = ("opd_64x8", "opd_full_vocab_64x8", "opd_128", "opd_full_vocab_128", "opd", "opd_full_vocab")
LEARN, NOTHING = ("rlvr", "control_sft", "control_sft_64"), ("opd_random_credit", "rlvr_random_reward")
ASKED = (*LEARN, *NOTHING)
ALSO = "opd_random_credit_128"  # drawn; too few seeds to be asked
OF_GEOMETRY = (
    "update_sparsity", "left_angle_mean_deg", "right_angle_mean_deg", "normalized_spectral_shift", "principal_overlap",
    "low_magnitude_overlap", "stable_rank",
)  # fmt: skip
SIDES = {"right": "similarity to the end at a fifth, right", "left": "similarity to the end at a fifth, left"}
OVER_ALL = ("update_sparsity",)  # statistics of all tensors; the others are of attention matrices
LEAST = 0.1  # of the curve's own range: less is no way off it
FEW, OF = 2, 9  # whoever leaves in no more of so many statistics is on one curve with OPD
MIN_SEEDS = 3
UNTESTED = "it has too few seeds, or its coherence lies outside that of OPD's runs in these tables"
TESTED = ("leaves", "on the curve", "not decided")


def against_coherence(tables: BookTables, updates: int, asked: Sequence[str] = (*ASKED, ALSO)) -> pd.DataFrame:
    """One row for each run and statistic, with the coherence of the same matrices at the same update.

    Parameters
    ----------
    tables
        A profile's tables, with measures for the two statistics of the path; without measures these are left out.
    updates
        Where the runs are compared. The path's statistics are each run's own, at its own end.
    asked
        The recipes beside the ladder's.

    Returns
    -------
    DataFrame
        ``recipe, seed, statistic`` (in words), ``metric, coherence, value``.
    """
    recipes = [name for name in (*LADDER, *asked) if name in set(tables.geometry["recipe"])]
    own = tables.geometry.loc[tables.geometry["recipe"].isin(recipes)]
    here = own.loc[own["step"] == updates]
    last = own.loc[own["step"] == own.groupby("recipe")["step"].transform("max")]
    ends, whole = at_place(replace(tables, geometry=here), "final", recipes), _coherence(here, None)
    of_attention = _coherence(here, ATTENTION)
    rows = [
        row | {"statistic": metric_of(metric).title, "metric": metric}
        for metric in OF_GEOMETRY
        for row in _valued(ends, metric, whole if metric in OVER_ALL else of_attention)
    ]
    names, at = {label(name): name for name in recipes}, _coherence(last, ATTENTION)
    for side, words in SIDES.items():
        if tables.measures is None:
            break
        found = early(tables.measures, side, K, recipes)
        found = found.assign(recipe=[names[shown] for shown in found["recipe"]])
        said = {"statistic": f"{words} (K = {K})", "metric": "sim_to_end"}
        rows += [row | said for row in _valued(found, "value", at)]
    return pd.DataFrame(rows)


def _coherence(geometry: pd.DataFrame, modules: tuple[str, ...] | None) -> dict[tuple[str, int], float]:
    """Coherence of each run over the matrices of some kinds, or over all tensors."""
    own = geometry if modules is None else geometry.loc[geometry["module"].isin(list(modules))]
    return walks_of_runs(own)["coherence"].to_dict()


def distances(points: pd.DataFrame, *, own_range: bool = False, asked: Sequence[str] = ASKED) -> pd.DataFrame:
    """Distance of each run that is asked from the curve of OPD's ladder, statistic by statistic.

    ``own_range``: take the tenth of the curve's own range, without random credit, which is the stricter question.

    Returns
    -------
    DataFrame
        ``statistic, metric, recipe, mean, low, high`` (95% interval over seeds), ``span``, the range of the curve and
        of random credit together, and ``verdict``: *leaves*; *on the curve*, less than a tenth of the range away; *not
        decided*, further but the seeds disagree; or *not testable*.

    Examples
    --------
    The ladder rises from 0 to 1; an objective half way along it lies at 0.8, which is 0.3 above.

    >>> rows = [("opd_128", 0, 0.0, 0.0), ("opd", 0, 1.0, 1.0), *(("rlvr", s, 0.5, 0.8) for s in range(3))]
    >>> points = pd.DataFrame(rows, columns=["recipe", "seed", "coherence", "value"])
    >>> distances(points.assign(statistic="x", metric="x"))[["recipe", "mean", "verdict"]].round(9).values.tolist()
    [['rlvr', 0.3, 'leaves']]
    """
    rows = []
    for statistic, metric in points[["statistic", "metric"]].drop_duplicates().itertuples(index=False):
        own = points.loc[points["statistic"] == statistic]
        curve = curve_of(own)
        along, heights = (curve[column].to_numpy(float) for column in ("coherence", "value"))
        null = own.loc[own["recipe"] == NOTHING[0], "value"].to_numpy(float)
        span = float(np.ptp([*heights, null.mean()] if len(null) and not own_range else heights))
        for recipe in (name for name in asked if name in set(own["recipe"])):
            at, values = (own.loc[own["recipe"] == recipe, c].to_numpy(float) for c in ("coherence", "value"))
            off = seed_interval(values - np.interp(at, along, heights))
            far = abs(off.mean) >= LEAST * span
            verdict = "leaves" if far and seen.excludes(off, 0.0) else "not decided" if far else "on the curve"
            if at.min() < along.min() or at.max() > along.max() or off.n < MIN_SEEDS:
                verdict = "not testable"
            row = {"statistic": statistic, "metric": metric, "recipe": recipe, "span": span, "verdict": verdict}
            rows.append(row | {"mean": off.mean, "low": off.low, "high": off.high})
    return pd.DataFrame(rows, columns=["statistic", "metric", "recipe", "span", "verdict", "mean", "low", "high"])


def curve_of(points: pd.DataFrame) -> pd.DataFrame:
    """Means of the ladder's runs, one row per recipe, ordered by coherence."""
    ladder = points.loc[points["recipe"].isin(LADDER)]
    means = ladder.groupby("recipe").agg({"coherence": "mean", "value": "mean"}).reset_index()
    return means.sort_values(by="coherence", ignore_index=True)


def scatter(points: pd.DataFrame) -> float:
    """How far OPD's rungs lie from the curve of the others at most, as a share of its own range; ends are left out.

    >>> rows = [("opd_128", 0.0, 0.0), ("opd_64x8", 0.5, 0.7), ("opd", 1.0, 1.0)]
    >>> points = pd.DataFrame(rows, columns=["recipe", "coherence", "value"]).assign(statistic="x")
    >>> round(scatter(points), 9)
    0.2
    """
    shares = [0.0]
    for _, own in points.groupby("statistic"):
        curve = curve_of(own)
        along, heights = (curve[column].to_numpy(float) for column in ("coherence", "value"))
        for rung in range(1, len(along) - 1):
            there = np.interp(along[rung], np.delete(along, rung), np.delete(heights, rung))
            shares.append(abs(heights[rung] - there) / np.ptp(heights))
    return float(max(shares))


def as_table(found: pd.DataFrame) -> pd.DataFrame:
    """Distances as parts of the range, to read: a line for each statistic, a column for each objective.

    >>> row = {"statistic": "x", "metric": "x", "recipe": "rlvr", "mean": 0.3, "low": 0.2, "high": 0.4, "span": 1.0}
    >>> as_table(pd.DataFrame([row | {"verdict": "leaves"}])).values.tolist()
    [['x', '+30% leaves']]
    """
    lines: dict[str, dict[str, str]] = {}
    for statistic, recipe, mean, span, verdict in found[["statistic", "recipe", "mean", "span", "verdict"]].to_numpy():
        share = number(mean / span, "+.0%") if span > 0 else "no range"
        line = lines.setdefault(statistic, {"statistic": statistic})
        line[label(recipe)] = f"{share} {verdict.removesuffix(' the curve')}"
    return pd.DataFrame(list(lines.values()))


def is_on(left: int, tested: int) -> bool:
    """Whether a run that leaves the curve in so many of the statistics tested is on it.

    >>> is_on(2, 9), is_on(2, 7)
    (True, False)
    """
    return left * OF <= FEW * tested


def say(found: pd.DataFrame, strict: pd.DataFrame | None = None) -> str:
    """Say whether what learns lies on one curve and what has nothing to learn leaves it; then which run leaves where.

    The first line is the answer. ``strict``: the same by the curve's own range, of which the counts are said.

    >>> row = {"statistic": "x", "recipe": "rlvr", "verdict": "on the curve"}
    >>> off = row | {"recipe": "rlvr_random_reward", "verdict": "leaves"}
    >>> print(say(pd.DataFrame([row, off, off | {"statistic": "y", "verdict": "not decided"}])))
    **To a tenth of what separates OPD from random credit, what learns lies on one curve, whatever its objective.** RLVR
    leaves it in 0 of 1; with nothing to learn, random reward in 1 of 2 statistics.
    Random reward: x; 1 not decided.
    """
    names, left, tested, where = {label(recipe): recipe for recipe in found["recipe"].tolist()}, {}, {}, []
    for shown in in_order(names):
        own = found.loc[found["recipe"] == names[shown]]
        verdicts = own.loc[own["verdict"].isin(TESTED), "verdict"].tolist()
        off = own.loc[own["verdict"] == TESTED[0], "statistic"].tolist()
        left[shown], tested[shown] = len(off), len(verdicts)
        name, undecided = shown[:1].upper() + shown[1:], verdicts.count(TESTED[2])
        off += [f"{undecided} not decided"] if undecided else []
        where += [f"{name}: {'; '.join(off)}."] if off else []
        where += [] if verdicts else [f"{name} cannot be tested: {UNTESTED}."]
    learn, nothing = ([n for n in map(label, kind) if tested.get(n)] for kind in (LEARN, NOTHING))
    leaves = {name: f"in {left[name]} of {tested[name]}" for name in (*learn, *nothing)}
    if learn:  # the verb stands once, with the first
        leaves[learn[0]] = f"leaves it {leaves[learn[0]]}"
    groups = {"": learn, "with nothing to learn, ": nothing}
    said = "; ".join(head + listed(f"{n} {leaves[n]}" for n in names) for head, names in groups.items() if names)
    lead = _lead([is_on(left[n], tested[n]) for n in learn], [2 * left[n] > tested[n] for n in nothing])
    return f"{lead}{said} statistics.\n{' '.join(where)}{_strictly(strict)}" if said else " ".join(where)


def _strictly(strict: pd.DataFrame | None) -> str:
    """Say in how many statistics what learns leaves the curve by a tenth of its own range; begins with a space.

    >>> _strictly(pd.DataFrame({"recipe": ["rlvr", "rlvr", "opd_random_credit"], "verdict": ["leaves", "x", "leaves"]}))
    " By a tenth of the range of OPD's runs alone: RLVR 1."
    """
    if strict is None:
        return ""
    left = strict.loc[strict["verdict"] == TESTED[0], "recipe"].tolist()
    counts = listed(f"{label(name)} {left.count(name)}" for name in LEARN if name in set(strict["recipe"]))
    return f" By a tenth of the range of OPD's runs alone: {counts}."


def _lead(on: list[bool], off: list[bool]) -> str:
    """Say in one sentence what the counts come to; ends with a space.

    >>> _lead([True, True], [True])
    '**To a tenth of what separates OPD from random credit, what learns lies on one curve, whatever its objective, and
    what has nothing to learn leaves it.** '
    >>> _lead([True, False], [True]), _lead([], [])
    ('**Not all that learns lies on one curve.** ', '')
    """
    if not on:
        return ""
    if not all(on):
        return "**Not all that learns lies on one curve.** "
    more = ", and what has nothing to learn leaves it" if off and all(off) else ""
    what = "what learns lies on one curve, whatever its objective"
    return f"**To a tenth of what separates OPD from random credit, {what}{more}.** "


def _valued(table: pd.DataFrame, column: str, at: Mapping[tuple[str, int], float]) -> list[dict[str, object]]:
    """Return the runs that have both a value and a coherence."""
    rows = table[["recipe", "seed", column]].itertuples(index=False)
    runs = ((str(recipe), int(seed), value) for recipe, seed, value in rows if (recipe, seed) in at)
    return [{"recipe": r, "seed": s, "coherence": at[r, s], "value": float(value)} for r, s, value in runs]
