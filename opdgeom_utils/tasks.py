"""Prompts, worked completions and the verifier of the toy world.

A prompt is one line of text, ``sum 47+8-5=``; a completion writes the steps, then the answer, then the end mark:
``55;50$``. The part after the last ``;`` is the answer. Train and held-out prompts are told apart by a checksum of the
prompt itself, so they can never overlap, whatever the seeds.
"""

from __future__ import annotations

import random
import string
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from opdgeom_utils.errors import RecipeError
from opdgeom_utils.families import FAMILIES, LEVELS

END = "$"
CHARACTERS = string.digits + string.ascii_lowercase + " +-*%>,@=;:()[]"
HELD_OUT_ONE_IN = 8
Split = Literal["train", "held_out"]
Mixture = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Example:
    """A prompt with one worked completion.

    >>> example = make_example("sum", "47+8-5")
    >>> example.prompt, example.completion, example.answer
    ('sum 47+8-5=', '55;50$', '50')
    """

    family: str
    level: int
    prompt: str
    steps: tuple[str, ...]
    answer: str

    @property
    def completion(self) -> str:
        """The demonstration: steps and answer joined by ``;``, then the end mark."""
        return ";".join((*self.steps, self.answer)) + END

    @property
    def domain(self) -> str:
        """``mathematics`` or ``code``."""
        return FAMILIES[self.family].domain


def make_example(family: str, args: str, level: int = 0) -> Example:
    """Solve the problem ``args`` of ``family`` and write it down as a prompt with its worked completion."""
    steps, answer = FAMILIES[family].solve(args)
    return Example(family, level, f"{family} {args}=", tuple(steps), answer)


def split_of(prompt: str) -> Split:
    """Return the side a prompt belongs to: one prompt in eight is held out, by the checksum of its text.

    >>> split_of("sum 47+8-5="), split_of("gcd 84,36=")
    ('train', 'train')
    """
    return "held_out" if zlib.crc32(prompt.encode()) % HELD_OUT_ONE_IN == 0 else "train"


def verify(prompt: str, completion: str) -> float:
    """Reward of a completion: 1.0 for the exact final answer, else 0.0.

    The answer is recomputed from the prompt. Malformed text scores 0: no end mark, text after it, or no answer.

    >>> verify("sum 47+8-5=", "55;50$")
    1.0
    >>> verify("sum 47+8-5=", "55;50"), verify("sum 47+8-5=", "55;51$"), verify("sum 47+8-5=", "$")
    (0.0, 0.0, 0.0)
    >>> verify("sum 47+8-5=", "99;50$")  # only the final answer counts, as in the paper
    1.0
    """
    if completion.count(END) != 1 or not completion.endswith(END):
        return 0.0
    family, _, args = prompt.removesuffix("=").partition(" ")
    _, answer = FAMILIES[family].solve(args)
    return float(completion.removesuffix(END).split(";")[-1] == answer)


def check_mixture(mixture: Mixture, weights: Mapping[str, int] | None = None) -> None:
    """Raise :class:`RecipeError` for an unknown family, a level outside 1 to 6, or a weight that is no whole number."""
    for family, weight in (weights or {}).items():
        if family not in mixture or type(weight) is not int or weight < 1:
            raise RecipeError(f"weight of {family!r} is {weight!r}; expected a family of the mixture and 1 or more")
    for family, levels in mixture.items():
        if family not in FAMILIES:
            raise RecipeError(f"unknown task family {family!r}; known: {', '.join(FAMILIES)}")
        if not levels or any(level not in LEVELS for level in levels):
            raise RecipeError(f"levels of {family!r} are {list(levels)}; expected a non-empty list from 1 to 6")


def draw_examples(
    mixture: Mixture, n: int, seed: int | str, split: Split = "train", weights: Mapping[str, int] | None = None
) -> list[Example]:
    """Draw ``n`` examples: family, then level uniformly from its list, then a problem of the asked split.

    Families are drawn uniformly; one with weight ``w`` is drawn as often as ``w`` families without. The same arguments
    always give the same examples.

    >>> [e.prompt for e in draw_examples({"gcd": [1]}, 2, seed=0)] == [
    ...     e.prompt for e in draw_examples({"gcd": [1]}, 2, seed=0)
    ... ]
    True
    """
    check_mixture(mixture)
    rng = random.Random(f"{split}:{seed}")
    names = [name for name in sorted(mixture) for _ in range((weights or {}).get(name, 1))]
    return [_draw_one(rng, name := rng.choice(names), rng.choice(mixture[name]), split) for _ in range(n)]


def held_out_set(mixture: Mixture, per_family: int, seed: int = 0) -> list[Example]:
    """Draw the evaluation set: ``per_family`` held-out examples of every family, levels from the mixture."""
    check_mixture(mixture)
    rng = random.Random(f"evaluation:{seed}")
    return [
        _draw_one(rng, name, rng.choice(mixture[name]), "held_out")
        for name in sorted(mixture)
        for _ in range(per_family)
    ]


def _draw_one(rng: random.Random, family: str, level: int, split: Split) -> Example:
    for _ in range(10_000):
        args = FAMILIES[family].draw(rng, level)
        if split_of(f"{family} {args}=") == split:
            return make_example(family, args, level)
    raise RecipeError(f"no {split} prompt found for family {family!r} at level {level}; its prompt space is too small")
