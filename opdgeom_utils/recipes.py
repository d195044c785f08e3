"""What a run is: a frozen :class:`Recipe`, read from ``data/recipes/<profile>.yaml``.

A recipe holds everything that decides the result except the seed. A profile file has a ``defaults`` block and a
``recipes`` block; a recipe may name another with ``like`` and say only what differs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from opdgeom_utils.errors import RecipeError, UnknownProfileError, UnknownRecipeError
from opdgeom_utils.tasks import check_mixture

RECIPES = Path(__file__).resolve().parent.parent / "data" / "recipes"
OBJECTIVES = ("sft", "opd", "rlvr", "mixed")


@dataclass(frozen=True)
class Recipe:
    """One way of training. Field by field, what a reader would put in a table of hyper-parameters.

    ``teacher`` gives OPD its credit; for the other objectives it is only measured against, as ``anchor`` is.
    ``mixture`` and ``evaluation`` map a task family to the levels drawn from; ``weights`` makes families more frequent.
    """

    name: str
    profile: str
    objective: str
    start: str
    steps: int
    learning_rate: float
    mixture: dict[str, list[int]]
    checkpoints: tuple[int, ...]
    teacher: str | None = "teacher"
    anchor: str | None = "anchor"
    evaluation: dict[str, list[int]] = field(default_factory=dict)
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

    def __post_init__(self) -> None:
        """Check the values, so that a typing slip stops before any training does."""
        problems = [
            (self.objective not in OBJECTIVES, f"objective {self.objective!r} is not one of {OBJECTIVES}"),
            (self.schedule not in ("constant", "cosine"), f"schedule {self.schedule!r} is neither constant nor cosine"),
            (self.estimator not in ("sampled", "full_vocab"), f"estimator {self.estimator!r}: sampled or full_vocab"),
            (self.steps < 1, f"steps is {self.steps}; expected at least 1"),
            (not self.learning_rate > 0, f"learning_rate is {self.learning_rate}; expected a positive number"),
            (not 0 <= self.alpha <= 1, f"alpha is {self.alpha}; expected 0 to 1"),
            (not self.checkpoints or self.checkpoints[-1] != self.steps, "the last checkpoint must be the last step"),
            (list(self.checkpoints) != sorted(set(self.checkpoints)), "checkpoints must rise without repeats"),
            (any(c % self.updates_per_rollout for c in self.checkpoints),
             f"every checkpoint must be a multiple of updates_per_rollout ({self.updates_per_rollout})"),
            (self.objective in ("opd", "mixed") and not self.teacher, "OPD needs a teacher"),
        ]  # fmt: skip
        for wrong, message in problems:
            if wrong:
                raise RecipeError(f"recipe {self.name!r} of profile {self.profile!r}: {message}")
        check_mixture(self.mixture, self.weights)
        check_mixture(self.evaluation)

    @property
    def held_out(self) -> dict[str, list[int]]:
        """Families and levels of the accuracy: ``evaluation``, or the training mixture where it is empty."""
        return self.evaluation or self.mixture

    @property
    def on_policy(self) -> bool:
        """Whether the student writes the completions."""
        return self.objective != "sft"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``recipe.yaml`` and for the fingerprint."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def profile_path(profile: str) -> Path:
    """Return the file of a profile.

    >>> profile_path("toy").name
    'toy.yaml'
    """
    path = RECIPES / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise UnknownProfileError(
            f"unknown profile {profile!r}; there is no {path.name} in data/recipes. Known: {known}"
        )
    return path


def recipe_names(profile: str = "toy") -> list[str]:
    """Names of a profile's recipes, in the order of its file."""
    return list(_read(profile)["recipes"])


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
    content = _read(profile)
    if name not in content["recipes"]:
        known = ", ".join(content["recipes"])
        raise UnknownRecipeError(f"unknown recipe {name!r} in profile {profile!r}; known: {known}")
    values = {**content["defaults"], **_with_parents(content["recipes"], name), "name": name, "profile": profile}
    _check_fields(values)
    for key in ("checkpoints", "betas", "seeds"):
        if key in values:
            values[key] = tuple(values[key])
    return Recipe(**values)


def _check_fields(values: dict[str, Any]) -> None:
    """Refuse unknown, missing and ill-typed fields; a whole number becomes a float, a text never becomes a number."""
    where = f"recipe {values['name']!r} of profile {values['profile']!r}"
    fields = {f.name: f for f in dataclasses.fields(Recipe)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise RecipeError(f"{where} has unknown fields {unknown}; known: {sorted(fields)}")
    needed = [n for n, f in fields.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [n for n in needed if n not in values]
    if missing:
        raise RecipeError(f"{where} does not say {missing}")
    for key, value in values.items():
        expected = {"int": int, "float": float, "tuple": list, "dict": dict}.get(str(fields[key].type).split("[")[0])
        if expected is float and type(value) is int:
            value = values[key] = float(value)
        if expected and type(value) is not expected:
            raise RecipeError(
                f"{where}: {key} is {value!r}; expected {fields[key].type} (YAML reads 1e-5 as text: 1.0e-5)"
            )


def _read(profile: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(profile_path(profile).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"data/recipes/{profile}.yaml is not readable YAML: {error}") from error
    if not isinstance(content, dict) or set(content) != {"defaults", "recipes"}:
        raise RecipeError(f"data/recipes/{profile}.yaml must have exactly two blocks, defaults and recipes")
    return content


def _with_parents(
    recipes: dict[str, dict[str, Any] | None], name: str, children: tuple[str, ...] = ()
) -> dict[str, Any]:
    own = dict(recipes[name] or {})
    parent = own.pop("like", None)
    if parent is None:
        return own
    if parent not in recipes or parent in (name, *children):
        raise RecipeError(f"recipe {name!r} is like {parent!r}, which is not another recipe of the profile")
    return {**_with_parents(recipes, parent, (name, *children)), **own}
