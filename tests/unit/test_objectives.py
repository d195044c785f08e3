"""Each objective on a case small enough to work out on paper."""

import math

import pytest
import torch

from opdgeom_utils import objectives

LOG2 = math.log(2.0)


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def close(found: torch.Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=1e-5, atol=1e-6)


def test_token_log_probs_by_hand() -> None:
    logits = torch.tensor([[[0.0, LOG2, 0.0], [0.0, 0.0, 0.0]]])  # probabilities 1/4, 1/2, 1/4 and thirds
    close(objectives.token_log_probs(logits, torch.tensor([[1, 2]])).exp(), [[0.5, 1 / 3]])


def test_sft_is_cross_entropy() -> None:
    # two real tokens of probability 1/2 and 1/8: (log 2 + 3 log 2) / 2 = 2 log 2
    log_probs, mask = logs(0.5, 0.125, 0.9), torch.tensor([True, True, False])
    close(objectives.sft_loss(log_probs, mask), 2 * LOG2)
    close(objectives.sft_advantages(mask), [1.0, 1.0, 0.0])
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.5, 0.1]])
    ids = torch.tensor([2, 0])
    own = objectives.sft_loss(objectives.token_log_probs(logits, ids), torch.ones(2, dtype=torch.bool))
    close(own, torch.nn.functional.cross_entropy(logits, ids))


def test_opd_credit_is_minus_r() -> None:
    # student 1/2, teacher 1/4: r = log 2; student 1/8, teacher 1/2: r = -2 log 2; the third is masked
    mask = torch.tensor([True, True, False])
    credit = objectives.opd_advantages(logs(0.5, 0.125, 0.5), logs(0.25, 0.5, 0.1), mask)
    close(credit, [-LOG2, 2 * LOG2, 0.0])


def test_full_vocabulary_reverse_kl_by_hand() -> None:
    # student (1/2, 1/2), teacher (1/4, 3/4): 1/2 log 2 + 1/2 log 2/3 = 1/2 log 4/3
    found = objectives.reverse_kl_full_vocab(logs(0.5, 0.5)[None], logs(0.25, 0.75)[None])
    close(found, [0.5 * math.log(4 / 3)])


def test_grpo_credit_by_hand() -> None:
    # rewards 1, 0, 0, 0: mean 1/4, sample standard deviation sqrt((9 + 3) / 16 / 3) = 1/2, so 3/2 and three times -1/2
    mask = torch.ones(1, 4, 2, dtype=torch.bool)
    mask[0, 1, 1] = False
    credit = objectives.rlvr_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), mask)
    close(credit[0, :, 0], [1.5, -0.5, -0.5, -0.5])
    close(credit[0, :, 1], [1.5, 0.0, -0.5, -0.5])


def test_groups_of_equal_reward_get_nothing() -> None:
    rewards = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    assert objectives.informative_groups(rewards).tolist() == [False, False, True]
    credit = objectives.rlvr_advantages(rewards, torch.ones(3, 3, 1, dtype=torch.bool))
    assert not credit[:2].any()
    close(credit[2].sum(), 0.0)


def test_a_group_of_one_gets_nothing() -> None:
    rewards = torch.tensor([[1.0], [0.0]])
    assert not objectives.rlvr_advantages(rewards, torch.ones(2, 1, 3, dtype=torch.bool)).any()
    assert not objectives.informative_groups(rewards).any()


def test_mixture_by_hand_and_its_range() -> None:
    close(objectives.mixed_advantages(torch.tensor([2.0]), torch.tensor([-1.0]), alpha=0.75), [1.25])
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="alpha"):
            objectives.mixed_advantages(torch.zeros(1), torch.zeros(1), alpha=alpha)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, 0.0),
        (1.2, 1.0, -1.2, 0.0),
        (2.0, 1.0, -1.28, 1.0),  # rose too far with a positive credit: held at 1 + 0.28
        (2.0, -1.0, 2.0, 0.0),  # rose with a negative credit: pushed back in full
        (0.5, -1.0, 0.8, 1.0),  # fell too far with a negative credit: held at 1 - 0.2
        (0.5, 1.0, -0.5, 0.0),  # fell with a positive credit: pushed back in full
    ],
)
def test_clipped_surrogate_by_hand(ratio: float, advantage: float, loss: float, clipped: float) -> None:
    new = torch.tensor([math.log(ratio)], requires_grad=True)
    result = objectives.policy_loss(new, torch.zeros(1), torch.tensor([advantage]), torch.tensor([True]))
    close(result.loss.detach(), loss)
    close(result.clip_rate, clipped)
    result.loss.backward()
    assert new.grad is not None
    close(new.grad, [0.0 if clipped else -advantage * ratio])


def test_loss_is_the_mean_over_tokens_of_all_completions() -> None:
    # one token in the first completion, three in the second: every token weighs a quarter
    mask = torch.tensor([[True, False, False], [True, True, True]])
    log_probs = logs(0.5, 0.5, 0.5, 0.25, 0.25, 0.25).view(2, 3)
    close(objectives.sft_loss(log_probs, mask), (1 * LOG2 + 3 * 2 * LOG2) / 4)
    close(objectives.token_mean(torch.ones(2, 3), mask, total=8.0), 0.5)


def test_nothing_kept_gives_zero_and_no_nan() -> None:
    none = torch.zeros(2, dtype=torch.bool)
    log_probs = torch.zeros(2, requires_grad=True)
    loss = objectives.policy_loss(log_probs, torch.zeros(2), torch.ones(2), none, total=0.0).loss
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert log_probs.grad is not None
    assert not log_probs.grad.any()


def test_entropy_ends() -> None:
    close(objectives.entropy(torch.tensor([[0.0, 0.0, 0.0, 0.0], [1000.0, 0.0, 0.0, 0.0]])), [math.log(4.0), 0.0])
