"""Where a run's numbers come from: commit, versions, device and command."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from opdgeom_utils.models import PROJECT
from opdgeom_utils.training import TRAINING_VERSION


def provenance(fingerprint: str, device: str) -> dict[str, Any]:
    """Where a run's numbers come from; times are left out of the fingerprint and of the tables."""
    packages = ("torch", "transformers", "safetensors", "tokenizers", "numpy")
    return {
        "fingerprint": fingerprint,
        "training_version": TRAINING_VERSION,
        "commit": _commit(),
        "command": " ".join(Path(a).name for a in sys.argv[:1]) + " " + " ".join(sys.argv[1:]),
        "device": device,
        "processor": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return "unknown"
    return asked.stdout.strip() or "unknown"
