"""Tables of the chapter on noise: the literature's runs and overlaps, and the book's own, beside what noise gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from opdgeom_utils import metrics
from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.claims import load_reported, matching
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.measures.noise import noise_sparsity_of, walk_of, walks_of_runs
from opdgeom_utils.models import load_model
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.vocabulary import label, listed

QUANTILES = 2**12
VISIBLE, SMALL = "visible share", "of it on small weights"
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


def own_runs(tables: BookTables, recipes: Sequence[str]) -> pd.DataFrame:
    """List the book's runs at their ends: sparsity measured, mean over seeds, and predicted by noise.

    Returns ``recipe, run, objective, kind, source, sparsity, predicted, low, high``, and over all matrices together
    ``ratio`` (of the norm to that of noise), ``own_ratio`` (to that of noise as strong at each update as the run's own
    gradients) and ``coherence``; ``accuracy`` and ``gain``, sampled, 0 to 1; ``seeds``.
    """
    ends = matching.matched(matching.summarise(tables.geometry, None), "final")
    last = tables.geometry.merge(ends[["recipe", "seed", "step"]])
    beside = ("walk_ratio", "own_ratio", "coherence")
    last = last.loc[last["recipe"].isin(recipes)]
    walks = walks_of_runs(last, tables.training).groupby("recipe").agg(dict.fromkeys(beside, "mean"))
    ratio, own_ratio, coherence = (walks[column].to_dict() for column in beside)
    learned = matching.final(matching.accuracy_gain(tables.accuracy)).groupby("recipe")
    sampled, gained = (learned.agg({column: "mean"})[column].to_dict() for column in ("sampled", "gain"))
    rows = []
    for recipe in recipes:
        own = ends.loc[ends["recipe"] == recipe]
        rows.append(
            {
                "recipe": recipe, "run": f"{label(recipe)} here", "objective": label(recipe),
                "sparsity": float(own["update_sparsity"].mean()),
                "predicted": _noise_sparsity(tables, recipe),
                "ratio": ratio[recipe], "own_ratio": own_ratio[recipe], "coherence": coherence[recipe],
                "accuracy": sampled[recipe], "gain": gained[recipe],
                "seeds": own["seed"].nunique(),
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(kind=table["objective"], source="this book", low=table["predicted"], high=table["predicted"])


def _noise_sparsity(tables: BookTables, recipe: str) -> float:
    """Look up what noise leaves unchanged at a recipe's end, or compute it where it was not kept."""
    kept = None if tables.measures is None else pick(tables.measures, quantity="noise_sparsity", recipe=recipe)
    return noise_sparsity_of(recipe, tables.profile) if kept is None or kept.empty else float(kept["value"].mean())


def say_learned(runs: pd.DataFrame) -> str:
    """Say how far learning and its null objective went beside noise, and what each of them made of the model.

    ``runs``: from :func:`own_runs`, by recipe.

    >>> rows = {"ratio": [1.0, 1.3, 2.0], "sparsity": 0.04, "predicted": 0.04, "accuracy": 0.6, "gain": 0.1}
    >>> runs = pd.DataFrame(rows, index=["opd_random_credit", "opd", "opd_full_vocab"])
    >>> say_learned(runs).split(". ")[-1]
    'Learning lies in the direction (chapter 5 compares seeds), and only where the signal is strong also in the length.'
    """
    ratio, accuracy, gain = (runs[column].to_dict() for column in ("ratio", "accuracy", "gain"))
    off = (runs["sparsity"] - runs["predicted"]).abs().to_dict()["opd_random_credit"]
    others = [name for name in ("opd", "opd_full_vocab", "rlvr") if name in ratio]
    said = listed(f"{label(name)} {ratio[name]:.2f} times ({accuracy[name]:.0%} right)" for name in others)
    return (
        f"Random credit moved {ratio['opd_random_credit']:.2f} times as far as noise, and noise predicts its sparsity "
        f"to {100 * off:.2f} points, though it ruined the model: {accuracy['opd_random_credit']:.0%} right, where it "
        f"began at {accuracy['opd'] - gain['opd']:.0%}. So the ruler holds on real text and real gradients. Of those "
        f"that learn, {said}. So a run can learn a good deal and move hardly further than noise. Learning lies "
        "in the direction (chapter 5 compares seeds), and only where the signal is strong also in the length."
    )


def say_strengths(runs: pd.DataFrame) -> str:
    """Say which runs look different beside noise as strong as their own gradients. ``runs``: as :func:`say_learned`.

    >>> runs = pd.DataFrame({"ratio": [1.3, 1.07], "own_ratio": [1.3, 1.01]}, index=["opd", "rlvr_random_reward"])
    >>> say_strengths(runs)
    'It changes little for OPD (1.30 to 1.30). It changes most for random reward (1.07 to 1.01).'
    """
    moved = (runs["own_ratio"] / runs["ratio"] - 1).abs().sort_values()
    shown = {name: f"{label(name)} ({runs['ratio'][name]:.2f} to {runs['own_ratio'][name]:.2f})" for name in runs.index}
    most = moved.index[moved > 0.01] if (moved > 0.01).any() else moved.index[-1:]
    least = [shown[name] for name in runs.index if name not in set(most)]
    return f"It changes little for {listed(least)}. It changes most for {listed([shown[name] for name in most])}."


def by_kind(tables: BookTables, recipes: Sequence[str]) -> pd.DataFrame:
    """Walk ratio of each kind of matrix (rows) in each run (columns) at OPD's last update, mean of layers and seeds."""
    last = load_recipe("opd", tables.profile).steps
    at = tables.geometry.query("recipe in @recipes and step == @last").dropna(subset=["update_norm"])
    walks = {recipe: walk_of(recipe, tables.profile, last).rms for recipe in recipes}
    moved = at["update_norm"] / at["n_entries"] ** 0.5 / at["recipe"].map(walks)
    found = at.assign(ratio=moved).groupby(["module", "recipe"])["ratio"].mean().unstack()[list(recipes)]
    return found.rename(columns=label).rename_axis(columns=None)


def say_by_kind(found: pd.DataFrame) -> str:
    """Say which kinds of matrix go less far than noise, and that random credit goes just as far everywhere.

    >>> found = pd.DataFrame({"random credit": [1.0, 1.02], "RLVR": [0.75, 1.03]}, index=["v_proj", "up_proj"])
    >>> say_by_kind(found).split("**")[1]
    'Less far than noise go RLVR in v_proj (0.75).'
    """
    null = found[label("opd_random_credit")]
    less = found.drop(columns=null.name).stack()
    less = less[less < 0.9].sort_values()
    runs = {str(run): own for run, own in less.groupby(level=1)}
    said = [f"{run} in {listed(f'{kind} ({v:.2f})' for (kind, _), v in own.items())}" for run, own in runs.items()]
    return (
        f"Random credit goes as far as noise in every kind of matrix ({null.min():.2f} to {null.max():.2f}). "
        f"**Less far than noise go {listed(said)}.** Noise cannot do that. It takes gradients that oppose the steps "
        "before them: what one update does there, later ones partly undo. So a run can show fewer changes than noise, "
        "and still learn elsewhere."
    )


def overlaps() -> pd.DataFrame:
    """List the literature's overlaps beside what bf16 alone gives masks of those densities, and beside chance.

    Returns the columns of ``published_overlaps.csv``, then ``gated`` (normal displacements), ``gated_laplace`` and
    ``chance`` (masks that do not look at the weights).
    """
    rows = load_reported("published_overlaps")
    found = [_gated(row) for _, row in rows.iterrows()]
    return rows.join(pd.DataFrame(found, columns=["gated", "gated_laplace", "chance"]))


def noise_curve() -> pd.DataFrame:
    """Visible share and low-magnitude overlap under noise, for weights with the distribution of Qwen3-8B's.

    Returns ``relative`` (rms displacement over the weights' root mean square, 1e-5 to 1), ``series``, ``value``.
    """
    w = torch.cat([weights for weights, _ in sizes_of("Qwen3-8B")])
    size, rows = float(w.double().square().mean().sqrt()), []
    for power in np.arange(-250, 1) / 50:
        visible = min(1.0, 1 - metrics.noise_sparsity(w, size * 10**power))
        rows += [(power, VISIBLE, visible), (power, SMALL, metrics.gated_overlap(w, visible))]
    curve = pd.DataFrame(rows, columns=["power", "series", "value"])
    return curve.assign(relative=10.0 ** curve["power"])


def marks_on_curve(literature: pd.DataFrame, own: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Place the paper's three runs and the book's on :func:`noise_curve`: where noise puts them, and what they show."""
    rows = []
    for _, run in literature.head(3).iterrows():
        w = torch.cat([weights for weights, _ in sizes_of(run["weights"])]).double()
        size = float(w.square().mean().sqrt())
        rows.append((f"{run['kind']}, paper", run["walk"] / size, run["sparsity"]))
    for _, run in own.iterrows():
        start = load_model(load_recipe(run["recipe"], profile).start)
        w = torch.cat([p.detach().flatten() for p in start.parameters() if p.ndim == 2]).double()
        size = float(w.square().mean().sqrt())
        rows.append((f"{run['kind']}, here", walk_of(run["recipe"], profile).rms / size, run["sparsity"]))
    marks = pd.DataFrame(rows, columns=["run", "relative", "sparsity"])
    kinds = ["published", "this book"]
    return marks.assign(value=1 - marks["sparsity"], source=[kinds[i >= 3] for i in range(len(marks))])


def drunkards(n_walkers: int, n_steps: int, seed: int = 0) -> pd.DataFrame:
    """Walk in two dimensions, turning at random at each step, and once straight: ``walker, series, step, x, y``."""
    turns = np.random.default_rng(seed).uniform(0, 2 * np.pi, (n_walkers, n_steps))
    steps = np.stack([np.cos(turns), np.sin(turns)])
    places = np.concatenate([np.zeros((2, n_walkers, 1)), steps.cumsum(axis=2)], axis=2)
    ahead = np.arange(n_steps + 1)
    parts = [
        pd.DataFrame({"walker": f"drunkard {i + 1}", "series": "drunkards", "step": ahead, "x": x, "y": y})
        for i, (x, y) in enumerate(zip(*places, strict=True))
    ]
    straight = pd.DataFrame({"walker": "straight", "series": "straight", "step": ahead, "x": 1.0 * ahead, "y": 0.0})
    return pd.concat([*parts, straight], ignore_index=True)


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
