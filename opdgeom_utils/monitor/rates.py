"""The learning rates that an optimizer really took, and how far they carry noise and a constant gradient."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opdgeom_utils.metrics import ballistic_rms, noise_walk_rms

# Walks are computed anew when a run has grown by this factor; between, they are scaled by the rates' own norm.
GROWTH = 1.25
EXACT_UNTIL = 64
WARM = 1000  # of the steps that Adam took before it is watched, so many tell what its moments hold
SEEN, FELT = 2**15, 0.99  # entries that tell what epsilon takes; less than a percent is nothing
# Of another length than Adam's on the same gradients; GaLore and APOLLO call themselves AdamW and have a rank.
OTHER_STEPS = re.compile("adamax|radam|nadam|schedulefree|adamp|grok|muon|dadapt|cautious|cadam|sparseadam")

Strengths = tuple[list[float], list[float]] | None  # of noise, and of a constant gradient


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
        self._own: dict[int, list[float]] = {}  # of a parameter that Adam did not step with the others
        self._felt: dict[int, list[tuple[int, float]]] = {}
        self._exact: dict[tuple[Any, ...], tuple[int, float, float]] = {}
        self._missed: set[int] = set()
        self._warm: dict[int, int] = {}  # steps before, of a group or a parameter
        self._begun, self._told, self._groups = False, False, len(optimizer.param_groups)
        name = type(optimizer).__name__.lower()
        self.is_adam = "adam" in name and not OTHER_STEPS.search(name) and "betas" in optimizer.defaults

    def trains(self, parameter: Tensor) -> bool:
        """Whether the optimizer steps this parameter: what is frozen may be in its groups all the same."""
        return id(parameter) in self._group and parameter.requires_grad

    def record(self, watched: Iterable[Tensor] = ()) -> None:
        """Note the rates of the step that is about to be taken, after those that the optimizer took before."""
        groups = self._optimizer.param_groups
        if not self._begun:
            self._begun = True
            self.taken = [self._earlier(group["params"][0] if group["params"] else None) for group in groups]
            self._warm = {g: len(earlier) for g, earlier in enumerate(self.taken)}
            for p in watched:
                if len(own := self._earlier(p)) != self._warm[self._group[id(p)]]:
                    self._own[id(p)], self._warm[id(p)] = own, len(own)
        if len(groups) > self._groups and not self._told:
            self._told = True
            warnings.warn(
                "the optimizer was given more parameters after the monitor was made; they are not watched. Make the "
                "monitor when everything that trains is in the optimizer.",
                stacklevel=2,
            )
        for taken, group in zip(self.taken, groups, strict=False):
            taken.append(float(group["lr"]))

    def stepped(self, watched: Iterable[Tensor]) -> None:
        """Tell apart, after a step, what Adam left out: parameters without a gradient, such as an idle expert's."""
        watched = list(watched)
        missed = [p for p in watched if p.grad is None]
        if len(missed) == len(watched) and not any(
            p.grad is not None for group in self._optimizer.param_groups for p in group["params"]
        ):
            missed = []  # an optimizer that has taken its gradients away
        for p in watched:
            if p.grad is not None and id(p) in self._own:
                self._own[id(p)].append(self.taken[self._group[id(p)]][-1])
        for p in missed:
            self._own.setdefault(id(p), self.taken[self._group[id(p)]][:-1])
        self._missed = {id(p) for p in missed}

    def of(self, parameter: Tensor) -> list[float]:
        """Rates of the steps that moved a parameter; 0 for those that were taken before."""
        return self._own.get(id(parameter), self.taken[self._group[id(parameter)]])

    def last(self, parameter: Tensor) -> float:
        """Return the latest rate of a parameter; 0 where it had no gradient."""
        return 0.0 if id(parameter) in self._missed else self.taken[self._group[id(parameter)]][-1]

    def last_on_noise(self, parameter: Tensor, walk: float) -> float:
        """Return the latest rate as noise feels it, given how far noise went: beside other rates, not by itself."""
        usual = _faded(np.array(self.of(parameter)), 0.0)
        return self.last(parameter) * (walk / usual if math.isfinite(walk) and usual > 0 else 1.0)

    def distances(self, parameter: Tensor) -> tuple[float, float]:
        """How far, as a root mean square, noise and a constant gradient carry an entry; nan unless Adam steps it.

        It is nan also where no schedule tells a step's length: with weight decay as a part of the gradient, as in
        ``torch.optim.Adam`` (``AdamW`` shrinks the weights apart from that), with gradients that are projected first
        (GaLore, APOLLO: the group has a ``rank``), ``amsgrad``, no correction of the first steps, or weights that are
        rounded at random.

        Up to 64 updates the walk is :func:`~opdgeom_utils.metrics.noise_walk_rms`. Later it is computed when the run
        has grown by a quarter, and scaled between by the root of the sum of squared rates, as weight decay leaves them;
        that is within 1%. Where Adam's epsilon is not small against the gradients, or there are none, both are shorter
        by the share of a step that its second moments left, as seen at each call.
        """
        return self._distances(parameter, (self._key(parameter),))

    def distances_of_factors(
        self, a: Tensor, b: Tensor, sizes: tuple[float, float]
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Both distances of A, and of B, when it is the gradient of their product that is noise, or constant.

        ``sizes``: root mean squares of an entry of A, and of B, before training.

        The gradient of one factor is as large as the other: that of A is 0 while B is, and grows with it. Adam divides
        by a size that lags behind, so A goes up to 1.4 times as far as at the same rates alone.
        """
        rates = [np.array(self.of(p)) for p in (a, b)]
        if len(rates[0]) != len(rates[1]):  # not stepped together
            return self.distances(a), self.distances(b)
        sizes = (float(f"{sizes[0]:.1e}"), float(f"{sizes[1]:.1e}"))  # so that matrices of a kind share a walk
        key = (self._key(a), self._key(b), *sizes)
        of_a = self._distances(a, (*key, "a"), _grown(sizes[1], rates[1]))
        times = of_a[0] / (float(np.linalg.norm(rates[0])) or 1.0)
        return of_a, self._distances(b, (*key, "b"), _grown(sizes[0], times * rates[0]))

    def _distances(self, parameter: Tensor, key: tuple[Any, ...], strengths: Strengths = None) -> tuple[float, float]:
        group = self._optimizer.param_groups[self._group[id(parameter)]]
        if not self._walks(group):
            return math.nan, math.nan
        rates = np.array(self.of(parameter))
        decay = min(1.0, float(group.get("weight_decay", 0.0) or 0.0))
        felt = rates * self._left_by_epsilon(parameter, group, len(rates))
        length, walk, straight = self._exact.get(key, (0, 0.0, 0.0))
        warm = self._warm.get(id(parameter), self._warm.get(self._group[id(parameter)], 0))
        updates, known = len(rates) - warm, length - warm
        if updates != known and (updates <= EXACT_UNTIL or updates >= GROWTH * known or walk == 0):
            betas, length = (float(group["betas"][0]), float(group["betas"][1])), len(rates)
            of_noise, of_signal = strengths or (None, None)
            walk = noise_walk_rms(rates.tolist(), betas=betas, weight_decay=decay, strengths=of_noise)
            straight = ballistic_rms(rates.tolist()) if of_signal is None else _straight(rates, of_signal, betas)
            self._exact[key] = (length, walk, straight)
        scale = _faded(felt, decay) / (_faded(rates[:length], decay) or 1.0)
        return walk * scale, straight * float(felt.sum()) / (float(rates[:length].sum()) or 1.0)

    def _key(self, parameter: Tensor) -> int:
        """Return what shares a walk: a group, or a parameter that has rates of its own."""
        return id(parameter) if id(parameter) in self._own else self._group[id(parameter)]

    def _walks(self, group: dict[str, Any]) -> bool:
        """Whether the rates of a group tell how far Adam goes on noise."""
        apart = group.get("decoupled_weight_decay", getattr(self._optimizer, "is_adamw", True))  # torch's, torchao's
        apart = apart and getattr(self._optimizer, "adam_w_mode", True)  # apex's, DeepSpeed's
        corrected = group.get("bias_correction", True) and group.get("correct_bias", True)
        return (
            self.is_adam
            and "rank" not in group
            and not (group.get("weight_decay") and not apart)
            and not group.get("amsgrad")
            and bool(corrected)
            and not self.rounds_at_random
        )

    @property
    def rounds_at_random(self) -> bool:
        """Whether weights in 16 bits are rounded up or down by chance, which is a walk of its own."""
        held = {**vars(self._optimizer), **self._optimizer.defaults}
        return any("stochastic_round" in name and bool(value) for name, value in held.items())

    def _earlier(self, parameter: Tensor | None) -> list[float]:
        """Rates of 0 for steps that an optimizer took before: its moments are warm, and nothing moved that counts."""
        state = self._optimizer.state.get(parameter, {}) if parameter is not None else {}
        return [0.0] * min(WARM, int(state.get("step", 0)))

    def _left_by_epsilon(self, parameter: Tensor, group: dict[str, Any], n: int) -> np.ndarray:
        """Share of each step that Adam's epsilon left, 1 where it is nothing beside the gradients."""
        left = self._felt.setdefault(id(parameter), [])
        if not left or left[-1][0] < n:
            left.append((n, _beside_epsilon(self._optimizer.state.get(parameter, {}), group)))
        lengths = np.diff([0, *(length for length, _ in left)])
        return np.repeat([share for _, share in left], lengths)


def _grown(size: float, rates: np.ndarray) -> tuple[list[float], list[float]]:
    """Size of a factor before each update: where noise of these rates takes it, and where a constant gradient does."""
    walk, straight = np.cumsum(rates**2), np.cumsum(rates) ** 2
    return tuple(np.sqrt(size**2 + np.append(0.0, squares[:-1])).tolist() for squares in (walk, straight))


def _straight(rates: np.ndarray, strengths: Sequence[float], betas: tuple[float, float]) -> float:
    """How far Adam goes on a gradient that keeps its direction and has these strengths."""
    far = first = second = 0.0
    for t, (rate, strength) in enumerate(zip(rates.tolist(), strengths, strict=True), start=1):
        first = betas[0] * first + (1 - betas[0]) * strength
        second = betas[1] * second + (1 - betas[1]) * strength**2
        size = math.sqrt(second / (1 - betas[1] ** t))
        far += rate * first / (1 - betas[0] ** t) / size if size > 0 else 0.0
    return far


def _faded(rates: np.ndarray, decay: float) -> float:
    """Norm of the rates, each less what weight decay took from its step since."""
    left = np.append(np.cumprod((1 - rates * decay)[::-1])[::-1][1:], 1.0) if decay else 1.0
    return float(np.linalg.norm(rates * left))


def _beside_epsilon(state: dict[str, Any], group: dict[str, Any]) -> float:
    """Root mean square over entries of ``size / (size + eps)``, by the second moments; 1 where they cannot be read."""
    second, step = state.get("exp_avg_sq"), float(state.get("step", 0))
    second = second.to_local() if hasattr(second, "to_local") else second  # pyright: ignore[reportOptionalMemberAccess]
    if type(second) is not Tensor or not second.is_floating_point() or not second.numel() or not step:
        return 1.0
    few = second.reshape(-1)[:: math.ceil(second.numel() / SEEN) | 1].double()  # an odd stride, so that all rows count
    size = (few / (1 - float(group["betas"][1]) ** step)).sqrt()
    share = math.sqrt(float((size / (size + float(group.get("eps", 0.0)))).nan_to_num(0.0).square().mean()))
    return 1.0 if share > FELT else share
