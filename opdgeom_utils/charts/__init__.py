"""Every published figure, one function each: a tidy table in, an Altair chart with a description in words out.

>>> from opdgeom_utils import charts
>>> callable(charts.hero)
True
"""

from opdgeom_utils.charts.curves import alpha_rank_sweep, eta_sweep, metric_against_norm, training_curves
from opdgeom_utils.charts.maps import hero, localisation, scorecard
from opdgeom_utils.charts.settings import settings_against_seeds
from opdgeom_utils.charts.strips import (
    mask_overlap,
    matched_controls,
    rotation_comparison,
    sparsity_comparison,
    spectral_drift,
)
from opdgeom_utils.charts.world import accuracy_by_family, credit_per_token

__all__ = [
    "accuracy_by_family", "alpha_rank_sweep", "credit_per_token", "eta_sweep", "hero", "localisation", "mask_overlap",
    "matched_controls", "metric_against_norm", "rotation_comparison", "scorecard", "settings_against_seeds",
    "sparsity_comparison", "spectral_drift", "training_curves",
]  # fmt: skip
