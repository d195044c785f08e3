"""What noise would have given for the runs of a table: their recipes tell the schedule, their starts the weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from opdgeom_utils import metrics
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.measures.long_table import kept_measures
from opdgeom_utils.measures.paths import tagged
from opdgeom_utils.metrics.noise_walk import Walk, coherence_of
from opdgeom_utils.models import load_model
from opdgeom_utils.recipes import Recipe, load_recipe
from opdgeom_utils.runs import Run
from opdgeom_utils.scopes import ATTENTION, MODULES

SCOPE_OF = {None: "all", ATTENTION: "attention", MODULES: "layers"}  # names of what a sparsity is taken over


def rates_of(recipe: Recipe) -> list[float]:
    """Learning rate of every update of a recipe.

    >>> len(set(rates_of(load_recipe("opd", "first_regime"))))
    1
    """
    return metrics.learning_rate_schedule(
        recipe.learning_rate, recipe.steps, schedule=recipe.schedule, warmup=recipe.warmup_fraction,
        final_learning_rate=recipe.final_learning_rate,
    )  # fmt: skip


@cache
def walk_of(recipe_name: str, profile: str, step: int | None = None) -> Walk:
    """How far noise goes in a recipe's first ``step`` updates; None takes all of them.

    Raises
    ------
    UnknownRecipeError
        If the profile has no recipe of that name.
    MetricInputError
        If the recipe has fewer updates than ``step``.

    Examples
    --------
    >>> walk = walk_of("opd", "first_regime", 1)
    >>> round(walk.rms / walk.ballistic, 5)
    1.0
    """
    recipe = load_recipe(recipe_name, profile)
    rates = rates_of(recipe)
    if step is not None and not 1 <= step <= len(rates):
        raise MetricInputError(f"step is {step}, expected 1 to {len(rates)}, the updates of {recipe_name}.")
    return Walk.along(rates[:step], betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay)


@cache
def noise_sparsity_of(recipe_name: str, profile: str, modules: tuple[str, ...] | None = None) -> float:
    """Update sparsity that noise is expected to leave at a recipe's end, over all tensors, weighted by entries.

    ``modules``: only these kinds of matrix.

    >>> 0 < noise_sparsity_of("sft", "first_regime") < noise_sparsity_of("opd", "first_regime") < 1
    True
    """
    start, walk = load_recipe(recipe_name, profile).start, walk_of(recipe_name, profile)
    named = load_model(start).named_parameters()
    tensors = [w for name, w in named if modules is None or name.split(".")[-2] in modules]
    unchanged = sum(metrics.noise_sparsity(w, walk.rms, shrinkage=walk.shrinkage) * w.numel() for w in tensors)
    return unchanged / sum(w.numel() for w in tensors)


def noise_measures(run: Run) -> pd.DataFrame:
    """Keep :func:`noise_sparsity_of` with a run's measures: who reads them need not have the weights it began at."""

    def made() -> pd.DataFrame:
        row = {"step": run.recipe.steps, "quantity": "noise_sparsity"}
        values = {s: noise_sparsity_of(run.recipe.name, run.recipe.profile, m) for m, s in SCOPE_OF.items()}
        return tagged(run, [row | {"scope": scope, "value": value} for scope, value in values.items()])

    return kept_measures(run.path, "noise", made, __name__)


def own_noise(training: pd.DataFrame, recipe_name: str, profile: str, seed: int, step: int) -> float:
    """How far noise goes whose strength follows a run's own gradients: their logged norms, as clipping left them.

    ``training``: ``recipe, seed, step, grad_norm``, one row per update, of one profile.
    """
    recipe = load_recipe(recipe_name, profile)
    own = training.query("recipe == @recipe_name and seed == @seed and step <= @step").sort_values(by="step")
    strengths = own["grad_norm"].clip(upper=recipe.grad_clip).to_numpy(float)
    return metrics.noise_walk_rms(rates_of(recipe)[:step], betas=recipe.betas, eps=recipe.eps,
                                  weight_decay=recipe.weight_decay, strengths=strengths)  # fmt: skip


def walks_of_runs(geometry: pd.DataFrame, training: pd.DataFrame | None = None) -> pd.DataFrame:
    """Set each run's whole update beside noise: all matrices with a norm together, at one checkpoint of each run.

    Returns
    -------
    DataFrame
        ``walk_ratio`` and ``coherence``, indexed by recipe and seed; with the runs' logs of ``training`` also
        ``own_ratio``, beside noise as strong at each update as the run's gradients were (:func:`own_noise`); nan for a
        run that never had a gradient, such as RLVR without one right answer.
    """
    moved = geometry.loc[geometry["update_norm"].notna()]
    moved = moved.assign(squared=moved["update_norm"] ** 2)
    keys = ["profile", "recipe", "seed", "step"]
    sums = moved.groupby(keys).agg({"squared": "sum", "n_entries": "sum"}).reset_index()
    rows = []
    for profile, recipe, seed, step, squared, n in sums[[*keys, "squared", "n_entries"]].itertuples(index=False):
        walk, rms = walk_of(recipe, profile, int(step)), float(np.sqrt(squared / n))
        row = {"recipe": recipe, "seed": int(seed), "walk_ratio": rms / walk.rms}
        row["coherence"] = coherence_of(rms, walk.rms, walk.ballistic)
        if training is not None:
            own = own_noise(training, recipe, profile, int(seed), int(step))
            row["own_ratio"] = rms / own if own else float("nan")
        rows.append(row)
    return pd.DataFrame(rows).set_index(["recipe", "seed"])
