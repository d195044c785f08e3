"""Leading singular spaces of an update from a few products with it, and what a random walk of the same size shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

BLOCKS = 4
GRID = 16  # points at which the random walk is simulated; straight lines between
DRAWS = 6
BELOW_THE_EDGE = 1.2065
SMALL_K = 4  # a walk is simulated in a matrix as many times smaller as its spaces are


@dataclass(frozen=True)
class LeadingSpaces:
    """Orthonormal columns that span the leading spaces of a matrix, its largest singular value, and its norm."""

    left: Float[Tensor, "out k"]
    right: Float[Tensor, "in k"]
    largest: float
    norm: float

    @property
    def stable_rank(self) -> float:
        """Squared norm over the largest squared singular value; nan for a zero matrix."""
        return max(1.0, (self.norm / self.largest) ** 2) if self.largest > 0 else math.nan


def leading_spaces(delta: Float[Tensor, "out in"], *, k: int = 16) -> LeadingSpaces:
    """Approximate the leading ``k`` singular directions by four Lanczos steps with blocks of 3/4 of it, in float32.

    Randomised block Krylov (Musco and Musco, arXiv 1504.05477), kept orthogonal on the shorter side. Every
    call starts from the same directions and leaves torch's generators alone. On spectra as flat as noise two spaces
    look up to 0.1 less alike than they are (from two different starts 0.25 less); the random walk is measured the same
    way.

    ``k``: dimension of the spaces, clipped to ``min(out, in)``.
    The largest singular value is never too large; at most 2% too small on a spectrum as flat as noise, exact to
    1e-3 where the first exceeds the k-th by a tenth. Spaces are as good as their gaps: see the tests. Where the
    shorter side has no more than ``3 k`` entries, nothing is approximate.

    >>> spaces = leading_spaces(torch.diag(torch.tensor([3.0, 2.0, 1.0])), k=1)
    >>> round(spaces.largest, 4), round(spaces.stable_rank, 4), spaces.left.abs().round().flatten().tolist()
    (3.0, 1.5556, [1.0, 0.0, 0.0])
    """
    k, turned = min(k, *delta.shape), delta.shape[0] < delta.shape[1]
    tall = delta.T if turned else delta
    basis, images = _krylov(tall, width=max(2, 3 * k // 4))
    wide = images.double()
    squares, turn = torch.linalg.eigh(wide @ wide.T)  # of sizes above 1e-7 of the largest nothing is lost
    turn = turn[:, -k:].flip(1).T.float()
    short, long = (turn @ basis).T, torch.linalg.qr((turn @ images).T).Q
    left, right = (short, long) if turned else (long, short)
    return LeadingSpaces(left, right, math.sqrt(max(0.0, float(squares[-1]))), float(delta.norm()))


def _krylov(tall: Tensor, *, width: int) -> tuple[Tensor, Tensor]:
    """Orthonormal rows on the shorter side, and what the matrix makes of them. Rows, as products of few are fast so."""
    m, n = tall.shape
    if n <= BLOCKS * width:
        basis = torch.eye(n, device=tall.device)
        return basis, tall.T
    block = torch.randn(width, m, generator=torch.Generator().manual_seed(0)).to(tall.device) @ tall
    basis, images = block[:0], tall.T[:0]
    while True:
        # Householder's reflections keep the new rows orthogonal even where the matrix has nothing left to add.
        block = torch.linalg.qr(torch.cat([basis, block]).T).Q.T[-width:]
        basis, images = torch.cat([basis, block]), torch.cat([images, block @ tall.T])
        if len(basis) == BLOCKS * width:
            return basis, images
        block = images[-width:] @ tall


def similarity(basis_a: Float[Tensor, "n k"], basis_b: Float[Tensor, "n k"]) -> float:
    """Share of one space that lies in another, 0 to 1."""
    return min(1.0, float((basis_a.T @ basis_b).square().sum()) / basis_a.shape[1])


def share_inside(rows: Float[Tensor, "m n"], basis: Float[Tensor, "n k"]) -> float:
    """Share of the squared norm of ``rows`` that lies in a space; nan if they are zero."""
    whole = float(rows.square().sum())
    return min(1.0, float((rows @ basis).square().sum()) / whole) if whole > 0 else math.nan


def stable_rank_of_noise(shape: tuple[int, int]) -> float:
    """Stable rank of a matrix of independent entries: its largest singular value nears the sum of two roots.

    From below, by the mean of the Tracy-Widom law; within 6% of the mean also where one side has two entries.

    >>> round(stable_rank_of_noise((400, 100)), 1), stable_rank_of_noise((400, 1))
    (45.4, 1.0)
    """
    out, in_ = shape
    edge = math.sqrt(out) + math.sqrt(in_)
    largest = edge**2 - BELOW_THE_EDGE * edge * (1 / math.sqrt(out) + 1 / math.sqrt(in_)) ** (1 / 3)
    return 1.0 if 1 in shape else out * in_ / largest


def walk_similarity(shape: tuple[int, int], kept: float, *, k: int = 16) -> tuple[float, float]:
    """Similarity, left and right, of a random walk's leading spaces to those of its own beginning.

    ``kept``: norm of the update at the early step over its norm now, 0 to 1.
    Returns left and right, each 0 to 1. Simulated, with the same sweeps as a run is measured with, in a matrix ``k /
    4`` times smaller with spaces of 4; the mean of six walks, within 0.08 of one at full size.

    >>> [round(share, 2) for share in walk_similarity((96, 96), 1.0)]
    [1.0, 1.0]
    """
    if shape[0] < shape[1]:
        right, left = walk_similarity((shape[1], shape[0]), kept, k=k)
        return left, right
    place = min(1.0, max(0.0, kept)) * GRID
    low = min(int(place), GRID - 1)
    k = min(k, *shape)
    small = min(SMALL_K, k)
    out, in_ = (max(small, round(side * small / k)) for side in shape)
    ends = (_simulated(out, in_, low, small), _simulated(out, in_, low + 1, small))
    left, right = (a + (place - low) * (b - a) for a, b in zip(*ends, strict=True))
    return left, right


@cache
def _simulated(out: int, in_: int, sixteenths: int, k: int) -> tuple[float, float]:
    generator, kept = torch.Generator().manual_seed(0), sixteenths / GRID
    total = torch.zeros(2, dtype=torch.float64)
    for _ in range(DRAWS):
        early, later = torch.randn(2, out, in_, generator=generator)
        now = leading_spaces(kept * early + math.sqrt(1 - kept**2) * later, k=k)
        then = leading_spaces(early, k=k)
        total += torch.tensor([similarity(then.left, now.left), similarity(then.right, now.right)])
    left, right = (total / DRAWS).tolist()
    return left, right
