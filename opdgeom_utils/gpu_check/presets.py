"""The Qwen3 profiles beside a card: what each needs by the plan of its recipes, and which of them a card can hold."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from opdgeom_utils.fit.memory import CARD_GB
from opdgeom_utils.gpu_check.shapes import side_of, size_of
from opdgeom_utils.profile_files import read_profile
from opdgeom_utils.recipes import Recipe
from opdgeom_utils.results import are_committed
from opdgeom_utils.training_plan import Plan, plan_of
from opdgeom_utils.world import load_world

PROFILES = ("qwen3-0.6b-80gb", "qwen3-0.6b", "qwen3-0.6b-16gb")  # the most demanding first
OBJECTIVES = ("sft", "opd", "rlvr")
PROMPT_TOKENS = 256  # taken for the longest prompt
STUDENT = "0.6B"


@dataclass(frozen=True)
class Card:
    """A CUDA card: its name, all its memory and what of it is free, in bytes, its generation, and whether it has bf16.

    T4, V100 and older have no bf16 of their own. They emulate it, several times slower.
    """

    name: str
    bytes: int
    free_bytes: int
    capability: str
    bf16: bool


def card_found() -> Card | None:
    """Return the first CUDA card, None where there is none."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info(0)
    capability = ".".join(map(str, torch.cuda.get_device_capability(0)))
    return Card(
        torch.cuda.get_device_name(0), total, free, capability, torch.cuda.is_bf16_supported(including_emulation=False)
    )


@cache
def qwen3_recipe(profile: str, objective: str) -> Recipe:
    """Return a recipe of a Qwen3 profile as its file says it, without opening the tasks, which need other packages.

    >>> qwen3_recipe("qwen3-0.6b", "opd").teacher
    'Qwen/Qwen3-1.7B'
    """
    content = read_profile(profile)
    said: dict[str, Any] = {**content["defaults"], **content["recipes"][objective]}
    said |= {key: tuple(said[key]) for key in ("checkpoints", "betas", "seeds") if key in said}
    recipe, world = Recipe(**said, name=objective, profile=profile), load_world(profile)
    return dataclasses.replace(recipe, teacher=recipe.teacher and world.source_of(recipe.teacher))


@cache
def plan_for(profile: str, objective: str) -> Plan:
    """Return what a recipe of a Qwen3 profile takes, counted from shapes, on a card of no particular size."""
    recipe = qwen3_recipe(profile, objective)
    sides = {name: side_of(STUDENT) for name in (recipe.start, recipe.anchor) if name}
    if recipe.teacher:
        sides[recipe.teacher] = side_of(size_of(recipe.teacher))
    plan = plan_of(recipe, sides, (PROMPT_TOKENS, recipe.max_new_tokens), torch.device("cuda"))
    return dataclasses.replace(plan, available=None)


def needed(profile: str) -> int:
    """Bytes that a card must have free for every recipe of a profile."""
    return max(plan_for(profile, objective).peak for objective in OBJECTIVES)


def profile_for(free: int) -> str | None:
    """Return the most demanding Qwen3 profile that fits so many bytes, None where none does.

    >>> profile_for(10**12), profile_for(10**9)
    ('qwen3-0.6b-80gb', None)
    """
    return next((profile for profile in PROFILES if needed(profile) <= free), None)


def profile_of_card(own: str) -> str:
    """Return the profile of the card that is here, where it has tables, else the chapter's own; say which and why."""
    card = card_found()
    if card is None:
        print(f"no CUDA card: profile {own}, from committed tables")
        return own
    said, fitting = f"{card.name}, {card.free_bytes / CARD_GB:.0f} GB free", profile_for(card.free_bytes)
    said += "" if card.bf16 else " (no bf16 of its own: several times slower)"
    if fitting is None:
        print(f"{said}: the smallest Qwen3 profile needs {needed(PROFILES[-1]) / CARD_GB:.0f}; profile {own}")
        return own
    if not are_committed(fitting):
        print(f"{said}: it can hold {fitting}, which has no tables yet (`make runs PROFILE={fitting}`); profile {own}")
        return own
    print(f"{said}: profile {fitting}")
    return fitting
