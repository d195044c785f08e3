"""The whole check: its parts in order, and the JSON file that holds what they found."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from opdgeom_utils import kept, storage
from opdgeom_utils.errors import NoCardError, StorageError
from opdgeom_utils.gpu_check.agreement import metrics_agree, student_agrees
from opdgeom_utils.gpu_check.parts import Part, Place, run_part
from opdgeom_utils.gpu_check.presets import card_found
from opdgeom_utils.gpu_check.speed import diagnostics
from opdgeom_utils.gpu_check.toy_runs import toy_run
from opdgeom_utils.gpu_check.updates import one_update

SCHEMA = 1  # raise it when a name in the file changes its meaning
MINUTES = 18.0  # no part begins later
PARTS: dict[str, Part] = {
    "metrics_agree": metrics_agree,
    "student_agrees": student_agrees,
    "diagnostics_0.6b": diagnostics("0.6B"),
    "update_opd": one_update("opd"),
    "update_rlvr": one_update("rlvr"),
    "toy_opd": toy_run("opd"),
    "toy_rlvr": toy_run("rlvr", "first_regime"),  # of the archived runs: profile toy's takes 800 updates
    "toy_sft": toy_run("control_sft"),
    "diagnostics_8b": diagnostics("8B"),
}


def check_card(
    out: Path, *, device: str = "cuda", tiny: bool = False, parts: dict[str, Part] | None = None,
    minutes: float = MINUTES,
) -> dict[str, Any]:  # fmt: skip
    """Run every part and keep what it found; a part that fails is recorded, and the next one begins.

    The file is whole after each part, so that a check which is stopped leaves what it has.

    ``out``: the JSON file.
    ``device``: ``cuda`` or ``cpu``.
    ``tiny``: small shapes: a test of the check, no evidence about a card.
    ``parts``: what to run; everything by default.
    ``minutes``: after so many no part begins; those left are recorded as not run.
    Returns what the file holds: ``schema, device, tiny, card, machine, versions, started, parts, seconds, passed``.
    Each part has ``passed, seconds, peak_bytes, result, faults``. Raises NoCardError if there is no CUDA card and no
    processor was asked for. Raises StorageError if the file cannot be written, or holds a check of true shapes that
    ``tiny`` would overwrite.
    """
    place = _place(device, tiny)
    if tiny and out.is_file() and '"tiny": false' in out.read_text(encoding="utf-8"):
        raise StorageError(
            f"{out} holds a check of true shapes; expected another file for a tiny one (--out tiny.json)"
        )
    began, record = time.monotonic(), {**_described(place), "parts": {}, "seconds": 0.0, "passed": False}
    storage.write_json(out, record)
    chosen = PARTS if parts is None else parts
    for name, part in chosen.items():
        left = minutes * 60 - (time.monotonic() - began)
        entry = run_part(part, place) if left > 0 else _not_run(minutes)
        record["parts"][name] = entry
        record["seconds"] = round(time.monotonic() - began, 1)
        print(f"{name:18s} {'passed' if entry['passed'] else 'FAILED'} {entry['seconds']:8.1f} s", flush=True)
        for fault in entry["faults"]:
            print(f"  {fault}", flush=True)
        storage.write_json(out, record)
    record["passed"] = all(entry["passed"] for entry in record["parts"].values())
    storage.write_json(out, record)
    return record


def _place(device: str, tiny: bool) -> Place:
    if device == "cuda" and not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise NoCardError(
            f"torch {torch.__version__}, {build}, finds no card; expected one that `nvidia-smi` lists. Run this where "
            "there is one, with a torch for CUDA (pytorch.org), or try the check itself: "
            "opdgeom gpu-check --device cpu --tiny"
        )
    if device == "cpu" and not tiny:
        raise NoCardError("--device cpu goes with --tiny: the true shapes would take a processor hours")
    return Place(torch.device(device), tiny)


def _not_run(minutes: float) -> dict[str, Any]:
    late = f"not run: the check had taken {minutes:.0f} minutes"
    return {"passed": False, "seconds": 0.0, "peak_bytes": None, "result": {}, "faults": [late]}


def _described(place: Place) -> dict[str, Any]:
    """Machine, card and versions; no name of a host or a person."""
    card = card_found() if place.device.type == "cuda" else None
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "opdgeom-utils")}
    return {
        "schema": SCHEMA,
        "device": place.device.type,
        "tiny": place.tiny,
        "card": card and dataclasses.asdict(card),
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count(),
                    "python": platform.python_version()},
        "versions": {**versions, "cuda": torch.version.cuda, "source": kept.digest("gpu_check.record")[:12]},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
