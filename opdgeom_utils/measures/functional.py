"""What a checkpoint can do, and how near the teacher it is: the two rulers that judge a run held in a small space.

``accuracy`` is sampled: one completion of each held-out prompt, the same random stream for every checkpoint.
``teacher_distance`` is the exact reverse KL of student to teacher, nats per token, on text that is the same for every
checkpoint of a profile: one completion of each held-out prompt, written by the model OPD starts from. Nothing of it is
drawn anew, so differences between checkpoints have no sampling noise. ``update_inside`` is the share of each realised
update that stayed in the space, mean over the projected updates, beside what an update without direction would have.

Measured are the last checkpoint of every run; of OPD, and of a free run, also its start, and of that the checkpoints
nearest to where its projected variants begin and end. The distance of runs that approach the teacher
(:data:`APPROACHING`) is measured at all their checkpoints. Of large models it is the only ruler,
on fewer texts, computed as their runs compute.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from opdgeom_utils import storage
from opdgeom_utils.evaluation import BATCH, grades_on
from opdgeom_utils.measures.long_table import as_measures, kept_measures, nearest_step
from opdgeom_utils.models import load_model, load_stored_state, load_tokenizer
from opdgeom_utils.precision import computing, prepare
from opdgeom_utils.problems import Problem, Tasks
from opdgeom_utils.projection import projected_layers
from opdgeom_utils.recipes import Recipe, load_recipe, recipe_names
from opdgeom_utils.rollouts import Rollouts, roll_out
from opdgeom_utils.runs import Run, checkpoint_path
from opdgeom_utils.scoring import token_scores
from opdgeom_utils.trained_models import is_large
from opdgeom_utils.world import World, load_world

SAMPLES = 1  # completions of each held-out prompt that the accuracy rests on
TEXTS, TEXTS_OF_LARGE = 2, 8  # the anchor writes for every second prompt, or for every eighth
APPROACHING = ("opd", "opd_full_vocab", "control_sft", "opd_long")
PROJECTED = "_project_"


def free_run_of(name: str) -> str:
    """Name of the unconstrained run that a projected one is compared with; a free run's own name otherwise.

    >>> free_run_of("opd_project_early"), free_run_of("mix_25")
    ('opd', 'mix_25')
    """
    return name.split(PROJECTED)[0]


def points_of(recipe: Recipe) -> list[int]:
    """Return the steps at which a run is measured; 0 is the model it starts from.

    >>> [points_of(load_recipe(name, "first_regime")) for name in ("rlvr", "opd_project_early")]
    [[0, 30, 120, 274], [40]]
    """
    names = [name for name in recipe_names(recipe.profile) if name.startswith(recipe.name + PROJECTED)]
    projected = [load_recipe(name, recipe.profile) for name in names]
    points = {
        nearest_step(recipe.checkpoints, s) for variant in projected for s in (variant.projection_from, variant.steps)
    }
    if PROJECTED in recipe.name and recipe.projection_from in recipe.checkpoints:
        free = load_recipe(free_run_of(recipe.name), recipe.profile)  # its start, where the free run stored none there
        points |= {recipe.projection_from} - set(free.checkpoints)
    return sorted({recipe.steps, *points, *([0] if projected or recipe.name == "opd" else [])})


@dataclass(frozen=True)
class Yardstick:
    """Held-out problems, what the anchor wrote for some of them, and the teacher that judges every token of that."""

    world: World
    tasks: Tasks
    tokenizer: PreTrainedTokenizerFast
    problems: Sequence[Problem]
    texts: list[Rollouts]
    teacher: PreTrainedModel
    compute: str
    vocabulary: int | None = None  # what student and teacher share, where one has more rows


def yardstick_of(recipe: Recipe) -> Yardstick:
    """Make, once per process, the text and the teacher that every checkpoint of a profile is held against."""
    compute = recipe.compute if is_large(load_recipe("opd", recipe.profile)) else "float32"
    held_out = json.dumps(recipe.held_out)
    return _yardstick(recipe.profile, held_out, recipe.final_eval_per_family, recipe.max_new_tokens, compute)


@lru_cache(maxsize=2)
def _yardstick(profile: str, held_out: str, per_family: int, max_new_tokens: int, compute: str) -> Yardstick:
    opd, world = load_recipe("opd", profile), load_world(profile)
    tokenizer, author = world.with_end(load_tokenizer(opd.start)), prepare(load_model(opd.start).eval(), compute)
    judge = prepare(load_model(str(opd.teacher)).eval(), compute, fixed=True)
    shared = _shared(author, judge)
    tasks, every = world.open_tasks(), TEXTS_OF_LARGE if is_large(opd) else TEXTS
    problems = sorted(tasks.held_out(json.loads(held_out), per_family), key=lambda p: len(p.prompt))
    prompts, generator = [world.put(tokenizer, p.prompt) for p in problems], torch.Generator().manual_seed(0)
    batches = [prompts[i : i + BATCH : every] for i in range(0, len(prompts), BATCH)]
    with computing(compute, author.device):
        write = partial(roll_out, author, tokenizer, max_new_tokens=max_new_tokens, generator=generator)
        texts = [write(batch, vocabulary=shared) for batch in batches]
    return Yardstick(world, tasks, tokenizer, problems, texts, judge, compute, shared)


def _shared(student: PreTrainedModel, teacher: PreTrainedModel) -> int | None:
    """How many tokens two models share, where one has more rows than the other."""
    sizes = {student.config.vocab_size, teacher.config.vocab_size}
    return min(sizes) if len(sizes) > 1 else None


def sampled_accuracy(model: PreTrainedModel, ruler: Yardstick, *, longest: int = 40) -> float:
    """Share (0 to 1) of right answers, one completion of every prompt at temperature 1, the same stream each time."""
    generator = torch.Generator().manual_seed(0)
    own = {"world": ruler.world, "tasks": ruler.tasks, "vocabulary": ruler.vocabulary}
    grades = grades_on(model, ruler.tokenizer, ruler.problems, generator, longest, **own)
    return sum(grade.reward for grade in grades) / len(grades)


@torch.no_grad()
def teacher_distance(model: PreTrainedModel, ruler: Yardstick) -> float:
    """Mean over tokens of ``KL(p_student || p_teacher)``, whole vocabulary, in nats (0: the teacher itself)."""
    whole = tokens = 0.0
    shared = _shared(model, ruler.teacher)
    with computing(ruler.compute, model.device):
        for text in ruler.texts:
            apart = token_scores(model, text, beside=ruler.teacher, vocabulary=shared).kl
            whole += float((apart.double() * text.mask).sum())
            tokens += float(text.mask.sum())
    return whole / tokens


def isotropic_share(shapes: Sequence[tuple[int, int]], rank: int, side: str = "right") -> float:
    """Share of an update without direction (all entries alike) that a space of ``rank`` dimensions per matrix holds.

    >>> isotropic_share([(6, 8)], 2), isotropic_share([(6, 8)], 2, "left"), isotropic_share([(1, 4), (1, 8)], 2)
    (0.25, 0.3333333333333333, 0.3333333333333333)
    """
    inside = sum(min(rank, i) * o if side == "right" else min(rank, o) * i for o, i in shapes)
    return inside / sum(o * i for o, i in shapes)


def inside_rows(recipe: Recipe, log: pd.DataFrame, shapes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Rows of ``update_inside`` of a projected run: its own mean, and that of an update without direction.

    ``shapes`` are ``(out, in)`` of every projected matrix.
    """
    chance = isotropic_share(shapes, recipe.projection_rank, recipe.projection_side)
    chance = 1 - chance if recipe.projection_space == "complement" else chance
    own = float(log.loc[log["step"] > recipe.projection_from, "update_inside"].mean())
    return [{"null": null, "value": value} for null, value in (("", own), ("isotropic", chance))]


def function_measures(run: Run) -> pd.DataFrame:
    """Accuracy and distance to the teacher of a run at :func:`points_of`, and ``update_inside`` of a projected one.

    Of a large model only the distance, at the start of OPD and at every run's end.
    """
    points = points_of(run.recipe)
    followed = run.recipe.checkpoints if run.recipe.name in APPROACHING and not run.is_large else ()
    ruler = load_recipe("opd", run.recipe.profile)  # what it starts from and its teacher are the yardstick's
    return kept_measures(
        run.path, "function", lambda: _measured(run, points, followed), __name__, points, followed, ruler.start,
        ruler.teacher,
    )  # fmt: skip


def _measured(run: Run, points: Sequence[int], followed: Sequence[int]) -> pd.DataFrame:
    recipe, rows, yardstick = run.recipe, [], yardstick_of(run.recipe)
    same: dict[str, Any] = {"profile": recipe.profile, "recipe": recipe.name, "seed": run.seed}
    model = prepare(load_model(recipe.start).eval(), yardstick.compute)
    for step in sorted({*points, *followed}):
        if step:
            load_stored_state(model, storage.read_tensors(checkpoint_path(run.path, step)))
        found = {"teacher_distance": teacher_distance(model, yardstick)}
        if step in points and not run.is_large:
            found["accuracy"] = sampled_accuracy(model, yardstick, longest=recipe.max_new_tokens)
        rows += [same | {"step": step, "quantity": name, "value": value} for name, value in found.items()]
    if recipe.projection_space:
        shapes = [(layer.out_features, layer.in_features) for _, layer in projected_layers(model)]
        inside = inside_rows(recipe, run.log, shapes)
        rows += [
            same | {"step": recipe.steps, "k": recipe.projection_rank, "quantity": "update_inside"} | r for r in inside
        ]
    return as_measures(rows)
