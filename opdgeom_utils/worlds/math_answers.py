"""Final answers of mathematical texts: where they stand, and whether two of them are the same."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

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

    It is lenient: in a bare list neither order nor repeats count, the index of a base does not, ``18%`` is 18 and 0.18,
    and of an equation the right side will do. It is strict where words are not marked: ``42 dollars`` is not 42.

    Raises MissingPackageError if math-verify is not installed.

    >>> same_answer(r"\frac{1}{2}", "0.5"), same_answer("1,072", "1072"), same_answer("12", "21")
    (True, True, False)
    """
    if found.strip() == expected.strip():
        return True
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
