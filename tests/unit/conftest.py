"""Fixtures: untrained models under the shipped names, a profile of four short recipes, shards of real processes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

from opdgeom_utils import models, profile_files
from opdgeom_utils.checkpoints.mapped_tensors import FileTensor
from opdgeom_utils.recipes import Recipe
from tests.tiny_world import DEFAULTS, RECIPES, World, save_tiny


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny models under the shipped names; tests only read them."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "anchor", "teacher")):
        save_tiny(folder / name, seed)
    return folder


@pytest.fixture
def world(tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The package pointed at the tiny models, at a profile file of its own, and at an empty folder of runs."""
    found = World(tiny_models, tmp_path / "recipes", tmp_path / "runs")
    found.recipes.mkdir()
    content = {"defaults": DEFAULTS, "recipes": RECIPES}
    (found.recipes / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(models, "MODELS", found.models)
    monkeypatch.setattr(profile_files, "RECIPES", found.recipes)
    monkeypatch.setenv("OPDGEOM_RUNS", str(found.runs))
    return found


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """Build a recipe of the tiny world; keyword arguments replace its values."""

    def made(**changes: Any) -> Recipe:
        values = {**DEFAULTS, "name": "made", "profile": "tiny", **changes}
        for key in ("checkpoints", "seeds"):
            values[key] = tuple(values[key])
        return Recipe(**values)

    return made


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four real processes leave: rank files on two meshes and a distributed folder; tests only read them."""
    folder = tmp_path_factory.mktemp("shards")
    script = Path(__file__).parents[1] / "write_shards.py"
    command = [sys.executable, "-W", "ignore", str(script), str(folder)]
    ranks = [subprocess.Popen([*command, str(rank), "4"], stderr=subprocess.PIPE) for rank in range(4)]
    errors = [rank.communicate(timeout=600)[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 4, "\n".join(errors)
    return folder


@pytest.fixture
def entries_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries each reading of a tensor of a torch file took, in order."""
    read, counts = FileTensor.__call__, []

    def counted(self: FileTensor, cuts: tuple[Any, ...]) -> Tensor:
        part = read(self, cuts)
        counts.append(part.numel())
        return part

    monkeypatch.setattr(FileTensor, "__call__", counted)
    return counts
