"""The committed tables: runs in, four parquet files and their provenance out, and back in again with a check.

``geometry`` has one row per (profile, recipe, seed, step, matrix), ``training`` one per update, ``accuracy`` one per
(checkpoint, family), ``measures`` one per number of paths, function and gradients. The book reads them, so its numbers
travel with it; :func:`load_tables` refuses tables that were made by another recipe, other weights or another training
version than today's.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats
from torch import Tensor

from opdgeom_utils import kept, storage
from opdgeom_utils.diagnose import diagnose_trajectory
from opdgeom_utils.diagnose.settings import COLUMNS, NULL_COLUMNS
from opdgeom_utils.errors import StaleResultsError
from opdgeom_utils.models import PROJECT, is_given, load_model, resolve_model, stored_state
from opdgeom_utils.provenance import beside_recipe
from opdgeom_utils.recipes import Recipe, deciding_settings, load_recipe, recipe_names
from opdgeom_utils.run_files import sha256_of
from opdgeom_utils.runs import Run
from opdgeom_utils.scopes import THROUGHOUT
from opdgeom_utils.training import TRAINING_VERSION
from opdgeom_utils.world import load_world

RESULTS = PROJECT / "data" / "results"  # a folder for each profile
SAMPLE = "sample.safetensors"
CONFIDENCE = 0.999  # that a live run agrees with the committed seeds
RunKey = tuple[str, str, int]  # profile, recipe, seed
KEYS = ["profile", "recipe", "seed", "step"]
BESIDE = {  # of provenance.beside_recipe, what has changed
    "world": "its problems, or how they are put, have changed",
    "files": "a configuration, a tokenizer or a template beside its models has changed",
    "makers": "a run that made one of its models has changed",
}
DIAGNOSE_OPTIONS: dict[str, Any] = {"eta": 1e-3, "alpha": 0.3, "rank": 64, "k": 16}


@dataclass(frozen=True)
class Tables:
    """The three result tables, and the long one of paths, function and control where it has been made."""

    geometry: pd.DataFrame
    training: pd.DataFrame
    accuracy: pd.DataFrame
    measures: pd.DataFrame | None = None


def tables_of(runs: Iterable[Run]) -> Tables:
    """Measure finished runs: every checkpoint against its reference, every metric and null."""
    runs = list(runs)
    return Tables(
        pd.concat([_tagged(run, geometry_of(run)) for run in runs], ignore_index=True),
        pd.concat([_tagged(run, run.log) for run in runs], ignore_index=True),
        pd.concat([_tagged(run, run.accuracy) for run in runs], ignore_index=True),
    )


def geometry_of(run: Run) -> pd.DataFrame:
    """Diagnose a run's trajectory, or read the table that an earlier call left in its folder.

    Recipes outside of :data:`~opdgeom_utils.scopes.THROUGHOUT` are measured at their end only, and all recipes of large
    models, whose nulls are the expected ones.
    """
    large = run.is_large
    points = run.checkpoints[-1:] if large or run.recipe.name not in THROUGHOUT else run.checkpoints
    nulls = "expected" if large else "exact"
    return kept.table(
        run.path, "geometry", lambda: diagnose_trajectory(run.reference, points, nulls=nulls, **DIAGNOSE_OPTIONS),
        "diagnose.trajectory", given=("vocabulary",),
        inputs=([point.step for point in points], DIAGNOSE_OPTIONS, COLUMNS, NULL_COLUMNS),
    )  # fmt: skip


def _tagged(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    tagged = table.assign(profile=run.recipe.profile, recipe=run.recipe.name, seed=run.seed)
    return tagged.reindex(columns=[*KEYS, *(c for c in tagged.columns if c not in KEYS)])


def sample_of(runs: Iterable[Run]) -> dict[str, Tensor]:
    """Take one matrix of each finished run, so that a page can measure it without a model of many megabytes.

    Returns the value matrix of the middle layer, fp32, at every run's end under ``<recipe>/<seed>`` and at their common
    start under ``reference``; runs that start elsewhere than the last are left out.
    """
    runs = list(runs)
    runs = [run for run in runs if run.recipe.start == runs[-1].recipe.start]
    start = stored_state(load_model(runs[-1].recipe.start))
    values = [name for name in start if name.endswith("v_proj.weight")]
    name = values[len(values) // 2]
    ends = {f"{r.recipe.name}/{r.seed}": storage.read_tensors(r.checkpoints[-1].path)[name].float() for r in runs}
    return {"reference": start[name].float(), **ends}


def load_sample(profile: str) -> dict[str, Tensor]:
    """Read the committed :func:`sample_of` a profile; StaleResultsError where there is none, or it is damaged."""
    path = results_of(profile) / SAMPLE
    if not path.is_file():
        raise StaleResultsError(
            f"{path} is missing, expected one matrix of each run. Run `make runs PROFILE={profile}`"
        )
    return storage.read_tensors(path)


def weights_of(recipe: Recipe) -> dict[str, str]:
    """Sha256 of the weights that a recipe starts from and is compared with, where they are files of the project."""
    named = {name for name in (recipe.start, recipe.teacher, recipe.anchor) if name}
    folders = {name: Path(resolve_model(name)) for name in sorted(filter(is_given, named))}
    files = {name: tuple(sorted(folder.glob("*.safetensors"))) for name, folder in folders.items()}
    return {name: _sha256_of(f, tuple(one.stat().st_mtime_ns for one in f)) for name, f in files.items() if f}


@functools.lru_cache(maxsize=64)
def _sha256_of(files: tuple[Path, ...], written: tuple[int, ...]) -> str:
    """Return the checksum of one file; of several, that of their checksums. Read once, while ``written`` stays."""
    digests = [hashlib.sha256(file.read_bytes()) for file in files]
    whole = hashlib.sha256(b"".join(digest.digest() for digest in digests))
    return (digests[0] if len(digests) == 1 else whole).hexdigest()


def results_of(profile: str) -> Path:
    """Return the folder of a profile's committed tables, there or not."""
    return RESULTS / profile


def are_committed(profile: str) -> bool:
    """Whether a profile has committed tables."""
    return (results_of(profile) / "provenance.json").is_file()


def recorded_runs(folder: Path) -> dict[RunKey, str]:
    """Fingerprint of every run that the tables in a folder hold, by (profile, recipe, seed); empty without tables."""
    return {_entry_key(entry): entry["fingerprint"] for entry in _entries(folder)}


def write_tables(
    runs: Iterable[Run], folder: Path, *, measures: pd.DataFrame | None = None, add: bool = False
) -> Tables:
    """Write the tables of ``runs`` and their provenance, each file whole or not at all.

    ``measures``: the long table of these runs, where it has been made.
    ``add``: keep the rows that the folder's tables have of other runs, whose own folders may be gone. Without it, the
    tables hold ``runs`` and nothing else.
    """
    runs = list(runs)
    fresh, made = {run_key(run) for run in runs}, tables_of(runs)
    tables = {"geometry": made.geometry, "training": made.training, "accuracy": made.accuracy}
    tables |= {} if measures is None else {"measures": measures}
    for name, table in tables.items():
        path = folder / f"{name}.parquet"
        older = _rows_to_keep(path, table) if add and path.is_file() else table.head(0)
        tables[name] = pd.concat([older, table], ignore_index=True) if len(older) else table
        storage.write_atomic(path, storage.parquet_bytes(tables[name]))
    sampled = [run for run in runs if run.is_large or load_world(run.recipe.profile).models]
    if sampled:
        _write_sample(folder / SAMPLE, sample_of(sampled), add=add)
    entries = [entry for entry in _entries(folder) if add and _entry_key(entry) not in fresh] + [
        {"recipe": run.recipe.as_dict(), "seed": run.seed, "weights": weights_of(run.recipe),
         "beside": beside_recipe(run.recipe), **run.provenance}
        for run in runs
    ]  # fmt: skip
    storage.write_json(folder / "provenance.json", {"diagnose_options": DIAGNOSE_OPTIONS, "runs": entries})
    return Tables(**tables)


def _write_sample(path: Path, own: dict[str, Tensor], *, add: bool) -> None:
    """Write a sample, beside what the file has of other runs from the same start where it is to ``add``.

    A file of another start is replaced if one of its runs is among the new ones, which now begins elsewhere. Else it
    stays as it is, and the new runs are left out.
    """
    held = storage.read_tensors(path) if add and path.is_file() else own
    if held["reference"].equal(own["reference"]):
        storage.write_tensors(path, held | own)
    elif held.keys() & own.keys() != {"reference"}:
        storage.write_tensors(path, own)


def _rows_to_keep(path: Path, fresh: pd.DataFrame) -> pd.DataFrame:
    """Rows of a stored table that the new one does not replace.

    In the long table a run replaces only the quantities that it brings: second moments carry the name of the variant
    whose objective they are of, and are measured on OPD's run.
    """
    stored = pd.read_parquet(path)
    columns = [*KEYS[:3], *(["quantity"] if "quantity" in stored else [])]
    return pd.DataFrame(stored[~stored.set_index(columns).index.isin(fresh.set_index(columns).index)])


def run_key(run: Run) -> RunKey:
    """Profile, recipe and seed: what names a run in the tables."""
    return run.recipe.profile, run.recipe.name, run.seed


def _entry_key(entry: dict[str, Any]) -> RunKey:
    return entry["recipe"]["profile"], entry["recipe"]["name"], entry["seed"]


def _entries(folder: Path) -> list[dict[str, Any]]:
    path = folder / "provenance.json"
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []


def load_tables(profile: str = "toy", folder: Path | None = None) -> Tables:
    """Read the committed tables of one profile and check that today's recipes made them.

    Tables that their provenance calls archived were made by an earlier training source. They are never made anew, so
    they must be, byte for byte, the ones that were archived. Raises StaleResultsError if the tables are missing, or a
    recipe, its weights or the training version has changed since (run ``make runs``), or an archived table has changed.
    """
    folder, again = folder or results_of(profile), f"Run `make runs PROFILE={profile}`"
    if not (folder / "provenance.json").is_file():
        raise StaleResultsError(
            f"no result tables in {folder}; expected geometry, training, accuracy and provenance. {again}"
        )
    entries, known = _entries(folder), recipe_names(profile)
    _check_archived(folder)
    for entry in (e for e in entries if e["recipe"]["profile"] == profile):
        name = entry["recipe"]["name"]
        if name not in known:
            raise StaleResultsError(f"profile {profile} has no recipe {name} any more. {again}")
        today, held = load_recipe(name, profile), entry.get("beside", {})
        now = _plain(beside_recipe(today)) if held else {}
        problems = [
            (_plain(today.settings()) != _plain(deciding_settings(entry["recipe"])), "its recipe has changed"),
            (weights_of(today) != entry["weights"], "the models it starts from have changed"),
            *((now[key] != held[key], why) for key, why in BESIDE.items() if key in held),
            (entry["training_version"] != TRAINING_VERSION, f"training is at version {TRAINING_VERSION}"),
        ]
        for stale, why in problems:
            if stale:
                raise StaleResultsError(
                    f"the committed table of {name}, seed {entry['seed']}, is out of date: {why}. {again}"
                )
    found = {name: _rows_of(folder / f"{name}.parquet", profile) for name in (f.name for f in fields(Tables))}
    for name in ("geometry", "training", "accuracy"):
        if found[name] is None or found[name].empty:
            raise StaleResultsError(f"{folder / name}.parquet holds nothing of profile {profile}. {again}")
    return Tables(**found)


def archived(folder: Path) -> dict[str, str]:
    """Return the sha256 of each table that a folder's provenance calls archived; empty where they may be made anew."""
    record = folder / "provenance.json"
    kept = json.loads(record.read_text(encoding="utf-8")).get("archived") if record.is_file() else None
    return kept["sha256"] if kept else {}


def _check_archived(folder: Path) -> None:
    for name, digest in archived(folder).items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != digest:
            raise StaleResultsError(
                f"{path} is missing or is not the table that was archived; bring it back with `git checkout -- {path}`"
            )


def _rows_of(path: Path, profile: str) -> Any:
    """Rows of one profile; None where there is no file."""
    table = pd.read_parquet(path) if path.is_file() else None
    return None if table is None else table[table["profile"] == profile].reset_index(drop=True)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Bring tuples and lists to one form, as JSON has it."""
    return json.loads(json.dumps(settings))


def check_live(live: pd.Series, committed: pd.DataFrame) -> pd.DataFrame:
    """Compare a live run's numbers with the committed seeds of the same recipe, within what one more seed would give.

    ``live``: one value per quantity.
    ``committed``: one row per seed, a column per quantity.
    Returns ``quantity, live, low, high, inside``, with the 99.9% prediction interval for one more seed,
    ``mean +- t * s * sqrt(1 + 1/n)``. Raises StaleResultsError if a live number falls outside: the code no
    longer computes what the tables say.
    """
    n = len(committed)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * (1 + 1 / n) ** 0.5 * committed[live.index].std()
    centre = committed[live.index].mean()
    frame = pd.DataFrame({"live": live, "low": centre - reach, "high": centre + reach})
    undefined = live.isna() & committed[live.index].isna().any()  # here as there: nothing was updated
    frame["inside"] = ((frame["live"] >= frame["low"]) & (frame["live"] <= frame["high"])) | undefined
    if not all(frame["inside"]):
        raise StaleResultsError(
            f"the live run does not agree with the committed seeds:\n{frame[~frame['inside']]}\n"
            "Run `make runs` and read what changed"
        )
    return frame.rename_axis("quantity").reset_index()
