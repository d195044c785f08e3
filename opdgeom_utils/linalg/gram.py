"""Gram matrices of a matrix's small side, and their eigenvalues: where the metrics' time goes.

A matrix of 150,000 x 4,096 has 4,096 singular values, and all of them are in a 4,096 x 4,096 Gram matrix. It is summed
over blocks of rows, so the matrix itself is never copied whole into float64. On a CPU the work is done by SciPy's
LAPACK, which computes one triangle only; on any other device by torch.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_ENTRIES = 2**22  # 32 MB in float64
TILE = 256  # side of the squares in which a triangle is mirrored
LANCZOS_FROM = 256  # below this size all eigenvalues cost less than a search for the largest
LANCZOS_STEPS = 160
PROVEN = 1e-10  # relative error of the largest eigenvalue, proven by a Cholesky factorisation


@dataclass(frozen=True)
class TallMatrix:
    """A matrix, or the sum or difference of two, with its long side down and a scale that brings its entries below 2.

    A sum is never made whole: each block is added up when it is asked for, so an update needs no memory of its own, and
    ``other`` may lie on the CPU while the work is done on a GPU.

    ``rows``: the matrix or its transpose, as stored.
    ``scale``: a power of two, so that dividing by it rounds nothing; the largest entry over it is between 1 and 2. It
    is 1 for a zero matrix.
    ``other``: what is added to ``rows``, as stored.
    ``sign``: 1 if ``other`` is added, -1 if it is subtracted.
    ``device``: where the blocks are made; None for where ``rows`` lies.
    """

    rows: Float[Tensor, "long short"]
    scale: float
    other: Float[Tensor, "long short"] | None = None
    sign: int = 1
    device: torch.device | None = None

    @classmethod
    def of(
        cls,
        w: Float[Tensor, "out in"],
        *,
        plus: Float[Tensor, "out in"] | None = None,
        minus: Float[Tensor, "out in"] | None = None,
        device: torch.device | None = None,
    ) -> "TallMatrix":
        """Turn ``w``, or ``w + plus``, or ``w - minus``, and find its scale.

        The blocks are made on ``device``, by default where ``w`` lies.

        >>> tall = TallMatrix.of(torch.tensor([[5.0, -3.0]]))
        >>> tall.rows.tolist(), tall.scale
        ([[5.0], [-3.0]], 4.0)
        >>> list(TallMatrix.of(torch.tensor([[5.0, 3.0]]), minus=torch.tensor([[4.0, 3.0]])).blocks())[0].tolist()
        [[1.0], [0.0]]
        """
        other = plus if minus is None else minus
        rows, second = (
            None if m is None else m.detach() if m.shape[0] >= m.shape[1] else m.detach().T for m in (w, other)
        )
        assert rows is not None
        unscaled = cls(rows, 1.0, second, 1 if minus is None else -1, device or w.device)
        # The extremes of a stored matrix need no cast; those of a sum are found block by block.
        pieces = [rows] if second is None else unscaled.blocks()
        largest = max(max(-float(low), float(high)) for low, high in (piece.aminmax() for piece in pieces))
        scale = math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest > 0 else 1.0
        return dataclasses.replace(unscaled, scale=scale)

    def blocks(self) -> Iterator[Float[Tensor, "some short"]]:
        """Yield the scaled rows in float64, a block at a time."""
        n_rows = max(1, BLOCK_ENTRIES // self.rows.shape[1])
        for start in range(0, len(self.rows), n_rows):
            block = self.rows[start : start + n_rows].to(self.device).double()
            if self.other is not None:
                second = self.other[start : start + n_rows].to(block.device).double()
                block = torch.add(block, second, alpha=self.sign)
            yield block / self.scale if self.scale != 1.0 else block

    def gram(self) -> Float[Tensor, "short short"]:
        """Return the scaled matrix's transpose times itself.

        >>> TallMatrix.of(torch.tensor([[1.0], [1.0]])).gram().tolist()
        [[2.0]]
        """
        return sum_of_grams(self.blocks())

    def images(self, vectors: Float[Tensor, "short r"]) -> Float[Tensor, "long r"]:
        """Return the scaled matrix times ``vectors``."""
        images = torch.empty(len(self.rows), vectors.shape[1], dtype=torch.float64, device=vectors.device)
        start = 0
        for block in self.blocks():
            torch.mm(block, vectors, out=images[start : start + len(block)])
            start += len(block)
        return images


def on_cpu(tensor: Tensor) -> bool:
    """Whether SciPy can work on the tensor where it lies."""
    return tensor.device.type == "cpu"


def gram_of(block: Float[Tensor, "long short"]) -> Float[Tensor, "short short"]:
    """Return ``block.T @ block`` for a float64 block that needs no scaling.

    >>> gram_of(torch.tensor([[1.0, 2.0]], dtype=torch.float64)).tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """
    return sum_of_grams(iter([block]))


def sum_of_grams(blocks: Iterator[Float[Tensor, "some short"]]) -> Float[Tensor, "short short"]:
    """Return the sum of ``block.T @ block`` over float64 blocks that need no scaling.

    >>> rows = torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=torch.float64).split(1)
    >>> sum_of_grams(iter(rows)).tolist()
    [[10.0, 2.0], [2.0, 4.0]]
    """
    total = None
    for block in blocks:
        if not on_cpu(block):
            product = block.T @ block
            total = product if total is None else total.add_(product)
            continue
        if total is None:
            total = torch.zeros(block.shape[1], block.shape[1], dtype=block.dtype)
        columns_first = block.stride(0) == 1 and block.shape[0] > 1
        rows = block.numpy()
        # LAPACK counts columns first: what it calls the upper triangle of ``total.T`` is the lower one of ``total``.
        (dsyrk,) = scipy.linalg.get_blas_funcs(("syrk",), (rows,))
        triangle, left = total.numpy().T, rows if columns_first else rows.T
        dsyrk(1.0, left, beta=1.0, c=triangle, trans=int(columns_first), overwrite_c=1)
    assert total is not None
    return _mirrored(total) if on_cpu(total) else total


def _mirrored(lower: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Fill the upper triangle from the lower one, in place, a tile at a time."""
    for start in range(0, len(lower), TILE):
        stop = start + TILE
        corner = lower[start:stop, start:stop]
        corner += corner.tril(-1).T
        lower[start:stop, stop:] = lower[stop:, start:stop].T
    return lower


def frobenius_norm(w: Float[Tensor, "*shape"]) -> float:
    """Frobenius norm in float64, without overflow or underflow of the squares.

    >>> tiny = 2.0**-700
    >>> frobenius_norm(torch.tensor([3 * tiny, 4 * tiny], dtype=torch.float64)) == 5 * tiny
    True
    """
    tall = TallMatrix.of(w.reshape(1, -1))
    parts = [float(torch.linalg.vector_norm(block)) for block in tall.blocks()]
    return math.hypot(*parts) * tall.scale


def eigenpairs(gram: Float[Tensor, "n n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Eigenvalues, descending, and eigenvectors in columns, of a symmetric float64 matrix.

    >>> values, vectors = eigenpairs(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))
    >>> values.tolist(), vectors.abs().tolist()
    ([4.0, 1.0], [[0.0, 1.0], [1.0, 0.0]])
    """
    if not on_cpu(gram):
        values, vectors = torch.linalg.eigh(gram)
    else:
        values, vectors = map(
            torch.from_numpy, scipy.linalg.eigh(gram.numpy(), driver="evd", lower=False, check_finite=False)
        )
    return values.flip(0), vectors.flip(1)


def eigenvalues(gram: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Eigenvalues of a symmetric float64 matrix, descending; those of a Gram matrix that round below 0 become 0.

    >>> eigenvalues(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))).tolist()
    [4.0, 1.0]
    """
    if not on_cpu(gram):
        return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    values = scipy.linalg.eigvalsh(gram.numpy(), driver="evd", lower=False, check_finite=False)
    return torch.from_numpy(values).flip(0).clamp(min=0)


def largest_eigenvalue(gram: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Return the largest eigenvalue of a Gram matrix to 1e-10 of itself.

    Large matrices are searched with the Lanczos method. Its answer is a lower bound; that ``(1 + 1e-10)`` times it is
    an upper bound is proven by a Cholesky factorisation, which exists only above every eigenvalue. If the proof fails,
    all eigenvalues are computed.

    >>> float(largest_eigenvalue(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))))
    4.0
    """
    n = len(gram)
    found = _lanczos(gram) if n >= LANCZOS_FROM else None
    if found is not None:
        above = torch.diag(torch.full((n,), found * (1 + PROVEN), dtype=gram.dtype, device=gram.device)) - gram
        if int(torch.linalg.cholesky_ex(above).info) == 0:
            return torch.tensor(found, dtype=gram.dtype, device=gram.device)
    return eigenvalues(gram)[0]


def _lanczos(gram: Float[Tensor, "n n"]) -> float | None:
    """Search the largest eigenvalue with full reorthogonalisation; None if it has not settled."""
    n = len(gram)
    start = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=gram.dtype)
    basis = torch.zeros(min(LANCZOS_STEPS, n) + 1, n, dtype=gram.dtype, device=gram.device)
    basis[0] = (start / start.norm()).to(gram.device)
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(len(basis) - 1):
        image = gram @ basis[step]
        diagonal.append(float(image @ basis[step]))
        for _ in range(2):
            image -= basis[: step + 1].T @ (basis[: step + 1] @ image)
        beside.append(float(image.norm()))
        exhausted = beside[-1] <= 1e-14 * max(diagonal)
        if exhausted or step % 8 == 7:
            values, vectors = scipy.linalg.eigh_tridiagonal(diagonal, beside[:-1])
            residual = beside[-1] * abs(float(vectors[-1, -1]))
            # The error of the value is at most the residual, and near the square of it where there is a gap.
            if exhausted or residual <= 1e-6 * values[-1]:
                return float(values[-1])
        basis[step + 1] = image / beside[-1]
    return None
