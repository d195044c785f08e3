"""What a reader of a report has to mind: how weights were stored, which numbers are undefined, what was left out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import pandas as pd
import torch

from opdgeom_utils.chapters.your_run import PAPER_K, OpenedRun
from opdgeom_utils.chapters.your_run_tables import frozen, last_step, matrices_of, without_numbers
from opdgeom_utils.diagnose.matrix_rows import IDENTICAL
from opdgeom_utils.errors import ways
from opdgeom_utils.results import DIAGNOSE_OPTIONS
from opdgeom_utils.scopes import ATTENTION
from opdgeom_utils.vocabulary import listed

WIDE = ("float32", "float64")
SAME = 1e-9  # relative difference of two stable ranks of one update; rounding to bf16 changes one by 1e-4 and more
MOST_NOTES = 3
ALWAYS = (
    "The paper prints no null for any of its points, so no pink diamond has a grey square. The toy points have.",
    "One run has no interval. Another seed of the same recipe may lie elsewhere; how far, the toy seeds show for toys.",
    "Sparsity, rotation and drift all follow the size of the update. A place on the map is a statement about learning "
    "rate and number of steps before it is one about the objective.",
    "The toy points are models of 1.6 million weights. They show what a null explains, not where a large model lies.",
)
LOW_RANK = (
    "What was opened is an adapter. Its update has no more directions than its rank, whatever was learned, and the "
    "nulls have as many as the matrix: rotation, drift and stable rank may differ from them by the rank alone."
)


def caveats(table: pd.DataFrame, run: OpenedRun, k: int) -> list[str]:
    """List what a reader has to mind, computed from what was opened and measured."""
    last = last_step(table)
    return [
        *_stored(last),
        *([LOW_RANK] if run.has_adapter else []),
        *_nulls(last),
        *_not_trained(last),
        *_about_k(last, k),
        *_odd_rows(table),
        *_left_whole(run),
        *run.remarks,
        *ALWAYS,
    ]


def narrow_formats(rows: pd.DataFrame) -> list[str]:
    """Name the formats below 32 bits in which tuned weights were stored, but for those that are as in the reference."""
    rows = rows.loc[~frozen(rows)]
    formats = {str(dtype).partition("->")[2] for dtype in rows["dtype"]}
    on_grid = _on_bf16_grid(rows)
    if formats & set(WIDE) and len(on_grid) and on_grid.all():
        return sorted({name if name not in WIDE else f"bfloat16 (and kept in {name} since)" for name in formats})
    return sorted(formats - set(WIDE))


def rounded_with_the_tuned(rows: pd.DataFrame) -> bool:
    """Say whether tuned weights were stored coarser than the reference's numbers: rounding then is in every update."""
    last = _coarser(rows)
    in_8_bits = last["dtype"].str.contains("->float8", regex=False)
    return bool(in_8_bits.any()) or not _on_bf16_grid(last).all()


def _coarser(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows whose tuned weights were stored with fewer digits than the reference's."""
    ends = [str(dtype).partition("->") for dtype in rows["dtype"]]
    fewer = [_spacing(after) > _spacing(before) for before, _, after in ends]
    return rows.loc[~frozen(rows) & pd.Series(fewer, index=rows.index, dtype=bool)]


def _spacing(dtype: str) -> float:
    """Distance from 1 to the next number of a format; nan where it is none of torch's floating ones.

    >>> _spacing("bfloat16"), _spacing("float8_e5m2"), _spacing("")
    (0.0078125, 0.25, nan)
    """
    found = getattr(torch, dtype, None)
    return torch.finfo(found).eps if isinstance(found, torch.dtype) and found.is_floating_point else math.nan


def _on_bf16_grid(rows: pd.DataFrame) -> pd.Series:
    """Say of each update that is known whether rounding both of its ends to bf16 changes nothing of it.

    An update of one entry, or of one row, has a stable rank of 1 whatever rounding does: nothing is known of it.
    """
    if not {"stable_rank", "stable_rank_bf16"} <= set(rows):
        return pd.Series(dtype=bool)
    of_one = (rows[["stable_rank", "stable_rank_bf16"]] - 1).abs().max(axis="columns") <= SAME
    known = rows.loc[rows["stable_rank"].notna() & ~of_one]
    return (known["stable_rank"] - known["stable_rank_bf16"]).abs() <= SAME * known["stable_rank"]


def without_path(note: str) -> str:
    """Leave out where a file lies: a page may be passed on."""
    _, found, rest = note.partition(": tensor ")
    return f"tensor {rest}" if found else note


def _stored(last: pd.DataFrame) -> Iterable[str]:
    formats = narrow_formats(last)
    coarse = listed(sorted({str(dtype).partition("->")[2] for dtype in _coarser(last)["dtype"]}))
    narrow = sorted({found.partition("->")[0] for found in last["dtype"] if re.match(r"float8\w*->(?!float8)", found)})
    if narrow:
        yield (
            f"The reference was stored in {listed(narrow)}, the tuned weights were not. If the run began from "
            "what the reference was rounded from, that rounding is in every update: give that model as the reference."
        )
    if rounded_with_the_tuned(last):
        yield (
            f"The tuned weights were stored in {coarse}, and the reference holds finer numbers. So rounding moved "
            "nearly every weight; norm, rotation, drift, stable rank and walk ratio are of training and rounding "
            f"together, and nothing is judged. Round the reference to {coarse} too, or compare weights kept in float32."
        )
    elif formats:
        yield (
            f"The tuned weights were stored in {listed(formats)}. What rounding hid is gone: the update is read "
            "as zero there, and its shuffle is too sparse. The null of sparsity and of the overlaps is biased, and the "
            "stable rank holds rounding noise. Compare weights kept in float32 if you have them."
        )


def _nulls(last: pd.DataFrame) -> Iterable[str]:
    """Say where the nulls are expected values, and for how many matrices a draw stood in."""
    if "null_note" not in last:
        return
    drawn = sum(bool(note) for note in last["null_note"].dropna().tolist())
    more = (
        f" For {drawn} matrices, whose update is large against their gaps, drift and rotation were drawn."
        if drawn
        else ""
    )
    yield (
        "The shuffled nulls of this run are expected values, within 3% for drift and 5% for rotation of the mean of "
        f"many shuffles (6 and 8% where an update is large).{more} Shuffles are measured on request: "
        f"{ways('nulls', '`')}."
    )


def _not_trained(last: pd.DataFrame) -> Iterable[str]:
    """Say which matrices the means are over, where some attention matrices were not trained."""
    if "module" not in last or frozen(moved := matrices_of(last)).all():
        return
    attention = last.loc[last["module"].isin(ATTENTION)]
    still = int(frozen(attention).sum())
    if still and still == len(attention):
        yield (
            "No attention matrix has changed. Rotation, drift and overlaps are means over what has "
            f"({listed(sorted(set(moved['module'])))}); the paper's and the toy's are of attention."
        )
    elif still:
        yield (
            f"{still} of {len(attention)} attention matrices have not changed at all. Rotation, drift and overlaps are "
            "means over the others."
        )


def _about_k(last: pd.DataFrame, k: int) -> Iterable[str]:
    matrices = last.loc[last["shape"].str.count("x") == 1]
    sides = matrices["shape"].str.split("x").map(lambda sizes: min(map(int, sizes)))
    clipped = int((sides <= k).sum())
    if clipped:
        yield (
            f"In {clipped} of {len(matrices)} matrices k = {k} is no less than the small side; k was cut to it there. "
            "The leading space is all of that side: its angle is 0, whatever was trained."
        )
    others = {"the paper's": PAPER_K, "the toy runs'": DIAGNOSE_OPTIONS["k"]}
    differ = [f"{whose} {value}" for whose, value in others.items() if value != k]
    if differ:
        yield f"Angles are of the leading {k} directions; {listed(differ)} are another number, so compare with care."
    undefined = sum(flag is False for flag in matrices["angles_defined"].tolist())
    if undefined:
        yield (
            f"In {undefined} of {len(matrices)} matrices two singular values at the cut are equal; the leading space "
            "is arbitrary there, and its angles are left out."
        )


def _odd_rows(table: pd.DataFrame) -> Iterable[str]:
    """Yield what was identical at the last checkpoint, and what could not be measured at it or before."""
    last = last_step(table)
    same = last["note"].fillna("").tolist().count(IDENTICAL)
    if same:
        yield f"{same} of {len(last)} tensors are identical to the reference."
    for when, rows in (("", last), (" at earlier checkpoints", table.loc[table["step"] != table["step"].max()])):
        notes = [without_path(note) for note in rows["note"].fillna("") if note and note != IDENTICAL]
        if notes:
            kinds = [kind.replace("*", "\\*") for kind in without_numbers(notes)]
            more = f"; and {len(kinds) - MOST_NOTES} more kinds" if len(kinds) > MOST_NOTES else ""
            yield f"{len(notes)} tensors could not be measured in full{when}: {'; '.join(kinds[:MOST_NOTES])}{more}."


def _left_whole(run: OpenedRun) -> Iterable[str]:
    fused = {note for report in run.reports for note in report.notes if "stays fused" in note or "stays packed" in note}
    if fused:
        yield (
            f"{len(fused)} fused matrices stay whole, because their order of rows is not known here. Their numbers mix "
            "what are separate matrices in other rows of the map."
        )
    partial = [report.tuned for report in run.reports if not report.complete]
    if partial:
        yield f"Not everything could be compared in {listed(dict.fromkeys(partial))}; the table above lists what not."
