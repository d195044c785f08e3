"""Notebook parameters that cannot be misspelt: an unknown name or a value of the wrong type is an error.

papermill only warns about a parameter that the notebook does not declare, and then runs with the defaults. Two checks
stop that here. Inside the notebook, the cell after the parameters calls :func:`check_parameters`; it reads the history
of executed cells, where papermill's injected cell stands. Outside, the build and the report read the parameters cell
with :func:`declared_parameters`, and :func:`check_given` refuses before anything is executed.
"""

import ast
import contextlib
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from opdgeom_utils.errors import NotebookParameterError

#: First line of the cell that papermill injects.
INJECTED = "# Parameters"
HOW_TO_PASS = "Pass lists and numbers as YAML: `papermill in.ipynb out.ipynb -y 'seeds: [0, 1]'` or `-f params.yaml`."


def declared_parameters(source: str) -> dict[str, str]:
    r"""Names and annotations declared by a parameters cell.

    Returns annotation of each name, as written, in the cell's order. Raises NotebookParameterError if a line is
    anything but ``name: type = literal``.

    >>> declared_parameters('profile: str = "toy"\nseeds: list[int] = [0, 1]')
    {'profile': 'str', 'seeds': 'list[int]'}
    >>> declared_parameters("steps = 3")
    Traceback (most recent call last):
        ...
    opdgeom_utils.errors.NotebookParameterError: parameters cell, line 1: found `steps = 3`, ...
    """
    declared: dict[str, str] = {}
    for line in ast.parse(source).body:
        match line:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value) if (
                _is_literal(value)
            ):
                declared[name] = ast.unparse(annotation)
            case _:
                raise NotebookParameterError(
                    f"parameters cell, line {line.lineno}: found `{ast.unparse(line)}`, expected `name: type = literal`"
                )
    return declared


def injected_names(history: list[str]) -> list[str]:
    r"""Names assigned by papermill's injected cell, if the executed cells hold one.

    ``history``: sources of the cells executed so far, as in IPython's ``In``. Only the last injected cell counts.

    >>> injected_names(["seed: int = 0", "# Parameters\nseed = 3\nstepz = 9", "import math"])
    ['seed', 'stepz']
    >>> injected_names(["seed: int = 0"])
    []
    """
    cells = [cell for cell in history if cell.startswith(INJECTED)]
    if not cells:
        return []
    lines = ast.parse(cells[-1]).body
    return [
        target.id
        for line in lines
        if isinstance(line, ast.Assign)
        for target in line.targets
        if isinstance(target, ast.Name)
    ]


def has_type(value: object, annotation: Any) -> bool:
    """Whether a value fits a parameter's annotation; ``True`` is no int, and an int may stand for a float.

    >>> has_type([0, 1], list[int]), has_type("0", int), has_type(True, int), has_type(1, float)
    (True, False, False, True)
    >>> has_type(None, str | None), has_type("opd", Literal["sft", "opd"]), has_type({"a": 1}, dict[str, int])
    (True, True, True)
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if annotation is None or annotation is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(has_type(value, option) for option in inner)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in inner)
    if origin is list:
        return isinstance(value, list) and all(has_type(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            has_type(k, inner[0]) and has_type(v, inner[1]) for k, v in value.items()
        )
    if isinstance(value, bool) and annotation in (int, float):
        return False
    return isinstance(value, (int, float) if annotation is float else annotation)


def check_parameters(namespace: Mapping[str, Any]) -> None:
    r"""Stop the notebook if a parameter is unknown or has the wrong type.

    Call it as ``check_parameters(globals())`` in the cell after the parameters. The declared names and types are the
    annotations of the parameters cell; the given names are those of papermill's injected cell, read from the history.

    ``namespace``: the notebook's ``globals()``: its values, ``__annotations__``, and IPython's history ``In``.
    Raises NotebookParameterError if no parameter is declared, one was given that is not declared, or a value has
    another type; MissingRunsError if the profile has no tables and is too large to be trained inside a chapter.

    >>> declared = {"__annotations__": {"seeds": list[int]}, "seeds": [0, 1]}
    >>> check_parameters({**declared, "In": ["seeds: list[int] = [0, 1]"]})
    >>> check_parameters({**declared, "In": ["# Parameters\nseed = [4]"]})
    Traceback (most recent call last):
        ...
    opdgeom_utils.errors.NotebookParameterError: unknown parameter: seed. This notebook declares: seeds...
    >>> check_parameters({**declared, "seeds": 3})
    Traceback (most recent call last):
        ...
    opdgeom_utils.errors.NotebookParameterError: parameter seeds is 3 (int), expected list[int]...
    """
    declared: dict[str, Any] = dict(namespace.get("__annotations__", {}))
    if not declared:
        raise NotebookParameterError("no declared parameters: run the parameters cell before check_parameters()")
    _refuse_unknown(injected_names(list(namespace.get("In", []))), list(declared))
    for name, annotation in declared.items():
        _check_type(name, namespace.get(name), annotation)
    if "profile" in declared:
        from opdgeom_utils.chapters.missing_runs import stop_without_runs  # brings torch, which the build needs not

        stop_without_runs(namespace["profile"])
        if said := say_other_profile(namespace["profile"], list(namespace.get("In", []))):
            from IPython.display import Markdown, display

            display(Markdown(said))


def say_other_profile(profile: str, history: list[str]) -> str:
    r"""Say whose runs a page shows, where they are not those that its text was written for; empty where they are.

    ``profile``: the profile asked for.
    ``history``: sources of the cells executed so far; the one that declares ``profile`` has the page's own.

    >>> say_other_profile("toy", ['profile: str = "toy"']), say_other_profile("toy", [])
    ('', '')
    >>> say_other_profile("mine", ['profile: str = "toy"', "# Parameters\nprofile = 'mine'"]).split(". ")[0]
    '**This page was run with profile `mine`, and written for profile `toy`.**...
    """
    match [line for cell in history for line in _lines_of(cell) if _declares_profile(line)]:
        case [ast.AnnAssign(value=ast.Constant(value=str(own))), *_] if own != profile:
            return (
                f"**This page was run with profile `{profile}`, and written for profile `{own}`.** Tables, figures and "
                f"sentences that are computed are of `{profile}`, but where they name other runs. What the text itself "
                f"says of models, problems, rates, seeds and numbers of updates is of `{own}`; a finding that it "
                f"tells as known was seen there, and may not be here."
            )
    return ""


def _lines_of(cell: str) -> list[ast.stmt]:
    try:
        return ast.parse(cell).body
    except SyntaxError:  # a line for IPython, such as %pip
        return []


def _declares_profile(line: ast.stmt) -> bool:
    return isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id == "profile"


def check_given(given: Mapping[str, object], declared: Mapping[str, str], notebook: str) -> None:
    """Stop before anything runs if a parameter is given that a notebook does not declare, or in another type.

    >>> check_given({"profile": "smoke"}, {"profile": "str"}, "01_toy_world")
    >>> check_given({"rate": "1e-6"}, {"rate": "float"}, "01_toy_world")
    Traceback (most recent call last):
        ...
    opdgeom_utils.errors.NotebookParameterError: ... YAML reads 1e-6 as text: write 1.000000e-06, with a point, or ...
    >>> check_given({"profil": "smoke"}, {"profile": "str"}, "01_toy_world")
    Traceback (most recent call last):
        ...
    opdgeom_utils.errors.NotebookParameterError: 01_toy_world: unknown parameter: profil. This notebook declares: ...
    """
    try:
        _refuse_unknown(list(given), list(declared))
        for name, value in given.items():
            _check_type(name, value, eval(declared[name], {"Literal": Literal}))
    except NotebookParameterError as error:
        raise NotebookParameterError(f"{notebook}: {error}") from None


def _check_type(name: str, value: object, annotation: Any) -> None:
    if not has_type(value, annotation):
        plain = isinstance(annotation, type) and not get_args(annotation)
        wanted = annotation.__name__ if plain else str(annotation)
        found = f"parameter {name} is {value!r} ({type(value).__name__}), expected {wanted}"
        raise NotebookParameterError(f"{found}. {_how_to_pass(name, value, annotation)}")


def _how_to_pass(name: str, value: object, annotation: Any) -> str:
    """Say how the value that was probably meant is written."""
    if isinstance(value, bool | int | float) and has_type(str(value), annotation):
        return f'It is text, so tell papermill -r {name} {value} (not -p), or quote it in YAML: {name}: "{value}".'
    if isinstance(value, str) and has_type([value], annotation):
        return f"It is a list, so tell papermill -y '{name}: [{value}]', or give it in a file of parameters."
    with contextlib.suppress(ValueError):
        if isinstance(value, str) and "e" in value.lower() and has_type(float(value), annotation):
            return f"YAML reads {value} as text: write {float(value):.6e}, with a point, or {float(value):.12f}."
    with contextlib.suppress(yaml.YAMLError):
        if isinstance(value, str) and has_type(yaml.safe_load(value), annotation):
            return f"It is no text, so tell papermill -p {name} {value} (not -r), or leave the quotes out in YAML."
    return HOW_TO_PASS


def _refuse_unknown(given: list[str], declared: list[str]) -> None:
    unknown = [name for name in given if name not in declared]
    if unknown:
        names = "parameter" if len(unknown) == 1 else "parameters"
        raise NotebookParameterError(
            f"unknown {names}: {', '.join(unknown)}. This notebook declares: {', '.join(declared)}. {HOW_TO_PASS}"
        )


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True
