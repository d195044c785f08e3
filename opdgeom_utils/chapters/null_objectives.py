"""What the runs did, in sentences: how much they learned, and what a run leaves that had nothing to learn.

The words are fixed; every number in them comes from the tables.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from opdgeom_utils.chapters.update_path import agreement, cosines
from opdgeom_utils.chapters.where import NULL_OBJECTIVES, at_place, ratios_to_null
from opdgeom_utils.claims import matching
from opdgeom_utils.claims.look_up import Tables
from opdgeom_utils.intervals import number, seed_interval
from opdgeom_utils.scopes import ATTENTION, MODULES, THROUGHOUT
from opdgeom_utils.vocabulary import label, listed, metric_of

FROM_ANCHOR = tuple(name for name in THROUGHOUT if name != "sft")
RULERS = {
    "update_sparsity": "leaves {} of the entries unchanged (OPD {})",
    "left_angle_mean_deg": "turns the leading directions by {} degrees on the output side (OPD {})",
    "right_angle_mean_deg": "by {} on the input side (OPD {})",
    "normalized_spectral_shift": "shifts the spectrum by {} (OPD {})",
}  # fmt: skip
ANGLES = ("left_angle_mean_deg", "right_angle_mean_deg")
SPECTRAL = tuple(RULERS)[1:]  # of them, what looks at singular values and not through bf16
ALIKE = 1.5  # a factor, as in chapter 2
ASKED = 1.2  # the narrower factor of the rule in chapter 2
AGREE = 0.3  # so much more than random credit's must the cosine of OPD's seeds be
NOTHING = tuple(NULL_OBJECTIVES.values())
MLP = tuple(module for module in MODULES if module not in ATTENTION)
FURTHER = {  # what is said of OPD in the MLP: the measure, as a multiple of random credit's
    "total_norm": "is {} times as long",
    "left_angle_mean_deg": "turns the leading directions {} times as far",
    "normalized_spectral_shift": "shifts the spectrum {} times as far",
}  # fmt: skip


def rulers_of(tables: Tables, place: str, recipes: Iterable[str]) -> pd.DataFrame:
    """Means over seeds of the paper's rulers, a row for each recipe that the tables have."""
    held = [name for name in recipes if name in set(tables.geometry["recipe"])]
    if not held:
        return pd.DataFrame(columns=[*RULERS], dtype=float)
    return at_place(tables, place, held).groupby("recipe").agg(dict.fromkeys(RULERS, "mean"))


def learned_sentence(tables: Tables) -> str:
    """Say what sampled accuracy each kind of run ends with, from the anchor's on; empty where nothing starts there."""
    ends = matching.final(matching.accuracy_gain(tables.accuracy)).groupby("recipe")
    means = ends.agg({"sampled": "mean", "gain": "mean", "seed": "nunique"}).to_dict()
    reached, gained, seeds = means["sampled"], means["gain"], means["seed"]
    trained = [recipe for recipe in FROM_ANCHOR if recipe in reached]
    if not trained:
        return ""
    said = listed(f"{label(recipe)} to {reached[recipe]:.0%}" for recipe in trained)
    start, most = reached[trained[0]] - gained[trained[0]], max(seeds[recipe] for recipe in trained)
    few = [f"{label(recipe)}: {seeds[recipe]}" for recipe in trained if seeds[recipe] < most]
    rest = f" ({', '.join(few)})" if few else ""
    return f"From the anchor's {start:.0%} of the held-out problems, training took {said}; seeds: {most}{rest}."


def nothing_sentence(tables: Tables) -> str:
    """Set OPD beside random credit by the paper's rulers; empty where one of them was not trained."""
    pair = ("opd", "opd_random_credit")
    ends = rulers_of(tables, "final", pair)
    opd, null = (ends.filter(items=[name], axis=0).to_dict("records") for name in pair)
    if not opd or not null or ends.isna().to_numpy().any():
        return ""
    both = {metric: (float(null[0][metric]), float(opd[0][metric])) for metric in RULERS}
    shown = {metric: metric_of(metric).shown.replace(".3g", "#.3g") for metric in RULERS}  # 3.00 beside 2.96
    said = listed(RULERS[m].format(*(number(v, shown[m]) for v in values)) for m, values in both.items())
    apart = max(max(a / b, b / a) for a, b in both.values())
    like = "comes within" if apart < ALIKE else "differs by"
    asked = f" (chapter 2 asked for {ASKED})" if ASKED <= apart < ALIKE else ""
    ruined = ", which its training ruins," if _fell(tables, pair[1]) else ""
    return (
        f"By the paper's rulers random credit, a run with nothing to learn{ruined or ','} {like} a factor of "
        f"{apart:.2f} {'of' if apart < ALIKE else 'from'} what OPD leaves, at this rate{asked}. That is in entries "
        "unchanged and, on attention matrices, in the turn of the leading directions and the shift of the "
        f"spectrum.{_in_the_mlp(tables)}\n"
        f"Random credit reads the student's own text. It {said}."
    )


def _in_the_mlp(tables: Tables) -> str:
    """Say how many times as far as random credit OPD goes on the MLP's matrices; empty where they were not measured."""
    rows = tables.geometry.loc[tables.geometry["recipe"].isin(["opd", "opd_random_credit"])]
    if not set(MLP) & set(rows["module"]):
        return ""
    ends = matching.final(matching.summarise(rows, MLP))
    means = ends.groupby("recipe").agg(dict.fromkeys(FURTHER, "mean"))
    times = means.loc["opd"] / means.loc["opd_random_credit"]
    said = listed(words.format(f"{times[metric]:.1f}") for metric, words in FURTHER.items())
    return f" On the MLP's matrices OPD's update {said} (seeds: {ends.groupby('recipe')['seed'].nunique().min()})."


def agreement_sentence(tables: Tables) -> str:
    """Say how far the updates of different seeds point the same way; empty where that was not measured."""
    found = tables.measures
    shared = pd.DataFrame(columns=["recipe", "cosine"]) if found is None else agreement(found).dropna(subset="cosine")
    cosines = dict(zip(shared["recipe"].tolist(), shared["cosine"].tolist(), strict=True))
    if not {"opd", "opd_random_credit"} <= set(cosines):
        return ""
    rest = [f"{label(str(r))} {c:z.2f}" for r, c in cosines.items() if r not in ("opd", "opd_random_credit")]
    across = dict(zip(shared["recipe"].tolist(), shared["with_opd"].tolist(), strict=True))
    kin = ""
    if {"control_sft", "rlvr"} <= set(across):
        nearer = "SFT" if across["control_sft"] > across["rlvr"] else "RLVR"
        nulls = [f"{label(name)} {across[name]:z.2f}" for name in NOTHING if name in across]
        beside = f" ({listed(nulls)}; pairs of one seed)" if nulls else ""
        kin = (
            f" From one anchor OPD's update points more the way of {nearer}: its cosine is "
            f"{across['control_sft']:z.2f} with control SFT and {across['rlvr']:z.2f} with RLVR{beside}."
        )
    opd, null = cosines["opd"], cosines["opd_random_credit"]
    tells = "Direction tells them apart" if opd >= null + AGREE else "Direction does not tell them apart plainly"
    pairs = shared.set_index("recipe").loc[["opd", "opd_random_credit"], "pairs"].min()
    return (
        f"{tells}: updates of two seeds of OPD have a cosine of {opd:z.2f}, those of two seeds of random credit one of "
        f"{null:z.2f} ({pairs} pairs of seeds). A push that is the same in every seed shows so, whatever it teaches.\n"
        + (f"The same cosine of the others: {', '.join(rest)}." if rest else "")
        + kin
    )


def common_direction(tables: Tables) -> str:
    """Say whether seeds of OPD move alike and those of random credit do not; empty where that is not so.

    Begins with a space.
    """
    opd, null = (seed_interval(cosines(tables.measures, name, name)) for name in ("opd", "opd_random_credit"))
    if not opd.mean > null.mean + AGREE:
        return ""
    return (
        " Runs with random credit lack a common direction: two seeds of OPD change the weights alike (cosine "
        f"{opd.mean:z.2f}), two of random credit do not ({null.mean:z.2f}; {min(opd.n, null.n)} pairs each)."
    )


def lie_between(tables: Tables | None) -> bool:
    """Whether both null objectives lie between control SFT and RLVR after as many updates, in most of the measures."""
    counts, _ = _between(tables)
    return bool(counts) and all(2 * n > len(matching.METRICS) for n in counts.values())


def _between(tables: Tables | None) -> tuple[dict[str, int], int]:
    """Count by null objective the measures in which it lies between control SFT and RLVR, by means; and the seeds."""
    ends, held = ("control_sft", "rlvr"), set() if tables is None else set(tables.geometry["recipe"])
    if tables is None or not {*ends, *NOTHING} <= held:
        return {}, 0
    runs = at_place(tables, "equal_updates", ["opd", *ends, *NOTHING])
    means = runs.groupby("recipe").agg(dict.fromkeys(matching.METRICS, "mean"))
    low, high = means.loc[list(ends)].min(), means.loc[list(ends)].max()
    within = {name: int(((means.loc[name] > low) & (means.loc[name] < high)).sum()) for name in NOTHING}
    return within, min(len(set(own["seed"].tolist())) for _, own in runs.groupby("recipe"))


def between_sentence(tables: Tables | None) -> str:
    """Say in how many measures the null objectives lie between control SFT and RLVR after as many updates, by means.

    Begins with a space, to stand after another sentence; empty where one of the four was not trained.
    """
    within, seeds = _between(tables)
    if not within:
        return ""
    names, counts = listed(map(label, within)), listed(map(str, within.values()))
    place = "a place in between needs nothing to learn" if lie_between(tables) else ""
    return (
        f" After as many updates {names} lie between control SFT and RLVR too, in {counts} of {len(matching.METRICS)} "
        f"measures (means over {seeds} seeds, attention matrices){place and f': {place}'}."
    )


def turning_clause(tables: Tables | None) -> str:
    """Say how far the null objectives turn the leading directions beside their shuffled updates; empty without them."""
    if tables is None or "left_angle_mean_deg_shuffled" not in tables.geometry:
        return ""
    held = [name for name in NOTHING if name in set(tables.geometry["recipe"])]
    if not held:
        return ""
    ends = at_place(tables, "final", held)
    means = [interval.mean for m in ANGLES for interval in ratios_to_null(ends, m).values()]
    return (
        f"With nothing to learn {listed(map(label, held))} turn the leading directions {min(means):.1f} to "
        f"{max(means):.1f} times as far as their shuffled updates do"
    )


def _fell(tables: Tables, recipe: str) -> bool:
    """Whether a recipe ends, mean of seeds, with less than half of the accuracy that it started with."""
    if not {"sampled", "recipe"} <= set(tables.accuracy) or recipe not in set(tables.accuracy["recipe"]):
        return False
    ends = matching.final(matching.accuracy_gain(tables.accuracy.loc[tables.accuracy["recipe"] == recipe]))
    now, gain = (ends.loc[:, column].to_numpy(float).mean() for column in ("sampled", "gain"))
    return bool(now < (now - gain) / 2)
