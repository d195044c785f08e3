"""What a LoRA shows whose factors walk at random. It has few directions: a whole matrix's nulls say nothing of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.monitor.spaces import LeadingSpaces, similarity

DRAWS = 2  # of matrices as wide as a model's: six move a similarity by less than .02, a stable rank by 3%
Distances = tuple[float, float]  # root mean squares of what A, and B, moved by


@dataclass(frozen=True)
class FactorWalk:
    """The update ``B A - B0 A0`` when both factors go as far as they did, in directions of noise.

    ``a``, ``b``: the factors before training, (rank, in) and (out, rank).
    """

    a: Float[Tensor, "r in"]
    b: Float[Tensor, "out r"]

    def stable_rank(self, moved: Distances) -> float:
        """Stable rank of such an update, a mean of two draws; nan where neither factor moved.

        >>> walk = FactorWalk(torch.eye(2, 50), torch.zeros(50, 2))
        >>> 1.5 < walk.stable_rank((0.0, 1.0)) < 2
        True
        """
        if not any(moved):
            return math.nan
        found = [self._spaces(step, 1).stable_rank for (step,) in self._walks(moved)]
        return sum(found) / len(found)

    def similarity(self, moved_then: Distances, moved: Distances, *, k: int) -> tuple[float, float]:
        """Similarity, left and right, of its leading spaces to those that it had earlier, a mean of two draws.

        >>> walk = FactorWalk(torch.eye(2, 50), torch.zeros(50, 2))
        >>> [round(side, 2) for side in walk.similarity((0.0, 1.0), (0.0, 1.0), k=2)]
        [1.0, 1.0]
        """
        if not any(moved) or not any(moved_then):
            return math.nan, math.nan
        total = torch.zeros(2, dtype=torch.float64)
        for steps in self._walks(moved_then, moved):
            then, now = (self._spaces(step, k) for step in steps)
            total += torch.tensor([similarity(then.left, now.left), similarity(then.right, now.right)])
        left, right = (total / DRAWS).tolist()
        return left, right

    def _walks(self, *moved: Distances) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Draw walks of both factors through the given distances, each with what went before in it.

        The gradient of B is ``G A'``, that of A ``B' G``: with noise in G, directions of one factor are alike as far as
        those of the other are. Adam makes them equally long.
        """
        generator = torch.Generator().manual_seed(0)
        for _ in range(DRAWS):
            of_a, of_b, before, found = torch.zeros_like(self.a), torch.zeros_like(self.b), (0.0, 0.0), []
            for far in moved:
                fresh = torch.randn(self.b.shape, generator=generator).to(self.b.device)
                of_b = _further(of_b, before[1], far[1], fresh @ _likeness(self.a + of_a))
                fresh = torch.randn(self.a.shape, generator=generator).to(self.a.device)
                of_a = _further(of_a, before[0], far[0], _likeness((self.b + of_b).T) @ fresh)
                before = far
                found.append((of_a, of_b))
            yield found

    def _spaces(self, step: tuple[Tensor, Tensor], k: int) -> LeadingSpaces:
        """Leading spaces of ``dB (A0 + dA) + B0 dA``, from its factors alone."""
        a, b = step
        left, right = b, (self.a + a).T
        if bool(self.b.any()):
            left, right = torch.cat([b, self.b], dim=1), torch.cat([right, a.T], dim=1)
        (turn_left, upper_left), (turn_right, upper_right) = torch.linalg.qr(left), torch.linalg.qr(right)
        u, s, vh = torch.linalg.svd(upper_left @ upper_right.T, full_matrices=False)
        return LeadingSpaces(turn_left @ u[:, :k], turn_right @ vh[:k].T, float(s[0]), float(s.norm()))


def _further(place: Tensor, before: float, distance: float, fresh: Tensor) -> Tensor:
    """Displacement at which noise has come so far; what it went before is in it."""
    kept = min(1.0, before / distance) if distance else 0.0
    there = kept * place / before if before else 0.0
    return distance * (there + math.sqrt(1 - kept**2) * fresh)


def _likeness(rows: Float[Tensor, "r n"]) -> Float[Tensor, "r r"]:
    """Root of the matrix of cosines between rows; a row of zeros is like no other."""
    norms = rows.norm(dim=1, keepdim=True)
    cosines = (rows / norms.where(norms > 0, 1.0)).double()
    cosines = cosines @ cosines.T
    values, vectors = torch.linalg.eigh(cosines.fill_diagonal_(1.0))
    return (vectors * values.clamp(min=0).sqrt() @ vectors.T).to(rows.dtype)


def share_of_noisy_step(
    a: Float[Tensor, "r in"], b: Float[Tensor, "out r"], rates: Distances, spaces: LeadingSpaces
) -> tuple[float, float]:
    """Return the share, left and right, of ``dB A + B dA`` expected inside two spaces when both steps are noise.

    ``a``, ``b``: the factors where the step begins.
    ``rates``: root mean square of an entry's step in A, and in B.

    A step of B alone has all its rows in the span of A's:

    >>> axis = LeadingSpaces(torch.eye(4, 1), torch.eye(3, 1), 1.0, 1.0)
    >>> share_of_noisy_step(torch.eye(1, 3), torch.zeros(4, 1), (0.0, 1.0), axis)
    (0.25, 1.0)
    """
    k, out, in_ = spaces.left.shape[1], b.shape[0], a.shape[1]
    of_a, of_b = rates[0] ** 2, rates[1] ** 2
    whole = of_b * out * float(a.square().sum()) + of_a * in_ * float(b.square().sum())
    if not whole > 0:
        return math.nan, math.nan
    left = of_b * k * float(a.square().sum()) + of_a * in_ * float((spaces.left.T @ b).square().sum())
    right = of_b * out * float((a @ spaces.right).square().sum()) + of_a * k * float(b.square().sum())
    return left / whole, right / whole
