"""The chapter on a pretrained model: how much its runs learned, and what they look like beside the toy's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from opdgeom_utils.chapters.committed_tables import BookTables, tables_for
from opdgeom_utils.chapters.noise import own_runs
from opdgeom_utils.chapters.null_objectives import AGREE
from opdgeom_utils.chapters.regime import distance_closed, gap_closed
from opdgeom_utils.chapters.update_path import cosines
from opdgeom_utils.chapters.where import NULL_OBJECTIVES, at_place
from opdgeom_utils.claims.matching import accuracy_gain, final
from opdgeom_utils.diagnose import diagnose_pair
from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.measures.noise import walks_of_runs
from opdgeom_utils.results import DIAGNOSE_OPTIONS, SAMPLE, are_committed, load_sample, results_of, sample_of
from opdgeom_utils.runs import load_or_train
from opdgeom_utils.scopes import MODULES, THROUGHOUT
from opdgeom_utils.vocabulary import label, listed

PRETRAINED = "smollm2-135m"
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


def say_rlvr(found: pd.DataFrame) -> str:
    """Say whether RLVR learned, and what stands beside it; empty without it. ``found``: from :func:`learned`.

    >>> rows = {"recipe": [RLVR], "start": 0.3, "end": [0.2], "distance": -0.1}
    >>> say_rlvr(pd.DataFrame(rows))
    'RLVR gets worse here and moves away from the teacher: what is said of it is said of a run that did not learn, and
    no run with random reward stands beside it.'
    >>> say_rlvr(pd.DataFrame(rows | {"end": 0.3, "distance": 0.1})).split(":")[0]
    'RLVR gets neither better nor worse here and moves towards the teacher'
    """
    rows = found.loc[found["recipe"] == RLVR].to_dict("records")
    if not rows:
        return ""
    gain, distance = rows[0]["end"] - rows[0]["start"], rows[0]["distance"]
    how = "better" if gain > 0 else "worse" if gain < 0 else "neither better nor worse"
    moves = "" if math.isnan(distance) else f" and moves {'towards' if distance > 0 else 'away from'} the teacher"
    alone = "" if NULL_OBJECTIVES[RLVR] in set(found["recipe"]) else "no run with random reward stands beside it"
    if gain > 0:
        return f"RLVR gets {how} here{moves}{alone and f'; {alone}'}."
    said = f"RLVR gets {how} here{moves}: what is said of it is said of a run that did not learn"
    return f"{said}{alone and f', and {alone}'}."


def say_embeddings(tables: BookTables) -> str:
    """Say how far the embeddings moved beside noise, which the ruler of the layers' matrices leaves out."""
    rows = tables.geometry.loc[tables.geometry["module"] == "embed_tokens"]
    last = rows.loc[rows["step"] == rows.groupby("recipe")["step"].transform("max")]
    if last.empty:
        return ""
    ratios = walks_of_runs(last)["walk_ratio"].groupby(level="recipe").agg("mean").to_dict()
    far = sorted((float(ratio), label(str(recipe))) for recipe, ratio in ratios.items())
    ends = [f"{ratio:.2f} times as far ({run})" for ratio, run in (far[0], far[-1])]
    return (
        f"Embeddings, which are the output layer too, are another matter: beside noise they moved {' to '.join(ends)}."
    )


def say_found(tables: BookTables, toy: BookTables) -> str:
    """Say in plain words what came out: noise, the paper's rulers, and direction, each beside random credit."""
    if not {OPD, RANDOM} <= set(tables.geometry["recipe"]):
        return "Without a run of OPD and one of random credit nothing can be said."
    noise = own_runs(tables, [OPD, RANDOM], MODULES).set_index("recipe")["ratio"].to_dict()
    ends = at_place(tables, "equal_updates", [OPD, RANDOM])
    angles = [sum(means_of(ends, name, RULERS[:2])) / 2 for name in (OPD, RANDOM)]
    pairs = [seed_interval(cosines(t.measures, name, name)).mean for t in (tables, toy) for name in (OPD, RANDOM)]
    many = "one seed" if len(tables.seeds) == 1 else f"{len(tables.seeds)} seeds"
    near = "little" if 1 / 1.5 < angles[0] / angles[1] < 1.5 else "much"
    less = ", less than in the toy" if pairs[0] - pairs[1] < pairs[2] - pairs[3] else ""
    less += f" and than the chapter's rule asks ({AGREE} apart)" if less and pairs[0] - pairs[1] < AGREE else ""
    apart = f"tells the two apart{less}" if pairs[0] > pairs[1] + 0.1 else "does not tell the two apart"
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
            "ones. So whether it tells OPD from control SFT is open."
        )
    no_sign = " So what OPD learned did not take it further." if noise[OPD] < 1 else ""
    return (
        f"**Random credit, which learns nothing, goes {noise[RANDOM]:.2f} times as far as noise; OPD {noise[OPD]:.2f} "
        f"times.**{no_sign} By the paper's angles they differ {near}: {angles[0]:.2f} degrees (OPD) and "
        f"{angles[1]:.2f} (random credit). "
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


def sampled_tables(tables: BookTables) -> tuple[BookTables, str]:
    """Return the tables whose matrix a page measures, and why they are not its own; empty where they are.

    Tables of small models keep no matrix, and their runs would have to be trained for one.
    """
    if not are_committed(tables.profile) or (results_of(tables.profile) / SAMPLE).is_file():
        return tables, ""
    why = f"The matrix is of profile {PRETRAINED}: the tables of {tables.profile} keep none (those of large models do)."
    return tables_for(PRETRAINED, [0, 1, 2], [OPD, RANDOM]), why


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
    """Measure one matrix by the diagnostics that measure a model, with exact nulls.

    An angle of a space that is the whole of its side is nan: it cannot turn (:func:`say_whole`).
    """
    before, after = (
        torch.nn.ModuleDict({"v_proj": torch.nn.Linear(w0.shape[1], w0.shape[0], bias=False)}) for _ in "ab"
    )
    for model, weight in ((before, w0), (after, w)):
        model["v_proj"].weight = torch.nn.Parameter(weight)
    options: dict[str, Any] = DIAGNOSE_OPTIONS | {"k": k}
    row: dict[str, Any] = diagnose_pair(before, after, nulls="exact", **options).to_dict("records")[0]
    return row | dict.fromkeys((column for column in row if column.startswith(whole_sides(w0, k))), math.nan)


def whole_sides(w0: Tensor, k: int) -> tuple[str, ...]:
    """Name the sides of a matrix that have no more than ``k`` directions: ``left_angle``, ``right_angle``.

    >>> whole_sides(torch.zeros(16, 64), 16), whole_sides(torch.zeros(16, 64), 8)
    (('left_angle',), ())
    """
    return tuple(f"{side}_angle" for side, size in zip(("left", "right"), w0.shape, strict=True) if size <= k)


def say_whole(w0: Tensor, k: int) -> str:
    """Say which angles of a matrix are undefined, and why; empty where none is.

    >>> say_whole(torch.zeros(16, 64), 16)
    'The left angle is undefined: this matrix is 16 x 64, so its 16 leading left directions are all that there are, and
    cannot turn. Ask for fewer with `-p k 8`.'
    """
    sides = [side.removesuffix("_angle") for side in whole_sides(w0, k)]
    if not sides:
        return ""
    angles, rows, columns = (f"angle{'s' * (len(sides) > 1)}", *w0.shape)
    return (
        f"The {listed(sides)} {angles} {'are' if len(sides) > 1 else 'is'} undefined: this matrix is {rows} x "
        f"{columns}, so its {min(k, rows, columns)} leading {listed(sides)} directions are all that there are, and "
        f"cannot turn. Ask for fewer with `-p k {max(1, min(rows, columns) // 2)}`."
    )


def agrees(row: Mapping[str, Any], tables: BookTables, name: str, k: int) -> bool:
    """Whether a matrix of :func:`sample`, measured now, gives what the tables say of it.

    Angles are compared where they are defined, and where ``k`` is that of the tables.
    """
    recipe, seed = name.split("/")
    own = tables.geometry.query("recipe == @recipe and seed == @seed and module == 'v_proj'", local_dict={
        "recipe": recipe, "seed": int(seed)})  # fmt: skip
    own = own.loc[own["step"] == own["step"].max()].sort_values("layer")
    there = own.iloc[len(own) // 2]
    angles = [ruler for ruler in RULERS[:2] if k == DIAGNOSE_OPTIONS["k"] and not math.isnan(row[ruler])]
    columns = ["update_sparsity", "update_norm", RULERS[2], *angles]
    return all(math.isclose(row[c], there[c], rel_tol=1e-6, abs_tol=1e-9) for c in columns)


def means_of(rows: pd.DataFrame, recipe: str, columns: Sequence[str]) -> list[float]:
    """Mean of some columns over the rows of a recipe.

    >>> means_of(pd.DataFrame({"recipe": ["opd", "opd", "sft"], "x": [1.0, 2.0, 9.0]}), "opd", ["x"])
    [1.5]
    """
    return rows.loc[rows["recipe"] == recipe, list(columns)].to_numpy(float).mean(axis=0).tolist()
