"""Train every run of a profile that is missing, two processes at once, and write data/results/PROFILE (`make runs`)."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import vl_convert

from opdgeom_utils import charts, storage
from opdgeom_utils.chapters.committed_tables import PUBLISHED
from opdgeom_utils.chapters.mismatched import joined
from opdgeom_utils.chapters.where import NULL_OBJECTIVES, OF_SFT, at_place
from opdgeom_utils.claims import load_reported
from opdgeom_utils.errors import CheckpointNotFoundError, OpdGeomError, StaleResultsError, UnknownProfileError
from opdgeom_utils.measures.of_runs import measures_of
from opdgeom_utils.measures.path_overlaps import missing_counterparts
from opdgeom_utils.models import PROJECT
from opdgeom_utils.profile_check import check_models
from opdgeom_utils.provenance import fingerprint
from opdgeom_utils.recipes import load_recipe, recipe_names
from opdgeom_utils.results import Tables, archived, recorded_runs, results_of, run_key, write_tables
from opdgeom_utils.runs import Run, load_or_train, run_of
from opdgeom_utils.trained_models import models_of, needed_run
from opdgeom_utils.workers import Job, load_or_train_many

FIGURE = PROJECT / "book" / "_static" / "where_opd_lies.svg"


def jobs_of(profile: str, recipes: list[str], seeds: list[int] | None) -> list[Job]:
    """All runs asked for: those whose models others need, then first seeds, and the longest of a seed first."""
    chosen = [load_recipe(name, profile) for name in recipes or recipe_names(profile)]
    pairs = [(recipe, seed) for recipe in chosen for seed in recipe.seeds if seeds is None or seed in seeds]
    needs = {recipe.name: sum(needed_run(name) is not None for name in models_of(recipe)) for recipe in chosen}
    pairs.sort(key=lambda pair: (needs[pair[0].name] > 0, pair[1], -pair[0].steps))
    return [(recipe.name, seed) for recipe, seed in pairs]


def known_runs(profile: str) -> dict[Job, Run]:
    """Every run of a profile, trained or not; left out, and named, where a model that it needs is missing."""
    runs = {}
    for name, seed in jobs_of(profile, [], None):
        try:
            runs[name, seed] = run_of(load_recipe(name, profile), seed)
        except CheckpointNotFoundError as error:
            print(f"left out: {name}, seed {seed}: {error}. `make models` builds it")
    return runs


def readme_figure(tables: Tables) -> bytes:
    """Draw the book's first picture, as the SVG that README.md shows."""
    ends = at_place(joined(tables), "final", ["sft", "opd", "rlvr", *NULL_OBJECTIVES.values(), OF_SFT["sft"]])
    chart = charts.hero(ends, load_reported())
    return vl_convert.vegalite_to_svg(chart.properties(width=560, background="white").to_dict()).encode()


def main() -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="toy")
    parser.add_argument("--recipes", nargs="*", default=[], help="only these (default: all of the profile)")
    parser.add_argument("--seeds", nargs="*", type=int, help="only these (default: the recipe's own)")
    parser.add_argument("--workers", type=int, default=2, help="runs at once; -1: one a core")
    parser.add_argument("--finished", action="store_true", help="train nothing: take the runs that are finished")
    parser.add_argument("--add", action="store_true", help="keep the tables' rows of runs that they hold already")
    parser.add_argument("--results", type=Path, help="folder for the tables (default: data/results/PROFILE)")
    args = parser.parse_args()
    if args.profile == "models":
        raise UnknownProfileError("models.yaml has the recipes of the shipped models: `make models` makes them")
    own = results_of(args.profile)
    args.results = args.results or own
    if args.results == own and archived(own):
        raise StaleResultsError(
            f"{own} is archived: older code made these runs, and they are never made anew. To train its recipes with "
            "today's code, give --results FOLDER"
        )
    check_models(args.profile)
    every = known_runs(args.profile)
    jobs = [job for job in jobs_of(args.profile, args.recipes, args.seeds) if job in every]
    if args.add:
        recorded = recorded_runs(args.results)
        jobs = [job for job in jobs if recorded.get(run_key(every[job])) != fingerprint(every[job].recipe, job[1])]
    if args.finished:
        jobs = [job for job in jobs if (every[job].path / "DONE").is_file()]
    else:
        beside = missing_counterparts([every[job] for job in jobs], list(every.values()))
        wanted = [*jobs, *(job for job in beside if job not in jobs)]
        load_or_train_many(wanted, profile=args.profile, workers=args.workers, measures=True)
    runs = [load_or_train(name, seed=seed, profile=args.profile) for name, seed in jobs]
    if not runs:
        print(f"{args.results} holds every run that is {'finished' if args.finished else 'asked for'}; nothing to do")
        return 0
    whole = args.add or (not args.recipes and args.seeds is None)
    if args.results == own and not whole:
        print(
            f"{len(jobs)} runs are ready; {own} holds all of {args.profile} and stays. Give --add or --results FOLDER"
        )
        return 0
    tables = write_tables(runs, args.results, measures=measures_of(runs, others=list(every.values())), add=args.add)
    if args.profile == PUBLISHED and args.results == own:
        storage.write_atomic(FIGURE, readme_figure(tables))
    print(f"wrote {args.results}: {len(tables.geometry)} geometry rows from {len(jobs)} runs")
    return 0


if __name__ == "__main__":
    kept = "\nstopped; what is trained is kept, and the same command goes on from there"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(kept))  # so that the training processes end too
    try:
        sys.exit(main())
    except OpdGeomError as error:  # said in plain words, without a traceback
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit(kept)
