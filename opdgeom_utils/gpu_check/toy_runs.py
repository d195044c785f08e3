"""Short runs of the toy profile: the same batches on processor and device, then the device on its own."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import torch
from torch import Tensor

from opdgeom_utils.batches import Batch, make_batches
from opdgeom_utils.gpu_check.parts import Found, Part, Place, seconds_since
from opdgeom_utils.learner import Learner
from opdgeom_utils.recipes import Recipe, load_recipe
from opdgeom_utils.rollouts import Rollouts
from opdgeom_utils.starting import learner_of
from opdgeom_utils.training import apply_update, train

LOSS, COSINE = 1e-3, 0.99  # relative to a loss of 0.1 at least; of the two cumulative updates


def toy_run(name: str, profile: str = "toy") -> Part:
    """Return the part that trains a recipe of a toy profile for a few updates."""

    def part(place: Place) -> Found:
        recipe = load_recipe(name, profile)
        prompts = 4 if place.tiny else min(recipe.prompts_per_update, 128)
        steps = recipe.updates_per_rollout * (1 if place.tiny else 3)
        short = dataclasses.replace(recipe, steps=steps, checkpoints=(steps,), prompts_per_update=prompts)
        found = _side_by_side(dataclasses.replace(short, compute="float32"), place)
        learner, began = learner_of(short, 0, str(place.device)), time.perf_counter()
        losses = [log["loss"] for log in train(learner)]
        each = seconds_since(began, place.device) / steps
        found.result |= {
            "recipe": f"{profile}/{name}",
            "compute": recipe.compute,
            "losses": losses,
            "seconds_an_update": round(each, 4),
        }
        found.faults += [] if all(map(math.isfinite, losses)) else [f"losses on its own are {losses}"]
        return found

    return part


def _side_by_side(recipe: Recipe, place: Place) -> Found:
    """Learn on both from what the processor's student writes; compare each loss, and where the weights are then."""
    here, there = (learner_of(recipe, 0, device) for device in ("cpu", str(place.device)))
    rows: list[dict[str, float]] = []
    faults: list[str] = []
    while here.step < recipe.steps:
        for batch in make_batches(here):
            one, other = apply_update(here, batch), apply_update(there, _moved(batch, place.device))
            rows.append({"processor": one["loss"], "device": other["loss"]})
            if not abs(one["loss"] - other["loss"]) <= LOSS * max(abs(one["loss"]), 0.1):
                faults.append(f"update {here.step}: loss {one['loss']} on the processor, {other['loss']} on the device")
    updates = [_flat(learner) for learner in (here, there)]
    cosine = float(torch.nn.functional.cosine_similarity(*updates, dim=0))
    if not cosine >= COSINE:
        faults.append(f"cosine of the two updates is {cosine:.4f}, expected {COSINE} or more")
    tolerance = {"loss, relative": LOSS, "cosine": COSINE}
    return Found({"losses_in_float32": rows, "cosine_of_updates": cosine, "tolerance": tolerance}, faults)


def _flat(learner: Learner) -> Tensor:
    return torch.cat([delta.flatten() for delta in learner.cumulative_update().values()]).double().cpu()


def _moved(batch: Batch, device: torch.device) -> Batch:
    """Bring a batch to a device."""

    def moved(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(moved, value))
        return value.to(device) if isinstance(value, Tensor) else value

    rollouts = Rollouts(**{f.name: moved(getattr(batch.rollouts, f.name)) for f in dataclasses.fields(Rollouts)})
    return Batch(rollouts, moved(batch.advantages), moved(batch.rewards), moved(batch.terms))
