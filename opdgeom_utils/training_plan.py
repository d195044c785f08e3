"""Before a large model is trained: parameters, memory by part, tokens, and after a few updates the time that is left.

Memory is counted from configurations, before any weights are loaded: in :mod:`opdgeom_utils.fit.memory`, and in
:mod:`opdgeom_utils.fit.processor` what is true on a CPU only. What does not fit is refused, with the fields of the
recipe that would make it fit. Models of fewer than ``LARGE`` parameters get no plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from opdgeom_utils import bf16_products
from opdgeom_utils.errors import TrainingMemoryError
from opdgeom_utils.evaluation import BATCH
from opdgeom_utils.fit.memory import ACTIVATIONS, GB, GRADIENTS, KV, LIBRARIES, LOGIT_BYTES, Setting, memory_parts
from opdgeom_utils.fit.processor import (
    LIBRARIES_CPU,
    PADDING,
    attention_bytes,
    compiled_bytes,
    products,
    prompt_bytes,
)  # fmt: skip
from opdgeom_utils.fit.sides import Side, open_side
from opdgeom_utils.models import UNTRAINED, load_tokenizer, pick_device, resolve_model
from opdgeom_utils.recipes import Recipe
from opdgeom_utils.scoring import LOGITS_AT_ONCE
from opdgeom_utils.trained_models import LARGE, models_of
from opdgeom_utils.world import load_world, tasks_of
from opdgeom_utils.worlds.questions import Table

SAMPLE = 64  # problems whose lengths are looked at
LOGITS = "logits, a piece at a time"
COPIES = "keys in fp32 and a copy as texts end"


@dataclass(frozen=True)
class Plan:
    """What a recipe will take.

    ``parameters``: of the student.
    ``memory``: bytes of each part.
    ``available``: bytes that the device has free now; None where it does not say.
    ``tokens``: most tokens of one update, prompts included.
    ``updates``: updates of the recipe.
    ``phases``: parts that are there one after another. A card's allocator gives one the blocks of the last; on a CPU
    there are none: freed blocks stay with the process, too scattered for the next phase's matrices (measured).
    """

    parameters: int
    memory: dict[str, int]
    available: int | None
    tokens: int
    updates: int
    phases: tuple[tuple[str, ...], ...] = ()

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment: what stays, and the largest phase."""
        sizes = [sum(self.memory[part] for part in phase) for phase in self.phases]
        return sum(self.memory.values()) - sum(sizes) + max(sizes, default=0)

    @property
    def fits(self) -> bool:
        """Whether it fits what is free, where that is known."""
        return self.available is None or self.peak <= self.available

    def text(self) -> str:
        """Return the plan as lines."""
        parts = "; ".join(f"{part} {size / GB:.2f}" for part, size in self.memory.items())
        free = "" if self.available is None else f", {self.available / GB:.1f} free"
        return (
            f"plan: {self.parameters / 1e6:.1f} M parameters, {self.updates} updates of up to {self.tokens:,} tokens\n"
            f"memory in GB: {parts}\nat the fullest moment {self.peak / GB:.1f}{free}"
            + ("" if self.phases else "; all parts together, as a CPU's freed blocks stay with the process")
        )


def check_memory(recipe: Recipe, device: str = "auto") -> Plan | None:
    """Print the plan of a recipe; None, and nothing said, where the student is small.

    Raises TrainingMemoryError if the device has not enough memory free; the message says which fields of the recipe to
    change.
    """
    if recipe.start.startswith(UNTRAINED) or _is_small(resolve_model(recipe.start)):
        return None
    sides = {name: open_side(name) for name in models_of(recipe)}
    if sides[recipe.start].n_parameters < LARGE:
        return None
    where, lengths = pick_device(device), longest_texts(recipe, load_tokenizer(recipe.start))
    plan = plan_of(recipe, sides, lengths, where)
    print(plan.text())
    if not plan.fits:
        advice = next((w for w, r in _smaller(recipe, lengths) if plan_of(r, sides, lengths, where).fits), "")
        raise TrainingMemoryError(
            f"{recipe.name} of profile {recipe.profile} needs {plan.peak / GB:.1f} GB at its fullest moment, and "
            f"{where} has {(plan.available or 0) / GB:.1f} free. "
            + (f"Set in the recipe {advice}" if advice else "No setting tried here is small enough: free memory, take "
               "a smaller teacher or anchor (or anchor: null), or another machine")
        )  # fmt: skip
    return plan


def plan_of(recipe: Recipe, sides: dict[str, Side], lengths: tuple[int, int], device: torch.device) -> Plan:
    """Count a recipe's memory: ``lengths`` are those of the longest prompt and completion, in tokens."""
    half, student = recipe.compute == "bfloat16", sides[recipe.start]
    prompts, n = recipe.prompts_per_update, student.n_parameters
    longest = recipe.group_size * sum(lengths)
    together = max(1, recipe.micro_tokens // longest) if recipe.micro_tokens else -(-prompts // recipe.micro_batches)
    written = prompts * recipe.group_size * recipe.updates_per_rollout if recipe.on_policy else 1
    judged = min(BATCH, len(recipe.held_out) * max(recipe.eval_per_family, recipe.final_eval_per_family))
    setting = Setting(
        sequences=max(written, judged), micro_batch=min(together, prompts) * recipe.group_size,
        prompt_tokens=lengths[0], completion_tokens=lengths[1], checkpointing=recipe.gradient_checkpointing,
    )  # fmt: skip
    parts, cuda = memory_parts(student, student, setting), device.type == "cuda"
    fixed = {name: sides[name] for name in (recipe.teacher, recipe.anchor, recipe.writer) if name}
    short = half and (cuda or not bf16_products.are_slow())  # else what a product keeps is rounded, and in float32
    copies = {"bf16 copy under autocast": 2 * n} if short else {"rounded weights, in fp32": 4 * n}
    memory = {
        "weights, fp32": 4 * n,
        "the weights it starts from, fp32": 4 * n,
        "AdamW, two moments in fp32": 8 * n,
        GRADIENTS: 4 * n,
        **(copies if half else {}),
        **{f"{name}, fixed": (2 if half else 4) * side.n_parameters for name, side in fixed.items()},
        KV: parts[KV] * (1 if half else 2),
        ACTIVATIONS: parts[ACTIVATIONS] * (1 if short else 2),
        LOGITS: LOGIT_BYTES * min(student.rows * setting.together * lengths[1], LOGITS_AT_ONCE),
        **({"libraries": LIBRARIES} if cuda else _on_a_cpu(recipe, student, setting, short)),
    }
    tokens, phases = prompts * recipe.group_size * sum(lengths), ((GRADIENTS, ACTIVATIONS, LOGITS), (KV,))
    return Plan(n, memory, free_bytes(device), tokens, recipe.steps, phases if cuda else ())


def _on_a_cpu(recipe: Recipe, student: Side, setting: Setting, short: bool) -> dict[str, int]:
    """Count the parts that a CPU has beside those of a card; ``short`` where its products are in bf16."""
    half, config, parts = recipe.compute == "bfloat16", student.config, memory_parts(student, student, setting)
    width, layers, tokens = (2 if short else 4), config.num_hidden_layers, setting.together * setting.tokens
    attention = tokens * attention_bytes(config) * (1 if recipe.gradient_checkpointing else layers)
    padding = (PADDING - 1) * (parts[ACTIVATIONS] + attention) if recipe.micro_tokens else 0
    passes = recipe.steps * -(-recipe.prompts_per_update * recipe.group_size // setting.together)
    return {
        "libraries": LIBRARIES_CPU,
        COPIES: parts[KV] * 2,
        "a layer of all prompts": setting.sequences * setting.prompt_tokens * prompt_bytes(config) * width // 2,
        "logits of the rollouts": (5 * 4 + width) * student.rows * setting.sequences,
        "attention in fp32": attention if half else 0,
        "padding of micro-batches": int(padding * width / 2),
        "gradient of the head": 4 * student.rows * config.hidden_size,
        "a checkpoint being written": 2 * (4 if len(recipe.checkpoints) == 1 else 8) * student.n_parameters,
        "compiled products": compiled_bytes(products(config, setting, passes)) if short else 0,
    }


def free_bytes(device: torch.device) -> int | None:
    """Return what a device has free; None where the system does not say."""
    if device.type == "cuda":
        return None if not torch.cuda.is_available() else int(torch.cuda.mem_get_info(device)[0])
    told = Path("/proc/meminfo")
    rows = dict(line.split(":") for line in told.read_text().splitlines()) if told.is_file() else {}
    return int(rows["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in rows else None


class Clock:
    """Tells the time that a run will take, once, from its first rounds and its first evaluation."""

    def __init__(self, plan: Plan | None, recipe: Recipe, step: int) -> None:
        self.silent, self.recipe, self.first = plan is None, recipe, step
        self.per_prompt, self.began = 0.0, time.perf_counter()

    def evaluated(self, seconds: float, per_family: int) -> None:
        """Note how long an evaluation took, and start the clock of the updates."""
        self.per_prompt, self.began = seconds / per_family, time.perf_counter()

    def updated(self, step: int) -> str:
        """Return what is to be said after an update: something after two rounds of rollouts, then nothing."""
        done = step - self.first
        if self.silent or done != 2 * self.recipe.updates_per_rollout or step == self.recipe.steps:
            return ""
        self.silent, each = True, (time.perf_counter() - self.began) / done
        ahead = [c for c in self.recipe.checkpoints if c > step]
        prompts = sum(self.recipe.eval_per_family for _ in ahead[:-1]) + self.recipe.final_eval_per_family
        left = each * (self.recipe.steps - step) + self.per_prompt * prompts
        return (
            f"an update takes {each:.1f} s; {self.recipe.steps - step} more and {len(ahead)} evaluations: "
            f"about {int(left // 3600)} h {int(left % 3600 // 60)} min"
        )


def _is_small(folder: str) -> bool:
    """Whether a local folder's weights, in any precision, are too few bytes for a large model: no need to open it."""
    files = list(Path(folder).glob("*.safetensors"))
    return bool(files) and sum(file.stat().st_size for file in files) < 2 * LARGE


def longest_texts(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """Return how many tokens the longest prompt and completion have among some problems; of a table, the longest."""
    world, tasks = load_world(recipe.profile), tasks_of(recipe.profile)
    problems = list(tasks.draw(recipe.mixture, SAMPLE, "plan", weights=recipe.weights))
    if isinstance(tasks, Table):
        problems += [*tasks.longest(recipe.mixture, SAMPLE), *tasks.longest(recipe.held_out, SAMPLE)]
    prompts = tokenizer([world.put(tokenizer, p.prompt) for p in problems])["input_ids"]
    shown: Any = [] if recipe.on_policy else tokenizer([p.completion for p in problems])["input_ids"]
    return max(map(len, prompts)), max(map(len, shown), default=0) or recipe.max_new_tokens


def _smaller(recipe: Recipe, lengths: tuple[int, int]) -> Iterator[tuple[str, Recipe]]:
    """Yield what to change and the recipe that has it: one field, else two and more."""
    least = recipe.group_size * sum(lengths)
    changes: list[dict[str, Any]] = [
        {"gradient_checkpointing": True}, {"micro_tokens": 4 * least}, {"micro_tokens": least},
        {"compute": "bfloat16"}, {"updates_per_rollout": 1}, {"anchor": None},
    ]  # fmt: skip
    useful = [c for c in changes if any(getattr(recipe, key) != value for key, value in c.items())]
    for count in range(1, len(useful) + 1):
        for chosen in combinations(useful, count):
            fields = {key: value for change in chosen for key, value in change.items()}
            said = {key: {True: "true", None: "null"}.get(value, value) for key, value in fields.items()}
            yield ", ".join(f"{key}: {value}" for key, value in said.items()), replace(recipe, **fields)
