"""Mathematics from a dataset of the Hugging Face hub, or from a local folder in the same layout.

A world names the datasets that its recipes mix, and says what is not as in a preset::

    tasks:
      kind: dataset
      datasets:
        gsm8k: {}                                    # a preset, from the hub
        math500: {path: /data/MATH-500}              # a preset, from a local copy
        mine: {path: org/name, prompt: question, answer: answer, held_out: test}

and a recipe's mixture says which levels of which: ``{gsm8k: [all], math: [1, 2]}``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from opdgeom_utils.errors import CheckpointNotFoundError, MissingPackageError, RecipeError
from opdgeom_utils.problems import Split
from opdgeom_utils.project_files import PROJECT
from opdgeom_utils.worlds.math_answers import MARKS, final_answer
from opdgeom_utils.worlds.questions import Question, Table, text_of

CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # GSM8K writes each computation twice, the second time for a tool

ADVICE = ". Name another column, or one place of a list or a block (column.0, column.name), or a copy without such rows"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the questions of one family lie. Columns may be dotted: ``prompt.0.content`` of a list of messages.

    ``path``: hub id or local folder; a relative one is one from the project's folder.
    ``prompt``, ``answer``: columns. Where the answer is a whole solution, its box or what follows ``####`` is the
    answer.
    ``config``, ``revision``: of the dataset on the hub.
    ``train``, ``held_out``: names of its splits. Without ``held_out`` the prompt's checksum holds one in eight out;
    without ``train`` there is nothing to train on.
    ``demonstration``: column of a worked solution, empty where there is none.
    ``level``: column of a whole number (or ``Level 5``) that a mixture may choose by.
    ``template``: how the question is put: ``{prompt}`` stands for it.
    ``domain``: what the problems belong to.
    """

    path: str
    prompt: str
    answer: str
    config: str = ""
    revision: str = ""
    train: str = "train"
    held_out: str = ""
    demonstration: str = ""
    level: str = ""
    template: str = "{prompt}"
    domain: str = "mathematics"

    def __post_init__(self) -> None:
        """Refuse what is no text, and a template without a place for the question."""
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, str):
                raise RecipeError(f"{name} of dataset {self.path!r} is {value!r}; expected a text")
        if "{prompt}" not in self.template:
            raise RecipeError(f"template of dataset {self.path!r} is {self.template!r}; expected {{prompt}} in it")
        if not self.path:
            raise RecipeError("path of a dataset is empty; expected a hub id or a folder")

    @property
    def folder(self) -> Path:
        """Where it lies, if it is no hub id."""
        return PROJECT / Path(self.path).expanduser()


HASHED = "Question: {prompt}\nReason step by step, and end with #### and the number.\nAnswer:\n"
BOXED = "Question: {prompt}\nReason step by step, and put the final answer in \\boxed{}.\nAnswer:\n"
PRESETS = {
    "gsm8k": Source(
        "openai/gsm8k", "question", "answer", config="main", held_out="test", demonstration="answer", template=HASHED
    ),
    "math": Source(
        "DigitalLearningGmbH/MATH-lighteval", "problem", "solution", held_out="test", demonstration="solution",
        level="level", template=BOXED,
    ),
    "math500": Source(
        "HuggingFaceH4/MATH-500", "problem", "answer", train="", held_out="test", demonstration="solution",
        level="level", template=BOXED,
    ),
    "dapo_math": Source("open-r1/DAPO-Math-17k-Processed", "prompt", "solution", config="en", template=BOXED),
}  # fmt: skip


def source_of(name: str, said: Any) -> Source:
    """Return a preset with what is said of it, or a source that is said in full.

    Raises RecipeError if a key is unknown, or path, prompt or answer of a dataset without a preset are missing.

    >>> source_of("gsm8k", {"path": "/data/gsm8k"}).demonstration
    'answer'
    """
    known = [f.name for f in dataclasses.fields(Source)]
    if said is not None and (not isinstance(said, Mapping) or set(said) - set(known)):
        raise RecipeError(f"dataset {name!r} is {said!r}; expected a block with no other keys than {known}")
    for key, value in (said or {}).items():
        if not isinstance(value, str):
            raise RecipeError(f"dataset {name!r}: {key} is {value!r}; expected a text")
    if name in PRESETS:
        return dataclasses.replace(PRESETS[name], **said or {})
    if missing := sorted({"path", "prompt", "answer"} - set(said or {})):
        raise RecipeError(f"dataset {name!r} does not say {missing}, and is no preset ({', '.join(PRESETS)})")
    return Source(**said or {})


class Tasks(Table):
    """The questions of some datasets, graded by math-verify. Nothing is fetched before the first question is drawn.

    ``datasets``: settings of each family: :class:`Source`, or nothing for a preset.
    ``answer_in``: where a final answer may stand: :func:`opdgeom_utils.worlds.math_answers.final_answer`.
    ``mismatched``: SFT's null objective: :class:`opdgeom_utils.worlds.questions.Table`.
    """

    def __init__(
        self, datasets: Mapping[str, Any], *, answer_in: Sequence[str] = MARKS, mismatched: Any = False
    ) -> None:
        super().__init__("mathematics", answer_in, mismatched=mismatched)
        if not isinstance(datasets, Mapping) or not datasets:
            raise RecipeError(f"datasets is {datasets!r}; expected a block such as {{gsm8k: {{}}}}")
        self.sources = {name: source_of(name, said) for name, said in datasets.items()}
        self._loaded: dict[str, list[Question]] = {}

    @cached_property
    def digest(self) -> str:
        """Checksum of every source: of a local folder its files, of the hub's the name and the revision."""
        parts = [_source_digest(name, source) for name, source in sorted(self.sources.items())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def families(self) -> Iterable[str]:
        """Names of the datasets."""
        return self.sources.keys()

    def questions(self, family: str) -> Sequence[Question]:
        """Every question of a dataset, fetched on the first call, each prompt once.

        Raises CheckpointNotFoundError if it cannot be opened. Raises RecipeError if it has no such column.
        """
        if family not in self._loaded:
            source = self.sources[family]
            sides: list[tuple[str, Split | None]] = [(source.train, "train"), (source.held_out, "held_out")]
            rows: dict[str, Question] = {}
            for split, side in sides:
                if split:
                    side = side if source.held_out else None
                    for number, row in enumerate(_rows(source, split), 1):
                        where = f"row {number} of split {split!r} of dataset {source.path}"
                        question = _question(family, source, row, side, where)
                        rows.setdefault(question.prompt, question)
            self._loaded[family] = list(rows.values())
        return self._loaded[family]


def _rows(source: Source, split: str) -> Any:
    """Open one split of a dataset."""
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError("datasets are read with datasets: pip install 'opdgeom-utils[tasks]'") from error
    folder, name = source.folder, source.config or None
    local = folder.exists() or source.path.startswith(("/", ".", "~"))
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():  # by save_to_disk
            found = datasets.load_from_disk(str(folder))
            return (found if isinstance(found, dict) else {"train": found})[split]
        if local:
            inside: dict[str, Any] = {"data_dir": name} if name and (folder / name).is_dir() else {}
            inside |= {"name": name} if not inside and (folder / "README.md").is_file() else {}  # which has its configs
            return datasets.load_dataset(str(folder), split=split, **inside)
        return datasets.load_dataset(source.path, name, split=split, revision=source.revision or None)
    except Exception as error:  # the hub's client lets its network library's own errors through
        raise CheckpointNotFoundError(
            f"split {split!r} of dataset {source.path} could not be opened ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}). " + (
            f"Expected {folder} to be a folder with a file of each split, such as train.parquet and test.jsonl, or "
            "one that save_to_disk wrote. Say as train and held_out which splits it has, \"\" for none" if local else
            f"Without a network, copy it from where there is one (hf download --repo-type dataset {source.path} "
            "--local-dir FOLDER) and set path: FOLDER")
        ) from error  # fmt: skip


def _question(family: str, source: Source, row: Mapping[str, Any], side: Split | None, where: str) -> Question:
    """Make a question of a row."""

    def text(column: str, *, needed: bool = True) -> str:
        return text_of(_column(source, row, column), column, where, needed=needed, advice=ADVICE)

    answer = text(source.answer)
    shown = text(source.demonstration, needed=False) if source.demonstration else ""
    level = _column(source, row, source.level) if source.level else None
    if isinstance(level, str) and level.removeprefix("Level ").isdecimal():
        level = int(level.removeprefix("Level "))
    return Question(
        prompt=source.template.replace("{prompt}", text(source.prompt).strip()),
        answer=final_answer(answer, ("boxed", "hashes")) or answer,
        completion=CALCULATOR.sub("", shown).strip(),
        family=family, domain=source.domain, level=level, side=side,
    )  # fmt: skip


def _column(source: Source, row: Any, column: str) -> Any:
    """Return what stands in a column, or in one place of it."""
    found = row
    for part in column.split("."):
        try:
            found = found[int(part)] if isinstance(found, list) else found[part]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            has = ", ".join(row)
            raise RecipeError(f"dataset {source.path} has no column {column!r}; it has {has}") from error
    return found


def _source_digest(name: str, source: Source) -> str:
    content = hashlib.sha256()
    for file in sorted(source.folder.rglob("*")) if source.folder.is_dir() else []:
        below = file.relative_to(source.folder)
        if file.is_file() and not any(part.startswith(".") for part in below.parts):  # what tools leave there
            content.update(below.as_posix().encode() + file.read_bytes())
    return f"{name}:{source}:{content.hexdigest()}"
