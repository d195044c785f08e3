"""One rule for everything that is kept: it is stale when the code that decides its numbers is no longer the same.

That code is the syntax trees, without comments and docstrings, of a few *roots* and of every module that they import,
directly or not, at the top of a file or inside a function. Not followed are the modules *given*: those whose outcome is
part of the key already (a recipe's values, a tensor's). Nor is :data:`DECIDES_NO_NUMBER`. So no list of sources has to
be kept up by hand, and mending a sentence measures nothing again.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from opdgeom_utils import storage

PACKAGE = Path(__file__).parent
DECIDES_NO_NUMBER = ("errors", "records", "vocabulary")  # what is said without a number, and what numbers are called


def sources(*roots: str, given: Sequence[str] = ()) -> list[str]:
    """Return the modules whose code decides what ``roots`` compute, sorted; all are named inside the package.

    ``roots``: modules such as ``training`` or ``measures.paths``; the full name of a module will do.
    ``given``: modules and folders that are not followed, as their outcome stands in the key.

    >>> sources("linalg.factors")
    ['linalg.factors', 'linalg.gram', 'linalg.symmetric_eigen']
    >>> sources("linalg.factors", given=("linalg.gram",))
    ['linalg.factors', 'linalg.symmetric_eigen']
    """
    stops, found = (*DECIDES_NO_NUMBER, *given), set()
    waiting = [root.removeprefix(f"{PACKAGE.name}.") for root in roots]
    while waiting:
        module = waiting.pop()
        if module not in found and not any(f"{module}.".startswith(f"{stop}.") for stop in stops):
            found.add(module)
            waiting += imports(module)
    return sorted(found)


def digest(*roots: str, given: Sequence[str] = (), inputs: object = None) -> str:
    """Return the sha256 of the code behind ``roots`` (:func:`sources`) and of the ``repr`` of ``inputs``."""
    code = [f"{module}:{_parsed(_file(module).read_bytes())[0]}" for module in sources(*roots, given=given)]
    return hashlib.sha256("\0".join([*code, repr(inputs)]).encode()).hexdigest()


def table(
    folder: Path, name: str, make: Callable[[], pd.DataFrame], *roots: str, given: Sequence[str] = (), inputs: object
) -> pd.DataFrame:
    """Return the table that an earlier call left in ``folder``, or make it: code and ``inputs`` decide its age."""
    path = folder / f"{name}-{digest(*roots, given=given, inputs=inputs)[:12]}.parquet"
    if not path.is_file():
        storage.write_atomic(path, storage.parquet_bytes(make()))
    return pd.read_parquet(path)


def imports(module: str) -> set[str]:
    """Return the modules of the package that a module names in its import statements, wherever they stand.

    >>> sorted(imports("linalg.factors"))
    ['linalg.gram', 'linalg.symmetric_eigen']
    """
    named = (name.partition(".")[::2] for name in _parsed(_file(module).read_bytes())[1])
    own = [name for package, name in named if package == PACKAGE.name]
    return {name if _file(name).is_file() else name.rpartition(".")[0] for name in own}


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.lru_cache(maxsize=512)
def _parsed(content: bytes) -> tuple[str, tuple[str, ...]]:
    """Code without prose, and every name that is imported, in full."""
    tree = ast.parse(content)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return ast.unparse(tree), tuple(_imported(tree))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
