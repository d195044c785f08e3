"""The small tables that the chapters on RQ1 print: runs at one place, a metric beside its nulls, live runs checked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.charts.palette import in_order
from opdgeom_utils.checkpoints import matching_names, open_checkpoint
from opdgeom_utils.claims import matching
from opdgeom_utils.claims.look_up import Tables as AnyTables
from opdgeom_utils.diagnose import diagnose_trajectory
from opdgeom_utils.intervals import number, seed_interval
from opdgeom_utils.results import DIAGNOSE_OPTIONS, Tables, check_live
from opdgeom_utils.runs import Run
from opdgeom_utils.scopes import ATTENTION
from opdgeom_utils.vocabulary import label, metric_of

NULLS = ("shuffled", "random")
KEYS = ["profile", "recipe", "seed"]


def at_place(tables: AnyTables, place: str, recipes: Iterable[str], *, share: float = 1.0) -> pd.DataFrame:
    """One row per run where the runs are compared: each metric over the matrices that the claims average.

    Parameters
    ----------
    tables
        Geometry and accuracy of one profile.
    place
        A key of :data:`opdgeom_utils.claims.matching.MATCHES`.
    recipes
        Recipes to compare; the common place depends on all of them.
    share
        At equal norm or equal accuracy: the common norm, or the common gain, as a share of the largest that every run
        reaches, above 0 up to 1. Without effect elsewhere.

    Returns
    -------
    DataFrame
        The columns of :func:`opdgeom_utils.claims.matching.summarise` over the attention matrices; the columns of
        sparsity are over all tensors. Then ``matched_at``, ``reason`` and ``place``, its name in words.

    Raises
    ------
    MetricInputError
        If the place is unknown, or the share is outside its range.
    """
    geometry = tables.geometry.loc[tables.geometry["recipe"].isin(list(recipes))]
    summaries = [matching.summarise(geometry, modules) for modules in (ATTENTION, None)]
    attention, everything = (
        matching.matched(s, place, tables.accuracy, share=share).set_index(KEYS) for s in summaries
    )
    for column in [c for c in everything.columns if c.startswith("update_sparsity")]:
        attention[column] = everything[column]
    return attention.reset_index().assign(place=matching.MATCHES[place])


def live_ends(runs: Iterable[Run], settings: Mapping[str, Any]) -> Tables:
    """Measure the last checkpoint of each run now, with every null.

    Parameters
    ----------
    runs
        Finished runs.
    settings
        ``eta``, ``alpha``, ``rank`` and ``k`` of :func:`opdgeom_utils.diagnose_pair`.

    Returns
    -------
    Tables
        Rows like those of the committed tables: geometry of the last checkpoints, the whole log, the whole accuracy.
    """
    parts: dict[str, list[pd.DataFrame]] = {"geometry": [], "training": [], "accuracy": []}
    for run in runs:
        measured = diagnose_trajectory(run.reference, run.checkpoints[-1:], **settings)
        for name, table in (("geometry", measured), ("training", run.log), ("accuracy", run.accuracy)):
            parts[name].append(table.assign(profile=run.recipe.profile, recipe=run.recipe.name, seed=run.seed))
    return Tables(**{name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()})


def agreement(live: pd.DataFrame, committed: pd.DataFrame, settings: Mapping[str, Any]) -> pd.DataFrame:
    """Compare live runs with the committed seeds of the same recipes, metric by metric.

    Parameters
    ----------
    live, committed
        One row per run, from :func:`at_place` at ``final``.
    settings
        What the live runs were measured with.

    Returns
    -------
    DataFrame
        ``recipe, quantity, live, low, high, inside``. Empty where the settings are not those of the tables, or a recipe
        has fewer than two seeds: then the two cannot be compared.

    Raises
    ------
    StaleResultsError
        If a live number lies outside the range in which one more seed would be expected.
    """
    if dict(settings) != DIAGNOSE_OPTIONS:
        return pd.DataFrame()
    parts = []
    for _, run in live.iterrows():
        seeds = committed.loc[committed["recipe"] == run["recipe"]]
        if len(seeds) > 1:
            found = check_live(run.loc[list(matching.METRICS)].astype(float), seeds)
            parts.append(found.assign(recipe=label(str(run["recipe"]))))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def beside_nulls(ends: pd.DataFrame, metrics: Sequence[str], reported: pd.DataFrame | None = None) -> pd.DataFrame:
    """Each objective's mean and 95% interval, its nulls, and the paper's number, as text.

    Parameters
    ----------
    ends
        One row per run.
    metrics
        Columns to show.
    reported
        From :func:`opdgeom_utils.claims.load_reported`; None leaves the paper out.

    Examples
    --------
    >>> ends = pd.DataFrame({"recipe": "opd", "seed": [0, 1], "x": [0.25, 0.25], "x_shuffled": [0.5, 0.5]})
    >>> beside_nulls(ends, ["x"]).values.tolist()
    [['x', 'OPD', '0.25 (0.25 to 0.25)', '0.5', '-']]
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
    return pd.DataFrame(rows)


def paper_says(reported: pd.DataFrame, quantity: str) -> str:
    """Say what the paper reports for each objective, and where.

    Parameters
    ----------
    reported
        From :func:`opdgeom_utils.claims.load_reported`.
    quantity
        A quantity of that table.

    Examples
    --------
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


def null_ratios(ends: pd.DataFrame, metrics: Sequence[str], null: str = "shuffled") -> pd.DataFrame:
    """Each metric divided by its own null, mean and 95% interval over seeds: 1 means that only size was seen.

    Parameters
    ----------
    ends
        One row per run.
    metrics
        Columns to divide.
    null
        Suffix of the null.

    Examples
    --------
    >>> ends = pd.DataFrame({"recipe": "opd", "seed": [0, 1], "x": [1.0, 3.0], "x_shuffled": [1.0, 3.0]})
    >>> null_ratios(ends, ["x"]).to_dict("records")
    [{'measure': 'x', 'OPD': '1.000 (1.000 to 1.000)'}]
    """
    rows = []
    for metric in metrics:
        row = {"measure": metric_of(metric).words}
        for recipe in _ordered(ends):
            own = ends.loc[ends["recipe"] == recipe]
            row[label(str(recipe))] = seed_interval(own[metric] / own[f"{metric}_{null}"]).text(".3f")
        rows.append(row)
    return pd.DataFrame(rows)


def mask_sweep(runs: Iterable[Run], alphas: Sequence[float], ranks: Sequence[int]) -> pd.DataFrame:
    """Measure the mask overlaps of finished runs for several sizes and ranks of the masks, attention matrices.

    Parameters
    ----------
    runs
        Finished runs; their last checkpoints are measured.
    alphas, ranks
        Sizes of the masks, 0 to 1, and ranks of the principal one.

    Returns
    -------
    DataFrame
        ``recipe, seed, alpha, rank, principal_overlap, low_magnitude_overlap`` and their nulls, means over matrices.
    """
    parts = []
    for run, alpha, rank in itertools.product(runs, alphas, ranks):
        options: dict[str, Any] = {**DIAGNOSE_OPTIONS, "alpha": alpha, "rank": rank, "k": 1}
        rows = diagnose_trajectory(run.reference, run.checkpoints[-1:], modules=ATTENTION, **options)
        means = rows[[c for c in rows.columns if "_overlap" in c]].mean().to_frame().T
        parts.append(means.assign(recipe=run.recipe.name, seed=run.seed, alpha=alpha, rank=rank))
    return pd.concat(parts, ignore_index=True)


def flat_weights(run: Run) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Read every weight of a run before training and at its end, each as one long float32 vector in the same order."""
    before, after = open_checkpoint(run.reference), open_checkpoint(run.checkpoints[-1].path)
    names = matching_names(before, after)
    ends = (torch.cat([c.tensors[n].read().float().flatten() for n in names]) for c in (before, after))
    w_ref, w_new = ends
    return w_ref, w_new


def _ordered(ends: pd.DataFrame) -> list[str]:
    """Recipes of a table in the palette's order."""
    names = {label(str(recipe)): str(recipe) for recipe in ends["recipe"].unique()}
    return [names[shown] for shown in in_order(names)]


def _paper(reported: pd.DataFrame, metric: str, recipe: str) -> str:
    named = reported["metric"].fillna("").str.split(";").map(lambda names: metric in names)
    rows = reported.loc[named & (reported["recipe"] == recipe)]
    if rows.empty:
        return "-"
    return _with_unit(str(rows["reported"].iloc[0]), str(rows["unit"].iloc[0]))


def _with_unit(value: str, unit: str) -> str:
    if unit.startswith("percent"):
        return f"{value}%"
    return f"{value} degrees" if unit == "degree" else value
