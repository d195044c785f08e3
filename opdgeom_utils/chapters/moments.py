"""The tables of second moments: who shares OPD's leading directions, and what explains whose moment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from opdgeom_utils.chapters import seen
from opdgeom_utils.chapters.control import STRIP, variant_label
from opdgeom_utils.intervals import number
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.vocabulary import listed

CHANCE, OWN_BATCHES = "random credit", "other batches of OPD"


def moment_table(
    measures: pd.DataFrame, recipes: Sequence[str], quantity: str, *, k: int = 0, step: int = 0
) -> pd.DataFrame:
    """Compare second moments of gradients: ``quantity`` of each objective with OPD, beside its nulls.

    A quantity that ends in ``_independent`` has the same nulls: two halves are independent batches already.
    """
    plain = quantity.removesuffix("_independent").removesuffix("_noise")
    cell: dict[str, Any] = {"other_recipe": "opd", "k": k, "step": step, "side": ["right", "left"]}
    own = pick(measures, recipe=list(recipes), quantity=quantity, null="", **cell)
    names = {"half_batches": OWN_BATCHES, "random_credit": CHANCE, "random": "chance"}
    nulls = pd.concat(
        [
            pick(measures, recipe="opd", quantity=quantity if null == "random_credit" else plain, null=null, **cell)
            for null in names
        ]
    )
    table = pd.concat(
        [own.assign(row=own["recipe"].map(variant_label), kind="variant"),
         nulls.assign(row=[names[null] for null in nulls["null"]], kind="null")]
    )  # fmt: skip
    order = [*map(variant_label, recipes), *names.values()]
    table = table.assign(panel=table["side"] + " moment", place=table["row"].map(order.index))
    table = table.sort_values(["side", "place"], ascending=[False, True], kind="stable")
    return table.filter(items=STRIP).reset_index(drop=True)


def say_easy_bar(measures: pd.DataFrame, masks: Sequence[str], k: int) -> str:
    """Say how masks, RLVR and random credit stand against OPD's own two halves: on the same batches, then on others.

    Each number is an overlap with OPD's leading directions over the overlap of two halves of OPD's own batches; above 1
    is nearer than OPD is to itself. What was not measured, or has no gradient to measure, is left out.

    >>> from opdgeom_utils.measures.long_table import as_measures
    >>> say_easy_bar(as_measures([]), ["opd_top50"], 4)
    'No second moment of OPD is in these tables.'
    """
    cell: dict[str, Any] = {"other_recipe": "opd", "k": k, "step": 0, "side": "left"}
    bar = _mean(pick(measures, recipe="opd", quantity="moment_alignment", null="half_batches", **cell))
    if not bar > 0:
        return "No second moment of OPD is in these tables."
    said = []
    for words, quantity in (("same batches", "moment_alignment"), ("other batches", "moment_alignment_independent")):
        own = pick(measures, recipe=[*masks, "rlvr"], quantity=quantity, null="", **cell)
        means = {str(name): _mean(rows) / bar for name, rows in own.groupby("recipe", sort=False)}
        kept = [means[name] for name in masks if not math.isnan(means.get(name, math.nan))]
        chance = _mean(pick(measures, recipe="opd", quantity=quantity, null="random_credit", **cell)) / bar
        parts = [f"masks {min(kept):.2f} to {max(kept):.2f}"] if kept else []
        others = {"random credit": chance, "RLVR": means.get("rlvr", math.nan)}
        parts += [f"{name} {value:.2f}" for name, value in others.items() if not math.isnan(value)]
        said.append(f"On the {words}, left: {', '.join(parts) or 'nothing measured'}")
    return "; ".join(said) + f" times the overlap of two halves of OPD's batches ({bar:.2f})."


def _mean(rows: pd.DataFrame) -> float:
    """Mean of a measure's values; nan of none."""
    return float(rows["value"].to_numpy(float).mean()) if len(rows) else math.nan


def beside_chance(table: pd.DataFrame, rows: Sequence[str]) -> list[tuple[str, pd.DataFrame, list[str], list[str]]]:
    """For each panel: its values by seed, the rows that stand beside random credit, and those shown to be above it."""
    found = []
    for panel, own in table.groupby("panel", sort=False):
        values = seen.by_seed(pd.DataFrame(own), "row")
        names = [name for name in rows if name in values and CHANCE in values]
        nearer = [n for n in names if seen.stands(values.loc[:, n], values.loc[:, CHANCE]) == seen.ABOVE]
        found.append((str(panel), values, names, nearer))
    return found


def say_beside_chance(table: pd.DataFrame, compared: Sequence[str]) -> str:
    """Say which objectives come nearer to OPD's moment than random credit does, on either side.

    Parameters
    ----------
    table
        From :func:`moment_table`.
    compared
        The recipes of its rows.
    """
    said, levels, means = {}, {}, []
    for panel, values, names, nearer in beside_chance(table, [*map(variant_label, compared)]):
        said[panel] = f"{len(nearer)} of {len(names)}" + (f" ({listed(nearer)})" if nearer else "")
        levels |= {panel: float(values.loc[:, CHANCE].mean())} if names else {}
        means += [f"{values[names].mean().min():.2f} to {values[names].mean().max():.2f}"] if names else []
    if not levels:
        return "No objective is beside random credit in these tables."
    level = " and ".join(f"{value:.2f} ({panel.split()[0]})" for panel, value in levels.items())
    return (
        f"Shown to come nearer to OPD's moment than random credit, which has {level}, are {seen.each_side(said)}; "
        f"by their means they have {' and '.join(means)}."
    )


def say_later(measures: pd.DataFrame, compared: Sequence[str], k: int) -> str:
    """Say the same of gradients later in OPD's run, and how long they are there beside RLVR's.

    >>> from opdgeom_utils.measures.long_table import as_measures
    >>> say_later(as_measures([]), ["rlvr"], 4)
    'No gradients of OPD under way are in these tables.'
    """
    ratios = pick(measures, quantity="gradient_ratio", recipe="opd", null="")
    later = ratios.loc[ratios["step"] > 0]
    if later.empty:
        return "No gradients of OPD under way are in these tables."
    step = int(later["step"].max())
    begun, there = (_mean(ratios.loc[ratios["step"] == at]) for at in (0, step))
    table = moment_table(measures, compared, "moment_alignment_independent", k=k, step=step)
    return (
        f"At update {step} OPD's gradient is {number(there, '.1f')} times as long as RLVR's ({number(begun, '.1f')} at "
        f"the anchor; seeds: {later['seed'].nunique()}). {say_beside_chance(table, compared)}"
    )


def say_scale(measures: pd.DataFrame, kept: Sequence[int] = (50, 25, 5)) -> str:
    """Say how large the fitted multiple is for random and for the largest tokens, beside what algebra allows.

    ``kept``: percent of the tokens.

    >>> rows = {"recipe": ["opd_random50", "opd_top50"], "value": [1.6, 3.8], "seed": 0, "step": 0, "side": "right"}
    >>> rows |= {"quantity": "moment_scale", "other_recipe": "opd", "null": ""}
    >>> say_scale(pd.DataFrame(rows), [50])
    'Measured (right, seeds: 1): for random tokens c is 1.6 (algebra: 1 to 2), for the largest 3.8 (algebra: up to 4).'
    """
    rows = pick(measures, quantity="moment_scale", other_recipe="opd", step=0, side="right", null="")
    means = rows.groupby("recipe").agg({"value": "mean"})["value"].to_dict()
    kinds = [[f"opd_{kind}{percent}" for percent in kept] for kind in ("random", "top")]
    if not {name for names in kinds for name in names} <= set(means):
        return ""
    random, top = (listed(f"{means[name]:.1f}" for name in names) for names in kinds)
    most, all_of_it = (listed(f"{(100 / percent) ** power:.0f}" for percent in kept) for power in (1, 2))
    seeds = len(set(rows.loc[rows["recipe"].isin([*kinds[0], *kinds[1]]), "seed"].tolist()))
    return (
        f"Measured (right, seeds: {seeds}): for random tokens c is {random} (algebra: 1 to {most}), for the largest "
        f"{top} (algebra: up to {all_of_it})."
    )


def say_cross_term(mixed: pd.DataFrame) -> str:
    """Say how much the cross term adds to the explained share: on the same batches, and from one half to the other.

    Parameters
    ----------
    mixed
        Explained shares, a line per mixture: ``with cross, without``, and both again with ``, others``.
    """
    if mixed.empty:
        return "No moment of a mixture is in these tables."
    gaps = [
        max(0.0, (mixed[a] - mixed[b]).max())
        for a, b in (("with cross", "without"), ("with, others", "without, others"))
    ]
    return f"On the same batches the cross term adds at most {gaps[0]:.2f}, on the other half at most {gaps[1]:.2f}."


def say_crossing(swept: pd.DataFrame) -> str:
    """Say at which weight of OPD a mixture has as much of OPD's moment as of RLVR's, by a straight line between places.

    Parameters
    ----------
    swept
        ``setting`` (alpha), ``series, panel, value``; a panel begins with ``with``.

    Examples
    --------
    >>> rows = [
    ...     ("0.5", "with OPD", 0.6),
    ...     ("0.5", "with RLVR", 0.4),
    ...     ("0.25", "with OPD", 0.3),
    ...     ("0.25", "with RLVR", 0.7),
    ... ]
    >>> say_crossing(pd.DataFrame(rows, columns=["setting", "panel", "value"]).assign(series="raw"))
    'They cross near alpha 0.42 (raw).'
    """
    said = []
    for series, own in swept.groupby("series", sort=False):
        wide = own.assign(alpha=own["setting"].astype(float)).pivot_table(
            index="alpha", columns="panel", values="value"
        )
        if {"with OPD", "with RLVR"} <= set(wide):
            gap = (wide["with OPD"] - wide["with RLVR"]).dropna()
            turns = [i for i in range(1, len(gap)) if gap.iloc[i - 1] < 0 <= gap.iloc[i]]
            for i in turns[-1:]:
                part = -gap.iloc[i - 1] / (gap.iloc[i] - gap.iloc[i - 1])
                said.append(f"{gap.index[i - 1] + part * (gap.index[i] - gap.index[i - 1]):.2f} ({series})")
            said += [] if turns else [f"nowhere between {gap.index.min():g} and {gap.index.max():g} ({series})"]
    return f"They cross near alpha {listed(said)}." if said else "No mixture is in these tables."
