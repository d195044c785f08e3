"""Every statistic against coherence: whether all runs lie on one curve, or an objective leaves it.

Runs of one rate from one anchor have, after equally many updates, the same noise walk and the same straight line behind
them; coherence says where between the two an update lies. Runs that differ in nothing but how much signal an update has
(:data:`LADDER`) draw a curve. What an objective adds is what leaves it. The rule stands in LOG.md, before its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from opdgeom_utils.vocabulary import label, metric_of

LADDER = (
    "opd_random_credit", "opd_64x8", "opd_full_vocab_64x8", "opd_128", "opd_full_vocab_128", "opd", "opd_full_vocab",
)  # fmt: skip
WITHOUT_SIGNAL, WITH_SIGNAL = "opd_random_credit_128", "opd_128"  # of one batch, both without coherence
ASKED = ("rlvr", "rlvr_random_reward", "control_sft", "control_sft_64")
OF_GEOMETRY = (
    "update_sparsity", "left_angle_mean_deg", "right_angle_mean_deg", "normalized_spectral_shift", "principal_overlap",
    "low_magnitude_overlap", "stable_rank",
)  # fmt: skip
LADDERS = "the ladder of runs that differ only in how much signal an update has"
SIDES = {"right": "similarity to the end at a fifth, right", "left": "similarity to the end at a fifth, left"}
LEAST = 0.1  # of the curve's own range: less is no way off it
MIN_SEEDS = 3
UNTESTED = "it has too few seeds, or its coherence lies outside that of the ladder's runs in these tables"
TESTED = ("leaves", "on the curve", "not decided")


def against_coherence(tables: BookTables, updates: int) -> pd.DataFrame:
    """One row for each run and statistic, with the run's coherence at the same update.

    Parameters
    ----------
    tables
        A profile's tables, with measures for the two statistics of the path.
    updates
        Where the runs are compared. The path's statistics are each run's own, at its own end.

    Returns
    -------
    DataFrame
        ``recipe, seed, statistic`` (in words), ``metric, coherence, value``.
    """
    recipes = [name for name in (*LADDER, WITHOUT_SIGNAL, *ASKED) if name in set(tables.geometry["recipe"])]
    own = tables.geometry.loc[tables.geometry["recipe"].isin(recipes)]
    here = own.loc[own["step"] == updates]
    last = own.loc[own["step"] == own.groupby("recipe")["step"].transform("max")]
    ends, at = at_place(replace(tables, geometry=here), "final", recipes), walks_of_runs(here)["coherence"].to_dict()
    rows = [
        row | {"statistic": metric_of(metric).title, "metric": metric}
        for metric in OF_GEOMETRY
        for row in _valued(ends, metric, at)
    ]
    names, at = {label(name): name for name in recipes}, walks_of_runs(last)["coherence"].to_dict()
    for side, words in SIDES.items():
        if tables.measures is None:
            break
        found = early(tables.measures, side, K, recipes)
        found = found.assign(recipe=[names[shown] for shown in found["recipe"]])
        said = {"statistic": f"{words} (K = {K})", "metric": "sim_to_end"}
        rows += [row | said for row in _valued(found, "value", at)]
    return pd.DataFrame(rows)


def distances(points: pd.DataFrame) -> pd.DataFrame:
    """Distance of each objective from the curve of the ladder, statistic by statistic.

    Returns
    -------
    DataFrame
        ``statistic, metric, recipe, mean, low, high`` (95% interval over seeds), ``span``, the range of the curve, and
        ``verdict``: *leaves*; *on the curve*, less than a tenth of the range away; *not decided*, further but the seeds
        disagree; or *not testable*.

    Examples
    --------
    The ladder rises from 0 to 1; an objective half way along it lies at 0.8, which is 0.3 above.

    >>> rows = [("opd_random_credit", 0, 0.0, 0.0), ("opd", 0, 1.0, 1.0), *(("rlvr", s, 0.5, 0.8) for s in range(3))]
    >>> points = pd.DataFrame(rows, columns=["recipe", "seed", "coherence", "value"])
    >>> distances(points.assign(statistic="x", metric="x"))[["recipe", "mean", "verdict"]].round(9).values.tolist()
    [['rlvr', 0.3, 'leaves']]
    """
    rows = []
    for statistic, metric in points[["statistic", "metric"]].drop_duplicates().itertuples(index=False):
        own = points.loc[points["statistic"] == statistic]
        curve = curve_of(own)
        along, heights = (curve[column].to_numpy(float) for column in ("coherence", "value"))
        span = float(np.ptp(heights))
        for recipe in (name for name in ASKED if name in set(own["recipe"])):
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


def gaps_without_coherence(points: pd.DataFrame) -> pd.DataFrame:
    """Whether the ladder is one curve: what OPD and random credit on as many prompts differ in at no coherence.

    Returns
    -------
    DataFrame
        ``statistic``, ``gap`` (OPD less random credit), ``verdict``: *not one curve* where the gap is larger than both
        ranges over seeds together and than a tenth of the curve's range, else *one curve*; and ``nearer``, the one of
        the two that RLVR is nearer to; ``seeds``, the fewer of the two. Without two seeds of both there is no row.

    Examples
    --------
    >>> rows = [("opd_128", 5.0), ("opd_128", 5.2), ("opd_random_credit_128", 1.0), ("opd_random_credit_128", 1.1)]
    >>> points = pd.DataFrame([*rows, ("rlvr", 4.0)], columns=["recipe", "value"])
    >>> found = gaps_without_coherence(points.assign(statistic="x", coherence=0.0))
    >>> found[["gap", "verdict", "nearer"]].round(9).values.tolist()
    [[4.05, 'not one curve', 'opd_128']]
    """
    rows = []
    for statistic, own in points.groupby("statistic", sort=False):
        ends = [own.loc[own["recipe"] == name, "value"].to_numpy(float) for name in (WITH_SIGNAL, WITHOUT_SIGNAL)]
        if min(map(len, ends)) < 2:
            continue
        (high, low), spread = map(np.mean, ends), sum(map(np.ptp, ends))
        gap, span = float(high - low), float(np.ptp(curve_of(own)["value"].to_numpy(float)))
        apart = abs(gap) > max(spread, LEAST * span)
        rlvr = float(own.loc[own["recipe"] == "rlvr", "value"].mean())
        nearer = WITH_SIGNAL if abs(rlvr - high) < abs(rlvr - low) else WITHOUT_SIGNAL
        rows.append({"statistic": statistic, "gap": gap, "verdict": "not one curve" if apart else "one curve"})
        rows[-1] |= {"nearer": nearer if np.isfinite(rlvr) else "", "seeds": min(map(len, ends))}
    return pd.DataFrame(rows, columns=["statistic", "gap", "verdict", "nearer", "seeds"])


def say_gaps(gaps: pd.DataFrame) -> str:
    """Say whether the ladder is one curve, and what that takes from a verdict on RLVR; nothing without gaps.

    >>> row = {"statistic": "x", "gap": 1.0, "verdict": "not one curve", "nearer": "opd_128", "seeds": 2}
    >>> for said in say_gaps(pd.DataFrame([row])).split(" (2 seeds each). ")[1].split(": "):
    ...     print(said)
    RLVR lies nearer to that OPD than to random credit in 1 of them
    how far it is from the curve may be how far any run is that learns.
    """
    if gaps.empty:
        return ""
    apart = gaps.loc[gaps["verdict"] == "not one curve"]
    both = "\nOPD and random credit, both on 128 prompts an update and without coherence, differ in"
    many = f"{len(apart)} of {len(gaps)} statistics ({gaps['seeds'].min()} seeds each)."
    if apart.empty:
        return f"**{LADDERS[0].upper()}{LADDERS[1:]} is one curve at its lower end.**{both} {many}"
    said = f"**Coherence is not all that a ruler sees: {LADDERS} is not one curve.**{both} {many}"
    if not all(gaps["nearer"].tolist()):
        return said
    near = apart["nearer"].tolist().count(WITH_SIGNAL)
    alone = ": how far it is from the curve may be how far any run is that learns" if 2 * near > len(apart) else ""
    return f"{said} RLVR lies nearer to that OPD than to random credit in {near} of them{alone}."


def as_table(found: pd.DataFrame) -> pd.DataFrame:
    """Distances as a table to read: a line for each statistic, a column for each objective.

    >>> row = {"statistic": "x", "metric": "x", "recipe": "rlvr", "mean": 0.3, "low": 0.2, "high": 0.4, "span": 1.0}
    >>> as_table(pd.DataFrame([row | {"verdict": "leaves"}])).values.tolist()
    [['x', '0.3 (30% of the range): leaves']]
    """
    lines: dict[str, dict[str, str]] = {}
    columns = ["statistic", "recipe", "metric", "mean", "span", "verdict"]
    for statistic, recipe, metric, mean, span, verdict in found[columns].itertuples(index=False):
        share = f"{number(abs(mean) / span, '.0%')} of the range" if span > 0 else "no range"
        shown = number(mean, unit="points") if metric_of(metric).percent else number(mean, metric_of(metric).shown)
        line = lines.setdefault(statistic, {"statistic": statistic})
        line[label(recipe)] = f"{shown} ({share}): {verdict}"
    return pd.DataFrame(list(lines.values()))


def say(found: pd.DataFrame, *, which: bool = True) -> str:
    """Say in how many statistics each objective leaves the curve, and ``which``.

    >>> row = {"statistic": "x", "recipe": "rlvr", "verdict": "leaves"}
    >>> say(pd.DataFrame([row, row | {"statistic": "y", "verdict": "not decided"}]))
    'RLVR leaves the curve in 1 of 2 statistics (x; 1 not decided).'
    """
    names, said = {label(recipe): recipe for recipe in found["recipe"].tolist()}, []
    for shown in in_order(names):
        own = found.loc[found["recipe"] == names[shown]]
        tested = own.loc[own["verdict"].isin(TESTED), "verdict"].tolist()
        left = own.loc[own["verdict"] == TESTED[0], "statistic"].tolist()
        open_ = f"{tested.count(TESTED[2])} not decided" if TESTED[2] in tested else ""
        where = "; ".join(filter(None, [*(left if which and len(left) < len(tested) else []), open_]))
        name = shown[:1].upper() + shown[1:]
        many = f"{name} leaves the curve in {len(left)} of {len(tested)} statistics{f' ({where})' if where else ''}."
        said.append(many if tested else f"{name} cannot be tested: {UNTESTED}.")
    return " ".join(said)


def _valued(table: pd.DataFrame, column: str, at: Mapping[tuple[str, int], float]) -> list[dict[str, object]]:
    """Return the runs that have both a value and a coherence."""
    rows = table[["recipe", "seed", column]].itertuples(index=False)
    runs = ((str(recipe), int(seed), value) for recipe, seed, value in rows if (recipe, seed) in at)
    return [{"recipe": r, "seed": s, "coherence": at[r, s], "value": float(value)} for r, s, value in runs]
