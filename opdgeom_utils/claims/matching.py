"""Runs compared at the same place: last step, equal updates, equal norm of the update, equal accuracy gained.

The geometry table has one row per matrix. :func:`summarise` folds it to one row per checkpoint; the ``at_...``
functions then pick or interpolate one row per run. A run that does not reach the common place keeps its row with
``nan`` in every metric and the reason in words, so that nothing disappears in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.scopes import ATTENTION
from opdgeom_utils.vocabulary import compared

METRICS = compared()
RUN = ["profile", "recipe", "seed"]
CHECKPOINT = [*RUN, "step"]
MIN_GAIN = 0.01
_NOT_METRICS = {*CHECKPOINT, "layer", "n_entries"}


def summarise(geometry: pd.DataFrame, modules: Sequence[str] | None = ATTENTION) -> pd.DataFrame:
    """Fold matrices into one row per checkpoint.

    Parameters
    ----------
    geometry
        One row per (profile, recipe, seed, step, matrix), as in ``geometry.parquet``.
    modules
        Kinds of matrix to keep; None keeps every row.

    Returns
    -------
    DataFrame
        ``profile, recipe, seed, step, n_matrices``, the unweighted mean of every metric and null over the matrices
        where it is defined, sparsity weighted by ``n_entries``, ``total_norm`` (square root of the sum of squared
        norms) and ``relative_norm`` (the same divided by the reference's total norm). Sorted by run and step.

    Raises
    ------
    MetricInputError
        If no row is left, or a needed column is missing.

    Notes
    -----
    The paper averages over matrices without weights, except sparsity (section on diagnostics, arXiv 2606.07082).

    Examples
    --------
    A sparsity of 1 in one entry and of 0 in three entries is 0.25 of the entries; norms 3 and 4 make 5.

    >>> rows = pd.DataFrame(
    ...     {
    ...         "profile": "toy",
    ...         "recipe": "opd",
    ...         "seed": 0,
    ...         "step": 1,
    ...         "module": ["q_proj", "k_proj"],
    ...         "n_entries": [1, 3],
    ...         "update_sparsity": [1.0, 0.0],
    ...         "stable_rank": [2.0, 4.0],
    ...         "update_norm": [3.0, 4.0],
    ...         "reference_norm": [30.0, 40.0],
    ...     }
    ... )
    >>> summarise(rows)[["n_matrices", "update_sparsity", "stable_rank", "total_norm", "relative_norm"]].values.tolist()
    [[2.0, 0.25, 3.0, 5.0, 0.1]]
    """
    _need(geometry, [*CHECKPOINT, "module", "n_entries", "update_norm"])
    rows = geometry if modules is None else geometry.loc[geometry.loc[:, "module"].isin(modules)]
    rows = rows.reset_index(drop=True)
    if rows.empty:
        held = sorted(set(geometry.loc[:, "module"]))
        raise MetricInputError(f"no row of the geometry table is one of {modules}; it holds {held}")
    metrics = [c for c in rows.select_dtypes("number").columns if c not in _NOT_METRICS]
    weighted = [c for c in metrics if c.startswith("update_sparsity")]
    products = rows.filter(items=weighted).mul(rows.loc[:, "n_entries"], axis=0)
    counted = products.notna().mul(rows.loc[:, "n_entries"], axis=0)
    squares = rows.filter(items=["update_norm", "reference_norm"]).pow(2)
    table = rows.filter(items=[*CHECKPOINT, *metrics]).groupby(CHECKPOINT, sort=True).agg("mean")
    keys = rows.filter(items=CHECKPOINT)
    n_matrices = keys.assign(n_matrices=1).groupby(CHECKPOINT, sort=True).agg("sum")
    sums, entries = (keys.join(part).groupby(CHECKPOINT, sort=True).agg("sum") for part in (products, counted))
    norms = keys.join(squares).groupby(CHECKPOINT, sort=True).agg("sum").pow(0.5)
    for column in weighted:
        table[column] = sums.loc[:, column] / entries.loc[:, column].replace(0, np.nan)
    table.insert(0, "n_matrices", n_matrices.loc[:, "n_matrices"])
    table["total_norm"] = norms.loc[:, "update_norm"]
    if "reference_norm" in norms:
        table["relative_norm"] = norms.loc[:, "update_norm"] / norms.loc[:, "reference_norm"]
    return table.reset_index()


def final(summary: pd.DataFrame) -> pd.DataFrame:
    """Last checkpoint of each run: the paper's own comparison, each objective at its own number of steps.

    >>> final(pd.DataFrame({"profile": "toy", "recipe": "opd", "seed": 0, "step": [2, 9, 5], "x": [1.0, 2.0, 3.0]}))[
    ...     "x"
    ... ].tolist()
    [2.0]
    """
    rows = summary.sort_values("step").groupby(RUN, sort=True).tail(1).sort_values(RUN)
    return rows.assign(matched_at=rows.loc[:, "step"].astype(float), reason="").reset_index(drop=True)


def at_step(summary: pd.DataFrame, step: int) -> pd.DataFrame:
    """Checkpoint of every run at exactly ``step`` updates; a run without one keeps a row of ``nan`` and the reason.

    >>> rows = pd.DataFrame({"profile": "toy", "recipe": ["opd", "rlvr"], "seed": 0, "step": [4, 5], "x": [1.0, 2.0]})
    >>> at_step(rows, 4)[["recipe", "x", "reason"]].values.tolist()
    [['opd', 1.0, ''], ['rlvr', nan, 'rlvr seed 0 has no checkpoint at step 4']]
    """

    def pick(run: pd.DataFrame, name: str) -> pd.Series | str:
        hit = run.loc[run.loc[:, "step"] == step]
        return hit.iloc[0] if len(hit) else f"{name} has no checkpoint at step {step}"

    return _per_run(summary, pick, float(step))


def at_equal_updates(summary: pd.DataFrame, recipes: Iterable[str] | None = None) -> pd.DataFrame:
    """Checkpoint of every run at the last step of the shortest one.

    >>> rows = pd.DataFrame(
    ...     {"profile": "toy", "recipe": ["opd", "rlvr", "rlvr"], "seed": 0, "step": [4, 4, 9], "x": [1.0, 2.0, 3.0]}
    ... )
    >>> at_equal_updates(rows)[["recipe", "step", "x"]].values.tolist()
    [['opd', 4, 1.0], ['rlvr', 4, 2.0]]
    """
    rows = _only(summary, recipes)
    return at_step(rows, int(_ends(rows, "step").min()))


def at_equal_norm(
    summary: pd.DataFrame, recipes: Iterable[str] | None = None, norm: float | None = None
) -> pd.DataFrame:
    """Every metric of every run where its update has one common Frobenius norm.

    Parameters
    ----------
    summary
        From :func:`summarise`.
    recipes
        Recipes to compare; None compares all.
    norm
        Common ``total_norm``. By default the largest that every run reaches.

    Returns
    -------
    DataFrame
        One row per run: every numeric column interpolated along the run's checkpoints, linear in log norm;
        ``matched_at`` is the norm. Outside a run's range: ``nan`` and a ``reason``.

    Examples
    --------
    Between norms 1 and 4, norm 2 is half way on a logarithmic scale.

    >>> rows = pd.DataFrame(
    ...     {
    ...         "profile": "toy",
    ...         "recipe": ["opd", "opd", "rlvr", "rlvr"],
    ...         "seed": 0,
    ...         "step": [1, 2, 1, 2],
    ...         "total_norm": [1.0, 4.0, 1.0, 2.0],
    ...         "x": [0.0, 1.0, 0.0, 8.0],
    ...     }
    ... )
    >>> at_equal_norm(rows)[["recipe", "x"]].round(6).values.tolist()
    [['opd', 0.5], ['rlvr', 8.0]]
    """
    rows = _only(summary, recipes)
    target = float(_ends(rows, "total_norm").min()) if norm is None else norm
    if not target > 0:
        raise MetricInputError(f"the common norm is {target}; expected a positive number")
    logarithm = rows.loc[:, "total_norm"].map(lambda norm: np.log(norm) if norm > 0 else np.nan)
    return _interpolated(rows, logarithm, float(np.log(target)), target, f"a norm of {target:.3g}")


def accuracy_gain(accuracy: pd.DataFrame, domain: str | None = None) -> pd.DataFrame:
    """Take sampled accuracy minus its value at step 0 on the same prompts: the mean over families, per checkpoint.

    >>> rows = pd.DataFrame(
    ...     {
    ...         "profile": "toy",
    ...         "recipe": "opd",
    ...         "seed": 0,
    ...         "step": [0, 0, 5, 5],
    ...         "family": ["a", "b"] * 2,
    ...         "domain": "code",
    ...         "sampled": [0.2, 0.4, 0.4, 0.8],
    ...     }
    ... )
    >>> accuracy_gain(rows)[["step", "sampled", "gain"]].round(6).values.tolist()
    [[0.0, 0.3, 0.0], [5.0, 0.6, 0.3]]
    """
    _need(accuracy, [*CHECKPOINT, "domain", "sampled"])
    rows = accuracy if domain is None else accuracy.loc[accuracy.loc[:, "domain"] == domain]
    same = [c for c in ("n_prompts",) if c in rows]  # how many prompts says which
    keys = [*CHECKPOINT, *same]
    table = rows.filter(items=[*keys, "sampled"]).groupby(keys, sort=True).agg("mean").reset_index()
    start = table.query("step == 0").filter(items=[*RUN, *same, "sampled"]).rename(columns={"sampled": "start"})
    table = table.merge(start, on=[*RUN, *same], how="left")
    table = table.assign(gain=table.loc[:, "sampled"] - table.loc[:, "start"]).drop(columns=["start", *same])
    return table.drop_duplicates(CHECKPOINT, keep="last").reset_index(drop=True)


def at_equal_accuracy(
    summary: pd.DataFrame,
    accuracy: pd.DataFrame,
    recipes: Iterable[str] | None = None,
    gain: float | None = None,
    domain: str | None = None,
) -> pd.DataFrame:
    """Every metric of every run where it has gained one common held-out accuracy.

    Parameters
    ----------
    summary
        From :func:`summarise`.
    accuracy
        As ``accuracy.parquet``: one row per (profile, recipe, seed, step, family), step 0 included.
    recipes
        Recipes to compare; None compares all.
    gain
        Common gain of sampled accuracy since step 0, 0 to 1. By default the largest that every run reaches. A gain
        below 0.01 is no common ground: every row is ``nan``.
    domain
        Families of one domain only.

    Returns
    -------
    DataFrame
        One row per run, interpolated linearly in the gain along its running best (only checkpoints that set a new best
        count, so noise cannot make a run cross the gain twice). ``matched_at`` is the gain.
    """
    gains = accuracy_gain(accuracy, domain)
    rows = _only(summary, recipes).merge(gains.filter(items=[*CHECKPOINT, "gain"]), on=CHECKPOINT, how="left")
    target = float(_ends(rows, "gain").min(skipna=False)) if gain is None else gain
    if not target >= MIN_GAIN:
        why = f"the smallest best gain of the runs is {target:.3g}; below {MIN_GAIN} there is no common accuracy"
        return _per_run(rows, lambda _run, _name: why, target)
    return _interpolated(rows, rows.loc[:, "gain"], target, target, f"an accuracy gain of {target:.3g}")


def _interpolated(rows: pd.DataFrame, x: pd.Series, target: float, shown: float, place: str) -> pd.DataFrame:
    """Interpolate each run along ``x``, keeping only checkpoints where ``x`` is higher than ever before."""
    rows = rows.assign(_x=x)

    def pick(run: pd.DataFrame, name: str) -> pd.Series | str:
        run = run.loc[run.loc[:, "_x"].notna()]
        x = run.loc[:, "_x"]
        run = run.loc[x > x.cummax().shift(fill_value=-np.inf)]
        x = run.loc[:, "_x"].to_numpy(float)
        slack = 1e-9 * max(1.0, abs(target))
        if not len(x) or not x[0] - slack <= target <= x[-1] + slack:
            return f"{name} does not pass {place} at any checkpoint"
        first = run.iloc[0].copy()
        for column in run.select_dtypes("number").columns.difference(["seed"]):
            first[column] = np.interp(target, x, run.loc[:, column].to_numpy(float))
        return first

    return _per_run(rows, pick, shown).drop(columns="_x")


def _per_run(
    rows: pd.DataFrame, pick: Callable[[pd.DataFrame, str], pd.Series | str], matched_at: float
) -> pd.DataFrame:
    """Apply ``pick`` to each run in step order; a sentence instead of a row becomes ``nan`` and that reason."""
    out = []
    for _, run in rows.sort_values("step").groupby(RUN, sort=True):
        chosen = pick(run, f"{run['recipe'].iloc[0]} seed {run['seed'].iloc[0]}")
        reason = chosen if isinstance(chosen, str) else ""
        row = run.iloc[-1].copy() if isinstance(chosen, str) else chosen.copy()
        if reason:
            numeric = run.select_dtypes("number").columns.difference(["seed"])
            row = row.astype(object)
            row[numeric] = np.nan
        out.append(row.to_dict() | {"matched_at": matched_at, "reason": reason})
    return pd.DataFrame(out)


def _ends(rows: pd.DataFrame, column: str) -> pd.Series:
    """Largest value of a column in each run."""
    return rows.filter(items=[*RUN, column]).groupby(RUN).agg("max").loc[:, column]


def _only(table: pd.DataFrame, recipes: Iterable[str] | None) -> pd.DataFrame:
    rows = table if recipes is None else table.loc[table.loc[:, "recipe"].isin(list(recipes))]
    if rows.empty:
        raise MetricInputError(f"no run of {recipes} in the table; it holds {sorted(set(table.loc[:, 'recipe']))}")
    return rows


def _need(table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [c for c in columns if c not in table]
    if missing:
        raise MetricInputError(f"the table has no column {missing}; it has {list(table.columns)}")
