"""The book's own runs beside what noise gives, and the curve that the sliders of the chapter on noise move on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter

import numpy as np
import pandas as pd
import torch

from opdgeom_utils import metrics
from opdgeom_utils.chapters.committed_tables import BookTables, published_card
from opdgeom_utils.chapters.decay import REST, with_decay
from opdgeom_utils.chapters.literature import sizes_of
from opdgeom_utils.chapters.missing_runs import is_at_hand
from opdgeom_utils.chapters.update_path import cosines
from opdgeom_utils.chapters.where import NULL_OBJECTIVES
from opdgeom_utils.claims import load_claims, matching
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.measures.noise import SCOPE_OF, noise_sparsity_of, walk_of, walks_of_runs
from opdgeom_utils.models import load_model
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.scopes import ATTENTION
from opdgeom_utils.vocabulary import label, listed

TURNED = {"norm": "update_norm", "angle": "right_angle_mean_deg", "shift": REST}
VISIBLE, SMALL = "visible share", "of it on small weights"
RATES = ("opd_128", "opd_rate_1e5", "opd_rate_3e6")
SHORT = 0.9  # times as far as noise, below which a kind of matrix is named
ALIKE = 1.5  # times as far, or as short: about as far, for what a sentence says
HARDLY = 1.1  # times as far as noise: no further, for what a sentence says
NULL_RATES = ("opd_random_credit_128", "opd_random_credit_1e5", "opd_random_credit_3e6")

SHIPPED = "first_regime"  # whose OPD starts from a model that comes with the book


def own_runs(tables: BookTables, recipes: Sequence[str], modules: tuple[str, ...] | None = None) -> pd.DataFrame:
    """List the book's runs at their ends: sparsity measured, mean over seeds, and predicted by noise.

    ``recipes``: those that the tables have not are left out.
    ``modules``: kinds of matrix, attention's or all of the layers'; None takes all tensors.

    Returns ``recipe, run, objective, kind, source, sparsity, predicted, low, high``, and over all matrices together
    ``ratio`` (of the norm to that of noise), ``own_ratio`` (to that of noise as strong at each update as the run's own
    gradients) and ``coherence``; ``accuracy`` and ``gain``, sampled, 0 to 1; ``seeds``.
    """
    geometry = tables.geometry if modules is None else tables.geometry.loc[tables.geometry["module"].isin(modules)]
    ends = matching.matched(matching.summarise(geometry, None), "final")
    last = geometry.merge(ends[["recipe", "seed", "step"]])
    beside = ("walk_ratio", "own_ratio", "coherence")
    last = last.loc[last["recipe"].isin(recipes)]
    walks = walks_of_runs(last, tables.training).groupby("recipe").agg(dict.fromkeys(beside, "mean"))
    ratio, own_ratio, coherence = (walks[column].to_dict() for column in beside)
    learned = matching.final(matching.accuracy_gain(tables.accuracy)).groupby("recipe")
    sampled, gained = (learned.agg({column: "mean"})[column].to_dict() for column in ("sampled", "gain"))
    recipes = [name for name in recipes if name in set(last["recipe"])]
    rows, regime = [], ", first regime" if tables.profile == "first_regime" else ""
    for recipe in recipes:
        own = ends.loc[ends["recipe"] == recipe]
        rows.append(
            {
                "recipe": recipe, "run": f"{label(recipe)} here{regime}", "objective": label(recipe),
                "sparsity": float(own["update_sparsity"].mean()),
                "predicted": _noise_sparsity(tables, recipe, modules),
                "ratio": ratio[recipe], "own_ratio": own_ratio[recipe], "coherence": coherence[recipe],
                "accuracy": sampled[recipe], "gain": gained[recipe],
                "seeds": own["seed"].nunique(),
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(kind=table["objective"], source="this book", low=table["predicted"], high=table["predicted"])


def _noise_sparsity(tables: BookTables, recipe: str, modules: tuple[str, ...] | None) -> float:
    """Look up what noise leaves unchanged at a recipe's end, or compute it where it was not kept."""
    cell = {"quantity": "noise_sparsity", "scope": SCOPE_OF[modules]}
    kept = None if tables.measures is None else pick(tables.measures, recipe=recipe, **cell)
    return (
        noise_sparsity_of(recipe, tables.profile, modules)
        if kept is None or kept.empty
        else float(np.mean(kept["value"]))
    )


def say_learned(runs: pd.DataFrame) -> str:
    """Say how far learning and its null objective went beside noise, and what each of them made of the model.

    ``runs``: from :func:`own_runs`, by recipe.

    >>> rows = {"ratio": [1.0, 1.3, 2.0], "sparsity": 0.04, "predicted": 0.04, "accuracy": 0.6, "gain": 0.1}
    >>> runs = pd.DataFrame(rows, index=["opd_random_credit", "opd", "opd_full_vocab"])
    >>> say_learned(runs).split(". ")[-1]
    'A steady signal shows in the direction (chapter 5 compares seeds), and in the length only where it is strong.'
    """
    ratio, accuracy, gain = (runs[column].to_dict() for column in ("ratio", "accuracy", "gain"))
    off = (runs["sparsity"] - runs["predicted"]).abs().to_dict()["opd_random_credit"]
    others = [name for name in ("opd", "opd_full_vocab", "rlvr") if name in ratio]
    said = listed(f"{label(name)} {ratio[name]:.2f} times ({accuracy[name]:.0%} right)" for name in others)
    near = [name for name in others if ratio[name] < HARDLY and gain[name] > 0]
    nulls = [NULL_OBJECTIVES.get(name, "") for name in near]
    beside = [f" ({label(null)}: {ratio[null]:.2f})" if null in ratio else "" for null in nulls]
    went = [
        f"{label(name)} gained {100 * gain[name]:.0f} points and went {ratio[name]:.2f} times as far{null}"
        for name, null in zip(near, beside, strict=True)
    ]
    no_further = f" So a run can learn and go hardly further than noise: {listed(went)}." if went else ""
    return (
        f"Random credit moved {ratio['opd_random_credit']:.2f} times as far as noise, and noise predicts its sparsity "
        f"to {100 * off:.2f} points, though it ruined the model: {accuracy['opd_random_credit']:.0%} right, where it "
        f"began at {accuracy['opd'] - gain['opd']:.0%}. So the ruler holds on real text and real gradients. Of those "
        f"that learn, {said}.{no_further} A steady signal shows in the direction (chapter 5 compares seeds), and in "
        "the length only where it is strong."
    )


def say_amounts(low: float, high: float) -> str:
    """Say whether runs moved about as far as noise, given how many times as far the shortest and the longest went.

    >>> say_amounts(0.9, 1.4).split(".")[0], say_amounts(0.1, 2.4)
    ('So these runs moved about as far as noise', 'So these runs did not all move as far as noise.')
    """
    if not 1 / ALIKE <= low <= high <= ALIKE:
        return "So these runs did not all move as far as noise."
    return (
        "So these runs moved about as far as noise. A chapter that finds differences between their objectives has to "
        "find them elsewhere than in amounts."
    )


def say_strengths(runs: pd.DataFrame) -> str:
    """Say which runs look different beside noise as strong as their own gradients. ``runs``: as :func:`say_learned`.

    >>> runs = pd.DataFrame({"ratio": [1.3, 1.07], "own_ratio": [1.3, 1.01]}, index=["opd", "rlvr_random_reward"])
    >>> say_strengths(runs)
    'It changes little for OPD (1.30 to 1.30). It changes most for random reward (1.07 to 1.01).'
    """
    plain, own = (runs[column].to_dict() for column in ("ratio", "own_ratio"))
    moved = {str(name): abs(own[name] / plain[name] - 1) for name in plain}
    shown = {name: f"{label(name)} ({plain[name]:.2f} to {own[name]:.2f})" for name in moved}
    most = [name for name in moved if moved[name] > min(0.01, 0.999 * max(moved.values()))]
    least = [shown[name] for name in moved if name not in most]
    return f"It changes little for {listed(least)}. It changes most for {listed([shown[name] for name in most])}."


def rate_ladder(tables: BookTables, names: Sequence[str] = RATES) -> pd.DataFrame:
    """List the runs that differ in rate only, the highest first, as :func:`own_runs` does, with their ``rate``.

    Of the attention matrices, where the paper looks, also ``norm`` of the update, ``angle`` (degrees, mean of the right
    leading space) and ``shift`` of the spectrum without decay, means over seeds; ``cosine``: of two seeds' updates.
    """
    held = [name for name in names if name in set(tables.geometry["recipe"])]
    runs = own_runs(tables, held)
    recipes = [load_recipe(name, tables.profile) for name in held]
    rates = [f"{recipe.learning_rate:.0e}".replace("e-0", "e-") for recipe in recipes]
    kinds = [label("opd_random_credit" if recipe.random_credit else "opd") for recipe in recipes]
    named = [f"{kind} at {rate}" for kind, rate in zip(kinds, rates, strict=True)]
    own = replace(tables, geometry=tables.geometry.loc[tables.geometry["recipe"].isin(held)])
    turned = matching.matched(matching.summarise(with_decay(own).geometry, ATTENTION), "final").groupby("recipe")
    means = turned.agg(dict.fromkeys(TURNED.values(), "mean")).loc[held]
    geometry = {column: means[measure].to_numpy(float) for column, measure in TURNED.items()}
    shared = [pd.Series(cosines(tables.measures, name, name), dtype=float).mean() for name in held]
    return runs.assign(rate=rates, run=named, kind=kinds, cosine=shared, **geometry)


def say_turned(runs: pd.DataFrame, nulls: pd.DataFrame) -> str:
    """Say how far OPD turns and shifts attention matrices beside random credit. Both are of :func:`rate_ladder`.

    Its first line is the lowest rate, in few words.

    >>> runs = pd.DataFrame({"rate": ["1e-4", "1e-5"], "norm": [1.0, 3.0], "angle": [2.0, 4.0], "shift": [1.0, 3.0]})
    >>> null = pd.DataFrame({"rate": ["1e-4", "1e-5"], "norm": 1.0, "angle": 2.0, "shift": 1.0, "cosine": [0.0, -0.1]})
    >>> print(say_turned(runs.assign(cosine=[0.5, 0.8], seeds=2), null).split("; ")[0])
    At 1e-5 OPD's attention matrices go 3.00 times as far as random credit's and turn 2.00 times as far (seeds: 2).
    As multiples of random credit's, at 1e-4 and 1e-5, OPD's leading spaces turn 1.00 and 2.00 times as far
    """
    both = runs.merge(nulls, on="rate", suffixes=("", "_null")).set_index("rate")
    if both.empty:
        return ""
    times = pd.DataFrame({column: both[column] / both[f"{column}_null"] for column in TURNED})
    shared, by_chance = (listed(f"{value:z.2f}" for value in both[column]) for column in ("cosine", "cosine_null"))
    angles, shifts, norms = (listed(f"{ratio:.2f}" for ratio in times[column]) for column in ("angle", "shift", "norm"))
    return (
        f"At {both.index[-1]} OPD's attention matrices go {times['norm'].iloc[-1]:.2f} times as far as random credit's "
        f"and turn {times['angle'].iloc[-1]:.2f} times as far (seeds: {min(both['seeds'])}).\n"
        f"As multiples of random credit's, at {listed(both.index)}, OPD's leading spaces turn {angles} times as far; "
        f"the spectrum shifts, decay left out, {shifts} times as far, and the update is {norms} times as long. "
        f"Updates of two seeds have cosines of {shared} (random credit {by_chance}). No rule was written for this "
        "before it was seen."
    )


def say_rates(runs: pd.DataFrame, nulls: pd.DataFrame | None = None) -> str:
    """Say where the rate puts OPD on few prompts, and how far beyond noise. Both are of :func:`rate_ladder`.

    >>> runs = pd.DataFrame({"rate": ["1e-4", "1e-5"], "sparsity": [0.04, 0.5], "predicted": [0.05, 0.7]})
    >>> say_rates(runs.assign(ratio=[1.0, 2.0], seeds=1)).split("**")[1]
    'At 1e-4 it went 1.00 times as far as noise, at 1e-5 2.00 times'
    """
    first, *between, last = runs.filter(items=["rate", "sparsity", "predicted", "ratio"]).to_dict(orient="records")
    others = listed(f"at {run['rate']} {run['ratio']:.2f} times" for run in (*between, last))
    seeds = sorted({int(n) for n in runs["seeds"]})
    many = (
        f"{seeds[0]} to {seeds[-1]} seeds a rate" if len(seeds) > 1 else f"{seeds[0]} seed{'s' * (seeds != [1])} each"
    )
    beside = [] if nulls is None or nulls.empty else nulls.filter(items=["rate", "ratio"]).to_dict(orient="records")
    null = listed(f"{run['ratio']:.2f} at {run['rate']}" for run in beside)
    return (
        f"OPD on 128 prompts an update goes from {first['sparsity']:.0%} to {last['sparsity']:.0%} unchanged when its "
        f"rate is turned from {first['rate']} to {last['rate']}.\n**At {first['rate']} it went {first['ratio']:.2f} "
        f"times as far as noise, {others}** ({many})."
        + (f" Random credit, with nothing to learn from, went {null} times as far." if null else "")
        + f" Noise at {last['rate']} would leave {last['predicted']:.0%} unchanged."
    )


def by_kind(tables: BookTables, recipes: Sequence[str]) -> pd.DataFrame:
    """Walk ratio of each kind of matrix (rows) in each run (columns) at OPD's last update, mean of layers and seeds."""
    last = load_recipe("opd", tables.profile).steps
    at = tables.geometry.query("recipe in @recipes and step == @last").dropna(subset=["update_norm"])
    walks = {recipe: walk_of(recipe, tables.profile, last).rms for recipe in recipes}
    moved = at["update_norm"] / at["n_entries"] ** 0.5 / np.array([walks[name] for name in at["recipe"]])
    found = at.assign(ratio=moved).pivot_table("ratio", "module", "recipe")
    return pd.DataFrame({label(name): found[name] for name in recipes})


def say_by_kind(found: pd.DataFrame) -> str:
    """Say which kinds of matrix go less far than noise, and how far the null objectives go.

    >>> found = pd.DataFrame({"random credit": [1.0, 1.02], "RLVR": [0.75, 1.03]}, index=["v_proj", "up_proj"])
    >>> say_by_kind(found).split("**")[1]
    'Less than 0.9 times as far as noise go RLVR in v_proj (0.75).'
    """
    columns = {str(run): own for run, own in found.to_dict().items()}
    null = [ratio for name in NULL_OBJECTIVES.values() for ratio in columns.pop(label(name), {}).values()]
    said = []
    for run, ratios in columns.items():
        less = [f"{kind} ({ratio:.2f})" for kind, ratio in sorted(ratios.items(), key=itemgetter(1)) if ratio < SHORT]
        said += [f"{run} in {listed(less)}"] if less else []
    return (
        f"The null objectives go {min(null):.2f} to {max(null):.2f} times as far as noise in every kind of matrix. "
        f"**Less than {SHORT} times as far as noise go {listed(said)}.** So an objective can show fewer changes there "
        "than its own null does."
    )


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


def opened_profile(profile: str) -> tuple[str, str]:
    """Name the profile of whose OPD a number is computed from the weights themselves, and why it is not the one asked.

    The reason begins with a space; it is empty where the profile is the one asked for.

    >>> opened_profile("toy")
    ('toy', '')
    """
    start = load_recipe("opd", profile).start
    if is_at_hand(start):
        return profile, ""
    return SHIPPED, f" (Of profile {SHIPPED}: the weights that OPD of {profile} started from, {start}, are not here.)"


def blind_card(tables: BookTables) -> pd.DataFrame:
    """Judge the claims on sparsity whose rule stood before the runs, by the tables of those runs."""
    return published_card(tables, [claim for claim in load_claims() if claim.condition == "noise_blind"])


def marks_on_curve(literature: pd.DataFrame, own: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Place the paper's three runs and the book's on :func:`noise_curve`: where noise puts them, and what they show.

    A run of the book is left out where the weights that it began at are not on this machine.
    """
    rows = []
    for _, run in literature.head(3).iterrows():
        w = torch.cat([weights for weights, _ in sizes_of(run["weights"])]).double()
        size = float(w.square().mean().sqrt())
        rows.append((f"{run['kind']}, paper", run["walk"] / size, run["sparsity"]))
    for _, run in own.iterrows():
        named = load_recipe(run["recipe"], profile).start
        if not is_at_hand(named):
            continue
        start = load_model(named)
        w = torch.cat([p.detach().flatten() for p in start.parameters() if p.ndim == 2]).double()
        size = float(w.square().mean().sqrt())
        rows.append((f"{run['kind']}, here", walk_of(run["recipe"], profile).rms / size, run["sparsity"]))
    marks = pd.DataFrame(rows, columns=["run", "relative", "sparsity"])
    kinds = ["published", "this book"]
    return marks.assign(value=1 - marks["sparsity"], source=[kinds[i >= 3] for i in range(len(marks))])


def drunkards(n_walkers: int, n_steps: int) -> pd.DataFrame:
    """Walk in two dimensions, turning at random at each step, and once straight: ``walker, series, step, x, y``."""
    turns = np.random.default_rng(0).uniform(0, 2 * np.pi, (n_walkers, n_steps))
    steps = np.stack([np.cos(turns), np.sin(turns)])
    places = np.concatenate([np.zeros((2, n_walkers, 1)), steps.cumsum(axis=2)], axis=2)
    ahead = np.arange(n_steps + 1)
    parts = [
        pd.DataFrame({"walker": f"drunkard {i + 1}", "series": "drunkards", "step": ahead, "x": x, "y": y})
        for i, (x, y) in enumerate(zip(*places, strict=True))
    ]
    straight = pd.DataFrame({"walker": "straight", "series": "straight", "step": ahead, "x": 1.0 * ahead, "y": 0.0})
    return pd.concat([*parts, straight], ignore_index=True)
