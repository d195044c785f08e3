"""The paper's geometry metrics: tensors in, numbers out. No files, no plots.

Every metric computes in float64 where singular values or spaces are involved, refuses inputs for which its number would
mean nothing, and states its range and its source equation.
"""

from opdgeom_utils.metrics.masks import low_magnitude_mask, mask_overlap, principal_mask
from opdgeom_utils.metrics.second_moment import left_second_moment, moment_alignment, right_second_moment
from opdgeom_utils.metrics.sparsity import update_mask, update_sparsity
from opdgeom_utils.metrics.spectra import hill_estimator, normalized_spectral_shift, stable_rank
from opdgeom_utils.metrics.subspaces import PrincipalAngles, principal_angles, subspace_similarity

__all__ = [
    "PrincipalAngles",
    "hill_estimator",
    "left_second_moment",
    "low_magnitude_mask",
    "mask_overlap",
    "moment_alignment",
    "normalized_spectral_shift",
    "principal_angles",
    "principal_mask",
    "right_second_moment",
    "stable_rank",
    "subspace_similarity",
    "update_mask",
    "update_sparsity",
]
