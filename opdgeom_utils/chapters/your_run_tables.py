"""Small tables of a report on a run: the run among toy runs, what was compared, where the update is, what to run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from opdgeom_utils.chapters.your_run import OpenedRun
from opdgeom_utils.checkpoints.parameter_names import kind_of
from opdgeom_utils.claims import matching
from opdgeom_utils.claims.schema import load_reported
from opdgeom_utils.diagnose.matrix_rows import IDENTICAL
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.intervals import number
from opdgeom_utils.project_files import PROJECT
from opdgeom_utils.scopes import ATTENTION, MODULES
from opdgeom_utils.vocabulary import compared, metric_of

PARAMETER_FILES = PROJECT / "notebooks" / "params"
SPARSITY = "update_sparsity"
NOT_COMPARED = {
    "only_in_reference": "only in the reference",
    "only_in_tuned": "only in the checkpoint",
    "reshaped": "of another shape",
    "ambiguous": "stored twice under one name",
    "conflicts": "in conflict",
    "padded": "compared on the rows that both have",
    "left_out": "stored, but no weight",
    "notes": "to know",
}


def matrices_of(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the matrices that averages are taken over: the attention matrices, or all where there are none.

    A matrix that is the reference's own at the last checkpoint was not trained: its zeros are no result, and it is left
    out. Where that leaves no attention matrix, the others are taken; where nothing has moved, none is left out.

    ``table``: one row per (step, tensor), from :func:`opdgeom_utils.diagnose_trajectory`.
    Raises MetricInputError if no row is a matrix.

    >>> rows = pd.DataFrame({"module": ["q_proj", "up_proj", "norm"], "shape": ["2x2", "4x2", "2"]})
    >>> matrices_of(rows)["module"].tolist(), matrices_of(rows.iloc[1:])["module"].tolist()
    (['q_proj'], ['up_proj'])
    """
    matrices = table.loc[table["shape"].str.count("x") == 1]
    if matrices.empty:
        raise MetricInputError(f"no row of the table is a matrix; its shapes are {sorted(set(table['shape']))}")
    moved, attention = ~_untrained(matrices), matrices["module"].isin(ATTENTION)
    chosen = next((some for some in (moved & attention, moved, attention) if some.any()), attention | True)
    return matrices.loc[chosen]


def frozen(rows: pd.DataFrame) -> pd.Series:
    """Say of each row whether its tensor is the reference's own, bit for bit; never where a table has no notes."""
    notes = rows["note"].tolist() if "note" in rows else [""] * len(rows)
    return pd.Series([IDENTICAL in str(note) for note in notes], index=rows.index, dtype=bool)


def _untrained(rows: pd.DataFrame) -> pd.Series:
    """Say of each row whether its tensor is the reference's own at the last checkpoint."""
    if "name" not in rows or "step" not in rows:
        return frozen(rows)
    last = last_step(rows)
    names = set(last.loc[frozen(last), "name"])
    return pd.Series([name in names for name in rows["name"]], index=rows.index, dtype=bool)


def last_step(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the last checkpoint."""
    return table.loc[table["step"] == table["step"].max()]


def along_run(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """Fold a run's matrices into one row per checkpoint, as the toy runs are folded.

    ``label``: name of the run; it becomes its ``recipe``. Its ``seed`` is 0 and its ``profile`` ``yours``.
    Returns the columns of :func:`opdgeom_utils.claims.matching.summarise` over :func:`matrices_of`; those of sparsity
    are over all tensors, weighted by their entries, as in the paper.
    """
    named = table.assign(profile="yours", recipe=label, seed=0)
    means = matching.summarise(matrices_of(named), None).set_index("step")
    everything = matching.summarise(named, None).set_index("step")
    for column in [c for c in everything.columns if c.startswith(SPARSITY)]:
        means[column] = everything[column]
    return means.reset_index()


def among(own: pd.DataFrame, toy: pd.DataFrame) -> pd.DataFrame:
    """Put a run's last checkpoint below the toy runs' ends, so that one figure holds all.

    ``own``: from :func:`along_run`.
    ``toy``: one row per run, from :func:`opdgeom_utils.chapters.where.at_place`.

    >>> own = pd.DataFrame({"profile": "yours", "recipe": "mine", "seed": 0, "step": [1, 2], "x": [5.0, 6.0]})
    >>> toy = pd.DataFrame({"profile": "first_regime", "recipe": ["sft"], "seed": 0, "step": 9, "x": 1.0})
    >>> among(own, toy)[["recipe", "x"]].values.tolist()
    [['sft', 1.0], ['mine', 6.0]]
    """
    return pd.concat([toy, matching.final(own)], ignore_index=True)


def path_of(own: pd.DataFrame, geometry: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Choose the checkpoints that a figure of the path can draw, and say which they are.

    ``own``: from :func:`along_run`.
    ``geometry``: the toy runs, one row per (recipe, seed, step, matrix). OPD's are drawn where the run has one
    checkpoint only, which makes no path.
    One row per (run, checkpoint), and the choice in words.
    """
    if len(own) > 1:
        return own, f"{len(own)} checkpoints of the run"
    rows = geometry.loc[geometry["recipe"] == "opd"]
    return matching.summarise(rows), "one checkpoint only, so the toy OPD runs, as an example"


def cells_of(table: pd.DataFrame, label: str) -> tuple[pd.DataFrame, list[str]]:
    """Rows for a map by layer and kind of matrix at the last checkpoint: experts of a layer averaged under one kind.

    Returns ``recipe, seed, step, layer, module`` and the mean of every number: matrices outside the layers are left
    out; where no matrix is in a layer, all stand in layer 0. Then the kinds in the order of the map: as the data flows
    through a layer, then others by name.
    """
    last = last_step(table)
    last = last.loc[last["shape"].str.count("x") == 1]
    inside = last.loc[last["layer"] >= 0]
    rows = inside if len(inside) else last.assign(layer=0)
    rows = rows.assign(module=[kind_of(name) for name in rows["name"]])
    keys = ["step", "layer", "module"]
    means = rows.groupby(keys, sort=False)[list(rows.select_dtypes("number").columns.difference(keys))].mean()
    found = set(rows["module"])
    kinds = [kind for kind in MODULES if kind in found] + sorted(found - set(MODULES))
    return means.reset_index().assign(recipe=label, seed=0), kinds


def by_kind(table: pd.DataFrame, metrics: Sequence[str] = (SPARSITY, "normalized_spectral_shift")) -> pd.DataFrame:
    """How strongly each kind of matrix moved, at the last checkpoint, largest relative norm first, as text.

    ``metrics``: columns to average beside the norm of the update over that of the weights, all matrices of the kind
    together.

    >>> rows = pd.DataFrame({"name": ["a.q.weight", "b.q.weight"], "step": 0, "shape": "1x1", "x": [0.0, 1e-5]})
    >>> by_kind(rows.assign(update_norm=3.0, reference_norm=[30.0, 40.0]), ["x"]).values.tolist()
    [['q', 2, '0.0849', '5e-06']]
    """
    rows = last_step(table)
    rows = rows.loc[rows["shape"].str.count("x") == 1]
    rows = rows.assign(
        kind=[kind_of(name) for name in rows["name"]],
        moved=rows["update_norm"] ** 2,
        weights=rows["reference_norm"].where(rows["update_norm"].notna()) ** 2,
    )
    groups = rows.groupby("kind", sort=False)
    relative = (groups["moved"].sum(min_count=1) / groups["weights"].sum(min_count=1)) ** 0.5
    order = relative.sort_values(ascending=False, na_position="last").index
    numbers = {"relative_norm": relative} | {metric: groups[metric].mean() for metric in metrics}
    text = {
        metric_of(name).title: [number(value, metric_of(name).shown) for value in values.reindex(order)]
        for name, values in numbers.items()
    }
    return pd.DataFrame({"kind": list(order), "matrices": groups.size().reindex(order).tolist(), **text})


def expected_beside_made(expected: pd.DataFrame, made: pd.DataFrame) -> pd.DataFrame:
    """Set the expected values of the shuffled null beside one that was made and measured, for the matrices of a report.

    ``expected``, ``made``: tables of the same pair, with ``nulls="expected"`` and ``nulls="exact"``.
    Returns ``metric`` in words, the mean of the ``expected`` and of the ``made`` null at the last checkpoint, and
    ``expected / made``.

    >>> rows = pd.DataFrame({"step": 1, "module": "q_proj", "shape": "2x2"}, index=range(2))
    >>> columns = {f"{metric}_shuffled": 0.5 for metric in compared()}
    >>> both = expected_beside_made(rows.assign(**columns), rows.assign(**columns))
    >>> both["expected / made"].tolist() == [1.0] * len(compared())
    True
    """
    columns = [f"{metric}_shuffled" for metric in compared()]
    first, second = (matrices_of(last_step(table))[columns].mean() for table in (expected, made))
    titles = [metric_of(metric).title for metric in compared()]
    return pd.DataFrame(
        {
            "metric": titles,
            "expected": first.tolist(),
            "made": second.tolist(),
            "expected / made": (first / second).tolist(),
        }
    )


def compared_table(run: OpenedRun) -> pd.DataFrame:
    """List what each checkpoint has in common with the reference, and what has no counterpart, in words.

    Returns ``step, checkpoint, what, count, names``: first what is compared, then what is not.
    """
    rows = []
    for (step, checkpoint), report in zip(run.checkpoints, run.reports, strict=True):
        kept = len(checkpoint.tensors)
        found = [(f"compared with {report.reference}", kept, "all" if kept else "none")]
        unasked = len(report.compared) - kept
        if unasked:
            found.append(("in common, but not among the modules asked for", unasked, ""))
        for field, words in NOT_COMPARED.items():
            names = list(getattr(report, field))
            found += [(words, len(names), "; ".join(without_numbers(names)[:8]))] if names else []
        rows += [(step, report.tuned, *entry) for entry in found]
    return pd.DataFrame(rows, columns=["step", "checkpoint", "what", "count", "names"])


def without_numbers(names: Sequence[str]) -> list[str]:
    """Fold names or sentences that differ only in a layer's number.

    >>> without_numbers(["h.0.c_attn stays fused", "h.1.c_attn stays fused", "lm_head.weight"])
    ['h.*.c_attn stays fused (2 times)', 'lm_head.weight']
    """
    patterns = [re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names]
    return [p if patterns.count(p) == 1 else f"{p} ({patterns.count(p)} times)" for p in dict.fromkeys(patterns)]


def published_pairs(folder: Path = PARAMETER_FILES) -> pd.DataFrame:
    """List the parameter files of the paper's published pairs, beside the sparsity that the paper prints for each.

    ``folder``: where the files ``table1_*.yaml`` lie.
    Returns ``file, reference, tuned, objective, paper's sparsity, to fill in``. Raises MetricInputError if a file is
    not of a pair in ``table1_sparsity.csv``.
    """
    printed = load_reported("table1_sparsity").set_index(["base", "finetuned"])
    rows = []
    for path in sorted(folder.glob("table1_*.yaml")):
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        pair = tuple(str(given[side]).rpartition("/")[2] for side in ("reference", "tuned"))
        if pair not in printed.index:
            raise MetricInputError(f"{path.name} names the pair {pair}, which is not in table1_sparsity.csv.")
        row = printed.loc[pair]
        blank = [side for side in ("reference", "tuned") if str(given[side]).startswith("FILL-IN")]
        rows.append((path.name, *pair, row["algorithm"], f"{row['reported']}%", " and ".join(blank) or "nothing"))
    columns = ["file", "reference", "tuned", "objective", "sparsity in the paper", "owner to fill in"]
    return pd.DataFrame(rows, columns=columns)
