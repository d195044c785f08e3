"""What an update reads or changes: the student, its optimiser, and the fixed models beside it."""

# pyright: reportPrivateImportUsage=false
# (torch keeps _foreach functions private)
from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from opdgeom_utils.projection import Projector
from opdgeom_utils.recipes import Recipe


@dataclass
class Learner:
    """Everything an update reads or changes: the student, its optimiser, and the fixed models beside it.

    ``writer`` writes completions in the student's place; ``other_update`` is the update of the run whose space this one
    is projected onto, ``projector`` the projection once it has begun.
    """

    recipe: Recipe
    seed: int
    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    teacher: PreTrainedModel | None = None
    anchor: PreTrainedModel | None = None
    writer: PreTrainedModel | None = None
    step: int = 0
    other_update: dict[str, Tensor] | None = None
    projector: Projector | None = None
    optimizer: torch.optim.AdamW = field(init=False)
    start_weights: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Build the optimiser and remember where the weights were, for the update norm."""
        r = self.recipe
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(),
            lr=r.learning_rate,
            betas=r.betas,
            eps=r.eps,
            weight_decay=r.weight_decay,
            fused=True,
        )
        self.start_weights = [p.detach().clone() for p in self.student.parameters()]

    @property
    def device(self) -> torch.device:
        """Where the student's weights are."""
        return next(self.student.parameters()).device

    def cumulative_update(self) -> dict[str, Tensor]:
        """Return what training has added to every weight so far, by name."""
        named = zip(self.student.named_parameters(), self.start_weights, strict=True)
        return {name: parameter.detach() - start for (name, parameter), start in named}

    def update_norm(self) -> float:
        """Frobenius norm of the cumulative update over all parameters."""
        now = [p.detach() for p in self.student.parameters()]
        parts = torch.stack(torch._foreach_norm(torch._foreach_sub(now, self.start_weights)))
        return float(parts.double().square().sum().sqrt())


def stream_seed(*parts: object) -> int:
    """Return a 63-bit seed for one use of randomness, the same on every machine.

    >>> stream_seed("rollout", 0, 5) == stream_seed("rollout", 0, 5) != stream_seed("rollout", 0, 6)
    True
    """
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
