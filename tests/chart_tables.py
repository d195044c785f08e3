"""Small seeded tables of the shapes that the figures take: runs, places, sweeps, a scorecard."""

import itertools
from functools import cache

import numpy as np
import pandas as pd

from opdgeom_utils import claims, matched
from opdgeom_utils.charts.maps import MODULES

RECIPES = {"sft": (0.1, 12.0), "opd": (0.5, 2.0), "rlvr": (0.75, 1.0), "control_sft": (0.45, 2.2)}
STEPS = (2, 10, 40, 100)
METRICS = [*matched.METRICS, "left_angle_max_deg", "right_angle_max_deg", "stable_rank"]


@cache
def geometry() -> pd.DataFrame:
    """One row per (recipe, seed, step, matrix), every metric with its two nulls, seeded."""
    draw = np.random.default_rng(0)
    rows = []
    for (recipe, (sparsity, norm)), seed, step in itertools.product(RECIPES.items(), range(5), STEPS):
        part = (step / 100) ** 0.5
        for layer, module in itertools.product(range(4), MODULES):
            size = norm * part * float(draw.uniform(0.9, 1.1))
            values = {
                "update_sparsity": 1 - (1 - sparsity) * part**0.5 * float(draw.uniform(0.95, 1.0)),
                "left_angle_mean_deg": size,
                "right_angle_mean_deg": 0.8 * size,
                "left_angle_max_deg": 6 * size,
                "right_angle_max_deg": 5 * size,
                "normalized_spectral_shift": 1e-4 * size**2,
                "principal_overlap": 0.3 - 0.02 * sparsity + 0.01 * float(draw.normal()),
                "low_magnitude_overlap": 0.3 + 0.4 * sparsity + 0.01 * float(draw.normal()),
                "stable_rank": 5 + 3 * part,
            }
            values["stable_rank_bf16"] = values["stable_rank"] * (1 + 3 / (1 + size))
            for metric in METRICS:
                values[f"{metric}_shuffled"] = values[metric] * 0.93
                values[f"{metric}_random"] = values[metric] * 1.05
            keys = {"profile": "toy", "recipe": recipe, "seed": seed, "step": step, "layer": layer, "module": module}
            rows.append(keys | {"n_entries": 1000, "update_norm": size, "reference_norm": 100.0} | values)
    return pd.DataFrame(rows)


@cache
def accuracy() -> pd.DataFrame:
    draw = np.random.default_rng(1)
    rows = [
        ("toy", recipe, seed, step, "code", family, 0.4 + 0.02 * step**0.5 + 0.01 * float(draw.normal()))
        for recipe, seed, step, family in itertools.product(RECIPES, range(5), (0, *STEPS), "ab")
    ]
    return pd.DataFrame(rows, columns=["profile", "recipe", "seed", "step", "domain", "family", "sampled"])


def ends(recipes: tuple[str, ...] = ("sft", "opd", "rlvr")) -> pd.DataFrame:
    table = geometry()
    return matched.final(matched.summarise(table.loc[table["recipe"].isin(recipes)]))


def places() -> pd.DataFrame:
    summary = matched.summarise(geometry())
    anchored = summary.loc[summary["recipe"] != "sft"]
    steps = matched.final(summary.loc[summary["recipe"] != "control_sft"]).assign(place="the paper's steps")
    equal = [
        matched.at_equal_updates(anchored).assign(place="equal updates"),
        matched.at_equal_norm(anchored).assign(place="equal norm"),
        matched.at_equal_accuracy(anchored, accuracy()).assign(place="equal accuracy"),
    ]
    return pd.concat([steps, *equal], ignore_index=True)


def sweep(**grid: tuple[float, ...]) -> pd.DataFrame:
    """Sparsity and principal overlap over a grid of settings."""
    draw = np.random.default_rng(2)
    rows = []
    for recipe, seed, *values in itertools.product(("sft", "opd", "rlvr"), range(5), *grid.values()):
        settings = dict(zip(grid, values, strict=True))
        eta, alpha = settings.get("eta", 1e-3), settings.get("alpha", 0.3)
        sparsity = min(1.0, RECIPES[recipe][0] + (0.3 if eta > 2**-8 else 0.0) + 0.01 * float(draw.normal()))
        overlap = alpha * (0.9 + 0.02 * float(draw.normal()))
        metrics = {"update_sparsity": sparsity, "update_sparsity_shuffled": sparsity - 0.03}
        metrics |= {"principal_overlap": overlap, "principal_overlap_shuffled": 0.97 * overlap}
        rows.append({"recipe": recipe, "seed": seed} | settings | metrics)
    return pd.DataFrame(rows)


def family_table() -> pd.DataFrame:
    rows = [
        (model, domain, family, share)
        for model, share in (("base", 0.0), ("anchor", 0.5), ("teacher", 1.0))
        for domain, family in (("code", "runs"), ("code", "uniq"), ("mathematics", "sum"), ("mathematics", "gcd"))
    ]
    return pd.DataFrame(rows, columns=["model", "domain", "family", "sampled"]).assign(greedy=0.5, n_prompts=64)


def credit_table() -> pd.DataFrame:
    credits = {"sft": [1.0] * 12, "rlvr": [-0.5] * 12, "opd": [0.25, 0.1, -4.0, *[0.05] * 9]}
    rows = [
        (objective, place, "12;345$678901"[place - 1], value, place == 3)
        for objective, values in credits.items()
        for place, value in enumerate(values, start=1)
    ]
    return pd.DataFrame(rows, columns=["objective", "position", "token", "credit", "mistake"])


def card() -> pd.DataFrame:
    """The real claims with verdicts dealt out in turn."""
    found = claims.load_claims()
    columns = ("id", "diagnostic", "condition", "statement")
    rows = [{c: getattr(claim, c) for c in columns} for claim in found]
    verdicts = [claims.VERDICTS[i % 4] for i in range(len(found))]
    return pd.DataFrame(rows).assign(verdict=verdicts, deciding="-", reason="1 of 1 comparisons hold.")


def seed_ranges() -> pd.DataFrame:
    """One setting outside the range of a further seed in one of two diagnostics, and two seeds of OPD."""
    distances = {"code only": (1.5, -0.2), "OPD, seed 0": (0.4, 0.1), "OPD, seed 1": (-0.4, -0.1)}
    rows = [
        {"run": run, "metric": metric, "value": 0.2 + 0.01 * d, "distance": d, "inside": abs(d) <= 1}
        for run, both in distances.items()
        for metric, d in zip(("update sparsity", "left mean angle"), both, strict=True)
    ]
    return pd.DataFrame(rows)
