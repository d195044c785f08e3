"""One update at the true shapes of Qwen3-0.6B: rollouts, credit, gradient, AdamW; weights and prompts are random."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from opdgeom_utils.batches import make_batches, score
from opdgeom_utils.fit.memory import LIBRARIES
from opdgeom_utils.gpu_check.parts import Found, Part, Place, held_bytes, peak_bytes, seconds_since, settle
from opdgeom_utils.gpu_check.presets import (
    PROFILES,
    PROMPT_TOKENS,
    STUDENT,
    card_found,
    plan_for,
    profile_for,
    qwen3_recipe,
)  # fmt: skip
from opdgeom_utils.gpu_check.shapes import SHAPES, TINY, config_of, made_tokenizer, random_model, size_of
from opdgeom_utils.learner import Learner
from opdgeom_utils.precision import computing, prepare
from opdgeom_utils.recipes import Recipe
from opdgeom_utils.starting import keep_cache_without_gradient
from opdgeom_utils.training import apply_update
from opdgeom_utils.world import World

FEW: dict[str, Any] = {
    "prompts_per_update": 2, "group_size": 2, "updates_per_rollout": 1, "max_new_tokens": 6, "micro_tokens": 64,
}  # fmt: skip


def one_update(objective: str) -> Part:
    """Return the part that takes one update of an objective as the profile says that fits the card."""

    def part(place: Place) -> Found:
        card = card_found() if place.device.type == "cuda" else None
        profile = (profile_for(card.free_bytes) if card else None) or PROFILES[-1]
        recipe = _recipe(profile, objective, place, bf16=card is None or card.bf16)
        with tempfile.TemporaryDirectory() as folder:
            held, learner = _learner(recipe, place, Path(folder))
            result, log = _update(learner, place)
        result = {
            "profile": profile, "compute": recipe.compute, "teacher": recipe.teacher,
            "completions": recipe.prompts_per_update * recipe.updates_per_rollout * recipe.group_size,
            "completion_tokens": recipe.max_new_tokens, "bytes": held | result.pop("bytes"), **result,
            "planned_peak_bytes": None if place.tiny else plan_for(profile, objective).peak - LIBRARIES,
        }  # fmt: skip
        faults = [f"{name} is {log[name]}" for name in ("loss", "grad_norm") if not math.isfinite(log[name])]
        return Found(result, faults + ([] if log["update_norm"] > 0 else ["no weight moved"]))

    return part


def _recipe(profile: str, objective: str, place: Place, *, bf16: bool) -> Recipe:
    """Return the profile's recipe on problems of a file; without bf16 of the card's own in float32."""
    recipe = qwen3_recipe(profile, objective)
    changes: dict[str, Any] = {"mixture": {"problems": ["all"]}, "evaluation": {}}
    changes |= {} if bf16 else {"compute": "float32"}
    changes |= FEW if place.tiny else {}
    steps = changes.get("updates_per_rollout", recipe.updates_per_rollout)
    changes |= {"steps": steps, "checkpoints": (steps,)}
    return dataclasses.replace(recipe, **changes)


def _learner(recipe: Recipe, place: Place, folder: Path) -> tuple[dict[str, int | None], Learner]:
    """Make student, teacher and anchor of random weights and the learner of all three; the bytes of each."""
    shape, held, before = TINY if place.tiny else SHAPES[STUDENT], {}, held_bytes(place.device)

    def noted(name: str) -> None:
        nonlocal before
        now = held_bytes(place.device)
        held[name], before = None if now is None or before is None else now - before, now

    student = prepare(random_model(config_of(shape), place.device, torch.float32), recipe.compute)
    noted("student, fp32")
    fixed: dict[str, Any] = {}
    for name in ("teacher", "anchor"):
        source = getattr(recipe, name)
        if source:
            other = TINY if place.tiny else SHAPES[size_of(source) if name == "teacher" else STUDENT]
            kind = torch.bfloat16 if recipe.compute == "bfloat16" else torch.float32
            model = random_model(config_of(other), place.device, kind, seed=1).eval()
            fixed[name] = prepare(model, recipe.compute, fixed=True)
            noted(f"{name}, fixed")
    world = World(tasks={"kind": "jsonl", "path": str(_problems(folder, 8 if place.tiny else PROMPT_TOKENS))})
    tokenizer = made_tokenizer(shape.tokens)
    learner = Learner(recipe, 0, student, tokenizer, **fixed, vocabulary=shape.tokens, world=world)
    if recipe.gradient_checkpointing:
        keep_cache_without_gradient(student)
    noted("the weights it starts from, fp32")
    return held, learner


def _problems(folder: Path, length: int) -> Path:
    """Write problems whose prompts have exactly so many tokens."""
    rng, path = random.Random(0), folder / "problems.jsonl"
    rows = [{"prompt": "".join(rng.choices("0123456789", k=length)), "answer": "0"} for _ in range(256)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def _update(learner: Learner, place: Place) -> tuple[dict[str, Any], dict[str, float]]:
    """Write completions and learn from the first batch of them; seconds and peak bytes of each half, and the log."""
    recipe, device = learner.recipe, place.device
    settle(device)
    began = time.perf_counter()
    with computing(recipe.compute, device):
        batch = make_batches(learner)[0]
        writing = {"seconds_writing": seconds_since(began, device)}
        if recipe.objective == "rlvr":  # random weights earn nothing: half of each group is given a reward
            rewards = torch.zeros_like(batch.rewards)
            rewards[:, ::2] = 1.0
            batch = score(learner, batch.rollouts, rewards)
    peaks = {"peak while writing": peak_bytes(device)}
    settle(device)
    before, began = held_bytes(device), time.perf_counter()
    log = apply_update(learner, batch)
    writing["seconds_learning"] = seconds_since(began, device)
    peaks["peak while learning"], after = peak_bytes(device), held_bytes(device)
    peaks["gradients and two moments, fp32"] = None if after is None or before is None else after - before
    said = {name: log[name] for name in ("loss", "grad_norm", "update_norm", "completion_length")}
    return {"bytes": peaks, **writing, **said}, log
