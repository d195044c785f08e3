"""Singular values and leading singular vectors, in float64, shared by the metrics.

The eigenvectors of the small Gram matrix are several times faster than a singular value decomposition, but squaring
costs digits where singular values are small. They are won back level by level: what lies below a thousandth of the
largest value is multiplied out and decomposed again on its own scale. A plain decomposition is left for one case, a gap
at a cut so narrow that the Gram matrix cannot resolve it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .gram import TallMatrix, eigenpairs, eigenvalues, gram_of

# Below this part of a level's largest singular value, values and vectors are computed again, one level down.
LEVEL = 1e-3
# A level whose largest value is this part of the largest of all holds rounding noise only.
NOISE = 1e-15
# Angles from the Gram matrix carry an error of a few 2e-16 / 1e-8 radian, about 4e-6 degree, if the squared singular
# values at a cut are at least this part of the largest apart.
GRAM_GAP = 1e-8
# No float64 method finds a leading space to 1e-5 degree if the singular values at its end are closer than this part of
# the largest: it is called undefined.
MIN_GAP = 1e-8


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

    def has_gap(self, k: int) -> bool:
        """Whether the leading k spaces are defined well enough for angles to 1e-5 degree.

        Examples
        --------
        >>> factors = factorize(torch.diag(torch.tensor([2.0, 1.0, 1.0])), cuts=(3,))
        >>> factors.has_gap(1), factors.has_gap(2), factors.has_gap(3)
        (True, False, True)
        """
        return self.relative_gap(k) >= MIN_GAP


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
    tall = TallMatrix.of(w)
    cuts = tuple(min(cut, *w.shape) for cut in cuts)
    r = max(cuts)
    s, far, tops = _right_factors(tall, tall.gram())
    if _needs_plain_decomposition(s, tops, cuts):
        near, s, fah = torch.linalg.svd(torch.cat(list(tall.blocks())), full_matrices=False)
        near, far = near[:, :r], fah[:r].T
    else:
        far = far[:, :r]
        near = _orthonormal(tall.images(far), s[:r])
    u, v = (near, far) if w.shape[0] >= w.shape[1] else (far, near)
    return Factors(u=u.contiguous(), s=s * tall.scale, vh=v.T.contiguous())


def singular_values(w: Float[Tensor, "out in"], *, leading: int | None = None) -> Float[Tensor, " p"]:
    """All singular values, descending, in float64; the first ``leading`` of them (default all) to full accuracy.

    Examples
    --------
    >>> singular_values(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [2.0, 0.0]
    """
    tall = TallMatrix.of(w)
    return scaled_singular_values(tall, leading=leading) * tall.scale


def scaled_singular_values(tall: TallMatrix, *, leading: int | None = None) -> Float[Tensor, " p"]:
    """Singular values over ``tall.scale``: a subnormal update keeps all its digits this way.

    Examples
    --------
    >>> scaled_singular_values(TallMatrix.of(torch.tensor([[0.0, 4.0], [2.0, 0.0]]))).tolist()
    [1.0, 0.5]
    """
    gram = tall.gram()
    values = eigenvalues(gram).sqrt()
    if bool(values[(leading or len(values)) - 1] > LEVEL * values[0]):
        return values
    return _right_factors(tall, gram)[0]


def _right_factors(
    tall: TallMatrix, gram: Float[Tensor, "p p"]
) -> tuple[Float[Tensor, " p"], Float[Tensor, "p p"], Float[Tensor, " p"]]:
    """All scaled singular values, their right vectors, and the largest value of the level that each came from."""
    values, vectors = eigenpairs(gram)
    s = values.clamp(min=0).sqrt()
    tops, start = s[0].expand_as(s).clone(), 0
    while True:
        start += int((s[start:] > LEVEL * s[start]).sum())
        if start == len(s) or float(tops[start]) == 0 or float(tops[start]) <= NOISE * float(s[0]):
            return s.cummin(0).values, vectors, tops
        rest = vectors[:, start:]
        values, turn = eigenpairs(gram_of(tall.images(rest)))
        vectors = torch.cat([vectors[:, :start], rest @ turn], dim=1)
        s[start:] = values.clamp(min=0).sqrt()
        tops[start:] = s[start]


def _needs_plain_decomposition(s: Float[Tensor, " p"], tops: Float[Tensor, " p"], cuts: tuple[int, ...]) -> bool:
    """Whether there is a gap at some cut inside the spectrum, but one that Gram eigenvectors do not resolve."""
    for cut in cuts:
        if cut < len(s) and float(s[cut - 1] - s[cut]) >= MIN_GAP / 2 * float(s[0]):
            squares_apart = float(s[cut - 1] ** 2 - s[cut] ** 2)
            if squares_apart < GRAM_GAP * float(tops[cut - 1]) ** 2:
                return True
    return False


def _orthonormal(images: Float[Tensor, "long r"], s: Float[Tensor, " r"]) -> Float[Tensor, "long r"]:
    """Left vectors from images of right ones, of lengths ``s``: divided by ``s`` where that leaves them orthonormal."""
    if float(s[-1]) ** 2 > 1e-3 * float(s[0]) ** 2:
        return images / s
    near, triangle = torch.linalg.qr(images)
    return torch.where(triangle.diagonal() < 0, -near, near)
