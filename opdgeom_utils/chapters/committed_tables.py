"""Where a chapter's numbers come from: the committed tables of the published profile, live runs for any other.

A chapter asks once, ``tables_for(profile, seeds)``, and gets the three result tables with a sentence that says what
they are. Under ``smoke`` the sentence says that the numbers are no evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from opdgeom_utils.errors import NotebookParameterError, StaleResultsError
from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.measures.run_measures import OVERLAPS, PARTS, measures_of
from opdgeom_utils.recipes import load_recipe, recipe_names
from opdgeom_utils.results import Tables, load_tables, tables_of
from opdgeom_utils.runs import load_or_train
from opdgeom_utils.scopes import HEADLINE

PUBLISHED = "toy"
SMOKE_LABEL = "smoke test, not evidence"


@dataclass(frozen=True)
class BookTables:
    """The result tables of one profile, cut to the seeds asked for, and where they come from in words."""

    geometry: pd.DataFrame
    training: pd.DataFrame
    accuracy: pd.DataFrame
    profile: str
    seeds: tuple[int, ...]
    source: str
    measures: pd.DataFrame | None = None


def tables_for(profile: str, seeds: Sequence[int]) -> BookTables:
    """Return the result tables of a profile for some seeds of every recipe.

    Parameters
    ----------
    profile
        ``toy``: the committed tables are read, and checked against today's recipes. Any other profile: its runs are
        opened, or trained first, and measured now.
    seeds
        Which seeds, each one of the profile's own.

    Raises
    ------
    StaleResultsError
        If the committed tables are missing or out of date.
    NotebookParameterError
        If no seed is given, or one that the profile does not have.
    """
    if profile == PUBLISHED:
        tables, origin = load_tables(profile), "committed tables"
        held = {int(seed) for seed in tables.accuracy["seed"]}
    else:
        held = {seed for name in recipe_names(profile) for seed in load_recipe(name, profile).seeds}
        tables, origin = None, "runs measured live"
    if not seeds or not set(seeds) <= held:
        raise NotebookParameterError(
            f"parameter seeds is {list(seeds)}; profile {profile!r} has {sorted(held)}. Choose one or more of these"
        )
    return only_seeds(tables or live_tables(profile, seeds), profile, seeds, origin)


def live_tables(profile: str, seeds: Sequence[int], recipes: Sequence[str] = HEADLINE) -> Tables:
    """Open or train some recipes of a profile, those of RQ1 unless others are named, and measure all of them."""
    recipes_here = [load_recipe(name, profile) for name in recipe_names(profile) if name in recipes]
    wanted = [(recipe.name, seed) for recipe in recipes_here for seed in recipe.seeds if seed in seeds]
    return tables_of([load_or_train(name, seed=seed, profile=profile) for name, seed in wanted])


def only_seeds(tables: Tables, profile: str, seeds: Sequence[int], origin: str) -> BookTables:
    """Keep these seeds of every table, and say in a sentence what the numbers rest on.

    Examples
    --------
    >>> frame = pd.DataFrame({"recipe": ["opd", "opd", "sft"], "seed": [0, 1, 0]})
    >>> kept = only_seeds(Tables(frame, frame, frame), "smoke", [0], "runs measured live")
    >>> len(kept.geometry), kept.seeds, kept.source
    (2, (0,), 'Profile smoke, 2 recipes, 1 seed, runs measured live: smoke test, not evidence.')
    """
    kept = tuple(sorted(set(seeds)))
    whole = (tables.geometry, tables.training, tables.accuracy)
    parts = [table.loc[table["seed"].isin(kept)].reset_index(drop=True) for table in whole]
    n_recipes = tables.accuracy["recipe"].nunique()
    label = f": {SMOKE_LABEL}" if profile == "smoke" else ""
    words = (
        f"Profile {profile}, {n_recipes} recipes, {len(kept)} {'seed' if len(kept) == 1 else 'seeds'}, {origin}{label}."
    )
    long = tables.measures
    measures = None if long is None else long.loc[long["seed"].isin(kept)].reset_index(drop=True)
    return BookTables(*parts, profile=profile, seeds=kept, source=words, measures=measures)


def measures_for(tables: BookTables, recipes: Sequence[str], parts: Sequence[str] = (*PARTS, OVERLAPS)) -> pd.DataFrame:
    """Return the measures of the profile and the seeds of ``tables``.

    Parameters
    ----------
    tables
        The chapter's result tables. Where they hold measures, these are the answer.
    recipes
        Runs to open, or train first, where nothing is committed; those that the profile has not are left out.
    parts
        What to measure of them; ``path, nulls, function, moments, overlaps``. What was measured before is read.

    Raises
    ------
    StaleResultsError
        If the published profile's measures have not been made.
    """
    if tables.measures is not None:
        return tables.measures
    if tables.profile == PUBLISHED:
        raise StaleResultsError(
            f"measures.parquet is not in data/results, expected the measures of {PUBLISHED}. Run `make runs`"
        )
    names = [name for name in recipe_names(tables.profile) if name in recipes]
    wanted = [(name, seed) for name in names for seed in load_recipe(name, tables.profile).seeds]
    runs = [load_or_train(n, seed=s, profile=tables.profile) for n, s in wanted if s in tables.seeds]
    return measures_of(runs, parts)


def with_interval(rows: pd.DataFrame, values: Sequence[str], by: str = "recipe") -> pd.DataFrame:
    """Fold one row per seed into mean and 95% t-interval, in long form.

    Parameters
    ----------
    rows
        One row for each (group, seed).
    values
        Columns to fold.
    by
        The column that names the groups; their first appearance decides the order.

    Returns
    -------
    DataFrame
        ``<by>, quantity, mean, low, high, n``; ``low`` and ``high`` are ``nan`` where there is one value only.

    Examples
    --------
    Two seeds, 0 and 2: mean 1, standard error 1, and the t-value of one degree of freedom is 12.706.

    >>> rows = pd.DataFrame({"recipe": ["opd", "opd"], "seed": [0, 1], "gain": [0.0, 2.0]})
    >>> with_interval(rows, ["gain"]).round(3).values.tolist()
    [['opd', 'gain', 1.0, -11.706, 13.706, 2]]
    """
    folded = []
    for group, part in rows.groupby(by, sort=False):
        for value in values:
            interval = seed_interval(part[value].to_numpy(float))
            folded.append((group, value, interval.mean, interval.low, interval.high, interval.n))
    return pd.DataFrame(folded, columns=[by, "quantity", "mean", "low", "high", "n"])


def say_interval(mean: float, low: float, high: float, *, percent: bool = False, digits: int = 1) -> str:
    """Write a mean with its interval.

    Examples
    --------
    >>> say_interval(0.5, 0.4, 0.6, percent=True)
    '50.0% (40.0 to 60.0)'
    >>> say_interval(6.21, math.nan, math.nan)
    '6.2 (one value, no interval)'
    """
    scale, sign = (100, "%") if percent else (1, "")
    mean_text = f"{scale * mean:.{digits}f}{sign}"
    if math.isnan(low):
        return f"{mean_text} (one value, no interval)"
    return f"{mean_text} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"
