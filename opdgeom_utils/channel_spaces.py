"""The spaces that an update can be confined to, of every matrix of a model's layers, as orthonormal columns.

Of an early update (the paper's channel), of what the matrices read before any training, or at random, as the null of
both. :func:`opdgeom_utils.channel_adapter.channel_adapter` trains inside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opdgeom_utils.checkpoints import CheckpointSource, layer_of, matching_names, open_checkpoint
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.linalg.factors import factorize
from opdgeom_utils.linalg.gram import eigenpairs
from opdgeom_utils.projection import random_space

Side = Literal["right", "left"]
NO_DIRECTION = 1e-10  # of the largest singular value


def spaces_of_update(
    before: CheckpointSource, after: CheckpointSource, rank: int, *, side: Side = "right"
) -> dict[str, Float[Tensor, "dim k"]]:
    """Leading singular spaces of what changed between two checkpoints, of every matrix of the layers.

    Parameters
    ----------
    before, after : str, path, torch.nn.Module or OpenCheckpoint
        As for ``open_checkpoint``: of the run to be confined, its start and an early checkpoint.
    rank : int
        Directions to keep; min(out, in) at most of each matrix.
    side : {"right", "left"}
        Directions of inputs or of outputs.

    Returns
    -------
    dict of str to Float[Tensor, "dim k"]
        fp32, orthonormal columns, the largest singular value first.

    Raises
    ------
    CheckpointNotFoundError, CheckpointDamagedError, CheckpointMismatchError
        When one cannot be opened, or they are not of one architecture.
    MetricInputError
        When the update of a matrix has fewer than ``rank`` directions.

    Examples
    --------
    >>> w, step = torch.eye(3), torch.tensor([[0.0, 2, 0], [0, 0, 0], [0, 0, 1]])
    >>> from opdgeom_utils.checkpoints import OpenCheckpoint, StoredTensor
    >>> name, pair = "model.layers.0.mlp.up_proj.weight", []
    >>> for value in (w, w + step):
    ...     pair.append(OpenCheckpoint("x", {name: StoredTensor("x", name, (3, 3), torch.float32, held=value)}))
    >>> spaces_of_update(*pair, rank=2)[name].abs()
    tensor([[0., 0.],
            [1., 0.],
            [0., 1.]])
    """
    return {name: _leading(name, delta_w, rank, side) for name, delta_w in _updates(before, after)}


@torch.no_grad()
def spaces_of_activations(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], rank: int
) -> dict[str, Float[Tensor, "in k"]]:
    """Leading spaces of what each linear map of the layers reads, before any training.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model.
    batches : iterable of mappings
        What the model is called with: ``input_ids``, ``attention_mask`` (padding is left out where there is one).
    rank : int
        Directions to keep; all of a map with fewer inputs.

    Returns
    -------
    dict of str to Float[Tensor, "in k"]
        fp32, eigenvectors of the second moment of the inputs (float64), the largest eigenvalue first.

    Raises
    ------
    MetricInputError
        When there are no batches.
    """
    moments = _Moments()
    hooks = [layer.register_forward_pre_hook(partial(moments.add, name)) for name, layer in _linear_maps(model)]
    try:
        for batch in batches:
            moments.mask = batch.get("attention_mask")
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not moments.of:
        raise MetricInputError("no linear map of a layer was called; give a few batches, and a transformers model.")
    bases = {name: eigenpairs(moment)[1][:, :rank].float() for name, moment in moments.of.items()}
    return {f"{name}.weight": bases[first] for name, first in moments.first.items()}


def random_spaces(
    model: nn.Module, rank: int, *, side: Side = "right", seed: int = 0
) -> dict[str, Float[Tensor, "dim k"]]:
    """Spaces without any direction of their own, one for each linear map of the layers: the null of the others."""
    spaces = {}
    for number, (name, layer) in enumerate(_linear_maps(model)):
        dim = layer.in_features if side == "right" else layer.out_features
        spaces[f"{name}.weight"] = random_space(dim, min(rank, dim), seed * 1_000_003 + number)
    return spaces


class _Moments:
    """Second moments of inputs; maps that read the same tensor (q, k and v; gate and up) share one."""

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}
        self.first: dict[str, str] = {}  # of each map, whose moment it shares
        self.mask: Tensor | None = None
        self._last: tuple[Tensor | None, str] = (None, "")

    def add(self, name: str, _: nn.Module, read: tuple[Tensor, ...]) -> None:
        """Add what a map is about to read."""
        inputs, mask = read[0], self.mask
        if inputs is not self._last[0]:
            self._last = (inputs, name)
            if mask is None or mask.shape != inputs.shape[:-1]:  # experts get tokens without their places
                rows = inputs.flatten(0, -2).double()
            else:
                rows = inputs[mask.bool()].double()
            self.of[name] = self.of.get(name, 0) + rows.T @ rows
        self.first[name] = self._last[1]


def _linear_maps(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Name and module of each linear map inside the layers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and layer_of(f"{name}.weight") >= 0:
            yield name, module


def _updates(before: CheckpointSource, after: CheckpointSource) -> Iterator[tuple[str, Tensor]]:
    """Name and difference of each matrix of the layers, one after the other."""
    first, second = open_checkpoint(before), open_checkpoint(after)
    for name in matching_names(first, second):
        if layer_of(name) >= 0 and len(first.tensors[name].shape) == 2:
            yield name, second.tensors[name].read().double() - first.tensors[name].read().double()


def _leading(name: str, delta_w: Float[Tensor, "out in"], rank: int, side: Side) -> Float[Tensor, "dim k"]:
    """Leading singular vectors of one update as columns, after proving that there are so many."""
    factors = factorize(delta_w, cuts=(rank,))
    found = int((factors.s > NO_DIRECTION * factors.s[0]).sum())
    if found < min(rank, len(factors.s)):
        raise MetricInputError(
            f"{name}: the update has {found} directions, expected {rank}; take a later checkpoint or a smaller rank."
        )
    return (factors.vh.T if side == "right" else factors.u)[:, :rank].float().contiguous()
