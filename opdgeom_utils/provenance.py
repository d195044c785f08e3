"""What decides a run's numbers, as one checksum, and where they come from: commit, versions, device and command."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from opdgeom_utils import kept, models
from opdgeom_utils.errors import RecipeError
from opdgeom_utils.fit.sides import SMALL_FILES
from opdgeom_utils.models import PACKAGED, PROJECT, STARTS, UNTRAINED, is_given, resolve_model
from opdgeom_utils.packaged_models import packaged
from opdgeom_utils.recipes import RUN_SPACE, Recipe, load_recipe
from opdgeom_utils.trained_models import models_of, needed_run
from opdgeom_utils.training import TRAINING_VERSION
from opdgeom_utils.world import load_world


def fingerprint(recipe: Recipe, seed: int, above: tuple[str, ...] = ()) -> str:
    """Return the sha256 over all that decides the run's numbers: recipe, seed, training source, starting weights.

    The recipe's list of seeds is left out: asking for one seed more is no change. A run that needs another run's space
    or model depends on that run too. ``above`` are the recipes that need this one. Raises RecipeError if a recipe
    needs, in the end, a model that it makes itself.
    """
    above = (*above, recipe.name)
    if recipe.name in above[:-1]:
        raise RecipeError(f"no recipe of {' -> '.join(above)} can be trained first: each needs the next one's model")
    world, source = load_world(recipe.profile).settings(), training_source(recipe)
    said = [recipe.settings(), recipe.held_out, recipe.on_policy, world, seed, TRAINING_VERSION, source]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in (recipe.start, recipe.teacher, recipe.anchor, recipe.writer):
        if name is None or name.startswith(UNTRAINED):
            continue
        if needed := needed_run(name):
            said_of = f"{fingerprint(needed.recipe, needed.seed, above)}@{needed.step}"
            digest.update(said_of.encode())
            continue
        if name.startswith(PACKAGED):  # told by its checksum, not fetched for this
            digest.update(packaged(name.removeprefix(PACKAGED)).sha256.encode())
            continue
        folder = Path(resolve_model(name))
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        digest.update(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files) or name.encode())
        digest.update(files_digest(name).encode())
    found = RUN_SPACE.fullmatch(recipe.projection_space)
    if found:
        digest.update(fingerprint(load_recipe(found["recipe"], recipe.profile), seed, above).encode())
    return digest.hexdigest()


def files_digest(name: str) -> str:
    """Return the sha256 of the configuration, tokenizer and template in a user's folder; empty for all other models.

    >>> files_digest("anchor"), files_digest("org/model")
    ('', '')
    """
    folder = Path(resolve_model(name)) if is_given(name) else Path()
    if not is_given(name) or not folder.is_dir() or any(folder.is_relative_to(own) for own in (models.MODELS, STARTS)):
        return ""
    files = sorted({file for form in SMALL_FILES for file in folder.glob(form)})
    content = [file.name.encode() + hashlib.sha256(file.read_bytes()).digest() for file in files]
    return hashlib.sha256(b"".join(content)).hexdigest()


def beside_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return what else decides a run's numbers: its world, the runs that made its models, and what lies by weights.

    Tables hold it beside the recipe and the weights' checksums, so that they can be told from those of today.
    """
    makers = {name: needed for name in models_of(recipe) if (needed := needed_run(name))}
    made = {name: [n.recipe.settings(), n.seed, beside_recipe(n.recipe)] for name, n in makers.items()}
    files = {name: found for name in models_of(recipe) if (found := files_digest(name))}
    return {
        "world": load_world(recipe.profile).settings(),
        "makers": {
            name: hashlib.sha256(json.dumps(m, sort_keys=True).encode()).hexdigest() for name, m in made.items()
        },
        "files": files,
    }


def training_source(recipe: Recipe) -> str:
    """Return the sha256 of the code of the loop and of the evaluation; and of the models, where one is made anew.

    The values of the recipe and of its world stand in the fingerprint themselves, so that a new field or another kind
    of tasks makes no run stale that has no use for it. Only the module that sets this profile's problems counts.
    """
    made = ("models",) if recipe.start.startswith(UNTRAINED) else ()
    tasks = load_world(recipe.profile).tasks_module
    return kept.digest("training", "evaluation", tasks, *made, given=("recipes", "world"))


def provenance(recipe: Recipe, seed: int, device: str) -> dict[str, Any]:
    """Where a run's numbers come from; times are left out of the fingerprint and of the tables."""
    packages = ("torch", "transformers", "safetensors", "tokenizers", "numpy")
    return {
        "fingerprint": fingerprint(recipe, seed),
        "training_version": TRAINING_VERSION,
        "training_source": training_source(recipe),
        "commit": _commit(),
        "command": " ".join(Path(a).name for a in sys.argv[:1]) + " " + " ".join(sys.argv[1:]),
        "device": device,
        "processor": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return "unknown"
    return asked.stdout.strip() or "unknown"
