"""The paper's geometry metrics: tensors in, numbers out. No files, no plots.

Every metric computes in float64 where singular values or spaces are involved, refuses inputs for which its number would
mean nothing, and states its range and its source equation.
"""

from opdgeom_utils.metrics.masks import low_magnitude_mask, mask_overlap, principal_mask
from opdgeom_utils.metrics.noise_masks import MaskAgreement, gated_mask_agreement, gated_overlap
from opdgeom_utils.metrics.noise_place import NoisePlace, noise_place
from opdgeom_utils.metrics.noise_rotation import NoiseAngles, noise_angles
from opdgeom_utils.metrics.noise_sparsity import noise_sparsity, noise_sparsity_without_master, shuffled_sparsity
from opdgeom_utils.metrics.noise_spectrum import drift_without_decay, noise_spectral_shift
from opdgeom_utils.metrics.noise_walk import coherence, noise_walk_rms, walk_ratio
from opdgeom_utils.metrics.schedules import ballistic_rms, decay_shrinkage, learning_rate_schedule
from opdgeom_utils.metrics.second_moment import left_second_moment, moment_alignment, right_second_moment
from opdgeom_utils.metrics.sparsity import update_mask, update_sparsity
from opdgeom_utils.metrics.spectra import hill_estimator, normalized_spectral_shift, stable_rank
from opdgeom_utils.metrics.subspaces import PrincipalAngles, principal_angles, subspace_similarity

__all__ = [
    "MaskAgreement", "NoiseAngles", "NoisePlace", "PrincipalAngles", "ballistic_rms", "coherence", "decay_shrinkage",
    "drift_without_decay", "gated_mask_agreement", "gated_overlap", "hill_estimator", "learning_rate_schedule",
    "left_second_moment", "low_magnitude_mask", "mask_overlap", "moment_alignment", "noise_angles", "noise_place",
    "noise_sparsity", "noise_sparsity_without_master", "noise_spectral_shift", "noise_walk_rms",
    "normalized_spectral_shift", "principal_angles", "principal_mask", "right_second_moment", "shuffled_sparsity",
    "stable_rank", "subspace_similarity", "update_mask", "update_sparsity", "walk_ratio",
]  # fmt: skip
