"""The spaces that an update can be confined to, of every matrix of a model's layers, as orthonormal columns.

Of an early update (the paper's channel), of what the matrices read before any training, or at random, as the null of
both. :func:`opdgeom_utils.channel_adapter.channel_adapter` trains inside them.
"""

from __future__ import annotations

import math
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
SIDES = ("right", "left")
NO_DIRECTION = 1e-10  # of the largest singular value
NO_MOMENT = 1e-15  # of the largest eigenvalue, for each dimension


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
        fp32, orthonormal columns, the largest singular value first. A matrix that did not change has no space.

    Raises
    ------
    CheckpointNotFoundError, CheckpointDamagedError, CheckpointMismatchError
        When one cannot be opened, or they are not of one architecture.
    MetricInputError
        When no matrix changed, or an update has fewer than ``rank`` directions above what rounding leaves; when the
        rank is no count or the side no side.

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
    check_rank_and_side(rank, side)
    spaces = {
        name: _leading(name, delta_w, noise, rank, side)
        for name, delta_w, noise in _updates(before, after)
        if delta_w.any()
    }
    if not spaces:
        raise MetricInputError("no matrix of the layers changed between the two checkpoints; take a later one.")
    return spaces


@torch.no_grad()
def spaces_of_activations(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], rank: int
) -> dict[str, Float[Tensor, "in k"]]:
    """Leading spaces of what each linear map of the layers reads, before any training.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model; called without dropout, and left in the mode it was in.
    batches : iterable of mappings
        What the model is called with: ``input_ids``, ``attention_mask`` (sequences, tokens), whose padding is left out.
    rank : int
        Directions to keep; all of a map with fewer inputs.

    Returns
    -------
    dict of str to Float[Tensor, "in k"]
        fp32, eigenvectors of the second moment of the inputs (float64), the largest eigenvalue first.

    Raises
    ------
    MetricInputError
        When there are no batches, or something that the model cannot be called with; when what a map reads is not
        finite or has fewer than ``rank`` directions, as of a few tokens; when the model has an adapter; when the rank
        is no count.
    """
    check_rank_and_side(rank)
    moments = _Moments()
    hooks = [layer.register_forward_pre_hook(partial(moments.add, name)) for name, layer in _linear_maps(model)]
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        for batch in batches:
            moments.mask = _mask_of(batch)
            _call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    if not moments.of:
        raise MetricInputError("no linear map of a layer was called; expected a few batches.")
    bases = {name: _leading_eigenvectors(name, moment, rank) for name, moment in moments.of.items()}
    return {f"{name}.weight": bases[first] for name, first in moments.first.items()}


def random_spaces(
    model: nn.Module, rank: int, *, side: Side = "right", seed: int = 0
) -> dict[str, Float[Tensor, "dim k"]]:
    """Spaces without any direction of their own, one for each linear map of the layers: the null of the others.

    Raises MetricInputError when the model has an adapter or no linear map, the rank is no count, the side no side, or
    the seed no whole number below 2**32 in size.
    """
    check_rank_and_side(rank, side)
    if type(seed) is not int or abs(seed) >= 2**32:
        raise MetricInputError(f"seed {seed!r}; expected a whole number below 2**32 in size.")
    spaces = {}
    for number, (name, layer) in enumerate(_linear_maps(model)):
        dim = layer.in_features if side == "right" else layer.out_features
        spaces[f"{name}.weight"] = random_space(dim, min(rank, dim), seed * 1_000_003 + number)
    return spaces


def check_rank_and_side(rank: int, side: str = "right") -> None:
    """Raise MetricInputError unless a rank is a count and a side is one of the two.

    >>> check_rank_and_side(16, "left")
    """
    if type(rank) is not int or rank < 1 or side not in SIDES:
        raise MetricInputError(f"rank {rank!r}, side {side!r}; expected a whole number of at least 1, right or left.")


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
            rows = inputs.flatten(0, -2)
            if mask is not None and mask.numel() == len(rows):  # experts get some tokens, without their places
                rows = rows[mask.flatten().bool()]
            rows = rows.double()
            self.of[name] = self.of.get(name, 0) + rows.T @ rows
        self.first[name] = self._last[1]


def _mask_of(batch: Mapping[str, Tensor]) -> Tensor | None:
    """Which tokens of a batch count, after proving that it is a batch."""
    if not isinstance(batch, Mapping):
        raise MetricInputError(f"a batch is a {type(batch).__name__}; expected mappings: [{{'input_ids': ids}}].")
    mask = batch.get("attention_mask")
    if mask is not None and mask.ndim != 2:
        raise MetricInputError(f"attention_mask of shape {tuple(mask.shape)}; expected (sequences, tokens).")
    ids = batch.get("input_ids")
    if mask is not None and isinstance(ids, Tensor) and mask.shape != ids.shape:
        raise MetricInputError(
            f"attention_mask of shape {tuple(mask.shape)} beside input_ids of shape {tuple(ids.shape)}; expected one."
        )
    if empty := [name for name, value in batch.items() if isinstance(value, Tensor) and not value.numel()]:
        raise MetricInputError(f"a batch is empty: {', '.join(empty)}; expected sequences with tokens.")
    return mask


def _call(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Call a model with a batch, and say what the batch is where the model will not have it."""
    try:
        model(**batch)
    except (MetricInputError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        held = ", ".join(
            f"{name} ({value.dtype if isinstance(value, Tensor) else type(value).__name__})"
            for name, value in batch.items()
        )
        raise MetricInputError(
            f"{type(model).__name__} cannot be called with a batch of {held or 'nothing'} "
            f"({(str(error) or type(error).__name__).splitlines()[0]}); expected what a tokenizer of this model "
            "returns: {'input_ids': ids, 'attention_mask': mask}, whole numbers (sequences, tokens)."
        ) from error


def _linear_maps(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Name and module of each linear map inside the layers of a plain model."""
    if any(hasattr(module, "adapter_layer_names") for module in model.modules()):
        raise MetricInputError("the model has an adapter; give the plain one, as before get_peft_model or .unload().")
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inside = [(name, module) for name, module in found if layer_of(f"{name}.weight") >= 0]
    if not inside:
        raise MetricInputError(
            f"none of {len(found)} linear maps of {type(model).__name__} is in a layer of a language model; expected "
            "names such as model.layers.0.mlp.up_proj (GPT-2's Conv1D is no linear map)."
        )
    yield from inside


def _leading_eigenvectors(name: str, moment: Float[Tensor, "in in"], rank: int) -> Float[Tensor, "in k"]:
    """Leading eigenvectors of one second moment as columns, after proving that there are so many."""
    if not moment.isfinite().all():
        raise MetricInputError(f"{name}: reads NaN or infinite values; the model or the batches are damaged.")
    values, vectors = eigenpairs(moment)
    found = int((values > NO_MOMENT * len(values) * values[0]).sum())
    if found < rank < len(values):
        raise MetricInputError(
            f"{name}: reads {found} directions, expected {rank}; give more tokens or a smaller rank."
        )
    return vectors[:, :rank].float()


def _updates(before: CheckpointSource, after: CheckpointSource) -> Iterator[tuple[str, Tensor, float]]:
    """Name and difference of each matrix of the layers, one after the other, and a singular value of mere rounding."""
    first, second = open_checkpoint(before), open_checkpoint(after)
    for name in matching_names(first, second):
        if layer_of(name) >= 0 and len(first.tensors[name].shape) == 2:
            w_ref, w_new = first.tensors[name].read(), second.tensors[name].read()
            delta_w = w_new.double() - w_ref.to(w_new.device).double()
            yield name, delta_w, _rounding(w_ref.dtype, w_new)


def _rounding(before: torch.dtype, w_new: Float[Tensor, "out in"]) -> float:
    """Largest singular value that rounding alone leaves in a difference: that of independent errors of every entry.

    Counted is float32's rounding (of a merge, of training itself), or that of ``w_new`` where it alone was rounded
    further. What two checkpoints of one low precision differ by is what they are.
    """
    eps = [torch.finfo(dtype).eps for dtype in (before, w_new.dtype)]
    rounded = eps[1] if eps[1] > eps[0] else min(eps[1], torch.finfo(torch.float32).eps)
    rms = float(w_new.double().square().mean().sqrt())
    return rounded / 2 * rms * sum(math.sqrt(size) for size in w_new.shape)


def _leading(
    name: str, delta_w: Float[Tensor, "out in"], noise: float, rank: int, side: Side
) -> Float[Tensor, "dim k"]:
    """Leading singular vectors of one update as columns, after proving that there are so many."""
    factors = factorize(delta_w, cuts=(rank,))
    found = int((factors.s > max(noise, NO_DIRECTION * float(factors.s[0]))).sum())
    if found < min(rank, len(factors.s)):
        raise MetricInputError(
            f"{name}: the update has {found} directions that are more than rounding, expected {rank}; take a later "
            "checkpoint, in float32, or a smaller rank."
        )
    return (factors.vh.T if side == "right" else factors.u)[:, :rank].float().contiguous()
