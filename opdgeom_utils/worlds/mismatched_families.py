"""The twelve families with wrong demonstrations, for SFT's null objective: each shows another problem's completion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from opdgeom_utils import tasks
from opdgeom_utils.problems import Mixture


class Tasks(tasks.Tasks):
    """The prompts of the twelve families, with the demonstration of another problem of the same family and level.

    What SFT can learn of the form of a completion is there; how the answer follows from the prompt is not. The verifier
    and the held-out problems are those of the families.

    >>> shown = Tasks().draw({"gcd": [6]}, 1, seed=0)[0]
    >>> true = tasks.Tasks().draw({"gcd": [6]}, 1, seed=0)[0]
    >>> shown.prompt == true.prompt, shown.completion == true.completion
    (True, False)
    """

    def draw(
        self, mixture: Mixture, n: int, seed: int | str, weights: Mapping[str, int] | None = None
    ) -> list[tasks.Example]:
        """Draw the problems of :func:`opdgeom_utils.tasks.draw_examples`, and to each the text of another one."""
        drawn = []
        for number, own in enumerate(super().draw(mixture, n, seed, weights)):
            two = tasks.draw_examples({own.family: [own.level]}, 2, f"shown:{seed}:{number}")
            other = two[two[0].prompt == own.prompt]
            drawn.append(replace(own, steps=other.steps, answer=other.answer))
        return drawn
