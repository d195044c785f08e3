"""Held-out accuracy per family: what a checkpoint can do, greedy and sampled at temperature 1."""

from __future__ import annotations

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from opdgeom_utils.rollouts import decode_completions, roll_out
from opdgeom_utils.tasks import Example, Mixture, held_out_set, verify

BATCH = 256


def rewards_on(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: list[Example],
    generator: torch.Generator | None,
    max_new_tokens: int = 40,
) -> list[float]:
    """Reward of one completion per example, in order; greedy when ``generator`` is None."""
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].prompt), i))
    rewards = [0.0] * len(examples)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        prompts = [examples[i].prompt for i in rows]
        rollouts = roll_out(model, tokenizer, prompts, max_new_tokens=max_new_tokens, generator=generator)
        for i, (text,) in zip(rows, decode_completions(tokenizer, rollouts), strict=True):
            rewards[i] = verify(examples[i].prompt, text)
    return rewards


def accuracy_table(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, mixture: Mixture, per_family: int, seed: int = 0
) -> pd.DataFrame:
    """Accuracy of every family on held-out prompts, 0 to 1.

    Returns
    -------
    DataFrame
        Columns ``domain, family, greedy, sampled, n_prompts``. ``sampled`` is one completion per prompt at
        temperature 1, with the same random stream on every call.
    """
    examples = held_out_set(mixture, per_family, seed)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    model.eval()
    frame = pd.DataFrame(
        {
            "domain": [e.domain for e in examples],
            "family": [e.family for e in examples],
            "greedy": rewards_on(model, tokenizer, examples, None),
            "sampled": rewards_on(model, tokenizer, examples, generator),
        }
    )
    grouped = frame.groupby(["domain", "family"], sort=True)
    return grouped.agg(
        greedy=("greedy", "mean"), sampled=("sampled", "mean"), n_prompts=("greedy", "size")
    ).reset_index()
