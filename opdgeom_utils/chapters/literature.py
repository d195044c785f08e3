"""The literature's runs and overlaps beside what noise gives their schedules and the sizes of their weights."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from opdgeom_utils import metrics
from opdgeom_utils.claims import load_reported
from opdgeom_utils.vocabulary import listed

QUANTILES = 2**12
PAPER = ["Qwen3-8B-SFT", "OPD-8B-T32B", "RLVR-8B"]
BETAS = (0.9, 0.999)  # where a source says nothing


@cache
def sizes_of(model: str) -> tuple[tuple[Tensor, int], ...]:
    """Weights as large as a public model's, from their Weibull fits: evenly spaced quantiles of each kind of matrix.

    Returns for each kind of matrix 4,096 bf16 numbers, and how many entries they stand for.

    >>> weights, entries = sizes_of("Qwen3-8B")[0]
    >>> len(weights), entries, round(float(weights.double().square().mean().sqrt()), 3)
    (4096, 16777216, 0.027)
    """
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    rows = load_reported("weight_sizes").query("model == @model")
    return tuple(
        (torch.from_numpy(scale * (-np.log1p(-shares)) ** (1 / shape)).bfloat16(), int(entries))
        for entries, shape, scale in rows[["entries", "weibull_k", "weibull_lambda"]].itertuples(index=False)
    )


def sparsity_of_sizes(model: str, rms: float, *, shrinkage: float = 0.0) -> float:
    """Share of a public model's entries that noise of this rms is expected to leave unchanged in bf16."""
    parts = sizes_of(model)
    found = sum(n * metrics.noise_sparsity(w, rms, shrinkage=shrinkage) for w, n in parts)
    return found / sum(n for _, n in parts)


def rms_of_sparsity(model: str, sparsity: float) -> float:
    """Displacement at which a public model's entries would be left unchanged in this share; found by bisection.

    >>> round(sparsity_of_sizes("Qwen3-8B", rms_of_sparsity("Qwen3-8B", 0.5)), 6)
    0.5
    """
    low, high = -9.0, 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sparsity_of_sizes(model, 10**middle) > sparsity else (low, middle)
    return 10 ** ((low + high) / 2)


def published() -> pd.DataFrame:
    """List the literature's runs, predicted by noise beside measured.

    Returns the columns of ``published_runs.csv``, ``kind`` and ``source``, then ``predicted`` with its band ``low`` to
    ``high`` over the updates and the weights that may be meant, ``literal`` (the same with steps as printed), the
    displacement of noise ``walk``, and ``ratio``, how many times as far as that the entries must have moved to be left
    unchanged as measured. All nan where the number of updates is unknown.
    """
    runs = load_reported("published_runs")
    runs = runs.join(pd.DataFrame([_predicted(run) for _, run in runs.iterrows()]))
    return runs.assign(kind=runs["objective"].map(kind_of), source="published")


def named(runs: pd.DataFrame, fits: pd.Series) -> pd.DataFrame:
    """Give a ``tag`` to the runs that a figure names, the paper's and those that noise does not fit; empty for others.

    >>> runs = pd.DataFrame({"run": ["RLVR-8B", "PRIME-7B", "ProRL-1.5B"], "kind": "RLVR", "ratio": [0.8, 2.4, 0.9]})
    >>> named(runs, runs["ratio"].between(0.5, 1.5))["tag"].tolist()
    ["paper's RLVR", 'PRIME-7B', '']
    """
    tags = runs["run"].where(~fits & runs["ratio"].notna(), "")
    return runs.assign(tag=tags.mask(runs["run"].isin(PAPER), "paper's " + runs["kind"]))


def say_paper(runs: pd.DataFrame) -> str:
    """Say what noise would leave unchanged in the paper's runs, and how many times as far as noise they went.

    ``runs``: rows of :func:`published`.

    >>> runs = {"kind": ["SFT", "OPD"], "predicted": [0.1, 0.8], "sparsity": [0.08, 0.5], "ratio": [1.1, 2.5]}
    >>> say_paper(pd.DataFrame(runs)).split("**")[1].split("parameters ")[1]
    "OPD's entries moved 2.5 times as far as noise moves them; SFT's 1.1 times."
    """
    rows = runs.filter(items=["kind", "predicted", "sparsity", "ratio"]).to_dict(orient="records")
    shares = [f"{run['kind']} {run['predicted']:.0%} (measured {run['sparsity']:.0%})" for run in rows]
    first, *others = sorted(rows, key=lambda run: -run["ratio"])
    rest = listed(f"{run['kind']}'s {run['ratio']:.1f} times" for run in others)
    known = runs.dropna(subset=["literal"]) if "literal" in runs else runs.iloc[:0]
    printed = [f"{run['kind']} {run['literal']:.0%}" for run in known.to_dict(orient="records")]
    inferred = ", if one update was made for each rollout (which is inferred)," if printed else ""
    said = (
        f"**In the paper's models of 8 billion parameters{inferred} {first['kind']}'s entries moved "
        f"{first['ratio']:.1f} times as far as noise moves them; {rest}.** Noise alone would leave unchanged: "
        f"{listed(shares)}."
    )
    if not printed:
        return said
    less = [run["kind"] for run in known.to_dict(orient="records") if run["literal"] < run["sparsity"]]
    sign = f"; then {listed(less)} would have moved less far than noise" if less else ""
    return f"{said} Were the steps as printed the updates, noise would leave {listed(printed)}{sign}."


def overlaps() -> pd.DataFrame:
    """List the literature's overlaps beside what bf16 alone gives masks of those densities, and beside chance.

    Returns the columns of ``published_overlaps.csv``, then ``gated`` (normal displacements), ``gated_laplace`` and
    ``chance`` (masks that do not look at the weights).
    """
    rows = load_reported("published_overlaps")
    found = [_gated(row) for _, row in rows.iterrows()]
    return rows.join(pd.DataFrame(found, columns=["gated", "gated_laplace", "chance"]))


def kind_of(objective: str) -> str:
    """Return the kind of training that an objective of the literature is.

    >>> [kind_of(objective) for objective in ("SFT", "DAPO", "SimPO")]
    ['SFT', 'RLVR', 'preferences']
    """
    kinds = {"GRPO": "RLVR", "DAPO": "RLVR", "RL": "RLVR", "DPO": "preferences", "SimPO": "preferences"}
    return kinds.get(objective, objective)


def rates_published(run: pd.Series, updates: int) -> list[float]:
    """Learning rates of a run of the literature, if it made so many updates."""
    final = 0.0 if math.isnan(run["final_learning_rate"]) else float(run["final_learning_rate"])
    return metrics.learning_rate_schedule(
        float(run["learning_rate"]), updates, schedule=run["schedule"], warmup=float(run["warmup"]),
        final_learning_rate=final,
    )  # fmt: skip


def _predicted(run: pd.Series) -> dict[str, float]:
    models = run["weights"].split(";")

    def at(updates: float, model: str) -> tuple[float, float]:
        rates = rates_published(run, int(updates))
        decay = 0.0 if math.isnan(run["weight_decay"]) else float(run["weight_decay"])
        betas = BETAS if math.isnan(run["beta1"]) else (float(run["beta1"]), float(run["beta2"]))
        walk = metrics.noise_walk_rms(rates, betas=betas, weight_decay=decay)
        shrinkage = metrics.decay_shrinkage(rates, weight_decay=decay)
        return walk, sparsity_of_sizes(model, walk, shrinkage=shrinkage)

    if math.isnan(run["updates"]):
        return dict.fromkeys(("predicted", "low", "high", "literal", "walk", "ratio"), math.nan)
    best = [at(run["updates"], model) for model in models]
    band = [at(run[end], model)[1] for end in ("updates_low", "updates_high") for model in models]
    literal = math.nan if math.isnan(run["updates_literal"]) else at(run["updates_literal"], models[0])[1]
    predicted = float(np.mean([sparsity for _, sparsity in best]))
    walk = best[0][0]
    needed = float(np.mean([rms_of_sparsity(model, float(run["sparsity"])) for model in models]))
    return {
        "predicted": predicted, "low": min(band), "high": max(band), "literal": literal, "walk": walk,
        "ratio": needed / walk,
    }  # fmt: skip


def _gated(row: pd.Series) -> tuple[float, float, float]:
    parts = sizes_of(row["weights"])
    a, b = float(row["density_a"]), float(row["density_b"])
    chance = {"low_magnitude": 0.3, "of_a": b, "of_b": a, "jaccard": a * b / (a + b - a * b)}[row["measure"]]
    w = torch.cat([weights for weights, _ in parts])
    tolerance = 0.0 if row["tolerance"] == "bf16" else float(row["tolerance"])
    found = []
    for law in ("normal", "laplace"):
        if row["measure"] == "low_magnitude":
            found.append(metrics.gated_overlap(w, a, law=law, tolerance=tolerance))
        else:
            found.append(getattr(metrics.gated_mask_agreement(w, a, b, law=law, tolerance=tolerance), row["measure"]))
    return found[0], found[1], chance
