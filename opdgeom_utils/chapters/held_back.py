"""Whether what learns moves less far, late in training, than what has nothing to learn: the last windows of both.

The rule stands in LOG.md, before all but one seed of three recipes had been looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import pandas as pd

from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.where import NULL_OBJECTIVES
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.measures.noise import own_noise
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.vocabulary import label

LESS, MUCH_LESS = 0.9, 0.8  # of the null's window


def held_back(tables: BookTables, recipes: Sequence[str]) -> pd.DataFrame:
    """Set each run's last window up to OPD's end beside that of its null objective, for each kind of matrix.

    Returns
    -------
    DataFrame
        ``recipe, kind``; ``length``, how far the window moves an entry over how far the null's does, and ``turn``, the
        window's cosine with the one before it less the null's, means over the ``seeds`` that both have; ``held``,
        whether every seed is held back by the rule in LOG.md; ``strength``, what ``length`` would be for noise as
        strong at each update as the gradients of the two runs. No row where the windows of the two are not the same.
    """
    rows, last = [], load_recipe("opd", tables.profile).steps
    for recipe in recipes:
        null = _null_of(recipe)
        ends = _window(recipe, tables, last)
        if tables.measures is None or len(ends) < 2 or ends != _window(null, tables, last):
            continue
        found = pick(tables.measures, quantity=["window_rms", "window_cosine"], recipe=[recipe, null], step=last)
        wide = found.pivot_table("value", ["scope", "seed"], ["quantity", "recipe"]).dropna()
        length = wide["window_rms", recipe] / wide["window_rms", null]
        turn = wide["window_cosine", recipe] - wide["window_cosine", null]
        runs = pd.DataFrame({"length": length, "turn": turn}).rename_axis(index={"scope": "kind"}).reset_index()
        runs["held"] = (runs["length"] < LESS) & ((runs["turn"] < 0) | (runs["length"] < MUCH_LESS))
        means = runs.groupby("kind").agg({"length": "mean", "turn": "mean", "held": "all", "seed": "nunique"})
        seeds = runs["seed"].unique().tolist()
        own, other = (
            fmean(_noise_in_window(tables, name, seed, ends[-2:]) for seed in seeds) for name in (recipe, null)
        )
        rows.append(means.rename(columns={"seed": "seeds"}).reset_index().assign(recipe=recipe, strength=own / other))
    columns = ["recipe", "kind", "length", "turn", "held", "strength", "seeds"]
    return pd.concat([pd.DataFrame(columns=columns), *rows], ignore_index=True).filter(items=columns)


def _window(recipe: str, tables: BookTables, last: int) -> tuple[int, ...]:
    """Return the ends of the last two windows up to an update: the checkpoints that they lie between."""
    if recipe not in set(tables.geometry["recipe"]):
        return ()
    return tuple(step for step in load_recipe(recipe, tables.profile).checkpoints if step <= last)[-3:]


def _noise_in_window(tables: BookTables, recipe: str, seed: int, ends: tuple[int, ...]) -> float:
    """How far noise as strong as a run's own gradients goes between two updates: squares add up, as in any walk."""
    first, last = (own_noise(tables.training, recipe, tables.profile, seed, step) ** 2 for step in ends)
    return (last - first) ** 0.5


def _null_of(recipe: str) -> str:
    return NULL_OBJECTIVES["rlvr" if recipe == "rlvr" else "opd"]


def say_held_back(found: pd.DataFrame) -> str:
    """Say whether runs move less, late in training, than their null, where most, and what does not explain it.

    ``found``: from :func:`held_back`. Nothing of no run.

    >>> row = {"recipe": "rlvr", "kind": "v_proj", "length": 0.7, "turn": -0.2, "held": True, "strength": 1.0}
    >>> row = row | {"seeds": 3}
    >>> for said in say_held_back(pd.DataFrame([row, row | {"kind": "up_proj", "length": 0.95, "held": False}])).split(
    ...     ". "
    ... ):
    ...     print(said)
    **Late in training, what learns moves less far in some kinds of matrix than what does not.** Most in v_proj: RLVR
    0.70 times as far as random reward (its cosine with the window before 0.20 lower)
    Noise as strong as the runs' own gradients would have gone 1.00 to 1.00 times as far
    By the rule held back are RLVR in 1 of 2 kinds of matrix; seeds: 3.
    """
    if found.empty:
        return ""
    kind = found.groupby("kind").agg({"length": "mean"})["length"].idxmin()
    said, held, seeds = [], [], found["seeds"].tolist()
    for recipe, own in found.groupby("recipe", sort=False):
        most = own.loc[own["kind"] == kind].to_dict("records")[0]
        null = label(_null_of(str(recipe)))
        said.append(
            f"{label(str(recipe))} {most['length']:.2f} times as far as {null} "
            f"(its cosine with the window before {abs(most['turn']):.2f} {'lower' if most['turn'] < 0 else 'higher'})"
        )
        held.append(f"{label(str(recipe))} in {sum(own['held'])} of {len(own)}")
    shorter = bool((found.loc[found["kind"] == kind, "length"] < LESS).all())
    less = "moves less far in some kinds of matrix" if shorter else "does not always move less far"
    return (
        f"**Late in training, what learns {less} than what does not.** Most in {kind}: "
        f"{'; '.join(said)}. Noise as strong as the runs' own gradients would have gone {found['strength'].min():.2f} "
        f"to {found['strength'].max():.2f} times as far. By the rule held back are {'; '.join(held)} kinds of matrix; "
        f"seeds: {' to '.join(map(str, sorted({min(seeds), max(seeds)})))}."
    )
