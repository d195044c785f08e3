"""Sampling and scoring against the plainest possible reference: one unpadded forward pass per completion."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from opdgeom_utils.models import build_model, build_tokenizer
from opdgeom_utils.rollouts import Rollouts, decode_completions, encode_pairs, encode_prompts, roll_out
from opdgeom_utils.scoring import completion_logits

PROMPTS = ["sum 47+8-5=", "gcd 84,36=", "sort 31="]
END = 1
Sampler = Callable[..., Rollouts]


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    """A tiny model blown up, so that its choices depend on all of the context and are far from uniform."""
    made = build_model("tiny", 3).eval()
    with torch.no_grad():
        for name, parameter in made.model.layers.named_parameters():
            parameter.mul_(12.0 if name.endswith("proj.weight") else 1.0)
        made.model.norm.weight.mul_(12.0)
    return made


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def draw(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Sampler:
    def drawn(
        prompts: list[str] = PROMPTS, seed: int | None = 0, group_size: int = 16, max_new_tokens: int = 9
    ) -> Rollouts:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return roll_out(
            model, tokenizer, prompts, group_size=group_size, max_new_tokens=max_new_tokens, generator=generator
        )

    return drawn


@torch.no_grad()
def plain_logits(model: Qwen3ForCausalLM, rollouts: Rollouts, b: int, g: int) -> Tensor:
    """Logits that predict completion (b, g): no cache, no padding, no batch."""
    prompt = rollouts.prompt_ids[b][rollouts.prompt_mask[b]]
    completion = rollouts.completion_ids[b, g][rollouts.mask[b, g]]
    logits = model(torch.cat([prompt, completion])[None], use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1]


def test_sampled_log_probs_match_a_plain_forward_token_for_token(draw: Sampler, model: Qwen3ForCausalLM) -> None:
    rollouts = draw()
    lengths = rollouts.mask.sum(-1)
    assert int(lengths.min()) < int(lengths.max()), "the case must have rows that end early"
    for b in range(3):
        for g in range(16):
            ids, kept = rollouts.completion_ids[b, g], rollouts.mask[b, g]
            expected = plain_logits(model, rollouts, b, g).log_softmax(-1).gather(-1, ids[kept][:, None])[:, 0]
            torch.testing.assert_close(rollouts.log_probs[b, g][kept], expected, rtol=1e-4, atol=1e-5)
            assert not rollouts.log_probs[b, g][~kept].any()


def test_greedy_tokens_are_the_argmax_of_a_plain_forward(draw: Sampler, model: Qwen3ForCausalLM) -> None:
    rollouts = draw(seed=None, group_size=1, max_new_tokens=12)
    for b in range(3):
        kept = rollouts.completion_ids[b, 0][rollouts.mask[b, 0]]
        assert kept.tolist() == plain_logits(model, rollouts, b, 0).argmax(-1).tolist()


def test_a_completion_ends_with_its_first_end_token_or_is_full(draw: Sampler) -> None:
    rollouts = draw()
    ended = 0
    for ids, kept in zip(rollouts.completion_ids.flatten(0, 1), rollouts.mask.flatten(0, 1), strict=True):
        length = int(kept.sum())
        assert kept[:length].all(), "a completion has no gap"
        assert END not in ids[: length - 1].tolist()
        assert ids[length - 1] == END or length == 9
        assert not ids[length:].any(), "padding after the end"
        ended += int(ids[length - 1] == END)
    assert 0 < ended < 48, "the case must have both kinds"


@pytest.mark.parametrize("group_size", [1, 3])
def test_completion_logits_equal_a_plain_forward(draw: Sampler, model: Qwen3ForCausalLM, group_size: int) -> None:
    rollouts = draw(group_size=group_size)
    with torch.no_grad():
        logits = completion_logits(model, rollouts)
    assert logits.shape == (*rollouts.completion_ids.shape, model.config.vocab_size)
    for b in range(3):
        for g in range(group_size):
            expected = plain_logits(model, rollouts, b, g)
            torch.testing.assert_close(logits[b, g][rollouts.mask[b, g]], expected, rtol=1e-4, atol=1e-4)


def test_completion_logits_of_single_tokens(draw: Sampler, model: Qwen3ForCausalLM) -> None:
    rollouts = draw(max_new_tokens=1)
    assert rollouts.completion_ids.shape == (3, 16, 1)
    expected = torch.stack([plain_logits(model, rollouts, b, 0) for b in range(3)])
    torch.testing.assert_close(completion_logits(model, rollouts)[:, 0].detach(), expected, rtol=1e-4, atol=1e-4)


def test_shared_prompts_have_the_gradient_of_separate_ones(draw: Sampler) -> None:
    """One pass over the prompt for the group, or one for each completion: the same gradient."""
    rollouts = draw(group_size=3)
    alone = Rollouts(
        rollouts.prompt_ids.repeat_interleave(3, 0), rollouts.prompt_mask.repeat_interleave(3, 0),
        rollouts.completion_ids.flatten(0, 1)[:, None], rollouts.mask.flatten(0, 1)[:, None],
        rollouts.log_probs.flatten(0, 1)[:, None],
    )  # fmt: skip
    gradients = []
    for case in (rollouts, alone):
        model = build_model("tiny", 3)
        scores = completion_logits(model, case).log_softmax(-1).gather(-1, case.completion_ids[..., None])[..., 0]
        (scores * case.mask).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for together, separate in zip(*gradients, strict=True):
        torch.testing.assert_close(together, separate, rtol=1e-3, atol=1e-4)


def test_left_padding_of_a_prompt_changes_nothing(draw: Sampler, model: Qwen3ForCausalLM) -> None:
    padded = draw(["sum 47+8-5=", "sort 31="], seed=None, group_size=2)
    alone = draw(["sort 31="], seed=None, group_size=2)
    assert bool((~padded.prompt_mask[1]).any())
    end = min(padded.mask.shape[-1], alone.mask.shape[-1])
    assert padded.completion_ids[1, :, :end].tolist() == alone.completion_ids[0, :, :end].tolist()
    torch.testing.assert_close(padded.log_probs[1, :, :end], alone.log_probs[0, :, :end], rtol=1e-4, atol=1e-5)


def test_padding_side_of_the_tokenizer_does_not_matter(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    other = build_tokenizer()
    other.padding_side = "right"
    for left, right in zip(encode_prompts(tokenizer, PROMPTS), encode_prompts(other, PROMPTS), strict=True):
        assert torch.equal(left, right)
    completions = ["55;50$", "12;0;12$", "13$"]
    first, second = (encode_pairs(kind, PROMPTS, completions) for kind in (tokenizer, other))
    with torch.no_grad():
        assert torch.equal(completion_logits(model, first), completion_logits(model, second))


def test_contents_of_padding_do_not_matter(draw: Sampler, model: Qwen3ForCausalLM) -> None:
    rollouts = draw(group_size=2)
    garbage = Rollouts(
        rollouts.prompt_ids.masked_fill(~rollouts.prompt_mask, 7), rollouts.prompt_mask,
        rollouts.completion_ids.masked_fill(~rollouts.mask, 9), rollouts.mask, rollouts.log_probs,
    )  # fmt: skip
    with torch.no_grad():
        before, after = completion_logits(model, rollouts), completion_logits(model, garbage)
    torch.testing.assert_close(before[rollouts.mask], after[rollouts.mask], rtol=1e-5, atol=1e-5)


def test_selected_prompts_keep_their_logits(draw: Sampler, model: Qwen3ForCausalLM) -> None:
    rollouts = draw(group_size=2)
    part = rollouts.select([2, 1])
    assert part.prompt_ids.shape[1] == len(PROMPTS[1])
    assert part.mask.shape[-1] == int(rollouts.mask[[2, 1]].sum(-1).max())
    with torch.no_grad():
        whole, selected = completion_logits(model, rollouts), completion_logits(model, part)
    for row, b in enumerate([2, 1]):
        kept = part.mask[row]
        assert torch.equal(part.completion_ids[row][kept], rollouts.completion_ids[b][rollouts.mask[b]])
        torch.testing.assert_close(selected[row][kept], whole[b][rollouts.mask[b]], rtol=1e-4, atol=1e-4)


def test_sampling_frequencies_match_the_probabilities(draw: Sampler, model: Qwen3ForCausalLM) -> None:
    """First tokens of 6,000 samples: every frequency within five standard errors, and the chi-square unremarkable."""
    n = 6000
    rollouts = draw([PROMPTS[0]], seed=1, group_size=n, max_new_tokens=1)
    expected = plain_logits(model, rollouts, 0, 0)[0].softmax(-1)
    counts = torch.bincount(rollouts.completion_ids.flatten(), minlength=len(expected))
    error = (expected * (1 - expected) / n).sqrt()
    assert bool(((counts / n - expected).abs() <= 5 * error + 1 / n).all())
    often = expected * n >= 5
    chi_square = float(((counts - n * expected).square() / (n * expected))[often].sum())
    degrees = int(often.sum()) - 1
    assert degrees > 5
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5


def test_same_generator_state_same_rollouts(draw: Sampler) -> None:
    first, again, other = draw(seed=2), draw(seed=2), draw(seed=3)
    assert torch.equal(first.completion_ids, again.completion_ids)
    assert torch.equal(first.log_probs, again.log_probs)
    assert first.completion_ids.shape != other.completion_ids.shape or not torch.equal(
        first.completion_ids, other.completion_ids
    )


def test_decoding_gives_the_text_up_to_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = encode_pairs(tokenizer, PROMPTS, ["55;50$", "12;0;12", "$"])
    assert decode_completions(tokenizer, pairs) == [[("55;50", True)], [("12;0;12", False)], [("", True)]]
    assert pairs.mask.sum(-1).flatten().tolist() == [6, 7, 1]
    assert not pairs.log_probs.any()
