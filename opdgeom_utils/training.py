"""The loop: prompts -> rollouts -> objective -> update.

Master weights are fp32. Nothing random is carried from one update to the next: the prompts and the sampling of an
update come from its own number and the run's seed, so a run that stops and goes on needs only its weights and its
optimiser. :func:`train` yields after every update; storing checkpoints is the business of :mod:`opdgeom_utils.runs`.
"""

# pyright: reportPrivateImportUsage=false, reportArgumentType=false
# (torch keeps _foreach functions private; a tokenizer may lack an end token, ours has one)
from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from opdgeom_utils import objectives
from opdgeom_utils.errors import TrainingDivergedError
from opdgeom_utils.recipes import Recipe
from opdgeom_utils.rollouts import Rollouts, completion_logits, decode_completions, encode_pairs, encode_prompts, sample
from opdgeom_utils.tasks import Example, draw_examples, verify

TRAINING_VERSION = 1  # raise it when a change here, in objectives or in rollouts changes what a run computes

Log = dict[str, float]


@dataclass
class Learner:
    """Everything an update reads or changes: the student, its optimiser, and two fixed models to compare with."""

    recipe: Recipe
    seed: int
    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    teacher: PreTrainedModel | None = None
    anchor: PreTrainedModel | None = None
    step: int = 0
    optimizer: torch.optim.AdamW = field(init=False)
    start_weights: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Build the optimiser and remember where the weights were, for the update norm."""
        r = self.recipe
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(),
            lr=r.learning_rate,
            betas=r.betas,
            eps=r.eps,
            weight_decay=r.weight_decay,
            fused=True,
        )
        self.start_weights = [p.detach().clone() for p in self.student.parameters()]

    @property
    def device(self) -> torch.device:
        """Where the student's weights are."""
        return next(self.student.parameters()).device

    def update_norm(self) -> float:
        """Frobenius norm of the cumulative update over all parameters."""
        now = [p.detach() for p in self.student.parameters()]
        parts = torch.stack(torch._foreach_norm(torch._foreach_sub(now, self.start_weights)))
        return float(parts.double().square().sum().sqrt())


@dataclass
class Batch:
    """One update's worth of completions, with the credit of every token and what the log needs to know of them."""

    rollouts: Rollouts
    advantages: Tensor
    rewards: Tensor
    teacher_logits: Tensor | None = None


def stream_seed(*parts: object) -> int:
    """Return a 63-bit seed for one use of randomness, the same on every machine.

    >>> stream_seed("rollout", 0, 5) == stream_seed("rollout", 0, 5) != stream_seed("rollout", 0, 6)
    True
    """
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def learning_rate_at(recipe: Recipe, step: int) -> float:
    """Learning rate of update ``step`` (from 0): a linear warm-up, then constant or a cosine to the final rate."""
    warmup = round(recipe.warmup_fraction * recipe.steps)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    if recipe.schedule == "constant":
        return recipe.learning_rate
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    span = recipe.learning_rate - recipe.final_learning_rate
    return recipe.final_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2


def train(learner: Learner) -> Iterator[Log]:
    """Run the recipe from ``learner.step`` to its end, one log row for each update.

    Raises
    ------
    TrainingDivergedError
        If a loss or a gradient norm is not finite; the weights of that update are not touched.
    """
    recipe = learner.recipe
    while learner.step < recipe.steps:
        for batch in make_batches(learner):
            began = time.perf_counter()
            log = apply_update(learner, batch)
            tokens = float(batch.rollouts.mask.sum())
            log["tokens_per_second"] = tokens / max(time.perf_counter() - began, 1e-9)
            log["step"] = learner.step
            yield log


def make_batches(learner: Learner) -> list[Batch]:
    """Demonstrations for SFT; otherwise one round of rollouts, split into ``updates_per_rollout`` batches."""
    recipe = learner.recipe
    n = recipe.prompts_per_update * recipe.updates_per_rollout
    examples = draw_examples(recipe.mixture, n, seed=f"{learner.seed}:{learner.step}", weights=recipe.weights)
    if not recipe.on_policy:
        pairs = encode_pairs(
            learner.tokenizer, [e.prompt for e in examples], [e.completion for e in examples], learner.device
        )
        return [Batch(pairs, objectives.sft_advantages(pairs.mask), torch.ones(pairs.mask.shape[:2]))]
    generator = torch.Generator(learner.device).manual_seed(stream_seed("rollout", learner.seed, learner.step))
    rollouts = roll_out(learner.student, learner.tokenizer, examples, recipe, generator)
    rewards = reward_of(learner.tokenizer, examples, rollouts)
    size = recipe.prompts_per_update
    return [score(learner, rollouts.select(range(i, i + size)), rewards[i : i + size]) for i in range(0, n, size)]


def roll_out(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    recipe: Recipe,
    generator: torch.Generator | None,
) -> Rollouts:
    """Let the student write ``group_size`` completions for each prompt."""
    device = next(student.parameters()).device
    ids, mask = encode_prompts(tokenizer, [e.prompt for e in examples], device)
    return sample(
        student, ids, mask, group_size=recipe.group_size, max_new_tokens=recipe.max_new_tokens, generator=generator,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


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
    advantages = opd if recipe.objective == "opd" else objectives.mixed_advantages(opd, rlvr, alpha=recipe.alpha)
    return Batch(rollouts, advantages, rewards, logits)


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


def apply_update(learner: Learner, batch: Batch) -> Log:
    """Differentiate the loss of one batch and take one optimiser step; return the log row."""
    recipe, student = learner.recipe, learner.student
    counted, kept = counting_part(recipe, batch)
    total = float(kept.sum())
    log: Log = {"loss": 0.0, "clip_rate": 0.0, "entropy": 0.0}
    student.train()
    learner.optimizer.zero_grad(set_to_none=True)
    for rows in length_groups(counted.rollouts, recipe.micro_batches):
        part = counted.rollouts.select(rows)
        width = part.mask.shape[-1]
        logits = completion_logits(student, part).float()
        loss, clipped = _loss(recipe, counted, part, logits, rows, kept[rows, :, :width], total)
        loss.backward()
        log["loss"] += float(loss.detach())
        log["clip_rate"] += clipped
        log["entropy"] += float((objectives.entropy(logits.detach()) * part.mask).sum()) / float(
            counted.rollouts.mask.sum()
        )
    norm = float(torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.grad_clip))
    if not (math.isfinite(log["loss"]) and math.isfinite(norm)):
        raise TrainingDivergedError(
            f"{recipe.name}, seed {learner.seed}, update {learner.step + 1}: loss {log['loss']}, gradient norm {norm}. "
            "Expected finite numbers; lower the learning rate or look at the last checkpoint"
        )
    rate = learning_rate_at(recipe, learner.step)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    log.update(probe(learner, batch))
    learner.optimizer.step()
    learner.step += 1
    log.update(
        reward=float(batch.rewards.mean()),
        completion_length=float(batch.rollouts.mask.sum(-1).float().mean()),
        grad_norm=norm,
        grad_clipped=float(norm > recipe.grad_clip),
        update_norm=learner.update_norm(),
        learning_rate=rate,
    )
    return log


def _loss(
    recipe: Recipe, batch: Batch, part: Rollouts, logits: Tensor, rows: list[int], kept: Tensor, total: float
) -> tuple[Tensor, float]:
    log_probs = objectives.token_log_probs(logits, part.completion_ids)
    if recipe.objective == "sft":
        return objectives.sft_loss(log_probs, kept, total=total), 0.0
    width = part.mask.shape[-1]
    if recipe.objective == "opd" and recipe.estimator == "full_vocab":
        assert batch.teacher_logits is not None
        exact = objectives.reverse_kl_full_vocab(logits, batch.teacher_logits[rows, :, :width])
        return objectives.token_mean(exact, kept, total), 0.0
    result = objectives.policy_loss(
        log_probs, part.log_probs, batch.advantages[rows, :, :width], kept,
        clip_low=recipe.clip_low, clip_high=recipe.clip_high, total=total,
    )  # fmt: skip
    return result.loss, float(result.clip_rate)


@torch.no_grad()
def probe(learner: Learner, batch: Batch) -> Log:
    """Distances to the teacher and to the anchor, on the first few prompts of the batch only (nats per token)."""
    part = batch.rollouts.select(range(min(learner.recipe.probe_prompts, len(batch.rewards))))
    logits = completion_logits(learner.student, part).float()
    own = objectives.token_log_probs(logits, part.completion_ids)
    log: Log = {"reverse_kl_sampled": math.nan, "reverse_kl_full_vocab": math.nan, "kl_to_anchor": math.nan}
    if learner.teacher is not None:
        teacher = completion_logits(learner.teacher, part).float()
        sampled = objectives.reverse_kl_sampled(own, objectives.token_log_probs(teacher, part.completion_ids))
        log["reverse_kl_sampled"] = float(objectives.token_mean(sampled, part.mask))
        log["reverse_kl_full_vocab"] = float(
            objectives.token_mean(objectives.reverse_kl_full_vocab(logits, teacher), part.mask)
        )
    if learner.anchor is not None:
        anchor = completion_logits(learner.anchor, part).float()
        log["kl_to_anchor"] = float(objectives.token_mean(objectives.reverse_kl_full_vocab(logits, anchor), part.mask))
    return log
