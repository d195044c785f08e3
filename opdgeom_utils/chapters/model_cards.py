"""What the shipped models are and can do, read from their files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from safetensors import safe_open

from opdgeom_utils.models import resolve_model
from opdgeom_utils.run_files import sha256_of


def model_facts(names: Iterable[str]) -> pd.DataFrame:
    """Read size, shape and checksum (first 12 digits) of models from their folders, shipped names or paths.

    One row per model: ``model, parameters, layers, hidden, mlp, vocabulary, megabytes, dtype, sha256``.
    """
    return pd.DataFrame([_facts(name) for name in names])


def _facts(name: str) -> dict[str, object]:
    folder = Path(resolve_model(name))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = folder / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        stored = file.keys()
        slices = [file.get_slice(key) for key in stored]
        sizes = [math.prod(part.get_shape()) for part in slices]
        dtypes = sorted({part.get_dtype() for part in slices})
    return {
        "model": name,
        "parameters": sum(sizes),
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "mlp": config["intermediate_size"],
        "vocabulary": config["vocab_size"],
        "megabytes": weights.stat().st_size / 1e6,
        "dtype": ", ".join(dtypes),
        "sha256": sha256_of(weights)[:12],
    }


def card_accuracy(name: str) -> dict[str, float]:
    """Read the mean accuracy, ``greedy`` and ``sampled``, that a model's card prints; nan where there is none."""
    path = Path(resolve_model(name)) / "README.md"
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = {kind: re.search(rf"mean {kind} (\d\.\d+)", card) for kind in ("greedy", "sampled")}
    return {kind: float(number.group(1)) if number else math.nan for kind, number in found.items()}
