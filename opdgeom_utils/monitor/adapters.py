"""A matrix with a LoRA: what is watched is what the two factors make, and noise is noise in them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from opdgeom_utils.monitor.factor_walk import FactorWalk, share_of_noisy_step
from opdgeom_utils.monitor.matrices import Parts, ReferenceFiles, Walks, WatchedWeight, whole
from opdgeom_utils.monitor.rates import RatesTaken
from opdgeom_utils.monitor.spaces import LeadingSpaces


@dataclass
class WatchedAdapter(WatchedWeight):
    """A matrix with a LoRA: its update is ``scale (B A - B0 A0)``; A is (rank, in), B is (out, rank)."""

    scale: float = 1.0
    trained: tuple[bool, bool] = (True, True)
    others: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)  # A, B, scale of those beside it
    is_weight = False

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix that is adapted."""
        return (self.parameters[1].shape[0], self.parameters[0].shape[1])

    def gather(self, *, with_start: bool = False) -> Parts:
        """Return both factors; ``with_start`` holds the frozen matrix below until :meth:`start` takes it."""
        below: Any = self.layer.base_layer
        self._below = [whole(below.weight)] if with_start else []
        self._others = [scale * (whole(b) @ whole(a)) for a, b, scale in self.others] if with_start else []
        return [whole(parameter) for parameter in self.parameters]

    def begin(self, parts: Parts) -> None:
        """Keep the factors; the matrix below is frozen."""
        self._began_as = parts[0].dtype
        self._factors = [part.float().clone() for part in parts]

    def is_at_start(self, parts: Parts) -> bool:
        """Whether both factors are those that were kept."""
        same = all(torch.equal(now.float(), then) for now, then in zip(parts, self._factors, strict=True))
        return same and parts[0].dtype == self._began_as

    def start(self, files: ReferenceFiles) -> Tensor | None:
        """Return the matrix below with the adapter as it began."""
        values = self._below.pop()
        if not values.is_floating_point():
            return None
        below = (values.T if self.turned else values).float() + self._product(self._factors)
        return sum((other.float() for other in self._others), below)

    def update(self, parts: Parts, start: Tensor | None) -> Tensor:
        """Return what training has added to the merged matrix, float32."""
        return self._product(parts) - self._product(self._factors)

    def now(self, parts: Parts, start: Tensor, update: Tensor) -> Tensor:
        """Return the merged matrix as it is."""
        return start + update

    def moved(self, parts: Parts, norm: float) -> list[tuple[nn.Parameter, float, int]]:
        """Adam moves the factors, so they are what a walk is compared with."""
        pairs = zip(self.parameters, parts, self._factors, self.trained, strict=True)
        return [(p, float((now - then).norm()) ** 2, now.numel()) for p, now, then, trained in pairs if trained]

    @property
    def stepped(self) -> list[nn.Parameter]:
        """One factor, or both."""
        return [p for p, trained in zip(self.parameters, self.trained, strict=True) if trained]

    def distances(self, rates: RatesTaken) -> Walks:
        """Of both factors together, each of which sets the size of the other's gradient."""
        if not all(self.trained):
            return {id(p): rates.distances(p) for p in self.stepped}
        a, b = (float(factor.square().mean().sqrt()) for factor in self._factors)
        of_a, of_b = self.parameters
        return dict(zip((id(of_a), id(of_b)), rates.distances_of_factors(of_a, of_b, (a, b)), strict=True))

    def noise_rms(self, walks: dict[int, float]) -> float:
        """Root mean square of ``scale (B A - B0 A0)`` when each factor walks by itself."""
        a, b = (float(f.square().mean()) for f in self._factors)
        da, db = (walks[id(p)] ** 2 if t else 0.0 for p, t in zip(self.parameters, self.trained, strict=True))
        return abs(self.scale) * math.sqrt(self._factors[0].shape[0] * (b * da + db * a + da * db))

    def directions(self, k: int) -> int:
        """Return no more than the rank: what follows is arbitrary."""
        return min(k, len(self._factors[0]))

    def found_early(self, parts: Parts) -> None:
        """Remember how far the factors had come."""
        self._far_early = self._far(parts)

    def noise_stable_rank(self, parts: Parts) -> float:
        """Stable rank of an update whose factors went as far, in directions of noise."""
        return FactorWalk(*self._factors).stable_rank(self._far(parts))

    def noise_similarity(self, parts: Parts, kept: float, *, k: int) -> tuple[float, float]:
        """Similarity, left and right, of such an update's spaces to those it had early."""
        return FactorWalk(*self._factors).similarity(self._far_early, self._far(parts), k=self.directions(k))

    def noise_inside(self, early: LeadingSpaces, rates: list[float]) -> tuple[float, float]:
        """Share, left and right, of a step that is noise in both factors inside the early spaces."""
        a, b = (rate if trained else 0.0 for rate, trained in zip(rates, self.trained, strict=True))
        return share_of_noisy_step(self.before[0].float(), self.before[1].float(), (a, b), early)

    def _far(self, parts: Parts) -> tuple[float, float]:
        a, b = (float((now - then).square().mean().sqrt()) for now, then in zip(parts, self._factors, strict=True))
        return a, b

    def keep(self, parts: Parts, step: int) -> None:
        """Keep both factors before a step."""
        self.before = [part.clone() for part in parts]

    def step(self, parts: Parts) -> tuple[Tensor, Tensor, float]:
        """Return the step of the merged matrix, twice: all its rows, all its columns; the share is of the factors'."""
        change = self._product(parts) - self._product(self.before)
        pairs = [pair for *pair, trained in zip(parts, self.before, self.trained, strict=True) if trained]
        share = sum(int((now != then).sum()) for now, then in pairs) / sum(now.numel() for now, _ in pairs)
        self.before = []
        return change, change, share

    def _product(self, parts: Parts) -> Tensor:
        return self.scale * (parts[1].float() @ parts[0].float())
