"""Where Adam, fed with noise, would leave a matrix on the whole map: sparsity, masks, drift and rotation."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.linalg.factors import factorize
from opdgeom_utils.metrics.inputs import check_count, check_fraction, checked
from opdgeom_utils.metrics.masks import low_magnitude_mask, principal_mask, principal_mask_from
from opdgeom_utils.metrics.noise_rotation import expected_angles
from opdgeom_utils.metrics.noise_sparsity import noise_sparsity, visible_by_size
from opdgeom_utils.metrics.noise_spectrum import noise_drift
from opdgeom_utils.metrics.noise_walk import noise_walk_rms
from opdgeom_utils.metrics.schedules import Rates, decay_shrinkage


@dataclass(frozen=True)
class NoisePlace:
    """What every measure of a pair is expected to be if training was noise; fields have the names of its columns.

    Attributes
    ----------
    rms, update_norm : float
        Displacement of an entry, root mean square, and the norm of the update that it makes.
    update_sparsity, principal_overlap, low_magnitude_overlap : float
        0 to 1; an overlap is nan where nothing is expected to show.
    normalized_spectral_shift : float
        0 upwards.
    left_angle_mean_deg, right_angle_mean_deg : float
        0 to 90 degrees; nan where the leading space is not defined.
    """

    rms: float
    update_norm: float
    update_sparsity: float
    principal_overlap: float
    low_magnitude_overlap: float
    normalized_spectral_shift: float
    left_angle_mean_deg: float
    right_angle_mean_deg: float


@checked(matrices=("w_ref",))
def noise_place(
    w_ref: Float[Tensor, "out in"],
    learning_rates: Rates,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float | int = 1e-8,
    weight_decay: float | int = 0.0,
    eta: float | int = 1e-3,
    alpha: float | int = 0.3,
    rank: int = 64,
    k: int = 512,
) -> NoisePlace:
    """Return where noise along a schedule would leave a matrix.

    Parameters
    ----------
    w_ref : Float[Tensor, "out in"]
        The weights before, any floating dtype. They are trained in fp32 and shown in bf16.
    learning_rates : sequence of float
        The rate of each update.
    betas, eps, weight_decay
        Of the optimiser, as in :func:`~opdgeom_utils.metrics.noise_walk_rms`. Weight decay changes what bf16 shows,
        and it is in the drift; a shrunken matrix keeps its spaces, so rotation has none of it.
    eta, alpha, rank, k
        As in :func:`~opdgeom_utils.diagnose_pair`.

    Returns
    -------
    NoisePlace
        Expected values. They know amounts and no directions: an update of this size may lie anywhere.

    Raises
    ------
    MetricInputError
        For anything but a finite floating matrix, or options out of range.

    Examples
    --------
    Noise of rms 1/100 seldom shows at 8, where half a step is 1/32 or 1/64, and nearly always elsewhere.

    >>> import torch
    >>> place = noise_place(torch.tensor([[8.0, 1 / 4], [1 / 8, 1 / 16]]), [0.01], alpha=0.25, k=1)
    >>> round(place.rms, 6), round(place.update_norm, 6), round(place.update_sparsity, 2)
    (0.01, 0.02, 0.26)
    >>> round(place.low_magnitude_overlap, 2), round(place.principal_overlap, 2)
    (0.33, 0.02)
    """
    check_fraction("alpha", alpha)
    check_count("rank", rank)
    check_count("k", k)
    rms = noise_walk_rms(learning_rates, betas=betas, eps=eps, weight_decay=weight_decay)
    shrinkage = decay_shrinkage(learning_rates, weight_decay=weight_decay)
    shown = visible_by_size(w_ref, rms, eta=eta, shrinkage=shrinkage)
    whole = rank >= min(w_ref.shape)
    factors = factorize(w_ref, cuts=(1,) if whole else (rank,))
    if whole:
        principal = principal_mask(w_ref, rank=rank, alpha=alpha)
    else:
        principal = principal_mask_from(factors, rank=rank, alpha=alpha)
    small = low_magnitude_mask(w_ref, alpha=alpha)
    angles = expected_angles(factors.s, tuple(w_ref.shape), rms=rms, k=k)
    return NoisePlace(
        rms=rms,
        update_norm=rms * w_ref.numel() ** 0.5,
        update_sparsity=noise_sparsity(w_ref, rms, eta=eta, shrinkage=shrinkage),
        principal_overlap=float(shown[principal].sum() / shown.sum()),
        low_magnitude_overlap=float(shown[small].sum() / shown.sum()),
        normalized_spectral_shift=noise_drift(factors.s, tuple(w_ref.shape), rms=rms, shrinkage=shrinkage),
        left_angle_mean_deg=angles.left_deg,
        right_angle_mean_deg=angles.right_deg,
    )
