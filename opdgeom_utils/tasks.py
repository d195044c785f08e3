"""Prompts, worked completions and the verifier of the toy world.

A prompt is one line of text, ``sum 47+8-5=``; a completion writes the steps, then the answer, then the end mark:
``55;50$``. The part after the last ``;`` is the answer. Train and held-out prompts are told apart by a checksum of the
prompt itself, so they can never overlap, whatever the seeds.
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from dataclasses import dataclass

from opdgeom_utils.errors import RecipeError
from opdgeom_utils.families import FAMILIES, LEVELS
from opdgeom_utils.problems import Grade, Mixture, Split, Written, split_of

END = "$"
CHARACTERS = string.digits + string.ascii_lowercase + " +-*%>,@=;:()[]"


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


class Tasks:
    """The twelve families behind the protocol of the loop (:class:`opdgeom_utils.problems.Tasks`).

    >>> tasks, example = Tasks(), make_example("sum", "47+8-5")
    >>> tasks.grade(example, Written("55;50", ended=True)), tasks.grade(example, Written("55;50", ended=False))
    (Grade(reward=1.0, parsed=True), Grade(reward=0.0, parsed=False))
    """

    def check(self, mixture: Mixture, weights: Mapping[str, int] | None = None) -> None:
        """See :func:`check_mixture`."""
        check_mixture(mixture, weights)

    def draw(
        self, mixture: Mixture, n: int, seed: int | str, weights: Mapping[str, int] | None = None
    ) -> list[Example]:
        """See :func:`draw_examples`."""
        return draw_examples(mixture, n, seed, weights=weights)

    def held_out(self, mixture: Mixture, per_family: int, seed: int = 0) -> list[Example]:
        """See :func:`held_out_set`."""
        return held_out_set(mixture, per_family, seed)

    def grade(self, problem: Example, written: Written) -> Grade:
        """See :func:`verify`; an answer is what stands before an end mark."""
        return Grade(verify(problem.prompt, written.text + END * written.ended), written.ended)
