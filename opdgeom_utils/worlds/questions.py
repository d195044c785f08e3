"""Problems that lie in a table: drawn by family and level, told apart into two sides, graded by their answer."""

from __future__ import annotations

import json
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from numbers import Number
from typing import Any

from opdgeom_utils.errors import RecipeError
from opdgeom_utils.problems import Grade, Mixture, Split, Written, split_of
from opdgeom_utils.worlds.math_answers import check_marks, grade_mathematics

ALL = "all"


@dataclass(frozen=True)
class Question:
    """One row: what is asked, the answer that is right, and a demonstration, empty where there is none.

    ``side`` is that of the row's own table, where the data have two; else the prompt's checksum decides.
    """

    prompt: str
    answer: str
    completion: str = ""
    family: str = "problems"
    domain: str = "mathematics"
    level: Any = None
    side: Split | None = None

    @property
    def split(self) -> Split:
        """The side that the question is on."""
        return self.side or split_of(self.prompt)


def text_of(value: Any, key: str, where: str, *, needed: bool = True, advice: str = "") -> str:
    """Return a text or a number as a text, empty where there is none.

    Raises RecipeError if it is anything else, or is needed and empty.

    >>> text_of(3, "answer", "line 1"), text_of(None, "completion", "line 1", needed=False)
    ('3', '')
    """
    text = "" if value is None or not str(value).strip() else str(value)
    no_number = isinstance(value, bool) or value != value or value in (math.inf, -math.inf)
    if no_number or not isinstance(value, str | Number | None) or (needed and not text):
        found = f"{key} {value!r:.60}" if text else f"an empty {key}"
        raise RecipeError(f"{where} has {found}; expected a text or a number{advice}")
    return text


def check_weights(mixture: Mixture, weights: Mapping[str, int] | None) -> None:
    """Raise :class:`RecipeError` for an empty list of levels, or a weight that is no whole number of 1 or more."""
    for family, weight in (weights or {}).items():
        if family not in mixture or type(weight) is not int or weight < 1:
            raise RecipeError(f"weight of {family!r} is {weight!r}; expected a family of the mixture and 1 or more")
    for family, levels in mixture.items():
        if not levels:
            raise RecipeError(f"levels of {family!r} are {levels!r}; expected a list that is not empty")


def drawn_names(rng: random.Random, mixture: Mixture, n: int, weights: Mapping[str, int] | None) -> list[str]:
    """Draw ``n`` families; one with weight ``w`` is drawn as often as ``w`` families without."""
    names = [name for name in sorted(mixture) for _ in range((weights or {}).get(name, 1))]
    return [rng.choice(names) for _ in range(n)]


def _another(own: Question, pool: Sequence[Question], rng: random.Random) -> Question:
    """Draw another question of a pool; RecipeError where there is none."""
    if len(pool) < 2:
        raise RecipeError(f"family {own.family!r} has one problem of level {own.level!r}; mismatched needs two or more")
    two = rng.sample(pool, 2)
    return two[two[0] == own]


class Table(ABC):
    """The questions of one world.

    ``grade`` is ``mathematics`` or ``exact``; ``answer_in`` says where answers stand. ``mismatched`` makes SFT's null
    objective: what is drawn to train on comes with the demonstration of another question of its family and level.
    """

    def __init__(self, grade: str, answer_in: Sequence[str], *, mismatched: Any = False) -> None:
        if grade not in ("mathematics", "exact"):
            raise RecipeError(f"grade is {grade!r}; expected mathematics or exact")
        if not isinstance(mismatched, bool):
            raise RecipeError(f"mismatched is {mismatched!r}; expected true or false")
        self.mismatched = mismatched
        self.graded, self.marks = grade, check_marks(answer_in)
        self._kept: dict[str, list[Question]] = {}

    @property
    @abstractmethod
    def families(self) -> Iterable[str]:
        """Names that a mixture may use."""

    @abstractmethod
    def questions(self, family: str) -> Sequence[Question]:
        """Every question of a family, each prompt once."""

    def check(self, mixture: Mixture, weights: Mapping[str, int] | None = None) -> None:
        """Refuse unknown families, and weights that are none."""
        for family in mixture:
            if family not in self.families:
                raise RecipeError(
                    f"unknown family {family!r} of problems; known: {', '.join(sorted(self.families))}. Say so in "
                    "mixture and in evaluation, in defaults and in each recipe that has its own: a profile that is "
                    "like another keeps what it does not say"
                )
        check_weights(mixture, weights)

    def draw(
        self, mixture: Mixture, n: int, seed: int | str, weights: Mapping[str, int] | None = None
    ) -> list[Question]:
        """Draw ``n`` questions of the training side: family, then level, then a question."""
        self.check(mixture, weights)
        rng, drawn = random.Random(f"train:{seed}"), []
        for name in drawn_names(rng, mixture, n, weights):
            pool = self._side(name, rng.choice(list(mixture[name])), "train")
            drawn.append((rng.choice(pool), pool))
        if not self.mismatched:
            return [own for own, _ in drawn]
        other = random.Random(f"shown:{seed}")  # another stream, so that the prompts are those of the matched world
        return [replace(own, completion=_another(own, pool, other).completion) for own, pool in drawn]

    def held_out(self, mixture: Mixture, per_family: int, seed: int = 0) -> list[Question]:
        """Draw up to ``per_family`` different held-out questions of every family, all where there are fewer."""
        self.check(mixture)
        rng, chosen = random.Random(f"evaluation:{seed}"), []
        for name in sorted(mixture):
            pool = {q.prompt: q for level in mixture[name] for q in self._side(name, level, "held_out")}
            chosen += rng.sample(sorted(pool.values(), key=lambda q: q.prompt), min(per_family, len(pool)))
        return chosen

    def longest(self, mixture: Mixture, n: int) -> list[Question]:
        """Return the questions of a mixture, of both sides, with the ``n`` longest prompts and completions."""
        rows = [q for name, has in mixture.items() for q in self.questions(name) if ALL in has or q.level in has]
        return [q for text in ("prompt", "completion") for q in nlargest(n, rows, key=lambda q: len(getattr(q, text)))]

    def grade(self, problem: Question, written: Written) -> Grade:
        """Judge one completion: the whole text, or the final answer in it by math-verify."""
        if self.graded == "mathematics":
            return grade_mathematics(problem.answer, written, self.marks)
        return Grade(float(written.ended and written.text.strip() == problem.answer.strip()), written.ended)

    def _side(self, family: str, level: Any, side: Split) -> list[Question]:
        """Return the questions of one level and side."""
        key = json.dumps([family, level, side], default=str)
        rows = self.questions(family)
        if key not in self._kept:
            self._kept[key] = [q for q in rows if level in (ALL, q.level) and q.split == side]
        if not self._kept[key]:
            levels = sorted({repr(q.level) for q in rows if q.split == side})
            has = (
                f"it has the levels {', '.join(levels)}, and [{ALL}] takes all" if levels else
                f"of its {len(rows)} problems none is on this side: " + (
                "the prompt's checksum holds out about one in eight. Add problems" if any(not q.side for q in rows) else
                "its splits say so (train, held_out). Name one more, or leave the family out there")
            )  # fmt: skip
            raise RecipeError(f"family {family!r} has no {side} problem of level {level!r}; {has}")
        return self._kept[key]
