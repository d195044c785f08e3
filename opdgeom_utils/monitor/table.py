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
PAIRS = (
    ("update_sparsity", "update_sparsity_noise"),
    ("stable_rank", "stable_rank_noise"),
    *((f"similarity_{side}", f"similarity_{side}_random_walk") for side in ("left", "right")),
    *((f"step_inside_{side}", f"step_inside_{side}_random") for side in ("left", "right")),
    ("step_inside_right", "step_inside_right_activations"),
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
    over matrices. A null is of the same matrices as its number, and left out where one of them has none. Walk ratio and
    coherence are of the matrices that have a walk.

    >>> row = {"entries": 4, "update_norm": 2.0, "update_norm_noise": 1.0, "rms": 1.0, "walk": 0.5, "ballistic": 2.0}
    >>> numbers = summary([row, row])
    >>> numbers["geometry/walk_ratio"], numbers["geometry/coherence"], round(numbers["geometry/update_norm"], 3)
    (2.0, 0.2, 2.828)
    """
    found = {name: np.array([row.get(name, math.nan) for row in rows], dtype=float) for name in (*SUMS, *MEANS)}
    entries = found["entries"]
    walked = np.where(np.isfinite(found["walk"]), entries, math.nan)
    rms, walk, ballistic = (math.sqrt(_mean(found[name] ** 2, walked)) for name in ("rms", "walk", "ballistic"))
    numbers = {name: math.sqrt((found[name] ** 2).sum()) for name in ("update_norm", "update_norm_noise")}
    numbers["walk_ratio"] = rms / walk if walk > 0 else math.nan
    numbers["coherence"] = coherence_of(rms, walk, ballistic)
    for name, null in PAIRS:
        unknown = np.isnan(found[name])
        found[null] = np.where(unknown, math.nan, found[null])
        if (np.isnan(found[null]) & ~unknown).any():
            found[null] = np.full(len(rows), math.nan)
    for null in ("", "_noise"):
        numbers[f"visible_share{null}"] = 1 - _mean(found[f"update_sparsity{null}"], entries)
    numbers |= {name: _mean(found[name], np.ones(len(rows))) for name in MEANS}
    return {f"geometry/{name}": float(value) for name, value in numbers.items() if math.isfinite(value)}


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean of what is known."""
    known = np.isfinite(values) & np.isfinite(weights)
    return float(np.average(values[known], weights=weights[known])) if known.any() else math.nan
