"""The learning rates that an optimizer really took, and how far they carry noise and a constant gradient."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from opdgeom_utils.metrics import ballistic_rms, noise_walk_rms

# Walks are computed anew when a run has grown by this factor; between, they are scaled by the rates' own norm.
GROWTH = 1.25
EXACT_UNTIL = 64
# Of another length than Adam's on the same gradients; GaLore and APOLLO call themselves AdamW and have a rank.
OTHER_STEPS = re.compile("adamax|radam|schedulefree|adamp|grok|muon|dadapt|cautious|cadam|sparseadam")


class RatesTaken:
    """Rates of each parameter group of an optimizer, one for each step that it took.

    >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
    >>> optimizer = torch.optim.AdamW([weight], lr=0.5, weight_decay=0.0)
    >>> rates = RatesTaken(optimizer)
    >>> rates.record()
    >>> [round(far, 6) for far in rates.distances(weight)]
    [0.5, 0.5]
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._group = {id(p): g for g, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.taken: list[list[float]] = [[] for _ in optimizer.param_groups]
        self._exact: dict[int, tuple[int, float]] = {}
        self._far: dict[int, tuple[int, tuple[float, float]]] = {}  # what all matrices of a group share
        name = type(optimizer).__name__.lower()
        self.is_adam = "adam" in name and not OTHER_STEPS.search(name) and "betas" in optimizer.defaults

    def trains(self, parameter: Tensor) -> bool:
        """Whether the optimizer steps this parameter: what is frozen may be in its groups all the same."""
        return id(parameter) in self._group and parameter.requires_grad

    def record(self) -> None:
        """Note the rates of the step that is about to be taken."""
        for taken, group in zip(self.taken, self._optimizer.param_groups, strict=False):
            taken.append(float(group["lr"]))

    def last(self, parameter: Tensor) -> float:
        """Return the latest rate of a parameter."""
        return self.taken[self._group[id(parameter)]][-1]

    def distances(self, parameter: Tensor) -> tuple[float, float]:
        """How far, as a root mean square, noise and a constant gradient carry an entry; nan unless Adam steps it.

        It is nan also where weight decay is a part of the gradient, as in ``torch.optim.Adam``: Adam divides it by the
        gradient's size, which no schedule tells. ``AdamW`` shrinks the weights apart from that. And it is nan where
        gradients are projected first (GaLore, APOLLO: the group has a ``rank``).

        Up to 64 updates the walk is :func:`~opdgeom_utils.metrics.noise_walk_rms`. Later it is computed when the run
        has grown by a quarter, and scaled between by the root of the sum of squared rates; that is within 1%.
        """
        index = self._group[id(parameter)]
        taken, group = self.taken[index], self._optimizer.param_groups[index]
        apart = group.get("decoupled_weight_decay", getattr(self._optimizer, "is_adamw", True))  # torch's, torchao's
        if not self.is_adam or "rank" in group or (group.get("weight_decay") and not apart):
            return math.nan, math.nan
        steps, far = self._far.get(index, (0, (0.0, 0.0)))
        if steps == len(taken):
            return far
        length, walk = self._exact.get(index, (0, 0.0))
        if length != len(taken) and (len(taken) <= EXACT_UNTIL or len(taken) >= GROWTH * length or walk == 0):
            first, second = (float(beta) for beta in group["betas"])
            decay = min(1.0, float(group.get("weight_decay", 0.0) or 0.0))
            length = len(taken)
            walk = noise_walk_rms(taken, betas=(first, second), weight_decay=decay)
            self._exact[index] = (length, walk)
        far = walk * math.hypot(*taken) / (math.hypot(*taken[:length]) or 1.0), ballistic_rms(taken)
        self._far[index] = len(taken), far
        return far
