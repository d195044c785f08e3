"""Train inside a space that is chosen beforehand: W = W0 + B V' (or U A), a LoRA with one factor frozen.

The paper holds a run in the leading singular space of its own early update by projecting gradients (arXiv 2606.07082,
functional sufficiency); AdamW then divides every entry by a scale of its own and leaves the space again. Here the space
is a factor of the update. ``V`` (in, k) has orthonormal columns and never moves. Trained is ``B`` (out, k), from zero.
No optimiser can leave the space; only a merge into bf16 does, by rounding. Gradients, moments and the inputs kept for
them have k columns.

The result is an ordinary PEFT LoRA (scaling 1): PEFT saves, loads and merges it, and whatever reads LoRA reads it.
Where the spaces come from: :mod:`opdgeom_utils.channel_spaces`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opdgeom_utils.channel_spaces import Side, check_rank_and_side
from opdgeom_utils.checkpoints.layouts import plain_names
from opdgeom_utils.errors import CheckpointMismatchError, MetricInputError, MissingPackageError

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "default"  # PEFT's name for the only one
FACTORS = {"right": ("lora_A", "lora_B"), "left": ("lora_B", "lora_A")}  # the frozen one, the trained one
NOT_ORTHONORMAL = 1e-3
ROUNDED = 1e-2  # of a space that was saved in half precision
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
        For the weight of each linear map that is to be trained, by its name in ``model`` or in a checkpoint of it
        (with or without ``.weight``), orthonormal columns, the most important first: directions of inputs (``dim`` =
        in) on the right side, of outputs (``dim`` = out) on the left.
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
        When a name is not that of a linear map, one is named twice, or a space does not have its dimension.
    MetricInputError
        When there are no spaces, or columns that are not orthonormal; when the rank is no count or the side no side;
        when the model has an adapter already, or a matrix that is to be trained serves another module too.
    MissingPackageError
        Without the package ``peft`` of version 0.21 or later.

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
    bases = _by_module(model, spaces)
    ranks = _checked_ranks(model, bases, rank, side)
    most = max(ranks.values())
    other = {f"^{re.escape(name)}": k for name, k in ranks.items() if k != most}
    config = peft.LoraConfig(
        r=most,
        lora_alpha=most,  # so that B V' counts once
        rank_pattern=other,
        alpha_pattern=other,
        target_modules=_targets(model, bases),
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
        _freeze(layer, ADAPTER, frozen)
    return adapted


def freeze_spaces(adapted: PeftModel) -> PeftModel:
    """Freeze the spaces of a channel adapter that was opened again for training, and return it.

    Which factor is the space shows in the numbers: its columns are orthonormal, in every matrix. Looked at are the
    active adapters, whatever their names; one that is no channel adapter is left as it is beside one that is.

    Raises
    ------
    MetricInputError
        When no LoRA is active, or none with a factor that is a space.
    """
    found: dict[str, list[Any]] = {}
    for _, layer in _layers(adapted):
        for adapter in (name for name in layer.active_adapters if name in layer.lora_A):
            found.setdefault(adapter, []).append(layer)
    frozen = {adapter: part for adapter, layers in found.items() if (part := _space_of(layers, adapter))}
    if not frozen:
        raise MetricInputError(
            f"active adapters with LoRA: {', '.join(found) or 'none'}; neither factor of this adapter has orthonormal "
            "columns in every matrix. Expected what channel_adapter made, opened by PEFT with is_trainable=True."
        )
    for adapter, part in frozen.items():
        for layer in found[adapter]:
            _freeze(layer, adapter, part)
    return adapted


def _freeze(layer: Any, adapter: str, part: str) -> None:
    """Freeze one factor; PEFT makes all of an adapter trainable when it is activated, but for what it is told here."""
    getattr(layer, part)[adapter].requires_grad_(False)
    layer.frozen_peft_weight_names = {**layer.frozen_peft_weight_names, adapter: (part,)}


def _space_of(layers: list[Any], adapter: str) -> str:
    """Which factor has orthonormal columns in all the layers, empty if neither: of two that have, the nearer one."""
    far: dict[str, float] = {}
    for side, (part, _) in FACTORS.items():
        found = [_from_orthonormal(getattr(layer, part)[adapter].weight.detach(), side) for layer in layers]
        if all(distance < ROUNDED for distance in found):
            far[part] = max(found)
    return min(far, key=lambda part: far[part], default="")


def _peft() -> Any:
    """Import PEFT, or say what to install."""
    found = "no package peft"
    try:
        import peft
        from peft.tuners.tuners_utils import BaseTunerLayer

        if hasattr(BaseTunerLayer, "frozen_peft_weight_names"):
            return peft
        found = f"peft {peft.__version__}, which trains a frozen factor again when its adapter is activated"
    except ImportError as error:
        found = str(error)
    raise MissingPackageError(f"a channel adapter is a PEFT LoRA: pip install 'peft>=0.21'. Found: {found}.")


def _layers(adapted: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name in the plain model and module of each adapted matrix."""
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "active_adapters"):
            yield name.removeprefix("base_model.model."), module


def _from_orthonormal(factor: Tensor, side: str) -> float:
    """How far the rows (right) or columns (left) of a factor are from orthonormal: the largest error of a product."""
    columns = (factor.T if side == "right" else factor).double()
    return float((columns.T @ columns - torch.eye(columns.shape[1], device=columns.device)).abs().max())


def _targets(model: nn.Module, bases: Mapping[str, Tensor]) -> list[str] | str:
    """Name the matrices as PEFT does: a list, which it also matches with the ends of names, unless others end so."""
    ends = {"." + name for name in bases}
    others = (name for name, _ in model.named_modules() if name not in bases)
    if any("." + name[at.start() + 1 :] in ends for name in others for at in re.finditer(r"\.", name)):
        return "|".join(re.escape(name) for name in sorted(bases))
    return sorted(bases)


def _by_module(model: nn.Module, spaces: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Spaces by the names that the linear maps have in a plain model, after proving that each is there once."""
    if not isinstance(spaces, Mapping) or not spaces:
        raise MetricInputError(f"no spaces in {spaces!r:.60}; expected a space for the name of each matrix to train.")
    if any(hasattr(module, "adapter_layer_names") for module in model.modules()):
        raise MetricInputError(
            "the model has an adapter already; merge it or take it out: model = model.merge_and_unload() or .unload()."
        )
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    config = getattr(model, "config", None)
    described: Any = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
    plain = plain_names([f"{name}.weight" for name in linear], described)  # as a checkpoint of the model has them
    often = Counter(plain.values())
    modules = {other: raw for raw, other in plain.items() if often[other] == 1} | {raw: raw for raw in plain}
    named = {name: modules.get(f"{str(name).removesuffix('.weight')}.weight", "") for name in spaces}
    if unknown := sorted(str(name) for name, module in named.items() if not module):
        raise CheckpointMismatchError(
            f"{len(unknown)} spaces belong to no linear map of this model: {', '.join(unknown[:SHOWN])}; expected "
            f"names such as {', '.join(linear[:SHOWN])}. Of fused projections, packed experts and Conv1D, which have "
            "no linear map of their own, leave the spaces out."
        )
    if twice := [module for module, count in Counter(named.values()).items() if count > 1]:
        raise CheckpointMismatchError(f"{twice[0]} has two spaces under two names; expected one.")
    return {module.removesuffix(".weight"): spaces[name] for name, module in named.items()}


def _checked_ranks(model: nn.Module, bases: Mapping[str, Any], rank: int, side: str) -> dict[str, int]:
    """How many columns of each space count, after proving that the spaces are spaces of this model."""
    check_rank_and_side(rank, side)
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for name, space in bases.items():
        linear: Any = model.get_submodule(name)
        if uses[id(linear.weight)] > 1:
            raise MetricInputError(
                f"{name}: its weight serves another module too (tied embeddings, a shared layer), and a merge would "
                "change both; leave its space out, or untie the two."
            )
        dim = linear.in_features if side == "right" else linear.out_features
        if not isinstance(space, Tensor) or space.ndim != 2 or space.shape[0] != dim:
            found = f"space of shape {tuple(space.shape)}" if isinstance(space, Tensor) else type(space).__name__
            raise CheckpointMismatchError(f"{name}: a {found}, expected a tensor ({dim}, k) on the {side} side.")
        if not space.shape[1] or not _from_orthonormal(space, "left") < NOT_ORTHONORMAL:
            raise MetricInputError(
                f"{name}: the columns of its space are not orthonormal; take torch.linalg.qr(space.float()).Q."
            )
    return {name: min(rank, space.shape[1]) for name, space in bases.items()}
