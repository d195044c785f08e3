"""The chapter on a pretrained model: how much its runs learned, and what they look like beside the toy's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.noise import own_runs
from opdgeom_utils.chapters.null_objectives import AGREE
from opdgeom_utils.chapters.regime import distance_closed, gap_closed
from opdgeom_utils.chapters.update_path import cosines
from opdgeom_utils.chapters.where import at_place
from opdgeom_utils.claims.matching import accuracy_gain, final
from opdgeom_utils.diagnose import diagnose_pair
from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.results import DIAGNOSE_OPTIONS, are_committed, load_sample, sample_of
from opdgeom_utils.runs import load_or_train
from opdgeom_utils.scopes import MODULES, THROUGHOUT
from opdgeom_utils.vocabulary import label, listed

RANDOM, OPD, CONTROL, RLVR = "opd_random_credit", "opd", "control_sft", "rlvr"
RULERS = ("left_angle_mean_deg", "right_angle_mean_deg", "normalized_spectral_shift")


def learned(tables: BookTables) -> pd.DataFrame:
    """Say how much each run learned, from the anchor on.

    Returns
    -------
    DataFrame
        ``recipe, run, seeds, updates``, sampled accuracy at the ``start`` and at the ``end``, and the share of the
        ``gap`` in accuracy to the teacher that was closed (nan where the teacher is no run of these tables) and of the
        ``distance`` to it on fixed text (nan where that was not measured; less than 0 is further away).
    """
    ends = final(accuracy_gain(tables.accuracy))
    rows = []
    for recipe in (name for name in THROUGHOUT if name in set(ends["recipe"])):
        own = ends.loc[ends["recipe"] == recipe]
        end, start = float(own["sampled"].mean()), float((own["sampled"] - own["gain"]).mean())
        row = {"recipe": recipe, "run": label(recipe), "seeds": len(own), "updates": int(own["step"].max())}
        gap = seed_interval(gap_closed(tables, recipe)).mean if recipe != "sft" else math.nan  # SFT starts elsewhere
        distance = distance_closed(tables, recipe).get("fixed", seed_interval([])).mean
        rows.append(row | {"start": start, "end": end, "gap": gap, "distance": distance})
    return pd.DataFrame(rows)


def say_learned(found: pd.DataFrame) -> str:
    """Say from where to where OPD and its null objective went; ``found``: from :func:`learned`.

    >>> rows = {"recipe": ["opd", "opd_random_credit"], "start": 0.4, "end": [0.5, 0.1], "gap": [0.5, -1.5]}
    >>> print(say_learned(pd.DataFrame(rows | {"distance": [0.4, -2.0]})).replace("; ", ";" + chr(10)))
    OPD went from 40% to 50% right, which is 50% of the gap in accuracy and 40% of the distance to its teacher;
    random credit from 40% to 10%.
    """
    said = []
    columns = ["recipe", "start", "end", "gap", "distance"]
    for recipe, start, end, gap, distance in found[found["recipe"].isin([OPD, RANDOM])][columns].itertuples(
        index=False
    ):
        right = " right" if recipe == OPD else ""
        closed = [(gap, "gap in accuracy"), (distance, "distance")]
        parts = listed(f"{share:.0%} of the {what}" for share, what in closed if not math.isnan(share))
        share = f", which is {parts} to its teacher" if recipe == OPD and parts else ""
        said.append(f"{label(recipe)}{' went' * (recipe == OPD)} from {start:.0%} to {end:.0%}{right}{share}")
    return "; ".join(said) + "."


def say_found(tables: BookTables, toy: BookTables) -> str:
    """Say in plain words what came out: noise, the paper's rulers, and direction, each beside random credit."""
    if not {OPD, RANDOM} <= set(tables.geometry["recipe"]):
        return "Without a run of OPD and one of random credit nothing can be said."
    noise = own_runs(tables, [OPD, RANDOM], MODULES).set_index("recipe")["ratio"].to_dict()
    ends = at_place(tables, "equal_updates", [OPD, RANDOM])
    angles = [sum(means_of(ends, name, RULERS[:2])) / 2 for name in (OPD, RANDOM)]
    pairs = [seed_interval(cosines(t.measures, name, name)).mean for t in (tables, toy) for name in (OPD, RANDOM)]
    many = "one seed" if len(tables.seeds) == 1 else f"{len(tables.seeds)} seeds"
    near = "lie side by side" if 1 / 1.5 < angles[0] / angles[1] < 1.5 else "lie apart"
    less = ", less than in the toy" if pairs[0] - pairs[1] < pairs[2] - pairs[3] else ""
    less += f" and than the chapter's rule asks ({AGREE} apart)" if less and pairs[0] - pairs[1] < AGREE else ""
    apart = f"tells them apart{less}" if pairs[0] > pairs[1] + 0.1 else "does not tell them apart"
    direction = (
        f"Direction {apart}: the cosine of two seeds is {pairs[0]:z.2f} for OPD and {pairs[1]:z.2f} for random credit "
        f"(in the toy {pairs[2]:z.2f} and {pairs[3]:z.2f})."
    )
    if math.isnan(pairs[0] + pairs[1]):
        direction = "Of direction nothing can be said: that takes two seeds of OPD and two of random credit."
    kin = seed_interval(cosines(tables.measures, OPD, CONTROL)).mean
    if kin >= pairs[0]:
        direction += (
            f" OPD and control SFT of one seed have {kin:z.2f}, but on the same prompts; seeds of OPD have different "
            "ones. So whether it tells these two apart is open."
        )
    no_sign = " So what OPD learned did not take it further." if noise[OPD] < 1 else ""
    return (
        f"**Random credit, which learns nothing, goes {noise[RANDOM]:.2f} times as far as noise; OPD {noise[OPD]:.2f} "
        f"times.**{no_sign} By the paper's angles the two {near}: {angles[0]:.2f} degrees (OPD) and {angles[1]:.2f}, "
        f"{angles[1] / angles[0]:.2f} times as many. "
        f"{direction} Runs have {many} here at most."
    )


def say_noise(runs: pd.DataFrame) -> str:
    """Say which runs went further than noise, and which no further; ``runs``: from ``noise.own_runs``.

    >>> runs = {"recipe": ["opd", "opd_random_credit"], "ratio": [1.3, 1.0], "sparsity": 0.5, "predicted": [0.6, 0.51]}
    >>> say_noise(pd.DataFrame(runs))
    'Within a tenth of noise: random credit. Further: OPD (1.30 times). Noise misses sparsity by at most 10 points.'
    """
    ratios = {label(name): ratio for name, ratio in runs[["recipe", "ratio"]].itertuples(index=False)}
    near = [name for name, ratio in ratios.items() if abs(ratio - 1) <= 0.1]
    far = [f"{name} ({ratio:.2f} times)" for name, ratio in ratios.items() if ratio > 1.1]
    less = [f"{name} ({ratio:.2f} times)" for name, ratio in ratios.items() if ratio < 0.9]
    off = 100 * np.abs(runs["sparsity"].to_numpy(float) - runs["predicted"].to_numpy(float)).max()
    parts = [("Within a tenth of noise", near), ("Further", far), ("Less far", less)]
    said = " ".join(f"{head}: {listed(names)}." for head, names in parts if names)
    return f"{said} Noise misses sparsity by at most {off:.0f} points."


def say_map(ends: pd.DataFrame) -> str:
    """Say where the runs from the anchor lie on the map, random credit within their span or not, and where SFT lies.

    >>> rows = {"recipe": ["opd", "rlvr", "opd_random_credit", "sft"], "update_sparsity": [0.5, 0.4, 0.45, 0.1]}
    >>> ends = pd.DataFrame(rows).assign(left_angle_mean_deg=[2.0, 1.0, 1.5, 9.0], right_angle_mean_deg=2.0)
    >>> say_map(ends).split("; ")[1]
    'they span 40% to 50% and 1.5 to 2 degrees. SFT: 10%, 5.5 degrees.'
    """
    turned = (ends["left_angle_mean_deg"] + ends["right_angle_mean_deg"]) / 2
    ends = ends.assign(turned=turned)
    at = {name: means_of(ends, name, ["update_sparsity", "turned"]) for name in set(ends["recipe"])}
    null, sft = at.pop(RANDOM, None), at.pop("sft", None)
    spans = [(min(values), max(values)) for values in zip(*at.values(), strict=True)]
    (few, many), (low, high) = spans
    span = f"{few:.0%} to {many:.0%} and {low:.2g} to {high:.2g} degrees"
    said = f"The runs from the anchor span {span}."
    if null is not None:
        inside = few <= null[0] <= many and low <= null[1] <= high
        lies = "among those that have an objective" if inside else "outside the span of those that have an objective"
        said = f"Random credit lies {lies}: {null[0]:.0%} unchanged and {null[1]:.2g} degrees; they span {span}."
    return said + (f" SFT: {sft[0]:.0%}, {sft[1]:.2g} degrees." if sft else "")


def say_direction(tables: BookTables, toy: BookTables) -> str:
    """Say what seeds and objectives agree on, here and in the toy."""
    said = []
    for words, one, other in (
        ("Two seeds of OPD", OPD, OPD), ("two seeds of random credit", RANDOM, RANDOM),
        ("OPD and control SFT of one seed", OPD, CONTROL), ("OPD and RLVR of one seed", OPD, RLVR),
    ):  # fmt: skip
        here, there = (seed_interval(cosines(t.measures, one, other)).mean for t in (tables, toy))
        if not math.isnan(here):
            said.append(f"{words} {here:z.2f} (toy {there:z.2f})")
    return f"Cosines here, and in the toy: {'; '.join(said)}."


def sample(tables: BookTables) -> dict[str, Tensor]:
    """One matrix of each run of OPD and its null objective, at the tables' seeds: committed, or of runs opened now."""
    if are_committed(tables.profile):
        held = load_sample(tables.profile)
    else:
        named = [(name, seed) for name in (OPD, RANDOM) for seed in tables.seeds]
        held = sample_of([load_or_train(name, seed=seed, profile=tables.profile) for name, seed in named])
    wanted = {"reference", *(f"{name}/{seed}" for name in (OPD, RANDOM) for seed in tables.seeds)}
    return {key: w for key, w in held.items() if key in wanted}


def measure(w0: Tensor, w: Tensor, k: int) -> dict[str, Any]:
    """Measure one matrix by the diagnostics that measure a model, with exact nulls."""
    before, after = (
        torch.nn.ModuleDict({"v_proj": torch.nn.Linear(w0.shape[1], w0.shape[0], bias=False)}) for _ in "ab"
    )
    for model, weight in ((before, w0), (after, w)):
        model["v_proj"].weight = torch.nn.Parameter(weight)
    options: dict[str, Any] = DIAGNOSE_OPTIONS | {"k": k}
    return diagnose_pair(before, after, nulls="exact", **options).to_dict("records")[0]


def agrees(row: Mapping[str, Any], tables: BookTables, name: str) -> bool:
    """Whether a matrix of :func:`sample`, measured now, gives what the tables say of it."""
    recipe, seed = name.split("/")
    own = tables.geometry.query("recipe == @recipe and seed == @seed and module == 'v_proj'", local_dict={
        "recipe": recipe, "seed": int(seed)})  # fmt: skip
    own = own.loc[own["step"] == own["step"].max()].sort_values("layer")
    there = own.iloc[len(own) // 2]
    columns = ["update_sparsity", "update_norm", *RULERS]
    return all(math.isclose(row[c], there[c], rel_tol=1e-6, abs_tol=1e-9) for c in columns)


def means_of(rows: pd.DataFrame, recipe: str, columns: Sequence[str]) -> list[float]:
    """Mean of some columns over the rows of a recipe.

    >>> means_of(pd.DataFrame({"recipe": ["opd", "opd", "sft"], "x": [1.0, 2.0, 9.0]}), "opd", ["x"])
    [1.5]
    """
    return rows.loc[rows["recipe"] == recipe, list(columns)].to_numpy(float).mean(axis=0).tolist()
