"""What the chapter on the update's path reads: its rows of the long table, as curves and as small printed tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from opdgeom_utils.charts.palette import in_order
from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.measures.paths import EARLY, SIDES
from opdgeom_utils.scopes import HEADLINE
from opdgeom_utils.vocabulary import PATH_NULLS, RESCALED, ROUNDED, label, listed, metric_of

LEARNED_AND_NULLS = ("", *[null for null in PATH_NULLS if null != "rounding"])


def path_curves(
    measures: pd.DataFrame,
    quantity: str,
    *,
    side: str = "",
    k: int = 0,
    scope: str = "attention",
    recipes: Iterable[str] = HEADLINE,
    nulls: Iterable[str] = ("",),
) -> pd.DataFrame:
    """Pick one quantity's curves: one row per (recipe, null, seed, step).

    Parameters
    ----------
    measures
        The long table.
    quantity, side, k, scope
        Which number; the empty side and 0 where there is no space.
    recipes, nulls
        Which runs, and which processes in their place; ``""`` is the run itself.

    Returns
    -------
    DataFrame
        ``recipe`` (label), ``series`` (the recipe's label, or the null's), ``seed, step, share, value``; ``share`` is
        the step as a part of the run, 0 to 1.

    Examples
    --------
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


def early_table(measures: pd.DataFrame, side: str, ks: Sequence[int], recipe: str = "opd") -> pd.DataFrame:
    """Similarity to the end at a fifth of the run, by K: the run, every null, mean and 95% interval over seeds."""
    return _by_k(measures, "sim_to_end", side, ks, recipe, at_share)


def later_table(measures: pd.DataFrame, side: str, ks: Sequence[int], recipe: str = "opd") -> pd.DataFrame:
    """Share of each later window's own step inside the early space, mean over windows, by K."""
    return _by_k(measures, "captured_share", side, ks, recipe, later)


def later(curves: pd.DataFrame) -> pd.DataFrame:
    """Mean of each curve after the checkpoint nearest to a fifth of the run.

    >>> rows = pd.DataFrame({"recipe": "OPD", "series": "OPD", "seed": 0, "share": [0.2, 0.6, 1.0], "value": [9, 1, 3]})
    >>> later(rows)["value"].tolist()
    [2.0]
    """
    early = at_share(curves).rename(columns={"share": "early"})
    keys = ["recipe", "series", "seed"]
    joined = curves.merge(early[[*keys, "early"]], on=keys)
    after = joined.loc[joined["share"] > joined["early"]]
    return after.groupby(keys, sort=False).agg({"value": "mean"}).reset_index()


def _by_k(
    measures: pd.DataFrame,
    quantity: str,
    side: str,
    ks: Sequence[int],
    recipe: str,
    fold: Callable[[pd.DataFrame], pd.DataFrame],
) -> pd.DataFrame:
    cells: dict[tuple[str, str], str] = {}
    for k in ks:
        curves = path_curves(measures, quantity, side=side, k=k, recipes=[recipe], nulls=LEARNED_AND_NULLS)
        for series, own in fold(curves).groupby("series", sort=False) if len(curves) else ():
            cells[str(series), f"K = {k}"] = seed_interval(own.loc[:, "value"]).text(".2f")
    names = in_order(series for series, _ in cells)
    rows = [{"process": n} | {f"K = {k}": cells.get((n, f"K = {k}"), "-") for k in ks} for n in names]
    return pd.DataFrame(rows)


def shared_rows(measures: pd.DataFrame, side: str, k: int, recipe: str = "opd") -> pd.DataFrame:
    """Say what a run's final space shares with its early one, with other seeds' and other objectives': a row per seed.

    Returns
    -------
    DataFrame
        ``kind`` in words, ``series`` (label of the other run's recipe), ``seed, value``; several other seeds are
        averaged first.
    """
    early = at_share(path_curves(measures, "sim_to_end", side=side, k=k, recipes=[recipe]))
    parts = [early.assign(kind="itself at a fifth", series=label(recipe))]
    rows = pick(measures, quantity="overlap", side=side, k=k, scope="attention", recipe=recipe)
    rows = rows.loc[rows["step"] == rows["step"].max()]
    for other, own in rows.groupby("other_recipe", sort=False):
        kind = "other seeds" if other == recipe else f"{label(str(other))}, same seed"
        means = own.groupby("seed").agg({"value": "mean"}).reset_index()
        parts.append(means.assign(kind=kind, series=label(str(other))))
    return pd.concat(parts, ignore_index=True).filter(items=["kind", "series", "seed", "value"])


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


def spectra(measures: pd.DataFrame, recipes: Iterable[str] = HEADLINE) -> pd.DataFrame:
    """Singular values of the update at every checkpoint, as curves with their ``index``."""
    known = measures.loc[measures["quantity"] == "singular_value", "k"].unique()
    chosen = list(recipes)
    parts = [path_curves(measures, "singular_value", k=int(k), recipes=chosen).assign(index=int(k)) for k in known]
    return pd.concat(parts, ignore_index=True)


def rounding_panels(measures: pd.DataFrame, recipes: Iterable[str] = HEADLINE) -> dict[str, pd.DataFrame]:
    """Stable rank of each objective in fp32, after rounding, and of two things that are rounding alone."""
    panels = {}
    for recipe in recipes:
        exact, shown = (
            path_curves(measures, q, recipes=[recipe], nulls=["", "rounding"])
            for q in ("stable_rank", "stable_rank_bf16")
        )
        own = shown["series"] == label(recipe)
        shown = shown.assign(series=[ROUNDED if is_own else RESCALED for is_own in own])
        if len(exact):
            panels[f"stable rank, {label(recipe)}"] = pd.concat([exact, shown], ignore_index=True)
    return panels


def beside_nulls(measures: pd.DataFrame, quantity: str, side: str, k: int, recipe: str = "opd") -> str:
    """Say which nulls a run exceeds, seed by seed, and which it does not.

    At a fifth of the run for similarities, over all later windows for the captured share. *Above* means that the 95%
    interval of the paired difference lies above 0, *below* that it lies below; two seeds at least are needed.
    """
    curves = path_curves(measures, quantity, side=side, k=k, recipes=[recipe], nulls=LEARNED_AND_NULLS)
    found = later(curves) if quantity == "captured_share" else at_share(curves)
    table = found.pivot_table(index="seed", columns="series", values="value")
    words: dict[str, list[str]] = {"above": [], "not told apart from": [], "below": []}
    for null in in_order(str(c) for c in table.columns if c != label(recipe)):
        gap = seed_interval((table[label(recipe)] - table[null]).to_numpy(float))
        words["above" if gap.low > 0 else "below" if gap.high < 0 else "not told apart from"].append(null)
    said = "; ".join(f"{how} {listed(names)}" for how, names in words.items() if names)
    return f"{metric_of(quantity).title}, {side}, K = {k}: {label(recipe)} is {said}."


def hardest_nulls(measures: pd.DataFrame, side: str, k: int, recipes: Iterable[str] = HEADLINE) -> pd.DataFrame:
    """Similarity to the end at a fifth of the run: each objective beside the null that is highest for it, as text.

    Returns
    -------
    DataFrame
        ``run, side``, the run's own mean, the name and mean of its highest null, and the mean and 95% interval of the
        difference, paired by seed.
    """
    table = []
    for recipe in recipes:
        curves = path_curves(measures, "sim_to_end", side=side, k=k, recipes=[recipe], nulls=LEARNED_AND_NULLS)
        by_seed = at_share(curves).pivot_table(index="seed", columns="series", values="value")
        nulls = by_seed.drop(columns=label(recipe), errors="ignore").mean()
        if nulls.empty or label(recipe) not in by_seed:
            continue
        hardest, own = str(nulls.idxmax()), by_seed[label(recipe)]
        row = {"run": label(recipe), "side": side, "similarity": f"{own.mean():.2f}", "highest null": hardest}
        row |= {
            "its similarity": f"{nulls.max():.2f}",
            "run minus null": seed_interval(by_seed.loc[:, label(recipe)] - by_seed.loc[:, hardest]).text(".2f"),
        }
        table.append(row)
    return pd.DataFrame(table)


def scope_table(measures: pd.DataFrame, k: int, recipes: Iterable[str] = HEADLINE) -> pd.DataFrame:
    """Similarity to the end at a fifth of the run, of attention matrices and of all matrices, as text."""
    chosen, cells = list(recipes), {}
    for side in SIDES:
        for scope, words in (("attention", "attention"), ("all", "all matrices")):
            curves = path_curves(measures, "sim_to_end", side=side, k=k, scope=scope, recipes=chosen)
            for name, own in at_share(curves).groupby("recipe") if len(curves) else ():
                cells[str(name), f"{side}, {words}"] = seed_interval(own.loc[:, "value"]).text(".2f")
    columns = list(dict.fromkeys(column for _, column in cells))
    names = in_order(name for name, _ in cells)
    return pd.DataFrame([{"run": n} | {c: cells.get((n, c), "-") for c in columns} for n in names])


def inputs_table(measures: pd.DataFrame, k: int, recipes: Iterable[str] = HEADLINE) -> pd.DataFrame:
    """Overlap of each run's final right space with the leading input space, beside two nulls of the run, as text."""
    nulls = ["", "adam_random", "activations"]
    curves = path_curves(measures, "overlap_activations", side="right", k=k, recipes=recipes, nulls=nulls)
    ends = curves.loc[curves["share"] == 1]
    rows = []
    for name in in_order(ends["recipe"]):
        own = ends.loc[ends["recipe"] == name].groupby("series")
        found = {str(series): seed_interval(rows_of.loc[:, "value"]).text(".2f") for series, rows_of in own}
        others = {PATH_NULLS[null]: found.get(PATH_NULLS[null], "-") for null in nulls if null}
        rows.append({"run": name, "overlap with the inputs": found.get(name, "-")} | others)
    return pd.DataFrame(rows)


def seeds_sentence(measures: pd.DataFrame) -> str:
    """Say how many seeds each run's numbers rest on.

    >>> seeds_sentence(pd.DataFrame({"recipe": ["opd", "opd", "sft"], "seed": [0, 1, 0]}))
    'Seeds: SFT 1, OPD 2.'
    """
    pairs = measures.loc[measures["recipe"].isin(list(HEADLINE))].drop_duplicates(["recipe", "seed"])
    counts = pairs.loc[:, "recipe"].map(label).value_counts().to_dict()
    return f"Seeds: {', '.join(f'{name} {counts[name]}' for name in in_order(counts))}."
