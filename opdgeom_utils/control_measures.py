"""Where the chapters on control get the long table: committed for the published profile, measured live for another.

Live measures are few: the stable rank of the update and its overlaps at the common update, accuracy, and the second
moments of one seed's gradients, so that a chapter runs in seconds under ``smoke``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from opdgeom_utils import metrics, storage
from opdgeom_utils.book_tables import PUBLISHED, BookTables
from opdgeom_utils.control_tables import PLACE, VARIANTS, K
from opdgeom_utils.errors import StaleResultsError
from opdgeom_utils.gradient_moments import attention_matrices
from opdgeom_utils.measures import as_measures
from opdgeom_utils.models import load_model, stored_state
from opdgeom_utils.moment_measures import moment_measures
from opdgeom_utils.recipes import load_recipe, recipe_names
from opdgeom_utils.results import RESULTS
from opdgeom_utils.runs import Run, checkpoint_path, load_or_train

Row = dict[str, Any]
Updates = dict[str, Tensor]


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
    given = getattr(tables, "measures", None)
    if given is not None:
        return given
    if tables.profile != PUBLISHED:
        return live_measures(tables.profile, tables.seeds, recipes)
    path = RESULTS / "measures.parquet"
    if not path.is_file():
        raise StaleResultsError(f"{path.name} is not in data/results, expected the measures of toy. Run `make runs`")
    table = pd.read_parquet(path)
    kept = (table["profile"] == tables.profile) & table["seed"].isin(tables.seeds)
    return pd.DataFrame(table[kept]).reset_index(drop=True)


def live_measures(profile: str, seeds: Sequence[int], recipes: Sequence[str]) -> pd.DataFrame:
    """Open or train OPD, RLVR and the variants that a profile has, and measure them now."""
    names = [name for name in recipe_names(profile) if name in ("opd", "rlvr", *recipes)]
    wanted = [(name, seed) for name in names for seed in load_recipe(name, profile).seeds if seed in seeds]
    runs = {(n, s): load_or_train(n, seed=s, profile=profile) for n, s in wanted}
    rows = [row for run in runs.values() for row in path_rows(run)] + list(overlap_rows(runs))
    moments = moment_measures(runs["opd", min(seeds)])
    return pd.concat([as_measures(rows), moments], ignore_index=True)


def path_rows(run: Run) -> Iterator[Row]:
    """Stable rank of the update at every checkpoint, before and after rounding, and sampled accuracy."""
    keep: Row = {"profile": run.recipe.profile, "recipe": run.recipe.name, "seed": run.seed}
    accuracy = run.accuracy.groupby("step")["sampled"].mean()
    for checkpoint in run.checkpoints:
        here = keep | {"step": checkpoint.step, "scope": "attention"}
        for quantity, rounded in (("stable_rank", False), ("stable_rank_bf16", True)):
            ranks = [metrics.stable_rank(d) for d in updates_at(run, checkpoint.step, rounded=rounded).values()]
            yield here | {"quantity": quantity, "value": float(pd.Series(ranks).mean())}
        if checkpoint.step in accuracy.index:
            yield here | {"scope": "", "quantity": "accuracy", "value": float(accuracy[checkpoint.step])}


def overlap_rows(runs: dict[tuple[str, int], Run]) -> Iterator[Row]:
    """Overlap of each run's update with those of OPD and of RLVR at the common update, right and left."""
    spaces = {key: updates_at(run, common_step(run)) for key, run in runs.items()}
    for (name, seed), own in spaces.items():
        for (other, twin), theirs in spaces.items():
            wanted = (other == "opd" and (name == "opd" or seed == twin)) or (other == "rlvr" and seed == twin)
            if not wanted or (name, seed) == (other, twin):
                continue
            step = common_step(runs[name, seed])
            keep: Row = {"profile": runs[name, seed].recipe.profile, "recipe": name, "seed": seed, "step": step}
            keep |= {"scope": "attention", "quantity": "overlap", "k": K}
            keep["other"] = f"{other}:{twin}@{common_step(runs[other, twin])}"
            for side in ("right", "left"):
                turned = [(a, theirs[m]) if side == "right" else (a.T, theirs[m].T) for m, a in own.items()]
                values = [metrics.subspace_similarity(a, b, k=K) for a, b in turned]
                yield keep | {"side": side, "value": float(pd.Series(values).mean())}


def common_step(run: Run) -> int:
    """Return the run's last checkpoint that is not after the common update of the chapters; its first, if none is."""
    return max((c for c in run.recipe.checkpoints if c <= PLACE), default=run.recipe.checkpoints[0])


def updates_at(run: Run, step: int, *, rounded: bool = False) -> Updates:
    """Return the cumulative updates of the attention matrices, of fp32 weights or of what bf16 shows of them."""
    model = load_model(run.recipe.start)
    start, end = stored_state(model), storage.read_tensors(checkpoint_path(run.path, step))
    pairs = {name: (start[name], end[name]) for name in attention_matrices(model)}
    if rounded:
        pairs = {n: (a.to(torch.bfloat16).float(), b.to(torch.bfloat16).float()) for n, (a, b) in pairs.items()}
    return {name: after - before for name, (before, after) in pairs.items()}
