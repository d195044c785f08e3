"""Any of the procedural datasets of reasoning-gym, by name, graded by its own ``score_answer``.

A mixture maps the name of a dataset to a list of levels of its curriculum (whole numbers from 0) or of settings::

    mixture: {chain_sum: [{min_terms: 2, max_terms: 3}], gcd: [0, 1], letter_counting: [{}]}

Problems are made as they are asked for: which one is decided by the seed alone. The prompt's checksum tells the two
sides apart.
"""

from __future__ import annotations

import ast
import json
import random
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from opdgeom_utils.errors import MissingPackageError, RecipeError
from opdgeom_utils.problems import Grade, Mixture, Split, Written, split_of
from opdgeom_utils.worlds.questions import check_weights, drawn_names

FORMS = ("tag", "text")
PLACES = 20_000  # problems of one dataset with one setting: word_ladder allows no more; a place decides a problem
REFUSED = {
    "knight_swap": "does not give the same problems for the same seed",
    "game_of_life_halting": "calls every answer right",
    "coin_flip": "calls an answer right that only begins as the right one does",
    "codeio": "runs programs that a language model wrote, and some of them write files",
    "puzzle24": "calls 6*4*1*1 right, whichever numbers are given",
}
TRIES = 2000
SECONDS = 5.0  # for one answer: sympy can be made to think for hours
# Datasets that run the answer as a program, and what an answer is that may be run: a literal, or a formula.
LITERALS = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
FORMULAS = ("intermediate_integration", "polynomial_multiplication", "simple_integration")
SUMS = ("countdown",)
SUM = re.compile(r"(?:[\d\s+\-()]|\*(?!\*)|/(?!/))+")
FUNCTIONS = re.compile(r"a?(?:sin|cos|tan)h?|cot|sec|csc|exp|log|ln|sqrt|[Aa]bs|erf|pi")
PARTS = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Load, ast.Constant,
         ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd)  # fmt: skip
HIGHEST = 100  # number in an exponent


@dataclass(frozen=True)
class Puzzle:
    """One problem. ``entry`` is what its dataset needs to grade it."""

    prompt: str
    completion: str
    family: str
    domain: str
    settings: str
    entry: dict[str, Any] = field(compare=False, repr=False)


class Tasks:
    """Datasets of reasoning-gym.

    ``form``: ``tag``: the answer stands in ``<answer></answer>``, as reasoning-gym's own prompts ask for; ``text``: the
    whole text is the answer. Demonstrations show the answer in this form; datasets have no worked steps.
    ``threshold``: score from which an answer is right; 1.0 leaves out what is right in part.
    ``instruction``: what is said after the question.
    """

    def __init__(self, *, form: str = "tag", threshold: Any = 1.0, instruction: Any = "") -> None:
        if form not in FORMS:
            raise RecipeError(f"form is {form!r}; expected one of {', '.join(FORMS)}")
        if type(threshold) not in (int, float) or not 0 < threshold <= 1:
            raise RecipeError(f"threshold is {threshold!r}; expected a number above 0 and up to 1")
        if not isinstance(instruction, str):
            raise RecipeError(f"instruction is {instruction!r}; expected a text")
        self.form, self.threshold, self.instruction = form, threshold, instruction
        self._datasets: dict[tuple[str, str], Any] = {}
        self._held_out: dict[str, list[Puzzle]] = {}

    def check(self, mixture: Mixture, weights: Mapping[str, int] | None = None) -> None:
        """Refuse unknown datasets, settings that a dataset does not have, and weights that are none."""
        check_weights(mixture, weights)
        for name, levels in mixture.items():
            for level in levels:
                self._dataset(name, json.dumps(level, sort_keys=True, default=str))  # YAML knows dates

    def draw(self, mixture: Mixture, n: int, seed: int | str, weights: Mapping[str, int] | None = None) -> list[Puzzle]:
        """Draw ``n`` problems of the training side: dataset, then level, then problem."""
        rng = random.Random(f"train:{seed}")
        return [
            self._draw_one(rng, name, rng.choice(list(mixture[name])), "train")
            for name in drawn_names(rng, mixture, n, weights)
        ]

    def held_out(self, mixture: Mixture, per_family: int, seed: int = 0) -> list[Puzzle]:
        """Draw ``per_family`` held-out problems of every dataset, each prompt once: fewer where they come again."""
        key = json.dumps([mixture, per_family, seed], sort_keys=True)
        if key not in self._held_out:
            rng = random.Random(f"evaluation:{seed}")
            drawn = [
                self._draw_one(rng, name, rng.choice(list(mixture[name])), "held_out")
                for name in sorted(mixture)
                for _ in range(per_family)
            ]
            self._held_out[key] = list({(puzzle.family, puzzle.prompt): puzzle for puzzle in drawn}.values())
        return self._held_out[key]

    def grade(self, problem: Puzzle, written: Written) -> Grade:
        """Judge one completion by the dataset's own ``score_answer``."""
        closed = [part for part in written.text.split("</answer>")[:-1] if "<answer>" in part]
        found = (
            [part.rpartition("<answer>")[2] for part in closed]
            if self.form == "tag"
            else [written.text] * written.ended
        )
        if not found:
            return Grade(0.0, False)
        dataset, answer = self._dataset(problem.family, problem.settings), found[-1].strip()
        if not may_be_scored(problem.family, answer):
            right = [problem.entry["answer"], *problem.entry["metadata"].get("valid_answers", ())]
            return Grade(float(answer in right), True)
        try:
            with _for_seconds(SECONDS):
                score = dataset.score_answer(answer, problem.entry)
        except Exception:  # some can only read an answer that has the right form
            score = 0.0
        return Grade(float(score >= self.threshold), True)

    def _draw_one(self, rng: random.Random, name: str, level: Any, side: Split) -> Puzzle:
        settings = json.dumps(level, sort_keys=True)
        dataset = self._dataset(name, settings)
        for _ in range(TRIES):
            entry = dataset[rng.randrange(PLACES)]
            prompt = f"{entry['question']}{self.instruction}"
            if split_of(prompt) == side:
                shown = entry["answer"]
                shown = f"<answer>{shown}</answer>" if shown is not None and self.form == "tag" else shown
                return Puzzle(prompt, "" if shown is None else str(shown), name, dataset.category, settings, entry)
        raise RecipeError(f"no {side} problem found for {name!r} with {settings}; it has too few different ones")

    def _dataset(self, name: str, settings: str) -> Any:
        """Return a dataset with its settings, made once."""
        if (name, settings) not in self._datasets:
            try:
                self._datasets[name, settings] = _made(name, json.loads(settings))
            except RecipeError:
                raise
            except (AssertionError, TypeError, ValueError) as error:
                raise RecipeError(f"settings {settings} of {name!r} do not fit: {error}") from error
        return self._datasets[name, settings]


def may_be_scored(name: str, answer: str) -> bool:
    """Whether a dataset may be given an answer: some run it as a program, and a model may write any.

    >>> may_be_scored("countdown", "3 * (4 + 5)"), may_be_scored("countdown", "__import__('os').getcwd()")
    (True, False)
    >>> may_be_scored("n_queens", "[['Q']]"), may_be_scored("simple_integration", "x**3/3 + C")
    (True, True)
    """
    try:
        if name in LITERALS:
            ast.literal_eval(answer)
        elif name in SUMS and not SUM.fullmatch(answer):
            return False
        return name not in (*SUMS, *FORMULAS) or all(map(_may_stand, ast.walk(ast.parse(answer, mode="eval"))))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False


def _may_stand(node: ast.AST) -> bool:
    """Whether a part of a formula is a number, a letter, an elementary function, or a power without a tower."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and bool(FUNCTIONS.fullmatch(node.func.id)) and not node.keywords
    if isinstance(node, ast.Name):
        return len(node.id) == 1 or bool(FUNCTIONS.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        inside = list(ast.walk(node.right))
        numbers = [part.value for part in inside if isinstance(part, ast.Constant)]
        return not any(isinstance(part, ast.Pow) for part in inside) and all(
            isinstance(value, int | float) and value <= HIGHEST for value in numbers
        )
    return isinstance(node, PARTS)


@contextmanager
def _for_seconds(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside once it has taken so long; only where a signal can, in the main thread of a Unix."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _made(name: str, level: Any) -> Any:
    """Make a dataset of reasoning-gym from a level of its curriculum, or from settings."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS, create_curriculum, has_curriculum
    except ImportError as error:
        raise MissingPackageError(
            "these problems come from reasoning-gym: pip install 'opdgeom-utils[tasks]'"
        ) from error
    if name not in DATASETS:
        close = [known for known in DATASETS if set(known.split("_")) & set(name.split("_"))]
        raise RecipeError(
            f"reasoning-gym has no dataset {name!r}; known: {', '.join(sorted(close or DATASETS))}"
            + (f", and {len(DATASETS) - len(close)} others" if close else "")
        )
    if name in REFUSED:
        raise RecipeError(f"{name!r} {REFUSED[name]}; leave it out")
    place = {"seed": 0, "size": PLACES}
    if isinstance(level, dict):
        known = {found.name for found in fields(DATASETS[name][1])} - set(place)
        if unknown := sorted(set(level) - known):
            raise ValueError(f"it has no {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return reasoning_gym.create_dataset(name, **level, **place)
    if type(level) is not int or level < 0 or not has_curriculum(name):
        has = "a level (a whole number from 0) or" if has_curriculum(name) else "it has no levels, only"
        raise ValueError(f"expected {has} a block of settings")
    curriculum = create_curriculum(name)
    for attribute in curriculum.attributes.values():
        highest = len(attribute.levels) - 1
        curriculum.set_attr_level(attribute.name, min(level, highest))
    return DATASETS[name][0](curriculum.generate_configuration(dict(place)))
