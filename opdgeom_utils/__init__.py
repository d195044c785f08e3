"""Measure where a fine-tuning update lies, and train toy models three ways to see what decides it.

The data flows one way: recipe -> prompts -> rollouts -> objective -> update -> checkpoint -> metric -> table ->
verdict, chart. The names below are what most users need; they are imported on first use, so ``import opdgeom_utils`` is
instant.

>>> import opdgeom_utils
>>> callable(opdgeom_utils.diagnose_pair)
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opdgeom_utils import charts, metrics
    from opdgeom_utils.checkpoints import comparison_report, open_checkpoint
    from opdgeom_utils.diagnose import diagnose_pair, diagnose_trajectory
    from opdgeom_utils.monitor import GeometryCallback, GeometryMonitor
    from opdgeom_utils.runs import load_or_train

__all__ = [
    "GeometryCallback",
    "GeometryMonitor",
    "charts",
    "comparison_report",
    "diagnose_pair",
    "diagnose_trajectory",
    "load_or_train",
    "metrics",
    "open_checkpoint",
]

_HOME = {
    "GeometryCallback": "monitor",
    "GeometryMonitor": "monitor",
    "comparison_report": "checkpoints",
    "diagnose_pair": "diagnose",
    "diagnose_trajectory": "diagnose",
    "load_or_train": "runs",
    "open_checkpoint": "checkpoints",
}


def __getattr__(name: str) -> Any:
    if name in ("charts", "metrics"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
