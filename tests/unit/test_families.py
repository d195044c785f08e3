"""Every solver against answers worked out by hand, and every generator against its own promises."""

import math
import random
import re

import pytest

from opdgeom_utils.families import FAMILIES, LEVELS
from opdgeom_utils.tasks import CHARACTERS

BY_HAND = [
    ("sum", "47+8-5", ["55"], "50"),
    ("sum", "98+7-9+4", ["05", "96"], "00"),
    ("add", "47,85", ["12", "13"], "132"),
    ("add", "105,206", ["11", "01", "03"], "311"),
    ("mod", "7*8%9", [], "2"),
    ("mod", "5*5*5%11", ["3"], "4"),
    ("base", "13>2", ["6", "3", "1"], "1101"),
    ("base", "8>2", ["4", "2", "1"], "1000"),
    ("gcd", "12,8", ["4,8", "4,4"], "4"),
    ("gcd", "2,5", ["2,3", "2,1", "1,1"], "1"),
    ("poly", "2,3@4", [], "1"),
    ("poly", "1,2,3@5", ["7"], "8"),
    ("sort", "312", ["13"], "123"),
    ("sort", "4404", ["44", "044"], "0444"),
    ("prog", "abc:rl", ["cba"], "bac"),
    ("prog", "xyz:st", ["yza"], "azy"),
    ("shift", "az+1", [], "ba"),
    ("shift", "xy+3", ["yz", "za"], "ab"),
    ("uniq", "abca", ["a+b+c+a-"], "abc"),
    ("uniq", "zzyz", ["z+z-y+z-"], "zy"),
    ("runs", "aab", ["a1a2b1"], "a2b1"),
    ("runs", "abbba", ["a1b1b2b3a1"], "a1b3a1"),
    ("pair", "(())", ["1210"], "y2"),
    ("pair", "()(", ["101"], "u1"),
    ("pair", "(()))", ["1210x"], "n2"),
    ("pair", ")", ["x"], "n0"),
]


@pytest.mark.parametrize(("family", "args", "steps", "answer"), BY_HAND)
def test_solver_gives_the_answer_worked_by_hand(family: str, args: str, steps: list[str], answer: str) -> None:
    assert FAMILIES[family].solve(args) == (steps, answer)


def test_every_family_has_two_cases_by_hand() -> None:
    checked = [family for family, *_ in BY_HAND]
    assert {family: checked.count(family) >= 2 for family in FAMILIES} == dict.fromkeys(FAMILIES, True)


def test_two_domains_share_the_families_equally() -> None:
    domains = [family.domain for family in FAMILIES.values()]
    assert domains.count("mathematics") == domains.count("code") == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_are_reproducible_solvable_and_in_the_alphabet(family: str) -> None:
    for level in LEVELS:
        drawn = [FAMILIES[family].draw(random.Random(seed), level) for seed in range(40)]
        assert drawn == [FAMILIES[family].draw(random.Random(seed), level) for seed in range(40)]
        for args in drawn:
            steps, answer = FAMILIES[family].solve(args)
            assert answer
            assert set(f"{family} {args}=" + ";".join([*steps, answer])) <= set(CHARACTERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_harder_levels_have_longer_work(family: str) -> None:
    def mean_length(level: int) -> float:
        solved = [FAMILIES[family].solve(FAMILIES[family].draw(random.Random(seed), level)) for seed in range(200)]
        return sum(len(";".join([*steps, answer])) for steps, answer in solved) / len(solved)

    assert mean_length(1) < mean_length(6)


def test_answers_agree_with_python_arithmetic() -> None:
    """The answers again by another road: Python's own operators instead of the worked steps."""
    rng = random.Random(1)
    for level in LEVELS:
        for _ in range(50):
            args = {name: FAMILIES[name].draw(rng, level) for name in FAMILIES}
            answer = {name: FAMILIES[name].solve(args[name])[1] for name in FAMILIES}
            assert int(answer["sum"]) == sum(int(term) for term in re.findall(r"[+-]?\d+", args["sum"])) % 100
            assert int(answer["add"]) == sum(int(term) for term in args["add"].split(","))
            assert int(answer["mod"]) == eval(args["mod"])
            number, base = args["base"].split(">")
            assert int(answer["base"], int(base)) == int(number)
            assert int(answer["gcd"]) == math.gcd(*(int(number) for number in args["gcd"].split(",")))
            coefficients, x = args["poly"].split("@")
            powers = enumerate(reversed(coefficients.split(",")))
            assert int(answer["poly"]) == sum(int(c) * int(x) ** power for power, c in powers) % 10
            assert answer["sort"] == "".join(sorted(args["sort"]))
            assert answer["uniq"] == "".join(dict.fromkeys(args["uniq"]))
            assert answer["runs"] == "".join(f"{m[0][0]}{len(m[0])}" for m in re.finditer(r"(.)\1*", args["runs"]))
