"""Everything that research questions 2 and 3 measure of finished runs, as one long table."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from opdgeom_utils.functional import function_measures
from opdgeom_utils.moment_measures import moment_measures
from opdgeom_utils.path_nulls import path_null_measures
from opdgeom_utils.path_overlaps import overlap_measures
from opdgeom_utils.paths import path_measures
from opdgeom_utils.recipes import load_recipe, recipe_names
from opdgeom_utils.results import HEADLINE
from opdgeom_utils.runs import Run


def variant_seeds(profile: str) -> set[int]:
    """Seeds that a profile's variants are trained with; what they are compared with is measured for these only.

    >>> sorted(variant_seeds("toy"))
    [0, 1, 2]
    """
    recipes = (load_recipe(name, profile) for name in recipe_names(profile) if name not in HEADLINE)
    return {seed for recipe in recipes for seed in recipe.seeds}


def measures_of_run(run: Run) -> pd.DataFrame:
    """Measure one run: its path, what it can do, and, where they apply, its nulls and its gradients' moments.

    Each part is kept in the run's folder, so a second call reads it.
    """
    headline, compared = run.recipe.name in HEADLINE, run.seed in variant_seeds(run.recipe.profile)
    parts = [path_measures(run)]
    if headline:
        parts.append(path_null_measures(run))
    if compared:
        parts.append(function_measures(run))
    if compared and run.recipe.name == "opd":
        parts.append(moment_measures(run))
    return pd.concat(parts, ignore_index=True)


def measures_of(runs: Iterable[Run]) -> pd.DataFrame:
    """Measure all runs, and what they share with each other."""
    runs = list(runs)
    return pd.concat([*(measures_of_run(run) for run in runs), overlap_measures(runs)], ignore_index=True)
