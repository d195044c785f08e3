"""Singular values and leading singular vectors, in float64, shared by the metrics.

The eigenvectors of the small Gram matrix are several times faster than a singular value decomposition, but squaring
costs digits where singular values are small. They are won back level by level: what lies below a thousandth of the
largest value is multiplied out and decomposed again on its own scale. A plain decomposition is left for one case, a gap
at a cut so narrow that the Gram matrix cannot resolve it.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.linalg.gram import TallMatrix, eigenpairs, eigenvalues, gram_of, sum_of_grams
from opdgeom_utils.linalg.symmetric_eigen import Spectrum

# Below this part of a level's largest singular value, values and vectors are computed again, one level down.
LEVEL = 1e-3
# A level whose largest value is this part of the largest of all holds rounding noise only.
NOISE = 1e-15
# A singular value below this part of the largest is too inexact, as the length of an image, to divide by.
NEARLY_LOST = 1e-6
# Angles from the Gram matrix carry an error of a few 2e-16 / 1e-8 radian, about 4e-6 degree, if the squared singular
# values at a cut are at least this part of the largest apart.
GRAM_GAP = 1e-8
# No float64 method finds a leading space to 1e-5 degree if the singular values at its end are closer than this part of
# the largest: it is called undefined.
MIN_GAP = 1e-8


@dataclass(frozen=True, eq=False)
class Factors:
    """Singular values and leading singular vectors of one matrix, in float64.

    Vectors of the small side are there from the start. Those of the long side are as many times larger as the matrix
    is longer than wide, so they are made when they are first asked for.

    ``tall``: the matrix that was decomposed.
    ``s``: all ``p = min(out, in)`` singular values, descending.
    ``short``: leading singular vectors of the small side, one per column, orthonormal.
    ``is_wide``: whether ``in`` is larger than ``out``, so that the left vectors are the short ones.
    ``beyond``: the other singular vectors of the small side where they are fewer than ``short``; else no columns.
    """

    tall: TallMatrix
    s: Float[Tensor, " p"]
    short: Float[Tensor, "p r"]
    is_wide: bool
    beyond: Float[Tensor, "p few"]

    @property
    def u(self) -> Float[Tensor, "out r"]:
        """Leading left singular vectors, one per column, orthonormal."""
        return self.short if self.is_wide else self.long.orthonormal()

    @property
    def vh(self) -> Float[Tensor, "r in"]:
        """Leading right singular vectors, one per row. ``u * s[:r] @ vh`` is the best rank-r approximation."""
        return (self.long.orthonormal() if self.is_wide else self.short).T

    @cached_property
    def long(self) -> "LongVectors":
        """Leading singular vectors of the long side; kept, because a reference needs them once per checkpoint."""
        return LongVectors.of(self)

    @cached_property
    def long_beyond(self) -> Float[Tensor, "p few"] | None:
        """Singular vectors of the long side that go with ``beyond``; None unless the matrix is square and regular.

        They are solved for: what rounding left of the leading vectors in ``beyond`` shrinks so, while it would grow in
        the images.
        """
        size = len(self.s)
        if len(self.tall.rows) > size or not self.has_long_lengths(size):
            return None
        (*blocks,) = self.tall.blocks()
        return torch.linalg.qr(torch.linalg.solve(torch.cat(blocks).T, self.beyond)).Q

    def lengths(self, k: int) -> Float[Tensor, " k"]:
        """Return the k largest singular values over ``tall.scale``: the lengths of the images of ``short``."""
        return self.s[:k] / self.tall.scale

    def norm(self) -> float:
        """Frobenius norm of the matrix."""
        return float((self.s / self.tall.scale).norm()) * self.tall.scale

    def has_long_lengths(self, k: int) -> bool:
        """Whether dividing the first k images by their lengths leaves them near orthonormal."""
        return float(self.s[k - 1]) > NEARLY_LOST * float(self.s[0])

    def approximation(self, rank: int) -> Float[Tensor, "out in"]:
        """Return the best approximation of that rank over ``tall.scale``, from the vectors of the small side alone.

        >>> factorize(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), cuts=(1,)).approximation(1).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
        """
        leading = self.short[:, :rank]
        images = self.tall.images(leading)
        return leading @ images.T if self.is_wide else images @ leading.T

    def relative_gap(self, k: int) -> float:
        """Return ``(s_k - s_{k+1}) / s_1``, from 0 (no gap: the leading k space is arbitrary) to 1; nan for zero.

        ``k`` is clipped to ``min(out, in)``; beyond the last singular value comes 0.
        """
        k = min(k, len(self.s))
        beyond = self.s[k] if k < len(self.s) else torch.zeros((), dtype=self.s.dtype, device=self.s.device)
        return float((self.s[k - 1] - beyond) / self.s[0])

    def has_gap(self, k: int) -> bool:
        """Whether the leading k spaces are defined well enough for angles to 1e-5 degree.

        >>> factors = factorize(torch.diag(torch.tensor([2.0, 1.0, 1.0])), cuts=(3,))
        >>> factors.has_gap(1), factors.has_gap(2), factors.has_gap(3)
        (True, False, True)
        """
        return self.relative_gap(k) >= MIN_GAP


def factorize(w: Float[Tensor, "out in"], *, cuts: tuple[int, ...]) -> Factors:
    """Singular values of ``w`` and as many leading vectors as the largest cut asks for.

    ``w``: any floating dtype; computed in float64.
    ``cuts``: the ranks at which leading spaces will be used; each is clipped to ``min(out, in)``.
    With ``r = min(max(cuts), out, in)`` vectors on each side.

    >>> factors = factorize(torch.tensor([[0.0, 3.0], [1.0, 0.0]]), cuts=(1,))
    >>> factors.s.tolist(), factors.vh.abs().tolist()
    ([3.0, 1.0], [[0.0, 1.0]])
    """
    return factorize_tall(TallMatrix.of(w), cuts=cuts, is_wide=w.shape[0] < w.shape[1])


def factorize_tall(tall: TallMatrix, *, cuts: tuple[int, ...], is_wide: bool) -> Factors:
    """Factorize a matrix that is already turned, such as a sum that is never made whole."""
    cuts = tuple(min(cut, tall.rows.shape[1]) for cut in cuts)
    r = max(cuts)
    s, short, beyond, tops = _right_factors(tall, tall.gram(), r)
    if _needs_plain_decomposition(s, tops, cuts):
        _, s, vh = torch.linalg.svd(torch.cat(list(tall.blocks())), full_matrices=False)
        short, beyond = (part.T.contiguous() for part in (vh[:r], vh[r:] if beyond.shape[1] else vh[:0]))
    return Factors(tall=tall, s=s * tall.scale, short=short, is_wide=is_wide, beyond=beyond)


@dataclass(frozen=True)
class LongVectors:
    """Orthonormal vectors of the long side as a product, ``near @ inverse(triangle)``.

    The images of the small side's vectors, divided by their lengths, are orthonormal but for what the Gram matrix lost
    in small singular values. The Cholesky factor of their own products is what is missing; it is near the identity, so
    applying it costs no digits.

    ``near``: nearly orthonormal columns.
    ``triangle``: upper triangular; its leading block belongs to the leading columns.
    """

    near: Float[Tensor, "long r"]
    triangle: Float[Tensor, "r r"]

    @classmethod
    def of(cls, factors: Factors) -> "LongVectors":
        """Make the long vectors; where singular values are too small for their lengths to be known, by QR."""
        r = factors.short.shape[1]
        images = factors.tall.images(factors.short)
        if factors.has_long_lengths(r):
            near = images.div_(factors.lengths(r))
            return cls(near, cholesky(gram_of(near)))
        near, triangle = torch.linalg.qr(images)
        near = near * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
        return cls(near, torch.eye(r, dtype=near.dtype, device=near.device))

    def orthonormal(self) -> Float[Tensor, "long r"]:
        """Return the vectors themselves, one per column."""
        return torch.linalg.solve_triangular(self.triangle, self.near, upper=True, left=False)


def cholesky(gram: Float[Tensor, "r r"]) -> Float[Tensor, "r r"]:
    """Return the upper triangular factor of a positive definite matrix: its transpose times itself is the matrix.

    >>> cholesky(torch.tensor([[4.0, 2.0], [2.0, 2.0]], dtype=torch.float64)).tolist()
    [[2.0, 1.0], [0.0, 1.0]]
    """
    return torch.linalg.cholesky(gram, upper=True)


def singular_values(w: Float[Tensor, "out in"], *, leading: int | None = None) -> Float[Tensor, " p"]:
    """All singular values, descending, in float64; the first ``leading`` of them (default all) to full accuracy.

    >>> singular_values(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [2.0, 0.0]
    """
    tall = TallMatrix.of(w)
    return scaled_singular_values(tall, leading=leading) * tall.scale


def scaled_singular_values(tall: TallMatrix, *, leading: int | None = None) -> Float[Tensor, " p"]:
    """Singular values over ``tall.scale``: a subnormal update keeps all its digits this way.

    >>> scaled_singular_values(TallMatrix.of(torch.tensor([[0.0, 4.0], [2.0, 0.0]]))).tolist()
    [1.0, 0.5]
    """
    gram = tall.gram()
    values = eigenvalues(gram).sqrt()
    if bool(values[(leading or len(values)) - 1] > LEVEL * values[0]):
        return values
    return _right_factors(tall, gram, leading or len(values))[0]


def _right_factors(
    tall: TallMatrix, gram: Float[Tensor, "p p"], r: int
) -> tuple[Float[Tensor, " p"], Float[Tensor, "p r"], Float[Tensor, "p few"], Float[Tensor, " p"]]:
    """All scaled singular values, the first r right vectors, the others if those are fewer, and the top of each value.

    The top of a value is the largest value of the level that it came from.
    """
    spectrum = Spectrum.of(gram)
    s = spectrum.values.clamp(min=0).sqrt()
    tops, start = s[0].expand_as(s).clone(), int((s > LEVEL * s[0]).sum())
    end = start or len(s)  # of what the first level gives
    kept = [spectrum.vectors(0, min(r, end))]
    if r < end and len(s) < 2 * r:
        kept.append(spectrum.vectors(r, end))
    rest = spectrum.vectors(end, len(s)) if end < len(s) else s.new_empty(len(s), 0)
    while rest.shape[1] and float(tops[start]) > NOISE * float(s[0]):
        values, turn = eigenpairs(sum_of_grams(block @ rest for block in tall.blocks()))
        rest = rest @ turn
        s[start:] = values.clamp(min=0).sqrt()
        tops[start:] = s[start]
        size = int((s[start:] > LEVEL * s[start]).sum())
        if not size:  # nothing but zeros is left
            break
        kept, rest, start = [*kept, rest[:, :size]], rest[:, size:], start + size
    vectors = torch.cat([*kept, rest], dim=1)
    return s.cummin(0).values, vectors[:, :r], vectors[:, r : len(s) if len(s) < 2 * r else r], tops


def _needs_plain_decomposition(s: Float[Tensor, " p"], tops: Float[Tensor, " p"], cuts: tuple[int, ...]) -> bool:
    """Whether there is a gap at some cut inside the spectrum, but one that Gram eigenvectors do not resolve."""
    for cut in cuts:
        if cut < len(s) and float(s[cut - 1] - s[cut]) >= MIN_GAP / 2 * float(s[0]):
            squares_apart = float(s[cut - 1] ** 2 - s[cut] ** 2)
            if squares_apart < GRAM_GAP * float(tops[cut - 1]) ** 2:
                return True
    return False
