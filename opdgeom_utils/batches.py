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
from transformers import PreTrainedTokenizerFast

from opdgeom_utils import objectives
from opdgeom_utils.learner import Learner, stream_seed
from opdgeom_utils.recipes import Recipe
from opdgeom_utils.rollouts import Rollouts, completion_logits, decode_completions, encode_pairs, roll_out
from opdgeom_utils.tasks import Example, draw_examples, verify


@dataclass
class Batch:
    """One update's worth of completions, with the credit of every token and what the log needs to know of them."""

    rollouts: Rollouts
    advantages: Tensor
    rewards: Tensor
    teacher_logits: Tensor | None = None
    terms: tuple[Tensor, Tensor] | None = None  # credits of OPD and of RLVR, where their gradients are taken apart


def make_batches(learner: Learner) -> list[Batch]:
    """Demonstrations for SFT; otherwise one round of rollouts, split into ``updates_per_rollout`` batches."""
    recipe = learner.recipe
    n = recipe.prompts_per_update * recipe.updates_per_rollout
    examples = draw_examples(recipe.mixture, n, seed=f"{learner.seed}:{learner.step}", weights=recipe.weights)
    prompts = [e.prompt for e in examples]
    if not recipe.on_policy:
        pairs = encode_pairs(learner.tokenizer, prompts, [e.completion for e in examples], learner.device)
        return [Batch(pairs, objectives.sft_advantages(pairs.mask), torch.ones(pairs.mask.shape[:2]))]
    generator = torch.Generator(learner.device).manual_seed(stream_seed("rollout", learner.seed, learner.step))
    rollouts = roll_out(
        learner.writer or learner.student, learner.tokenizer, prompts,
        group_size=recipe.group_size, max_new_tokens=recipe.max_new_tokens, generator=generator,
    )  # fmt: skip
    if learner.writer is not None:  # ratios are taken against the student, whoever wrote
        rollouts = replace(rollouts, log_probs=student_log_probs(learner, rollouts))
    rewards = reward_of(learner.tokenizer, examples, rollouts)
    size = recipe.prompts_per_update
    return [score(learner, rollouts.select(range(i, i + size)), rewards[i : i + size]) for i in range(0, n, size)]


@torch.no_grad()
def student_log_probs(learner: Learner, rollouts: Rollouts) -> Tensor:
    """Log-probability, shape (B, G, T), that the student gives to completions that another model wrote."""
    log_probs = torch.zeros_like(rollouts.log_probs)
    for rows in length_groups(rollouts, learner.recipe.micro_batches * learner.recipe.updates_per_rollout):
        part = rollouts.select(rows)
        scored = objectives.token_log_probs(completion_logits(learner.student, part), part.completion_ids)
        log_probs[rows, :, : part.mask.shape[-1]] = scored * part.mask
    return log_probs


def reward_of(tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], rollouts: Rollouts) -> Tensor:
    """Binary rewards, shape (B, G), from the verifier."""
    texts = decode_completions(tokenizer, rollouts)
    return torch.tensor([[verify(e.prompt, t) for t in row] for e, row in zip(examples, texts, strict=True)])


def score(learner: Learner, rollouts: Rollouts, rewards: Tensor) -> Batch:
    """Give every sampled token its advantage."""
    recipe = learner.recipe
    rewards = rewards.to(learner.device)
    rlvr = objectives.rlvr_advantages(rewards, rollouts.mask)
    if recipe.objective == "rlvr":
        return Batch(rollouts, rlvr, rewards)
    assert learner.teacher is not None
    with torch.no_grad():
        logits = torch.zeros(*rollouts.mask.shape, learner.teacher.config.vocab_size, device=learner.device)
        for rows in length_groups(rollouts, recipe.micro_batches):
            part = rollouts.select(rows)
            logits[rows, :, : part.mask.shape[-1]] = completion_logits(learner.teacher, part).float()
    teacher = objectives.token_log_probs(logits, rollouts.completion_ids)
    opd = objectives.opd_advantages(rollouts.log_probs, teacher, rollouts.mask)
    if recipe.keep_fraction < 1:
        opd = _sparsified(learner, opd, rollouts)
    if recipe.equal_gradients:
        return Batch(rollouts, opd, rewards, logits, (opd, rlvr))
    advantages = opd if recipe.objective == "opd" else objectives.mixed_advantages(opd, rlvr, alpha=recipe.alpha)
    return Batch(rollouts, advantages, rewards, logits)


def _sparsified(learner: Learner, opd: Tensor, rollouts: Rollouts) -> Tensor:
    """Take the credit of all but a fraction of each completion's tokens away."""
    recipe, drawn = learner.recipe, int(rollouts.completion_ids.sum())  # two batches of one round draw differently
    generator = torch.Generator(opd.device).manual_seed(stream_seed("keep", learner.seed, learner.step, drawn))
    kept = objectives.kept_tokens(
        -opd, rollouts.mask, fraction=recipe.keep_fraction, by=recipe.keep_by, generator=generator
    )
    scale = objectives.keep_scale(kept, rollouts.mask) if recipe.keep_rescaled else 1.0
    return opd * kept * scale


def length_groups(rollouts: Rollouts, parts: int) -> list[list[int]]:
    """Split the prompts of a batch into ``parts`` groups of like length, so that little is padded."""
    lengths = rollouts.mask.sum(-1).max(-1).values + rollouts.prompt_mask.sum(-1)
    order = torch.argsort(lengths, stable=True).tolist()
    size = math.ceil(len(order) / parts)
    return [order[i : i + size] for i in range(0, len(order), size)]


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
