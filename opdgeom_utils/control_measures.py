"""Where the chapters on control get the long table: committed for the published profile, measured live for another.

Live measures are those of the committed table that these chapters read: paths, overlaps, what a run can do, and the
second moments of one seed's gradients. Each is kept in the run's folder, so the second chapter reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from opdgeom_utils.book_tables import PUBLISHED, BookTables
from opdgeom_utils.control_tables import VARIANTS
from opdgeom_utils.errors import StaleResultsError
from opdgeom_utils.functional import function_measures
from opdgeom_utils.moment_measures import moment_measures
from opdgeom_utils.path_overlaps import overlap_measures
from opdgeom_utils.paths import path_measures
from opdgeom_utils.recipes import load_recipe, recipe_names
from opdgeom_utils.runs import load_or_train


def measures_for(tables: BookTables, recipes: Sequence[str] = tuple(VARIANTS)) -> pd.DataFrame:
    """Return the measures of the profile and the seeds of ``tables``.

    Parameters
    ----------
    tables
        The chapter's result tables.
    recipes
        Variants to measure where nothing is committed; those that the profile has not are left out.

    Raises
    ------
    StaleResultsError
        If the published profile's measures have not been made.
    """
    if tables.measures is not None:
        return tables.measures
    if tables.profile == PUBLISHED:
        raise StaleResultsError(
            "measures.parquet is not in data/results, expected the measures of toy. Run `make runs`"
        )
    return live_measures(tables.profile, tables.seeds, recipes)


def live_measures(profile: str, seeds: Sequence[int], recipes: Sequence[str]) -> pd.DataFrame:
    """Open or train OPD, RLVR and the variants that a profile has, and measure them now."""
    names = [name for name in recipe_names(profile) if name in ("opd", "rlvr", *recipes)]
    wanted = [(name, seed) for name in names for seed in load_recipe(name, profile).seeds if seed in seeds]
    runs = {(n, s): load_or_train(n, seed=s, profile=profile) for n, s in wanted}
    parts = [measure(run) for run in runs.values() for measure in (path_measures, function_measures)]
    parts += [overlap_measures(list(runs.values())), moment_measures(runs["opd", min(seeds)])]
    return pd.concat(parts, ignore_index=True)
