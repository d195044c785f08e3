"""A long table of measures as the chapters on control get it: every variant, seeded, no run behind it."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from opdgeom_utils.chapters.control import ALPHAS, EQUAL, RAW, TOKENS, VARIANTS, WRITERS, sweep, variant_label
from opdgeom_utils.measures.long_table import as_measures, pick
from opdgeom_utils.vocabulary import label

STEPS = (2, 4, 8, 12, 16, 20, 26, 32, 40)
RLVR_STEPS = (2, 4, 8, 16, 30, 50)
ONE_SEED = ("10", "top5", "random5", "raw", "anchor_writes", "base_writes", "vocab")


def seeds_of(recipe: str) -> range:
    return range(1) if recipe.endswith(ONE_SEED) or recipe.startswith("equal") else range(3)


@cache
def measures() -> pd.DataFrame:
    """Stable rank 6 for OPD and all variants but the small alphas, 4 for RLVR; overlaps, skill and moments to match."""
    draw = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for recipe in ("opd", "rlvr", *VARIANTS):
        rank = 4.0 if recipe in ("rlvr", "mix_05", "mix_01") else 6.0
        for seed in seeds_of(recipe):
            for step in RLVR_STEPS if recipe == "rlvr" else STEPS:
                keep = {"profile": "first_regime", "recipe": recipe, "seed": seed, "step": step}
                value = rank + 0.1 * float(draw.normal())
                rows.append(keep | {"scope": "attention", "quantity": "stable_rank", "value": value})
                rows.append(keep | {"scope": "attention", "quantity": "stable_rank_bf16", "value": value * 1.5})
                rows.append(keep | {"quantity": "accuracy", "value": 0.55 + 0.001 * step})
                rows.append(keep | {"quantity": "teacher_distance", "value": 0.5 - 0.002 * step})
            rows += overlaps(recipe, seed)
    for seed in range(3):
        rows += [row | {"profile": "first_regime", "seed": seed, "scope": "attention"} for row in moments()]
    return as_measures(rows)


def overlaps(recipe: str, seed: int) -> list[dict[str, Any]]:
    keep = {
        "profile": "first_regime",
        "recipe": recipe,
        "seed": seed,
        "step": 50 if recipe == "rlvr" else 40,
        "scope": "attention",
    }
    others = [("rlvr", seed, 50), *(("opd", s, 40) for s in range(3) if recipe == "opd" or s == seed)]
    if recipe == "opd_teacher_writes_full_vocab":
        others += [("opd_full_vocab", seed, 40), ("opd_teacher_writes", seed, 40)]
    columns = ("other_recipe", "other_seed", "other_step")
    others = [dict(zip(columns, o, strict=True)) for o in others if o[:2] != (recipe, seed)]
    level = {"right": 0.6, "left": 0.3}
    return [
        keep | {"quantity": "overlap", "k": 4, "side": side, "value": level[side] + 0.01 * seed} | other
        for side in ("right", "left")
        for other in others
    ]


def moments() -> list[dict[str, Any]]:
    """Rows of the second moments at the anchor: masks near 1, mixtures between, and every null."""
    rows: list[dict[str, Any]] = []
    for side in ("right", "left"):
        for k in (4, 16):
            keep = {"step": 0, "side": side, "k": k, "other_recipe": "opd"}
            for recipe in ("rlvr", *TOKENS, *WRITERS, *RAW, *EQUAL):
                for quantity in ("moment_alignment", "moment_alignment_independent"):
                    rows.append(keep | {"recipe": recipe, "quantity": quantity, "value": 0.8})
                    if recipe in RAW or recipe in EQUAL:
                        with_rlvr = keep | {"other_recipe": "rlvr", "recipe": recipe, "quantity": quantity}
                        rows.append(with_rlvr | {"value": 0.5})
            for null, value in {"half_batches": 0.7, "random_credit": 0.6, "random": k / 192}.items():
                rows.append(keep | {"recipe": "opd", "quantity": "moment_alignment", "null": null, "value": value})
            rows.append(
                keep
                | {"recipe": "opd", "quantity": "moment_alignment_independent", "null": "random_credit", "value": 0.5}
            )
        keep = {"step": 0, "side": side, "other_recipe": "opd"}
        for recipe in ("rlvr", *TOKENS, *WRITERS):
            for quantity in (
                "moment_fit",
                "moment_fit_noise",
                "moment_fit_independent",
                "moment_fit_noise_independent",
            ):
                rows.append(keep | {"recipe": recipe, "quantity": quantity, "value": 0.9})
            rows += [keep | {"recipe": recipe, "quantity": f"moment_fit_{e}", "value": 0.9} for e in ("low", "high")]
            rows.append(keep | {"recipe": recipe, "quantity": "moment_scale", "value": 2.0})
        for null in ("half_batches", "random_credit", "identity"):
            rows.append(keep | {"recipe": "opd", "quantity": "moment_fit", "null": null, "value": 0.7})
        rows.append(
            keep | {"recipe": "opd", "quantity": "moment_fit_independent", "null": "random_credit", "value": 0.4}
        )
        for number in ALPHAS:
            for other, value in {"opd+rlvr+cross": 1.0, "opd+rlvr": 0.8}.items():
                for quantity in ("moment_fit", "moment_fit_independent"):
                    rows.append(
                        keep | {"recipe": f"mix_{number}", "quantity": quantity, "other_recipe": other, "value": value}
                    )
    opd = {"step": 0, "recipe": "opd"}
    rows.append(opd | {"quantity": "gradient_ratio", "other_recipe": "rlvr", "value": 6.0})
    rows.append(opd | {"quantity": "gradient_cosine", "other_recipe": "opd", "null": "other_batch", "value": 0.1})
    rows.append({"step": 0, "recipe": "rlvr", "quantity": "gradient_cosine", "other_recipe": "opd", "value": 0.5})
    return rows


def mixed_alignment() -> pd.DataFrame:
    """Overlap of the raw mixtures' second moment with OPD's and with RLVR's, over the weight, as curves."""
    cell = {"quantity": "moment_alignment", "other_recipe": ["opd", "rlvr"], "k": 4, "side": "left", "step": 0}
    rows = pick(measures(), recipe=list(RAW), null="", **cell)
    rows = rows.assign(row=rows["recipe"].map(variant_label), panel="with " + rows["other_recipe"].map(label))
    return sweep(rows, {name: (name[6:], "raw") for name in RAW.values()})
