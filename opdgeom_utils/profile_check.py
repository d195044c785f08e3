"""A profile, looked at before hours of training: whether its models, its problems and its recipes go together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from opdgeom_utils.checkpoints.opening import open_checkpoint
from opdgeom_utils.errors import CheckpointNotFoundError, OpdGeomError, RecipeError
from opdgeom_utils.fit.findings import Finding, length_finding
from opdgeom_utils.fit.memory import Setting
from opdgeom_utils.fit.sides import Side, open_side
from opdgeom_utils.fit.token_findings import rows_finding
from opdgeom_utils.models import PACKAGED, is_given, resolve_model
from opdgeom_utils.packaged_models import packaged
from opdgeom_utils.profile_files import BEGIN, choices, place_of, written_at
from opdgeom_utils.recipe_parents import RUN_SPACE
from opdgeom_utils.recipes import MODELS, Recipe, load_recipe, paths_of, recipe_names
from opdgeom_utils.starting import PROBE, check_demonstrations, check_mixture, check_texts, check_tokens
from opdgeom_utils.trained_models import models_of, needed_run, origin_of
from opdgeom_utils.training_plan import SAMPLE, longest_texts
from opdgeom_utils.world import load_world, tasks_of


def check_models(profile: str) -> None:
    """Look at the models and the problems that a profile names, before hours of training.

    Of models in folders the configuration, the tokenizer and the names of the weights are read; what a hub or a package
    has is not fetched.

    Raises
    ------
    CheckpointNotFoundError, CheckpointDamagedError
        If a folder, its configuration, its tokenizer or its weights are missing or cannot be opened.
    RecipeError
        If no recipe uses a name that the world gives, a mixture is empty, two tokenizers differ, one has no padding or
        end token or tokens that are not the text that they stand for, or problems lack what a recipe needs or are
        longer than a model reads.

    Examples
    --------
    >>> check_models("toy")
    """
    recipes, models = [load_recipe(name, profile) for name in recipe_names(profile)], load_world(profile).models
    if not recipes:
        raise RecipeError(f"{place_of(profile, ('recipes',))}: there is no recipe; write one, or begin with {BEGIN}")
    named: dict[str, tuple[Recipe, str]] = {}
    for recipe, key in product(recipes, MODELS):
        if source := getattr(recipe, key):
            named.setdefault(source, (recipe, key))
    found = {source: _side_named(source, recipe, key) for source, (recipe, key) in named.items()}
    if unused := [name for name, source in models.items() if source not in named]:
        place, used = place_of(profile, ("world", "models", unused[0])), [n for n in models if n not in unused]
        raise RecipeError(
            f"{place}: no recipe uses the model {unused[0]!r}; recipes use {', '.join(used)}. Is a name misspelt?"
        )
    for recipe in recipes:
        _check_order(recipe)
    for source, (recipe, key) in named.items():  # a run's model has the tokenizer and the lengths of its origin
        if needed := needed_run(source):
            origin = origin_of(needed.recipe)
            found[source] = found[origin] if origin in found else _side_named(origin, recipe, key)
    sides = {source: side for source, side in found.items() if side}
    for side in sides.values():
        first = next(iter(sides.values()))
        with written_at(profile, ("world", "models")):
            check_tokens(first.tokenizer.get_vocab(), side.tokenizer.get_vocab(), f"{first.name} and of {side.name}")
            _refuse(rows_finding(side, side))
    for recipe in recipes:
        check_mixture(recipe)
        _check_space(recipe)
        _check_problems(recipe, sides.get(recipe.start), [sides[n] for n in models_of(recipe) if n in sides])


def _side_named(source: str, recipe: Recipe, key: str) -> Side | None:
    """Look at the model that a recipe names under ``key``, and say in an error where the profile names it.

    None also where a shipped model is not built: its runs are left out.
    """
    models = load_world(recipe.profile).models
    try:
        return _side_of(source)
    except OpdGeomError as error:
        if not models and "/" not in source:
            return None
        own = [("world", "models", name) for name, its in models.items() if its == source]
        known = "" if own or not models else f"; {choices(source, models)}"
        place = place_of(recipe.profile, *(own or paths_of(recipe, key)))
        raise type(error)(f"{place}: {key} of recipe {recipe.name!r}: {error}{known}") from error


def _side_of(source: str) -> Side | None:
    """Look at a model in a folder; None where it is trained, fetched or made later."""
    needed_run(source)
    if source.startswith(PACKAGED):
        packaged(source.removeprefix(PACKAGED))
    if not is_given(source) or not (folder := Path(resolve_model(source))).is_dir():
        return None
    side = open_side(source)
    if not list(folder.glob("*.safetensors")):
        raise CheckpointNotFoundError(
            f"{source} has no weights in *.safetensors, which the loop reads and takes the checksum of; save the model "
            "there (save_pretrained), or give the folder that has them"
        )
    open_checkpoint(folder)
    check_texts(source, side.tokenizer)
    return side


def _check_order(recipe: Recipe, above: tuple[Recipe, ...] = ()) -> None:
    """Refuse a recipe that needs, in the end, a model that it makes itself."""
    chain = (*above, recipe)
    if recipe in above:
        raise RecipeError(
            f"{place_of(recipe.profile, ('world', 'models'))}: no recipe of {' -> '.join(r.name for r in chain)} can "
            "be trained first: each needs the next one's model. Name one that is there before"
        )
    for name in models_of(recipe):
        if needed := needed_run(name):
            _check_order(needed.recipe, chain)


def _check_space(recipe: Recipe) -> None:
    """Refuse the space of a run that the profile does not have, or of an update that the run does not store."""
    if found := RUN_SPACE.fullmatch(recipe.projection_space):
        with written_at(recipe.profile, *paths_of(recipe, "projection_space")):
            needed_run(f"run:{recipe.profile}/{found['recipe']}@{found['step']}")


def _check_problems(recipe: Recipe, student: Side | None, others: Sequence[Side]) -> None:
    """Refuse problems that a recipe cannot draw, show, put as its world says, or that are too long for its models.

    Without a student (what a hub or a package has is not opened) another model's tokenizer, which has to be the same,
    counts the tokens of plain prompts. ``others`` are all models that are there.
    """
    profile, world = recipe.profile, load_world(recipe.profile)
    if student:
        with written_at(profile, ("world", "end")):
            world.with_end(student.tokenizer)
        with written_at(profile, ("world", "prompt")):
            world.put(student.tokenizer, PROBE)
    counts = student or next(iter(others if world.prompt == "plain" else ()), None)
    with written_at(profile, ("world", "tasks"), ("recipes", recipe.name)):
        check_demonstrations(recipe)
        tasks_of(profile).held_out(recipe.held_out, 1)
        tasks_of(profile).draw(recipe.mixture, SAMPLE, "plan", weights=recipe.weights)
        prompt, completion = longest_texts(recipe, counts.tokenizer) if counts else (0, 0)
    lengths = Setting(prompt_tokens=max(1, prompt), completion_tokens=max(completion, recipe.max_new_tokens))
    with written_at(profile, *paths_of(recipe, "max_new_tokens")):
        for side in others:
            if student:
                _refuse(length_finding(student, side, lengths))
            elif side.longest and lengths.tokens > side.longest:
                raise RecipeError(
                    f"lengths: {side.name} reads {side.longest:,} tokens; prompt and completion have up to "
                    f"{lengths.tokens:,}; shorten them, or take another model"
                )


def _refuse(finding: Finding) -> None:
    """Stop where a finding says that training cannot start."""
    if finding.level == "stop":
        raise RecipeError(f"{finding.topic}: {finding.found}; {finding.advice}")
