"""Where the updates lie: runs compared where something is equal, metrics beside their nulls and the paper's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, starmap

import pandas as pd

from opdgeom_utils.chapters import seen
from opdgeom_utils.charts.palette import in_order
from opdgeom_utils.claims import matching
from opdgeom_utils.claims.look_up import Tables
from opdgeom_utils.claims.schema import reported_of
from opdgeom_utils.intervals import Interval, disjoint, number, seed_interval
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.scopes import ATTENTION, SFT_NULLS
from opdgeom_utils.vocabulary import label, listed, metric_of

NULLS = ("shuffled", "random")
NULL_OBJECTIVES = {"opd": "opd_random_credit", "rlvr": "rlvr_random_reward"}  # trained alike, with nothing to learn
OF_SFT: dict[str, str] = dict(zip(("sft", "control_sft"), SFT_NULLS, strict=True))  # the same of another profile
MARGIN = 0.1  # a ratio nearer to 1 is no difference worth a sentence
DIFFER, ALIKE, UNDEFINED = "differ", "alike to a tenth", "undefined"


def at_place(tables: Tables, place: str, recipes: Iterable[str], *, share: float = 1.0) -> pd.DataFrame:
    """One row per run where the runs are compared: each metric over the matrices that the claims average.

    ``tables``: geometry and accuracy of one profile; at equal distance to the teacher its measures too.
    ``place``: a key of :data:`opdgeom_utils.claims.matching.PLACES`.
    ``recipes``: recipes to compare; the common place depends on all of them.
    ``share``: at equal norm, accuracy or distance: the common norm, gain or part closed, as a share of the largest
    that every run reaches, above 0 up to 1. Without effect elsewhere.
    Returns the columns of :func:`opdgeom_utils.claims.matching.summarise` over the attention matrices; the columns of
    sparsity are over all tensors. Then ``matched_at``, ``reason`` and ``place``, its name in words. Raises
    MetricInputError if the place is unknown, or the share is outside its range.
    """
    geometry = tables.geometry.loc[tables.geometry["recipe"].isin(list(recipes))]
    summaries = [matching.summarise(geometry, modules) for modules in (ATTENTION, None)]
    distance = None if tables.measures is None else pick(tables.measures, quantity="teacher_distance", null="")
    attention, everything = (
        matching.matched(summary, place, tables.accuracy, share=share, distance=distance).set_index(matching.RUN)
        for summary in summaries
    )
    for column in [c for c in everything.columns if c.startswith("update_sparsity")]:
        attention[column] = everything[column]
    return attention.reset_index().assign(place=matching.PLACES[place])


def beside_nulls(ends: pd.DataFrame, metrics: Sequence[str], reported: pd.DataFrame | None = None) -> pd.DataFrame:
    """Each objective's mean and 95% interval, its nulls, and the paper's number, as text; several metrics are named.

    ``ends``: one row per run.
    ``reported``: from :func:`opdgeom_utils.claims.load_reported`; None leaves the paper out.

    >>> ends = pd.DataFrame({"recipe": "opd", "seed": [0, 1], "x": [0.25, 0.25], "x_shuffled": [0.5, 0.5]})
    >>> beside_nulls(ends, ["x"]).values.tolist()
    [['OPD', '0.25 (0.25 to 0.25)', '0.5', '-']]
    """
    rows = []
    for metric in metrics:
        shown = metric_of(metric).shown
        for recipe in _ordered(ends):
            own = ends.loc[ends["recipe"] == recipe]
            row = {"measure": metric_of(metric).title, "objective": label(str(recipe))}
            row["mean and 95% interval"] = seed_interval(own[metric]).text(shown)
            for null in NULLS:
                column = f"{metric}_{null}"
                row[null] = number(own[column].mean(), shown) if column in own else "-"
            if reported is not None:
                row["the paper, 8B"] = _paper(reported, metric, str(recipe))
            rows.append(row)
    return pd.DataFrame(rows).drop(columns=["measure"] if len(metrics) == 1 else [])


def paper_says(reported: pd.DataFrame, quantity: str) -> str:
    """Say what the paper reports for each objective, and where.

    >>> from opdgeom_utils.claims import load_reported
    >>> paper_says(load_reported(), "update_sparsity")
    'SFT 8.1%, OPD 51.6%, RLVR 77.2% (Table 1)'
    >>> paper_says(load_reported(), "principal_angle_representative_layer")
    'SFT >10 degrees, OPD ~1 degrees, RLVR <0.5 degrees (Figure 2)'
    """
    rows = reported.loc[reported["quantity"] == quantity]
    said = [
        f"{label(recipe)} {_with_unit(value, unit)}"
        for recipe, value, unit in rows[["recipe", "reported", "unit"]].itertuples(index=False)
    ]
    return f"{', '.join(said)} ({rows['where'].iloc[0]})"


def null_ratios(ends: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Each metric divided by its own shuffled null, mean and 95% interval over seeds: 1 means that only size was seen.

    >>> ends = pd.DataFrame({"recipe": "opd", "seed": [0, 1], "x": [1.0, 3.0], "x_shuffled": [1.0, 3.0]})
    >>> null_ratios(ends, ["x"]).to_dict("records")
    [{'measure': 'x', 'OPD': '1.000 (1.000 to 1.000)'}]
    """
    return pd.DataFrame([
        {"measure": metric_of(metric).words}
        | {name: ratio.text(".3f") for name, ratio in ratios_to_null(ends, metric).items()}
        for metric in metrics
    ])  # fmt: skip


def ratios_to_null(ends: pd.DataFrame, metric: str) -> dict[str, Interval]:
    """Return a metric over its own shuffled null for each recipe, by label: mean and 95% interval over seeds.

    >>> ends = pd.DataFrame({"recipe": "opd", "seed": [0, 1], "x": [1.0, 3.0], "x_shuffled": [1.0, 2.0]})
    >>> ratios_to_null(ends, "x")["OPD"].mean
    1.25
    """
    own = {recipe: ends.loc[ends["recipe"] == recipe] for recipe in _ordered(ends)}
    return {label(recipe): seed_interval(rows[metric] / rows[f"{metric}_shuffled"]) for recipe, rows in own.items()}


def say_null_ratios(ends: pd.DataFrame, metrics: Sequence[str]) -> str:
    """Say in which measures the runs' own ratios to their nulls differ, and what of it their null objectives explain.

    They differ where two intervals are disjoint and the largest mean is at least a tenth above the smallest.

    >>> ends = pd.DataFrame({"recipe": ["opd", "opd", "rlvr", "rlvr"], "seed": [0, 1] * 2, "x": [1.0, 1.0, 2.0, 2.0]})
    >>> say_null_ratios(ends.assign(x_shuffled=1.0), ["x"])
    'Unequal in 1 of 1 measures: x (OPD 1.00, RLVR 2.00).'
    >>> credit = ends.iloc[:2].assign(recipe="opd_random_credit")
    >>> say_null_ratios(pd.concat([ends, credit]).assign(x_shuffled=1.0), ["x"]).split("; ")[1]
    'OPD is not told apart from random credit.'
    """
    unequal, known = [], 0
    for metric in metrics:
        found = ratios_to_null(ends, metric)
        means = [interval.mean for interval in found.values() if interval.n]
        known += len(means) > 1
        if not any(starmap(disjoint, combinations(found.values(), 2))) or max(means) < (1 + MARGIN) * min(means):
            continue
        said = ", ".join(f"{name} {interval.mean:.2f}" for name, interval in found.items())
        pairs = [(label(name), label(other)) for name, other in (NULL_OBJECTIVES | OF_SFT).items()]
        beside = [
            f"{name} {'lies apart' if disjoint(found[name], found[other]) else 'is not told apart'} from {other}"
            for name, other in pairs
            if {name, other} <= set(found)
        ]
        decayed = ", weight decay in it" if metric == "normalized_spectral_shift" else ""
        unequal.append("; ".join([f"{metric_of(metric).words}{decayed} ({said})", *beside]))
    what = f": {'. '.join(unequal)}" if unequal else ""
    return f"Unequal in {len(unequal)} of {known} measures{what}." if known else seen.NOT_HERE


def compared(near: pd.DataFrame, metrics: Sequence[str], recipe: str, other: str) -> pd.DataFrame:
    """Ratio of two recipes, seed by seed, beside that of their own shuffled updates, and whether they *differ*.

    They do where the 95% interval of the ratio leaves 1 out and its mean is at least a tenth away from 1. They are
    *alike to a tenth* where the whole interval is nearer to 1 than that.

    ``near``: one row per run, from :func:`at_place`.
    Returns ``measure``, the ratio with its interval as text, the mean ratio of the shuffled updates, and ``verdict``.

    >>> near = pd.DataFrame({"recipe": ["opd", "opd", "rlvr", "rlvr"], "seed": [0, 1] * 2, "x": [2.0, 4.0, 1.0, 2.0]})
    >>> compared(near.assign(x_shuffled=near["x"]), ["x"], "opd", "rlvr").values.tolist()
    [['x', '2.00 (2.00 to 2.00)', '2.00', 'differ']]
    >>> compared(near.assign(x=1.05, x_shuffled=1.0), ["x"], "opd", "rlvr")["verdict"].tolist()
    ['alike to a tenth']
    """
    rows, runs = [], [near.loc[near["recipe"] == name].set_index("seed") for name in (recipe, other)]
    for metric in metrics:
        pairs = (runs[0][column] / runs[1][column] for column in (metric, f"{metric}_shuffled"))
        ratio, null = map(seed_interval, pairs)
        away = max(abs(ratio.low - 1), abs(ratio.high - 1))
        differ = seen.excludes(ratio, 1.0) and abs(ratio.mean - 1) >= MARGIN
        shown = {
            f"{label(recipe)} over {label(other)}": ratio.text(".2f"),
            "shuffled updates": number(null.mean, ".2f"),
        }
        verdict = DIFFER if differ else ALIKE if away < MARGIN else "not decided" if ratio.n else UNDEFINED
        rows.append({"measure": metric_of(metric).title} | shown | {"verdict": verdict})
    return pd.DataFrame(rows)


def say_compared(found: pd.DataFrame) -> str:
    """Say in which measures of :func:`compared` the two differ, by how much beside the shuffled, and in which not.

    >>> rows = {"measure": ["A", "B", "C"], "OPD over RLVR": ["0.80 (0.70 to 0.90)", "1.00", "1.1"]}
    >>> rows |= {"shuffled updates": "0.90", "verdict": ["differ", "alike to a tenth", "not decided"]}
    >>> for said in say_compared(pd.DataFrame(rows)).split(": "):
    ...     print(said)
    OPD over RLVR differs from 1 in 1 of 3 measures
    A 0.80 (0.70 to 0.90), and 0.90 from shuffled updates, which know only sizes. In 1 it is shown to be 1 to a tenth.
    """
    ratio, alike = found.columns[1], found["verdict"].tolist().count(ALIKE)
    apart, known = (found.loc[rows] for rows in (found["verdict"] == DIFFER, found["verdict"] != UNDEFINED))
    if known.empty:
        return f"{ratio} is undefined in every measure: no seed has both runs where they are to be compared."
    shown = [
        f"{row['measure']} {row[ratio]}, and {row['shuffled updates']} from shuffled updates"
        + ", which know only sizes" * (not i)
        for i, row in enumerate(apart.to_dict("records"))
    ]
    what = f": {'; '.join(shown)}" if shown else ""
    rest = f" In {alike} it is shown to be 1 to a tenth." if alike else ""
    return f"{ratio} differs from 1 in {len(apart)} of {len(known)} measures{what}.{rest}"


def say_gaps(points: pd.DataFrame, metric: str) -> str:
    """Say whether OPD keeps its place among the runs, and where the runs are furthest apart and where nearest.

    Parameters
    ----------
    points
        One row per (place, run), from :func:`at_place`.
    metric
        Column to compare, positive.

    Examples
    --------
    >>> points = pd.DataFrame({"recipe": ["sft", "opd"] * 2, "seed": [0, 0, 1, 1], "x": [1.0, 2.0, 1.0, 2.0]})
    >>> points = [points.assign(place="equal norm"), points.assign(place="equal updates", x=[1.5, 1.0] * 2)]
    >>> for said in say_gaps(pd.concat(points), "x").split(". "):
    ...     print(said)
    OPD does not keep its place: above the others at equal norm; below the others at equal updates
    The highest run has 2.0 times the lowest at equal norm, 1.5 times at equal updates.
    """
    places: dict[str, list[str]] = {}
    apart: dict[str, float] = {}
    alone: list[str] = []
    for place, rows in points.groupby("place", sort=False):
        values = seen.by_seed(rows.assign(series=rows["recipe"].map(label), value=rows[metric]), "series")
        if values.shape[1] < 2:  # all but one do not reach it
            alone.append(f"at {place}")
            continue
        places.setdefault(seen.place(values, label("opd")), []).append(f"at {place}")
        means = values.mean()
        apart[f"at {place}"] = float(means.max() / means.min())
    none = f" Fewer than two of the runs have a value {listed(alone)}." if alone else ""
    if not apart:
        return none.strip()
    widest, nearest = (end(apart, key=lambda at: apart[at]) for end in (max, min))
    said = "; ".join(f"{how} {listed(at)}" for how, at in places.items())
    every = "in every panel" if not alone else listed(next(iter(places.values())))
    said = f"does not keep its place: {said}" if len(places) > 1 else f"is {every} {next(iter(places))}"
    least = f", {apart[nearest]:.1f} times {nearest}" if nearest != widest else ""
    return f"OPD {said}. The highest run has {apart[widest]:.1f} times the lowest {widest}{least}.{none}"


def _ordered(ends: pd.DataFrame) -> list[str]:
    """Recipes of a table in the palette's order."""
    names = {label(str(recipe)): str(recipe) for recipe in ends["recipe"].unique()}
    return [names[shown] for shown in in_order(names)]


def _paper(reported: pd.DataFrame, metric: str, recipe: str) -> str:
    rows = reported_of(reported, metric)
    rows = rows.loc[rows["recipe"] == recipe]
    if rows.empty:
        return "-"
    return _with_unit(str(rows["reported"].iloc[0]), str(rows["unit"].iloc[0]))


def _with_unit(value: str, unit: str) -> str:
    if unit.startswith("percent"):
        return f"{value}%"
    return f"{value} degrees" if unit == "degree" else value
