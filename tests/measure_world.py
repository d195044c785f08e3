"""A table of measures in which every claim on the path holds, made from the cells that the claims name."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

from opdgeom_utils.claims import Claim
from tests.claim_world import AGREEING, HandTables, world

SEEDS = (0, 1, 2, 3, 4)
STEPS = {
    "sft": (10, 80, 160, 800), "rlvr": (2, 4, 8, 16, 30, 50, 120, 274), "opd": (2, 4, 8, 16, 40, 80),
    "control_sft": (2, 4, 8, 16, 40, 80), "rlvr_project_early": (24, 120), "sft_project_early": (160, 800),
}  # fmt: skip
VARIANT = (2, 4, 8, 16, 40)
STARTS = {"opd": 8, "rlvr": 30, "sft": 160}
FIRST_TO_LAST = {
    "stable_rank": {"sft": (10.0, 60.0), "control_sft": (10.0, 60.0), "rlvr": (30.0, 15.0)},
    "hill": {"sft": (1.0, 2.0), "rlvr": (2.0, 1.0), "opd": (1.0, 1.05)},
}
MIXTURES = {"mix_75": 25.2, "mix_50": 25.6, "mix_25": 30.0, "mix_05": 35.0, "mix_01": 40.0}
GAINED = {  # accuracy, and distance to the teacher, at the end of a run; each starts at 0.5 and 1.0
    "opd": (0.6, 0.5), "opd_project_early": (0.6, 0.5), "opd_project_update": (0.6, 0.5), "rlvr": (0.7, 0.6),
    "sft": (0.8, 0.5), "opd_project_activations": (0.55, 0.7), "opd_project_random": (0.53, 0.8),
    "rlvr_project_early": (0.55, 0.9), "sft_project_early": (0.6, 0.8),
}  # fmt: skip
Row = Mapping[str, Any]


def cells_of(node: Any) -> Iterator[Row]:
    """Every cell in the arguments of a claim."""
    if isinstance(node, Mapping):
        if "recipe" in node:
            yield node
        else:
            for inner in node.values():
                yield from cells_of(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from cells_of(inner)


def agreeing(recipe: str, quantity: str, null: str, other: str, step: int) -> float:
    """Return the number that makes the claims hold."""
    steps = STEPS.get(recipe, VARIANT)
    share = (step - steps[0]) / (steps[-1] - steps[0])
    if quantity == "sim_to_end":
        return 0.3 if null else {"opd": 0.85, "sft": 0.5, "rlvr": 0.4}.get(recipe, 0.5)
    if quantity in ("stable_rank", "stable_rank_bf16", "hill"):
        if null:
            return 30.0 if null == "rounding" else 20.0 + 40.0 * share
        ends = FIRST_TO_LAST[quantity.removesuffix("_bf16")].get(recipe)
        return MIXTURES.get(recipe, 25.0) if ends is None else ends[0] + share * (ends[1] - ends[0])
    if quantity in ("accuracy", "teacher_distance"):
        start, end = (
            (0.5, GAINED.get(recipe, (0.5,))[0]) if quantity == "accuracy" else (1.0, GAINED.get(recipe, (1.0, 1.0))[1])
        )
        return end if step > STARTS.get(recipe, 8) else start
    if quantity == "update_cosine":
        return 0.8 if recipe == "opd" else 0.01
    if quantity == "overlap":
        return _overlap(recipe, other)
    if quantity == "moment_fit":
        return 0.5 if other == "opd+rlvr" else 0.95
    if null == "random_credit":
        return 0.5
    levels = {"update_norm": 0.17 if recipe == "rlvr" else 0.45, "captured_share": 0.2 if null else 0.6}
    return levels.get(quantity, 0.95)


def _overlap(recipe: str, other: str) -> float:
    if recipe == "opd":
        return 0.2 if other.startswith("rlvr") else 0.4
    if recipe in ("mix_05", "mix_01"):
        return 0.9 if other.startswith("rlvr") else 0.3
    return 0.8


def others_of(wanted: str, seed: int, step: int) -> list[tuple[str, int, int]]:
    """What a cell's ``other`` means to one seed: ``opd:{rest}@40`` is OPD of every other seed then; or at ``@same``."""
    recipe, _, place = wanted.partition(":")
    if not place:
        return [(recipe, -1, -1)]
    then = place.split("@")[1]
    at = step if then == "same" else int(then)
    return [(recipe, s, at) for s in SEEDS if (s == seed) == place.startswith("{seed}")]


def measures_for(
    claims: tuple[Claim, ...], value: Callable[[str, str, str, str, int], float] = agreeing
) -> pd.DataFrame:
    """Rows of every cell that the claims name, five seeds each, two in a thousand apart."""
    rows: dict[tuple[Any, ...], float] = {}
    for claim in claims:
        for cell in cells_of(claim.args.get("comparisons", [])):
            null, wanted = cell.get("null", ""), cell.get("other", "")
            for seed in SEEDS:
                for step in STEPS.get(cell["recipe"], VARIANT):
                    for other in others_of(wanted, seed, step):
                        key = (cell["recipe"], seed, step, cell.get("scope", claim.scope), cell.get("side", ""))
                        number = value(cell["recipe"], cell["quantity"], null, other[0], step) * (1 + 0.0005 * seed)
                        rows[*key, cell.get("k", 0), cell["quantity"], null, *other] = number
    columns = ["recipe", "seed", "step", "scope", "side", "k", "quantity", "null"]
    columns += ["other_recipe", "other_seed", "other_step"]
    table = pd.DataFrame(list(rows), columns=columns)
    return table.assign(profile="first_regime", value=list(rows.values()))


def full_world(claims: tuple[Claim, ...], value: Callable[[str, str, str, str, int], float] = agreeing) -> HandTables:
    """Geometry and accuracy that agree with the paper, and the measures beside them."""
    tables = world(AGREEING)
    return HandTables(tables.geometry, tables.accuracy, measures_for(claims, value))
