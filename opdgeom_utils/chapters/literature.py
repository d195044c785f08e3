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
from opdgeom_utils.scopes import ATTENTION
from opdgeom_utils.vocabulary import listed

QUANTILES = 2**12
PAPER = ["Qwen3-8B-SFT", "OPD-8B-T32B", "RLVR-8B"]
MODEL, MATRICES = "Qwen3-8B", list(ATTENTION)  # of the paper's runs and its norms
SURE = ("read", "inferred", "recalled", "unknown")  # how the number of updates is known, the surest first
FITS = 1.5  # a run lies on the line of noise within this factor
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
    unchanged as measured; ``ratio_most`` is that at the most updates that may be meant. Of the paper's runs
    ``norm_ratio`` is the same by the norms of attention matrices that it prints. All nan where the number of updates is
    unknown.
    """
    runs = load_reported("published_runs")
    runs = runs.join(pd.DataFrame([_predicted(run) for _, run in runs.iterrows()]))
    rms = runs["run"].map(dict(zip(PAPER, printed_rms(), strict=True)))
    return runs.assign(kind=runs["objective"].map(kind_of), source="published", norm_ratio=rms / runs["walk"])


def printed_rms() -> list[float]:
    """Displacement per entry of the paper's SFT, OPD and RLVR, by the mean norm of attention matrices that it prints.

    A matrix of n entries that all moved as far has a norm of that times the root of n.

    >>> [f"{rms:.1e}" for rms in printed_rms()]
    ['1.5e-03', '1.5e-04', '5.5e-05']
    """
    sizes = load_reported("weight_sizes").query("model == @MODEL and matrix in @MATRICES")["entries"].to_numpy(float)
    norms = load_reported().query("quantity == 'attention_update_norm'").set_index("recipe")["value"]
    return [float(norms[name] / np.sqrt(sizes).mean()) for name in ("sft", "opd", "rlvr")]


def paper_beside_noise(runs: pd.DataFrame) -> pd.DataFrame:
    """Lay out what the paper's three runs leave unchanged, what noise alone would, and how far beyond it they went.

    ``runs``: of :func:`published`. The last two columns are the same question put to
    the two numbers that the paper prints: its sparsities, and the norms of its attention matrices.
    """
    own = runs.set_index("run").loc[PAPER]
    return pd.DataFrame(
        {
            "the paper's": own["kind"].tolist(),
            "unchanged": [f"{share:.0%}" for share in own["sparsity"]],
            "by noise alone": [f"{share:.0%}" for share in own["predicted"]],
            "times as far as noise": [f"{ratio:.1f}" for ratio in own["ratio"]],
            "by its norms": [f"{ratio:.1f}" for ratio in own["norm_ratio"]],
        }
    )


def named(runs: pd.DataFrame, fits: pd.Series) -> pd.DataFrame:
    """Give a ``tag`` to the runs that a figure names, the paper's and those that noise does not fit; empty for others.

    >>> runs = pd.DataFrame({"run": ["RLVR-8B", "PRIME-7B", "ProRL-1.5B"], "kind": "RLVR", "ratio": [0.8, 2.4, 0.9]})
    >>> named(runs, runs["ratio"].between(0.5, 1.5))["tag"].tolist()
    ["paper's RLVR", 'PRIME-7B', '']
    """
    tags = runs["run"].where(~fits & runs["ratio"].notna(), "")
    return runs.assign(tag=tags.mask(runs["run"].isin(PAPER), "paper's " + runs["kind"]))


def say_fits(runs: pd.DataFrame, fits: pd.Series) -> str:
    """Say how many runs of the literature lie near noise, of all whose updates are known or guessed, and of the surer.

    >>> runs = pd.DataFrame({"ratio": [1.0, 2.0, 1.1], "sure": ["read", "inferred", "recalled"]})
    >>> say_fits(runs, runs["ratio"] < 1.5)
    'Of 3 runs of the literature whose number of updates is known or guessed (1 read, 1 inferred, 1 recalled) 2 lie
    within a factor of 1.5 of noise, of those read or inferred 1 of 2.'
    """
    known = runs.loc[runs["ratio"].notna()]
    how = ", ".join(f"{n} {words}" for words in SURE if (n := int((known["sure"] == words).sum())))
    near, surer = fits[known.index], known["sure"].isin(list(SURE[:2]))
    return (
        f"Of {len(known)} runs of the literature whose number of updates is known or guessed ({how}) {near.sum()} lie "
        f"within a factor of {FITS} of noise, of those read or inferred {(surer & near).sum()} of {surer.sum()}."
    )


def say_paper(runs: pd.DataFrame) -> str:
    """Say how many times as far as noise the paper's runs went, by both its numbers, and what noise would leave.

    The first line is the finding.

    ``runs``: rows of :func:`published`.

    >>> rows = {"kind": ["SFT", "OPD"], "predicted": [0.1, 0.8], "sparsity": [0.08, 0.5], "ratio": [1.1, 2.5]}
    >>> for said in say_paper(pd.DataFrame(rows)).split("**"):
    ...     print(said.strip())
    <BLANKLINE>
    By the sparsity that the paper reports OPD moved the weights 2.5 times as far as noise moves them, SFT 1.1 times.
    Noise alone would leave unchanged: SFT 10% (measured 8%) and OPD 80% (measured 50%).
    """
    rows = runs.to_dict(orient="records")
    shares = [f"{run['kind']} {run['predicted']:.0%} (measured {run['sparsity']:.0%})" for run in rows]
    first, *others = sorted(rows, key=lambda run: -run["ratio"])
    rest = listed(f"{run['kind']} {run['ratio']:.1f} times" for run in others)
    known = runs.dropna(subset=["literal"]) if "literal" in runs else runs.iloc[:0]
    printed = [f"{run['kind']} {run['literal']:.0%}" for run in known.to_dict(orient="records")]
    inferred = " (if it made one update for each rollout, which is inferred)" if printed else ""
    said = (
        f"**By the sparsity that the paper reports{inferred} {first['kind']} moved the weights {first['ratio']:.1f} "
        f"times as far as noise moves them, {rest}.** {_by_norm(runs).strip()}\n"
        f"Noise alone would leave unchanged: {listed(shares)}."
    )
    if not printed:
        return said
    less = [run["kind"] for run in known.to_dict(orient="records") if run["literal"] < run["sparsity"]]
    sign = f"; then {listed(less)} would have moved less far than noise" if less else ""
    more = [
        f"{run['kind']} {run['ratio_most']:.1f} times" for run in rows if run["updates_high"] > 1.1 * run["updates"]
    ]
    most = f" At the most updates that may be meant: {listed(more)}." if more else ""
    return f"{said} Were the steps as printed the updates, noise would leave {listed(printed)}{sign}.{most}"


def _by_norm(runs: pd.DataFrame) -> str:
    """Say the same by the norms that the paper prints, and what hangs on which of its two numbers is taken.

    >>> rows = {"kind": ["SFT", "OPD"], "ratio": [1.0, 3.0], "norm_ratio": [2.0, 7.5]}
    >>> _by_norm(pd.DataFrame(rows))
    'By the norms that it prints for attention matrices: OPD 7.5 and SFT 2.0. The order does not hang on which is
    taken; whether SFT is near noise does. '
    """
    known = runs.dropna(subset=["norm_ratio"]) if "norm_ratio" in runs else runs.iloc[:0]
    if known.empty:
        return ""
    rows = sorted(known.to_dict(orient="records"), key=lambda run: -run["norm_ratio"])
    times = listed(f"{run['kind']} {run['norm_ratio']:.1f}" for run in rows)
    by_sparsity = sorted(rows, key=lambda run: -run["ratio"])
    near = [run["kind"] for run in rows if run["ratio"] < FITS < run["norm_ratio"]]
    hangs = f"{listed(near)} {'are' if len(near) > 1 else 'is'} near noise" if near else ""
    same = "The order does not hang on which is taken" if rows == by_sparsity and hangs else ""
    said = f"By the norms that it prints for attention matrices: {times}. "
    return said + (f"{same}; whether {hangs} does. " if same else "")


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
        return dict.fromkeys(("predicted", "low", "high", "literal", "walk", "ratio", "ratio_most"), math.nan)
    best = [at(run["updates"], model) for model in models]
    band = [at(run[end], model)[1] for end in ("updates_low", "updates_high") for model in models]
    literal = math.nan if math.isnan(run["updates_literal"]) else at(run["updates_literal"], models[0])[1]
    predicted = float(np.mean([sparsity for _, sparsity in best]))
    walk = best[0][0]
    needed = float(np.mean([rms_of_sparsity(model, float(run["sparsity"])) for model in models]))
    return {
        "predicted": predicted, "low": min(band), "high": max(band), "literal": literal, "walk": walk,
        "ratio": needed / walk, "ratio_most": needed / at(run["updates_high"], models[0])[0],
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
