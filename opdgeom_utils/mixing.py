"""Mixing two objectives with their gradients taken apart, so that scale and source can be told apart.

The paper mixes raw credits, ``alpha * (-r_t) + (1 - alpha) * A``. The two differ in size, so ``alpha`` changes how
large each gradient is as well as where it comes from. Here both gradients of an update are computed, and RLVR's is
brought to the norm of OPD's first: ``g = alpha * g_opd + (1 - alpha) * g_rlvr * |g_opd| / |g_rlvr|``. The paper has no
such control.
"""

from __future__ import annotations

import torch
from torch import Tensor


class TermGradients:
    """Gradients of OPD's and of RLVR's term, summed over the micro-batches of one update.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> both = TermGradients([weight])
    >>> both.add(weight @ torch.tensor([3.0, 0.0]), weight @ torch.tensor([0.0, 1.0]))
    >>> both.mix(0.5)["opd_grad_norm"], weight.grad
    (3.0, tensor([1.5000, 1.5000]))
    """

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.sums: tuple[list[Tensor], list[Tensor]] = (
            [torch.zeros_like(p) for p in parameters],
            [torch.zeros_like(p) for p in parameters],
        )

    def add(self, opd_loss: Tensor, rlvr_loss: Tensor) -> None:
        """Differentiate the two losses of one micro-batch; they share one graph, which is freed."""
        for place, (loss, sums) in enumerate(zip((opd_loss, rlvr_loss), self.sums, strict=True)):
            for total, part in zip(
                sums, torch.autograd.grad(loss, self.parameters, retain_graph=place == 0), strict=True
            ):
                total += part

    def mix(self, alpha: float) -> dict[str, float]:
        """Set every parameter's gradient to the mixture; return both norms and the cosine between the two.

        Where one of the two is zero (no group with unequal rewards), it has no direction to scale and adds nothing.
        """
        norms = [float(torch.stack([g.double().square().sum() for g in sums]).sum().sqrt()) for sums in self.sums]
        scale = norms[0] / norms[1] if norms[1] > 0 else 0.0
        dot = 0.0
        for parameter, opd, rlvr in zip(self.parameters, *self.sums, strict=True):
            dot += float((opd.double() * rlvr.double()).sum())
            parameter.grad = alpha * opd + (1 - alpha) * scale * rlvr
        cosine = dot / (norms[0] * norms[1]) if min(norms) > 0 else float("nan")
        return {"opd_grad_norm": norms[0], "rlvr_grad_norm": norms[1], "term_cosine": cosine}
