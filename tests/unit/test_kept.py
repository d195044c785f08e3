"""One rule of staleness: what is kept is made again when code that decides its numbers has changed, and only then."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from opdgeom_utils import diagnose_pair, kept, results, runs, storage
from opdgeom_utils.diagnose import fan_out
from opdgeom_utils.measures import functional, moments, path_nulls, path_overlaps, paths
from opdgeom_utils.measures.long_table import as_measures
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.runs import Run, load_or_train
from tests.tiny_world import World

PACKAGE = kept.PACKAGE
FAMILIES = {
    "path": (paths, "_measure_path", paths.path_measures),
    "nulls": (path_nulls, "_measure_nulls", path_nulls.path_null_measures),
    "overlaps": (path_overlaps, "_measure", lambda run: path_overlaps.overlap_measures([run])),
    "function": (functional, "_measured", functional.function_measures),
    "moments": (moments, "_measure", moments.moment_measures),
}
DEEP = {
    "opd": ("families.py", "rollouts.py", "objectives.py", "evaluation.py"),
    "untrained": ("models.py",),
    "part": ("linalg/gram.py", "linalg/bf16_bits.py", "metrics/masks.py", "diagnose/nulls.py"),
    "geometry": ("linalg/gram.py", "diagnose/nulls.py", "checkpoints/stored_tensors.py", "checkpoints/layouts.py"),
    "path": ("linalg/gram.py", "metrics/spectra.py", "models.py"),
    "nulls": ("linalg/symmetric_eigen.py", "diagnose/nulls.py", "projection.py", "training.py", "families.py"),
    "overlaps": ("linalg/gram.py", "measures/paths.py"),
    "function": ("families.py", "rollouts.py", "scoring.py"),
    "moments": ("families.py", "batches.py", "metrics/second_moment.py"),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, which the rule reads in the package's place."""
    copy = tmp_path / "copy" / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(kept, "PACKAGE", copy)
    return copy


@pytest.fixture
def makings(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], int]:
    """Ask for a kept thing of one kind, and return how often it has been made so far."""
    run, count = Run(load_recipe("opd", "tiny"), 0, world.runs / "opd-s0"), []
    profile = yaml.safe_load((world.recipes / "tiny.yaml").read_text())
    profile["recipes"]["untrained"] = {"start": "untrained:tiny"}
    (world.recipes / "tiny.yaml").write_text(yaml.safe_dump(profile))
    pair = [shutil.copy(world.models / "anchor" / "model.safetensors", tmp_path / f"{n}.safetensors") for n in "ab"]

    def made(*_: object, **__: object) -> pd.DataFrame:
        count.append(1)
        return as_measures([])

    def trained(run: Run, device: str) -> None:
        count.append(1)
        storage.write_json(run.path / "DONE", {})

    monkeypatch.setattr(runs, "_train", trained)
    monkeypatch.setattr(results, "diagnose_trajectory", made)
    for module, inner, _ in FAMILIES.values():
        monkeypatch.setattr(module, inner, made)
    plain = fan_out.measure_checkpoints
    monkeypatch.setattr(fan_out, "measure_checkpoints", lambda *a, **k: (count.append(1), plain(*a, **k))[1])

    def ask(kind: str) -> int:
        if kind in FAMILIES:
            FAMILIES[kind][2](run)
        elif kind == "geometry":
            results.geometry_of(run)
        elif kind == "part":
            diagnose_pair(*pair, k=2, rank=2, modules=["q_proj"], nulls=False, out=tmp_path / "out")
        else:
            load_or_train(kind, profile="tiny")
        return len(count)

    return ask


def change(file: Path, code: str = "") -> None:
    """Add code to a module, or else change a sentence of it and add comments."""
    text = file.read_text(encoding="utf-8")
    prose = text.replace('"""', '"""Another sentence. ', 1).replace("\n\n\n", "\n\n\n# a comment\n\n\n")
    file.write_text(f"{text}\n\n{code}\n" if code else f"{prose}# the end\n", encoding="utf-8")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in DEEP.items() for name in names])
def test_code_deep_in_the_chain_refuses_what_was_kept(
    kind: str, name: str, package: Path, makings: Callable[[str], int]
) -> None:
    once = makings(kind)
    assert makings(kind) == once >= 1
    change(package / name, "EXTRA = 1")
    assert makings(kind) == 2 * once


@pytest.mark.parametrize("kind", DEEP)
def test_prose_and_strangers_keep_it(kind: str, package: Path, makings: Callable[[str], int]) -> None:
    once = makings(kind)
    for file in package.rglob("*.py"):
        change(file)
    strangers = ("errors.py", "runs.py", "workers.py", "model_surgery.py", "measures/of_runs.py", "vocabulary.py")
    showing = [file for folder in ("charts", "chapters", "claims") for file in (package / folder).glob("*.py")]
    for file in [*(package / name for name in strangers), *showing]:
        change(file, "EXTRA = 1")
    assert makings(kind) == once


def test_a_recipe_stands_for_itself_in_a_run(package: Path, makings: Callable[[str], int]) -> None:
    once = makings("opd")
    for stranger in ("recipes.py", "checkpoints/opening.py", "diagnose/trajectory.py", "models.py", "storage.py"):
        change(package / stranger, "EXTRA = 1")
    assert makings("opd") == once


def test_imports_are_followed_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "opdgeom_utils"
    files = {
        "__init__.py": "", "root.py": "def f():\n    from opdgeom_utils.room import door\n    import numpy\n",
        "room/__init__.py": "from opdgeom_utils import hall as h", "room/door.py": "import opdgeom_utils.room.lock",
        "room/lock.py": "from opdgeom_utils.room import NAME", "hall.py": "from opdgeom_utils.errors import E",
        "errors.py": "",
    }  # fmt: skip
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.setattr(kept, "PACKAGE", package)
    assert (
        kept.sources("root") == kept.sources("opdgeom_utils.root") == ["hall", "room", "room.door", "room.lock", "root"]
    )
    assert kept.sources("root", given=("room",)) == ["root"]
    assert kept.sources("root", given=("room.lock",)) == ["room.door", "root"]
    assert kept.digest("root") != kept.digest("root", inputs=1)
    with pytest.raises(FileNotFoundError):
        kept.sources("gone")


def test_prose_is_left_out_everywhere_and_strings_are_not(package: Path) -> None:
    digests = []
    for text in (
        '"""M."""\nclass A:\n    """C."""\n    async def f(self):\n        """F."""\n        return "x"  # why\n',
        'class A:\n    async def f(self):\n        # because\n        return ("x")\n',
        'class A:\n    async def f(self):\n        return "y"\n',
    ):
        (package / "made.py").write_text(text)
        digests.append(kept.digest("made"))
    assert digests[0] == digests[1] != digests[2]
