"""Small seeded tables of the shapes that the figures take: runs, places, sweeps, a scorecard."""

import itertools
from functools import cache

import numpy as np
import pandas as pd

from opdgeom_utils import claims
from opdgeom_utils.chapters.update_path import path_curves
from opdgeom_utils.claims import matching
from opdgeom_utils.scopes import HEADLINE, MODULES
from opdgeom_utils.vocabulary import RESCALED, ROUNDED, label

RECIPES = {"sft": (0.1, 12.0), "opd": (0.5, 2.0), "rlvr": (0.75, 1.0), "control_sft": (0.45, 2.2)}
STEPS = (2, 10, 40, 100)
METRICS = [*matching.METRICS, "left_angle_max_deg", "right_angle_max_deg", "stable_rank"]


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
            keys = {
                "profile": "first_regime",
                "recipe": recipe,
                "seed": seed,
                "step": step,
                "layer": layer,
                "module": module,
            }
            rows.append(keys | {"n_entries": 1000, "update_norm": size, "reference_norm": 100.0} | values)
    return pd.DataFrame(rows)


@cache
def accuracy() -> pd.DataFrame:
    draw = np.random.default_rng(1)
    rows = [
        ("first_regime", recipe, seed, step, "code", family, 0.4 + 0.02 * step**0.5 + 0.01 * float(draw.normal()))
        for recipe, seed, step, family in itertools.product(RECIPES, range(5), (0, *STEPS), "ab")
    ]
    return pd.DataFrame(rows, columns=["profile", "recipe", "seed", "step", "domain", "family", "sampled"])


def ends(recipes: tuple[str, ...] = ("sft", "opd", "rlvr")) -> pd.DataFrame:
    table = geometry()
    return matching.final(matching.summarise(table.loc[table["recipe"].isin(recipes)]))


def places() -> pd.DataFrame:
    summary = matching.summarise(geometry())
    anchored = summary.loc[summary["recipe"] != "sft"]
    steps = matching.final(summary.loc[summary["recipe"] != "control_sft"]).assign(place="the paper's steps")
    equal = [
        matching.matched(anchored, "equal_updates").assign(place="equal updates"),
        matching.matched(anchored, "equal_norm").assign(place="equal norm"),
        matching.matched(anchored, "equal_accuracy", accuracy()).assign(place="equal accuracy"),
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


def card(question: str = "rq1") -> pd.DataFrame:
    """The real claims of a research question with verdicts dealt out in turn."""
    found = [claim for claim in claims.load_claims() if claim.question == question]
    columns = ("id", "diagnostic", "condition", "statement")
    rows = [{c: getattr(claim, c) for c in columns} for claim in found]
    verdicts = [claims.VERDICTS[i % 5] for i in range(len(found))]
    return pd.DataFrame(rows).assign(verdict=verdicts, deciding="-", reason="1 of 1 comparisons hold.")


@cache
def held_steps() -> pd.DataFrame:
    """Three spaces in which the step is held, two seeds each; the line has not seen the last."""
    spaces = [("early space", 0.4, 0.5), ("random space of 16", 0.2, 0.3), ("all but the early space", 0.8, 0.7)]
    rows = [(space, s, at + 0.01 * s, kept + 0.02 * s) for space, at, kept in spaces for s in range(2)]
    table = pd.DataFrame(rows, columns=["space", "seed", "length", "kept"])
    return table.assign(blind=table["space"] == spaces[-1][0])


def held() -> pd.DataFrame:
    """One row per (projected run, seed): progress kept, update inside, and a seed whose free run gained nothing."""
    draw = np.random.default_rng(3)
    runs = [("opd", "early space", 4, 3), ("opd", "random space", 4, 3), ("opd", "early space, left side", 4, 1)]
    runs += [("sft", "early space", 4, 3), ("rlvr", "early space, update held", 4, 2), ("opd", "final space", 16, 1)]
    rows = [
        {"recipe": f"{free}_{space}", "free": free, "seed": seed, "space": space, "rank": rank, "share": rank / 40,
         "kept": float(draw.normal(0.8, 0.2)), "inside": float(draw.uniform(0.5, 1.0)), "isotropic": rank / 192}
        for free, space, rank, n in runs for seed in range(n)
    ]  # fmt: skip
    rows[-1]["kept"] = np.nan
    return pd.DataFrame(rows)


PATH_SHIFTS = {
    "": 0.0, "random_walk": -0.25, "random_walk_decaying": -0.2, "adam_random": -0.15, "activations": 0.05,
    "shuffled_time": 0.02, "rounding": 0.0,
}  # fmt: skip


@cache
def long_table() -> pd.DataFrame:
    """The long table of paths: every quantity that the figures of the path draw, with its nulls; five seeds."""
    draw, rows = np.random.default_rng(1), []
    for (i, recipe), seed, step in itertools.product(enumerate(RECIPES), range(5), STEPS):
        part, key = (step / 100) ** 0.5, {"profile": "first_regime", "recipe": recipe, "seed": seed, "step": step}
        key |= {"scope": "attention", "side": "", "k": 0, "null": ""}
        key |= {"other_recipe": "", "other_seed": -1, "other_step": -1}
        rank = 6.0 + i + float(draw.normal(scale=0.1))
        rows += [key | {"quantity": "stable_rank", "value": rank}, key | {"quantity": "update_norm", "value": part}]
        rows += [key | {"quantity": "stable_rank_bf16", "value": rank * (2 - part)}]
        rows += [key | {"quantity": "stable_rank", "null": "rounding", "value": 30.0 + i}]
        rows += [key | {"quantity": "stable_rank_bf16", "null": "rounding", "value": rank * (1.8 - 0.8 * part)}]
        rows += [key | {"quantity": "singular_value", "k": j, "value": part / j} for j in range(1, 9)]
        for side, null in itertools.product(("right", "left"), [n for n in PATH_SHIFTS if n != "rounding"]):
            high = 0.4 + 0.5 * part + PATH_SHIFTS[null] - 0.1 * (side == "left") * (null == "activations")
            own = key | {"side": side, "k": 4, "null": null}
            rows.append(own | {"quantity": "sim_to_end", "value": high + float(draw.normal(scale=0.01))})
            rows.append(own | {"quantity": "captured_share", "value": high / 2})
        for other, there, seen in (("opd", (seed + 1) % 5, 0.5), ("rlvr", seed, 0.3), ("sft", seed, 0.2)):
            pair = key | {"other_recipe": other, "other_seed": there, "other_step": 100, "quantity": "overlap", "k": 4}
            rows += [pair | {"side": side, "value": seen + 0.01 * seed} for side in ("right", "left")]
    return pd.DataFrame(rows)


def seed_ranges() -> pd.DataFrame:
    """One setting outside the range of a further seed in one of two diagnostics, and two seeds of OPD."""
    distances = {"code only": (1.5, -0.2), "OPD, seed 0": (0.4, 0.1), "OPD, seed 1": (-0.4, -0.1)}
    rows = [
        {"run": run, "metric": metric, "value": 0.2 + 0.01 * d, "distance": d, "inside": abs(d) <= 1}
        for run, both in distances.items()
        for metric, d in zip(("update sparsity", "left mean angle"), both, strict=True)
    ]
    return pd.DataFrame(rows)


def spectra() -> pd.DataFrame:
    """Singular values of the update along training, as the chapter on the path draws them."""
    table = long_table()
    known = table.loc[table["quantity"] == "singular_value", "k"].unique()
    return pd.concat(
        [path_curves(table, "singular_value", k=int(k)).assign(index=int(k)) for k in known], ignore_index=True
    )


def rounding_panels() -> dict[str, pd.DataFrame]:
    """Stable rank of each objective in fp32, after rounding, and of two things that are rounding alone."""
    panels = {}
    for recipe in HEADLINE:
        exact, shown = (
            path_curves(long_table(), quantity, recipes=[recipe], nulls=["", "rounding"])
            for quantity in ("stable_rank", "stable_rank_bf16")
        )
        names = shown["series"].eq(label(recipe)).map({True: ROUNDED, False: RESCALED})
        panels[f"stable rank, {label(recipe)}"] = pd.concat([exact, shown.assign(series=names)], ignore_index=True)
    return panels


def noise_walks() -> pd.DataFrame:
    """Two walks of four steps that end 5 and 0 from their start, and a straight one."""
    ends = {"one": (3.0, 4.0, "drunkards"), "two": (0.0, 0.0, "drunkards"), "straight": (4.0, 0.0, "straight")}
    rows = [
        {"walker": walker, "series": series, "step": step, "x": step / 4 * x, "y": step / 4 * y}
        for walker, (x, y, series) in ends.items()
        for step in range(5)
    ]
    return pd.DataFrame(rows)


def noise_runs() -> pd.DataFrame:
    """Four runs beside noise, one with another reading of its steps, two with a name."""
    columns = ["run", "kind", "source", "predicted", "low", "high", "sparsity", "literal", "tag"]
    rows = [
        ("first", "SFT", "published", 0.10, 0.05, 0.15, 0.08, np.nan, ""),
        ("OPD", "OPD", "published", 0.80, 0.75, 0.85, 0.50, 0.38, "paper's OPD"),
        ("RLVR", "RLVR", "published", 0.75, 0.75, 0.75, 0.77, np.nan, "paper's RLVR"),
        ("OPD here", "OPD", "this book", 0.16, 0.16, 0.16, 0.15, np.nan, np.nan),
    ]
    return pd.DataFrame(rows, columns=columns)


def noise_overlaps() -> pd.DataFrame:
    """Three overlaps beside what bf16 gives and chance."""
    rows = [("first", 0.3, 0.32, 0.3), ("two seeds", 0.6, 0.55, 0.37), ("third", 0.73, 0.72, 0.3)]
    return pd.DataFrame(rows, columns=["pair", "measured", "gated", "chance"])


def noise_curve() -> pd.DataFrame:
    """Two shares that rise and fall with the displacement."""
    powers = np.arange(-250, 1, 10) / 50
    parts = [
        pd.DataFrame({"power": powers, "relative": 10.0**powers, "series": series, "value": values})
        for series, values in (("visible share", 1 + powers / 5), ("of it on small weights", 0.3 - powers / 10))
    ]
    return pd.concat(parts, ignore_index=True)


def noise_marks() -> pd.DataFrame:
    """Three measured runs on the curve."""
    rows = [("other", "this book", 1e-2, 0.85), ("SFT", "published", 2e-2, 0.92), ("OPD", "published", 7e-4, 0.48)]
    return pd.DataFrame(rows, columns=["run", "source", "relative", "value"])


@cache
def ladder() -> pd.DataFrame:
    """Ladder on the line value = 2 x coherence, and three seeds of RLVR above it."""
    rows = [(name, s, c, 2 * c) for name, c in (("opd_random_credit", 0.0), ("opd", 1.0)) for s in (0, 1)]
    rows += [("rlvr", seed, 0.5 + 0.01 * seed, 1.5) for seed in range(3)]
    frame = pd.DataFrame(rows, columns=["recipe", "seed", "coherence", "value"])
    return frame.assign(statistic="stable rank", metric="stable_rank")
