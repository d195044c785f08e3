"""How much the spaces of two updates share: objectives with each other, seeds with each other, variants with OPD.

Runs from one anchor are compared at equal updates, which is the first checkpoint at or after the same number; SFT,
which starts elsewhere and goes further, at its own end. OPD is asked at half its run too, where its variants end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from opdgeom_utils.linalg.factors import Factors
from opdgeom_utils.measures.long_table import as_measures, kept_measures
from opdgeom_utils.measures.paths import (
    KS,
    SIDES,
    VARIANT_KS,
    factor,
    read_path,
    scope_rows,
    scopes_of,
    similarity,
    tagged,
)
from opdgeom_utils.runs import Run, checkpoint_path
from opdgeom_utils.scopes import ATTENTION, HEADLINE, SCOPES, THROUGHOUT

BOTH_CHANGED = "opd_teacher_writes_full_vocab"  # the fourth of two by two, compared with those that change one thing
MATRIX_K = 16  # dimension at which seeds are compared matrix by matrix
CORNERS = ("opd_full_vocab", "opd_teacher_writes")

Point = tuple[str, int, int]  # recipe, seed, step
Spaces = tuple[Mapping[str, Tensor], Mapping[str, Factors]]  # the updates of a point, and their factors


def overlap_measures(runs: Sequence[Run], others: Sequence[Run] = ()) -> pd.DataFrame:
    """Compare the spaces of every run's update with those of its counterparts among ``runs`` and ``others``.

    The runs are finished ones of one profile. A counterpart whose checkpoint is in neither is left out. In the rows of
    the long table, ``overlap`` is Sim_K (0 to 1), ``update_cosine`` the cosine of the two updates over all matrices of
    the scope together (-1 to 1), ``step`` is the run's own, ``other_...`` its counterpart's. What two seeds of a recipe
    share at their end stands there for each matrix too; its name is the scope then.
    """
    known = {(run.recipe.name, run.seed): run for run in (*others, *runs)}
    spaces: dict[Point, Spaces] = {}
    tables = []
    for run in runs:
        pairs = [(own, point) for own, point in counterparts(run, known) if _stored(known, point)]
        names = [(step, known[recipe, seed].path.name, there) for step, (recipe, seed, there) in pairs]
        ks = KS if run.recipe.name in THROUGHOUT else VARIANT_KS
        made = partial(_measure, run, pairs, ks, known, spaces)
        tables.append(kept_measures(run.path, "overlaps", made, __name__, names, ks))
    return pd.concat(tables, ignore_index=True) if tables else as_measures([])


def parent_of(recipe: str) -> str:
    """Headline recipe whose variant a recipe is; a headline recipe is its own.

    >>> parent_of("rlvr_project_early"), parent_of("mix_50"), parent_of("control_sft")
    ('rlvr', 'opd', 'control_sft')
    """
    return recipe if recipe in HEADLINE else next((h for h in ("rlvr", "sft") if recipe.startswith(f"{h}_")), "opd")


def equal_step(checkpoints: Sequence[int], step: int) -> int:
    """First checkpoint at or after a number of updates, or the last there is.

    >>> equal_step([30, 50, 80], 40), equal_step([2, 4], 40)
    (50, 4)
    """
    return next((c for c in checkpoints if c >= step), checkpoints[-1])


def counterparts(run: Run, known: Mapping[tuple[str, int], Run]) -> list[tuple[int, Point]]:
    """Pairs of an own step and the point it is compared with, each once, in order."""
    name, seed = run.recipe.name, run.seed
    seeds = [key for key in known if key[0] == name and key[1] != seed]
    if name not in THROUGHOUT:
        step, parent = run.recipe.steps, parent_of(name)
        wanted = [(step, parent)] + ([(step, "rlvr")] if parent == "opd" else [])
        wanted += [(step, corner) for corner in CORNERS if name == BOTH_CHANGED]
        found = [(step, _point(known, recipe, seed, at)) for at, recipe in wanted if (recipe, seed) in known]
        return sorted(found + [(step, _point(known, *key, step)) for key in seeds])
    opd = next((r for (recipe, _), r in known.items() if recipe == "opd"), run)
    found = []
    for updates in (equal_step(opd.recipe.checkpoints, math.ceil(opd.recipe.steps / 2)), opd.recipe.steps):
        own = _point(known, name, seed, updates)[2]
        pairs = [key for key in known if (key[0] in THROUGHOUT and key[0] != name and key[1] == seed)]
        found += [(own, _point(known, *key, updates)) for key in (*pairs, *seeds)]
    return sorted(set(found))


def _point(known: Mapping[tuple[str, int], Run], recipe: str, seed: int, updates: int) -> Point:
    checkpoints = known[recipe, seed].recipe.checkpoints
    return recipe, seed, checkpoints[-1] if recipe == "sft" else equal_step(checkpoints, updates)


def missing_counterparts(runs: Sequence[Run], others: Sequence[Run]) -> list[tuple[str, int]]:
    """Name the runs that ``runs`` are compared with and whose checkpoint is not there (recipe and seed)."""
    known = {(run.recipe.name, run.seed): run for run in (*others, *runs)}
    points = [point for run in runs for _, point in counterparts(run, known)]
    return sorted({point[:2] for point in points if not _stored(known, point)})


def _stored(known: Mapping[tuple[str, int], Run], point: Point) -> bool:
    return checkpoint_path(known[point[:2]].path, point[2]).is_file()


def _measure(
    run: Run,
    pairs: Sequence[tuple[int, Point]],
    ks: Sequence[int],
    known: Mapping[tuple[str, int], Run],
    spaces: dict[Point, Spaces],
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for step, point in pairs:
        (delta, own), (delta_there, there) = (
            _spaces(known, p, spaces) for p in ((run.recipe.name, run.seed, step), point)
        )
        curves = {
            name: {("overlap", side, k): [similarity(f, there[name], side, k)] for side in SIDES for k in ks}
            for name, f in own.items()
        }
        other = dict(zip(("other_recipe", "other_seed", "other_step"), point, strict=True))
        scopes = scopes_of(run)
        found = [*scope_rows(curves, [step], scopes), *cosine_rows(delta, delta_there, step, scopes)]
        if point[0] == run.recipe.name and step == run.recipe.steps:  # what seeds share, matrix by matrix
            found += [
                {"scope": name, "step": step, "side": side, "k": k, "quantity": quantity, "value": value}
                for name, curve in curves.items() for (quantity, side, k), (value,) in curve.items() if k == MATRIX_K
            ]  # fmt: skip
            found += [
                row | {"scope": name}
                for name in delta
                for row in cosine_rows({name: delta[name]}, {name: delta_there[name]}, step, ["all"])
            ]
        rows += [row | other for row in found]
    return tagged(run, rows)


def cosine_rows(
    deltas: Mapping[str, Tensor], others: Mapping[str, Tensor], step: int, scopes: Sequence[str] = tuple(SCOPES)
) -> list[dict[str, Any]]:
    """Cosine of two updates over all matrices of a scope together, -1 to 1; no row where one of them is zero.

    >>> deltas = {"a.q_proj.w": torch.tensor([3.0, 4.0]), "a.up_proj.w": torch.tensor([0.0])}
    >>> others = {"a.q_proj.w": torch.tensor([4.0, 3.0]), "a.up_proj.w": torch.tensor([5.0])}
    >>> [(row["scope"], round(row["value"], 3)) for row in cosine_rows(deltas, others, 8)]
    [('attention', 0.96), ('all', 0.679)]
    """
    rows = []
    for scope in scopes:
        names = [name for name in deltas if scope == "all" or any(f".{module}." in name for module in ATTENTION)]
        one, two = (torch.cat([part[name].double().flatten() for name in names]) for part in (deltas, others))
        if float(norms := one.norm() * two.norm()) > 0:
            value = float(torch.dot(one, two) / norms)
            rows.append({"step": step, "scope": scope, "quantity": "update_cosine", "value": value})
    return rows


def _spaces(known: Mapping[tuple[str, int], Run], point: Point, spaces: dict[Point, Spaces]) -> Spaces:
    """Read and factor the updates of one point once, however many pairs ask for it."""
    if point not in spaces:
        deltas = {name: stack[0] for name, stack in read_path(known[point[:2]], [point[2]]).updates.items()}
        spaces[point] = deltas, {name: factor(delta) for name, delta in deltas.items()}
    return spaces[point]
