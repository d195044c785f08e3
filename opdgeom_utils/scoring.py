"""What a model thinks of completions: log-probabilities, entropy and distance to another model, token by token.

Axes as in :mod:`opdgeom_utils.rollouts`. Logits are made of completion tokens only, and in pieces, so that a large
vocabulary never makes a full copy in fp32.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalCall=false
# (transformers types what a model returns more loosely than it is)
from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel

from opdgeom_utils.errors import RecipeError
from opdgeom_utils.rollouts import Rollouts, positions, repeat_cache

LOGITS_AT_ONCE = 2**26  # numbers of one piece of logits: 256 MB in fp32


def completion_states(model: PreTrainedModel, rollouts: Rollouts) -> Float[Tensor, "B G T H"]:
    """Last hidden states that predict each completion token, from one pass over the prompts and one over completions.

    Differentiable. ``states[b, g, t]`` predicts ``completion_ids[b, g, t]``.
    """
    b, g, t = rollouts.completion_ids.shape
    p, base = rollouts.prompt_ids.shape[1], model.base_model
    if g == 1 or model.is_activation_checkpointing:  # layers that are computed anew keep nothing to share
        prompt_ids, prompt_mask = (x.repeat_interleave(g, 0) for x in (rollouts.prompt_ids, rollouts.prompt_mask))
        ids = torch.cat([prompt_ids, rollouts.completion_ids.flatten(0, 1)], dim=1)
        mask = torch.cat([prompt_mask, rollouts.mask.flatten(0, 1)], dim=1)
        hidden = base(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)[0]
        return hidden[:, p - 1 : -1].unflatten(0, (b, g))
    prefix = base(
        input_ids=rollouts.prompt_ids,
        attention_mask=rollouts.prompt_mask,
        position_ids=positions(rollouts.prompt_mask),
        past_key_values=DynamicCache(),
        use_cache=True,
    )
    last = prefix[0][:, -1:].repeat_interleave(g, 0)
    if t > 1:
        mask = torch.cat([rollouts.prompt_mask.repeat_interleave(g, 0), rollouts.mask.flatten(0, 1)], dim=1)
        hidden = base(
            input_ids=rollouts.completion_ids.flatten(0, 1)[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions(mask)[:, p:-1],
            past_key_values=repeat_cache(prefix.past_key_values, g),
            use_cache=True,
        )[0]
        last = torch.cat([last, hidden], dim=1)
    return last.unflatten(0, (b, g))


def logits_of(
    model: PreTrainedModel, states: Float[Tensor, "*batch H"], vocabulary: int | None = None
) -> Float[Tensor, "*batch V"]:
    """Turn last hidden states into logits as the model's own head does: scaled or capped where its family is.

    ``vocabulary`` cuts them to the first so many tokens: those that two models with padded vocabularies share.
    :func:`check_head` tells whether a model's family is understood.
    """
    logits, config = model.get_output_embeddings()(states), model.config
    logits = logits * (getattr(config, "logit_scale", None) or 1.0)
    logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return (torch.tanh(logits / cap) * cap if cap else logits)[..., :vocabulary]


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Compare :func:`logits_of` with the model's own logits on three tokens.

    Raises
    ------
    RecipeError
        If they differ: the model's family does something between its last hidden state and its logits.
    """
    ids = torch.arange(1, 4, device=model.device)[None]
    own, ours = model(input_ids=ids).logits, logits_of(model, model.base_model(input_ids=ids)[0])
    reach = 1e-2 * float(own.nan_to_num().abs().max())
    if own.shape != ours.shape or not torch.allclose(own, ours, rtol=1e-2, atol=reach, equal_nan=True):
        raise RecipeError(
            f"{type(model).__name__} turns hidden states into logits in a way that is not known here; expected a head "
            "that is linear, scaled or capped. Its family must be added to rollouts.logits_of"
        )


def completion_logits(
    model: PreTrainedModel, rollouts: Rollouts, vocabulary: int | None = None
) -> Float[Tensor, "B G T V"]:
    """Logits that predict each completion token, all at once: for small vocabularies (:func:`token_scores` for any).

    Equal to a plain forward over every prompt and completion glued together (a test checks it token for token).
    """
    return logits_of(model, completion_states(model, rollouts), vocabulary)


class TokenScores(NamedTuple):
    """What is known of each completion token, in nats; padding has 0.

    ``kl`` is the reverse KL to the other model over the whole vocabulary, and ``other_log_probs`` what the other model
    gives to the token; both are zero without another model.
    """

    log_probs: Float[Tensor, "B G T"]
    entropy: Float[Tensor, "B G T"]
    kl: Float[Tensor, "B G T"]
    other_log_probs: Float[Tensor, "B G T"]


def token_scores(
    model: PreTrainedModel,
    rollouts: Rollouts,
    *,
    beside: PreTrainedModel | None = None,
    vocabulary: int | None = None,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> TokenScores:
    """Score every completion token, with logits of completion tokens only and never of more than some at once.

    Where they do not fit in one piece, a piece is computed anew for its gradient instead of being kept, so a vocabulary
    of 151,936 needs the memory of ``logits_at_once`` numbers, not of all tokens. Differentiable in ``log_probs`` and
    ``kl``; the other model is not differentiated.
    """
    with torch.no_grad():
        other = None if beside is None else completion_states(beside, rollouts)[rollouts.mask]
    states, ids = completion_states(model, rollouts)[rollouts.mask], rollouts.completion_ids[rollouts.mask]
    size = max(1, logits_at_once // (vocabulary or model.config.vocab_size))
    pieces = []
    for i in range(0, len(ids), size):
        theirs = None if other is None else other[i : i + size]
        inputs = (model, states[i : i + size], ids[i : i + size], beside, theirs, vocabulary)
        kept = len(ids) <= size or not torch.is_grad_enabled()
        pieces.append(_scores(*inputs) if kept else checkpoint(_scores, *inputs, use_reentrant=False))
    flat = [torch.cat(parts) for parts in zip(*pieces, strict=True)] if pieces else [states.new_zeros(0).float()] * 4
    return TokenScores(*(torch.zeros_like(rollouts.log_probs).masked_scatter(rollouts.mask, v) for v in flat))


def _scores(
    model: PreTrainedModel, states: Tensor, ids: Tensor, beside: PreTrainedModel | None, theirs: Tensor | None,
    vocabulary: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Log-probability, entropy and, beside another model, reverse KL and its log-probability, in float32."""
    logits = logits_of(model, states, vocabulary).float()
    log_probs = torch.log_softmax(logits, dim=-1)
    of_token, nothing = log_probs.gather(-1, ids[:, None])[:, 0], log_probs.new_zeros(len(ids))
    entropy = -(log_probs.detach().exp() * log_probs.detach()).sum(-1)
    if beside is None or theirs is None:
        return of_token, entropy, nothing, nothing
    with torch.no_grad():
        other = torch.log_softmax(logits_of(beside, theirs, vocabulary).float(), dim=-1)
    kl = (log_probs.exp() * (log_probs - other)).sum(-1)
    return of_token, entropy, kl, other.gather(-1, ids[:, None])[:, 0]
