"""Problems in a local file: one JSON object a line, with prompt and answer, perhaps completion, family and level."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from opdgeom_utils.errors import RecipeError
from opdgeom_utils.project_files import PROJECT
from opdgeom_utils.worlds.math_answers import MARKS
from opdgeom_utils.worlds.questions import Question, Table, text_of

COLUMNS = ("prompt", "answer", "completion", "family", "level")


class Tasks(Table):
    """The problems of a file.

    ``path``: the file; a relative path is one from the project's folder.
    ``grade``: ``exact``: the whole text is the answer; ``mathematics``: its final answer, by math-verify.
    ``answer_in``: where a final answer may stand: :func:`opdgeom_utils.worlds.math_answers.final_answer`.
    ``domain``: what the problems belong to.
    ``mismatched``: SFT's null objective: :class:`opdgeom_utils.worlds.questions.Table`.
    Raises RecipeError if the file is missing, empty, or a line is not an object with these keys.
    """

    def __init__(
        self,
        path: str,
        *,
        grade: str = "exact",
        answer_in: Sequence[str] = MARKS,
        domain: Any = "mathematics",
        mismatched: Any = False,
    ) -> None:
        super().__init__(grade, answer_in, mismatched=mismatched)
        if not isinstance(domain, str):
            raise RecipeError(f"domain is {domain!r}; expected a text")
        self.path, self.domain = PROJECT / Path(path).expanduser(), domain
        if not self.path.is_file():
            raise RecipeError(f"tasks of kind jsonl: there is no file {self.path}")
        self._families: dict[str, dict[str, Question]] = {}
        try:
            lines = self.path.read_text(encoding="utf-8-sig").split("\n")  # JSON texts may hold other ends of a line
        except UnicodeDecodeError as error:
            raise RecipeError(f"{self.path} is not UTF-8 text: {error}; save it as UTF-8") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                question = self._read(line, number)
                self._families.setdefault(question.family, {})[question.prompt] = question
        if not self._families:
            raise RecipeError(f"{self.path} is empty; expected a JSON object with prompt and answer on every line")

    @cached_property
    def digest(self) -> str:
        """Sha256 of the file: another file makes other runs."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def families(self) -> Iterable[str]:
        """Families that the file names; ``problems`` where it names none."""
        return self._families.keys()

    def questions(self, family: str) -> Sequence[Question]:
        """Every question of a family; of a prompt that comes twice the last."""
        return list(self._families[family].values())

    def _read(self, line: str, number: int) -> Question:
        where = f"line {number} of {self.path}"
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict) or set(row) - set(COLUMNS) or {"prompt", "answer"} - set(row):
            found = sorted(row) if isinstance(row, dict) else row
            raise RecipeError(f"{where} has {found}; expected prompt and answer, and of {', '.join(COLUMNS[2:])} any")
        if isinstance(row.get("level"), bool):
            raise RecipeError(f"{where} has level {json.dumps(row['level'])}; expected a whole number or a text")
        texts = {
            key: text_of(value, key, where, needed=key != "completion")
            for key, value in row.items()
            if key != "level" and (value is not None or key in ("prompt", "answer"))
        }
        return Question(**texts, domain=self.domain, level=row.get("level"))  # pyright: ignore[reportArgumentType]
