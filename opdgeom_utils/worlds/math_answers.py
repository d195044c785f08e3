"""Final answers of mathematical texts: where they stand, and whether two of them are the same."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from itertools import pairwise

from opdgeom_utils.errors import MissingPackageError, RecipeError
from opdgeom_utils.problems import Grade, Written

MARKS = ("boxed", "hashes", "last_number")
BRACE = re.compile(r"\\+(?:boxed|fbox)(?:\s*\{| +([^\s{}$\\]+)(?=[\s$]))|\\.|[{}]", re.DOTALL)
HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
NUMBER = re.compile(
    r"(?:(?<![\w)}\]])[-\u2212])?"  # a sign, where nothing stands before it that it takes away from
    r"(?:\\[dt]?frac\s*(?:\{\d+\}|\d){2}|(?<!\w)\.\d+|"
    r"(?<![\d^_])(?<!\^\{)\d+(?:(?:,|\{,\})\d{3})*(?:\.\d+)?(?:\^\{?\d+\}?)?(?:/\d+)?)"  # no exponent, no index
)
SECONDS = 5  # for one comparison: sympy can be made to think for hours
SIDES, LONGEST = 6, 300  # sides and characters of an equation, at most: a model may write either without end
EQUALS = re.compile(r"(?<![<>!:]):?=+")
NEXT = re.compile(r"[,;]|\\\\|\\q?quad(?![a-zA-Z])|\b(?:or|and)\b")  # between two equations
OR = re.compile(r"\\(?:text|textrm|mbox|mathrm)\{\s*(or|and)\s*\}")
WRAPPED = re.compile(r"(?P<begin>(?:\\(?:left|text|boxed|fbox|mathrm|mbox))?\s*\\?[(\[{])\0*(?P<end>[)\]}])")
SPACES = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[,;:! ]|[\s~$]+")
GREEK = (
    "alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon|"
    "(?:var)?phi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Sigma|Upsilon|Phi|Psi|Omega|ell|gcd|max|min|det|Pr"
)
LETTER = (
    rf"(?:[A-Za-z]|\\(?:{GREEK})|\\(?:text\w*|math\w+|mbox|operatorname|overline|vec|hat|bar)\{{[^{{}}]*\}})"
    r"(?:'|_(?:\{[^{}]*\}|\w)|\^\{-1\})*"
)
#: What a left side may be so that its equation says a value: ``x``, ``f(3)``, ``AB``, ``(x, y)``, an angle, a word.
NAMED = re.compile(
    rf"{LETTER}(?:\([^()]*\))?|m?(?:\\(?:angle|triangle))?[|\[]?[A-Z]+[|\]]?|\({LETTER}(?:,{LETTER})*\)|[A-Za-z]{{3,}}"
)
#: A word, and no product of its letters, as math-verify reads ``cat``.
WORD = re.compile(r"\s*\$?(?:\\(?:text\w*|mbox|mathrm)\{)?\s*([A-Za-z]{3,})\s*\}?\$?\s*\.?\s*")
BASE = re.compile(r"[0-9A-F]\s*_\s*(\{(?:[^{}]|\{[^{}]*\})*\}|\\\w+\{\w+\}|\w)")
BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
         "ten": "10"}  # fmt: skip


def check_marks(marks: Sequence[str]) -> tuple[str, ...]:
    """Return where answers are looked for, or say what is known.

    Raises RecipeError if it is not a list of at least one of ``boxed``, ``hashes`` and ``last_number``.
    """
    if isinstance(marks, str) or not marks or any(mark not in MARKS for mark in marks):
        raise RecipeError(f"answer_in is {marks!r}; expected a list of one or more of {', '.join(MARKS)}")
    return tuple(marks)


def final_answer(text: str, marks: Sequence[str] = MARKS) -> str | None:
    r"""Return the final answer of a text, None where there is none: of each mark the last, in the order of ``marks``.

    ``text``: a solution.
    ``marks``: ``boxed``: inside the last ``\boxed{}``; ``hashes``: behind the last ``####``; ``last_number``.

    >>> final_answer(r"so \boxed{\frac{1}{2}} it is"), final_answer("48/2 = 24\n#### 1,072"), final_answer("7 or -3.5.")
    ('\\frac{1}{2}', '1,072', '-3.5')
    >>> final_answer("7 or -3.5.", ["boxed"]) is None
    True
    """
    found = {"boxed": _boxed, "hashes": _behind_hashes, "last_number": _last_number}
    return next((answer for mark in marks if (answer := found[mark](text))), None)


def _boxed(text: str) -> str | None:
    """Return what stands in the last box whose braces close; one pass, as a model may write boxes without end."""
    opened: list[tuple[int, bool]] = []
    last = (-1, -1)
    for mark in BRACE.finditer(text):
        if mark[1]:
            last = max(last, mark.span(1))
        elif mark[0].endswith("{") and mark[0] != "\\{":
            opened.append((mark.end(), mark[0] != "{"))
        elif mark[0] == "}" and opened:
            start, is_box = opened.pop()
            last = max(last, (start, mark.start())) if is_box else last
    return text[slice(*last)].strip() if last[0] >= 0 else None


def _behind_hashes(text: str) -> str | None:
    return found[-1].strip("* \t\r") if (found := HASHES.findall(text)) else None


def _last_number(text: str) -> str | None:
    return found[-1] if (found := NUMBER.findall(text)) else None


def same_answer(found: str, expected: str) -> bool:
    r"""Whether two answers mean the same, by math-verify; the same text always does.

    It is lenient: in a bare list neither order nor repeats count, the index of a base only where both have one, ``18%``
    is 18 and 0.18, and of an equation the right side will do where the left one is a name or comes to the same:
    ``x = 7`` and ``3 + 4 = 7`` are 7, ``x + 8 = 7`` is not. It is strict where words are not marked: ``42 dollars`` is
    not 42. Three letters or more in a row are a word and no product: ``Odd`` is ``odd``, ``act`` is not ``cat``.

    Raises MissingPackageError if math-verify is not installed.

    >>> same_answer(r"\frac{1}{2}", "0.5"), same_answer("1,072", "1072"), same_answer("12", "21")
    (True, True, False)
    >>> same_answer("act", "cat"), same_answer(r"\text{Odd}", "odd"), same_answer("ba", "ab")
    (False, True, True)
    >>> same_answer("x = 7", "7"), same_answer("x + 8 = 7", "7"), same_answer("1011_3", "1011_2")
    (True, False, False)
    """
    if found.strip() == expected.strip():
        return True
    words = [WORD.fullmatch(text) for text in (found, expected)]
    if words[0] and words[1]:
        return words[0][1].casefold() == words[1][1].casefold()
    ours, theirs = _bases(found), _bases(expected)
    if ours and theirs and ours != theirs:
        return False
    if bool(EQUALS.search(found)) == bool(EQUALS.search(expected)):
        return _verified(found, expected)
    ours, theirs = _value(found), _value(expected)
    return ours is not None and theirs is not None and _verified(ours, theirs)


def _value(text: str) -> str | None:
    """Put the last side of each equation in its place; None where one of the others is no name, and worth another."""
    if len(text) > LONGEST:
        return None
    if not EQUALS.search(text):
        return text
    text = OR.sub(r" \1 ", text.strip("$ .\n"))
    outside = _outside(text)
    if wrapped := WRAPPED.fullmatch(outside):
        inside = _value(text[wrapped.end("begin") : wrapped.start("end")])
        return None if inside is None else f"{text[: wrapped.end('begin')]}{inside}{wrapped['end']}"
    said, begin = "", 0
    for end in [*NEXT.finditer(outside), None]:
        stop = end.start() if end else len(text)
        cuts = [(begin, begin), *(cut.span() for cut in EQUALS.finditer(outside, begin, stop)), (stop, stop)]
        *others, last = (text[one[1] : two[0]].strip() for one, two in pairwise(cuts))
        named = len(others) < SIDES and all(
            NAMED.fullmatch(SPACES.sub("", side)) or _verified(side, last) for side in others
        )
        if not named or EQUALS.search(last):
            return None
        said += last + (end[0] if end else "")
        begin = end.end() if end else stop
    return said


def _outside(text: str) -> str:
    """Blank out what stands inside brackets, so that what is found in the rest stands at the same place of the text."""
    shown, depth = "", 0
    for character in text:
        depth -= character in ")]}" and depth > 0
        shown += "\0" if depth else character
        depth += character in "([{"
    return shown


def _bases(text: str) -> list[str]:
    """Return the indices that stand behind digits: ``1011_2`` is a number in base two."""
    words = (re.sub(r"\\\w+(?=\{)|[{}\s]", "", index) for index in BASE.findall(text))
    return sorted(BASES.get(word.lower(), word) for word in words)


def _verified(found: str, expected: str) -> bool:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise MissingPackageError("answers are compared by math-verify: pip install 'opdgeom-utils[tasks]'") from error
    seconds = SECONDS if threading.current_thread() is threading.main_thread() else None  # it is timed by a signal
    ours, theirs = (parse(f"${text}$", parsing_timeout=seconds) for text in (found, expected))  # pyright: ignore[reportArgumentType]
    return bool(verify(theirs, ours, timeout_seconds=seconds))


def grade_mathematics(expected: str, written: Written, marks: Sequence[str]) -> Grade:
    """Judge a solution by its final answer. Of a text that was cut off, what may have lost its end does not count.

    That is a last number, and what stands behind ``####`` in the last line.

    >>> grade_mathematics("18", Written("2 * 9 = 18", ended=True), MARKS)
    Grade(reward=1.0, parsed=True)
    >>> grade_mathematics("18", Written("2 * 9 = 18", ended=False), MARKS)
    Grade(reward=0.0, parsed=False)
    """
    *whole, last = written.text.split("\n")
    text = written.text if written.ended else "\n".join([*whole, last.replace("####", "")])
    answer = final_answer(text, [m for m in marks if written.ended or m != "last_number"])
    return Grade(0.0, False) if answer is None else Grade(float(same_answer(answer, expected)), True)
