"""What the loop needs to know of problems, whoever sets them: a prompt, perhaps a demonstration, and a grade.

The loop (:mod:`opdgeom_utils.training`) sees this protocol only. Who sets the problems of a profile stands in its world
(:mod:`opdgeom_utils.world`): the twelve families of :mod:`opdgeom_utils.tasks`, or one of ``opdgeom_utils.worlds``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

Split = Literal["train", "held_out"]
Mixture = Mapping[str, Sequence[Any]]
HELD_OUT_ONE_IN = 8


@runtime_checkable
class Problem(Protocol):
    """One problem. ``completion`` is a worked demonstration, empty where there is none (then SFT cannot use it)."""

    @property
    def prompt(self) -> str:
        """What is asked, before the world's prompt form."""
        ...

    @property
    def completion(self) -> str:
        """The demonstration."""
        ...

    @property
    def family(self) -> str:
        """Kind of problem: accuracy is told apart by it."""
        ...

    @property
    def domain(self) -> str:
        """Group of kinds."""
        ...


class Written(NamedTuple):
    """What a model wrote after a prompt, without its end token, and whether it came to an end by itself."""

    text: str
    ended: bool


class Grade(NamedTuple):
    """``reward`` is 1.0 for a right answer, else 0.0; ``parsed`` says whether an answer was found at all."""

    reward: float
    parsed: bool


@runtime_checkable
class Tasks(Protocol):
    """Who sets the problems. The same arguments always give the same problems, on every machine."""

    def check(self, mixture: Mixture, weights: Mapping[str, int] | None = None) -> None:
        """Raise :class:`~opdgeom_utils.errors.RecipeError` for a mixture that cannot be drawn from."""
        ...

    def draw(
        self, mixture: Mixture, n: int, seed: int | str, weights: Mapping[str, int] | None = None
    ) -> Sequence[Problem]:
        """Draw ``n`` problems of the training side."""
        ...

    def held_out(self, mixture: Mixture, per_family: int, seed: int = 0) -> Sequence[Problem]:
        """Draw the evaluation set: ``per_family`` held-out problems of each kind, or all where there are fewer."""
        ...

    def grade(self, problem: Any, written: Written) -> Grade:
        """Judge one completion."""
        ...


def split_of(prompt: str) -> Split:
    """Return the side a prompt belongs to: one prompt in eight is held out, by the checksum of its text.

    So the two sides can never overlap, whatever the seeds.

    >>> split_of("sum 47+8-5="), split_of("gcd 84,36=")
    ('train', 'train')
    """
    return "held_out" if zlib.crc32(prompt.encode()) % HELD_OUT_ONE_IN == 0 else "train"
