"""Where a chapter's numbers come from: the committed tables of the published profile, live runs for any other.

A chapter asks once, ``tables_for(profile, seeds)``, and gets the three result tables with a sentence that says what
they are; :func:`with_measures` adds the long table. Under ``smoke`` the sentence says that the numbers are no evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from opdgeom_utils.claims import Claim, load_claims, scorecard
from opdgeom_utils.errors import NotebookParameterError, StaleResultsError
from opdgeom_utils.measures.long_table import DEFAULTS
from opdgeom_utils.measures.of_runs import OVERLAPS, PARTS, measures_of
from opdgeom_utils.recipes import load_recipe, recipe_names
from opdgeom_utils.results import Tables, are_committed, load_tables, tables_of
from opdgeom_utils.runs import Run, load_or_train
from opdgeom_utils.scopes import HEADLINE

PUBLISHED = "toy"  # whose runs the chapters show that say nothing else
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


def tables_for(profile: str, seeds: Sequence[int], recipes: Sequence[str] = HEADLINE) -> BookTables:
    """Return the result tables of a profile for some seeds.

    ``profile``: where it has committed tables, they are read and checked against today's recipes. Of any other profile
    the runs are opened, or trained first, and measured now.
    ``seeds``: which seeds, each one of the profile's own.
    ``recipes``: which runs to open where nothing is committed; those that the profile has not are left out.
    Raises StaleResultsError if the committed tables are missing or out of date. Raises NotebookParameterError if no
    seed is given, or one that the profile does not have.
    """
    if are_committed(profile):
        tables, origin = load_tables(profile), "committed tables"
        held = {int(seed) for seed in tables.accuracy["seed"]}
    else:
        held = {seed for name in recipe_names(profile) for seed in load_recipe(name, profile).seeds}
        tables, origin = None, "runs measured live"
    if not seeds or not set(seeds) <= held:
        raise NotebookParameterError(
            f"parameter seeds is {list(seeds)}; profile {profile!r} has {sorted(held)}. Choose one or more of these"
        )
    return only_seeds(tables or tables_of(_runs(profile, seeds, recipes)), profile, seeds, origin)


def published_card(tables: BookTables, ledger: Sequence[Claim] | None = None) -> pd.DataFrame:
    """Scorecard in which each claim is judged by the regime that its file names; the tables' own, if that is no regime.

    Parameters
    ----------
    tables
        A chapter's tables. Those of the other regimes are loaded, with the seeds that they hold.
    ledger
        Claims to judge; by default all that stand.
    """
    judged = load_claims() if ledger is None else ledger
    regimes = {claim.profile for claim in judged}
    if tables.profile not in regimes:
        return scorecard(tables, judged)
    beside = {name: tables if name == tables.profile else load_tables(name) for name in regimes}
    cards = [scorecard(own, [claim for claim in judged if claim.profile == name]) for name, own in beside.items()]
    return pd.concat(cards).set_index("id").loc[[claim.id for claim in judged]].reset_index()


def with_all_seeds(tables: BookTables) -> Tables | BookTables:
    """Return the committed tables of the same profile, whose seeds the scorecard judges; the same where none are."""
    return load_tables(tables.profile) if are_committed(tables.profile) else tables


def with_measures(
    tables: BookTables,
    recipes: Sequence[str],
    parts: Sequence[str] = (*PARTS, OVERLAPS),
    quantities: Sequence[str] = (),
) -> BookTables:
    """Return the same tables with their measures: those that they hold, or those of runs opened or trained now.

    ``tables``: the chapter's result tables. Where they hold measures, these stay.
    ``recipes``: runs to open, or train first, where nothing is committed; those that the profile has not are left out.
    ``parts``: what to measure of them; ``path, nulls, function, moments, overlaps``. What was measured before is read.
    ``quantities``: one of these at least must be among the measures; empty asks for nothing.
    Raises StaleResultsError if the published profile's measures have not been made, or hold none of ``quantities``.
    """
    measures = tables.measures
    if measures is None:
        if are_committed(tables.profile):
            raise StaleResultsError(
                f"measures.parquet is not in data/results/{tables.profile}, expected its measures. Run "
                f"`make runs PROFILE={tables.profile}`"
            )
        measures = measures_of(_runs(tables.profile, tables.seeds, recipes), parts)
    if quantities and not set(quantities) & set(measures["quantity"]):
        lacking = (
            f"no recipe of data/recipes/{tables.profile}.yaml gives it. Copy some that first_regime.yaml has for this "
            f"chapter (each takes about as long as opd's run), and run `make runs PROFILE={tables.profile} ADD=1`"
        )
        raise StaleResultsError(
            f"the measures of profile {tables.profile}, seeds {list(tables.seeds)}, have no {' or '.join(quantities)}: "
            + (f"run `make runs PROFILE={tables.profile}`" if recipes else lacking)
        )
    return replace(tables, measures=measures)


def _runs(profile: str, seeds: Sequence[int], recipes: Sequence[str]) -> list[Run]:
    """Open or train some recipes of a profile, in the order of its file."""
    found = [load_recipe(name, profile) for name in recipe_names(profile) if name in recipes]
    wanted = [(recipe.name, seed) for recipe in found for seed in recipe.seeds if seed in seeds]
    return [load_or_train(name, seed=seed, profile=profile) for name, seed in wanted]


def only_seeds(tables: Tables, profile: str, seeds: Sequence[int], origin: str) -> BookTables:
    """Keep these seeds of every table, and say in a sentence what the numbers rest on.

    >>> frame = pd.DataFrame({"recipe": ["opd", "opd", "sft"], "seed": [0, 1, 0]})
    >>> kept = only_seeds(Tables(frame, frame, frame), "smoke", [0], "runs measured live")
    >>> len(kept.geometry), kept.seeds, kept.source
    (2, (0,), 'Profile smoke, 2 recipes, 1 seed, runs measured live: smoke test, not evidence.')
    """
    kept = tuple(sorted(set(seeds)))
    parts = [
        t.loc[t["seed"].isin(kept)].reset_index(drop=True) for t in (tables.geometry, tables.training, tables.accuracy)
    ]
    long = tables.measures
    if long is not None:  # -1 where a number is about no other run
        both = long["seed"].isin(kept) & long["other_seed"].isin([*kept, DEFAULTS["other_seed"]])
        long = long.loc[both].reset_index(drop=True)
    n_recipes = tables.accuracy["recipe"].nunique()
    label = f": {SMOKE_LABEL}" if profile == "smoke" else ""
    words = f"{len(kept)} {'seed' if len(kept) == 1 else 'seeds'}"
    source = f"Profile {profile}, {n_recipes} recipes, {words}, {origin}{label}."
    return BookTables(*parts, profile=profile, seeds=kept, source=source, measures=long)
