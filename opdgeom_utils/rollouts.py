"""Prompts in, completions out: batched sampling with a key-value cache, and scoring of what was sampled.

Axes: ``B`` prompts, ``G`` completions per prompt, ``P`` prompt tokens (padded on the left), ``T`` completion tokens
(padded on the right), ``V`` vocabulary. The ``G`` completions of a prompt share its tokens, so the prompt is computed
once, in sampling and in scoring alike: ``P + G * T`` tokens instead of ``G * (P + T)``.
"""

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportCallIssue=false
# (the cache layers of transformers are typed more loosely than they are; a tokenizer may lack an end token, ours not)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Rollouts:
    """Completions of a batch of prompts, with the log-probability each token had when it was sampled."""

    prompt_ids: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    completion_ids: Int[Tensor, "B G T"]
    mask: Bool[Tensor, "B G T"]
    log_probs: Float[Tensor, "B G T"]

    def select(self, rows: Sequence[int]) -> Rollouts:
        """Return the prompts ``rows`` with their completions, cut to the longest of them."""
        index = torch.as_tensor(rows, device=self.mask.device)
        prompt_mask, mask = self.prompt_mask[index], self.mask[index]
        start = self.prompt_mask.shape[1] - int(prompt_mask.sum(1).max())
        end = max(1, int(mask.sum(-1).max()))
        return Rollouts(
            self.prompt_ids[index, start:],
            prompt_mask[:, start:],
            self.completion_ids[index, :, :end],
            mask[..., :end],
            self.log_probs[index, :, :end],
        )


def encode_prompts(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """Tokenize prompts, padded on the left; the mask is true on real tokens."""
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    return batch["input_ids"].to(device), batch["attention_mask"].bool().to(device)


def encode_pairs(
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    completions: Sequence[str],
    device: torch.device | str = "cpu",
) -> Rollouts:
    """Offline demonstrations in the same shape as rollouts: one completion per prompt, log-probabilities 0."""
    prompt_ids, prompt_mask = encode_prompts(tokenizer, prompts, device)
    batch = tokenizer(list(completions), return_tensors="pt", padding=True, padding_side="right")
    ids, mask = batch["input_ids"].to(device), batch["attention_mask"].bool().to(device)
    return Rollouts(
        prompt_ids, prompt_mask, ids[:, None], mask[:, None], torch.zeros(ids[:, None].shape, device=device)
    )


def _positions(mask: Tensor) -> Tensor:
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def _repeat_cache(cache: DynamicCache, times: int) -> DynamicCache:
    pairs = [
        (layer.keys.repeat_interleave(times, 0), layer.values.repeat_interleave(times, 0)) for layer in cache.layers
    ]
    return DynamicCache(ddp_cache_data=pairs)


def _select_cache(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    return DynamicCache(ddp_cache_data=[(layer.keys[rows], layer.values[rows]) for layer in cache.layers])


def completion_logits(model: PreTrainedModel, rollouts: Rollouts) -> Float[Tensor, "B G T V"]:
    """Logits that predict each completion token, from one pass over the prompts and one over the completions.

    Equal to a plain forward over every prompt and completion glued together (a test checks it token for token).
    Differentiable. ``logits[b, g, t]`` predicts ``completion_ids[b, g, t]``.
    """
    b, g, t = rollouts.completion_ids.shape
    p = rollouts.prompt_ids.shape[1]
    if g == 1:
        ids = torch.cat([rollouts.prompt_ids, rollouts.completion_ids[:, 0]], dim=1)
        mask = torch.cat([rollouts.prompt_mask, rollouts.mask[:, 0]], dim=1)
        hidden = model.model(input_ids=ids, attention_mask=mask, position_ids=_positions(mask), use_cache=False)[0]
        return model.lm_head(hidden[:, p - 1 : -1])[:, None]
    positions = _positions(rollouts.prompt_mask)
    prefix = model.model(
        input_ids=rollouts.prompt_ids,
        attention_mask=rollouts.prompt_mask,
        position_ids=positions,
        past_key_values=DynamicCache(),
        use_cache=True,
    )
    last = prefix[0][:, -1:].repeat_interleave(g, 0)
    if t > 1:
        mask = torch.cat([rollouts.prompt_mask.repeat_interleave(g, 0), rollouts.mask.flatten(0, 1)], dim=1)
        hidden = model.model(
            input_ids=rollouts.completion_ids.flatten(0, 1)[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=_positions(mask)[:, p:-1],
            past_key_values=_repeat_cache(prefix.past_key_values, g),
            use_cache=True,
        )[0]
        last = torch.cat([last, hidden], dim=1)
    return model.lm_head(last).unflatten(0, (b, g))


@torch.no_grad()
def roll_out(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    group_size: int = 1,
    max_new_tokens: int,
    generator: torch.Generator | None,
) -> Rollouts:
    """Let a model write ``group_size`` completions for each prompt at temperature 1; greedy without a ``generator``.

    A completion ends with the tokenizer's end token, which is part of it. Rows that have ended leave the batch. The
    result is the same on every call with a generator in the same state.
    """
    device = next(model.parameters()).device
    prompt_ids, prompt_mask = encode_prompts(tokenizer, prompts, device)
    n = len(prompts) * group_size
    out = torch.full((n, max_new_tokens), tokenizer.pad_token_id, dtype=torch.long, device=device)
    log_probs = torch.zeros((n, max_new_tokens), device=device)
    length = torch.full((n,), max_new_tokens, device=device)
    step = model(
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        position_ids=_positions(prompt_mask),
        past_key_values=DynamicCache(),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = _repeat_cache(step.past_key_values, group_size)
    logits = step.logits[:, -1].repeat_interleave(group_size, 0)
    mask = prompt_mask.repeat_interleave(group_size, 0)
    rows = torch.arange(n, device=device)
    for t in range(max_new_tokens):
        token, log_prob = _choose(logits, generator)
        out[rows, t], log_probs[rows, t] = token, log_prob
        ended = token == tokenizer.eos_token_id
        length[rows[ended]] = t + 1
        if bool(ended.all()) or t + 1 == max_new_tokens:
            break
        if bool(ended.any()):
            alive = (~ended).nonzero()[:, 0]
            rows, token, mask, cache = rows[alive], token[alive], mask[alive], _select_cache(cache, alive)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        step = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=mask.long().sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
        logits, cache = step.logits[:, -1], step.past_key_values
    end = int(length.max())
    keep = torch.arange(end, device=device) < length[:, None]
    shape = (len(prompts), group_size)
    return Rollouts(
        prompt_ids,
        prompt_mask,
        out[:, :end].unflatten(0, shape),
        keep.unflatten(0, shape),
        log_probs[:, :end].unflatten(0, shape),
    )


def _choose(logits: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    if generator is None:
        token = log_probs.argmax(-1)
    else:  # the Gumbel trick: one draw per row and token, no cumulative sums
        noise = torch.empty_like(log_probs).exponential_(generator=generator)
        token = (log_probs - noise.log()).argmax(-1)
    return token, log_probs.gather(-1, token[:, None])[:, 0]


def decode_completions(tokenizer: PreTrainedTokenizerFast, rollouts: Rollouts) -> list[list[str]]:
    """Completions as text, ``[B][G]``, each with its end mark where it has one."""
    table = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) if len(tokenizer) < 1000 else None
    result = []
    for ids, mask in zip(rollouts.completion_ids.tolist(), rollouts.mask.tolist(), strict=True):
        kept = [[i for i, m in zip(row, keep, strict=True) if m] for row, keep in zip(ids, mask, strict=True)]
        result.append(["".join(table[i] for i in row) for row in kept] if table else tokenizer.batch_decode(kept))
    return result
