"""A world of tiny models and short recipes, so that a whole run takes a moment."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opdgeom_utils import models

END_ID = 1
DEFAULTS: dict[str, Any] = {
    "objective": "sft",
    "start": "anchor",
    "steps": 4,
    "learning_rate": 1.0e-3,
    "mixture": {"sum": [1], "sort": [1, 2]},
    "checkpoints": [1, 2, 4],
    "prompts_per_update": 2,
    "group_size": 2,
    "micro_batches": 2,
    "max_new_tokens": 5,
    "probe_prompts": 1,
    "eval_per_family": 1,
    "final_eval_per_family": 1,
    "seeds": [0, 1],
}
RECIPES: dict[str, dict[str, Any]] = {
    "sft": {"start": "base", "schedule": "cosine", "warmup_fraction": 0.25, "group_size": 1},
    "opd": {"objective": "opd"},
    "rlvr": {"objective": "rlvr"},
    "mixed": {"like": "opd", "objective": "mixed", "alpha": 0.5},
    "opd_project_early": {"like": "opd", "projection_space": "early", "projection_rank": 2, "projection_from": 2},
    "opd_project_elsewhere": {"like": "opd_project_early", "projection_space": "run:rlvr@2"},
}


@dataclass(frozen=True)
class World:
    """Folders of one test: shipped models, recipe files, runs."""

    models: Path
    recipes: Path
    runs: Path


def save_tiny(folder: Path, seed: int) -> None:
    """Save an untrained tiny model as bf16 with its tokenizer, as the shipped models are.

    Every token has a common part, the end mark more of it, so that completions end after a few tokens.
    """
    model = models.build_model("tiny", seed)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0.5
        model.model.embed_tokens.weight[END_ID, 0] = 1.1
    model.to(torch.bfloat16).save_pretrained(folder)
    models.build_tokenizer().save_pretrained(folder)
