"""What was measured: rows of matrices for the table, one number of each kind for the trainer's log."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from opdgeom_utils.errors import StorageError
from opdgeom_utils.metrics.noise_walk import coherence_of
from opdgeom_utils.storage import parquet_bytes, write_atomic

REWRITE = 1 / 16  # the file is written again when so much of it is new, so writing stays cheap
SUMS = (
    *("entries", "rms", "walk", "ballistic", "update_norm", "update_norm_noise"),
    *("update_sparsity", "update_sparsity_noise"),
)
MEANS = (
    *("stable_rank", "stable_rank_noise", "step_changed", "step_inside_right_activations"),
    *(f"similarity_{side}{null}" for side in ("left", "right") for null in ("", "_random_walk")),
    *(f"step_inside_{side}{null}" for side in ("left", "right") for null in ("", "_random")),
)


class WatchedTable:
    """Rows in memory, and the parquet file that holds them; the file is whole at any time."""

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path).expanduser().absolute()
        self.rows: list[dict[str, Any]] = []
        self._written = 0

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep rows, and write the file when enough of them are new."""
        if self._path is None:
            return
        self.rows += rows
        if len(self.rows) - self._written >= REWRITE * self._written:
            self.write()

    def write(self) -> None:
        """Write the file, if there is one and a row is new."""
        if self._path is not None and len(self.rows) > self._written:
            try:
                write_atomic(self._path, parquet_bytes(pd.DataFrame(self.rows)))
            except StorageError as error:  # a full disk must not end the training
                warnings.warn(f"the table of the watched run is not up to date: {error}", stacklevel=2)
            self._written = len(self.rows)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return one number of each kind over the watched matrices, without those that are not defined.

    Norms add in squares. Walk ratio, coherence and shares of entries are over all entries together; the rest are means
    over matrices.

    >>> row = {"entries": 4, "update_norm": 2.0, "update_norm_noise": 1.0, "rms": 1.0, "walk": 0.5, "ballistic": 2.0}
    >>> numbers = summary([row, row])
    >>> numbers["geometry/walk_ratio"], numbers["geometry/coherence"], round(numbers["geometry/update_norm"], 3)
    (2.0, 0.2, 2.828)
    """
    found = {name: np.array([row.get(name, math.nan) for row in rows], dtype=float) for name in (*SUMS, *MEANS)}
    entries = found["entries"]
    rms, walk, ballistic = (math.sqrt(_mean(found[name] ** 2, entries)) for name in ("rms", "walk", "ballistic"))
    numbers = {name: math.sqrt((found[name] ** 2).sum()) for name in ("update_norm", "update_norm_noise")}
    numbers["walk_ratio"] = rms / walk if walk > 0 else math.nan
    numbers["coherence"] = coherence_of(rms, walk, ballistic)
    for null in ("", "_noise"):
        numbers[f"visible_share{null}"] = 1 - _mean(found[f"update_sparsity{null}"], entries)
    numbers |= {name: _mean(found[name], np.ones(len(rows))) for name in MEANS}
    return {f"geometry/{name}": float(value) for name, value in numbers.items() if math.isfinite(value)}


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean of what is known."""
    known = np.isfinite(values)
    return float(np.average(values[known], weights=weights[known])) if known.any() else math.nan
