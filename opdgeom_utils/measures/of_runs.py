"""Everything that research questions 2 and 3 measure of finished runs, as one long table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from opdgeom_utils.measures.functional import function_measures
from opdgeom_utils.measures.long_table import as_measures
from opdgeom_utils.measures.moments import moment_measures
from opdgeom_utils.measures.noise import noise_measures
from opdgeom_utils.measures.path_nulls import path_null_measures
from opdgeom_utils.measures.path_overlaps import overlap_measures
from opdgeom_utils.measures.paths import path_measures
from opdgeom_utils.recipes import load_recipe, recipe_names
from opdgeom_utils.runs import Run, bring_models
from opdgeom_utils.scopes import HEADLINE, THROUGHOUT


def _compared(run: Run, *, masked: bool = False) -> bool:
    """Whether variants have a run's seed (``masked``: with fewer tokens, or mixed): what they need is measured."""
    profile = run.recipe.profile
    variants = (load_recipe(name, profile) for name in recipe_names(profile) if name not in HEADLINE)
    asked = (v for v in variants if not masked or v.keep_fraction < 1 or v.objective == "mixed")
    return any(run.seed in variant.seeds for variant in asked)


def _has_ruler(run: Run) -> bool:
    """Whether the profile has OPD, whose start and teacher are what distances are taken with."""
    return "opd" in recipe_names(run.recipe.profile)


#: A part, and the runs that it is measured of. To add one, write its module and its line here.
PARTS: dict[str, tuple[Callable[[Run], pd.DataFrame], Callable[[Run], bool]]] = {
    "path": (path_measures, lambda run: not run.is_large or run.recipe.name != "sft"),
    "nulls": (path_null_measures, lambda run: run.recipe.name in THROUGHOUT and not run.is_large),
    "noise": (noise_measures, lambda run: run.is_large),
    "function": (
        function_measures,
        lambda run: _has_ruler(run) and (_compared(run) if not run.is_large else run.recipe.name != "sft"),
    ),
    "moments": (moment_measures, lambda run: run.recipe.name == "opd" and _compared(run, masked=True)),
}
OVERLAPS = "overlaps"  # a part of no single run


def parts_of(run: Run, parts: Iterable[str] = PARTS) -> list[str]:
    """Keep the parts that apply to one run.

    >>> from pathlib import Path
    >>> runs = [("opd", 4), ("mix_25", 0)]
    >>> [parts_of(Run(load_recipe(name, "first_regime"), seed, Path("r"))) for name, seed in runs]
    [['path', 'nulls'], ['path', 'function']]
    """
    return [part for part in parts if part in PARTS and PARTS[part][1](run)]


def measures_of_run(run: Run, parts: Iterable[str] = PARTS) -> pd.DataFrame:
    """Measure one run; each part is kept in the run's folder, so a second call reads it."""
    chosen = parts_of(run, parts)
    if "function" in chosen:  # held against models of OPD, which this run itself may have made
        bring_models(load_recipe("opd", run.recipe.profile), "auto")
    return pd.concat([as_measures([]), *(PARTS[part][0](run) for part in chosen)], ignore_index=True)


def measures_of(
    runs: Iterable[Run], parts: Iterable[str] = (*PARTS, OVERLAPS), others: Sequence[Run] = ()
) -> pd.DataFrame:
    """Measure all runs, and what they share with each other and with ``others``."""
    runs, parts = list(runs), list(parts)
    tables = [measures_of_run(run, parts) for run in runs]
    shared = [overlap_measures(runs, others)] if OVERLAPS in parts and runs else []
    return pd.concat([as_measures([]), *tables, *shared], ignore_index=True)
