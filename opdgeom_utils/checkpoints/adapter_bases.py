"""Whether an adapter stands on the model that it is compared with: what it leaves alone must be the same in both.

Vectors are compared whole, matrices on blocks of rows spread over them, so that opening a large model stays cheap. What
lies in one file under one name is the same without a look. The limits: a base that differs only in rows between the
blocks, or only in matrices that the adapter changes, is not noticed.
"""

from torch import Tensor

from opdgeom_utils.checkpoints.stored_tensors import OpenCheckpoint, StoredTensor
from opdgeom_utils.checkpoints.tied_embeddings import same_bits

BLOCKS, ROWS = 4, 16  # of each matrix: 64 rows


def other_values(reference: OpenCheckpoint, tuned: OpenCheckpoint) -> list[str]:
    """Name the tensors that no adapter changes, and that differ all the same.

    Parameters
    ----------
    reference, tuned : OpenCheckpoint
        One of them, or both, an adapter over its base.

    Examples
    --------
    >>> import torch
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


def _differ(one: StoredTensor, other: StoredTensor) -> bool:
    """Compare the rows that both have, unless the shapes say that it is another matrix; others report that."""
    if one.held is other.held and (one.where, one.key) == (other.where, other.key):
        return False
    if len(one.shape) != len(other.shape) or one.shape[1:] != other.shape[1:]:
        return False
    n_rows = min(one.shape[0], other.shape[0]) if one.shape else 0
    values = [tensor.read_unchecked() for tensor in (one, other)]
    if len(one.shape) < 2:
        pairs = [tuple(part[:n_rows] if one.shape else part for part in values)]
    else:
        pairs = [tuple(part[rows] for part in values) for rows in _rows(n_rows)]
    return not all(_same(*pair) for pair in pairs)


def _rows(n_rows: int) -> list[slice]:
    """Spread blocks over rows: the first and the last are among them, and all of a small matrix.

    Examples
    --------
    >>> [(rows.start, rows.stop) for rows in _rows(100)], [(rows.start, rows.stop) for rows in _rows(30)]
    ([(0, 16), (28, 44), (56, 72), (84, 100)], [(0, 30)])
    """
    if n_rows <= BLOCKS * ROWS:
        return [slice(0, n_rows)]
    starts = [number * (n_rows - ROWS) // (BLOCKS - 1) for number in range(BLOCKS)]
    return [slice(start, start + ROWS) for start in starts]


def _same(one: Tensor, other: Tensor) -> bool:
    """Say whether values are equal in the type of one of the two: either may be a rounded copy of the other."""
    one, other = one.cpu(), other.cpu()
    return any(same_bits(one.to(dtype), other.to(dtype)) for dtype in {one.dtype, other.dtype})
