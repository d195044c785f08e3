"""Singular values and leading singular vectors, in float64, shared by the metrics.

Two roads lead to the same numbers. The short one takes the eigenvectors of the small Gram matrix and is several times
faster. It squares the condition number, so it is taken only where that cannot be seen in the result. Otherwise a plain
float64 singular value decomposition is computed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# The Gram road is left when the smallest eigenvalue, or an eigenvalue gap at a cut, is below this part of the largest.
# Angles then carry an error of about 2e-16 / 1e-8 radian, which is 1e-6 degree.
GRAM_FLOOR = 1e-8


@dataclass(frozen=True)
class Factors:
    """Leading singular vectors and all singular values of one matrix, in float64.

    Attributes
    ----------
    u : Float[Tensor, "out r"]
        Leading left singular vectors, one per column, orthonormal.
    s : Float[Tensor, " p"]
        All ``p = min(out, in)`` singular values, descending.
    vh : Float[Tensor, "r in"]
        Leading right singular vectors, one per row, orthonormal. ``u * s[:r] @ vh`` is the best rank-r approximation.
    """

    u: Float[Tensor, "out r"]
    s: Float[Tensor, " p"]
    vh: Float[Tensor, "r in"]

    def relative_gap(self, k: int) -> float:
        """Return ``(s_k - s_{k+1}) / s_1``, from 0 (no gap: the leading k space is arbitrary) to 1; nan for zero.

        ``k`` is clipped to ``min(out, in)``; beyond the last singular value comes 0.
        """
        k = min(k, len(self.s))
        beyond = self.s[k] if k < len(self.s) else torch.zeros((), dtype=self.s.dtype, device=self.s.device)
        return float((self.s[k - 1] - beyond) / self.s[0])


def factorize(w: Float[Tensor, "out in"], *, cuts: tuple[int, ...]) -> Factors:
    """Singular values of ``w`` and as many leading vectors as the largest cut asks for.

    Parameters
    ----------
    w : Float[Tensor, "out in"]
        Any floating dtype; computed in float64.
    cuts : tuple of int
        The ranks at which leading spaces will be used; each is clipped to ``min(out, in)``.

    Returns
    -------
    Factors
        With ``r = min(max(cuts), out, in)`` vectors on each side.

    Examples
    --------
    >>> factors = factorize(torch.tensor([[0.0, 3.0], [1.0, 0.0]]), cuts=(1,))
    >>> factors.s.tolist(), factors.vh.abs().tolist()
    ([3.0, 1.0], [[0.0, 1.0]])
    """
    w = w.detach().double()
    size = min(w.shape)
    cuts = tuple(min(cut, size) for cut in cuts)
    r = max(cuts)
    tall = w if w.shape[0] >= w.shape[1] else w.T
    scaled, scale = _scaled(tall)
    eigenvalues, vectors = torch.linalg.eigh(scaled.T @ scaled)
    if not _gram_is_safe(eigenvalues, cuts):
        u, s, vh = torch.linalg.svd(scaled, full_matrices=False)
        near, far, s = u[:, :r], vh[:r].T, s * scale
    else:
        images = scaled @ vectors  # column norms are more accurate singular values than the eigenvalues' roots
        s, order = images.norm(dim=0).sort(descending=True)
        far = vectors[:, order[:r]]
        near, triangle = torch.linalg.qr(images[:, order[:r]])
        near, s = near * triangle.diagonal().sign(), s * scale
    u, v = (near, far) if tall is w else (far, near)
    return Factors(u=u.contiguous(), s=s, vh=v.T.contiguous())


def singular_values(w: Float[Tensor, "out in"], *, leading: int | None = None) -> Float[Tensor, " p"]:
    """All singular values, descending, in float64; the first ``leading`` of them (default all) to full accuracy.

    Examples
    --------
    >>> singular_values(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [2.0, 0.0]
    """
    w = w.detach().double()
    scaled, scale = _scaled(w if w.shape[0] >= w.shape[1] else w.T)
    eigenvalues = torch.linalg.eigvalsh(scaled.T @ scaled).flip(0)
    last = eigenvalues[(leading or len(eigenvalues)) - 1]
    if not bool(last > GRAM_FLOOR * eigenvalues[0]):
        return torch.linalg.svdvals(scaled) * scale
    return eigenvalues.clamp(min=0).sqrt() * scale


def _scaled(w: Float[Tensor, "out in"]) -> tuple[Float[Tensor, "out in"], Float[Tensor, ""]]:
    """Divide by the largest entry, so that squares neither overflow nor vanish."""
    scale = w.abs().max()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return w / scale, scale


def _gram_is_safe(eigenvalues: Float[Tensor, " p"], cuts: tuple[int, ...]) -> bool:
    """Whether ascending Gram eigenvalues are all far from 0, and separated at every cut inside the spectrum."""
    floor = GRAM_FLOOR * eigenvalues[-1]
    inner = [cut for cut in cuts if cut < len(eigenvalues)]
    gaps_open = all(bool(eigenvalues[-cut] - eigenvalues[-cut - 1] > floor) for cut in inner)
    return bool(eigenvalues[0] > floor) and gaps_open
