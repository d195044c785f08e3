"""Rebuild data/models: base, anchor and teacher, and the other sizes cut from the last two (`make models`)."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save
from transformers import PreTrainedModel

from opdgeom_utils import storage
from opdgeom_utils.evaluation import accuracy_table
from opdgeom_utils.model_surgery import write_start
from opdgeom_utils.models import (
    DERIVED,
    MODELS,
    UNTRAINED,
    build_model,
    build_tokenizer,
    load_model,
    load_stored_state,
    stored_state,
)
from opdgeom_utils.recipes import Recipe, load_recipe
from opdgeom_utils.runs import Run, load_or_train

SMALL = ["teacher_small", "teacher_large", "teacher_moe", "student_small"]  # cut from teacher or anchor, then mended


def export(name: str, run: Run) -> None:
    """Write the run's last checkpoint as a bf16 Hugging Face folder with its tokenizer and its card."""
    recipe, start = run.recipe, run.recipe.start
    model = build_model(start.removeprefix(UNTRAINED), run.seed) if start.startswith(UNTRAINED) else load_model(start)
    load_stored_state(model, storage.read_tensors(run.checkpoints[-1].path))
    write_model(name, model, recipe, run.seed)


def write_model(name: str, model: PreTrainedModel, recipe: Recipe, seed: int) -> None:
    """Write weights (bf16), config, tokenizer and card; the card's accuracy is that of the bytes written."""
    folder = MODELS / name
    model.config.dtype = torch.bfloat16
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    weights = {k: v.to(torch.bfloat16).contiguous() for k, v in stored_state(model).items()}
    content = file_content(model) if "moe" in model.config.model_type else save(weights, metadata={"format": "pt"})
    storage.write_atomic(folder / "model.safetensors", content)
    accuracy = accuracy_table(load_model(folder), build_tokenizer(), recipe.held_out, recipe.final_eval_per_family)
    n_parameters = sum(w.numel() for w in weights.values())
    digest = hashlib.sha256(content).hexdigest()
    storage.write_atomic(folder / "README.md", card(name, recipe, seed, n_parameters, digest, accuracy).encode())


def file_content(model: PreTrainedModel) -> bytes:
    """Weights as transformers stores them: experts, fused in memory, are apart under their usual names."""
    with tempfile.TemporaryDirectory() as folder:
        rounded = copy.deepcopy(model)
        torch.nn.Module.to(rounded, torch.bfloat16)
        rounded.save_pretrained(folder)
        return (Path(folder) / "model.safetensors").read_bytes()


def card(name: str, recipe: Recipe, seed: int, n_parameters: int, digest: str, accuracy: pd.DataFrame) -> str:
    """Say what the model is, how it was made, what it can do, and what its bytes are."""
    rows = "\n".join(
        f"| {r['domain']} | {r['family']} | {r['greedy']:.3f} | {r['sampled']:.3f} | {r['n_prompts']} |"
        for r in accuracy.to_dict("records")
    )
    settings = json.dumps({k: v for k, v in recipe.as_dict().items() if k not in ("checkpoints", "seeds")}, indent=1)
    means = f"mean greedy {accuracy['greedy'].mean():.3f}, mean sampled {accuracy['sampled'].mean():.3f}"
    return f"""---
license: apache-2.0
tags: [toy, qwen3, on-policy-distillation]
---
# {name}

A Qwen3 model of {n_parameters:,} parameters for the toy world, stored in bf16. Made by `make models`: recipe
`{recipe.name}` of `data/recipes/{recipe.profile}.yaml`, seed {seed}, {recipe.steps} updates, from `{recipe.start}`.

sha256 of `model.safetensors`: `{digest}`

Held-out accuracy of these bytes, on the levels that profile toy practises on: {means}.

| domain | family | greedy | sampled | prompts |
|---|---|---|---|---|
{rows}

```json
{settings}
```
"""


def main() -> int:
    """Train what is missing, two processes at once, and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models to build (default: all)")
    parser.add_argument("--cards", action="store_true", help="train nothing: write the cards anew")
    options = parser.parse_args()
    names = options.names
    if options.cards or len(names) == 1:
        torch.set_num_threads(1)
    if options.cards:
        for name in names or ["base", "teacher", "anchor", *SMALL]:
            recipe = load_recipe(name, "models")
            write_model(name, load_model(name), recipe, recipe.seeds[0])
        return 0
    if len(names) == 1:
        recipe = load_recipe(names[0], "models")
        if recipe.start.startswith(DERIVED):
            write_start(recipe.start)
        export(names[0], load_or_train(names[0], seed=recipe.seeds[0], profile="models"))
        return 0
    for group in (["base"], ["teacher", "anchor"], SMALL[:2], SMALL[2:]):
        todo = [name for name in group if not names or name in names]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        running = [subprocess.Popen([sys.executable, str(Path(__file__).resolve()), name], env=env) for name in todo]
        if any([process.wait() for process in running]):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
