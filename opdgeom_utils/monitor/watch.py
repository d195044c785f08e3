"""The monitor of a plain loop: hooks around the optimizer's steps, a table of every matrix, one number of each kind."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opdgeom_utils.checkpoints import CheckpointSource, layer_of, module_of, open_checkpoint
from opdgeom_utils.errors import MonitorError
from opdgeom_utils.metrics.inputs import check_count
from opdgeom_utils.monitor.alerts import Alerts
from opdgeom_utils.monitor.chosen import watched_matrices
from opdgeom_utils.monitor.matrices import Parts, ReferenceFiles, Walks, WatchedWeight, sizes
from opdgeom_utils.monitor.rates import RatesTaken
from opdgeom_utils.monitor.spaces import (
    LeadingSpaces,
    leading_spaces,
    share_inside,
    similarity,
)
from opdgeom_utils.monitor.table import WatchedTable, summary

Row = dict[str, Any]


class GeometryMonitor:
    """Watch the geometry of a training run from its optimizer's hooks.

    Parameters
    ----------
    model : nn.Module
        What is trained: any module, with peft's LoRA layers or not, sharded by ``fully_shard`` or not.
    optimizer : torch.optim.Optimizer
        Of its parameters. Walks need one of Adam's family, its weight decay apart from the gradient (AdamW);
        with another they are nan in the table and absent from ``latest``, and the rest is measured.
    every : int
        Measure at every so many steps of the optimizer.
    matrices : "sample", "all" or list of str
        One matrix of each kind, spread over the depth; all in the layers; or kinds (``q_proj``) and names.
    reference : str, path or checkpoint, optional
        The checkpoint that training starts from: its files are mapped into memory, and no copy is kept. Without it,
        the watched matrices are copied to the host when the monitor is made, in bf16 where that loses nothing.
    out : path, optional
        A parquet file, one row for each watched matrix at each measured step.
    k : int
        Dimension of the spaces.
    activations : bool
        Whether to hook the watched layers' inputs, for one more null of the share inside the early right space. Not of
        a LoRA, whose steps are not made of its inputs alone.
    first_step : int
        Steps that were taken before; added to the steps in table and log.
    on_measured : callable, optional
        Called after each measurement with the step and its numbers, on the main process.
    alert : callable, optional
        Called with a title and a text; otherwise trackio's alert where a run of it is open, or a warning.

    Attributes
    ----------
    latest : dict of str to float
        The newest numbers, by their keys ``geometry/...``.

    Raises
    ------
    MonitorError
        When nothing is left to watch, or the reference is not what training starts from.

    Notes
    -----
    Weights are only read, torch's generators are not used, nothing is differentiated: a run's weights are the same, bit
    for bit, with and without it. The share of a step inside the early space is taken from 32 rows (right) and 32
    columns (left) of the step, other ones each time.

    Examples
    --------
    >>> layer = nn.Linear(8, 8)
    >>> optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    >>> with GeometryMonitor(layer, optimizer, every=2, k=2) as monitor:
    ...     for _ in range(4):
    ...         optimizer.zero_grad()
    ...         layer(torch.ones(1, 8)).sum().backward()
    ...         optimizer.step()
    >>> round(monitor.latest["geometry/coherence"], 2), monitor.latest["geometry/stable_rank"] < 1.1
    (1.0, True)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        every: int = 10,
        matrices: str | list[str] = "sample",
        reference: CheckpointSource | None = None,
        out: str | Path | None = None,
        k: int = 16,
        activations: bool = False,
        first_step: int = 0,
        on_measured: Callable[[int, Mapping[str, float]], object] | None = None,
        alert: Callable[[str, str], object] | None = None,
    ) -> None:
        check_count("every", every)
        check_count("k", k)
        self.every, self.k, self.first_step, self.latest = every, k, first_step, {}
        self.is_main = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        # Accelerate and the like hold the optimizer that steps inside one of their own.
        while not hasattr(optimizer, "register_step_pre_hook") or hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer  # pyright: ignore[reportAttributeAccessIssue]
        self.rates = RatesTaken(optimizer)
        self.matrices = watched_matrices(model, self.rates, matrices)
        self._stepped = [p for m in self.matrices for p in m.stepped]
        self._updates, self._on_measured, self._table = 0, on_measured, WatchedTable(out)
        self._alerts = Alerts(alert)
        self._early: dict[str, LeadingSpaces] = {}
        self._inputs: dict[str, list[float]] = {}
        self._begin(reference)
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        if activations:
            weights = [m for m in self.matrices if m.is_weight]
            self._handles += [m.layer.register_forward_pre_hook(self._input_hook(m)) for m in weights]

    def __enter__(self) -> GeometryMonitor:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off and write what is not yet in the table."""
        for handle in self._handles:
            handle.remove()
        if self._handles and not self.latest and self.is_main:
            warnings.warn(
                f"nothing was measured: {self._updates} steps of the optimizer were seen, and every is {self.every}. "
                "Give a smaller every, and the optimizer that steps the model.",
                stacklevel=2,
            )
        self._handles = []
        self._table.write()

    @torch.no_grad()
    def _begin(self, reference: CheckpointSource | None) -> None:
        stored = {} if reference is None else open_checkpoint(reference).tensors
        for m in self.matrices:
            if reference is not None:
                if m.name not in stored:
                    raise MonitorError(
                        f"the reference has no {m.name}; expected the checkpoint that training starts from, with the "
                        f"model's own names. It has {len(stored)} tensors, such as {next(iter(stored), 'none')}."
                    )
                m.reference = stored[m.name]
            parts = m.gather()
            if self.is_main:
                m.begin(parts)

    def _begin_again(self) -> None:
        """Start from the weights before the first step where they are not those that the monitor was made with."""
        moved = []
        for m in self.matrices:
            parts = m.gather()
            if self.is_main and not m.is_at_start(parts):
                moved.append(m.name)
                m.reference = None
                m.begin(parts)
        if moved:
            warnings.warn(
                f"{moved[0]} and {len(moved) - 1} more changed, or changed type, between the making of the monitor and "
                "the first step: the update is measured from the first step. Make the monitor last.",
                stacklevel=2,
            )

    def _due(self, updates: int) -> bool:
        return updates % self.every == 0

    @torch.no_grad()
    def _before_step(self, *_: object) -> None:
        self.rates.record(self._stepped)
        self._updates += 1
        if self._updates == 1:
            self._begin_again()
        if self._due(self._updates) and self._updates > self.every:
            for m in self.matrices:
                parts = m.gather()
                if m.name in self._early:
                    m.keep(parts, self._updates)

    @torch.no_grad()
    def _after_step(self, *_: object) -> None:
        self.rates.stepped(self._stepped)
        if not self._due(self._updates):
            return
        rows = []
        with ReferenceFiles() as files:
            for m in self.matrices:
                parts = m.gather(with_start=True)
                if self.is_main:
                    rows.append(self._measured(m, parts, m.start(files)))
        self._inputs.clear()
        if self.is_main:
            step = self.first_step + self._updates
            self._table.add(rows)
            self.latest = summary(rows)
            self._alerts.look(step, self._updates, self.latest, rows)
            if self._on_measured is not None:
                self._on_measured(step, self.latest)

    def _measured(self, m: WatchedWeight, parts: Parts, start: Tensor | None) -> Row:
        """Measure one matrix."""
        update = m.update(parts, start)
        row: Row = {
            "step": self.first_step + self._updates,
            "updates": self._updates,
            "name": m.name,
            "layer": layer_of(m.name),
            "module": module_of(m.name),
            "shape": "x".join(map(str, m.shape)),
            "dtype": str(m.dtype).removeprefix("torch."),
            "entries": update.numel(),
            "learning_rate": self.rates.last(m.stepped[0]),
        }
        norm = float(update.norm())
        far = m.distances(self.rates)
        row |= sizes(m, far, parts, start, update, norm)
        if not math.isfinite(norm):
            warnings.warn(f"{m.name} holds NaN or infinite values at step {row['step']}.", stacklevel=2)
            return row
        spaces = leading_spaces(update, k=m.directions(self.k))
        row |= {"stable_rank": spaces.stable_rank, "stable_rank_noise": m.noise_stable_rank(parts)}
        if m.name in self._early:
            row |= self._beside_early(m, far, parts, spaces)
        elif spaces.largest > 0:
            self._early[m.name] = spaces
            m.found_early(parts)
        return row

    def _beside_early(self, m: WatchedWeight, far: Walks, parts: Parts, spaces: LeadingSpaces) -> Row:
        """Say what the update, and the step just taken, share with the early spaces."""
        early = self._early[m.name]
        kept = min(1.0, early.norm / spaces.norm) if spaces.norm else 1.0
        walk = m.noise_similarity(parts, kept, k=self.k)
        row: Row = {
            "similarity_left": similarity(early.left, spaces.left) if spaces.largest > 0 else math.nan,
            "similarity_right": similarity(early.right, spaces.right) if spaces.largest > 0 else math.nan,
            "similarity_left_random_walk": walk[0],
            "similarity_right_random_walk": walk[1],
        }
        if m.before:
            rates = {id(p): self.rates.last_on_noise(p, far[id(p)][0]) for p in m.stepped}
            noise = m.noise_inside(early, [rates.get(id(p), 0.0) for p in m.parameters])
            rows, columns, changed = m.step(parts)
            row |= {
                "step_changed": changed if any(rates.values()) else math.nan,  # a rate of 0 changes nothing
                "step_inside_left": share_inside(columns.T, early.left),
                "step_inside_right": share_inside(rows, early.right),
                "step_inside_left_random": noise[0],
                "step_inside_right_random": noise[1],
            }
        if m.name in self._inputs:
            inside, whole = self._inputs[m.name]
            row["step_inside_right_activations"] = inside / whole if whole > 0 else math.nan
        return row

    def _input_hook(self, m: WatchedWeight) -> Callable[..., None]:
        """Add up, in the pass before a measured step, how much of a layer's inputs lies in the early right space."""

        @torch.no_grad()
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            if not self.is_main or m.name not in self._early or not self._due(self._updates + 1):
                return
            x = given[0].detach().reshape(-1, given[0].shape[-1]).float()
            sums = self._inputs.setdefault(m.name, [0.0, 0.0])
            sums[0] += float((x @ self._early[m.name].right).square().sum())
            sums[1] += float(x.square().sum())

        return hook
