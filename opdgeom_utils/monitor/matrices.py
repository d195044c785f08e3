"""A watched matrix, whole or sharded: where it began, how far it went, and what noise would have done to it."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opdgeom_utils import metrics
from opdgeom_utils.checkpoints import StoredTensor
from opdgeom_utils.checkpoints.weight_files import opened
from opdgeom_utils.errors import MonitorError
from opdgeom_utils.linalg.bf16_bits import MAGNITUDE, count_true
from opdgeom_utils.metrics.noise_sparsity import N_MAGNITUDES, visible_by_size
from opdgeom_utils.metrics.noise_walk import coherence_of
from opdgeom_utils.metrics.sparsity import visible_changes
from opdgeom_utils.monitor.rates import RatesTaken
from opdgeom_utils.monitor.spaces import LeadingSpaces, stable_rank_of_noise, walk_similarity

SIZES = 2**18  # of a matrix's weights, so many tell how large they are: the share of noise is then within 0.003
ETA = 1e-3  # as for `metrics.update_sparsity`
ROWS, TOGETHER = 32, 8  # rows, and columns, of a weight that are kept over a step; neighbours cost little more than one
Parts = list[Tensor]
Walks = dict[int, tuple[float, float]]  # by the id of a parameter: how far noise, and a constant gradient, carry it


def whole(parameter: Tensor) -> Tensor:
    """Return a parameter's values; of a sharded one (DTensor) all of them, which every process must ask for."""
    value = parameter.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value  # pyright: ignore[reportAttributeAccessIssue]


def kept_reference(values: Tensor) -> Tensor:
    """Copy to the host, as bf16 where that loses nothing, as it is where it would."""
    short = values.to("cpu", torch.bfloat16, copy=True)
    return short if torch.equal(short.to(values.dtype), values.cpu()) else values.to("cpu", copy=True)


class ReferenceFiles(ExitStack):
    """Files of the reference, each opened once for all that a measurement reads."""

    def __init__(self) -> None:
        super().__init__()
        self._opened: dict[str, Any] = {}

    def read(self, stored: StoredTensor) -> Tensor:
        """Return the values, mapped where the file allows it."""
        if stored.held is not None or stored.load is not None:
            return stored.read_unchecked()
        if stored.where not in self._opened:
            self._opened[stored.where] = self.enter_context(opened(Path(stored.where)))
        values = self._opened[stored.where].get_tensor(stored.key)
        return values if tuple(values.shape) == stored.shape else stored.read_unchecked()  # which says what has changed


@dataclass
class WatchedWeight:
    """A weight matrix that the optimizer steps itself. ``turned`` where a layer stores it (in, out)."""

    name: str
    parameters: list[nn.Parameter]
    layer: nn.Module
    turned: bool = False
    reference: Tensor | StoredTensor | None = None
    before: Parts = field(default_factory=list)
    counted: Tensor | None = None
    is_weight = True

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        out, in_ = self.parameters[0].shape
        return (in_, out) if self.turned else (out, in_)

    @property
    def dtype(self) -> torch.dtype:
        """As it is trained."""
        return self.parameters[0].dtype

    def gather(self, *, with_start: bool = False) -> Parts:
        """Return the values now, (out, in), not copied where they lie whole; a collective call where sharded."""
        values = whole(self.parameters[0])
        return [values.T if self.turned else values]

    def begin(self, parts: Parts) -> None:
        """Keep where training starts, unless a file has it: then refuse a file that holds something else."""
        self._began_as = parts[0].dtype
        if not isinstance(self.reference, StoredTensor):
            self.reference = kept_reference(parts[0])
            return
        if self.reference.shape != tuple(parts[0].shape) or not self.is_at_start(parts):
            raise MonitorError(
                f"{self.name} is not what {self.reference.where} holds; expected the weights that training starts "
                "from. Give that folder as reference, or none: then they are copied when training starts."
            )

    def is_at_start(self, parts: Parts) -> bool:
        """Whether the first rows are those, and of the type, that were kept; a file's as the model holds them."""
        kept = self.reference
        rows = kept.read_part((slice(0, ROWS),)) if isinstance(kept, StoredTensor) else kept
        same = rows is not None and torch.equal(rows[:ROWS].to(parts[0].dtype), parts[0][:ROWS].cpu())
        return same and parts[0].dtype == self._began_as

    def start(self, files: ReferenceFiles) -> Tensor | None:
        """Return the matrix before training, where it lies, as the model held it; None where it is quantised."""
        values = files.read(self.reference) if isinstance(self.reference, StoredTensor) else self.reference
        rounds = values is not None and torch.promote_types(values.dtype, self._began_as) != self._began_as
        return values.to(self._began_as) if values is not None and rounds else values

    def update(self, parts: Parts, start: Tensor | None) -> Tensor:
        """Return what training has added, float32."""
        assert start is not None
        return torch.sub(parts[0].float(), start.to(parts[0].device)).float()  # bf16 is widened on the way, not before

    def now(self, parts: Parts, start: Tensor, update: Tensor) -> Tensor:
        """Return the matrix as it is."""
        return parts[0]

    def moved(self, parts: Parts, norm: float) -> list[tuple[nn.Parameter, float, int]]:
        """Return each stepped parameter, the squared norm of its displacement, and its entries, given the update's."""
        return [(self.parameters[0], norm**2, self.parameters[0].numel())]

    @property
    def stepped(self) -> list[nn.Parameter]:
        """What the optimizer steps."""
        return self.parameters

    def distances(self, rates: RatesTaken) -> Walks:
        """How far noise, and a constant gradient, carry an entry of each stepped parameter."""
        return {id(self.parameters[0]): rates.distances(self.parameters[0])}

    def noise_rms(self, walks: dict[int, float]) -> float:
        """Displacement of an entry, given that of each parameter on noise."""
        return walks[id(self.parameters[0])]

    def hidden_by_noise(self, start: Tensor, rms: float) -> float:
        """Share of entries that a noise walk would leave as bf16 shows them; sizes of bf16 weights are counted once."""
        few = start[:: math.ceil(start.numel() / SIZES)]
        if start.dtype != torch.bfloat16:
            return metrics.noise_sparsity(few, rms)
        if self.counted is None:
            counts = torch.bincount(
                few.flatten().cpu().view(torch.int16).bitwise_and(MAGNITUDE).int(), minlength=N_MAGNITUDES
            )
            codes = counts.nonzero().squeeze(1)
            self.counted = torch.stack([codes, counts[codes]]).int()
        codes, counts = self.counted
        return 1 - float(shown_by_noise(rms)[codes] @ counts.double()) / int(counts.sum())

    def directions(self, k: int) -> int:
        """Return how many of ``k`` leading directions an update can have."""
        return k

    def found_early(self, parts: Parts) -> None:
        """Remember how far training had come where the early spaces are taken."""

    def noise_stable_rank(self, parts: Parts) -> float:
        """Stable rank of an update of noise."""
        return stable_rank_of_noise(self.shape)

    def noise_similarity(self, parts: Parts, kept: float, *, k: int) -> tuple[float, float]:
        """Similarity, left and right, of a random walk's spaces to the early ones, of which it kept a part."""
        return walk_similarity(self.shape, kept, k=k)

    def noise_inside(self, early: LeadingSpaces, rates: list[float]) -> tuple[float, float]:
        """Share, left and right, of a step of noise that lies inside the early spaces; to ask before :meth:`step`."""
        k, (out, in_) = early.left.shape[1], self.shape
        return k / out, k / in_

    def keep(self, parts: Parts, step: int) -> None:
        """Keep a few rows and columns before a step, others each time."""
        self._lines = [some_lines(n, step).to(parts[0].device) for n in parts[0].shape]
        self.before = self._cut(parts[0])

    def step(self, parts: Parts) -> tuple[Tensor, Tensor, float]:
        """Return rows, then columns, of the step since :meth:`keep`, float32, and the share of entries it changed."""
        rows, columns = (a.float() - b.float() for a, b in zip(self._cut(parts[0]), self.before, strict=True))
        self.before = []
        return rows, columns, float((rows != 0).float().mean())

    def _cut(self, w: Tensor) -> Parts:
        return [w.index_select(0, self._lines[0]), w.index_select(1, self._lines[1])]


def sizes(
    m: WatchedWeight, far: Walks, parts: Parts, start: Tensor | None, update: Tensor, norm: float
) -> dict[str, float]:
    """How far the matrix went, beside noise at the rates that were taken, and how much of it bf16 shows."""
    moved = m.moved(parts, norm)
    n = sum(entries for _, _, entries in moved)
    squares = (
        sum(square for _, square, _ in moved),
        *(sum(entries * far[id(p)][i] ** 2 for p, _, entries in moved) for i in (0, 1)),
    )
    rms, walk, ballistic = (math.sqrt(square / n) for square in squares)
    noise = m.noise_rms({key: value[0] for key, value in far.items()})
    row = {
        "update_norm": norm,
        "update_norm_noise": noise * math.sqrt(update.numel()),
        "rms": rms,
        "walk": walk,
        "ballistic": ballistic,
        "walk_ratio": rms / walk if walk > 0 else math.nan,
        "coherence": coherence_of(rms, walk, ballistic),
    }
    if start is not None and math.isfinite(norm):
        start = start.to(update.device)
        shown = count_true(visible_changes(start, m.now(parts, start, update), eta=ETA))
        row["update_sparsity"] = (update.numel() - shown) / update.numel()
        row["update_sparsity_noise"] = m.hidden_by_noise(start, noise) if math.isfinite(noise) else math.nan
    return row


def some_lines(n: int, seed: int) -> Tensor:
    """Choose rows or columns, in groups of neighbours; all where there are few."""
    groups = torch.randperm(math.ceil(n / TOGETHER), generator=torch.Generator().manual_seed(seed))[: ROWS // TOGETHER]
    lines = (TOGETHER * groups[:, None] + torch.arange(TOGETHER)).flatten()
    return lines[lines < n]


@lru_cache(maxsize=8)
def shown_by_noise(rms: float) -> Tensor:
    """Probability that bf16 shows a normal displacement, at each finite magnitude that a weight can have."""
    magnitudes = torch.arange(N_MAGNITUDES, dtype=torch.int16).view(torch.bfloat16)
    return visible_by_size(magnitudes, rms, eta=ETA, shrinkage=0.0)
