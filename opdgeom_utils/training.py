"""The loop: prompts -> rollouts -> objective -> update.

Master weights are fp32. Nothing random is carried from one update to the next: the prompts and the sampling of an
update come from its own number and the run's seed, so a run that stops and goes on needs only its weights and its
optimiser. :func:`train` yields after every update; storing checkpoints is the business of :mod:`opdgeom_utils.runs`.
"""

# pyright: reportPrivateImportUsage=false, reportArgumentType=false
# (torch keeps _foreach functions private; a tokenizer may lack an end token, ours has one)
from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from opdgeom_utils import objectives
from opdgeom_utils.batches import Batch, counting_part, make_batches, parts_of
from opdgeom_utils.errors import TrainingDivergedError
from opdgeom_utils.learner import Learner
from opdgeom_utils.mixing import TermGradients
from opdgeom_utils.precision import computing
from opdgeom_utils.projection import projected_layers
from opdgeom_utils.projection_spaces import make_projector
from opdgeom_utils.recipes import Recipe
from opdgeom_utils.rollouts import Rollouts
from opdgeom_utils.scoring import TokenScores, token_scores

TRAINING_VERSION = 1  # raise it when a change here, in objectives or in rollouts changes what a run computes

Log = dict[str, float]


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
        began = time.perf_counter()
        with computing(recipe.compute, learner.device):
            batches = make_batches(learner)
        shared = (time.perf_counter() - began) / len(batches)  # sampling and the teacher's part of each update
        for batch in batches:
            began = time.perf_counter()
            log = apply_update(learner, batch)
            tokens = float(batch.rollouts.mask.sum())
            log["tokens_per_second"] = tokens / max(time.perf_counter() - began + shared, 1e-9)
            log["step"] = learner.step
            yield log


def apply_update(learner: Learner, batch: Batch) -> Log:
    """Differentiate the loss of one batch and take one optimiser step; return the log row."""
    recipe, student = learner.recipe, learner.student
    student.train()
    learner.optimizer.zero_grad(set_to_none=True)
    if recipe.projection_space and learner.step >= recipe.projection_from and learner.projector is None:
        learner.projector = make_projector(learner)
    with computing(recipe.compute, learner.device):
        log = _differentiate(learner, batch)
    layers = dict(projected_layers(student)) if learner.projector else {}
    if learner.projector and recipe.projection_of == "gradient":
        learner.projector.project_gradients(layers)
    norm = float(torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.grad_clip))
    if not (math.isfinite(log["loss"]) and math.isfinite(norm)):
        raise TrainingDivergedError(
            f"{recipe.name}, seed {learner.seed}, update {learner.step + 1}: loss {log['loss']}, gradient norm {norm}. "
            "Expected finite numbers; lower the learning rate or look at the last checkpoint"
        )
    rate = learning_rate_at(recipe, learner.step)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    with computing(recipe.compute, learner.device):  # a context of its own: it keeps its copies of the weights
        log.update(probe(learner, batch))
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    learner.optimizer.step()
    if learner.projector:
        log["update_inside"] = learner.projector.share_inside(layers, before)
        if recipe.projection_of == "update":
            learner.projector.project_update(layers, before)
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


def _differentiate(learner: Learner, batch: Batch) -> Log:
    """Set every parameter's gradient, summed over micro-batches; return loss, clip rate and entropy."""
    recipe = learner.recipe
    counted, kept = counting_part(recipe, batch)
    total, written = float(kept.sum()), float(counted.rollouts.mask.sum())
    log: Log = {"loss": 0.0, "clip_rate": 0.0, "entropy": 0.0}
    apart = TermGradients(list(learner.student.parameters())) if batch.terms else None
    exact = recipe.objective == "opd" and recipe.estimator == "full_vocab"
    for rows in parts_of(recipe, counted.rollouts):
        part = counted.rollouts.select(rows)
        beside = learner.teacher if exact else None
        scores = token_scores(learner.student, part, beside=beside, vocabulary=learner.vocabulary)
        losses = _losses(recipe, counted, part, scores, rows, kept, total)
        if apart is None:
            losses[0].loss.backward()
        else:
            apart.add(*(term.loss for term in losses))
        for name in ("loss", "clip_rate"):
            opd, *rlvr = (getattr(term, name).detach() for term in losses)
            log[name] += float(recipe.alpha * opd + (1 - recipe.alpha) * rlvr[0] if rlvr else opd)
        log["entropy"] += float(scores.entropy.sum()) / written
    if apart is not None:
        log.update(apart.mix(recipe.alpha))
    return log


def _losses(
    recipe: Recipe, batch: Batch, part: Rollouts, scores: TokenScores, rows: list[int], kept: Tensor, total: float
) -> list[objectives.PolicyLoss]:
    """Loss and clip rate of one micro-batch; two of each, OPD's and RLVR's, where their gradients are taken apart."""
    width = part.mask.shape[-1]
    kept = kept[rows, :, :width]
    if recipe.objective == "sft":
        return [objectives.PolicyLoss(objectives.sft_loss(scores.log_probs, kept, total=total), torch.zeros(()))]
    if recipe.objective == "opd" and recipe.estimator == "full_vocab":
        return [objectives.PolicyLoss(objectives.token_mean(scores.kl, kept, total), torch.zeros(()))]
    return [
        objectives.policy_loss(
            scores.log_probs, part.log_probs, credit[rows, :, :width], kept,
            clip_low=recipe.clip_low, clip_high=recipe.clip_high, total=total,
        )
        for credit in batch.terms or (batch.advantages,)
    ]  # fmt: skip


@torch.no_grad()
def probe(learner: Learner, batch: Batch) -> Log:
    """Distances to the teacher and to the anchor, on the first few prompts of the batch only (nats per token)."""
    part = batch.rollouts.select(range(min(learner.recipe.probe_prompts, len(batch.rewards))))
    log: Log = {"reverse_kl_sampled": math.nan, "reverse_kl_full_vocab": math.nan, "kl_to_anchor": math.nan}
    if learner.teacher is not None:
        beside = token_scores(learner.student, part, beside=learner.teacher, vocabulary=learner.vocabulary)
        sampled = objectives.reverse_kl_sampled(beside.log_probs, beside.other_log_probs)
        log["reverse_kl_sampled"] = float(objectives.token_mean(sampled, part.mask))
        log["reverse_kl_full_vocab"] = float(objectives.token_mean(beside.kl, part.mask))
    if learner.anchor is not None:
        beside = token_scores(learner.student, part, beside=learner.anchor, vocabulary=learner.vocabulary)
        log["kl_to_anchor"] = float(objectives.token_mean(beside.kl, part.mask))
    return log
