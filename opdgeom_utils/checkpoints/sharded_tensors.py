"""Tensors that lie in pieces: which entries each piece holds, and the whole, put together when it is read.

The entries of one dimension that a piece holds are a tuple of intervals ``(start, stop)``, in the order in which the
piece stores them. Splits follow ``torch.chunk``: chunks of equal length, the last ones shorter or empty.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opdgeom_utils.errors import CheckpointDamagedError

Intervals = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Piece:
    """One piece of a tensor.

    ``region``: the entries that it holds, for each dimension.
    ``load``: from an index to the values at it.
    """

    region: tuple[Intervals, ...]
    load: Callable[[tuple[Any, ...]], Tensor]
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Form of the piece."""
        return tuple(length_of(intervals) for intervals in self.region)


@dataclass(frozen=True)
class Assembled:
    """Put a tensor together from its pieces.

    ``pieces``: they may overlap where they agree, as replicas do; together they must hold every entry.
    ``open_ended``: whether only the pieces say how long the whole is, so that the last ones may be missing.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]
    open_ended: bool = False

    def __call__(self, cuts: tuple[int | slice, ...] = ()) -> Tensor:
        """Put a part together, from the pieces that hold some of it.

        ``cuts``: the index of each leading dimension; empty for the whole.
        Raises CheckpointDamagedError when two replicas differ, or entries are missing.
        """
        bounds = [bounds_of(cut, size) for cut, size in zip(every_cut(cuts, self.shape), self.shape, strict=True)]
        # entries of one byte are put together as whole numbers: torch neither compares nor scatters 8-bit floats
        dtype = torch.uint8 if self.dtype.itemsize == 1 else self.dtype
        whole = torch.zeros([last - first for first, last, _ in bounds], dtype=dtype)
        seen = torch.zeros(whole.shape, dtype=torch.bool)
        for piece in self.pieces:
            held = [
                within(intervals, first, last) for intervals, (first, last, _) in zip(piece.region, bounds, strict=True)
            ]
            if not all(here for here, _ in held):
                continue
            values = piece.load(_index([here for here, _ in held])).view(dtype)
            index = _index([there for _, there in held])
            old, known = whole[index], seen[index]
            if not bool(((old == values) | (old.isnan() & values.isnan()) | ~known).all()):
                raise CheckpointDamagedError(
                    f"{piece.where}: the piece of tensor {self.name} is not what another rank holds of the same "
                    "entries; the files are of different steps or damaged, copy them again."
                )
            whole[index], seen[index] = values, True
        n_missing = int((~seen).sum())
        if n_missing:
            raise CheckpointDamagedError(
                f"{self.pieces[0].where}: {n_missing} of {whole.numel()} entries of tensor {self.name} are in no "
                "piece; a file is missing or stands under another's name."
            )
        return whole.view(self.dtype)[tuple(rest for _, _, rest in bounds)]


def block(starts: Sequence[int], sizes: Sequence[int]) -> tuple[Intervals, ...]:
    """Return the region of one block.

    >>> block((2, 0), (3, 0))
    (((2, 5),), ())
    """
    return tuple(((start, start + size),) if size else () for start, size in zip(starts, sizes, strict=True))


def chunk(intervals: Intervals, parts: int, index: int) -> Intervals:
    """Return one of ``parts`` chunks of the entries in ``intervals``.

    >>> [chunk(((0, 7),), 4, index) for index in range(4)]
    [((0, 2),), ((2, 4),), ((4, 6),), ((6, 7),)]
    >>> chunk(((0, 3), (10, 13)), 2, 1)
    ((10, 13),)
    """
    size = math.ceil(length_of(intervals) / parts)
    first, last = index * size, (index + 1) * size
    found, passed = [], 0
    for start, stop in intervals:
        begin, end = max(start, start + first - passed), min(stop, start + last - passed)
        if begin < end:
            found.append((begin, end))
        passed += stop - start
    return tuple(found)


def strided_chunk(intervals: Intervals, split: int, parts: int, index: int) -> Intervals:
    """Return chunk ``index`` of ``parts`` out of each of ``split`` chunks: a dimension split twice, the inner first.

    >>> strided_chunk(((0, 8),), 2, 2, 0)
    ((0, 2), (4, 6))
    """
    outer = min(split, max(1, length_of(intervals)))
    return tuple(
        interval for number in range(outer) for interval in chunk(chunk(intervals, split, number), parts, index)
    )


def within(intervals: Intervals, first: int, last: int) -> tuple[Intervals, Intervals]:
    """Return which of the entries in ``intervals`` lie in ``first:last``: where in the piece, and where in the part.

    >>> within(((0, 3), (10, 13)), 2, 12)
    (((2, 3), (3, 5)), ((0, 1), (8, 10)))
    """
    here, there, passed = [], [], 0
    for start, stop in intervals:
        begin, end = max(start, first), min(stop, last)
        if begin < end:
            here.append((passed + begin - start, passed + end - start))
            there.append((begin - first, end - first))
        passed += stop - start
    return tuple(here), tuple(there)


def every_cut(cuts: Sequence[int | slice], shape: tuple[int, ...]) -> tuple[int | slice, ...]:
    """Return an index for each dimension: that of the leading ones, and all of the others."""
    return (*cuts, *(slice(None) for _ in shape[len(cuts) :]))


def bounds_of(cut: int | slice, size: int) -> tuple[int, int, int | slice]:
    """Return the first entry that a cut takes, the one after its last, and what is left to cut between the two.

    >>> bounds_of(3, 8), bounds_of(slice(1, None, 3), 8)
    ((3, 4, 0), (1, 8, slice(None, None, 3)))
    """
    if isinstance(cut, int):
        place = range(size)[cut]
        return place, place + 1, 0
    taken = range(size)[cut]
    return taken.start, taken[-1] + 1 if taken else taken.start, slice(None, None, taken.step)


def length_of(intervals: Intervals) -> int:
    """Return the number of entries in some intervals."""
    return sum(stop - start for start, stop in intervals)


def entries_of(pieces: Sequence[Piece]) -> int:
    """Return the number of entries in several pieces; replicas count once."""
    return sum(math.prod(shape) for shape in {piece.region: piece.shape for piece in pieces}.values())


def _index(region: Sequence[Intervals]) -> tuple[slice | Tensor, ...]:
    """Turn a region into an index: slices if each dimension is one interval, else index tensors that span a grid."""
    if all(len(intervals) <= 1 for intervals in region):
        return tuple(slice(*(intervals[0] if intervals else (0, 0))) for intervals in region)
    axes = [torch.cat([torch.arange(0), *(torch.arange(*interval) for interval in intervals)]) for intervals in region]
    return tuple(
        axis.reshape([-1 if dimension == place else 1 for place in range(len(axes))])
        for dimension, axis in enumerate(axes)
    )
