"""Which entries bf16 shows as changed when the update knows nothing of the weights: more often the small ones.

Given nothing but the sizes of the weights and how many entries showed a change, this is what two of the paper's kind of
findings come to by themselves: that updates lie on small weights, and that runs change the same entries.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.metrics.inputs import check_fraction, check_size, checked
from opdgeom_utils.metrics.noise_sparsity import MAGNITUDES, check_move, codes_of, inside, sizes_of, unchanged_from


@dataclass(frozen=True)
class MaskAgreement:
    """What two update masks have in common.

    Attributes
    ----------
    of_a, of_b, jaccard : float
        Entries in both over those in the first, in the second, and in either; 0 to 1, nan where that is none.
    """

    of_a: float
    of_b: float
    jaccard: float


@checked(tensors=("w_ref",))
def gated_overlap(
    w_ref: Float[Tensor, "*shape"],
    density: float | int,
    *,
    alpha: float | int = 0.3,
    law: str = "normal",
    tolerance: float | int = 0.0,
) -> float:
    r"""Low-magnitude overlap that bf16 alone gives an update mask of this density.

    Parameters
    ----------
    w_ref : Float[Tensor, "*shape"]
        The weights before; they are rounded to bf16 first.
    density : float
        Share of entries in the mask, 0 to 1.
    alpha : float
        Share of entries that count as small, 0 to 1; see :func:`~opdgeom_utils.metrics.low_magnitude_mask`.
    law : str
        Of the displacements, ``normal`` or ``laplace``.
    tolerance : float
        Absolute difference up to which two bf16 numbers count as equal; 0 for none. Some of the literature uses 1e-5,
        which hides changes of the smallest weights.

    Returns
    -------
    float
        0 to 1; nan for a density of 0. At a density of 1 it is alpha.

    Raises
    ------
    MetricInputError
        For anything but a finite floating tensor, an unknown law, or numbers out of range.

    Notes
    -----
    Displacements have one size everywhere, whatever the weight. That size is found from the density; then each
    magnitude of bf16 has its probability p(w) of showing a change, and the overlap is the sum of p over the small
    weights over its sum over all. Nothing else goes in: no direction, no objective.

    Examples
    --------
    Below half of the density, moves are far too small for the 8: the visible ones are the small weights.

    >>> import torch
    >>> weights = torch.tensor([8.0, 1 / 64]).repeat(50)
    >>> round(gated_overlap(weights, 0.4, alpha=0.5), 6), gated_overlap(weights, 1.0, alpha=0.5)
    (1.0, 0.5)
    """
    check_fraction("alpha", alpha)
    check_fraction("density", density)
    check_move(0, law)
    check_size("tolerance", tolerance)
    if density == 0:
        return math.nan
    sizes, counts = next(sizes_of(w_ref.detach().bfloat16()))
    shown = counts * _visible(sizes, counts, float(density), law, tolerance)
    # Of entries tied in magnitude at the edge of the small ones, the share that fits is counted.
    small = np.clip(round(alpha * w_ref.numel()) - (np.cumsum(counts) - counts), 0, counts) / counts
    return float(small @ shown) / float(shown.sum())


@checked(tensors=("w_ref",))
def gated_mask_agreement(
    w_ref: Float[Tensor, "*shape"],
    density_a: float | int,
    density_b: float | int,
    *,
    law: str = "normal",
    tolerance: float | int = 0.0,
) -> MaskAgreement:
    r"""Agreement that bf16 alone gives the update masks of two runs that share nothing but their starting weights.

    Parameters
    ----------
    w_ref, law, tolerance
        As for :func:`gated_overlap`.
    density_a, density_b : float
        Share of entries in each mask, 0 to 1.

    Returns
    -------
    MaskAgreement
        ``of_a``, ``of_b`` and ``jaccard``.

    Raises
    ------
    MetricInputError
        For anything but a finite floating tensor, an unknown law, or numbers out of range.

    Notes
    -----
    Given its size, a weight shows the changes of the two runs independently, with probabilities p_a(w) and p_b(w) found
    as in :func:`gated_overlap`; entries in both masks are the sum of their product. Masks that do not look at the
    weights agree by ``density_b``, ``density_a`` and ``ab / (a + b - ab)``, which is less: both prefer small weights.

    Examples
    --------
    Half of the weights are so large that neither run shows there; among the others both show half.

    >>> import torch
    >>> weights = torch.tensor([8.0, 1 / 64]).repeat(50)
    >>> agreement = gated_mask_agreement(weights, 0.25, 0.25)
    >>> round(agreement.of_a, 6), round(agreement.of_b, 6), round(agreement.jaccard, 6)
    (0.5, 0.5, 0.333333)
    """
    for name, density in (("density_a", density_a), ("density_b", density_b)):
        check_fraction(name, density)
    check_move(0, law)
    check_size("tolerance", tolerance)
    if not density_a or not density_b:
        return MaskAgreement(*(math.nan if not d else 0.0 for d in (density_a, density_b, density_a or density_b)))
    sizes, counts = next(sizes_of(w_ref.detach().bfloat16()))
    a, b = (_visible(sizes, counts, float(density), law, tolerance) for density in (density_a, density_b))
    in_a, in_b, both = (float(counts @ shown) for shown in (a, b, a * b))
    return MaskAgreement(both / in_a, both / in_b, both / (in_a + in_b - both))


def _visible(sizes: np.ndarray, counts: np.ndarray, density: float, law: str, tolerance: float | int) -> np.ndarray:
    """Probability that each size shows its displacement, where that of all has the size that gives the density."""
    from scipy.optimize import root_scalar  # 18 MB that a worker of diagnose_pair has no use for

    low, high, _, _ = unchanged_from(codes_of(sizes), 0, tolerance)
    total = counts.sum()

    def shown(log_rms: float) -> np.ndarray:
        return 1 - inside(low, high, sizes, math.exp(log_rms), law)

    def excess(log_rms: float) -> float:
        return float(counts @ shown(log_rms)) / total - density

    ends = (math.log(MAGNITUDES[1]) - 10, math.log(MAGNITUDES[-1]))
    if excess(ends[0]) >= 0:  # zeros show any move: a mask so thin lies among them
        return np.where(sizes == 0, density * total / counts[sizes == 0].sum(), 0.0)
    if excess(ends[1]) <= 0:
        return np.full(len(sizes), density)
    found = root_scalar(excess, bracket=ends, xtol=1e-12)
    return shown(float(found.root))
