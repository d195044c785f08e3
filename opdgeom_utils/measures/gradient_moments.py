"""Gradients of every objective on the same completions, batch by batch: what the paper's mechanism is about.

The paper explains its third finding by second moments of gradients: masking tokens rescales OPD's, mixing in RLVR
replaces it. Here the gradients are taken, at fixed weights, of the attention matrices. For each batch the student
writes one set of completions; every objective gives its credit to the same tokens, and each credit is differentiated
by itself. Only completions that the teacher writes are a set of their own. On fresh completions no ratio is clipped,
so the mixture's gradient is exactly ``alpha * opd + (1 - alpha) * rlvr``; RLVR's is averaged over all tokens, as in the
mixture. The objective ``random_credit`` gives every token a number from a bell curve: what activations and the model's
own derivatives do with no objective at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from opdgeom_utils import objectives
from opdgeom_utils.batches import length_groups, reward_of
from opdgeom_utils.learner import Learner, stream_seed
from opdgeom_utils.problems import Problem
from opdgeom_utils.rollouts import Rollouts, roll_out
from opdgeom_utils.scopes import ATTENTION
from opdgeom_utils.scoring import completion_logits

KEPT = {
    "opd_top50": (0.5, "top"), "opd_top25": (0.25, "top"), "opd_top5": (0.05, "top"),
    "opd_random50": (0.5, "random"), "opd_random25": (0.25, "random"), "opd_random5": (0.05, "random"),
}  # fmt: skip
RANDOM_CREDIT = "random_credit"
TEACHER_WRITES = "opd_teacher_writes"
FULL_VOCABULARY = "opd_full_vocab"


@dataclass(frozen=True)
class MomentPlan:
    """How many batches, of how many prompts and completions each, how often they are drawn again, of which layers."""

    batches: int = 16
    prompts: int = 16
    group_size: int = 8
    replicates: int = 20
    layers: tuple[int, ...] | None = None  # None: all


Gradients = dict[str, dict[str, Float[Tensor, "N out in"]]]


def attention_matrices(model: PreTrainedModel, layers: tuple[int, ...] | None = None) -> dict[str, torch.nn.Parameter]:
    """Return the query, key, value and output matrices of every layer, or of these layers, by name."""
    found = {n: p for n, p in model.named_parameters() if ".layers." in n and any(f".{a}." in n for a in ATTENTION)}
    wanted = None if layers is None else {str(layer) for layer in layers}
    return {n: p for n, p in found.items() if wanted is None or n.split(".layers.")[1].split(".")[0] in wanted}


def collect_gradients(learner: Learner, plan: MomentPlan) -> Gradients:
    """Differentiate every objective on ``plan.batches`` batches, the student's weights fixed.

    Returns objective -> matrix -> gradients (batches, out, in) in float32. The last objective is ``random_credit``.
    """
    recipe = replace(learner.recipe, group_size=plan.group_size, micro_batches=2)
    here = replace(learner, recipe=recipe)
    found: dict[str, dict[str, list[Tensor]]] = {}
    for number in range(plan.batches):
        seed = f"moments:{learner.seed}:{number}"
        problems = learner.tasks.draw(recipe.mixture, plan.prompts, seed, weights=recipe.weights)
        for name, gradient in _of_one_batch(here, problems, number, plan.layers).items():
            for matrix, value in gradient.items():
                found.setdefault(name, {}).setdefault(matrix, []).append(value)
    return {name: {m: torch.stack(values) for m, values in by.items()} for name, by in found.items()}


def _of_one_batch(
    learner: Learner, problems: Sequence[Problem], number: int, layers: tuple[int, ...] | None
) -> dict[str, dict[str, Tensor]]:
    """Every objective's gradient on one batch of the student's completions, and OPD's on the teacher's."""
    assert learner.teacher is not None
    matrices = attention_matrices(learner.student, layers)
    own = _written_by(learner.student, learner, problems, number)
    rewards = reward_of(learner, problems, own)
    gradients = _differentiate(learner, matrices, own, rewards, number)
    theirs = _written_by(learner.teacher, learner, problems, number)
    return gradients | {TEACHER_WRITES: _differentiate(learner, matrices, theirs, None, number)["opd"]}


def _written_by(writer: PreTrainedModel, learner: Learner, problems: Sequence[Problem], number: int) -> Rollouts:
    generator = torch.Generator(learner.device).manual_seed(stream_seed("moments", learner.seed, number))
    prompts, recipe = [learner.world.put(learner.tokenizer, p.prompt) for p in problems], learner.recipe
    return roll_out(
        writer, learner.tokenizer, prompts,
        group_size=recipe.group_size, max_new_tokens=recipe.max_new_tokens, generator=generator,
        vocabulary=learner.vocabulary,
    )  # fmt: skip


def _differentiate(
    learner: Learner, matrices: dict[str, torch.nn.Parameter], rollouts: Rollouts, rewards: Tensor | None, number: int
) -> dict[str, dict[str, Tensor]]:
    """Sum each objective's gradient over the micro-batches; without rewards, OPD's only."""
    assert learner.teacher is not None
    total = float(rollouts.mask.sum())
    sums: dict[str, dict[str, Tensor]] = {}
    for rows in length_groups(rollouts, learner.recipe.micro_batches):
        part = rollouts.select(rows)
        logits = completion_logits(learner.student, part)[..., : learner.vocabulary].float()
        with torch.no_grad():
            teacher = completion_logits(learner.teacher, part)[..., : learner.vocabulary].float()
        generator = torch.Generator(learner.device).manual_seed(stream_seed("credit", learner.seed, number, rows[0]))
        log_probs = objectives.token_log_probs(logits, part.completion_ids)
        credits = _credits(log_probs.detach(), teacher, part, None if rewards is None else rewards[rows], generator)
        losses = {n: objectives.token_mean(-c * log_probs, part.mask, total) for n, c in credits.items()}
        if rewards is not None:
            exact = objectives.reverse_kl_full_vocab(logits, teacher)
            losses[FULL_VOCABULARY] = objectives.token_mean(exact, part.mask, total)
        for name, loss in losses.items():
            parts = torch.autograd.grad(loss, list(matrices.values()), retain_graph=True)
            own = sums.setdefault(name, {m: torch.zeros_like(p) for m, p in matrices.items()})
            for matrix, value in zip(matrices, parts, strict=True):
                own[matrix] += value
    return sums


def _credits(
    log_probs: Tensor, teacher_logits: Tensor, part: Rollouts, rewards: Tensor | None, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the credit of every token under each objective; without rewards, OPD's only."""
    teacher = objectives.token_log_probs(teacher_logits, part.completion_ids)
    opd = objectives.opd_advantages(log_probs, teacher, part.mask)
    if rewards is None:
        return {"opd": opd}
    credits = {"opd": opd, "rlvr": objectives.rlvr_advantages(rewards.float(), part.mask)}
    for name, (fraction, by) in KEPT.items():
        kept = objectives.kept_tokens(-opd, part.mask, fraction=fraction, by=by, generator=generator)
        credits[name] = opd * kept * objectives.keep_scale(kept, part.mask)
    noise = torch.randn(opd.shape, generator=generator, device=opd.device)
    return credits | {RANDOM_CREDIT: noise * part.mask}
