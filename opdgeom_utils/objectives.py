"""SFT, OPD, RLVR and their mixture, written as one thing: an advantage for every token.

The gradient of all of them is ``g = sum_t a_t * grad log p(y_t | x, y_<t)`` (arXiv 2606.07082, objectives); they differ
only in ``a_t`` and in who wrote ``y``. So each objective here is a small function that returns ``a_t``, and
:func:`policy_loss` turns advantages into a loss. Everything is a pure function of tensors.

To add an objective, write its credit here, call it in :func:`opdgeom_utils.batches.score`, and give its name to
:data:`opdgeom_utils.recipes.OBJECTIVES`; a recipe of it is a few lines in ``data/recipes/<profile>.yaml``.

Axes: ``B`` prompts, ``G`` completions a prompt, ``T`` tokens, ``V`` vocabulary. Log-probabilities are natural
logarithms (nats). ``mask`` is true on the tokens of a completion, its end token included.

Aggregation: the mean over all unmasked tokens of one update, whatever completion they belong to ("token mean"). With
``total`` given, the mean is taken over that many tokens, so that micro-batches of one update add up exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def token_log_probs(logits: Float[Tensor, "*batch V"], ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Log-probability of each token that was written, in nats.

    >>> token_log_probs(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor([0.2500])
    """
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, ids[..., None])[..., 0]


def token_mean(
    values: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"], total: float | None = None
) -> Float[Tensor, ""]:
    """Sum over unmasked tokens divided by their number (or by ``total``); 0 when there are none.

    >>> token_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    count = float(mask.sum()) if total is None else total
    return torch.where(mask, values, torch.zeros_like(values)).sum() / max(count, 1.0)


def sft_advantages(mask: Bool[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Credit of supervised fine-tuning: 1 for every token of the demonstration.

    >>> sft_advantages(torch.tensor([True, True, False]))
    tensor([1., 1., 0.])
    """
    return mask.float()


def reverse_kl_sampled(
    student_log_probs: Float[Tensor, "*batch"], teacher_log_probs: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Return the per-token term ``r_t = log p_student(y_t) - log p_teacher(y_t)`` at the token that was sampled.

    Its mean over the student's own samples is the reverse KL; one sample may be negative. No gradient flows through it.

    >>> reverse_kl_sampled(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())  # log 2
    tensor([0.6931])
    """
    return (student_log_probs - teacher_log_probs).detach()


def reverse_kl_full_vocab(
    student_logits: Float[Tensor, "*batch V"], teacher_logits: Float[Tensor, "*batch V"]
) -> Float[Tensor, "*batch"]:
    """Exact ``KL(p_student || p_teacher)`` of every position, summed over the whole vocabulary, in nats (0 or more).

    Differentiable in the student's logits. It differs from the paper, which uses the sampled token only: at one
    position both have the same mean gradient, but this one has no sampling noise in the token and does not credit a
    token for what follows it.

    >>> reverse_kl_full_vocab(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([0.])
    """
    student = torch.log_softmax(student_logits.float(), dim=-1)
    teacher = torch.log_softmax(teacher_logits.float(), dim=-1)
    return (student.exp() * (student - teacher)).sum(-1)


def entropy(logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """Entropy of every position's next-token distribution, in nats, from 0 (sure) to ``log V`` (uniform)."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def opd_advantages(
    student_log_probs: Float[Tensor, "*batch"], teacher_log_probs: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Credit of on-policy distillation: ``a_t = -r_t``, positive where the teacher likes the token more.

    >>> opd_advantages(torch.tensor([-1.0, -1.0]), torch.tensor([-3.0, -0.5]), torch.tensor([True, True]))
    tensor([-2.0000,  0.5000])
    """
    return -reverse_kl_sampled(student_log_probs, teacher_log_probs) * mask


def kept_tokens(
    r: Float[Tensor, "B G T"],
    mask: Bool[Tensor, "B G T"],
    *,
    fraction: float,
    by: str = "top",
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "B G T"]:
    """Choose ``fraction`` of each completion's tokens: those with the largest ``r_t``, or random ones.

    The number kept is ``fraction * T`` rounded to the nearest whole, at least 1. ``r`` is
    :func:`reverse_kl_sampled`; ties go to the earlier token.

    >>> r, mask = torch.tensor([[[0.1, 3.0, -5.0, 0.2]]]), torch.ones(1, 1, 4, dtype=torch.bool)
    >>> kept_tokens(r, mask, fraction=0.5)
    tensor([[[False,  True, False,  True]]])
    """
    if not 0 < fraction <= 1 or by not in ("top", "random"):
        raise ValueError(f"fraction is {fraction}, by is {by!r}; expected a fraction above 0, and top or random")
    worth = r if by == "top" else torch.rand(r.shape, generator=generator, device=r.device)
    order = torch.argsort(worth.masked_fill(~mask, -torch.inf), dim=-1, descending=True, stable=True)
    place = torch.argsort(order, dim=-1)
    count = (mask.sum(-1, keepdim=True) * fraction).round().clamp_min(1)
    return (place < count) & mask


def keep_scale(kept: Bool[Tensor, "B G T"], mask: Bool[Tensor, "B G T"]) -> Float[Tensor, "B G 1"]:
    """Return the factor that makes up for dropped tokens: tokens of the completion / tokens kept.

    >>> keep_scale(torch.tensor([[[True, False]]]), torch.tensor([[[True, True]]]))
    tensor([[[2.]]])
    """
    return mask.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(1)


def permuted(
    values: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"], generator: torch.Generator, *, signs: bool = False
) -> Float[Tensor, "*batch"]:
    """Shuffle values over the true places of a mask, each with a random sign where ``signs`` is set; 0 elsewhere.

    The null objectives: credit of the same sizes on the same text, that says nothing of the text.

    >>> values, mask = torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.tensor([True, True, True, False])
    >>> shuffled = permuted(values, mask, torch.Generator().manual_seed(0), signs=True)
    >>> shuffled.abs().sort().values
    tensor([0., 1., 2., 3.])
    """
    chosen = values[mask]
    chosen = chosen[torch.randperm(len(chosen), generator=generator, device=chosen.device)]
    if signs:
        heads = torch.randint(0, 2, chosen.shape, generator=generator, device=chosen.device)
        chosen = chosen * (2 * heads - 1)
    return torch.zeros_like(values).masked_scatter(mask, chosen)


def rlvr_advantages(
    rewards: Float[Tensor, "B G"], mask: Bool[Tensor, "B G T"], *, eps: float = 1e-6
) -> Float[Tensor, "B G T"]:
    """Credit of GRPO: the reward, centred and scaled within its group, the same number for every token of a completion.

    ``A = (R - mean(R)) / (std(R) + eps)`` over the ``G`` completions of one prompt, with the sample standard deviation
    (divisor ``G - 1``). Groups whose rewards are all equal say nothing and get 0; :func:`informative_groups` tells them
    apart.

    >>> rlvr_advantages(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, 1, dtype=torch.bool))[0, :, 0].round(decimals=3)
    tensor([ 0.7070, -0.7070])
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    spread = rewards.std(-1, keepdim=True) if rewards.shape[-1] > 1 else torch.zeros_like(rewards)
    return (centred / (spread + eps))[..., None] * mask


def informative_groups(rewards: Float[Tensor, "B G"]) -> Bool[Tensor, " B"]:
    """Return true for a prompt whose completions did not all get the same reward.

    >>> informative_groups(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    tensor([False,  True])
    """
    return (rewards != rewards[:, :1]).any(-1)


def mixed_advantages(
    opd: Float[Tensor, "*batch"], rlvr: Float[Tensor, "*batch"], *, alpha: float
) -> Float[Tensor, "*batch"]:
    """Mix the two credits as the paper does: ``alpha * (-r_t) + (1 - alpha) * A``, raw signals, no normalisation.

    >>> mixed_advantages(torch.tensor([2.0]), torch.tensor([-1.0]), alpha=0.25)
    tensor([-0.2500])
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}; expected a number from 0 (pure RLVR) to 1 (pure OPD)")
    return alpha * opd + (1.0 - alpha) * rlvr


@dataclass(frozen=True)
class PolicyLoss:
    """A scalar to differentiate, and the fraction of tokens (0 to 1) whose ratio the clip held back."""

    loss: Float[Tensor, ""]
    clip_rate: Float[Tensor, ""]


def policy_loss(
    log_probs: Float[Tensor, "*batch"],
    old_log_probs: Float[Tensor, "*batch"],
    advantages: Float[Tensor, "*batch"],
    mask: Bool[Tensor, "*batch"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    total: float | None = None,
) -> PolicyLoss:
    """Turn advantages into a loss: the clipped surrogate of PPO/GRPO, averaged over tokens.

    ``-min(rho * a, clip(rho, 1 - clip_low, 1 + clip_high) * a)`` with ``rho = p / p_old``. On the first update after
    sampling ``rho`` is 1 and the gradient is exactly ``-a_t * grad log p(y_t)``.

    >>> one = torch.zeros(1)
    >>> float(policy_loss(one, one, torch.tensor([0.5]), torch.tensor([True])).loss)
    -0.5
    >>> float(policy_loss(one + 1.0, one, torch.tensor([0.5]), torch.tensor([True])).clip_rate)  # rho = e, above 1.28
    1.0
    """
    log_ratio = torch.where(mask, log_probs - old_log_probs, torch.zeros_like(log_probs))
    ratio = log_ratio.exp()
    free = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    loss = token_mean(-torch.minimum(free, clipped), mask, total)
    return PolicyLoss(loss, token_mean((clipped < free).float(), mask, total).detach())


def sft_loss(
    log_probs: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"], *, total: float | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy on demonstrations: ``-mean log p(y_t)``, that is, every token's advantage is 1.

    >>> sft_loss(torch.tensor([0.5, 0.125]).log(), torch.tensor([True, False]))
    tensor(0.6931)
    """
    return token_mean(-log_probs * sft_advantages(mask), mask, total)
