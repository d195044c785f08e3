"""Gram matrices of a matrix's small side, and their eigenvalues: where the metrics' time goes.

A matrix of 150,000 x 4,096 has 4,096 singular values, and all of them are in a 4,096 x 4,096 Gram matrix. It is summed
over blocks of rows, so the matrix itself is never copied whole into float64. On a CPU the work is done by SciPy's
LAPACK, which computes one triangle only; on any other device by torch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_ENTRIES = 2**22  # 32 MB in float64
LANCZOS_FROM = 256  # below this size all eigenvalues cost less than a search for the largest
LANCZOS_STEPS = 160
PROVEN = 1e-10  # relative error of the largest eigenvalue, proven by a Cholesky factorisation


@dataclass(frozen=True)
class TallMatrix:
    """A matrix seen with its long side down, and the power of two that brings its largest entry to between 1 and 2.

    Attributes
    ----------
    rows : Float[Tensor, "long short"]
        The matrix or its transpose, as stored.
    scale : float
        A power of two, so that dividing by it rounds nothing; 1 for a zero matrix.
    """

    rows: Float[Tensor, "long short"]
    scale: float

    @classmethod
    def of(cls, w: Float[Tensor, "out in"]) -> "TallMatrix":
        """Turn ``w`` and find its scale.

        Examples
        --------
        >>> tall = TallMatrix.of(torch.tensor([[5.0, -3.0]]))
        >>> tall.rows.tolist(), tall.scale
        ([[5.0], [-3.0]], 4.0)
        """
        low, high = w.detach().aminmax()
        largest = max(-float(low), float(high))
        scale = math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest > 0 else 1.0
        return cls(w.detach() if w.shape[0] >= w.shape[1] else w.detach().T, scale)

    def blocks(self) -> Iterator[Float[Tensor, "some short"]]:
        """Yield the scaled rows in float64, a block at a time."""
        n_rows = max(1, BLOCK_ENTRIES // self.rows.shape[1])
        for block in self.rows.split(n_rows):
            yield block.double() / self.scale

    def gram(self) -> Float[Tensor, "short short"]:
        """Return the scaled matrix's transpose times itself.

        Examples
        --------
        >>> TallMatrix.of(torch.tensor([[1.0], [1.0]])).gram().tolist()
        [[2.0]]
        """
        total = None
        for block in self.blocks():
            product = gram_of(block)
            total = product if total is None else total.add_(product)
        assert total is not None
        return total

    def images(self, vectors: Float[Tensor, "short r"]) -> Float[Tensor, "long r"]:
        """Return the scaled matrix times ``vectors``."""
        return torch.cat([block @ vectors for block in self.blocks()])


def on_cpu(tensor: Tensor) -> bool:
    """Whether SciPy can work on the tensor where it lies."""
    return tensor.device.type == "cpu"


def gram_of(block: Float[Tensor, "long short"]) -> Float[Tensor, "short short"]:
    """Return ``block.T @ block`` for a float64 block that needs no scaling.

    Examples
    --------
    >>> gram_of(torch.tensor([[1.0, 2.0]], dtype=torch.float64)).tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """
    if not on_cpu(block):
        return block.T @ block
    columns_first = block.stride(0) == 1 and block.shape[0] > 1
    rows = block.numpy()
    (dsyrk,) = scipy.linalg.get_blas_funcs(("syrk",), (rows,))
    upper = dsyrk(1.0, rows, trans=1) if columns_first else dsyrk(1.0, rows.T)
    half = torch.from_numpy(upper)
    return half + half.triu(1).T


def frobenius_norm(w: Float[Tensor, "*shape"]) -> float:
    """Frobenius norm in float64, without overflow or underflow of the squares.

    Examples
    --------
    >>> tiny = 2.0**-700
    >>> frobenius_norm(torch.tensor([3 * tiny, 4 * tiny], dtype=torch.float64)) == 5 * tiny
    True
    """
    tall = TallMatrix.of(w.reshape(1, -1))
    parts = [float(torch.linalg.vector_norm(block)) for block in tall.blocks()]
    return math.hypot(*parts) * tall.scale


def eigenpairs(gram: Float[Tensor, "n n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Eigenvalues, descending, and eigenvectors in columns, of a symmetric float64 matrix.

    Examples
    --------
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

    Examples
    --------
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

    Examples
    --------
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
