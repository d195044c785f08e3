"""The file of a profile, ``data/recipes/<profile>.yaml``: read, looked at, and put over the one that it is ``like``.

Whoever finds a slip in it says where that is written (:func:`place_of`), what was expected, and which word is near.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from opdgeom_utils.errors import OpdGeomError, RecipeError, UnknownProfileError
from opdgeom_utils.project_files import PROJECT

RECIPES = PROJECT / "data" / "recipes"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same loader in C, ten times as fast, where it was built
BLOCKS = ("like", "world", "defaults", "recipes")
KEYS_OF_TEXT = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
BEGIN = "`like: smollm2-135m`, and below it what differs (book/bring_your_own_model.md)"

#: Of a field's type: what YAML has to hold, in words, and whether a value is that.
FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number (0, 1, 2, ...)", lambda v: type(v) is int and v >= 0),
    "float": ("a number (YAML reads 1e-5 as text: write 1.0e-5)", lambda v: type(v) in (int, float)),
    "bool": ("true or false", lambda v: type(v) is bool),
    "str": ("a text", lambda v: type(v) is str),
    "str | None": ("a text, or null for none", lambda v: v is None or type(v) is str),
    "tuple[int, ...]": ("a list of whole numbers", lambda v: type(v) is list and {*map(type, v)} == {int}),
    "tuple[float, float]": ("two numbers", lambda v: type(v) is list and [*map(type, v)] == [float, float]),
    "dict[str, list[Any]]": (
        "a block of families with lists of levels, {sum: [1, 2]}",
        lambda v: type(v) is dict and {*map(type, v.values())} <= {list},
    ),
    "dict[str, int]": ("a block of families with whole numbers, {sum: 2}", lambda v: type(v) is dict),
}


def profile_path(profile: str) -> Path:
    """Return the file of a profile.

    >>> profile_path("toy").name
    'toy.yaml'
    """
    path = RECIPES / f"{profile}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in RECIPES.glob("*.yaml") if p.stem != "models")  # of the shipped models
        raise UnknownProfileError(
            f"unknown profile {profile!r}: there is no {path.name} in data/recipes; {choices(profile, known)}; or "
            "write one of your own there, with like: and the name of one of these"
        )
    return path


def read_profile(profile: str, children: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the blocks of a profile's file, on top of those of the profile that it is ``like``.

    Raises UnknownProfileError if there is no such file. Raises RecipeError if it is not readable YAML, has other blocks
    than ``like``, ``world``, ``defaults`` and ``recipes``, says a thing twice, lacks a block, or is like itself.
    """
    path = profile_path(profile)
    try:
        content = _read(profile, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"data/recipes/{path.name} is not UTF-8 text ({error}); save it as UTF-8") from error
    parent = content.get("like")
    if parent in (profile, *children):
        raise RecipeError(
            f"{place_of(profile, ('like',))}: {profile} is like {parent}, which is like {profile}; expected another "
            "profile"
        )
    if parent is not None:
        with written_at(profile, ("like",)):
            below = read_profile(parent, (profile, *children))
        return _on_top(below, content)
    if missing := [block for block in ("defaults", "recipes") if block not in content]:
        raise RecipeError(
            f"data/recipes/{profile}.yaml has {' and '.join(content) or 'no block'}, not {' and '.join(missing)}; "
            f"add what it lacks, or begin with {BEGIN}"
        )
    return content


def place_of(profile: str, *paths: tuple[str, ...]) -> str:
    """Say where the first of these keys stands that a profile, or one that it is like, says: file and line.

    ``paths``: each from the top of the file down, such as ``("recipes", "opd", "steps")``.

    >>> place_of("smollm2-135m", ("world", "no such key"), ("world",))
    'data/recipes/smollm2-135m.yaml, line 4'
    >>> place_of("smollm2-135m", ("no such block",))
    'data/recipes/smollm2-135m.yaml'
    """
    files = list(_files(profile))
    for path in paths:
        for name, root in files:
            if key := _at(root, path)[0]:
                return f"data/recipes/{name}.yaml, line {key.start_mark.line + 1}"
    return f"data/recipes/{profile}.yaml"


@contextmanager
def written_at(profile: str, *paths: tuple[str, ...]) -> Iterator[None]:
    """Say of an error that comes up inside where the profile has what it is about: :func:`place_of`."""
    try:
        yield
    except OpdGeomError as error:
        raise type(error)(f"{place_of(profile, *paths)}: {error}") from error


def choices(word: object, known: Iterable[str]) -> str:
    """Say which of the known words was probably meant, or all of them.

    >>> choices("stepz", ["steps", "seeds"]), choices("lr", ["steps", "seeds"])
    ("did you mean 'steps'?", 'expected one of steps, seeds')
    """
    known = list(known)
    near = difflib.get_close_matches(str(word), known, 1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"


@functools.lru_cache(maxsize=8)  # a table of a hundred runs asks for one file two hundred times
def _read(profile: str, text: str) -> dict[str, Any]:
    """Return what one file says, each block of it a dictionary; whoever reads it copies before changing anything."""
    file = f"data/recipes/{profile}.yaml"
    try:
        loader = LOADER(text)
        root = loader.get_single_node()
        _check_keys(file, root)
        content = loader.construct_document(root) if root else None
    except yaml.YAMLError as error:
        mark, said = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        raise RecipeError(
            f"{file}{f', line {mark.line + 1}' if mark else ''}: not readable as YAML ({said}). Indent with spaces, "
            "close every bracket, and quote a text that has a colon or begins with a sign"
        ) from error
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds {content!r:.60}"
        raise RecipeError(f"{file} {found}; expected the blocks {', '.join(BLOCKS)}. Begin with {BEGIN}")
    for key, block in content.items():
        if key not in BLOCKS:
            raise RecipeError(f"{place_of(profile, (key,))}: unknown block {key!r}; {choices(key, BLOCKS)}")
        if key == "like" and not isinstance(block, str):
            raise RecipeError(f"{place_of(profile, (key,))}: like is {block!r}; expected the name of one profile")
    for block in content.keys() & {*BLOCKS[1:]}:
        _make_block(profile, content, block)
    for outer, inner in [
        ("world", "models"),
        ("world", "tasks"),
        *(("recipes", n) for n in content.get("recipes", ())),
    ]:
        if inner in content.get(outer, ()):
            _make_block(profile, content[outer], outer, inner)
    return content


def _make_block(profile: str, holder: dict[str, Any], *path: str) -> None:
    """Take nothing for an empty block, and refuse what is none."""
    found = holder[path[-1]]
    if not isinstance(found, dict | None):
        raise RecipeError(
            f"{place_of(profile, path)}: {'.'.join(path)} is {found!r:.60}; expected a block of `name: value` lines"
        )
    holder[path[-1]] = found or {}


def _check_keys(file: str, node: Any) -> None:
    """Refuse a key that stands twice in a block, where YAML keeps the last, and one that YAML takes for no text."""
    inside: dict[str, int] = {}
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    for key, value in pairs:
        line = key.start_mark.line + 1
        if key.tag not in KEYS_OF_TEXT:
            raise RecipeError(
                f"{file}, line {line}: the key {key.value!r} is no text; expected a name. Quote or mend it"
            )
        if key.value in inside:
            raise RecipeError(
                f"{file}, line {line}: {key.value} stands in line {inside[key.value]} already; expected it once. Put "
                "both together"
            )
        inside[key.value] = line
        _check_keys(file, value)


def _files(profile: str) -> Iterator[tuple[str, Any]]:
    """Yield the nodes of a profile's file, then of the one that it is like, and so on."""
    seen: list[str] = []
    while profile not in seen and (path := RECIPES / f"{profile}.yaml").is_file():
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=LOADER)
        yield profile, root
        seen.append(profile)
        parent = _at(root, ("like",))[1]
        profile = parent.value if isinstance(parent, yaml.ScalarNode) else profile


def _at(node: Any, path: tuple[str, ...]) -> tuple[Any, Any]:
    """Return the nodes of a key and of its value; of nothing where it is not said."""
    key = None
    for name in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        key, node = next(((k, v) for k, v in pairs if k.value == name), (None, None))
    return key, node


def _on_top(parent: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Put what a profile says over its parent's: keys of the world, its models, defaults, fields of recipes."""
    both = {block: {**parent.get(block, {}), **own.get(block, {})} for block in BLOCKS[1:]}
    for outer, inner in [("world", "models"), *(("recipes", name) for name in own.get("recipes", ()))]:
        below, above = (said.get(outer, {}).get(inner, {}) for said in (parent, own))
        both[outer][inner] = {**below, **above}
    return both
