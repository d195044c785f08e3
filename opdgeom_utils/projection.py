"""Holding a run inside a space of K dimensions per matrix: which space, and the projection onto it.

The paper takes ``V_K``, the leading right singular vectors of the cumulative update at about 20% of training, and from
then on replaces every gradient matrix ``G`` (out, in) by ``G V_K V_K'`` (arXiv 2606.07082, functional sufficiency). A
recipe's ``projection_space`` names the space: ``early`` (the paper's), ``complement`` (everything but it), ``random``,
``activations`` (the leading space of each layer's inputs before any training) or ``run:<recipe>@<update>``, another
run's. ``projection_side`` ``left`` multiplies from the other side, ``U_K U_K' G``.

Projected are the matrices of the layers (attention and MLP); embeddings and norms stay free. Adam divides every entry
by its own scale, which leads out of the space again, and its momentum from before goes on. ``projection_of: gradient``
(the paper's) lets it, and the share that stays inside is logged as ``update_inside``. ``projection_of: update``
projects the step that Adam and weight decay have taken.
"""

# pyright: reportAttributeAccessIssue=false
# (layers of a transformers model are typed as modules or tensors)
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from opdgeom_utils.rollouts import Rollouts
from opdgeom_utils.scoring import completion_logits


def projected_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    """Name and module of every matrix that a projection acts on: the linear maps inside the layers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name:
            yield f"{name}.weight", module


def leading_space(delta_w: Float[Tensor, "out in"], rank: int, side: str = "right") -> Float[Tensor, "dim k"]:
    """Leading singular vectors of an update as columns: right ones span inputs, left ones outputs.

    >>> leading_space(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), 1).abs()
    tensor([[0.],
            [1.]])
    """
    u, _, vh = torch.linalg.svd(delta_w.double(), full_matrices=False)
    basis = vh.T[:, :rank] if side == "right" else u[:, :rank]
    return basis.to(delta_w.dtype).contiguous()


def random_space(dim: int, rank: int, seed: int) -> Float[Tensor, "dim k"]:
    """Orthonormal columns, uniformly distributed; the same for the same seed.

    >>> q = random_space(5, 2, 0)
    >>> torch.allclose(q.T @ q, torch.eye(2), atol=1e-6)
    True
    """
    normal = torch.randn(dim, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(normal).Q.float()


@torch.no_grad()
def activation_moments(model: PreTrainedModel, batches: Sequence[Rollouts]) -> dict[str, Float[Tensor, "in in"]]:
    """Second moment ``sum x x'`` (float64) of the inputs of every projected matrix, padding left out.

    Inputs are those of prompts and completions as :func:`~opdgeom_utils.scoring.completion_logits` runs them, one
    completion a prompt.
    """
    moments: dict[str, Tensor] = {}
    counted: list[Tensor] = []

    def add(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, -2)[counted[0].flatten()].double()
        moments[name] = moments.get(name, 0) + rows.T @ rows

    hooks = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in projected_layers(model)]
    try:
        for batch in batches:
            one = (t[:, :1] for t in (batch.completion_ids, batch.mask, batch.log_probs))
            first = Rollouts(batch.prompt_ids, batch.prompt_mask, *one)
            counted[:] = [torch.cat([first.prompt_mask, first.mask[:, 0]], dim=1)]
            completion_logits(model, first)
    finally:
        for hook in hooks:
            hook.remove()
    return moments


@dataclass
class Projector:
    """One basis for each projected weight, and what to do with it."""

    bases: Mapping[str, Tensor]
    side: str = "right"
    complement: bool = False

    def project(self, name: str, matrix: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """Return ``M Q Q'`` (right), ``Q Q' M`` (left), or what is left of ``M`` without it (complement)."""
        q = self.bases[name]
        inside = (matrix @ q) @ q.T if self.side == "right" else q @ (q.T @ matrix)
        return matrix - inside if self.complement else inside

    @torch.no_grad()
    def project_gradients(self, layers: Mapping[str, nn.Linear]) -> None:
        """Replace the gradient of every projected weight by its projection."""
        for name, layer in layers.items():
            if layer.weight.grad is not None:
                layer.weight.grad = self.project(name, layer.weight.grad)

    @torch.no_grad()
    def share_inside(self, layers: Mapping[str, nn.Linear], before: Mapping[str, Tensor]) -> float:
        """Share (0 to 1) of a realised update's squared norm that lies in the space, over all projected weights."""
        inside = whole = 0.0
        for name, layer in layers.items():
            update = layer.weight.detach() - before[name]
            whole += float(update.double().square().sum())
            inside += float(self.project(name, update).double().square().sum())
        return inside / whole if whole > 0 else float("nan")

    @torch.no_grad()
    def project_update(self, layers: Mapping[str, nn.Linear], before: Mapping[str, Tensor]) -> None:
        """Move every projected weight back to ``before`` plus the projection of its update."""
        for name, layer in layers.items():
            layer.weight.copy_(before[name] + self.project(name, layer.weight - before[name]))
