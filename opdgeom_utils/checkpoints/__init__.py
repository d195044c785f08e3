"""Every form in which a trainer leaves a checkpoint, as named matrices that are read only when asked for."""

from opdgeom_utils.checkpoints.comparison import ComparisonReport, matching_names
from opdgeom_utils.checkpoints.opening import CheckpointSource, comparison_report, open_checkpoint
from opdgeom_utils.checkpoints.parameter_names import EMBEDDING, HEAD, layer_of, module_of
from opdgeom_utils.checkpoints.stored_tensors import OpenCheckpoint, StoredTensor

__all__ = [
    "EMBEDDING", "HEAD", "CheckpointSource", "ComparisonReport", "OpenCheckpoint", "StoredTensor", "comparison_report",
    "layer_of", "matching_names", "module_of", "open_checkpoint",
]  # fmt: skip
