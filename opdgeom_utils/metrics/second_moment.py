r"""What noisy gradients have in common: their second moments, compared, fitted and mixed (arXiv 2606.07082, mechanism).

``N`` gradients of one weight matrix, one per batch, are a tensor (N, out, in). The right second moment
:math:`E[G^\top G]` says which input directions they use and how much, the left one :math:`E[G G^\top]` which output
directions. Everything is computed in float64. ``r2`` is always the share of the moment's squared Frobenius norm that a
prediction explains, :math:`1 - \|\Sigma - \hat\Sigma\|_F^2 / \|\Sigma\|_F^2`: 1 is exact, 0 no better than predicting
nothing, below 0 worse. It is not centred, so a moment that is mostly one multiple of the identity is already explained
well by the identity: read it beside that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.metrics.inputs import check_count, check_finite_tensor, check_fraction, checked

SIDES = ("right", "left")


@dataclass(frozen=True)
class MomentFit:
    """A moment as ``scale`` times another plus ``noise`` times the identity, and the share of it (``r2``) explained."""

    scale: float
    noise: float
    r2: float


def right_second_moment(gradients: Float[Tensor, "N out in"]) -> Float[Tensor, "in in"]:
    r"""Mean over batches of :math:`G^\top G`.

    Parameters
    ----------
    gradients : Float[Tensor, "N out in"]
        One gradient of the matrix per batch.

    Returns
    -------
    Float[Tensor, "in in"]
        Symmetric, positive semi-definite, float64, in squared units of the gradient.

    Raises
    ------
    MetricInputError
        For anything but a finite floating tensor of three dimensions.

    Examples
    --------
    >>> right_second_moment(torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])).tolist()
    [[0.5, 0.0], [0.0, 4.5]]
    """
    return moment_products(gradients, gradients, side="right").mean(0)


def left_second_moment(gradients: Float[Tensor, "N out in"]) -> Float[Tensor, "out out"]:
    r"""Mean over batches of :math:`G G^\top`; as :func:`right_second_moment`, for the outputs.

    Examples
    --------
    >>> left_second_moment(torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])).tolist()
    [[5.0]]
    """
    return moment_products(gradients, gradients, side="left").mean(0)


def cross_second_moment(
    first: Float[Tensor, "N out in"], second: Float[Tensor, "N out in"], *, side: str
) -> Float[Tensor, "n n"]:
    r"""Mean over batches of :math:`G_1^\top G_2 + G_2^\top G_1` (right) or the same with the sides changed (left).

    It is the paper's cross term. Symmetric; its eigenvalues may have either sign, and it is near zero where the two
    gradients of a batch have nothing to do with each other.

    >>> one, other = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])
    >>> cross_second_moment(one, other, side="right").tolist()
    [[0.0, 2.0], [2.0, 0.0]]
    """
    mean = moment_products(first, second, side=side).mean(0)
    return mean + mean.T


def moment_products(
    first: Float[Tensor, "N out in"], second: Float[Tensor, "N out in"], *, side: str
) -> Float[Tensor, "N n n"]:
    """Return each batch's own product, before the mean: what a bootstrap over batches draws from.

    Raises MetricInputError for anything but two finite floating tensors (N, out, in) of one shape, or a side that is
    not one.

    >>> moment_products(torch.ones(2, 1, 1), torch.ones(2, 1, 1), side="left").tolist()
    [[[1.0]], [[1.0]]]
    """
    for name, value in (("first", first), ("second", second)):
        check_finite_tensor(name, value)
    if first.ndim != 3 or first.shape != second.shape or side not in SIDES:
        raise MetricInputError(
            f"gradients have shapes {tuple(first.shape)} and {tuple(second.shape)}, side is {side!r}; expected one "
            f"shape (batches, out, in) and one of {SIDES}"
        )
    a, b = first.double(), second.double()
    return a.mT @ b if side == "right" else a @ b.mT


def leading_directions(moment: Float[Tensor, "*batch n n"], k: int) -> Float[Tensor, "*batch n k"]:
    """Eigenvectors of the ``k`` largest eigenvalues of one moment, or of many, as columns, largest first.

    >>> leading_directions(torch.diag(torch.tensor([1.0, 9.0])), 1).abs().tolist()
    [[0.0], [1.0]]
    """
    check_count("k", k)
    _, vectors = torch.linalg.eigh(moment.double())
    return vectors.flip(-1)[..., : min(k, moment.shape[-1])]


@checked(matrices=("moment_a", "moment_b"))
def moment_alignment(moment_a: Float[Tensor, "n n"], moment_b: Float[Tensor, "n n"], *, k: int) -> float:
    r"""Share of one moment's leading ``k`` directions that lies in the other's: :math:`\|V_K^\top V'_K\|_F^2 / K`.

    Parameters
    ----------
    moment_a, moment_b : Float[Tensor, "n n"]
        Second moments of one side.
    k : int
        Dimension of the spaces, clipped to ``n``.

    Returns
    -------
    float
        0 (orthogonal) to 1 (one space); two random spaces give ``k / n``. nan where either moment is zero.

    Raises
    ------
    MetricInputError
        For tensors that are not finite floating matrices of one shape, or a ``k`` below 1.

    Examples
    --------
    >>> moment_alignment(torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.diag(torch.tensor([3.0, 1.0, 2.0])), k=2)
    0.5
    """
    if not bool(moment_a.any()) or not bool(moment_b.any()):
        return math.nan
    return float(space_overlap(leading_directions(moment_a, k), leading_directions(moment_b, k)))


def space_overlap(
    basis_a: Float[Tensor, "*batch n k"], basis_b: Float[Tensor, "*batch n k"]
) -> Float[Tensor, "*batch"]:
    """Squared norm of ``A' B`` over ``k``, for orthonormal columns, never above 1.

    >>> float(space_overlap(torch.eye(3)[:, :2], torch.eye(3)[:, 1:]))
    0.5
    """
    return ((basis_a.mT @ basis_b).square().sum((-2, -1)) / basis_a.shape[-1]).clamp(max=1.0)


@checked(matrices=("target", "base"))
def fit_moment(target: Float[Tensor, "n n"], base: Float[Tensor, "n n"], *, noise: bool = False) -> MomentFit:
    r"""Least-squares fit :math:`\Sigma \approx c\,\Sigma_0`, or :math:`c\,\Sigma_0 + s I` with ``noise``.

    The paper says that masking tokens does the latter to OPD's second moment. ``s`` may come out negative; it is not
    held back, so ``r2`` never falls when the noise is let in.

    ``target``, ``base``: the moment to explain and the one that explains it.
    ``noise``: whether a multiple of the identity is fitted beside it.
    ``r2`` is nan for a zero target. A zero base, or one that is itself a multiple of the identity, has scale 0
    where the noise can stand for it. Raises MetricInputError for tensors that are not finite floating matrices of one
    shape.

    >>> base = torch.diag(torch.tensor([2.0, 0.0]))
    >>> fit = fit_moment(3 * base + torch.eye(2), base, noise=True)
    >>> round(fit.scale, 9), round(fit.noise, 9), round(fit.r2, 9)
    (3.0, 1.0, 1.0)
    """
    y, x = target.double(), base.double()
    mean_y, mean_x = (float(m.trace()) / len(m) if noise else 0.0 for m in (y, x))
    eye = torch.eye(len(x), dtype=torch.float64, device=x.device)
    centred = x - mean_x * eye
    spread = float(centred.square().sum())
    scale = float((centred * y).sum()) / spread if spread > 1e-24 * float(x.square().sum()) else 0.0
    shift = mean_y - scale * mean_x
    return MomentFit(scale, shift, explained_share(y, scale * x + shift * eye))


@checked(matrices=("moment", "predicted"))
def explained_share(moment: Float[Tensor, "n n"], predicted: Float[Tensor, "n n"]) -> float:
    """``r2`` of a prediction in which nothing is fitted; at most 1, nan for a zero moment.

    >>> explained_share(torch.eye(2), torch.diag(torch.tensor([1.0, 0.0])))
    0.5
    """
    whole = float(moment.double().square().sum())
    return 1.0 - float((moment.double() - predicted.double()).square().sum()) / whole if whole > 0 else math.nan


def mixed_moment(
    opd: Float[Tensor, "*batch n n"],
    rlvr: Float[Tensor, "*batch n n"],
    cross: Float[Tensor, "*batch n n"] | None,
    *,
    alpha: float,
) -> Float[Tensor, "*batch n n"]:
    r"""Return :math:`\alpha^2 \Sigma_{OPD} + (1-\alpha)^2 \Sigma_{RLVR} + \alpha(1-\alpha)\,\Sigma_{cross}`.

    With raw signals the mixture's gradient is ``alpha g_opd + (1 - alpha) g_rlvr``, so on the same batches this is an
    identity of algebra and cannot fail. What can be asked is how much the cross term carries (pass None to leave it
    out), and whether moments from other batches do as well. Raises MetricInputError for an ``alpha`` outside 0 to 1.

    >>> one = torch.eye(1)
    >>> mixed_moment(one, one, 2 * one, alpha=0.5).tolist(), mixed_moment(one, one, None, alpha=0.5).tolist()
    ([[1.0]], [[0.5]])
    """
    check_fraction("alpha", alpha)
    whole = alpha**2 * opd + (1 - alpha) ** 2 * rlvr
    return whole if cross is None else whole + alpha * (1 - alpha) * cross


def bootstrap_weights(n: int, replicates: int, *, seed: int = 0) -> Float[Tensor, "replicates n"]:
    """Weights, summing to 1 in each row, of ``n`` batches drawn with replacement ``replicates`` times.

    Multiply them into :func:`moment_products` for as many resampled moments.

    >>> bootstrap_weights(3, 2).sum(1).round(decimals=9).tolist()
    [1.0, 1.0]
    """
    check_count("n", n)
    check_count("replicates", replicates)
    drawn = torch.randint(n, (replicates, n), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.one_hot(drawn, n).double().mean(1)
