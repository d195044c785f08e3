"""What decides a run's numbers, as one checksum: recipe, seed, training source and the weights it starts from."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

from opdgeom_utils.models import resolve_model
from opdgeom_utils.recipes import RUN_SPACE, Recipe, load_recipe
from opdgeom_utils.training import TRAINING_VERSION

SOURCES = (
    "families",
    "tasks",
    "rollouts",
    "objectives",
    "learner",
    "batches",
    "mixing",
    "projection",
    "projection_spaces",
    "training",
    "evaluation",
)
UNTRAINED = "untrained:"


def fingerprint(recipe: Recipe, seed: int) -> str:
    """Return the sha256 over all that decides the run's numbers: recipe, seed, training source, starting weights.

    The recipe's list of seeds is left out: asking for one seed more is no change. A run that is projected onto another
    run's space depends on that run too.
    """
    digest = hashlib.sha256(json.dumps([recipe.settings(), seed, TRAINING_VERSION], sort_keys=True).encode())
    for name in SOURCES:
        digest.update(source_without_prose(Path(__file__).parent / f"{name}.py").encode())
    for name in (recipe.start, recipe.teacher, recipe.anchor, *([recipe.writer] if recipe.writer else [])):
        if name is None or name.startswith(UNTRAINED):
            continue
        folder = Path(resolve_model(name))
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        digest.update(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files) or name.encode())
    found = RUN_SPACE.fullmatch(recipe.projection_space)
    if found:
        digest.update(fingerprint(load_recipe(found["recipe"], recipe.profile), seed).encode())
    return digest.hexdigest()


def source_without_prose(path: Path) -> str:
    """Return a module's syntax tree as text, comments and docstrings left out: mending a sentence retrains nothing."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
