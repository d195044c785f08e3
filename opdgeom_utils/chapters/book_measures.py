"""Where a chapter gets the long table: committed for the published profile, measured live for another."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from opdgeom_utils.chapters.book_tables import PUBLISHED, BookTables
from opdgeom_utils.errors import StaleResultsError
from opdgeom_utils.measures.run_measures import OVERLAPS, PARTS, measures_of
from opdgeom_utils.recipes import load_recipe, recipe_names
from opdgeom_utils.runs import load_or_train


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
