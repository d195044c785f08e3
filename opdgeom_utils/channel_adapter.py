"""Train inside a space that is chosen beforehand: W = W0 + B V' (or U A), a LoRA with one factor frozen.

The paper holds a run in the leading singular space of its own early update by projecting gradients (arXiv 2606.07082,
functional sufficiency); AdamW then divides every entry by a scale of its own and leaves the space again. Here the space
is a factor of the update. ``V`` (in, k) has orthonormal columns and never moves. Trained is ``B`` (out, k), from zero.
No optimiser can leave the space, and gradients, moments and the inputs kept for them have k columns.

The result is an ordinary PEFT LoRA (scaling 1): PEFT saves, loads and merges it, and whatever reads LoRA reads it.
Where the spaces come from: :mod:`opdgeom_utils.channel_spaces`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opdgeom_utils.channel_spaces import Side
from opdgeom_utils.errors import CheckpointMismatchError, MetricInputError, MissingPackageError

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "default"  # PEFT's name for the only one
FACTORS = {"right": ("lora_A", "lora_B"), "left": ("lora_B", "lora_A")}  # the frozen one, the trained one
NOT_ORTHONORMAL = 1e-3
SHOWN = 3


def channel_adapter(
    model: nn.Module, spaces: Mapping[str, Float[Tensor, "dim k"]], rank: int, *, side: Side = "right"
) -> PeftModel:
    """Put a LoRA into a model whose updates cannot leave the given spaces.

    Parameters
    ----------
    model : torch.nn.Module
        With weights; changed in place, as by PEFT.
    spaces : mapping of str to Float[Tensor, "dim k"]
        For the weight of each linear map that is to be trained, by its name in ``model`` (with or without
        ``.weight``), orthonormal columns, the most important first: directions of inputs (``dim`` = in) on the right
        side, of outputs (``dim`` = out) on the left.
    rank : int
        How many of the columns count; all where there are fewer.
    side : {"right", "left"}
        ``right`` trains B of W0 + B V', ``left`` trains A of W0 + U A.

    Returns
    -------
    peft.PeftModel
        At the start it computes what ``model`` did. ``save_pretrained`` writes a standard adapter. Opened again for
        training (``is_trainable=True``), it needs :func:`freeze_spaces`.

    Raises
    ------
    CheckpointMismatchError
        When a name is not that of a linear map, or a space does not have its dimension.
    MetricInputError
        When there are no spaces, or columns that are not orthonormal.
    MissingPackageError
        Without the package ``peft``.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 2, bias=False))
    >>> start = model[0].weight.detach().clone()
    >>> adapted = channel_adapter(model, {"0": torch.eye(3)[:, :1]}, rank=1)
    >>> (adapted(torch.ones(2, 3)) ** 2).sum().backward()
    >>> _ = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.1, weight_decay=0).step()
    >>> (adapted.merge_and_unload()[0].weight - start != 0).tolist()
    [[True, False, False], [True, False, False]]
    """
    peft = _peft()
    bases = {name.removesuffix(".weight"): space for name, space in spaces.items()}
    ranks = _checked_ranks(model, bases, rank, side)
    other = {name: k for name, k in ranks.items() if k != rank}
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,  # so that B V' counts once
        rank_pattern=other,
        alpha_pattern=other,
        target_modules=sorted(bases),
        task_type="CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None,
    )
    adapted = peft.get_peft_model(model, config)
    frozen, trained = FACTORS[side]
    for name, layer in _layers(adapted):
        space = bases[name][:, : ranks[name]]
        factors = {part: getattr(layer, part)[ADAPTER].weight for part in (frozen, trained)}
        with torch.no_grad():
            factors[frozen].copy_(space.T if side == "right" else space)
            factors[trained].zero_()
    return freeze_spaces(adapted)


def freeze_spaces(adapted: PeftModel) -> PeftModel:
    """Freeze the spaces of a channel adapter that was opened again for training, and return it.

    Which factor is the space shows in the numbers: its columns are orthonormal.

    Raises
    ------
    MetricInputError
        When neither factor of some matrix is a space: the adapter is another one.
    """
    for name, layer in _layers(adapted):
        a, b = (getattr(layer, part)[ADAPTER].weight.detach() for part in ("lora_A", "lora_B"))
        frozen = "lora_A" if _is_orthonormal(a.T) else "lora_B" if _is_orthonormal(b) else None
        if frozen is None:
            raise MetricInputError(
                f"{name}: neither factor of this adapter has orthonormal columns; expected what channel_adapter made."
            )
        getattr(layer, frozen)[ADAPTER].requires_grad_(False)
        # PEFT makes all of an adapter trainable again when it is activated, but for what it is told here.
        layer.frozen_peft_weight_names = {**layer.frozen_peft_weight_names, ADAPTER: (frozen,)}
    return adapted


def _peft() -> Any:
    """Import PEFT, or say what to install."""
    try:
        import peft
    except ImportError as error:
        raise MissingPackageError("a channel adapter is a PEFT LoRA: pip install 'peft>=0.21'.") from error
    return peft


def _layers(adapted: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name in the plain model and module of each adapted matrix."""
    for name, module in adapted.named_modules():
        if ADAPTER in getattr(module, "lora_A", ()):
            yield name.removeprefix("base_model.model."), module


def _is_orthonormal(columns: Tensor) -> bool:
    product = columns.double().T @ columns.double()
    return bool((product - torch.eye(len(product), device=product.device)).abs().max() < NOT_ORTHONORMAL)


def _checked_ranks(model: nn.Module, bases: Mapping[str, Tensor], rank: int, side: str) -> dict[str, int]:
    """How many columns of each space count, after proving that the spaces are spaces of this model."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if unknown := sorted(bases.keys() - linear.keys()):
        raise CheckpointMismatchError(
            f"{len(unknown)} spaces belong to no linear map of this model: {', '.join(unknown[:SHOWN])}; expected "
            f"names such as {', '.join(list(linear)[:SHOWN])}. Fused projections need a space of their own."
        )
    if not bases or rank < 1 or side not in FACTORS:
        raise MetricInputError(
            f"{len(bases)} spaces, rank {rank}, side {side!r}; expected spaces, a rank of at least 1, right or left."
        )
    for name, space in bases.items():
        dim = linear[name].in_features if side == "right" else linear[name].out_features
        if space.ndim != 2 or space.shape[0] != dim:
            raise CheckpointMismatchError(
                f"{name}: a space of shape {tuple(space.shape)}, expected ({dim}, k) on the {side} side."
            )
        if not space.shape[1] or not _is_orthonormal(space):
            raise MetricInputError(
                f"{name}: the columns of its space are not orthonormal; take torch.linalg.qr(space).Q."
            )
    return {name: min(rank, space.shape[1]) for name, space in bases.items()}
