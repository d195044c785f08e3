"""Before a chapter trains a large model for hours: what its profile lacks, how to make it, and how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from opdgeom_utils.chapters.committed_tables import PUBLISHED
from opdgeom_utils.errors import CheckpointNotFoundError, MissingRunsError
from opdgeom_utils.models import resolve_model
from opdgeom_utils.project_files import runs_folder
from opdgeom_utils.recipes import Recipe, load_recipe, recipe_names
from opdgeom_utils.results import are_committed
from opdgeom_utils.run_files import Run, rows_of, run_of
from opdgeom_utils.trained_models import is_large


def stop_without_runs(profile: str) -> None:
    """Stop a chapter whose profile has no tables, unless its students are so small that runs may be trained live.

    Raises
    ------
    MissingRunsError
        If the profile trains a model of 20 million parameters or more, has no tables, and runs are missing; the message
        names them, the command that makes them, and the time, where a run that has begun here tells it.

    Examples
    --------
    >>> stop_without_runs("smoke")
    """
    if are_committed(profile):
        return
    recipes = [load_recipe(name, profile) for name in recipe_names(profile)]
    if not any(map(is_large, recipes)):
        return
    runs = [run_of(recipe, seed) for recipe in recipes for seed in recipe.seeds]
    missing = [run for run in runs if not (run.path / "DONE").is_file()]
    if missing:
        seeds = {run.recipe.name: [str(r.seed) for r in missing if r.recipe.name == run.recipe.name] for run in missing}
        named = "; ".join(f"{name}, seed{'s' * (len(of) > 1)} {' '.join(of)}" for name, of in seeds.items())
        raise MissingRunsError(
            f"profile {profile!r} has no tables in data/results/{profile}, and its student is too large to be trained "
            f"inside a chapter. {len(missing)} of {len(runs)} runs are missing: {named}. `make runs PROFILE={profile}` "
            f"trains them and writes the tables; it can be stopped, and goes on where it was. {_time(runs, missing)}"
        )


def live_profile(profile: str, jobs: Sequence[tuple[str, int]]) -> tuple[str, str]:
    """Name the profile whose runs a chapter opens or trains on the spot, and why, where it is not the one asked for.

    Parameters
    ----------
    profile
        The one asked for. Its own runs are taken where it has them all and they are there, or are quickly trained.
    jobs
        Pairs of recipe name and seed.

    Returns
    -------
    tuple of str
        ``profile``, or the published one, and a sentence that begins with a space; empty where it is ``profile``.

    Examples
    --------
    >>> live_profile("smoke", [("opd", 0)])
    ('smoke', '')
    >>> live_profile("confined", [("opd", 0), ("sft", 0)])
    ('toy', ' Live runs are those of profile toy: confined has no sft, seed 0.')
    """
    known = recipe_names(profile)
    lacking = [
        f"{name}, seed {seed}"
        for name, seed in jobs
        if name not in known or seed not in load_recipe(name, profile).seeds
    ]
    if lacking:
        return PUBLISHED, f" Live runs are those of profile {PUBLISHED}: {profile} has no {'; no '.join(lacking)}."
    recipes = [load_recipe(name, profile) for name, _ in jobs]
    runs = [(name, seed) for name, seed in jobs if not _is_there(load_recipe(name, profile), seed)]
    if not runs or not any(map(is_large, recipes)):
        return profile, ""
    named = "; ".join(f"{name}, seed {seed}" for name, seed in runs)
    return PUBLISHED, (
        f" Live runs are those of profile {PUBLISHED}: the student of {profile} is too large to be trained inside a "
        f"chapter, and runs of it are not on this machine ({named}). `make runs PROFILE={profile}` trains them."
    )


def is_at_hand(model: str) -> bool:
    """Whether a model can be opened here without any training; those that runs have made are not in the tables.

    >>> is_at_hand("anchor"), is_at_hand("run:first_regime/sft@20")
    (True, False)
    """
    try:
        return bool(resolve_model(model))
    except CheckpointNotFoundError:
        return False


def _is_there(recipe: Recipe, seed: int) -> bool:
    """Whether a run is finished on this machine; not where the model that it starts from has not been made here."""
    try:
        return (run_of(recipe, seed).path / "DONE").is_file()
    except CheckpointNotFoundError:
        return False


def _time(runs: Sequence[Run], missing: Sequence[Run]) -> str:
    """Say how long the missing runs take, from the logs of those that have begun on this machine."""
    logs = {(run.recipe.name, run.seed): rows_of(run.path / "log.jsonl") for run in runs}
    seconds = {True: [], False: []}  # of a completion, written by the student or shown
    for run in runs:
        if rows := logs[run.recipe.name, run.seed]:
            length = mean(row["completion_length"] / row["tokens_per_second"] for row in rows)
            seconds[run.recipe.on_policy].append(length)
    left, unknown = 0.0, False
    for run in missing:
        recipe, each = run.recipe, seconds[run.recipe.on_policy]
        ahead = recipe.steps - len(logs[recipe.name, run.seed])
        unknown |= not each
        left += ahead * recipe.prompts_per_update * recipe.group_size * (mean(each) if each else 0.0)
    if unknown and not left:
        return (
            "How long that takes is not known before a run has begun on this machine: each writes it into "
            f"{runs_folder() / 'logs'} after its first updates."
        )
    more = "; and runs of a kind that has not begun here" if unknown else ""
    return f"By the runs that have begun here: about {left / 3600:.1f} hours of one process, and evaluations{more}."
