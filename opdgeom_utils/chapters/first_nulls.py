"""The first regime beside runs that had nothing to learn: its OPD and RLVR, and their null objectives of a later day.

The archived runs of profile ``first_regime`` were made by older code. Profile ``first_regime_null`` trains their nulls
with today's, and one seed of OPD itself, which shows whether the two belong together. The rules are in LOG.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pandas as pd

from opdgeom_utils.chapters.committed_tables import tables_for
from opdgeom_utils.chapters.update_path import K
from opdgeom_utils.chapters.where import NULL_OBJECTIVES
from opdgeom_utils.claims import matching
from opdgeom_utils.claims.look_up import Tables
from opdgeom_utils.intervals import difference, further_seed, number
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.measures.noise import walks_of_runs
from opdgeom_utils.scopes import ATTENTION
from opdgeom_utils.vocabulary import label, listed, metric_of

ARCHIVED, PROFILE = "first_regime", "first_regime_null"
PAIRS = (("opd", 40), ("opd", 80), ("rlvr", 80))  # an objective, and the update at which it and its null are compared
SAME = 0.99  # confidence of the range in which one more seed of today's OPD must lie
MOST = 5  # of six diagnostics that must say so
FURTHER = 0.1  # so much more of their spaces must two seeds share than two of their null, to be told apart by it


@cache
def both() -> tuple[Tables, Tables]:
    """Return the archived tables and those of the null objectives."""
    return tables_for(ARCHIVED, [0, 1, 2, 3, 4]), tables_for(PROFILE, [0, 1, 2])


def runs_at(tables: Tables, step: int) -> pd.DataFrame:
    """One row per run that has a checkpoint at that update: sparsity over all tensors, the rest over attention."""
    rows = tables.geometry.loc[tables.geometry["step"] == step]
    attention, everything = (matching.summarise(rows, modules) for modules in (ATTENTION, None))
    return attention.assign(update_sparsity=everything["update_sparsity"].to_numpy())


def beside(archived: Tables, nulls: Tables) -> pd.DataFrame:
    """Hold each objective against its null and against control SFT, by the six diagnostics.

    Returns ``run, updates, metric``, the means ``own, null, control``, the interval of the difference of means ``low,
    high`` (Welch; 95% with an allowance for six diagnostics), ``apart`` (it leaves out 0) and ``nearer`` (the null lies
    nearer to its objective than control SFT does).
    """
    rows = []
    for name, step in PAIRS:
        then, now = (runs_at(tables, step).groupby("recipe") for tables in (archived, nulls))
        for metric in matching.METRICS:
            own, null, control = (
                runs.get_group(run)[metric].to_numpy(float)
                for runs, run in ((then, name), (now, NULL_OBJECTIVES[name]), (then, "control_sft"))
            )
            low, high = difference(own, null, among=len(matching.METRICS))
            means = own.mean(), null.mean(), control.mean()
            nearer = abs(means[0] - means[1]) < abs(means[0] - means[2])
            rows.append((label(name), step, metric, *means, low, high, low > 0 or high < 0, nearer))
    head = ["run", "updates", "metric", "own", "null", "control", "low", "high", "apart", "nearer"]
    return pd.DataFrame(rows, columns=head)


def same_world(archived: Tables, nulls: Tables) -> tuple[int, int]:
    """Count the numbers of today's OPD in which one more archived seed could have ended, and all of them."""
    inside = []
    for step in sorted({step for name, step in PAIRS if name == "opd"}):
        then, now = (runs_at(tables, step).groupby("recipe").get_group("opd") for tables in (archived, nulls))
        for metric in matching.METRICS:
            low, high = further_seed(then[metric].to_numpy(float), SAME)
            inside += [bool(low <= value <= high) for value in now[metric].to_numpy(float)]
    return sum(inside), len(inside)


def walk_at_end(tables: Tables, recipe: str) -> float:
    """How many times as long as noise makes it a recipe's update is, at its end, mean over seeds."""
    own = tables.geometry.loc[tables.geometry["recipe"] == recipe]
    return float(walks_of_runs(own.loc[own["step"] == own["step"].max()])["walk_ratio"].to_numpy(float).mean())


def shared_spaces(tables: Tables, recipe: str, step: int) -> tuple[float, float]:
    """Return what the leading spaces of two seeds have in common, left and right: Sim_4, mean over the pairs."""
    assert tables.measures is not None
    cell = {"recipe": recipe, "other_recipe": recipe, "step": step, "k": K, "scope": "attention"}
    left, right = (pick(tables.measures, quantity="overlap", side=side, **cell)["value"] for side in ("left", "right"))
    return float(left.to_numpy(float).mean()), float(right.to_numpy(float).mean())


def say_direction(archived: Tables, nulls: Tables) -> str:
    """Say whether two seeds share more of their spaces than two of their null do; begins with a space."""
    said, apart = [], []
    for run, step in (PAIRS[0], PAIRS[2]):
        null = NULL_OBJECTIVES[run]
        own, other = shared_spaces(archived, run, step), shared_spaces(nulls, null, step)
        apart += [mine - its >= FURTHER for mine, its in zip(own, other, strict=True)]
        said.append(
            f"two seeds of {label(run)} share {own[0]:.2f} and {own[1]:.2f} of their {K} leading directions (outputs, "
            f"inputs; update {step}), two of {label(null)} {other[0]:.2f} and {other[1]:.2f}"
        )
    return f" {'Direction tells them apart, by means' if all(apart) else 'By direction, by means'}: {'; '.join(said)}."


def say_short(table: pd.DataFrame, updates: int) -> str:
    """Say for OPD after so many updates what its null shows, for a sentence that is already begun.

    >>> rows = {"run": "OPD", "updates": 40, "apart": [True, False], "nearer": True, "metric": ["a", "b"]}
    >>> say_short(pd.DataFrame(rows), 40)
    'after 40 updates random credit, trained alike, is told apart from it by 1 of 2 diagnostics, and lies nearer to it
    than control SFT does by 2'
    """
    own = table.loc[(table["run"] == "OPD") & (table["updates"] == updates)]
    apart, nearer = int(own["apart"].sum()), int(own["nearer"].sum())
    return (
        f"after {updates} updates random credit, trained alike, is told apart from it by {apart} of {len(own)} "
        f"diagnostics, and lies nearer to it than control SFT does by {nearer}"
    )


def beside_regime(profile: str, updates: int) -> str:
    """As :func:`say_short`, of the committed tables; empty for another profile, or another number of updates.

    >>> beside_regime("toy", 40)
    ''
    """
    if profile != ARCHIVED or ("opd", updates) not in PAIRS:
        return ""
    return say_short(beside(*both()), updates)


def shown(table: pd.DataFrame, run: str, updates: int) -> pd.DataFrame:
    """Lay out one pair of :func:`beside` as text, a row for each diagnostic."""
    null = label(next(NULL_OBJECTIVES[name] for name, _ in PAIRS if label(name) == run))
    rows = []
    for row in table.loc[(table["run"] == run) & (table["updates"] == updates)].itertuples(index=False):
        metric = metric_of(str(row.metric))
        own, other, control = (number(float(value), metric.shown) for value in (row.own, row.null, row.control))
        factor = f"{number(float(row.null) / float(row.own), '.2f')} times"
        verdict = "told apart" if row.apart else "not told apart"
        rows.append((metric.title, own, other, factor, verdict, control))
    return pd.DataFrame(rows, columns=["diagnostic", run, null, "null over run", "difference", label("control_sft")])


def say(table: pd.DataFrame, inside: tuple[int, int], walk: float) -> str:
    """Say what the null objectives show beside the objectives, and whether today's code gives the archived numbers.

    The first line is the finding.
    ``table``, ``inside``, ``walk``: from :func:`beside`, :func:`same_world` and :func:`walk_at_end`, of random credit.
    """
    place, parts = [], []
    for name, updates in PAIRS:
        run, null = label(name), label(NULL_OBJECTIVES[name])
        own = table.loc[(table["run"] == run) & (table["updates"] == updates)]
        factors = np.divide(*own[["null", "own"]].to_numpy(float).T)
        few, many = (number(end, ".2f") for end in (float(factors.min()), float(factors.max())))
        apart, nearer = (int(np.count_nonzero(own[column].to_numpy(bool))) for column in ("apart", "nearer"))
        parts.append(
            f"{null} has {few} to {many} times {run}'s numbers after {updates} updates, and is told apart by "
            f"{apart} of {len(own)}; nearer to it than control SFT by {nearer}"
        )
        place.append(nearer >= MOST)
    finding = (
        "In the first regime OPD and RLVR lie, by the paper's diagnostics, where runs with nothing to learn lie"
        if all(place)
        else "In the first regime not every run lies where a run with nothing to learn does"
    )
    same = "the two may be compared" if inside[0] == inside[1] else "so compare with care: the code has changed"
    return (
        f"{finding}.\n{'. '.join(part[0].upper() + part[1:] for part in parts)}. Today's OPD ends inside the range of "
        f"the archived seeds in {inside[0]} of {inside[1]} numbers: {same}. Random credit's update is "
        f"{number(walk, '.2f')} times as long as noise makes it."
    )


def say_settings(table: pd.DataFrame, rows: pd.DataFrame, names: Mapping[str, str], updates: int) -> str:
    """Count the settings' numbers that lie further from OPD's mean than random credit's do.

    ``table``: from :func:`beside`. ``rows``: one row per run, ``recipe`` and the diagnostics. ``names``: the settings.

    >>> table = pd.DataFrame({"run": "OPD", "updates": 40, "metric": ["x"], "own": [1.0], "null": [1.2]})
    >>> rows = pd.DataFrame({"recipe": ["opd", "a", "b"], "x": [1.0, 1.1, 1.5]})
    >>> say_settings(table, rows, {"a": "A", "b": "B"}, 40)
    "Of the settings' 2 numbers 1 lie further from OPD than random credit's (B)."
    """
    own = table.loc[(table["run"] == "OPD") & (table["updates"] == updates)]
    reach = {str(m): (float(o), abs(float(n) - float(o))) for m, o, n in own[["metric", "own", "null"]].to_numpy()}
    settings = rows.loc[rows["recipe"].isin(list(names))]
    if settings.empty or not reach:
        return ""
    away = {
        (str(recipe), metric)
        for metric, (centre, far) in reach.items()
        for recipe, value in settings[["recipe", metric]].itertuples(index=False)
        if abs(value - centre) > far
    }
    who = [names[recipe] for recipe in names if any(recipe == other for other, _ in away)]
    return (
        f"Of the settings' {len(settings) * len(reach)} numbers {len(away)} lie further from OPD than random credit's"
        f"{f' ({listed(who)})' if who else ''}."
    )
