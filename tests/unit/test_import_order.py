"""Imports run one way: no room takes anything from a room above it, so no two rooms can hold each other up."""

import ast

import pytest

from opdgeom_utils import kept

#: From the ground up. A name is a folder or a module beside the folders; what is not named here lies with ``runs``.
FLOORS = [
    {"records", "vocabulary", "scopes", "intervals", "errors", "kept", "project_files", "storage"},
    {"linalg"},
    {"metrics"},
    {"checkpoints"},
    {"diagnose"},
    {"runs", "worlds", "fit"},
    {"measures", "monitor", "gpu_check"},
    {"claims", "workers"},
    {"charts"},
    {"chapters"},
    {"report"},
    {"cli"},
]
MODULES = sorted(
    path.relative_to(kept.PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for path in kept.PACKAGE.rglob("*.py")
    if path != kept.PACKAGE / "__init__.py"  # it opens every room, on first use
)


def floor_of(module: str) -> int:
    room = module.split(".")[0]
    return next((i for i, rooms in enumerate(FLOORS) if room in rooms), FLOORS.index({"runs", "worlds", "fit"}))


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_up(module: str) -> None:
    assert {name for name in kept.imports(module) if floor_of(name) > floor_of(module)} == set()


def test_every_room_has_its_floor_and_every_import_is_seen() -> None:
    folders = {path.parent.name for path in kept.PACKAGE.glob("*/__init__.py")}
    assert folders <= set().union(*FLOORS), "name the new folder's floor"
    for path in kept.PACKAGE.rglob("*.py"):
        relative = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level]
        assert not relative, f"{path}: the rule reads absolute imports"


def test_rooms_hold_no_ring() -> None:
    taken = {m.split(".")[0]: set() for m in MODULES if "." in m}
    for module in (m for m in MODULES if m.split(".")[0] in taken):
        taken[module.split(".")[0]] |= {name.split(".")[0] for name in kept.imports(module)} & set(taken)
    while free := [room for room, below in taken.items() if not below - {room}]:
        taken = {room: below - set(free) for room, below in taken.items() if room not in free}
    assert taken == {}
