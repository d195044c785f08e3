"""Prompts -> completions -> credit: what one update learns from.

Nothing random is carried from one update to the next: the prompts, the sampling and the choice of tokens of an update
come from its own number and the run's seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opdgeom_utils import objectives
from opdgeom_utils.learner import Learner, stream_seed
from opdgeom_utils.problems import Problem
from opdgeom_utils.recipes import Recipe
from opdgeom_utils.rollouts import Rollouts, decode_completions, encode_pairs, end_tokens, roll_out
from opdgeom_utils.scoring import token_scores


@dataclass
class Batch:
    """One update's worth of completions, with the credit of every token and what the log needs to know of them."""

    rollouts: Rollouts
    advantages: Tensor
    rewards: Tensor
    terms: tuple[Tensor, Tensor] | None = None  # credits of OPD and of RLVR, where their gradients are taken apart


def make_batches(learner: Learner) -> list[Batch]:
    """Demonstrations for SFT; otherwise one round of rollouts, split into ``updates_per_rollout`` batches."""
    recipe = learner.recipe
    n = recipe.prompts_per_update * recipe.updates_per_rollout
    problems = learner.tasks.draw(recipe.mixture, n, f"{learner.seed}:{learner.step}", weights=recipe.weights)
    prompts = [learner.world.put(learner.tokenizer, p.prompt) for p in problems]
    if not recipe.on_policy:
        shown = [learner.world.demonstrated(learner.tokenizer, p.completion) for p in problems]
        pairs = encode_pairs(learner.tokenizer, prompts, shown, learner.device)
        return [Batch(pairs, objectives.sft_advantages(pairs.mask), torch.ones(pairs.mask.shape[:2]))]
    generator = torch.Generator(learner.device).manual_seed(stream_seed("rollout", learner.seed, learner.step))
    rollouts = roll_out(
        learner.writer or learner.student, learner.tokenizer, prompts, group_size=recipe.group_size,
        max_new_tokens=recipe.max_new_tokens, generator=generator, vocabulary=learner.vocabulary,
    )  # fmt: skip
    if learner.writer is not None:  # ratios are taken against the student, whoever wrote
        rollouts = replace(rollouts, log_probs=student_log_probs(learner, rollouts))
    rewards = reward_of(learner, problems, rollouts)
    if recipe.random_reward:
        rewards = objectives.permuted(rewards, rewards >= 0, generator)
    size = recipe.prompts_per_update
    return [score(learner, rollouts.select(range(i, i + size)), rewards[i : i + size]) for i in range(0, n, size)]


@torch.no_grad()
def student_log_probs(learner: Learner, rollouts: Rollouts) -> Tensor:
    """Log-probability, shape (B, G, T), that the student gives to completions that another model wrote."""
    log_probs = torch.zeros_like(rollouts.log_probs)
    for rows in parts_of(learner.recipe, rollouts):
        part = rollouts.select(rows)
        scored = token_scores(learner.student, part, vocabulary=learner.vocabulary)
        log_probs[rows, :, : part.mask.shape[-1]] = scored.log_probs
    return log_probs


def reward_of(learner: Learner, problems: Sequence[Problem], rollouts: Rollouts) -> Tensor:
    """Binary rewards, shape (B, G), from the verifier."""
    ends = end_tokens(learner.writer or learner.student, learner.tokenizer)
    texts = decode_completions(learner.tokenizer, rollouts, ends)
    rewards = [[learner.tasks.grade(p, t).reward for t in row] for p, row in zip(problems, texts, strict=True)]
    return torch.tensor(rewards, device=learner.device)


@torch.no_grad()
def score(learner: Learner, rollouts: Rollouts, rewards: Tensor) -> Batch:
    """Give every sampled token its advantage. The teacher's logits are not kept."""
    recipe = learner.recipe
    rewards = rewards.to(learner.device)
    rlvr = objectives.rlvr_advantages(rewards, rollouts.mask)
    if recipe.objective == "rlvr":
        return Batch(rollouts, rlvr, rewards)
    if recipe.estimator == "full_vocab":  # the loss asks the teacher itself
        return Batch(rollouts, torch.zeros_like(rollouts.log_probs), rewards)
    assert learner.teacher is not None
    teacher = torch.zeros_like(rollouts.log_probs)
    for rows in parts_of(recipe, rollouts):
        part = rollouts.select(rows)
        scored = token_scores(learner.teacher, part, vocabulary=learner.vocabulary)
        teacher[rows, :, : part.mask.shape[-1]] = scored.log_probs
    opd = objectives.opd_advantages(rollouts.log_probs, teacher, rollouts.mask)
    if recipe.keep_fraction < 1:
        opd = _sparsified(learner, opd, rollouts)
    if recipe.random_credit:
        generator = _generator(learner, "credit", rollouts)
        opd = objectives.permuted(opd, rollouts.mask, generator, signs=True)
    if recipe.equal_gradients:
        return Batch(rollouts, opd, rewards, (opd, rlvr))
    advantages = opd if recipe.objective == "opd" else objectives.mixed_advantages(opd, rlvr, alpha=recipe.alpha)
    return Batch(rollouts, advantages, rewards)


def _sparsified(learner: Learner, opd: Tensor, rollouts: Rollouts) -> Tensor:
    """Take the credit of all but a fraction of each completion's tokens away."""
    recipe, generator = learner.recipe, _generator(learner, "keep", rollouts)
    kept = objectives.kept_tokens(
        -opd, rollouts.mask, fraction=recipe.keep_fraction, by=recipe.keep_by, generator=generator
    )
    scale = objectives.keep_scale(kept, rollouts.mask) if recipe.keep_rescaled else 1.0
    return opd * kept * scale


def _generator(learner: Learner, use: str, rollouts: Rollouts) -> torch.Generator:
    """Return a stream of an update's own; two batches of one round draw differently, as their tokens do."""
    drawn = int(rollouts.completion_ids.sum())
    return torch.Generator(learner.device).manual_seed(stream_seed(use, learner.seed, learner.step, drawn))


def parts_of(recipe: Recipe, rollouts: Rollouts) -> list[list[int]]:
    """Split the prompts of a batch into the parts that are computed one after the other, each of like lengths."""
    if recipe.micro_tokens:
        return token_groups(rollouts, recipe.micro_tokens)
    return length_groups(rollouts, recipe.micro_batches)


def length_groups(rollouts: Rollouts, parts: int) -> list[list[int]]:
    """Split the prompts of a batch into ``parts`` groups of like length, so that little is padded."""
    order = torch.argsort(_lengths(rollouts), stable=True).tolist()
    size = math.ceil(len(order) / parts)
    return [order[i : i + size] for i in range(0, len(order), size)]


def token_groups(rollouts: Rollouts, tokens: int) -> list[list[int]]:
    """Split the prompts of a batch into groups of like length of at most ``tokens`` tokens, padding included.

    A prompt whose completions alone have more makes a group of its own.
    """
    lengths, groups = _lengths(rollouts), [[]]
    for row in torch.argsort(lengths, stable=True).tolist():
        if groups[-1] and (len(groups[-1]) + 1) * rollouts.mask.shape[1] * int(lengths[row]) > tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def _lengths(rollouts: Rollouts) -> Tensor:
    """Tokens of each prompt with its longest completion."""
    return rollouts.mask.sum(-1).max(-1).values + rollouts.prompt_mask.sum(-1)


def counting_part(recipe: Recipe, batch: Batch) -> tuple[Batch, Tensor]:
    """Return the prompts whose completions count in the loss, and the mask of the tokens that do.

    RLVR skips a group of equal rewards: it neither pulls nor counts, so nothing is computed for it. Where every group
    is one, the first stays, with no token counted: the gradient is zero and Adam goes on with its momentum.
    """
    if recipe.objective != "rlvr":
        return batch, batch.rollouts.mask
    informative = objectives.informative_groups(batch.rewards)
    rows = informative.nonzero()[:, 0].tolist() or [0]
    part = batch.rollouts.select(rows)
    advantages = batch.advantages[rows, :, : part.mask.shape[-1]]
    return Batch(part, advantages, batch.rewards[rows]), part.mask & informative[rows][:, None, None]
