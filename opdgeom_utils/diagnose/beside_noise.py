"""What a matrix is expected to show when its update has no place: columns of noise along the run's own schedule."""

import math
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from opdgeom_utils.linalg.factors import Factors
from opdgeom_utils.metrics.noise_rotation import expected_angles
from opdgeom_utils.metrics.noise_sparsity import noise_sparsity, visible_by_size
from opdgeom_utils.metrics.noise_spectrum import noise_drift
from opdgeom_utils.metrics.noise_walk import Walk, coherence_of

#: Of the run beside noise, and where noise itself lies.
WALK_COLUMNS = ["walk_ratio", "coherence", "noise_sparsity"]
PLACED = ["left_angle_mean_deg", "right_angle_mean_deg", "normalized_spectral_shift"]
MASKS = ["principal_overlap", "low_magnitude_overlap"]
PLACE_COLUMNS = [f"{metric}_noise" for metric in (*PLACED, *MASKS)]


def walk_row(
    w_ref: Float[Tensor, "*shape"], walk: Walk | None, *, eta: float | int, update_norm: float = math.nan
) -> dict[str, float]:
    """Set a tensor's update beside noise along its schedule; a tensor whose norm was not measured has one of three.

    ``w_ref``: the weights before.
    ``walk``: how far noise goes up to this checkpoint; without one nothing is returned.
    ``eta``: relative tolerance of the bf16 comparison.
    ``update_norm``: Frobenius norm of the update.

    >>> import torch
    >>> row = walk_row(torch.ones(2, 2), Walk(0.25, 1.0, 0.0), eta=1e-3, update_norm=1.0)
    >>> row["walk_ratio"], row["coherence"], round(row["noise_sparsity"], 3)
    (2.0, 0.2, 0.009)
    """
    if walk is None:
        return {}
    rms = update_norm / math.sqrt(w_ref.numel())
    return {
        "walk_ratio": rms / walk.rms if walk.rms > 0 else math.nan,
        "coherence": coherence_of(rms, walk.rms, walk.ballistic),
        "noise_sparsity": noise_sparsity(w_ref, walk.rms, eta=eta, shrinkage=walk.shrinkage),
    }


def place_row(
    w_ref: Float[Tensor, "out in"],
    factors: Factors,
    masks: dict[str, Bool[Tensor, "out in"]],
    walk: Walk | None,
    *,
    eta: float | int,
    k: int,
) -> dict[str, Any]:
    """Where noise along a schedule would leave a matrix: its overlaps with the reference masks, drift and rotation.

    The numbers of :func:`~opdgeom_utils.metrics.noise_place`, from factors and masks that are there already.
    """
    if walk is None:
        return {}
    shown = visible_by_size(w_ref, walk.rms, eta=eta, shrinkage=walk.shrinkage)
    total = float(shown.sum())
    row = {f"{name}_noise": float(shown[mask].sum()) / total if total else math.nan for name, mask in masks.items()}
    angles = expected_angles(factors.s, tuple(w_ref.shape), rms=walk.rms, k=k)
    drift = noise_drift(factors.s, tuple(w_ref.shape), rms=walk.rms, shrinkage=walk.shrinkage)
    return row | {
        "left_angle_mean_deg_noise": angles.left_deg,
        "right_angle_mean_deg_noise": angles.right_deg,
        "normalized_spectral_shift_noise": drift,
    }
