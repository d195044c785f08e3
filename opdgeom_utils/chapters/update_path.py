"""The path of an update: one quantity of the long table along training, beside processes that learn nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from opdgeom_utils.chapters import seen
from opdgeom_utils.charts.palette import in_order
from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.measures.paths import EARLY, SIDES
from opdgeom_utils.scopes import MAIN, THROUGHOUT
from opdgeom_utils.vocabulary import PATH_NULLS, RESCALED, ROUNDED, label, listed, metric_of

STEPWISE = ("captured_share", "sim_consecutive")  # of single windows, so taken over all later ones
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
    """Keep each curve's checkpoint nearest to a share of the run; of two equally near, the earlier."""
    parts = []
    for _, own in curves.groupby(["recipe", "series", "seed"], sort=False):
        ordered = own.sort_values("share")
        off = (ordered.loc[:, "share"] - share).abs().round(9).to_numpy()
        parts.append(ordered.iloc[[int(off.argmin())]])
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


def _later(curves: pd.DataFrame) -> pd.DataFrame:
    """Mean of each curve after the checkpoint nearest to a fifth of the run."""
    keys = ["recipe", "series", "seed"]
    early = at_share(curves).rename(columns={"share": "early"})
    joined = curves.merge(early[[*keys, "early"]], on=keys)
    return joined[joined["share"] > joined["early"]].groupby(keys, sort=False).agg({"value": "mean"}).reset_index()


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


def shared_rows(measures: pd.DataFrame, side: str, k: int, recipe: str = "opd") -> pd.DataFrame:
    """Say what a run's final space shares with its early one, with other seeds' and other objectives': a row per seed.

    Returns ``kind`` in words, ``series`` (label of the other run's recipe), ``seed, value``; several other seeds are
    averaged first.
    """
    parts = [early(measures, side, k, [recipe]).assign(kind="itself at a fifth", series=label(recipe))]
    rows = pick(measures, quantity="overlap", side=side, k=k, scope="attention", recipe=recipe)
    rows = rows.loc[rows["step"] == rows["step"].max()]
    for other, own in rows.groupby("other_recipe", sort=False):
        kind = "other seeds" if other == recipe else f"{label(str(other))}, same seed"
        means = own.groupby("seed").agg({"value": "mean"}).reset_index()
        parts.append(means.assign(kind=kind, series=label(str(other))))
    return pd.concat(parts, ignore_index=True).filter(items=["kind", "series", "seed", "value"])


def agreement(measures: pd.DataFrame, recipes: Iterable[str] = THROUGHOUT, scope: str = "attention") -> pd.DataFrame:
    """Say how far the updates of different runs point the same way: cosines between seeds, and with OPD.

    Runs from the anchor are compared after OPD's number of updates, SFT with its own seeds at its own end.

    Returns
    -------
    DataFrame
        ``recipe, run`` (label), ``cosine``, mean over the pairs of seeds, ``seeds``, the same as text with its 95%
        interval over pairs, and ``with_opd``, the mean cosine with OPD's update; -1 to 1.

    Examples
    --------
    >>> row = {"recipe": "opd", "seed": 0, "step": 8, "scope": "attention", "quantity": "update_cosine", "null": ""}
    >>> other = {"other_recipe": "opd", "other_seed": 1, "other_step": 8, "side": "", "k": 0, "value": 0.5}
    >>> agreement(pd.DataFrame([row | other]))[["run", "cosine", "seeds"]].values.tolist()
    [['OPD', 0.5, '0.50 (one value)']]
    """
    held = set(pick(measures, quantity="update_cosine", scope=scope, null="")["recipe"])
    rows = []
    for recipe in (name for name in recipes if name in held):
        found = [seed_interval(cosines(measures, recipe, other, scope)) for other in (recipe, "opd")]
        row = {"recipe": recipe, "run": label(recipe), "cosine": found[0].mean, "with_opd": found[1].mean}
        rows.append(row | {"seeds": found[0].text(".2f") if found[0].n else "-"})
    return pd.DataFrame(rows, columns=["recipe", "run", "cosine", "seeds", "with_opd"])


def cosines(measures: pd.DataFrame | None, one: str, other: str, scope: str = "attention") -> list[float]:
    """Cosines of the updates of two recipes at the later common point: pairs of seeds of one, the same seed of two."""
    if measures is None:
        return []
    rows = pick(measures, quantity="update_cosine", scope=scope, null="", recipe=one)
    rows = rows.loc[rows["step"] == rows["step"].max()]
    rows = rows.loc[rows["other_recipe"] == other]
    rows = rows.loc[(rows["seed"] < rows["other_seed"]) if one == other else (rows["seed"] == rows["other_seed"])]
    return rows["value"].tolist()


def both_sides(
    measures: pd.DataFrame,
    quantity: str,
    k: int,
    *,
    recipes: Iterable[str] = ("opd",),
    nulls: Iterable[str] = LEARNED_AND_NULLS,
) -> dict[str, pd.DataFrame]:
    """Curves of one quantity for right and for left spaces, by the title of their panel."""
    recipes, nulls, words = list(recipes), list(nulls), metric_of(quantity).title
    return {
        f"{words}, {side} (K = {k})": path_curves(measures, quantity, side=side, k=k, recipes=recipes, nulls=nulls)
        for side in SIDES
    }


def beside_nulls(measures: pd.DataFrame, quantity: str, side: str, k: int, recipe: str = "opd") -> str:
    """Say which nulls a run exceeds, seed by seed, and which it does not.

    At a fifth of the run; over all later windows for what is measured on windows. The rule is that of
    :mod:`opdgeom_utils.chapters.seen`.
    """
    values, nulls = _with_nulls(measures, quantity, side, k, recipe)
    said = seen.beside(values, label(recipe), nulls)
    return f"{metric_of(quantity).title}, {side}, K = {k}: {label(recipe)} is {said}."


def _with_nulls(
    measures: pd.DataFrame, quantity: str, side: str, k: int, recipe: str, nulls: Iterable[str] = LEARNED_AND_NULLS
) -> tuple[pd.DataFrame, list[str]]:
    """Return a run and its nulls by seed, and the names of the nulls."""
    curves = path_curves(measures, quantity, side=side, k=k, recipes=[recipe], nulls=nulls)
    values = seen.by_seed(_later(curves) if quantity in STEPWISE else at_share(curves), "series")
    return values, in_order(str(c) for c in values if c != label(recipe))


def say_nulls(measures: pd.DataFrame, quantity: str, k: int, recipe: str = "opd") -> str:
    """Say on both sides which nulls a run is not above, and how far the highest of them is."""
    said = {}
    for side in SIDES:
        values, nulls = _with_nulls(measures, quantity, side, k, recipe)
        if label(recipe) in values and nulls:
            gap = float(values.loc[:, label(recipe)].mean() - values.loc[:, nulls].mean().max())
            far = f"by {gap:.2f} at the least" if gap > 0 else f"{-gap:.2f} short of the highest"
            said[side] = f"{seen.leads(values, label(recipe), nulls, 'null')}, {far}"
    return f"{label(recipe)} lies {seen.each_side(said)}." if said else "No null is in these tables."


def say_paths(measures: pd.DataFrame, k: int) -> str:
    """Say how norm and stable rank go from the first checkpoint to the last, and whether OPD is ahead at a fifth."""
    own, said, ahead = label("opd"), [], {}
    for quantity in ("update_norm", "stable_rank"):
        ends = seen.first_and_last(path_curves(measures, quantity))
        factor = f"; OPD's is {seen.trend(*ends[own])[1]:.2f} times what it was" if own in ends else ""
        said.append(f"The {metric_of(quantity).words} {seen.turns(ends)}{factor}")
    for side in SIDES:
        values = seen.by_seed(early(measures, side, k, MAIN), "series")
        ahead[side] = seen.beside(values, own, in_order(str(c) for c in values if c != own))
    return f"{'. '.join(said)}. By similarity to the end at a fifth, OPD is {seen.each_side(ahead)}."


def say_shape(measures: pd.DataFrame, recipes: Iterable[str]) -> str:
    """Say whose spectrum grows flatter and whose steeper: how the last known singular value over the first goes."""
    index = int(pick(measures, quantity="singular_value").loc[:, "k"].max())
    head, tail = (
        seen.first_and_last(path_curves(measures, "singular_value", k=i, recipes=recipes)) for i in (1, index)
    )
    ratios = {run: (tail[run][0] / head[run][0], tail[run][1] / head[run][1]) for run in head if run in tail}
    said = seen.turns(ratios, factors=True).replace("rises", "grows flatter").replace("falls", "grows steeper")
    return f"By value {index} over the first, the spectrum {said}."


def say_floor(panels: Mapping[str, pd.DataFrame]) -> str:
    """Say how the stable rank goes from the first checkpoint to the last: fp32, bf16, and the rescaled update."""
    ends: dict[str, dict[str, tuple[pd.Series, pd.Series]]] = {}
    for curves in panels.values():
        run = str(curves["recipe"].iloc[0])
        for name, first_and_last in seen.first_and_last(curves).items():
            ends.setdefault("" if name == run else name, {})[run] = first_and_last
    words = {"": "In fp32 the stable rank", ROUNDED: "As bf16 shows it, it"}
    words[RESCALED] = "The rescaled last update, in which nothing contracts,"
    return " ".join(f"{said} {seen.turns(ends[name])}." for name, said in words.items() if name in ends)


def say_highest(measures: pd.DataFrame, k: int, nulls: Iterable[str] = LEARNED_AND_NULLS) -> str:
    """Say which runs lock more than each of their nulls, at a fifth, on both sides."""
    said = {}
    for side in SIDES:
        beyond = []
        for recipe in MAIN:
            values, others = _with_nulls(measures, "sim_to_end", side, k, recipe, nulls)
            if seen.leads(values, label(recipe), others, "null") == "above every null":
                beyond.append(label(recipe))
        said[side] = listed(beyond) if beyond else "none"
    return f"Runs that lie above every one of their nulls: {seen.each_side(said)}."


def say_scopes(table: pd.DataFrame) -> str:
    """Say by how much means move when the MLP's matrices come in, and whether the order of the runs stays.

    Parameters
    ----------
    table
        ``recipe, value`` and ``column``, which begins with the side; two columns for each side.
    """
    means = pd.DataFrame(table.groupby(["recipe", "column"]).agg({"value": "mean"}).loc[:, "value"].unstack())
    moved, changed = pd.Series(dtype=float), []
    for side in SIDES:
        own = means.loc[:, [c for c in means.columns if str(c).startswith(side)]]
        if own.shape[1] == 2:
            moved = pd.concat([moved, (own.iloc[:, 0] - own.iloc[:, 1]).abs()])
            one, other = (own.loc[:, str(c)].sort_values().index.tolist() for c in own)
            changed += [f"on the {side}"] * (one != other)
    if moved.empty:
        return "There is one choice of matrices only."
    order = f"changes {listed(changed)}" if changed else "stays"
    return (
        f"The order of the runs {order}, and no mean moves by more than {moved.max():.2f} "
        f"({label(str(moved.idxmax()))})."
    )


def say_inputs(ends: pd.DataFrame, noise: str, inputs: str) -> str:
    """Say how far each run's final space lies on the way from that of noise to that which the inputs alone make.

    Parameters
    ----------
    ends
        ``run, of, seed, value``; ``of`` is ``noise``, ``inputs`` or what the run itself has.
    """
    means = pd.DataFrame(ends.groupby(["run", "of"], sort=False).agg({"value": "mean"}).loc[:, "value"].unstack())
    if noise not in means or inputs not in means:
        return "The two nulls are not in these tables."
    own = means.loc[:, next(str(c) for c in means if c not in (noise, inputs))]
    way = ((own - means.loc[:, noise]) / (means.loc[:, inputs] - means.loc[:, noise])).dropna()
    between = "Every run lies" if way.between(0, 1).all() else "Not every run lies"
    span = [f"{share:.0%} of the way ({run})" for run, share in ((way.idxmin(), way.min()), (way.idxmax(), way.max()))]
    return f"{between} between noise and inputs alone: from {span[0]} to {span[1]}."


def say_channel(measures: pd.DataFrame, k: int) -> str:
    """Say whether OPD's final space is nearer to other seeds of OPD than to all else in the figure, on both sides."""
    said, shares = {}, []
    for side in SIDES:
        values = seen.by_seed(shared_rows(measures, side, k), "kind")
        values = values.rename(columns=lambda kind: str(kind).removesuffix(", same seed"))
        said[side] = seen.leads(values, "other seeds", [str(c) for c in values if c != "other seeds"], "other row")
        means = values.mean()
        if {"other seeds", "itself at a fifth"} <= set(means.index):
            shares.append(
                f"{means['other seeds']:.2f} on the {side} (itself at a fifth {means['itself at a fifth']:.2f})"
            )
    share = f" They share {listed(shares)}." if shares else ""
    return f"By overlap with OPD's end, other seeds of OPD lie {seen.each_side(said)}.{share}"
