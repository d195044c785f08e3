"""Second moments of a run's gradients, at the anchor and half way: from finished runs to rows of the long table."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pandas as pd

from opdgeom_utils import runs, storage
from opdgeom_utils.measures import moment_rows
from opdgeom_utils.measures.gradient_moments import MomentPlan, collect_gradients
from opdgeom_utils.measures.long_table import kept_measures, nearest
from opdgeom_utils.models import load_stored_state

FULL = MomentPlan()
SMALL = MomentPlan(batches=4, prompts=2, group_size=4, replicates=0, layers=(0,))


def moment_measures(run: runs.Run, *, plan: MomentPlan | None = None) -> pd.DataFrame:
    """Measure one seed's second moments, at the anchor and at OPD's weights half way; kept in the run's folder.

    Parameters
    ----------
    run
        A finished run of ``opd``: it gives the models, the seed of the prompts and the weights half way.
    plan
        Batches and replicates; None takes 16 batches where the recipe has 16 prompts an update or more, else few and
        small ones. Half way has half the batches and no bootstrap.

    Returns
    -------
    DataFrame
        The columns of :mod:`opdgeom_utils.measures.long_table`; step 0 is the anchor.
    """
    plan = plan or (FULL if run.recipe.prompts_per_update >= FULL.prompts else SMALL)
    halved = replace(plan, batches=max(2, plan.batches // 2), replicates=0)
    tables = [
        kept_measures(run.path, f"moments-{step}", partial(_measure, run, step, own), __name__, own)
        for step, own in ((0, plan), (nearest(run.recipe.checkpoints, run.recipe.steps / 2), halved))
    ]
    return pd.concat(tables, ignore_index=True)


def _measure(run: runs.Run, step: int, plan: MomentPlan) -> pd.DataFrame:
    learner = runs.make_learner(run, "auto")
    if step:
        load_stored_state(learner.student, storage.read_tensors(runs.checkpoint_path(run.path, step)))
    rows = moment_rows.moment_rows(collect_gradients(learner, plan), replicates=plan.replicates)
    return moment_rows.tagged(rows, profile=run.recipe.profile, seed=run.seed, step=step)
