"""Twelve families of small problems whose every step can be checked by hand.

A family is two functions: ``draw`` makes the arguments of a problem of a given level (1, easy, to 6, hard), ``solve``
turns the arguments into worked steps and a final answer. ``solve`` sees nothing but the text of the problem, so the
verifier (:func:`opdgeom_utils.tasks.verify`) needs no answer key. Half of the families are arithmetic (domain
``mathematics``), half trace a small program over a string or a list (domain ``code``).
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass

LEVELS = range(1, 7)
Solution = tuple[list[str], str]


@dataclass(frozen=True)
class Family:
    """One kind of problem: how to draw one, and how to solve it step by step."""

    name: str
    domain: str
    about: str
    draw: Callable[[random.Random, int], str]
    solve: Callable[[str], Solution]


# --- mathematics ---------------------------------------------------------------------------------------------------


def _draw_sum(rng: random.Random, level: int) -> str:
    terms = str(rng.randint(10, 99))
    for _ in range(level):
        terms += rng.choice("+-") + str(rng.randint(1, 9))
    return terms


def _solve_sum(args: str) -> Solution:
    total, *rest = (int(term) for term in re.findall(r"[+-]?\d+", args))
    states = []
    for term in rest:
        total = (total + term) % 100
        states.append(f"{total:02d}")
    return states[:-1], states[-1]


def _draw_add(rng: random.Random, level: int) -> str:
    digits = (2, 3, 3, 4, 4, 5)[level - 1]
    low, high = 10 ** (digits - 1), 10**digits - 1
    return f"{rng.randint(low, high)},{rng.randint(low, high)}"


def _solve_add(args: str) -> Solution:
    left, right = args.split(",")
    columns, carry = [], 0
    for a, b in zip(reversed(left), reversed(right), strict=True):
        column = int(a) + int(b) + carry
        carry = column // 10
        columns.append(f"{column:02d}")
    return columns, str(int(left) + int(right))


def _draw_mod(rng: random.Random, level: int) -> str:
    modulus = rng.choice([7, 9, 11])
    return "*".join(str(rng.randint(2, 9)) for _ in range(level + 1)) + f"%{modulus}"


def _solve_mod(args: str) -> Solution:
    product, modulus = args.split("%")
    first, *rest = (int(factor) for factor in product.split("*"))
    value, states = first, []
    for factor in rest:
        value = value * factor % int(modulus)
        states.append(str(value))
    return states[:-1], states[-1]


def _draw_base(rng: random.Random, level: int) -> str:
    return f"{rng.randint(2 ** (level + 2), min(2 ** (level + 4) - 1, 999))}>2"


def _solve_base(args: str) -> Solution:
    number, base = (int(part) for part in args.split(">"))
    states, digits = [], ""
    while number:
        number, remainder = divmod(number, base)
        digits = str(remainder) + digits
        if number:
            states.append(str(number))
    return states, digits


def _draw_gcd(rng: random.Random, level: int) -> str:
    a = b = rng.randint(1, 12)
    for _ in range((1, 2, 2, 3, 4, 5)[level - 1]):  # run the subtractions backwards, so that the level is their number
        a, b = (a + b, b) if rng.random() < 0.5 else (a, a + b)
    return f"{a},{b}" if max(a, b) < 100 else _draw_gcd(rng, level)


def _solve_gcd(args: str) -> Solution:
    a, b = (int(part) for part in args.split(","))
    states = []
    while a != b:
        a, b = (a - b, b) if a > b else (a, b - a)
        states.append(f"{a},{b}")
    return states, str(a)


def _draw_poly(rng: random.Random, level: int) -> str:
    return ",".join(str(rng.randint(1, 9)) for _ in range(level + 1)) + f"@{rng.randint(2, 5)}"


def _solve_poly(args: str) -> Solution:
    coefficients, x = args.split("@")
    first, *rest = (int(c) for c in coefficients.split(","))
    value, states = first, []
    for coefficient in rest:
        value = (value * int(x) + coefficient) % 10
        states.append(str(value))
    return states[:-1], states[-1]


# --- code ------------------------------------------------------------------------------------------------------------


def _draw_sort(rng: random.Random, level: int) -> str:
    return "".join(rng.choice(string.digits) for _ in range(level + 1))


def _solve_sort(args: str) -> Solution:
    states = ["".join(sorted(args[:end])) for end in range(2, len(args) + 1)]
    return states[:-1], states[-1]


def _next_letter(letter: str) -> str:
    return string.ascii_lowercase[(string.ascii_lowercase.index(letter) + 1) % 26]


OPERATIONS: dict[str, Callable[[str], str]] = {
    "r": lambda s: s[::-1],  # reverse
    "l": lambda s: s[1:] + s[0],  # rotate left
    "s": lambda s: "".join(map(_next_letter, s)),  # shift every letter by one
    "t": lambda s: s[-1] + s[1:-1] + s[0],  # trade the two ends
}


def _draw_prog(rng: random.Random, level: int) -> str:
    word = "".join(rng.choice(string.ascii_lowercase) for _ in range(3 + (level > 2) + (level > 4)))
    return word + ":" + "".join(rng.choice(list(OPERATIONS)) for _ in range((level + 3) // 2))


def _solve_prog(args: str) -> Solution:
    word, operations = args.split(":")
    states = []
    for operation in operations:
        word = OPERATIONS[operation](word)
        states.append(word)
    return states[:-1], states[-1]


def _draw_shift(rng: random.Random, level: int) -> str:
    word = "".join(rng.choice(string.ascii_lowercase) for _ in range(level + 1))
    return f"{word}+{rng.randint(1, 3)}"


def _solve_shift(args: str) -> Solution:
    word, count = args.split("+")
    states = []
    for _ in range(int(count)):
        word = OPERATIONS["s"](word)
        states.append(word)
    return states[:-1], states[-1]


def _draw_uniq(rng: random.Random, level: int) -> str:
    alphabet = rng.sample(string.ascii_lowercase, 3 + level // 2)
    return "".join(rng.choice(alphabet) for _ in range(level + 4))


def _solve_uniq(args: str) -> Solution:
    kept, trace = "", ""
    for letter in args:
        trace += letter + ("-" if letter in kept else "+")
        kept += "" if letter in kept else letter
    return [trace], kept


def _draw_runs(rng: random.Random, level: int) -> str:
    pair = rng.sample(string.ascii_lowercase, 2 + level // 3)
    word = rng.choice(pair)
    while len(word) < level + 3:
        word += word[-1] if rng.random() < 0.55 else rng.choice(pair)
    return word


def _solve_runs(args: str) -> Solution:
    trace, answer, count = "", "", 0
    for i, letter in enumerate(args):
        count = count + 1 if i and args[i - 1] == letter else 1
        trace += f"{letter}{count}"
        if i + 1 == len(args) or args[i + 1] != letter:
            answer += f"{letter}{count}"
    return [trace], answer


def _draw_pair(rng: random.Random, level: int) -> str:
    length, text, depth = 2 * level + 4, "", 0
    while len(text) < length:
        must_close = depth >= length - len(text)
        opens = not (depth and (must_close or rng.random() < 0.5))
        text, depth = text + "()"[not opens], depth + (1 if opens else -1)
    if rng.random() < 0.5:  # turn one bracket round, so that half of the words fail
        place = rng.randrange(length)
        text = text[:place] + ("(" if text[place] == ")" else ")") + text[place + 1 :]
    return text


def _solve_pair(args: str) -> Solution:
    depth, depths = 0, ""
    for mark in args:
        if mark == ")" and depth == 0:
            return [depths + "x"], f"n{max(depths, default='0')}"
        depth += 1 if mark == "(" else -1
        depths += str(depth)
    return [depths], f"u{depth}" if depth else f"y{max(depths)}"


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("sum", "mathematics", "running sum of digits on a two-digit start, modulo 100", _draw_sum, _solve_sum),
        Family("add", "mathematics", "column addition, carries written out", _draw_add, _solve_add),
        Family("mod", "mathematics", "product of digits modulo a small number", _draw_mod, _solve_mod),
        Family("base", "mathematics", "change to base two by repeated halving", _draw_base, _solve_base),
        Family("gcd", "mathematics", "greatest common divisor by Euclid's subtractions", _draw_gcd, _solve_gcd),
        Family("poly", "mathematics", "a polynomial by Horner's rule, modulo 10", _draw_poly, _solve_poly),
        Family("sort", "code", "insertion sort of digits, state after each insertion", _draw_sort, _solve_sort),
        Family("prog", "code", "a program of reverse, rotate, shift and trade", _draw_prog, _solve_prog),
        Family("shift", "code", "shift every letter by k, one at a time", _draw_shift, _solve_shift),
        Family("uniq", "code", "remove repeated letters, keeping the first", _draw_uniq, _solve_uniq),
        Family("runs", "code", "run lengths of a word, with a running counter", _draw_runs, _solve_runs),
        Family("pair", "code", "balanced brackets: depth trace, then the verdict", _draw_pair, _solve_pair),
    )
}
