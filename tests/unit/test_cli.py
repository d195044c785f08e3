"""The command's entrance: names as people have them, remedies that can be followed, refusals before any work."""

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

from opdgeom_utils import cli, diagnose_pair, diagnose_trajectory, open_checkpoint
from opdgeom_utils.chapters.parameters import declared_parameters
from opdgeom_utils.chapters.your_run import open_run
from opdgeom_utils.diagnose import fan_out, plan
from opdgeom_utils.errors import WAYS, NotebookFailedError, StorageError, ways
from opdgeom_utils.report import papermill_run, write
from opdgeom_utils.report.papermill_run import tagged

NAMES = (
    "My Drive/run 1",
    "run(1)",
    "it's",
    'a "quoted" run',
    "läuft/実行",
    "run{label}",
    "a;b&c|d",
    "-run",
    "run#1",
    "%d",
)
W = "model.layers.0.self_attn.q_proj.weight"


def save(folder: Path, scale: float = 1.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({W: scale * torch.eye(8)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def papermill(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for papermill: measures what it was asked to, and returns the chapter without outputs."""
    calls: list[dict[str, Any]] = []

    def run(raw: Path, out: Path, parameters: Path, root: Path, log: Path, **options: Any) -> None:
        given = yaml.safe_load(parameters.read_text(encoding="utf-8"))
        calls.append(given)
        run = open_run(given["reference"], given["tuned"], allow_pickle=given.get("allow_pickle", False))
        diagnose_trajectory(run.reference, run.checkpoints, k=4, nulls=False, out=given["out"])
        nbformat.write(nbformat.read(raw, as_version=4), out)

    monkeypatch.setattr(write, "run_papermill", run)
    monkeypatch.setattr(plan, "measured_rate", lambda side, settings: (1.0, 1.0))
    return calls


@pytest.mark.parametrize("name", NAMES)
def test_names_as_people_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, papermill: list[dict[str, Any]], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = save(tmp_path / "before")
    after = save(tmp_path / name, 1.5)
    (tmp_path / "link").symlink_to(after)
    assert cli.main(["report", "--out", f"~/{name}/r.html", "--", "~/before", f"~/{name}"]) == 0
    assert papermill.pop()["tuned"] == str(after)
    assert (after / "r.html").is_file()
    for source in (name, f"~/{name}", str(after), "link"):
        assert len(open_run("~/before", source).checkpoints) == 1
        assert diagnose_pair("~/before", source, nulls=False)["update_norm"].tolist() == pytest.approx([2**0.5])
    assert [path.name for path in before.iterdir()] == ["model.safetensors"], "the reference's folder is only read"


@pytest.mark.parametrize("name", [*NAMES, "~/run", "a b c", "run/checkpoint-1 run/checkpoint-2"])
def test_make_hands_every_name_on_as_it_is(book_root: Path, tmp_path: Path, name: str) -> None:
    echo = tmp_path / "echo"
    echo.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    echo.chmod(0o755)
    given = {key: f"{key.lower()} {name}" for key in ("TUNED", "BASE", "LABEL", "PARAMETERS", "OUT", "REVISION")}
    variables = [f"{key}={value}" for key, value in given.items()]
    command = [
        "make",
        "--no-print-directory",  # which `make test` around it would ask for
        "-o",
        "env",
        "report",
        f"VENV={echo}",
        f"REFERENCE={name}",
        *variables,
        "K=8",
        "MODULES=q_proj k_proj",
    ]
    done = subprocess.run(command, cwd=book_root, capture_output=True, text=True, check=True)
    passed = json.loads(done.stdout.splitlines()[-1])
    options = {key: passed[passed.index(f"--{key.lower()}") + 1] for key in given if key != "TUNED"}
    assert options | {"TUNED": passed[-1]} == given
    assert passed[-3:-1] == ["--", name]
    assert passed[passed.index("--modules") + 1] == "q_proj k_proj"


def test_several_checkpoints_in_one_variable_of_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run/checkpoint-1", "run/checkpoint-2", "run/checkpoint-3 copy"):
        save(tmp_path / name)
    assert write.taken_apart("run/checkpoint-1 run/checkpoint-2") == ["run/checkpoint-1", "run/checkpoint-2"]
    assert write.taken_apart("run/checkpoint-1 'run/checkpoint-3 copy'") == [
        "run/checkpoint-1",
        "run/checkpoint-3 copy",
    ]
    assert write.taken_apart("run/checkpoint-3 copy") == ["run/checkpoint-3 copy"]
    assert write.taken_apart("no such folder/checkpoint-50") == ["no such folder/checkpoint-50"]
    assert write.taken_apart(str(tmp_path / "not here/checkpoint-50")) == [str(tmp_path / "not here/checkpoint-50")]


@pytest.mark.parametrize("option", WAYS)
def test_each_way_that_an_error_names_is_there(book_root: Path, option: str) -> None:
    command, make, chapter, python = WAYS[option]
    help_text = subprocess.run(
        [sys.executable, "-m", "opdgeom_utils.cli", "report", "--help"], cwd=book_root, capture_output=True, text=True,
        env={**os.environ, "COLUMNS": "120"}, check=True,
    ).stdout  # fmt: skip
    assert command.split()[0] in help_text
    assert f"{make.partition('=')[0]}" in (book_root / "Makefile").read_text(encoding="utf-8")
    notebook = nbformat.read(write.CHAPTER, as_version=4)
    assert option in declared_parameters(tagged(notebook, "parameters")[0].source)
    assert option in chapter
    function = open_checkpoint if python.endswith("of open_checkpoint") else diagnose_pair
    assert python.partition("=")[0] in inspect.signature(function).parameters
    for way in WAYS[option]:
        assert way in ways(option)


@pytest.mark.parametrize("way", ["command", "make", "python"])
def test_a_pickle_is_read_by_each_way_that_its_error_names(
    book_root: Path, tmp_path: Path, papermill: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], way: str
) -> None:
    before, after = save(tmp_path / "before"), tmp_path / "after"
    after.mkdir()
    torch.save({W: 2 * torch.eye(8)}, after / "pytorch_model.bin")
    arguments = ["report", "-o", str(tmp_path / "r.html"), str(before), str(after)]
    assert cli.main(arguments) == 1
    assert ways("allow_pickle") in capsys.readouterr().err
    if way == "command":
        assert cli.main([*arguments, WAYS["allow_pickle"][0]]) == 0
        assert papermill[0]["allow_pickle"] is True
    elif way == "make":
        command = ["make", "-o", "env", "-n", "report", WAYS["allow_pickle"][1]]
        assert "--allow-pickle" in subprocess.run(command, cwd=book_root, capture_output=True, text=True).stdout
    else:
        table = diagnose_pair(before, open_checkpoint(after, allow_pickle=True), nulls=False)
        assert table["update_norm"].tolist() == pytest.approx([8**0.5])


def test_what_has_no_counterpart_is_left_out_by_each_way(
    book_root: Path, tmp_path: Path, papermill: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = save(tmp_path / "before"), tmp_path / "after"
    after.mkdir()
    save_file({W: torch.eye(8), "extra.weight": torch.eye(2)}, after / "model.safetensors")
    out = ["-o", str(tmp_path / "t.csv")]
    assert cli.main(["diagnose", *out, str(before), str(after)]) == 1
    assert ways("strict") in capsys.readouterr().err
    assert cli.main(["diagnose", *out, str(before), str(after), WAYS["strict"][0]]) == 0
    command = ["make", "-o", "env", "-n", "report", WAYS["strict"][1]]
    assert "--no-strict" in subprocess.run(command, cwd=book_root, capture_output=True, text=True).stdout
    assert len(diagnose_pair(before, after, strict=False, nulls=False)) == 1


@pytest.mark.parametrize("command", [["report"], ["diagnose", "--no-nulls"]])
def test_a_folder_that_cannot_be_written_is_said_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], papermill: list[dict[str, Any]], command: list[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    out = tmp_path / "file" / ("r.html" if command[0] == "report" else "t.csv")
    assert cli.main([*command, "-o", str(out), str(save(tmp_path / "a")), str(save(tmp_path / "b"))]) == 1
    assert ways("out") in capsys.readouterr().err
    assert not papermill


@pytest.mark.parametrize(("option", "words"), [("--k", "k is 0"), ("--jobs", "n_jobs is 0")])
def test_none_of_what_is_counted_is_refused_and_not_taken_for_nothing_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, words: str
) -> None:
    before, after = save(tmp_path / "a"), save(tmp_path / "b")
    assert cli.main(["diagnose", "-o", str(tmp_path / "t.csv"), str(before), str(after), option, "0"]) == 1
    assert words in capsys.readouterr().err
    assert cli.main(["check", "base", "teacher", "--micro-batch", "0"]) == 1
    assert "counts of at least 1" in capsys.readouterr().err


def test_a_text_in_the_place_of_weights_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = save(tmp_path / "a")
    (before / "config.json").write_text("{}")
    arguments = ["diagnose", "-o", str(tmp_path / "t.csv"), str(before)]
    assert cli.main([*arguments, str(before / "config.json")]) == 1
    assert "pass the folder that it lies in" in capsys.readouterr().err
    assert cli.main([*arguments, str((before / "config.json").parent)]) == 0


def test_a_table_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diagnose", "-o", str(tmp_path / "t.xlsx"), "base", "anchor"]) == 1
    assert ".parquet or .csv" in capsys.readouterr().err


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(tmp_path: Path) -> None:
    def command(out: str) -> list[str]:
        return [sys.executable, "-m", "opdgeom_utils.cli", "diagnose", "base", "anchor", "--exact-nulls", "-o", out]

    process = subprocess.Popen(
        command("table.parquet"), cwd=tmp_path, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell has it ignored
    )  # fmt: skip
    until = time.monotonic() + 60
    while not (done := list(tmp_path.glob("table.work/parts/*.parquet"))) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert done
    assert process.returncode == cli.STOPPED, said
    assert "no table was written: stopped. What was measured is kept" in said
    assert not (tmp_path / "table.parquet").exists()
    for name in ("table.parquet", "whole.parquet"):
        subprocess.run(command(name), cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    continued, whole = (pd.read_parquet(tmp_path / name) for name in ("table.parquet", "whole.parquet"))
    pd.testing.assert_frame_equal(continued, whole)


def test_names_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "anchored run")
    assert cli._names("anch") == ["anchor", "anchored run/"]
    assert cli._names("anchored run/") == ["anchored run/model.safetensors"]


def test_help_does_not_import_what_measures(book_root: Path) -> None:
    heavy = {"torch", "pandas", "transformers", "nbformat"}
    code = f"import sys, opdgeom_utils.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=book_root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_in_the_place_of_a_file_is_said_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], papermill: list[dict[str, Any]]
) -> None:
    before, after = save(tmp_path / "a"), save(tmp_path / "b", 1.5)
    (tmp_path / "t.csv").mkdir()
    (tmp_path / "r.parquet").mkdir()
    for command in (["diagnose", "-o", str(tmp_path / "t.csv")], ["report", "-o", str(tmp_path / "r.html")]):
        assert cli.main([*command, str(before), str(after)]) == 1
        assert "is a folder, expected the name of a file" in capsys.readouterr().err
    assert not papermill
    assert not list(tmp_path.glob("*.work"))


def test_a_page_is_not_written_over_the_table_of_a_monitor(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    papermill: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """geometry.html would take geometry.parquet with it, in which a trainer's callback keeps what it saw."""
    monkeypatch.setattr(write, "report_page", lambda *_, **__: "a page")
    before, after = save(tmp_path / "a"), save(tmp_path / "b", 1.5)
    kept = pd.DataFrame({"step": [1], "walk": [2.0]})
    kept.to_parquet(tmp_path / "geometry.parquet")
    command = ["report", str(before), str(after), "-o"]
    assert cli.main([*command, str(tmp_path / "geometry.html")]) == 1
    assert "holds another table (2 columns)" in capsys.readouterr().err
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "geometry.parquet"), kept)
    assert not papermill
    assert cli.main([*command, str(tmp_path / "mine.html")]) == 0
    assert cli.main([*command, str(tmp_path / "mine.html")]) == 0, "its own table is written again"


def test_what_was_decided_while_opening_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late, early = save(tmp_path / "run/checkpoint-9", 1.5), save(tmp_path / "run/checkpoint-5")
    assert cli.main(["diagnose", str(late), str(early), "-o", str(tmp_path / "t.csv"), "--no-nulls"]) == 0
    assert "REFERENCE was saved at step 9 of the run, after TUNED (step 5)" in capsys.readouterr().out


def test_a_full_disk_is_called_one_and_a_notebook_that_was_cut_short_is_no_riddle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, log = tmp_path / "out.ipynb", tmp_path / "log.txt"
    out.write_text('{\n "cells": [')

    def fails(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        options["stdout"].write("the kernel died")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(papermill_run.subprocess, "run", fails)
    with pytest.raises(NotebookFailedError, match="the kernel died"):
        papermill_run.run_papermill(tmp_path / "in.ipynb", out, tmp_path / "p.yaml", tmp_path, log)
    monkeypatch.setattr(papermill_run.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(StorageError, match="is full"):
        papermill_run.run_papermill(tmp_path / "in.ipynb", out, tmp_path / "p.yaml", tmp_path, log)


def test_two_reports_into_one_place_are_made_one_after_the_other(
    tmp_path: Path, papermill: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one executes the chapter, the other's parameters are not yet in the folder that they share."""
    before, first, second = (save(tmp_path / name, scale) for name, scale in (("a", 1.0), ("b", 1.5), ("c", 2.0)))
    run, seen, begun = write.run_papermill, [], threading.Event()

    def slowly(raw: Path, out: Path, parameters: Path, *rest: Any, **options: Any) -> None:
        begun.set()
        time.sleep(0.5)
        seen.append(Path(yaml.safe_load(parameters.read_text())["tuned"]).name)
        run(raw, out, parameters, *rest, **options)

    monkeypatch.setattr(write, "run_papermill", slowly)
    monkeypatch.setattr(write, "report_page", lambda *_, **__: "a page")
    ask = partial(write.write_report, out=tmp_path / "r.html")
    thread = threading.Thread(target=ask, args=({"reference": str(before), "tuned": str(first)},))
    thread.start()
    assert begun.wait(60)
    ask({"reference": str(before), "tuned": str(second)})
    thread.join()
    assert seen == ["b", "c"]
    assert pd.read_parquet(tmp_path / "r.parquet")["update_norm"].tolist() == pytest.approx([8**0.5])


def test_a_process_that_was_ended_from_outside_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: Any) -> Any:
        raise BrokenExecutor("a process was terminated abruptly")

    monkeypatch.setattr(fan_out, "_results", ended)
    arguments = ["diagnose", str(save(tmp_path / "a")), str(save(tmp_path / "b", 1.5)), "-o", str(tmp_path / "t.csv")]
    assert cli.main([*arguments, "--jobs", "2"]) == 1
    assert "one of 2 processes was ended from outside" in capsys.readouterr().err
