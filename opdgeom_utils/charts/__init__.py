"""Every published figure, one function each: a tidy table in, an Altair chart with a description in words out.

A figure of which every number is undefined says so, in the plot and in its description.

>>> from opdgeom_utils import charts
>>> callable(charts.hero)
True
"""

from opdgeom_utils.charts.curves import (
    alpha_rank_sweep,
    eta_sweep,
    metric_against_norm,
    run_trajectory,
    training_curves,
)
from opdgeom_utils.charts.drawings import (
    drawn_grid,
    drawn_mask,
    drawn_planes,
    drawn_ranks,
    drawn_shadow,
    drawn_spectra,
)
from opdgeom_utils.charts.heat_maps import localisation, settings_against_seeds
from opdgeom_utils.charts.noise import beside_noise, gated_overlaps, noise_sliders, walks
from opdgeom_utils.charts.one_curve import one_curve
from opdgeom_utils.charts.projected_runs import inside_shares, kept_along, kept_by_length, kept_by_space
from opdgeom_utils.charts.rows_of_points import (
    mask_overlap,
    matched_controls,
    rotation_comparison,
    sparsity_comparison,
    spectral_drift,
    variant_strips,
)
from opdgeom_utils.charts.sparsity_and_rotation import hero
from opdgeom_utils.charts.toy_world import accuracy_by_family, credit_per_token
from opdgeom_utils.charts.update_paths import against_nulls, path_slider, rounding_floor, shared_spaces, update_paths
from opdgeom_utils.charts.variant_curves import setting_sweep, variant_paths
from opdgeom_utils.charts.verdicts import scorecard

__all__ = [
    "accuracy_by_family", "against_nulls", "alpha_rank_sweep", "beside_noise", "credit_per_token", "drawn_grid",
    "drawn_mask", "drawn_planes", "drawn_ranks", "drawn_shadow", "drawn_spectra", "eta_sweep", "gated_overlaps", "hero",
    "inside_shares", "kept_along", "kept_by_length", "kept_by_space", "localisation", "mask_overlap",
    "matched_controls", "metric_against_norm", "noise_sliders", "one_curve", "path_slider", "rotation_comparison",
    "rounding_floor", "run_trajectory", "scorecard", "setting_sweep", "settings_against_seeds", "shared_spaces",
    "sparsity_comparison", "spectral_drift", "training_curves", "update_paths", "variant_paths", "variant_strips",
    "walks",
]  # fmt: skip
