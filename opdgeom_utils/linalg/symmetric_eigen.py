"""Eigenvalues of a symmetric matrix, and only those of its eigenvectors that are asked for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.linalg.gram import eigenpairs, on_cpu

TRIDIAGONAL_FROM = 2  # below this size there is nothing to reduce


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a symmetric matrix, and those of its eigenvectors that are asked for.

    On a CPU the matrix is brought to tridiagonal form once, the eigenvectors of that form are found by divide and
    conquer, and only the columns asked for are turned back.

    ``values``: eigenvalues, descending.
    """

    values: Float[Tensor, " n"]
    _vectors: Callable[[int, int], Tensor]

    @classmethod
    def of(cls, gram: Float[Tensor, "n n"]) -> "Spectrum":
        """Decompose a symmetric float64 matrix.

        >>> spectrum = Spectrum.of(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))
        >>> spectrum.values.tolist(), spectrum.vectors(0, 1).abs().tolist()
        ([4.0, 1.0], [[0.0], [1.0]])
        """
        n = len(gram)
        if not on_cpu(gram) or n < TRIDIAGONAL_FROM:
            values, vectors = eigenpairs(gram)
            return cls(values, lambda start, stop: vectors[:, start:stop])
        names = ("sytrd", "stevd", "ormqr")
        dsytrd, dstevd, dormqr = scipy.linalg.get_lapack_funcs(names, (gram.numpy(),))
        reduced, diagonal, beside, tau, _ = dsytrd(gram.numpy().T, lower=1, lwork=64 * n)
        ascending, small, _ = dstevd(diagonal, beside)
        # The reflectors leave the first coordinate alone; the rest is what LAPACK's dormtr passes on to dormqr.
        reflectors = np.asfortranarray(reduced[1:, :-1])

        def vectors_of(start: int, stop: int) -> Tensor:
            columns = np.asfortranarray(small[:, n - stop : n - start])
            columns[1:] = dormqr("L", "N", reflectors, tau, columns[1:], 64 * n)[0]
            return torch.from_numpy(columns).flip(1)

        return cls(torch.from_numpy(ascending).flip(0), vectors_of)

    def vectors(self, start: int, stop: int) -> Float[Tensor, "n some"]:
        """Return the eigenvectors of the values from ``start`` up to ``stop``, in columns."""
        return self._vectors(start, stop)
