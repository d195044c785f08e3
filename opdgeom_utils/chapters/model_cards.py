"""What the shipped models are and can do, read from their files and measured on held-out prompts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from safetensors import safe_open

from opdgeom_utils.models import resolve_model


def model_facts(names: Iterable[str]) -> pd.DataFrame:
    """Read size, shape and checksum of models from their folders.

    Parameters
    ----------
    names
        Shipped names such as ``anchor``, or folders.

    Returns
    -------
    DataFrame
        One row per model: ``model, parameters, layers, hidden, mlp, vocabulary, megabytes, dtype, sha256`` (first 12
        digits).
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
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()[:12],
    }
