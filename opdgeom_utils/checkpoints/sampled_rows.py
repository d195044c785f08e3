"""What two checkpoints must share, looked up in a few rows of each matrix, so that opening a large model stays cheap.

Three questions: does an adapter stand on the model that it is compared with, or on one that training first took a piece
from; and do the rows of two vocabularies, or of queries and keys, lie in one order. Vectors are compared whole,
matrices on blocks of rows, and for their order on single rows all over too. What lies in one file under one name is the
same without a look. The limits: a base that differs only in rows between the blocks, or only in matrices that the
adapter changes, is not noticed; nor are a few rows of a vocabulary that have moved where none is looked at.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from opdgeom_utils.checkpoints.parameter_names import layer_of
from opdgeom_utils.checkpoints.stored_tensors import OpenCheckpoint, StoredTensor
from opdgeom_utils.checkpoints.tied_embeddings import same_bits

BLOCKS, ROWS = 4, 16  # of each matrix: 64 rows
SINGLE = 64  # rows anywhere
PIECE, ALIKE, CHANCE = 0.1, 0.8, 6  # of a matrix's length; a cosine; standard deviations of one
LOOKED = 4  # directions of an update
MOST = 32  # alpha over r: what adds more than so many times the matrix itself is an update, not a piece
NO_LENGTH = 1e-4  # of the longest image
FAR, FIT, FEWEST = 0.5, 4, 3  # of a row's own length; times nearer elsewhere; rows that make a disorder
UNRELATED = 1  # of a row's own length, by the median: rows without relation are the root of two apart


class RowOrder(NamedTuple):
    """How the rows of two matrices lie: what is odd in words, whether they moved, whether most are of other things."""

    text: str = ""
    moved: bool = False
    unrelated: bool = False


def other_values(reference: OpenCheckpoint, tuned: OpenCheckpoint) -> list[str]:
    """Name the tensors that no adapter changes, and that differ all the same.

    >>> def opened(value: float, **fields: frozenset[str]) -> OpenCheckpoint:
    ...     values = torch.full((3, 2), value)
    ...     tensors = {name: StoredTensor("x", name, (3, 2), values.dtype, held=values) for name in ("q", "k")}
    ...     return OpenCheckpoint("x", tensors, **fields)
    >>> other_values(opened(1.0), opened(2.0, adapted=frozenset({"q"})))
    ['k']
    """
    changed = (reference.adapted or frozenset()) | (tuned.adapted or frozenset())
    return [
        name
        for name, tensor in reference.tensors.items()
        if name in tuned.tensors and name not in changed and _differ(tensor, tuned.tensors[name])
    ]


def taken_from(base: OpenCheckpoint, adapted: OpenCheckpoint) -> str:
    """Name the first matrix that is adapted, if its update is a piece of the matrix itself, as where PiSSA took it out.

    In the directions of outputs that a low-rank update ``D`` has, an orthonormal ``Q``, such a piece is the matrix
    itself, times alpha / r under OLoRA: ``Q' D`` is ``c Q' W``, more alike than by chance and not small. A few mixtures
    of the columns of ``D`` show enough of them. Of one matrix all values are read.

    >>> w = torch.diag(torch.arange(20.0, 0, -1))
    >>> def opened(values: Tensor, **fields: frozenset[str]) -> OpenCheckpoint:
    ...     tensor = StoredTensor("x", "q", (20, 20), values.dtype, held=values)
    ...     return OpenCheckpoint("x", {"layers.0.q": tensor}, **fields)
    >>> taken_from(opened(w), opened(w + torch.diag(w.diag() * (w.diag() == 20)), adapted=frozenset({"layers.0.q"})))
    'layers.0.q'
    """
    names = (name for name in adapted.tensors if name in (adapted.adapted or ()) and layer_of(name) >= 0)
    for name in names:
        one, other = base.tensors.get(name), adapted.tensors[name]
        if one is None or len(one.shape) != 2 or one.shape != other.shape:
            continue
        w, update = one.read_unchecked().double(), other.read_unchecked().double()
        update -= w
        mix = torch.randn(update.shape[1], LOOKED, generator=torch.Generator().manual_seed(0), dtype=update.dtype)
        q, lengths = torch.linalg.qr(update @ mix.to(update.device))
        q = q[:, lengths.diagonal().abs() > NO_LENGTH * lengths.diagonal().abs().max()]
        added, own = q.T @ update, q.T @ w
        if not added.any():
            continue
        cosine = float((added * own).sum() / (added.norm() * own.norm()).clamp(min=torch.finfo(w.dtype).tiny))
        by_chance = own.numel() * math.log(max(1 - cosine**2, torch.finfo(w.dtype).tiny)) > -(CHANCE**2)
        times = float(added.norm() / own.norm().clamp(min=torch.finfo(w.dtype).tiny))
        is_piece = cosine > ALIKE and not by_chance and PIECE < times < MOST
        return name if is_piece else ""
    return ""


def order_of_rows(one: StoredTensor, other: StoredTensor) -> RowOrder:
    """Say whether the rows of two vocabulary matrices mean the same tokens, from rows all over those that both have.

    >>> rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    >>> def stored(values: Tensor) -> StoredTensor:
    ...     return StoredTensor("x", "w", tuple(values.shape), values.dtype, held=values)
    >>> order_of_rows(stored(rows), stored(torch.cat([rows, rows[:2]])))
    RowOrder(text='', moved=False, unrelated=False)
    >>> order_of_rows(stored(rows), stored(torch.cat([-rows[:2], rows])))[:2]
    ('row i of the first is row i+2 of the second', True)
    """
    if _is_one(one, other) or len(one.shape) != 2 or one.shape[1:] != other.shape[1:]:
        return RowOrder()
    parts = [*_rows(n_rows := min(one.shape[0], other.shape[0])), *_single_rows(n_rows)]
    places = torch.cat([torch.arange(rows.start, rows.stop) for rows in parts])
    before, after = (torch.cat([side.read_part((rows,)).float().cpu() for rows in parts]) for side in (one, other))
    length = before.norm(dim=1)
    ratio = (after - before).norm(dim=1) / length  # NaN where a row is zero or broken: no sign of anything
    far = ratio > FAR
    if int(far.sum()) < FEWEST:
        return RowOrder()
    distance = torch.cdist(before[far], other.read_unchecked().float().cpu()) / length[far, None]
    nearest, where = distance.nan_to_num(torch.inf).min(dim=1)
    elsewhere = (nearest * FIT < ratio[far]) & (where != places[far])
    if 2 * int(elsewhere.sum()) > int(far.sum()) and 4 * len(where[elsewhere].unique()) > 3 * int(elsewhere.sum()):
        shift = int((where - places[far])[elsewhere].mode().values)
        alike = (where - places[far])[elsewhere] == shift
        by_one = f"row i of the first is row i{shift:+d} of the second"
        several = "the second has the rows of the first in another order"
        return RowOrder(by_one if bool(alike.float().mean() > 0.5) else several, moved=True)
    share = f"{int(far.sum())} of {len(far)} rows looked at lie further apart than {FAR:g} of their length"
    return RowOrder(share, unrelated=float(ratio.nanmedian()) > UNRELATED)


def _differ(one: StoredTensor, other: StoredTensor) -> bool:
    """Compare the rows that both have, unless the shapes say that it is another matrix; others report that."""
    if _is_one(one, other) or len(one.shape) != len(other.shape) or one.shape[1:] != other.shape[1:]:
        return False
    if not one.shape:
        return not _same(one.read_unchecked(), other.read_unchecked())
    n_rows = min(one.shape[0], other.shape[0])
    blocks = _rows(n_rows) if len(one.shape) > 1 else [slice(0, n_rows)]
    return not all(_same(one.read_part((rows,)), other.read_part((rows,))) for rows in blocks)


def _is_one(one: StoredTensor, other: StoredTensor) -> bool:
    return one.held is other.held and (one.where, one.key) == (other.where, other.key)


def _rows(n_rows: int) -> list[slice]:
    """Spread blocks over rows: the first and the last are among them, and all of a small matrix.

    >>> [(rows.start, rows.stop) for rows in _rows(100)], [(rows.start, rows.stop) for rows in _rows(30)]
    ([(0, 16), (28, 44), (56, 72), (84, 100)], [(0, 30)])
    """
    if n_rows <= BLOCKS * ROWS:
        return [slice(0, n_rows)]
    starts = [number * (n_rows - ROWS) // (BLOCKS - 1) for number in range(BLOCKS)]
    return [slice(start, start + ROWS) for start in starts]


def _single_rows(n_rows: int) -> list[slice]:
    """Choose rows anywhere outside the blocks, the same of every matrix of a length; none of a small one.

    >>> len(_single_rows(60)), len(_single_rows(100)), len(_single_rows(10_000))
    (0, 36, 64)
    """
    blocks = {row for rows in _rows(n_rows) for row in range(rows.start, rows.stop)}
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [row for row in order[: SINGLE + len(blocks)] if row not in blocks][:SINGLE]
    return [slice(row, row + 1) for row in sorted(chosen)]


def _same(one: Tensor, other: Tensor) -> bool:
    """Say whether values are equal in the type of one of the two: either may be a rounded copy of the other."""
    one, other = one.cpu(), other.cpu()
    return any(same_bits(one.to(dtype), other.to(dtype)) for dtype in {one.dtype, other.dtype})
