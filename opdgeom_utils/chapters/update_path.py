"""The path of an update: one quantity of the long table along training, beside processes that learn nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from opdgeom_utils.charts.palette import in_order
from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.measures.long_table import nearest_step, pick
from opdgeom_utils.measures.paths import EARLY, SIDES
from opdgeom_utils.scopes import MAIN, THROUGHOUT
from opdgeom_utils.vocabulary import PATH_NULLS, label, metric_of

K = 4  # leading directions of an update: as many as the stable rank of the toy's allows
LEARNED_AND_NULLS = ("", *[null for null in PATH_NULLS if null != "rounding"])


def path_curves(
    measures: pd.DataFrame,
    quantity: str,
    *,
    side: str = "",
    k: int = 0,
    scope: str = "attention",
    recipes: Iterable[str] = MAIN,
    nulls: Iterable[str] = ("",),
) -> pd.DataFrame:
    """Pick one quantity's curves: one row per (recipe, null, seed, step).

    ``quantity``, ``side``, ``k``, ``scope``: which number; the empty side and 0 where there is no space.
    ``recipes``, ``nulls``: which runs, and which processes in their place; ``""`` is the run itself.
    Returns ``recipe`` (label), ``series`` (the recipe's label, or the null's), ``seed, step, share, value``; ``share``
    is the step as a part of the run, 0 to 1.

    >>> row = {"recipe": "opd", "seed": 0, "scope": "attention", "side": "", "k": 0, "quantity": "hill", "null": ""}
    >>> table = pd.DataFrame([row | {"step": step, "value": 2.0} for step in (4, 8)]).assign(other_recipe="")
    >>> path_curves(table, "hill")[["series", "share"]].values.tolist()
    [['OPD', 0.5], ['OPD', 1.0]]
    """
    cell = {"side": side, "k": k, "scope": scope, "other_recipe": ""}
    rows = pick(measures, quantity=quantity, recipe=list(recipes), null=list(nulls), **cell)
    last = measures.groupby("recipe").agg({"step": "max"}).loc[:, "step"].to_dict()
    own, null = rows.loc[:, "recipe"].map(label), rows.loc[:, "null"].map(PATH_NULLS.get)
    share = rows.loc[:, "step"] / rows.loc[:, "recipe"].map(last).astype(float)
    columns = ["recipe", "series", "seed", "step", "share", "value"]
    return rows.assign(recipe=own, series=null.fillna(own), share=share).filter(items=columns).reset_index(drop=True)


def at_share(curves: pd.DataFrame, share: float = EARLY) -> pd.DataFrame:
    """Take each curve at a share of the run, as the rules of the claims do: on a straight line between checkpoints.

    ``share``: a fifth, where nothing else is asked. A curve that begins later is taken at its first checkpoint; its
    ``share`` says so.

    >>> runs = {"recipe": "sft", "series": "SFT", "seed": 0, "step": [30, 45, 200], "share": [0.15, 0.225, 1.0]}
    >>> at_share(pd.DataFrame(runs | {"value": [0.50, 0.56, 1.0]}))[["step", "share", "value"]].round(9).values.tolist()
    [[40.0, 0.2, 0.54]]
    """
    parts = []
    for _, own in curves.groupby(["recipe", "series", "seed"], sort=False):
        ordered = own.sort_values("share")
        at = ordered.loc[:, "share"].to_numpy(float)
        taken = {name: np.interp(share, at, ordered[name].to_numpy(float)) for name in ("step", "share", "value")}
        parts.append(ordered.iloc[[0]].assign(**taken))
    return pd.concat(parts, ignore_index=True) if parts else curves


def early(
    measures: pd.DataFrame,
    side: str,
    k: int,
    recipes: Iterable[str] = ("opd",),
    nulls: Iterable[str] = ("",),
    scope: str = "attention",
) -> pd.DataFrame:
    """Similarity to the end at a fifth of the run, as rows of :func:`path_curves`."""
    curves = path_curves(measures, "sim_to_end", side=side, k=k, scope=scope, recipes=recipes, nulls=nulls)
    return at_share(curves)


def later(curves: pd.DataFrame) -> pd.DataFrame:
    """Mean of each curve after the checkpoint nearest to a fifth of the run, whose update made the early space."""
    keys = ["recipe", "series", "seed"]
    early = curves.groupby(keys)["step"].transform(lambda own: nearest_step(own.tolist(), EARLY * own.max()))
    return curves[curves["step"] > early].groupby(keys, sort=False).agg({"value": "mean"}).reset_index()


def interval_grid(table: pd.DataFrame, rows: str, columns: str) -> pd.DataFrame:
    """Mean and 95% interval of ``value`` over seeds as text, a line for each of ``rows`` in the palette's order.

    >>> table = pd.DataFrame({"run": ["OPD", "OPD", "SFT"], "K": ["1", "2", "2"], "value": [0.5, 0.25, 1.0]})
    >>> interval_grid(table, "run", "K").values.tolist()
    [['SFT', '-', '1.00 (one value)'], ['OPD', '0.50 (one value)', '0.25 (one value)']]
    """
    cells = {
        key: seed_interval(own.loc[:, "value"]).text(".2f") for key, own in table.groupby([rows, columns], sort=False)
    }
    heads = list(dict.fromkeys(table[columns]))
    lines = [{rows: name} | {head: cells.get((name, head), "-") for head in heads} for name in in_order(table[rows])]
    return pd.DataFrame(lines)


def shared_rows(measures: pd.DataFrame, side: str, k: int) -> pd.DataFrame:
    """Say what OPD's final space shares with its early one, with other seeds' and other objectives': a row per seed.

    Returns ``kind`` in words, ``series`` (label of the other run's recipe, of the same seed), ``seed, value``; several
    other seeds are averaged first.
    """
    parts = [early(measures, side, k).assign(kind="itself at a fifth", series=label("opd"))]
    rows = pick(measures, quantity="overlap", side=side, k=k, scope="attention", recipe="opd")
    rows = rows.loc[rows["step"] == rows["step"].max()]
    for other, own in rows.groupby("other_recipe", sort=False):
        kind = "other seeds" if other == "opd" else label(str(other))
        means = own.groupby("seed").agg({"value": "mean"}).reset_index()
        parts.append(means.assign(kind=kind, series=label(str(other))))
    return pd.concat(parts, ignore_index=True).filter(items=["kind", "series", "seed", "value"])


def agreement(measures: pd.DataFrame, recipes: Iterable[str] = THROUGHOUT) -> pd.DataFrame:
    """Say how far the updates of different runs point the same way: cosines between seeds, and with OPD.

    Runs from the anchor are compared after OPD's number of updates, SFT with its own seeds at its own end.

    Returns
    -------
    DataFrame
        ``recipe, run`` (label), ``cosine``, mean over the pairs of seeds, ``seeds``, the same as text with its 95%
        interval over pairs, ``with_opd``, the mean cosine with OPD's update; -1 to 1; and ``pairs``, how many of seeds.

    Examples
    --------
    >>> row = {"recipe": "opd", "seed": 0, "step": 8, "scope": "attention", "quantity": "update_cosine", "null": ""}
    >>> other = {"other_recipe": "opd", "other_seed": 1, "other_step": 8, "side": "", "k": 0, "value": 0.5}
    >>> agreement(pd.DataFrame([row | other]))[["run", "cosine", "seeds"]].values.tolist()
    [['OPD', 0.5, '0.50 (one value)']]
    """
    held = set(pick(measures, quantity="update_cosine", scope="attention", null="")["recipe"])
    rows = []
    for recipe in (name for name in recipes if name in held):
        found = [seed_interval(cosines(measures, recipe, other)) for other in (recipe, "opd")]
        row = {"recipe": recipe, "run": label(recipe), "cosine": found[0].mean, "with_opd": found[1].mean}
        rows.append(row | {"seeds": found[0].text(".2f") if found[0].n else "-", "pairs": found[0].n})
    return pd.DataFrame(rows, columns=["recipe", "run", "cosine", "seeds", "with_opd", "pairs"])


def cosines(measures: pd.DataFrame | None, one: str, other: str) -> list[float]:
    """Cosines of the updates of two recipes at the later common point: pairs of seeds of one, the same seed of two."""
    if measures is None:
        return []
    rows = pick(measures, quantity="update_cosine", scope="attention", null="", recipe=one)
    rows = rows.loc[rows["step"] == rows["step"].max()]
    rows = rows.loc[rows["other_recipe"] == other]
    rows = rows.loc[(rows["seed"] < rows["other_seed"]) if one == other else (rows["seed"] == rows["other_seed"])]
    return rows["value"].tolist()


def both_sides(
    measures: pd.DataFrame, quantity: str, k: int, *, recipes: Sequence[str] = ("opd",)
) -> dict[str, pd.DataFrame]:
    """Curves of runs and their nulls of one quantity, for right and for left spaces, by the title of their panel."""
    words = metric_of(quantity).title
    return {
        f"{words}, {side} (K = {k})": path_curves(
            measures, quantity, side=side, k=k, recipes=recipes, nulls=LEARNED_AND_NULLS
        )
        for side in SIDES
    }
