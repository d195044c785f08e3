"""Held-out accuracy per family: what a checkpoint can do, greedy and sampled at temperature 1.

An answer that cannot be found scores 0 like a wrong one, so the share of answers that were found stands beside the
accuracy: how much of a gain is format.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from opdgeom_utils.precision import computing
from opdgeom_utils.problems import Grade, Mixture, Problem, Tasks
from opdgeom_utils.rollouts import decode_completions, end_tokens, roll_out
from opdgeom_utils.world import World

BATCH = 256


def grades_on(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    generator: torch.Generator | None,
    max_new_tokens: int = 40,
    *,
    tasks: Tasks | None = None,
    world: World | None = None,
    vocabulary: int | None = None,
) -> list[Grade]:
    """Grade of one completion per problem, in order; greedy when ``generator`` is None. The toy world's by default."""
    tasks, world = tasks or World().open_tasks(), world or World()
    order = sorted(range(len(problems)), key=lambda i: (len(problems[i].prompt), i))
    grades = [Grade(0.0, False)] * len(problems)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        prompts = [world.put(tokenizer, problems[i].prompt) for i in rows]
        rollouts = roll_out(
            model, tokenizer, prompts, max_new_tokens=max_new_tokens, generator=generator, vocabulary=vocabulary
        )
        texts = decode_completions(tokenizer, rollouts, end_tokens(model, tokenizer))
        for i, (written,) in zip(rows, texts, strict=True):
            grades[i] = tasks.grade(problems[i], written)
    return grades


def accuracy_table(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    mixture: Mixture,
    per_family: int,
    seed: int = 0,
    *,
    tasks: Tasks | None = None,
    world: World | None = None,
    max_new_tokens: int = 40,
    compute: str = "float32",
    vocabulary: int | None = None,
) -> pd.DataFrame:
    """Accuracy of every family on held-out prompts, 0 to 1; the toy world's by default.

    Returns
    -------
    DataFrame
        Columns ``domain, family, greedy, sampled, n_prompts, greedy_parsed, sampled_parsed``. ``sampled`` is one
        completion per prompt at temperature 1, with the same random stream on every call; ``parsed`` is the share of
        completions in which an answer was found.
    """
    problems = (tasks or World().open_tasks()).held_out(mixture, per_family, seed)
    device = next(model.parameters()).device
    frame = pd.DataFrame({"domain": [p.domain for p in problems], "family": [p.family for p in problems]})
    model.eval()
    for kind, generator in (("greedy", None), ("sampled", torch.Generator(device).manual_seed(seed))):
        with computing(compute, device):
            grades = grades_on(
                model, tokenizer, problems, generator, max_new_tokens, tasks=tasks, world=world, vocabulary=vocabulary
            )
        frame[kind], frame[f"{kind}_parsed"] = [g.reward for g in grades], [float(g.parsed) for g in grades]
    grouped = frame.groupby(["domain", "family"], sort=True)
    means = {column: (column, "mean") for column in ("greedy", "sampled")}
    parsed = {column: (column, "mean") for column in ("greedy_parsed", "sampled_parsed")}
    return grouped.agg(**means, n_prompts=("greedy", "size"), **parsed).reset_index()
