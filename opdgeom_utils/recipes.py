"""What a run is: a frozen :class:`Recipe`, read from ``data/recipes/<profile>.yaml``.

A recipe holds everything that decides the result except the seed and the profile's world
(:mod:`opdgeom_utils.world`). A profile file has a ``defaults`` and a ``recipes`` block; a recipe may name another with
``like`` and say only what differs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any

from opdgeom_utils.errors import RecipeError, UnknownRecipeError
from opdgeom_utils.precision import COMPUTE
from opdgeom_utils.profile_files import FORMS, choices, place_of, read_profile, written_at
from opdgeom_utils.recipe_parents import RUN_SPACE, check_needed_runs, lineage_of, with_parents
from opdgeom_utils.world import in_profile, load_world, tasks_of

OBJECTIVES = ("sft", "opd", "rlvr", "mixed")
COUNTS = ("steps", "prompts_per_update", "group_size", "updates_per_rollout", "micro_batches", "max_new_tokens",
          "probe_prompts", "eval_per_family", "final_eval_per_family")  # fmt: skip
POSITIVE, SHARES = ("learning_rate", "eps", "grad_clip"), ("alpha", "warmup_fraction", "clip_low")
FROM_ZERO = ("weight_decay", "final_learning_rate", "clip_high")
CHOICES = {
    "objective": OBJECTIVES, "schedule": ("constant", "cosine"), "estimator": ("sampled", "full_vocab"),
    "keep_by": ("top", "random"), "compute": tuple(COMPUTE), "projection_side": ("right", "left"),
    "projection_of": ("gradient", "update"),
}  # fmt: skip
SPACES = ("early", "complement", "random", "activations")
MODELS = ("start", "teacher", "anchor", "writer")  # fields that name a model, in the world's words
NAME = re.compile(r"\w[\w.-]{0,99}")  # of a recipe: its runs' folders begin with it


@dataclass(frozen=True)
class Recipe:
    """One way of training. Field by field, what a reader would put in a table of hyper-parameters.

    ``teacher`` gives OPD its credit; for the other objectives it is only measured against, as ``anchor`` is.
    ``mixture`` and ``evaluation`` map a task family to the levels drawn from; ``weights`` makes families more frequent.
    ``writer`` names a model that writes the completions in the student's place. ``keep_fraction`` of each completion's
    tokens get credit in OPD, chosen by ``keep_by``, their credit scaled up by the inverse unless ``keep_rescaled`` is
    off. ``random_credit`` and ``random_reward`` make the null objectives: OPD's credits permuted over the tokens of an
    update with random signs, RLVR's rewards permuted over its completions. ``equal_gradients`` brings the two gradients
    of a mixture to one norm before they are mixed. The ``projection_*`` fields are explained in
    :mod:`opdgeom_utils.projection`, ``compute`` in :mod:`opdgeom_utils.precision`. ``micro_tokens``, where it is not 0,
    cuts an update into parts of at most so many tokens, padding included, in place of ``micro_batches`` parts.
    """

    name: str
    profile: str
    objective: str
    start: str
    steps: int
    learning_rate: float
    mixture: dict[str, list[Any]]
    checkpoints: tuple[int, ...]
    teacher: str | None = "teacher"
    anchor: str | None = "anchor"
    evaluation: dict[str, list[Any]] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    estimator: str = "sampled"
    alpha: float = 1.0
    schedule: str = "constant"
    warmup_fraction: float = 0.0
    final_learning_rate: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    prompts_per_update: int = 16
    group_size: int = 8
    updates_per_rollout: int = 1
    micro_batches: int = 4
    max_new_tokens: int = 40
    clip_low: float = 0.2
    clip_high: float = 0.28
    probe_prompts: int = 2
    eval_per_family: int = 64
    final_eval_per_family: int = 256
    seeds: tuple[int, ...] = field(default=(0,))
    writer: str | None = None
    keep_fraction: float = 1.0
    keep_by: str = "top"
    keep_rescaled: bool = True
    equal_gradients: bool = False
    projection_space: str = ""
    projection_rank: int = 0
    projection_from: int = 0
    projection_side: str = "right"
    projection_of: str = "gradient"
    random_credit: bool = False
    random_reward: bool = False
    compute: str = "float32"
    micro_tokens: int = 0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Check the values, so that a typing slip stops before any training does."""
        problems = [
            *((getattr(self, n) not in known, f"{n} is {getattr(self, n)!r}; expected {' or '.join(known)}")
              for n, known in CHOICES.items()),
            *((getattr(self, n) < 1, f"{n} is {getattr(self, n)}; expected 1 or more") for n in COUNTS),
            *((not 0 < getattr(self, n) < math.inf, f"{n} is {getattr(self, n)}; expected a positive number")
              for n in POSITIVE),
            *((not 0 <= getattr(self, n) < math.inf, f"{n} is {getattr(self, n)}; expected 0 or more")
              for n in FROM_ZERO),
            (len({*self.seeds}) < len(self.seeds) or not all(0 <= seed < 2**32 for seed in self.seeds),
             f"seeds are {list(self.seeds)}; expected different whole numbers from 0 to {2**32 - 1}"),
            *((not 0 <= getattr(self, n) <= 1, f"{n} is {getattr(self, n)}; expected 0 to 1") for n in SHARES),
            (not all(0 <= beta < 1 for beta in self.betas), f"betas are {self.betas}; expected two from 0 to below 1"),
            (self.objective == "rlvr" and self.group_size < 2,
             "group_size is 1; RLVR compares the answers to one prompt, so it needs 2 or more"),
            (self.checkpoints[-1:] != (self.steps,),
             f"steps is {self.steps}, checkpoints {list(self.checkpoints)}; expected the last at the last step"),
            (list(self.checkpoints) != sorted(set(self.checkpoints)) or min(self.checkpoints, default=1) < 1,
             f"checkpoints {list(self.checkpoints)} must rise without repeats, from update 1 or a later one"),
            (any(c % max(1, self.updates_per_rollout) for c in self.checkpoints),
             f"every checkpoint must be a multiple of updates_per_rollout ({self.updates_per_rollout})"),
            (self.objective in ("opd", "mixed") and not self.teacher, "OPD needs a teacher"),
            *self._variant_problems(),
        ]  # fmt: skip
        for wrong, message in problems:
            if wrong:
                raise RecipeError(f"recipe {self.name!r} of profile {self.profile!r}: {message}")

    def _variant_problems(self) -> list[tuple[bool, str]]:
        """Say what is wrong with the fields that only the variants of RQ2 and RQ3 use."""
        sampled_opd = self.objective == "opd" and self.estimator == "sampled"
        space = self.projection_space
        return [
            (not 0 < self.keep_fraction <= 1, f"keep_fraction is {self.keep_fraction}; expected above 0, at most 1"),
            (self.keep_fraction < 1 and not sampled_opd, "keep_fraction is for OPD with the sampled estimator"),
            (self.equal_gradients and self.objective != "mixed", "equal_gradients is for the mixed objective"),
            (self.random_credit and not sampled_opd, "random_credit is for OPD with the sampled estimator"),
            (self.random_reward and self.objective != "rlvr", "random_reward is for RLVR"),
            (self.micro_tokens < 0, f"micro_tokens is {self.micro_tokens}; expected 0 or more"),
            (self.writer is not None and not self.on_policy, "writer is for objectives that sample completions"),
            (bool(space) and space not in SPACES and not RUN_SPACE.fullmatch(space),
             f"projection_space {space!r} is not one of {SPACES} or run:<recipe>@<update>"),
            (space.startswith(f"run:{self.name}@"), "a run cannot be held in the space of its own end: use early"),
            (bool(space) and self.projection_rank < 1, f"projection_rank {self.projection_rank}; expected 1 or more"),
            (bool(space) and not 0 <= self.projection_from < self.steps,
             f"projection_from is {self.projection_from}; expected 0 to {self.steps - 1}"),
            (space in ("early", "complement") and self.projection_from < 1,
             "the early space needs at least one update before it: set projection_from"),
            (space in ("early", "complement") and self.projection_from not in self.checkpoints,
             f"a stopped run finds the early space again in its checkpoint: add {self.projection_from} to checkpoints"),
            (self.projection_side == "left" and space == "activations", "activations span a right space only"),
        ]  # fmt: skip

    @property
    def held_out(self) -> dict[str, list[Any]]:
        """Families and levels of the accuracy: ``evaluation``, or the training mixture where it is empty."""
        return self.evaluation or self.mixture

    @property
    def on_policy(self) -> bool:
        """Whether the student writes the completions."""
        return self.objective != "sft"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``recipe.yaml`` and for the fingerprint."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def settings(self) -> dict[str, Any]:
        """Return what decides a run's numbers: :func:`deciding_settings` of this recipe."""
        return deciding_settings(self.as_dict())


def deciding_settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the list of seeds, and the variants' fields where they hold their default.

    So asking for one more seed, or a new field that a recipe does not use, makes no finished run stale.

    >>> deciding_settings({"steps": 3, "seeds": [0, 1], "keep_fraction": 1.0, "projection_rank": 4})
    {'steps': 3, 'projection_rank': 4}
    """
    return {k: v for k, v in recipe.items() if k != "seeds" and not (k in VARIANT_FIELDS and v == VARIANT_FIELDS[k])}


VARIANT_FIELDS = {
    f.name: f.default
    for f in dataclasses.fields(Recipe)
    if f.name in ("writer", "equal_gradients", "random_credit", "random_reward", "compute", "micro_tokens",
                  "gradient_checkpointing") or f.name.startswith(("keep_", "projection_"))
}  # fmt: skip


def recipe_names(profile: str = "toy") -> list[str]:
    """Names of a profile's recipes, in the order of its file."""
    return list(_blocks(profile)["recipes"])


def load_recipe(name: str, profile: str = "toy") -> Recipe:
    """Read one recipe.

    Raises
    ------
    UnknownProfileError, UnknownRecipeError
        If the profile or the recipe does not exist; the message lists what does.
    RecipeError
        If a field is unknown or a value out of range.

    Examples
    --------
    >>> load_recipe("opd").objective
    'opd'
    """
    content = _blocks(profile)
    recipes, own = content["recipes"], ("recipes", name)
    if name not in recipes:
        raise UnknownRecipeError(f"unknown recipe {name!r} in profile {profile!r}; {choices(name, recipes)}")
    if not NAME.fullmatch(name):
        raise RecipeError(
            f"{place_of(profile, own)}: a recipe is called {name!r:.120}; its runs' folders begin with it, so expected "
            "up to 100 letters, digits, _, - and points, a letter, a digit or _ first"
        )
    with written_at(profile, (*own, "like"), own):
        lineage = lineage_of(recipes, name)
        check_needed_runs(recipes, name)
    values = {**content["defaults"], **with_parents(recipes, name)}
    _check_fields(values, profile, lineage)
    world = load_world(profile)
    for key in MODELS:
        named = values.get(key, getattr(Recipe, key, None))
        if named:
            values[key] = in_profile(world.source_of(named), profile)
    try:
        recipe = Recipe(**values, name=name, profile=profile)
    except RecipeError as error:
        about = [word for word in re.findall(r"\w+", str(error)) if word in values] or [""]
        raise RecipeError(f"{place_of(profile, *_places(about[0], lineage))}: {error}") from error
    tasks = tasks_of(profile)
    for key, mixture, weights in (("mixture", recipe.mixture, None), ("evaluation", recipe.evaluation, None),
                                  ("weights", recipe.mixture, recipe.weights)):  # fmt: skip
        with written_at(profile, *_places(key, lineage)):
            if true := [family for family, levels in mixture.items() if bool in map(type, levels)]:
                raise RecipeError(f"levels of {true[0]!r} are {mixture[true[0]]}; true and false are no levels")
            tasks.check(mixture, weights)
    return recipe


def _blocks(profile: str) -> dict[str, Any]:
    """Return what a profile says; RecipeError where a block of it stands inside itself."""
    try:
        return read_profile(profile)
    except RecursionError as error:
        raise RecipeError(
            f"data/recipes/{profile}.yaml: a block holds itself, or blocks lie too deep; write out what `*` stands for"
        ) from error


def paths_of(recipe: Recipe, key: str) -> list[tuple[str, ...]]:
    """Return where its profile may say a field of a recipe, what counts most first.

    >>> paths_of(load_recipe("opd_random_credit", "smollm2-135m"), "steps")[:2]
    [('recipes', 'opd_random_credit', 'steps'), ('recipes', 'opd', 'steps')]
    """
    return _places(key, lineage_of(read_profile(recipe.profile)["recipes"], recipe.name))


def _places(key: str, lineage: list[str]) -> list[tuple[str, ...]]:
    """Where a profile may say a field of a recipe: there, in one that it is like, or for all of them."""
    return [*(("recipes", recipe, key) for recipe in lineage), ("defaults", key), ("recipes", lineage[0])]


def _check_fields(values: dict[str, Any], profile: str, lineage: list[str]) -> None:
    """Refuse unknown, ill-typed and missing fields, and bring what YAML has to the fields' types."""
    name, fields = lineage[0], {f.name: f for f in dataclasses.fields(Recipe) if f.name not in ("name", "profile")}
    for key, value in values.items():
        words, fits = FORMS[str(fields[key].type)] if key in fields else ("", bool)
        if key not in fields or not fits(value):
            wrong = (
                f"{key} is {value!r}; expected {words}"
                if words
                else f"a recipe has no {key!r}; {choices(key, sorted(fields))}"
            )
            raise RecipeError(f"{place_of(profile, *_places(key, lineage))}: {wrong}")
        if words.startswith("a number"):
            values[key] = float(value)
        elif type(value) is list:
            values[key] = tuple(value)
    needed = (n for n, f in fields.items() if f.default is MISSING and f.default_factory is MISSING)
    if missing := [n for n in needed if n not in values]:
        raise RecipeError(
            f"{place_of(profile, ('recipes', name))}: recipe {name!r} does not say {', '.join(missing)}; write it, or "
            "name a recipe that says it: like: opd"
        )
