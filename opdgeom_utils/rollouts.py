"""Prompts in, completions out: batched sampling with a key-value cache.

Axes: ``B`` prompts, ``G`` completions per prompt, ``P`` prompt tokens (padded on the left), ``T`` completion tokens
(padded on the right), ``V`` vocabulary. The ``G`` completions of a prompt share its tokens, so the prompt is computed
once, here and in :mod:`opdgeom_utils.scoring`: ``P + G * T`` tokens instead of ``G * (P + T)``.
"""

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportUnhashable=false
# pyright: reportReturnType=false
# (the cache layers of transformers are typed more loosely than they are; a tokenizer may lack an end token, none here)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from opdgeom_utils.problems import Written


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
    """Tokenize prompts, padded on the left; the mask is true on real tokens. A chat turn brings its own marks."""
    marked = bool(tokenizer.bos_token) and all(prompt.startswith(tokenizer.bos_token) for prompt in prompts)
    batch = tokenizer(
        list(prompts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=not marked
    )
    return batch["input_ids"].to(device), batch["attention_mask"].bool().to(device)


def encode_pairs(
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    completions: Sequence[str],
    device: torch.device | str = "cpu",
) -> Rollouts:
    """Offline demonstrations in the same shape as rollouts: one completion per prompt, log-probabilities 0."""
    prompt_ids, prompt_mask = encode_prompts(tokenizer, prompts, device)
    batch = tokenizer(
        list(completions), return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
    )
    ids, mask = batch["input_ids"].to(device), batch["attention_mask"].bool().to(device)
    return Rollouts(
        prompt_ids, prompt_mask, ids[:, None], mask[:, None], torch.zeros(ids[:, None].shape, device=device)
    )


def positions(mask: Tensor) -> Tensor:
    """Place of every token among the real ones of its row."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def repeat_cache(cache: DynamicCache, times: int) -> DynamicCache:
    """Give every row's keys and values ``times`` times."""
    pairs = [
        (layer.keys.repeat_interleave(times, 0), layer.values.repeat_interleave(times, 0)) for layer in cache.layers
    ]
    return DynamicCache(ddp_cache_data=pairs)


def _select_cache(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    return DynamicCache(ddp_cache_data=[(layer.keys[rows], layer.values[rows]) for layer in cache.layers])


@torch.no_grad()
def roll_out(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    group_size: int = 1,
    max_new_tokens: int,
    generator: torch.Generator | None,
    vocabulary: int | None = None,
) -> Rollouts:
    """Let a model write ``group_size`` completions for each prompt at temperature 1; greedy without a ``generator``.

    A completion ends with an end token, the tokenizer's or one of the model's own, which is part of it. Rows that have
    ended leave the batch. The result is the same on every call with a generator in the same state. ``vocabulary`` cuts
    the choice to the first so many tokens.
    """
    device = next(model.parameters()).device
    prompt_ids, prompt_mask = encode_prompts(tokenizer, prompts, device)
    n = len(prompts) * group_size
    out = torch.full((n, max_new_tokens), tokenizer.pad_token_id, dtype=torch.long, device=device)
    log_probs = torch.zeros((n, max_new_tokens), device=device)
    length = torch.full((n,), max_new_tokens, device=device)
    ends = torch.tensor(sorted(end_tokens(model, tokenizer)), device=device)
    step = model(
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        position_ids=positions(prompt_mask),
        past_key_values=DynamicCache(),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = repeat_cache(step.past_key_values, group_size)
    logits = step.logits[:, -1].repeat_interleave(group_size, 0)
    mask = prompt_mask.repeat_interleave(group_size, 0)
    rows = torch.arange(n, device=device)
    for t in range(max_new_tokens):
        token, log_prob = _choose(logits[:, :vocabulary], generator)
        out[rows, t], log_probs[rows, t] = token, log_prob
        ended = torch.isin(token, ends)
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


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Return every token that ends a completion: the tokenizer's, and those of the model's generation settings."""
    settings = model.generation_config.eos_token_id if model.generation_config else None
    own = settings if isinstance(settings, list) else [settings]
    return {token for token in (tokenizer.eos_token_id, *own) if token is not None}


def decode_completions(
    tokenizer: PreTrainedTokenizerFast, rollouts: Rollouts, ends: set[int] | None = None
) -> list[list[Written]]:
    """Completions as text, ``[B][G]``, without their end; ``ends`` are the end tokens (default: the tokenizer's)."""
    ends = ends or {tokenizer.eos_token_id}
    table = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) if len(tokenizer) < 1000 else None
    result = []
    for ids, mask in zip(rollouts.completion_ids.tolist(), rollouts.mask.tolist(), strict=True):
        row = []
        for tokens, keep in zip(ids, mask, strict=True):
            kept = [i for i, m in zip(tokens, keep, strict=True) if m]
            ended = bool(kept) and kept[-1] in ends
            kept = kept[:-1] if ended else kept
            text = "".join(table[i] for i in kept) if table else str(tokenizer.decode(kept, skip_special_tokens=True))
            row.append(Written(text, ended))
        result.append(row)
    return result
