"""Tensors that lie in pieces: which entries each piece holds, and the whole, put together when it is read.

The entries of one dimension that a piece holds are a tuple of intervals ``(start, stop)``, in the order in which the
piece stores them. Splits follow ``torch.chunk``: chunks of equal length, the last ones shorter or empty.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdgeom_utils.errors import CheckpointDamagedError

Intervals = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Piece:
    """One piece of a tensor.

    Attributes
    ----------
    region : tuple of Intervals
        The entries that it holds, for each dimension.
    load : callable
        How to get its values.
    where : str
        Its file, for messages.
    """

    region: tuple[Intervals, ...]
    load: Callable[[], Tensor]
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Form of the piece."""
        return tuple(length_of(intervals) for intervals in self.region)


@dataclass(frozen=True)
class Assembled:
    """Put a tensor together from its pieces.

    Attributes
    ----------
    name : str
        The tensor's name, for messages.
    shape : tuple of int
        Form of the whole.
    dtype : torch.dtype
        Type of the entries.
    pieces : tuple of Piece
        They may overlap where they agree, as replicas do; together they must hold every entry.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    def __call__(self) -> Tensor:
        """Read all pieces.

        Raises
        ------
        CheckpointDamagedError
            When a piece is of another form, two replicas differ, or entries are missing.
        """
        whole = torch.zeros(self.shape, dtype=self.dtype)
        seen = torch.zeros(self.shape, dtype=torch.bool)
        for piece in self.pieces:
            values = piece.load()
            if (tuple(values.shape), values.dtype) != (piece.shape, self.dtype):
                raise CheckpointDamagedError(
                    f"{piece.where}: the piece of tensor {self.name} is {tuple(values.shape)} of {values.dtype}, "
                    f"expected {piece.shape} of {self.dtype}; copy or save the checkpoint again."
                )
            index = _index(piece.region)
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
        return whole


def chunk(intervals: Intervals, parts: int, index: int) -> Intervals:
    """Return one of ``parts`` chunks of the entries in ``intervals``.

    Examples
    --------
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

    Examples
    --------
    >>> strided_chunk(((0, 8),), 2, 2, 0)
    ((0, 2), (4, 6))
    """
    outer = min(split, max(1, length_of(intervals)))
    return tuple(
        interval for number in range(outer) for interval in chunk(chunk(intervals, split, number), parts, index)
    )


def length_of(intervals: Intervals) -> int:
    """Return the number of entries in some intervals."""
    return sum(stop - start for start, stop in intervals)


def entries_of(shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the number of entries in several pieces."""
    return sum(math.prod(shape) for shape in shapes)


def _index(region: tuple[Intervals, ...]) -> tuple[slice | Tensor, ...]:
    """Turn a region into an index: slices if each dimension is one interval, else index tensors that span a grid."""
    if all(len(intervals) <= 1 for intervals in region):
        return tuple(slice(*(intervals[0] if intervals else (0, 0))) for intervals in region)
    axes = [torch.cat([torch.arange(*interval) for interval in intervals]) for intervals in region]
    return tuple(
        axis.reshape([-1 if dimension == place else 1 for place in range(len(axes))])
        for dimension, axis in enumerate(axes)
    )
