"""What a recipe takes from others: fields of the one that it is ``like``, and the space of another one's run."""

from __future__ import annotations

import re
from typing import Any

from opdgeom_utils.errors import RecipeError
from opdgeom_utils.profile_files import choices

RUN_SPACE = re.compile(r"run:(?P<recipe>\w+)@(?P<step>\d+)")
Blocks = dict[str, dict[str, Any]]  # of a profile's recipes, as its file says them


def with_parents(recipes: Blocks, name: str) -> dict[str, Any]:
    """Return what a recipe and those that it is like say, its own words last."""
    values: dict[str, Any] = {}
    for one in reversed(lineage_of(recipes, name)):
        values |= recipes[one]
    values.pop("like", None)
    return values


def lineage_of(recipes: Blocks, name: str) -> list[str]:
    """Name a recipe, the one that it is like, and so on."""
    found = [name]
    while (parent := recipes[found[-1]].get("like")) is not None:
        if not isinstance(parent, str) or parent not in recipes or parent in found:
            others = [other for other in recipes if other not in found]
            raise RecipeError(
                f"recipe {found[-1]!r} is like {parent!r}, which is not another recipe of the profile; "
                f"{choices(parent, others)}"
            )
        found.append(parent)
    return found


def check_needed_runs(recipes: Blocks, name: str) -> None:
    """Refuse a recipe that is projected onto a run which, in the end, needs the recipe itself."""
    chain = [name]
    while found := RUN_SPACE.fullmatch(str(with_parents(recipes, chain[-1]).get("projection_space", ""))):
        chain.append(found["recipe"])
        if chain[-1] in chain[:-1]:
            raise RecipeError(
                f"recipe {name!r} can never be trained: its projection needs a run that needs itself "
                f"({' -> '.join(chain)}). Name a run with no such need"
            )
        if chain[-1] not in recipes:
            return  # said when that run is asked for
