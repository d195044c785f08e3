"""Every statistic against coherence: whether all runs lie on one curve, or an objective leaves it.

Runs of one rate from one anchor have, after equally many updates, the same noise walk and the same straight line behind
them; coherence says where between the two an update lies. Runs that differ in nothing but how much signal an update has
(:data:`LADDER`) draw a curve. What an objective adds is what leaves it. The rule stands in LOG.md, before its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.update_path import early
from opdgeom_utils.chapters.where import at_place
from opdgeom_utils.charts.palette import in_order
from opdgeom_utils.intervals import number, seed_interval
from opdgeom_utils.measures.noise import walk_of
from opdgeom_utils.metrics.noise_walk import coherence_of
from opdgeom_utils.vocabulary import label, metric_of

LADDER = (
    "opd_random_credit", "opd_64x8", "opd_full_vocab_64x8", "opd_128", "opd_full_vocab_128", "opd", "opd_full_vocab",
)  # fmt: skip
ASKED = ("rlvr", "rlvr_random_reward", "control_sft")
OF_GEOMETRY = (
    "update_sparsity", "left_angle_mean_deg", "right_angle_mean_deg", "normalized_spectral_shift", "principal_overlap",
    "low_magnitude_overlap", "stable_rank",
)  # fmt: skip
SIDES = {"right": "similarity to the end at a fifth, right", "left": "similarity to the end at a fifth, left"}
LEAST = 0.1  # of the curve's own range: less is no way off it
MIN_SEEDS = 3
KEYS = ["recipe", "seed"]


def against_coherence(tables: BookTables, updates: int, *, k: int = 4) -> pd.DataFrame:
    """One row for each run and statistic, with the run's coherence at the same update.

    Parameters
    ----------
    tables
        A profile's tables, with measures for the two statistics of the path.
    updates
        Where the runs are compared. The path's statistics are each run's own, at its own end.
    k
        Dimension of the spaces whose similarity to the end is taken.

    Returns
    -------
    DataFrame
        ``recipe, seed, statistic`` (in words), ``metric, coherence, value``.
    """
    recipes = [name for name in (*LADDER, *ASKED) if name in set(tables.geometry["recipe"])]
    here = tables.geometry[tables.geometry["recipe"].isin(recipes) & (tables.geometry["step"] == updates)]
    own = tables.geometry[tables.geometry["recipe"].isin(recipes)]
    last = own[own["step"] == own.groupby("recipe")["step"].transform("max")]
    ends = at_place(replace(tables, geometry=here), "final", recipes)
    rows = [
        run | {"statistic": metric_of(metric).title, "metric": metric, "value": value, "coherence": c}
        for metric in OF_GEOMETRY
        for run, value, c in _valued(ends.set_index(KEYS)[metric], coherence_of_runs(here))
    ]
    if tables.measures is not None:
        for side, words in SIDES.items():
            found = early(tables.measures, side, k, recipes)
            names = {label(name): name for name in recipes}
            found = found.assign(recipe=found["recipe"].map(names)).set_index(KEYS)["value"]
            rows += [
                run | {"statistic": f"{words} (K = {k})", "metric": "sim_to_end", "value": value, "coherence": c}
                for run, value, c in _valued(found, coherence_of_runs(last))
            ]
    return pd.DataFrame(rows)


def coherence_of_runs(geometry: pd.DataFrame) -> pd.Series:
    """Coherence of each run's whole update over its matrices, by (recipe, seed); one checkpoint of each run."""
    moved = geometry.loc[geometry["update_norm"].notna()]
    found = {}
    for (profile, recipe, seed, step), own in moved.groupby(["profile", "recipe", "seed", "step"]):
        walk = walk_of(str(recipe), str(profile), int(step))
        rms = float(np.sqrt(own["update_norm"].pow(2).sum() / own["n_entries"].sum()))
        found[recipe, seed] = coherence_of(rms, walk.rms, walk.ballistic)
    return pd.Series(found)


def distances(points: pd.DataFrame) -> pd.DataFrame:
    """Distance of each objective from the curve of the ladder, statistic by statistic.

    Returns
    -------
    DataFrame
        ``statistic, metric, recipe, mean, low, high`` (95% interval over seeds), ``span``, the range of the curve, and
        ``verdict``: *leaves*, *on the curve* or *not testable*.

    Examples
    --------
    The ladder rises from 0 to 1; an objective half way along it lies at 0.8, which is 0.3 above.

    >>> rows = [("opd_random_credit", 0, 0.0, 0.0), ("opd", 0, 1.0, 1.0), *(("rlvr", s, 0.5, 0.8) for s in range(3))]
    >>> points = pd.DataFrame(rows, columns=["recipe", "seed", "coherence", "value"])
    >>> distances(points.assign(statistic="x", metric="x"))[["recipe", "mean", "verdict"]].round(9).values.tolist()
    [['rlvr', 0.3, 'leaves']]
    """
    rows = []
    for (statistic, metric), own in points.groupby(["statistic", "metric"], sort=False):
        curve = curve_of(own)
        span = float(np.ptp(curve["value"]))
        for recipe in (name for name in ASKED if name in set(own["recipe"])):
            runs = own[own["recipe"] == recipe]
            inside = runs["coherence"].between(curve["coherence"].min(), curve["coherence"].max())
            off = seed_interval(runs["value"] - np.interp(runs["coherence"], curve["coherence"], curve["value"]))
            verdict = "on the curve"
            if not inside.all() or off.n < MIN_SEEDS:
                verdict = "not testable"
            elif (off.low > 0 or off.high < 0 or off.low == off.high != 0) and abs(off.mean) >= LEAST * span:
                verdict = "leaves"
            row = {"statistic": statistic, "metric": metric, "recipe": recipe, "span": span, "verdict": verdict}
            rows.append(row | {"mean": off.mean, "low": off.low, "high": off.high})
    return pd.DataFrame(rows, columns=["statistic", "metric", "recipe", "span", "verdict", "mean", "low", "high"])


def curve_of(points: pd.DataFrame) -> pd.DataFrame:
    """Means of the ladder's runs, one row per recipe, ordered by coherence."""
    ladder = points[points["recipe"].isin(LADDER)]
    means = ladder.groupby("recipe")[["coherence", "value"]].mean().sort_values("coherence").reset_index()
    return means.assign(series="the ladder")


def as_table(found: pd.DataFrame) -> pd.DataFrame:
    """Distances as a table to read: a line for each statistic, a column for each objective.

    >>> row = {"statistic": "x", "metric": "x", "recipe": "rlvr", "mean": 0.3, "low": 0.2, "high": 0.4, "span": 1.0}
    >>> as_table(pd.DataFrame([row | {"verdict": "leaves"}])).values.tolist()
    [['x', '0.3 (30% of the range): leaves']]
    """
    lines = []
    for statistic, own in found.groupby("statistic", sort=False):
        line = {"statistic": statistic}
        for recipe, metric, mean, span, verdict in own[["recipe", "metric", "mean", "span", "verdict"]].to_numpy():
            share = f"{abs(mean) / span:.0%} of the range" if span > 0 else "no range"
            line[label(recipe)] = f"{number(mean, metric_of(metric).shown)} ({share}): {verdict}"
        lines.append(line)
    return pd.DataFrame(lines)


def say(found: pd.DataFrame) -> str:
    """Say which objectives leave the curve, and where.

    >>> row = {"statistic": "x", "recipe": "rlvr", "verdict": "leaves"}
    >>> say(pd.DataFrame([row, row | {"statistic": "y", "verdict": "on the curve"}]))
    'RLVR leaves the curve in 1 of 2 statistics (x).'
    """
    names = {label(recipe): recipe for recipe in found["recipe"].unique()}
    said = []
    for shown in in_order(names):
        own = found[found["recipe"] == names[shown]]
        tested, left = own[own["verdict"] != "not testable"], own[own["verdict"] == "leaves"]["statistic"].tolist()
        name = shown[:1].upper() + shown[1:]
        if tested.empty:
            said.append(f"{name} cannot be tested.")
        else:
            where = f" ({'; '.join(left)})" if left else ""
            said.append(f"{name} leaves the curve in {len(left)} of {len(tested)} statistics{where}.")
    return " ".join(said)


def _valued(values: pd.Series, coherences: pd.Series) -> list[tuple[dict[str, object], float, float]]:
    """Return the runs that have both numbers."""
    pairs: Sequence[tuple[str, int]] = [key for key in values.index if key in coherences.index]
    return [({"recipe": r, "seed": s}, float(values[r, s]), float(coherences[r, s])) for r, s in pairs]
