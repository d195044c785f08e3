"""The statistics of ``data/paper/claims_noise.yaml``: runs against what noise would have given their recipes.

See :mod:`opdgeom_utils.claims.comparisons` for what the arguments mean. ``prompts``: the claim is about runs with at
least so many different prompts an update; for others there is no number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opdgeom_utils.claims.comparisons import Comparison, comparison_of, functions_of, part_of
from opdgeom_utils.claims.look_up import LookUp
from opdgeom_utils.errors import CheckpointNotFoundError, UnknownProfileError, UnknownRecipeError
from opdgeom_utils.measures.noise import SCOPE_OF, noise_sparsity_of
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.vocabulary import label

Names = Sequence[str]
SPARSITY = "update_sparsity"


def within_noise(look: LookUp, *, recipes: Names, margin: float | int, prompts: int = 1) -> list[Comparison]:
    """Sparsity less than a margin above noise's, and less than a margin below it: both, per recipe."""
    out = []
    for recipe in recipes:
        gap = look.metric(SPARSITY, recipe, "final") - _noise(look, recipe, prompts)
        sides = (("above", margin - gap), ("below", margin + gap))
        words = f"{label(recipe)}, room left within {100 * margin:g} points"
        out.append(Comparison(tuple(part_of(SPARSITY, f"{words} {side} noise", room) for side, room in sides)))
    return out


def beyond_noise(look: LookUp, *, recipes: Names, prompts: int = 1) -> list[Comparison]:
    """Sparsity of noise minus the run's: how much more of it is seen to have moved than noise explains, per recipe."""
    return [
        comparison_of(
            SPARSITY,
            f"noise minus {label(recipe)}",
            _noise(look, recipe, prompts) - look.metric(SPARSITY, recipe, "final"),
        )
        for recipe in recipes
    ]


STATISTICS = functions_of(__name__)


def _noise(look: LookUp, recipe: str, prompts: int) -> np.ndarray:
    """Noise's sparsity, the same for every seed; ``nan`` where the claim is not about such a recipe."""
    geometry = look.sources.tables.geometry
    profile = str(geometry["profile"].iloc[0])
    try:
        given = load_recipe(recipe, profile).prompts_per_update
    except (UnknownProfileError, UnknownRecipeError):
        look.note(f"profile {profile} has no recipe {recipe}")
        return look.undefined()
    if given < prompts:
        look.note(f"{label(recipe)} takes {given} prompts an update; the claim is about {prompts} and more")
        return look.undefined()
    kept = (look.sources.cells or {}).get((recipe, "noise_sparsity", ""))
    if kept is not None:  # who reads the tables need not have the weights that a run began at
        return np.full(len(look.seeds), kept.loc[kept["scope"] == SCOPE_OF[None], "value"].to_numpy(float).mean())
    try:
        return np.full(len(look.seeds), noise_sparsity_of(recipe, profile))
    except CheckpointNotFoundError:
        look.note(f"{label(recipe)} began at weights that are not on this machine, and the tables lack their noise")
        return look.undefined()
