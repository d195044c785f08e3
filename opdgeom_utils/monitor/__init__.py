"""A training run watched while it runs: where its update lies, beside what noise of the same size would show.

:class:`GeometryCallback` is for transformers' Trainer and every TRL trainer, :class:`GeometryMonitor` for a plain loop.
"""

from opdgeom_utils.monitor.callback import GeometryCallback
from opdgeom_utils.monitor.watch import GeometryMonitor

__all__ = ["GeometryCallback", "GeometryMonitor"]
