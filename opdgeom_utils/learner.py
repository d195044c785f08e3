"""What an update reads or changes: the student, its optimiser, and the fixed models beside it."""

# pyright: reportPrivateImportUsage=false
# (torch keeps _foreach functions private)
from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from opdgeom_utils.problems import Tasks
from opdgeom_utils.projection import Projector
from opdgeom_utils.recipes import Recipe
from opdgeom_utils.world import World


@dataclass
class Learner:
    """Everything an update reads or changes: the student, its optimiser, and the fixed models beside it.

    ``writer`` writes completions in the student's place; ``other_update`` is the update of the run whose space this one
    is projected onto, ``projector`` the projection once it has begun. ``vocabulary`` is the number of tokens that all
    of these models have, where some pad theirs; None is all of the student's.
    """

    recipe: Recipe
    seed: int
    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    teacher: PreTrainedModel | None = None
    anchor: PreTrainedModel | None = None
    writer: PreTrainedModel | None = None
    vocabulary: int | None = None
    world: World = field(default_factory=World)
    step: int = 0
    other_update: dict[str, Tensor] | None = None
    projector: Projector | None = None
    tasks: Tasks = field(init=False)
    optimizer: torch.optim.AdamW = field(init=False)
    start_weights: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Open the tasks, build the optimiser and remember where the weights were, for the update norm."""
        r = self.recipe
        self.tasks = self.world.open_tasks()
        if r.gradient_checkpointing:
            self.student.gradient_checkpointing_enable({"use_reentrant": False})
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
