"""Runs compared where something is equal: their last step, updates, norm, accuracy gained or distance to the teacher.

The geometry table has one row per matrix. :func:`summarise` folds it to one row per checkpoint; :func:`matched` then
picks or interpolates one row per run. A run that does not reach the common value keeps its row with ``nan`` in every
metric and the reason in words, so that nothing disappears in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.scopes import ATTENTION
from opdgeom_utils.vocabulary import compared

METRICS = compared()
MATCHES = {
    "final": "the paper's steps",
    "equal_updates": "equal updates",
    "equal_norm": "equal norm",
    "equal_accuracy": "equal accuracy",
}
DISTANCE = "equal_distance"  # for runs that approach the teacher only
PLACES = {**MATCHES, DISTANCE: "equal distance"}
RUN = ["profile", "recipe", "seed"]
CHECKPOINT = [*RUN, "step"]
MIN_GAIN = 0.01
MIN_CLOSED = 0.05  # of the distance at the start
_NOT_METRICS = {*CHECKPOINT, "layer", "n_entries"}


def summarise(geometry: pd.DataFrame, modules: Sequence[str] | None = ATTENTION) -> pd.DataFrame:
    """Fold matrices into one row per checkpoint.

    The paper averages over matrices without weights, except sparsity (section on diagnostics, arXiv 2606.07082).

    ``geometry``: one row per (profile, recipe, seed, step, matrix), as in ``geometry.parquet``.
    ``modules``: kinds of matrix to keep; None keeps every row.
    Returns ``profile, recipe, seed, step, n_matrices``, the unweighted mean of every metric and null over the matrices
    where it is defined, sparsity weighted by ``n_entries``, ``total_norm`` (square root of the sum of squared norms)
    and ``relative_norm`` (the same divided by the reference's total norm). Sorted by run and step. Raises
    MetricInputError if no row is left, or a needed column is missing.

    A sparsity of 1 in one entry and of 0 in three entries is 0.25 of the entries; norms 3 and 4 make 5.

    >>> rows = pd.DataFrame({"module": ["q_proj", "k_proj"], "n_entries": [1, 3], "update_sparsity": [1.0, 0.0]})
    >>> rows = rows.assign(profile="first_regime", recipe="opd", seed=0, step=1, stable_rank=[2.0, 4.0])
    >>> rows = rows.assign(update_norm=[3.0, 4.0], reference_norm=[30.0, 40.0])
    >>> summarise(rows)[["n_matrices", "update_sparsity", "stable_rank", "total_norm", "relative_norm"]].values.tolist()
    [[2.0, 0.25, 3.0, 5.0, 0.1]]
    """
    need(geometry, [*CHECKPOINT, "module", "n_entries", "update_norm"])
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


def matched(
    summary: pd.DataFrame,
    at: str,
    accuracy: pd.DataFrame | None = None,
    *,
    share: float = 1.0,
    distance: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per run, where all runs of the table are equal in one thing.

    ``summary``: from :func:`summarise`.
    ``at``: ``final``: each run's last checkpoint, the paper's own comparison. ``equal_updates``: the last step of the
    shortest run. ``equal_norm``: the largest ``total_norm`` that every run reaches, between two checkpoints linear in
    its logarithm. ``equal_accuracy``: the largest gain of sampled accuracy that every run reaches, linear in the gain
    along the run's best so far (only checkpoints that set a new best count, so noise cannot make a run cross a gain
    twice); a gain below 0.01 is no common ground.
    ``accuracy``: for ``equal_accuracy``: one row per (profile, recipe, seed, step, family), step 0 included.
    ``distance``: for ``equal_distance``, the most of the distance to the teacher that every run closes, linear in it
    along the run's best so far: one row per checkpoint, ``step`` and ``value`` in nats, that of step 0 too, which is
    the same for all runs. Less than a twentieth closed is no common ground.
    ``share``: the common norm, gain or distance closed, as a share of the largest that every run reaches, above 0 up to
    1; without effect elsewhere.
    Returns the columns of ``summary``, the common value ``matched_at``, and ``reason``: empty, or why the run has
    ``nan``. Raises MetricInputError if there is no run, ``at`` is none of these, ``share`` is out of range, or the
    common norm is not positive.

    At equal updates both runs stand at step 2. At equal norm 2, OPD is half way from 1 to 4 on a logarithmic scale.

    >>> rows = pd.DataFrame(
    ...     {"recipe": ["opd"] * 2 + ["rlvr"] * 3, "step": [1, 2, 1, 2, 9], "x": [0.0, 1.0, 0.0, 8.0, 9.0]}
    ... )
    >>> rows = rows.assign(profile="first_regime", seed=0, total_norm=[1.0, 4.0, 0.5, 1.0, 2.0])
    >>> [matched(rows, at)["x"].round(6).tolist() for at in ("final", "equal_updates", "equal_norm")]
    [[1.0, 9.0], [1.0, 8.0], [0.5, 9.0]]
    """
    if at not in PLACES:
        raise MetricInputError(f"at is {at!r}; expected {', '.join([*PLACES][:-1])} or {[*PLACES][-1]}")
    if not 0 < share <= 1:
        raise MetricInputError(f"share is {share}; expected a number above 0 and at most 1")
    if summary.empty:
        raise MetricInputError("there is no run to compare; the table is empty")
    if at == "final":
        return final(summary)
    if at == "equal_updates":
        return _at_step(summary, int(_ends(summary, "step").min()))
    if at == "equal_norm":
        target = share * float(_ends(summary, "total_norm").min())
        if not target > 0:
            raise MetricInputError(f"the common norm is {target}; expected a positive number")
        logarithm = summary.loc[:, "total_norm"].map(lambda norm: np.log(norm) if norm > 0 else np.nan)
        return _interpolated(summary, logarithm, float(np.log(target)), target, f"a norm of {target:.3g}")
    if at == DISTANCE:
        return _at_distance(summary, distance, share)
    if accuracy is None:
        raise MetricInputError("equal_accuracy needs the table of accuracy beside the geometry")
    rows = summary.merge(accuracy_gain(accuracy).filter(items=[*CHECKPOINT, "gain"]), on=CHECKPOINT, how="left")
    target = share * float(_ends(rows, "gain").min(skipna=False))
    if not target >= MIN_GAIN:
        why = f"the smallest best gain of the runs is {target:.3g}; below {MIN_GAIN} there is no common accuracy"
        return _per_run(rows, lambda _run, _name: why, target)
    return _interpolated(rows, rows.loc[:, "gain"], target, target, f"an accuracy gain of {target:.3g}")


def final(summary: pd.DataFrame) -> pd.DataFrame:
    """Last checkpoint of each run: the paper's own comparison, each objective at its own number of steps.

    >>> runs = {"profile": "first_regime", "recipe": "opd", "seed": 0, "step": [2, 9, 5], "x": [1.0, 2.0, 3.0]}
    >>> final(pd.DataFrame(runs))["x"].tolist()
    [2.0]
    """
    rows = summary.sort_values("step").groupby(RUN, sort=True).tail(1).sort_values(RUN)
    return rows.assign(matched_at=rows.loc[:, "step"].astype(float), reason="").reset_index(drop=True)


def accuracy_gain(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Take sampled accuracy minus its value at step 0 on the same prompts: the mean over families, per checkpoint.

    >>> rows = pd.DataFrame({"recipe": "opd", "seed": 0, "step": [0, 0, 5, 5], "family": ["a", "b"] * 2})
    >>> rows = rows.assign(profile="first_regime", sampled=[0.2, 0.4, 0.4, 0.8])
    >>> accuracy_gain(rows)[["step", "sampled", "gain"]].round(6).values.tolist()
    [[0.0, 0.3, 0.0], [5.0, 0.6, 0.3]]
    """
    need(accuracy, [*CHECKPOINT, "sampled"])
    same = [c for c in ("n_prompts",) if c in accuracy]  # how many prompts says which
    keys = [*CHECKPOINT, *same]
    table = accuracy.filter(items=[*keys, "sampled"]).groupby(keys, sort=True).agg("mean").reset_index()
    start = table.query("step == 0").filter(items=[*RUN, *same, "sampled"]).rename(columns={"sampled": "start"})
    table = table.merge(start, on=[*RUN, *same], how="left")
    table = table.assign(gain=table.loc[:, "sampled"] - table.loc[:, "start"]).drop(columns=["start", *same])
    return table.drop_duplicates(CHECKPOINT, keep="last").reset_index(drop=True)


def _at_step(summary: pd.DataFrame, step: int) -> pd.DataFrame:
    def pick(run: pd.DataFrame, name: str) -> pd.Series | str:
        hit = run.loc[run.loc[:, "step"] == step]
        return hit.iloc[0] if len(hit) else f"{name} has no checkpoint at step {step}"

    return _per_run(summary, pick, float(step))


def _at_distance(summary: pd.DataFrame, distance: pd.DataFrame | None, share: float) -> pd.DataFrame:
    """Compare runs where each has closed the same part of the distance that the teacher has from their start."""
    starts = [] if distance is None else distance.loc[distance["step"] == 0, "value"].tolist()
    if distance is None or not starts:
        raise MetricInputError("equal_distance needs the distance to the teacher at every checkpoint and at step 0")
    closed = distance.assign(closed=1 - distance["value"] / float(np.mean(starts)))
    rows = summary.merge(closed.filter(items=[*CHECKPOINT, "closed"]), on=CHECKPOINT, how="left")
    most = _ends(rows, "closed").min(skipna=False)
    if not most >= MIN_CLOSED:
        why = f"the run that comes least near closes {most:.3g} of its distance; below {MIN_CLOSED} nothing is compared"
        return _per_run(rows, lambda _run, _name: why, float(most))
    target = share * float(most)
    return _interpolated(rows, rows.loc[:, "closed"], target, target, f"{target:.3g} of its distance closed")


def _interpolated(rows: pd.DataFrame, x: pd.Series, target: float, shown: float, what: str) -> pd.DataFrame:
    """Interpolate each run along ``x``, keeping only checkpoints where ``x`` is higher than ever before."""
    rows = rows.assign(_x=x)

    def pick(run: pd.DataFrame, name: str) -> pd.Series | str:
        run = run.loc[run.loc[:, "_x"].notna()]
        x = run.loc[:, "_x"]
        run = run.loc[x > x.cummax().shift(fill_value=-np.inf)]
        x = run.loc[:, "_x"].to_numpy(float)
        slack = 1e-9 * max(1.0, abs(target))
        if not len(x) or not x[0] - slack <= target <= x[-1] + slack:
            alone = f": it was measured at step {run.loc[:, 'step'].iloc[0]:g} only" if len(x) == 1 else ""
            return f"{name} does not pass {what} at any checkpoint{alone}"
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


def need(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the table, or refuse it with MetricInputError because it lacks a column."""
    missing = [c for c in columns if c not in table]
    if missing:
        raise MetricInputError(f"the table has no column {missing}; it has {list(table.columns)}")
    return table
