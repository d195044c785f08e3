"""Problems that others set: the same on every call, never on both sides, graded, and clear where they cannot be."""

import datetime
import json
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from opdgeom_utils.errors import CheckpointNotFoundError, MissingPackageError, RecipeError
from opdgeom_utils.problems import Grade, Tasks, Written, split_of
from opdgeom_utils.worlds import hub_dataset, jsonl, math_answers, reasoning_gym
from opdgeom_utils.worlds.math_answers import final_answer, grade_mathematics, same_answer

GYM = {"chain_sum": [{"min_terms": 2, "max_terms": 3}, 1], "spell_backward": [{}]}


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "marks", "answer"),
    [
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}", ["boxed"], r"\frac{1}{2}"),
        (r"a box that is left open: \boxed{\frac{1}{2}", ["boxed"], None),
        (r"one that closes before one that does not: \boxed{7} \boxed{8", ["boxed"], "7"),
        ("12 + 60 = 72\n#### 72", ["hashes"], "72"),
        ("#### 1\n#### -2,000 \n", ["hashes"], "-2,000"),
        ("####", ["hashes"], None),
        (r"\boxed{3} #### 4", ["hashes", "boxed"], "4"),
        ("from 3 to -4.5.", ["last_number"], "-4.5"),
        (r"an escaped brace opens nothing: \boxed{\left\{x, y\right.}", ["boxed"], r"\left\{x, y\right."),
        (r"one in another: \boxed{\boxed{7}}, \\boxed{8}", ["boxed"], "8"),
        (r"as some write it: $\boxed 72$", ["boxed"], "72"),
        ("#### **72**", ["hashes"], "72"),
        ("a difference is no sign: 10-3", ["last_number"], "3"),
        ("a true minus: x = \u22125", ["last_number"], "\u22125"),
        ("no leading zero: x=-.5.", ["last_number"], "-.5"),
        (r"$-\frac{1}{2}$", ["last_number"], r"-\frac{1}{2}"),
        (r"\dfrac12", ["last_number"], r"\dfrac12"),
        ("12,500 cm^2", ["last_number"], "12,500"),
        ("1{,}000", ["last_number"], "1{,}000"),
        ("10^6", ["last_number"], "10^6"),
        ("no number", ["boxed", "hashes", "last_number"], None),
        ("", ["last_number"], None),
    ],
)
def test_the_final_answer_of_a_text(text: str, marks: list[str], answer: str | None) -> None:
    assert final_answer(text, marks) == answer


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("0.5", r"\frac{1}{2}", True),
        (r"\dfrac{2}{4}", r"\frac12", True),
        ("1,072", "1072", True),
        ("(1, 2)", r"\left(1,2\right)", True),
        ("2+x", "x+2", True),
        ("x+3", "x+2", False),
        ("12", "21", False),
        ("", "0", False),
        ("\u2212.5", r"-\frac12", True),
        ("1{,}000", "1000", True),
        ("10^6", "1,000,000", True),
        ("[0, 1)", "[0, 1]", False),
        (r"\{2, 1\}", r"\{1, 2\}", True),
        ("(2, 1)", "(1, 2)", False),
        # an equation is its right side where the left one is a name, or comes to the same
        ("x = 7", "7", True),
        ("7", "x = 7", True),
        ("x_1 = 7.", "7", True),
        ("f(3)=7", "7", True),
        (r"f^{-1}(3) = 7", "7", True),
        ("AB = 7", "7", True),
        (r"m\angle ABC = 30^\circ", "30", True),
        (r"\text{the area} = \frac14", "0.25", True),
        (r"\theta = \pi/2", r"\frac{\pi}{2}", True),
        ("n = 1{,}000", "1000", True),
        ("y = 2x + 1", "1 + 2x", True),
        (r"x = 2 \text{ or } x = 3", "2, 3", True),
        ("(x, y) = (1, 2)", "(1,2)", True),
        ("3 + 4 = 7", "7", True),
        ("x + 8 = 7", "7", False),
        ("(x + 8 = 7)", "7", False),
        (r"\text{so }x + 8 = 7", "7", False),
        ("2x = 7", "7", False),
        ("x^2 = 7", "7", False),
        ("8 = 7", "7", False),
        ("x = 7 = 8", "8", False),
        ("x + 1 = 7, y + 1 = 8", "7, 8", False),
        ("1", "x + y = 1", False),
        ("x + y = 1", "y + x = 1", True),
        (" = ".join("x" * 500 + "7"), "7", False),  # it would take minutes
        ("(" * 5000 + "x = 7" + ")" * 5000, "7", False),
        # the base counts where both say it
        ("1011_3", "1011_2", False),
        # three letters in a row are a word, two a product
        ("act", "cat", False),
        (r"\text{ Evelyn}", "evelyn", True),
        ("$Friday$.", "Friday", True),
        ("ab", "ba", True),
        ("1011_{3}", "1011_2", False),
        (r"1011_{\text{two}}", "1011_2", True),
        ("1011", "1011_2", True),
    ],
)
def test_answers_that_mean_the_same(found: str, expected: str, same: bool) -> None:
    assert same_answer(found, expected) == same


def test_boxes_without_end_come_to_an_end() -> None:
    """In one pass; looked through from every box, they would take hours."""
    assert final_answer(r"\boxed{" * 200_000, ["boxed"]) is None


def test_parsed_is_told_apart_from_right() -> None:
    marks = ["boxed", "hashes"]
    assert grade_mathematics("72", Written(r"\boxed{72}", False), marks) == Grade(1.0, True)
    assert grade_mathematics("72", Written(r"\boxed{27}", True), marks) == Grade(0.0, True)
    assert grade_mathematics("72", Written("it is 72", True), marks) == Grade(0.0, False)


def test_an_answer_that_may_have_lost_its_end_does_not_count() -> None:
    marks = ["boxed", "hashes"]
    assert grade_mathematics("7", Written("#### 7", False), marks) == Grade(0.0, False)  # cut from #### 72, perhaps
    assert grade_mathematics("7", Written("#### 7", True), marks) == Grade(1.0, True)
    assert grade_mathematics("7", Written("#### 7\nNow", False), marks) == Grade(1.0, True)
    assert grade_mathematics("7", Written(r"#### \boxed{7}", False), marks) == Grade(1.0, True)
    assert grade_mathematics("7", Written(r"\boxed 7", False), marks) == Grade(0.0, False)


def test_without_its_packages_a_world_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in ("math_verify", "reasoning_gym", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    needed = r"pip install 'opdgeom-utils\[tasks\]'"
    with pytest.raises(MissingPackageError, match=needed):
        same_answer("1", "2")
    with pytest.raises(MissingPackageError, match=needed):
        reasoning_gym.Tasks().check(GYM)
    with pytest.raises(MissingPackageError, match=needed):
        hub_dataset.Tasks({"gsm8k": {}}).draw({"gsm8k": ["all"]}, 1, 0)


# --- a local file ----------------------------------------------------------------------------------------------------


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def sums(n: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"{i}+{i}=",
            "answer": str(2 * i),
            "completion": f"so {2 * i}",
            "family": f"f{i % 2}",
            "level": i % 3,
        }
        for i in range(n)
    ]


def test_what_a_file_s_settings_cannot_be(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", sums(60))
    with pytest.raises(RecipeError, match="domain is 3; expected a text"):
        jsonl.Tasks(path, domain=3)
    with pytest.raises(RecipeError, match=r"line 1 of .* has level true; expected"):  # which is equal to 1
        jsonl.Tasks(write_lines(tmp_path / "q.jsonl", [{"prompt": "1", "answer": "1", "level": True}]))


def test_a_file_keeps_its_two_sides_apart(tmp_path: Path) -> None:
    tasks = jsonl.Tasks(write_lines(tmp_path / "p.jsonl", sums(200)))
    assert isinstance(tasks, Tasks)
    mixture = {"f0": ["all"], "f1": [0, 2]}
    train, held_out = tasks.draw(mixture, 300, "0:1"), tasks.held_out(mixture, 1000)
    assert {split_of(p.prompt) for p in train} == {"train"}
    assert {split_of(p.prompt) for p in held_out} == {"held_out"}
    assert {p.level for p in train if p.family == "f1"} == {0, 2}
    expected = [r for r in sums(200) if r["family"] == "f0" or r["level"] in (0, 2)]
    assert {p.prompt for p in held_out} == {r["prompt"] for r in expected if split_of(r["prompt"]) == "held_out"}
    assert tasks.draw(mixture, 300, "0:1") == train != tasks.draw(mixture, 300, "0:2")
    weighted = tasks.draw(mixture, 400, 0, {"f0": 3})
    assert 250 < sum(p.family == "f0" for p in weighted) < 350


def test_mismatched_shows_the_same_prompts_with_anothers_demonstration(tmp_path: Path) -> None:
    path, mixture = write_lines(tmp_path / "p.jsonl", sums(200)), {"f0": ["all"], "f1": [0, 2]}
    true, shown = (jsonl.Tasks(path, mismatched=wrong).draw(mixture, 100, "0:1") for wrong in (False, True))
    assert [(q.prompt, q.answer, q.level) for q in shown] == [(q.prompt, q.answer, q.level) for q in true]
    assert not any(a.completion == b.completion for a, b in zip(shown, true, strict=True))
    by_text = {row["completion"]: row for row in sums(200)}
    assert all(by_text[q.completion]["family"] == q.family for q in shown)
    assert all(by_text[q.completion]["level"] == q.level for q in shown if q.family == "f1")
    assert jsonl.Tasks(path, mismatched=True).held_out(mixture, 5) == jsonl.Tasks(path).held_out(mixture, 5)
    with pytest.raises(RecipeError, match="mismatched is 'yes'; expected true or false"):
        jsonl.Tasks(path, mismatched="yes")
    alone = next({"prompt": str(i), "answer": "1"} for i in range(99) if split_of(str(i)) == "train")
    with pytest.raises(RecipeError, match="has one problem of level None; mismatched needs two"):
        jsonl.Tasks(write_lines(tmp_path / "q.jsonl", [alone]), mismatched=True).draw({"problems": ["all"]}, 1, 0)


def test_a_file_is_graded_exactly_or_as_mathematics(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", sums(60))
    exact, mathematics = jsonl.Tasks(path), jsonl.Tasks(path, grade="mathematics")
    problem = next(q for q in exact.questions("f0") if q.answer == "8")
    assert exact.grade(problem, Written("8", True)) == Grade(1.0, True)
    assert exact.grade(problem, Written("so 8", True)) == Grade(0.0, True)
    assert exact.grade(problem, Written("8", False)) == Grade(0.0, False)
    assert mathematics.grade(problem, Written("so 16/2", True)) == Grade(1.0, True)


def test_another_file_has_another_digest(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", sums(60))
    before = jsonl.Tasks(path).digest
    assert jsonl.Tasks(path).digest == before
    write_lines(tmp_path / "p.jsonl", sums(61))
    assert jsonl.Tasks(path).digest != before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "empty"),
        (["{"], "line 1 .* is not JSON"),
        ([{"prompt": "1", "answer": "2"}, {"prompt": "1"}], "line 2"),
        ([{"prompt": "1", "answer": "2", "anwser": 3}], "anwser"),
        ([[1]], "line 1"),
        ([{"prompt": "1", "answer": "2"}, {"prompt": "1", "answer": None}], "line 2 .* empty answer"),
        ([{"prompt": " ", "answer": 2}], "line 1 .* empty prompt"),
        ([{"prompt": "1", "answer": [1, 2]}], r"line 1 .* answer \[1, 2\]; expected a text or a number"),
        ([{"prompt": "1", "answer": True}], "line 1 .* answer True"),
        ([{"prompt": "1", "answer": float("nan")}], "line 1 .* answer nan"),
        ([{"prompt": [{"role": "user", "content": "1"}], "answer": 1}], "line 1 .* prompt .*role"),
        ([{"prompt": "1", "answer": 1, "family": ""}], "line 1 .* empty family"),
        (['{"prompt": "1", "answer": ' + "[" * 100_000], "line 1 .* is not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        jsonl.Tasks(write_lines(tmp_path / "p.jsonl", rows))


def test_a_file_is_read_as_others_write_it(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = ['{"prompt": "a\u2028b", "answer": 3, "completion": null}', '{"prompt": "c", "answer": "d"}']
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())  # an editor's mark of UTF-8, Windows' ends of lines
    first, second = jsonl.Tasks(str(path)).questions("problems")
    assert (first.prompt, first.answer, first.completion) == ("a\u2028b", "3", "")
    assert (second.prompt, second.answer) == ("c", "d")
    path.write_bytes('{"prompt": "ä", "answer": "b"}'.encode("latin-1"))
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        jsonl.Tasks(str(path))


def test_too_few_problems_are_told(tmp_path: Path) -> None:
    assert zlib.crc32(b"a") % 8 != 0  # one prompt, on the training side
    tasks = jsonl.Tasks(write_lines(tmp_path / "p.jsonl", [{"prompt": "a", "answer": "b"}]))
    with pytest.raises(RecipeError, match=r"no held_out problem .*of its 1 problems none is.* Add problems"):
        tasks.held_out({"problems": ["all"]}, 1)


def test_slips_of_a_file_s_world_are_told(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", sums(60))
    with pytest.raises(RecipeError, match="no file"):
        jsonl.Tasks(path + "x")
    with pytest.raises(RecipeError, match="grade"):
        jsonl.Tasks(path, grade="kind")
    with pytest.raises(RecipeError, match="answer_in"):
        jsonl.Tasks(path, answer_in=["box"])
    tasks = jsonl.Tasks(path)
    with pytest.raises(RecipeError, match=r"known: f0, f1\. Say so in mixture and in evaluation"):
        tasks.check({"f2": ["all"]})
    with pytest.raises(RecipeError, match="weight of 'f0'"):
        tasks.check({"f0": ["all"]}, {"f0": 0})
    with pytest.raises(RecipeError, match="has the levels 0, 1, 2"):
        tasks.draw({"f0": [7]}, 1, 0)
    write_lines(tmp_path / "p.jsonl", [row | {"level": str(row["level"])} for row in sums(60)])
    with pytest.raises(RecipeError, match="of level 1; it has the levels '0', '1', '2'"):
        jsonl.Tasks(path).draw({"f0": [1]}, 1, 0)


# --- datasets --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gsm8k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layout of openai/gsm8k."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "gsm8k" / "main").mkdir(parents=True)
    for split, n in (("train", 40), ("test", 9)):
        rows = [
            (f"{split} {i}?", f"It is {i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}.\n#### {2 * i:,}") for i in range(600, 600 + n)
        ]
        table = pd.DataFrame(rows, columns=["question", "answer"])
        table.to_parquet(tmp_path / "gsm8k" / "main" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "gsm8k"


def test_a_dataset_from_a_folder_has_its_own_test_side(gsm8k: Path) -> None:
    tasks = hub_dataset.Tasks({"gsm8k": {"path": str(gsm8k), "template": "Q: {prompt}\nA:"}})
    assert isinstance(tasks, Tasks)
    train, held_out = tasks.draw({"gsm8k": ["all"]}, 2000, 0), tasks.held_out({"gsm8k": ["all"]}, 100)
    assert {p.prompt for p in train} == {f"Q: train {i}?\nA:" for i in range(600, 640)}
    assert {p.prompt for p in held_out} == {f"Q: test {i}?\nA:" for i in range(600, 609)}
    problem = next(p for p in held_out if "605" in p.prompt)
    assert (problem.answer, problem.completion) == ("1,210", "It is 605+605=1210.\n#### 1,210")
    assert tasks.grade(problem, Written(problem.completion, True)) == Grade(1.0, True)
    assert tasks.grade(problem, Written(r"\boxed{1210}", False)) == Grade(1.0, True)


def test_only_a_calculator_s_own_marks_are_taken_out() -> None:
    assert hub_dataset.CALCULATOR.sub("", "6*7=<<6*7=42>>42") == "6*7=42"
    assert hub_dataset.CALCULATOR.sub("", "a << b,\nc >> d") == "a << b,\nc >> d"


def test_a_dataset_without_a_test_side_is_split_by_checksum(gsm8k: Path) -> None:
    said = {"path": str(gsm8k), "config": "main", "prompt": "question", "answer": "answer"}
    tasks = hub_dataset.Tasks({"mine": said})
    found = [*tasks.draw({"mine": ["all"]}, 300, 0), *tasks.held_out({"mine": ["all"]}, 100)]
    assert {p.prompt for p in found} == {f"train {i}?" for i in range(600, 640)}
    assert all(not p.completion for p in found)
    assert [p.side for p in found] == [None] * len(found)


def test_levels_and_dotted_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        {"m": [{"content": f"q{i}"}], "r": {"truth": str(i)}, "level": f"Level {i % 3}", "s": rf"So \boxed{{{i}}}."}
        for i in range(60)
    ]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = {"path": str(tmp_path / "d"), "prompt": "m.0.content", "answer": "r.truth", "level": "level"}
    tasks = hub_dataset.Tasks({"mine": {**said, "demonstration": "s"}})
    drawn = tasks.draw({"mine": [1]}, 100, 0)
    assert {int(p.answer) % 3 for p in drawn} == {1}
    assert {p.completion for p in drawn} <= {row["s"] for row in rows}
    whole = hub_dataset.Tasks({"mine": {**said, "answer": "s"}}).draw({"mine": ["all"]}, 20, 0)
    assert all(p.prompt == f"q{p.answer}" for p in whole)
    with pytest.raises(RecipeError, match=r"no column 'm\.0\.text'"):
        hub_dataset.Tasks({"mine": {**said, "prompt": "m.0.text"}}).draw({"mine": ["all"]}, 1, 0)


def test_a_test_set_alone_cannot_be_trained_on() -> None:
    tasks = hub_dataset.Tasks({"math500": {}})
    tasks._loaded["math500"] = []
    with pytest.raises(RecipeError, match=r"no train problem .*its splits say so \(train, held_out\)"):
        tasks.draw({"math500": ["all"]}, 1, 0)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"gsm8k": {"pathh": "x"}}, "pathh"),
        ({"mine": {"path": "x"}}, r"\['answer', 'prompt'\]"),
        ({"gsm8k": {"path": 3}}, "path"),
        ({"gsm8k": {"path": ""}}, "path of a dataset is empty"),
        ({"gsm8k": {"template": "no place"}}, "template"),
        ({}, "datasets is"),
        ({"gsm8k": "openai/gsm8k"}, "block"),
    ],
)
def test_slips_of_a_dataset_are_told(said: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        hub_dataset.Tasks(said)


def test_a_dataset_that_is_not_there_says_how_to_bring_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    with pytest.raises(CheckpointNotFoundError, match="to be a folder with a file of each split"):
        hub_dataset.Tasks({"gsm8k": {"path": str(tmp_path)}}).draw({"gsm8k": ["all"]}, 1, 0)
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(CheckpointNotFoundError, match="dataset openai/gsm8k --local-dir FOLDER"):
        hub_dataset.Tasks({"gsm8k": {}}).draw({"gsm8k": ["all"]}, 1, 0)


@pytest.mark.parametrize("form", ["flat", "one", "both"])
def test_a_preset_is_read_from_a_copy_in_another_form(form: str, gsm8k: Path, tmp_path: Path) -> None:
    import datasets

    train, copy, said = gsm8k / "main" / "train-00000-of-00001.parquet", tmp_path / "copy", {}
    if form == "flat":
        copy = gsm8k / "main"
    else:
        saved = datasets.Dataset.from_pandas(pd.read_parquet(train))
        (saved if form == "one" else datasets.DatasetDict(train=saved, test=saved.select([0]))).save_to_disk(copy)
        said = {"held_out": ""}
    tasks = hub_dataset.Tasks({"gsm8k": {"path": str(copy), "template": "{prompt}", **said}})
    assert {f"train {i}?" for i in range(600, 640)} <= {q.prompt for q in tasks.questions("gsm8k")}
    if form == "one":
        with pytest.raises(CheckpointNotFoundError, match=r"split .test. .* train and held_out which splits it has"):
            hub_dataset.Tasks({"gsm8k": {"path": str(copy)}}).questions("gsm8k")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"answer": "list"}, r"row 1 of split 'train' .* has list \['0'\]; expected a text or a number.*column\.0"),
        ({"answer": "some"}, "row 4 .* an empty some"),
        ({"prompt": "some"}, "row 4 .* an empty some"),
        ({"demonstration": "list"}, "row 1 .* has list"),
    ],
)
def test_a_row_that_has_no_text_is_no_question(
    said: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"q": f"q{i}", "a": i, "list": [str(i)], "some": None if i % 4 == 3 else "x"} for i in range(40)]
    write_lines(tmp_path / "d.jsonl", rows)
    (tmp_path / "d").mkdir()
    (tmp_path / "d.jsonl").rename(tmp_path / "d" / "train.jsonl")
    source = {"path": str(tmp_path / "d"), "prompt": "q", "answer": "a"}
    with pytest.raises(RecipeError, match=message):
        hub_dataset.Tasks({"mine": source | said}).questions("mine")
    shown = hub_dataset.Tasks({"mine": source | {"demonstration": "some"}}).questions("mine")
    assert [q.completion for q in shown] == ["" if i % 4 == 3 else "x" for i in range(40)]
    assert [q.answer for q in shown] == [str(i) for i in range(40)]


def test_a_relative_folder_is_the_project_s(gsm8k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_dataset, "PROJECT", tmp_path)
    monkeypatch.chdir(gsm8k)  # chapters run in another folder than make
    tasks = hub_dataset.Tasks({"gsm8k": {"path": "gsm8k"}})
    assert len(tasks.questions("gsm8k")) == 49
    before = tasks.digest
    (gsm8k / ".cache").mkdir()
    (gsm8k / ".cache" / "fetched-at").write_text("now")
    assert hub_dataset.Tasks({"gsm8k": {"path": "gsm8k"}}).digest == before
    (gsm8k / "more.txt").write_text("now")
    assert hub_dataset.Tasks({"gsm8k": {"path": "gsm8k"}}).digest != before


# --- reasoning-gym ---------------------------------------------------------------------------------------------------


def test_reasoning_gym_gives_the_same_problems_and_keeps_sides_apart() -> None:
    tasks, again = reasoning_gym.Tasks(), reasoning_gym.Tasks()
    assert isinstance(tasks, Tasks)
    tasks.check(GYM)
    train, held_out = tasks.draw(GYM, 40, "0:1"), tasks.held_out(GYM, 8)
    assert train == again.draw(GYM, 40, "0:1") != again.draw(GYM, 40, "0:2")
    assert held_out == again.held_out(GYM, 8)
    assert {split_of(p.prompt) for p in train} == {"train"}
    assert {split_of(p.prompt) for p in held_out} == {"held_out"}
    assert {p.domain for p in train} == {"arithmetic", "algorithmic"}


def test_reasoning_gym_grades_by_its_own_score() -> None:
    tasks, text = reasoning_gym.Tasks(), reasoning_gym.Tasks(form="text")
    problem = tasks.draw({"chain_sum": [0]}, 1, 0)[0]
    answer = problem.entry["answer"]
    assert problem.completion == f"<answer>{answer}</answer>"
    assert tasks.grade(problem, Written(f"well: {problem.completion}", False)) == Grade(1.0, True)
    assert tasks.grade(problem, Written(f"<answer>{answer}.0</answer>", True)) == Grade(1.0, True)
    assert tasks.grade(problem, Written("<answer>x</answer>", True)) == Grade(0.0, True)
    assert tasks.grade(problem, Written(answer, True)) == Grade(0.0, False)
    assert text.grade(problem, Written(answer, True)) == Grade(1.0, True)
    assert text.grade(problem, Written(answer, False)) == Grade(0.0, False)


def test_an_answer_that_its_dataset_cannot_read_is_wrong() -> None:
    tasks = reasoning_gym.Tasks()
    problem = tasks.draw({"prime_factorization": [{}]}, 1, 0)[0]
    with pytest.raises(ValueError, match="invalid literal"):  # so it would stop a run
        tasks._dataset(problem.family, problem.settings).score_answer("seven", problem.entry)
    assert tasks.grade(problem, Written("<answer>seven</answer>", True)) == Grade(0.0, True)
    assert tasks.grade(problem, Written(problem.completion, True)) == Grade(1.0, True)


def test_the_last_answer_that_closes_counts() -> None:
    tasks = reasoning_gym.Tasks()
    problem = tasks.draw({"chain_sum": [0]}, 1, 0)[0]
    right, wrong = problem.completion, "<answer>x</answer>"
    for text, reward in (
        (wrong + right, 1.0),
        (right + wrong, 0.0),
        (right + "<answer>x", 1.0),
        ("<answer>" + right, 1.0),
    ):
        assert tasks.grade(problem, Written(text, True)) == Grade(reward, True)
    began = time.perf_counter()
    assert tasks.grade(problem, Written("<answer>" * 20_000, True)) == Grade(0.0, False)
    assert time.perf_counter() - began < 2  # looked through from every mark it took half a minute


RUNS_ANSWERS = (*reasoning_gym.LITERALS, *reasoning_gym.FORMULAS, *reasoning_gym.SUMS)


@pytest.mark.parametrize("name", RUNS_ANSWERS)
def test_what_a_model_writes_is_not_run_as_a_program(name: str, tmp_path: Path) -> None:
    tasks, left = reasoning_gym.Tasks(), tmp_path / "left"
    problem = tasks.draw({name: [{}]}, 1, 0)[0]
    began = time.perf_counter()
    for answer in (f"__import__('pathlib').Path({str(left)!r}).write_text('x')", "9**9**9**9", "[9**9**9**9]",
                   "factorial(10**9)", "(" * 5000, "S('9**9**9')", "x.y", "\0"):  # fmt: skip
        assert tasks.grade(problem, Written(f"<answer>{answer}</answer>", True)) == Grade(0.0, True)
    assert not left.exists()
    assert time.perf_counter() - began < 4


@pytest.mark.parametrize("name", RUNS_ANSWERS)
def test_right_answers_of_such_datasets_stay_right(name: str) -> None:
    tasks = reasoning_gym.Tasks()
    for problem in tasks.draw({name: [{}]}, 5, 1):
        shown = problem.completion or f"<answer>{problem.entry['metadata']['expression']}</answer>"
        assert tasks.grade(problem, Written(shown, True)) == Grade(1.0, True)
        others = problem.entry["metadata"].get("valid_answers", [])
        assert all(tasks.grade(problem, Written(f"<answer>{o}</answer>", True)).reward for o in others)


def test_a_sum_uses_its_numbers_in_the_sum() -> None:
    """Numbers in a comment, or in one longer number, were counted as used."""
    tasks = reasoning_gym.Tasks()
    problem = tasks.draw({"countdown": [{}]}, 1, 1)[0]
    numbers, target = problem.entry["metadata"]["numbers"], problem.entry["metadata"]["target"]
    cheat = f"{target}{''.join(f' # {n}' for n in numbers)}" if target not in numbers else ""
    assert not tasks.grade(problem, Written(f"<answer>{cheat}</answer>", True)).reward
    assert not reasoning_gym.may_be_scored("countdown", "3_4")
    assert not reasoning_gym.may_be_scored("countdown", "2**3")


@pytest.mark.parametrize(
    "answer", ["x**2/2 + sin(x)*exp(-x) + C", "sqrt(x)*log(Abs(x))", "X**(3/2)", "-pi*x", "x**100"]
)
def test_formulas_are_scored(answer: str) -> None:
    assert reasoning_gym.may_be_scored("intermediate_integration", answer)


def test_an_answer_that_takes_long_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = reasoning_gym.Tasks()
    problem = tasks.draw({"gcd": [{}]}, 1, 0)[0]
    dataset = type(tasks._dataset(problem.family, problem.settings))
    monkeypatch.setattr(dataset, "score_answer", lambda *_: time.sleep(60))
    monkeypatch.setattr(reasoning_gym, "SECONDS", 0.1)
    began = time.perf_counter()
    assert tasks.grade(problem, Written(problem.completion, True)) == Grade(0.0, True)
    assert time.perf_counter() - began < 10


def test_a_held_out_problem_comes_once() -> None:
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # 200 sums and differences of two digits
    held_out = reasoning_gym.Tasks().held_out({"chain_sum": [few]}, 256)
    assert 10 < len(held_out) == len({p.prompt for p in held_out}) < 200


@pytest.mark.parametrize(
    ("name", "wrong"), [("game_of_life_halting", "neither"), ("coin_flip", "0"), ("puzzle24", "6*4*1*1")]
)
def test_a_dataset_that_calls_wrong_answers_right_is_refused(name: str, wrong: str) -> None:
    import reasoning_gym as gym

    dataset = gym.create_dataset(name, seed=0, size=5)
    assert any(wrong != entry["answer"] and dataset.score_answer(wrong, entry) == 1 for entry in dataset)
    with pytest.raises(RecipeError, match="leave it out"):
        reasoning_gym.Tasks().check({name: [{}]})


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"chain_summ": [0]}, "chain_sum, decimal_chain_sum"),
        ({"chain_sum": [{"min_term": 1}]}, "no min_term; known: .*min_terms"),
        ({"chain_sum": [{"min_terms": 0}]}, "min_terms must be positive"),
        ({"chain_sum": [{"seed": 1}]}, "seed"),
        ({"chain_sum": ["easy"]}, "level"),
        ({"chain_sum": [datetime.date(2024, 1, 1)]}, 'settings "2024-01-01" of .*a whole number'),
        ({"chain_sum": []}, "empty"),
        ({"knight_swap": [{}]}, "same seed"),
        ({"codeio": [{}]}, "some of them write files"),  # one leaves temp_parameters.txt in the working folder
    ],
)
def test_slips_of_a_mixture_are_told(mixture: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        reasoning_gym.Tasks().check(mixture)


@pytest.mark.parametrize("options", [{"form": "box"}, {"threshold": 0}, {"threshold": "1"}, {"instruction": 3}])
def test_slips_of_options_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(options))):
        reasoning_gym.Tasks(**options)


def test_marks_are_a_list() -> None:
    with pytest.raises(RecipeError, match="list"):
        math_answers.check_marks("boxed")
