"""Which matrices of a model are watched: its trained weights, and those that a LoRA adapts."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from opdgeom_utils.checkpoints import module_of
from opdgeom_utils.checkpoints.layouts import unwrapped
from opdgeom_utils.errors import MonitorError
from opdgeom_utils.monitor.adapters import WatchedAdapter
from opdgeom_utils.monitor.matrices import WatchedWeight
from opdgeom_utils.monitor.rates import RatesTaken

SAVED_WHOLE = re.compile(r"\.modules_to_save\.[^.]+")  # peft's place for a layer that is trained whole


def watched_matrices(model: nn.Module, rates: RatesTaken, which: str | list[str]) -> list[WatchedWeight]:
    """Find what is trained in a model, and choose.

    ``model``: any; sharded by ``fully_shard`` (FSDP 2) or not, with LoRA layers of peft or not.
    ``rates``: of its optimizer.
    ``which``: one matrix of each kind, spread over the depth; every one in the layers; or kinds and names. Embedding
    and head are watched only where they are named.
    Raises MonitorError when nothing is left, ``which`` is another word, or a chosen adapter is of a kind whose update
    is not a product of two factors.
    """
    if isinstance(which, str) and which not in ("sample", "all"):
        raise MonitorError(
            f"matrices is {which!r}; expected 'sample', 'all', or a list of kinds and names: [{which!r}]."
        )
    found: list[WatchedWeight] = []
    inside: set[int] = set()  # parameters of adapters, which are no matrices of the model
    others: dict[str, str] = {}
    for name, layer in model.named_modules():
        parameters = _of_adapter(layer, rates)
        inside |= {id(p) for p in parameters}
        own = _lora(name, layer, rates)
        found += own
        watched = {id(p) for m in own for p in m.parameters}
        if any(p.ndim > 1 and id(p) not in watched for p in parameters) or (parameters and not own):
            others[unwrapped(f"{name}.weight")] = _kind(layer)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and rates.trains(parameter) and id(parameter) not in inside:
            layer = model.get_submodule(name.rpartition(".")[0])
            turned = type(layer).__name__ == "Conv1D"
            own_name = unwrapped(SAVED_WHOLE.sub("", name))
            found.append(WatchedWeight(own_name, [parameter], layer, turned=turned))
    for name, kind in others.items():
        if _chosen(name, which):
            raise MonitorError(
                f"{name} has an adapter of another kind ({kind}); expected LoRA of linear layers, whose update is B A. "
                "Watch kinds without it, matrices=[...], or merge it and measure the checkpoint: opdgeom report."
            )
    chosen = [m for m in found if _chosen(m.name, which)] or (found if isinstance(which, str) else [])
    if not chosen:
        raise MonitorError(
            f"found {len(found)} trained matrices and chose none by {which!r}; expected at least one. Name kinds among "
            f"{sorted({module_of(m.name) for m in found})}, or take 'all'. FSDP 1 and DeepSpeed ZeRO 3 flatten their "
            "matrices: use FSDP 2 (fsdp_version: 2), or ZeRO 2."
        )
    return _spread(chosen) if which == "sample" else chosen


def _chosen(name: str, which: str | list[str]) -> bool:
    """Whether a matrix is named, by its kind or in full; without names, whether it lies in a layer."""
    if isinstance(which, list):
        return module_of(name) in which or name in which
    return any(part.isdigit() for part in name.split("."))


def _spread(found: list[WatchedWeight]) -> list[WatchedWeight]:
    """One of each kind: the first kind from the first layers, the last kind from the last."""
    kinds: dict[str, list[WatchedWeight]] = {}
    for m in found:
        kinds.setdefault(module_of(m.name), []).append(m)
    return [of_kind[(2 * i + 1) * len(of_kind) // (2 * len(kinds))] for i, of_kind in enumerate(kinds.values())]


def _of_adapter(layer: Any, rates: RatesTaken) -> list[Tensor]:
    """Return the trained parameters that an adapter of peft, of any kind, adds to a layer."""
    if hasattr(layer, "original_module"):  # a copy that is trained whole (modules_to_save)
        return []
    held = [getattr(layer, name, None) for name in getattr(layer, "adapter_layer_names", ())]
    return [p for part in held if isinstance(part, nn.Module) for p in part.parameters() if rates.trains(p)]


def _kind(layer: Any) -> str:
    """Name an adapter's kind: the variant of a LoRA, or peft's folder and the layer."""
    variants = [type(v).__name__ for v in getattr(layer, "lora_variant", {}).values() if v is not None]
    return variants[0] if variants else f"{type(layer).__module__.split('.')[-2]}, {type(layer).__name__}"


def _lora(name: str, layer: Any, rates: RatesTaken) -> list[WatchedWeight]:
    """Return the matrix that a LoRA of a linear layer adapts, one for each of its trained adapters."""
    found: list[WatchedWeight] = []
    for adapter in layer.active_adapters if isinstance(getattr(layer, "lora_A", None), nn.ModuleDict) else ():
        if adapter not in layer.lora_A or hasattr(layer, "parameter_name"):  # of a parameter, such as stacked experts
            continue
        factors = [layer.lora_A[adapter].weight, layer.lora_B[adapter].weight]
        trained = (rates.trains(factors[0]), rates.trains(factors[1]))
        plain = getattr(layer, "lora_variant", {}).get(adapter) is None and factors[0].ndim == 2
        if plain and any(trained):
            own = unwrapped(f"{name}.weight")
            scale, turned = float(layer.scaling[adapter]), bool(getattr(layer, "fan_in_fan_out", False))
            others = [
                (layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))
                for name in layer.active_adapters
                if name != adapter and name in layer.lora_A
            ]
            found.append(
                WatchedAdapter(own, factors, layer, turned=turned, scale=scale, trained=trained, others=others)
            )
    if len(found) > 1:
        raise MonitorError(
            f"{found[0].name} has {len(found)} adapters that are trained at once; expected one. Activate one of them, "
            "model.set_adapter(name), or watch kinds without them: matrices=[...]."
        )
    return found
