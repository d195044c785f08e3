"""What must hold for every objective, whatever the numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opdgeom_utils import objectives
from opdgeom_utils.batches import Batch, score
from opdgeom_utils.learner import Learner
from opdgeom_utils.models import build_model, build_tokenizer
from opdgeom_utils.recipes import Recipe
from opdgeom_utils.rollouts import Rollouts
from opdgeom_utils.scoring import token_scores
from opdgeom_utils.training import apply_update

B, G, T, V = 3, 4, 5, 7
CLIPS = {"clip_low": 0.2, "clip_high": 0.28}


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ragged_mask(seed: int) -> Tensor:
    lengths = torch.randint(1, T + 1, (B, G), generator=torch.Generator().manual_seed(seed))
    return torch.arange(T) < lengths[..., None]


def token_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """In double precision, unlike the package's own, so that the comparisons below are sharp."""
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Student and teacher logits, sampled tokens, mask, rewards."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, (B, G, T), generator=generator)
    rewards = torch.randint(0, 2, (B, G), generator=generator).float()
    rewards[0, :2] = torch.tensor([0.0, 1.0])
    return noise(seed, B, G, T, V), noise(seed + 1, B, G, T, V), ids, ragged_mask(seed), rewards


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_teacher_equal_to_student_gives_zero_opd_gradient(seed: int) -> None:
    start, _, ids, mask, _ = case(seed)
    student = start.clone().requires_grad_()
    own = objectives.token_log_probs(student, ids)
    credit = objectives.opd_advantages(own, objectives.token_log_probs(start, ids), mask)
    objectives.policy_loss(own, own.detach(), credit, mask, **CLIPS).loss.backward()
    assert student.grad is not None
    assert not student.grad.any()
    student.grad = None
    objectives.token_mean(objectives.reverse_kl_full_vocab(student, start), mask).backward()
    assert float(student.grad.abs().max()) < 1e-7


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_mixture_equals_its_ends(seed: int) -> None:
    start, other, ids, mask, rewards = case(seed)
    own, teacher = (objectives.token_log_probs(logits, ids) for logits in (start, other))
    opd, rlvr = objectives.opd_advantages(own, teacher, mask), objectives.rlvr_advantages(rewards, mask)
    assert torch.equal(objectives.mixed_advantages(opd, rlvr, alpha=1.0), opd)
    assert torch.equal(objectives.mixed_advantages(opd, rlvr, alpha=0.0), rlvr)


def test_mean_gradient_of_the_sampled_estimator_is_the_exact_gradient() -> None:
    """Every token of a seven-token vocabulary, weighted by its probability: no sampling at all."""
    for seed in range(10):
        student, teacher = noise(seed, V).requires_grad_(), noise(seed + 100, V)
        ids, everything = torch.arange(V), torch.ones(1, dtype=torch.bool)
        probabilities = student.detach().softmax(-1)
        mean = torch.zeros(V, dtype=torch.float64)
        for token in range(V):
            own = token_log_probs(student[None], ids[token : token + 1])
            r = objectives.reverse_kl_sampled(own, token_log_probs(teacher[None], ids[token : token + 1]))
            loss = objectives.policy_loss(own, own.detach(), -r, everything, **CLIPS).loss
            mean += probabilities[token] * torch.autograd.grad(loss, student)[0]
        exact = torch.autograd.grad(
            (student.softmax(-1) * (student.log_softmax(-1) - teacher.log_softmax(-1))).sum(), student
        )
        torch.testing.assert_close(mean, exact[0], rtol=1e-9, atol=1e-12)
        package = torch.autograd.grad(objectives.reverse_kl_full_vocab(student[None], teacher[None]).sum(), student)
        torch.testing.assert_close(package[0], exact[0], rtol=1e-4, atol=1e-6)


def test_mean_of_the_sampled_term_is_the_reverse_kl() -> None:
    student, teacher = noise(1, V), noise(2, V)
    every = objectives.reverse_kl_sampled(student.log_softmax(-1), teacher.log_softmax(-1))
    mean = (student.softmax(-1) * every).sum()
    torch.testing.assert_close(mean.float(), objectives.reverse_kl_full_vocab(student[None], teacher[None])[0])


def losses_of(seed: int) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Every objective as a function of the student's logits, its old log-probabilities and the mask."""
    _, teacher, ids, _, rewards = case(seed)

    def policy(logits: Tensor, old: Tensor, mask: Tensor, alpha: float | None) -> Tensor:
        own = objectives.token_log_probs(logits, ids)
        opd = objectives.opd_advantages(old, objectives.token_log_probs(teacher, ids), mask)
        rlvr = objectives.rlvr_advantages(rewards, mask)
        credit = rlvr if alpha is None else objectives.mixed_advantages(opd, rlvr, alpha=alpha)
        return objectives.policy_loss(own, old, credit, mask, **CLIPS).loss

    return {
        "sft": lambda x, old, mask: objectives.sft_loss(objectives.token_log_probs(x, ids), mask),
        "opd": lambda x, old, mask: policy(x, old, mask, 1.0),
        "rlvr": lambda x, old, mask: policy(x, old, mask, None),
        "mixed": lambda x, old, mask: policy(x, old, mask, 0.25),
        "full_vocab": lambda x, old, mask: objectives.token_mean(objectives.reverse_kl_full_vocab(x, teacher), mask),
    }


@pytest.mark.parametrize("objective", ["sft", "opd", "rlvr", "mixed", "full_vocab"])
@pytest.mark.parametrize("garbage", [0.0, 50.0, float("inf"), float("nan")])
def test_masked_positions_never_matter(objective: str, garbage: float) -> None:
    """Neither to the loss nor to any gradient, whatever stands there in the old log-probabilities."""
    start, _, ids, mask, _ = case(5)
    loss_of = losses_of(5)[objective]
    old = objectives.token_log_probs(start, ids) + 0.05 * noise(9, B, G, T).float()
    clean = start.clone().requires_grad_()
    loss_of(clean, old, mask).backward()
    hidden = ~mask
    changed = torch.where(hidden[..., None], noise(6, B, G, T, V) * 30, start).requires_grad_()
    loss = loss_of(changed, old.masked_fill(hidden, garbage), mask)
    loss.backward()
    torch.testing.assert_close(loss.detach(), loss_of(start, old, mask).detach(), rtol=1e-6, atol=1e-7)
    assert clean.grad is not None
    assert changed.grad is not None
    assert not changed.grad[hidden].any()
    assert not clean.grad[hidden].any()
    torch.testing.assert_close(changed.grad[mask], clean.grad[mask], rtol=1e-6, atol=1e-9)


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_grpo_credit_is_centred_shared_and_blind_to_the_scale_of_rewards(seed: int) -> None:
    *_, rewards = case(seed)
    everything = torch.ones(B, G, T, dtype=torch.bool)
    credit = objectives.rlvr_advantages(rewards, everything)
    assert torch.equal(credit, credit[..., :1].expand(B, G, T))
    assert float(credit.sum(1).abs().max()) < 1e-5
    torch.testing.assert_close(objectives.rlvr_advantages(10 * rewards - 3, everything), credit, rtol=1e-4, atol=1e-4)


# --- a whole update: the learner of the training loop on a tiny model ------------------------------------------------


def recipe(objective: str, micro_batches: int, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": objective, "profile": "tiny", "objective": objective, "start": "anchor", "steps": 1,
        "learning_rate": 1.0e-3, "mixture": {"sum": [1]}, "checkpoints": (1,), "grad_clip": 1.0e9,
        "micro_batches": micro_batches, "probe_prompts": 1, **changes,
    }  # fmt: skip
    return Recipe(**values)


def rollouts_of(seed: int) -> Rollouts:
    generator = torch.Generator().manual_seed(seed)
    prompt_mask = torch.arange(6) >= torch.tensor([0, 3, 1])[:, None]
    prompts = torch.randint(2, 50, (B, 6), generator=generator) * prompt_mask
    mask = ragged_mask(seed)
    ids = torch.randint(2, 50, (B, G, T), generator=generator) * mask
    return Rollouts(prompts, prompt_mask, ids, mask, -torch.rand(B, G, T, generator=generator) * mask)


def updated(
    objective: str, micro_batches: int, rewards: Tensor, **changes: object
) -> tuple[list[Tensor], dict[str, float]]:
    """Gradients and log of one update on fixed completions whose ratios differ from 1."""
    student, teacher = build_model("tiny", 0), build_model("tiny", 1).eval()
    learner = Learner(recipe(objective, micro_batches, **changes), 0, student, build_tokenizer(), teacher)
    rollouts = rollouts_of(4)
    own = Rollouts(
        rollouts.prompt_ids, rollouts.prompt_mask, rollouts.completion_ids, rollouts.mask, rollouts.log_probs - 3.8
    )
    batch = Batch(own, own.mask.float(), rewards) if objective == "sft" else score(learner, own, rewards)
    log = apply_update(learner, batch)
    return [p.grad.clone() for p in student.parameters() if p.grad is not None], log


@pytest.fixture
def rewards() -> Tensor:
    return torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("objective", "changes"),
    [("sft", {}), ("opd", {}), ("opd", {"estimator": "full_vocab"}), ("rlvr", {}), ("mixed", {"alpha": 0.5})],
)
def test_micro_batches_sum_to_the_full_batch(objective: str, changes: dict[str, Any], rewards: Tensor) -> None:
    whole, log = updated(objective, 1, rewards, **changes)
    for parts in (2, 3):
        split, split_log = updated(objective, parts, rewards, **changes)
        for a, b in zip(whole, split, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        for key in ("loss", "entropy", "clip_rate", "grad_norm", "reward", "completion_length"):
            assert split_log[key] == pytest.approx(log[key], rel=1e-4, abs=1e-6), key


def test_equal_reward_groups_neither_pull_nor_count(rewards: Tensor) -> None:
    """The update of all three groups is the update of the two informative ones alone, denominator included."""
    student = build_model("tiny", 0)
    learner = Learner(recipe("rlvr", 1), 0, student, build_tokenizer())
    some = rollouts_of(4).select([0, 2])
    alone = Rollouts(some.prompt_ids, some.prompt_mask, some.completion_ids, some.mask, some.log_probs - 3.8)
    apply_update(learner, score(learner, alone, rewards[[0, 2]]))
    together, _ = updated("rlvr", 1, rewards)
    for p, gradient in zip(student.parameters(), together, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)


def test_no_informative_group_gives_no_gradient() -> None:
    gradients, log = updated("rlvr", 2, torch.ones(B, G))
    assert not any(gradient.any() for gradient in gradients)
    assert log["loss"] == log["grad_norm"] == 0.0


@pytest.mark.parametrize("estimator", ["sampled", "full_vocab"])
def test_an_update_with_the_student_as_teacher_has_no_gradient(estimator: str, rewards: Tensor) -> None:
    student = build_model("tiny", 0)
    learner = Learner(
        recipe("opd", 2, estimator=estimator), 0, student, build_tokenizer(), build_model("tiny", 0).eval()
    )
    rollouts = rollouts_of(4)
    own = token_scores(learner.student, rollouts).log_probs.detach()
    same = Rollouts(rollouts.prompt_ids, rollouts.prompt_mask, rollouts.completion_ids, rollouts.mask, own)
    log = apply_update(learner, score(learner, same, rewards))
    assert log["grad_norm"] < 1e-6
    assert abs(log["loss"]) < 1e-6


def test_mixture_at_its_ends_is_the_update_of_its_ends() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])  # all informative
    for alpha, end in ((1.0, "opd"), (0.0, "rlvr")):
        mixed, _ = updated("mixed", 1, rewards, alpha=alpha)
        pure, _ = updated(end, 1, rewards)
        for a, b in zip(mixed, pure, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
