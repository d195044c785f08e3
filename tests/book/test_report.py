"""`make report`: one file that opens from disk and asks for nothing, a table beside it, errors that say what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import yaml

from opdgeom_utils.chapters.book_renderer import render_chart
from opdgeom_utils.chapters.your_run import open_run
from opdgeom_utils.diagnose import diagnose_trajectory
from opdgeom_utils.models import MODELS
from opdgeom_utils.report import write
from opdgeom_utils.report.page import BOOK_ONLY, report_page
from tools import make_report
from tools.build_book import Plan
from tools.look import Visit
from tools.notebooks import depended_files, digest_of, execute

pytestmark = pytest.mark.xdist_group("browser")
CHAPTER = "10_your_model"


@pytest.fixture(scope="module")
def chapter(smoke_site: Plan) -> nbformat.NotebookNode:
    """The chapter as the site of the tests has it: executed already, so nothing runs again."""
    source = smoke_site.root / "notebooks" / f"{CHAPTER}.md"
    shared = digest_of(depended_files(smoke_site.root))
    result = execute(source, smoke_site.root, smoke_site.build, smoke_site.parameters, shared)
    return nbformat.read(result.path, as_version=4)


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_report_is_one_sound_file(
    chapter: nbformat.NotebookNode, open_file: Callable[..., Visit], tmp_path: Path, width: int, scheme: str
) -> None:
    page = tmp_path / "alone" / "report.html"
    page.parent.mkdir()
    page.write_text(report_page(chapter, title="Where my run lies"), encoding="utf-8")
    asked: list[str] = []
    visit = open_file(page, width=width, scheme=scheme)
    visit.page.on("request", lambda request: asked.append(request.url))
    visit.page.reload()
    visit.wait_ready()
    assert visit.problems() == []
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert visit.page.evaluate("document.documentElement.dataset.theme") == scheme
    assert visit.page.locator(".opd-chart").count() >= 7
    assert visit.page.locator("article h1").count() == 1


def test_report_has_the_reading_and_nothing_of_the_book_alone(chapter: nbformat.NotebookNode) -> None:
    page = report_page(chapter, title="x", leave_out=(BOOK_ONLY, write.TRAJECTORY))
    article = page.partition("<article")[2].partition("</article>")[0]
    for heading in ("The plan", "The map", "The reading", "What this does not show"):
        assert f"<h2>{heading}</h2>" in article
    for heading in ("Exercise", "published pairs", "Along the checkpoints"):
        assert heading not in article
    assert "{numref}" not in article
    assert "{term}" not in article
    assert "Not everything could be compared" not in article


def test_words_of_a_run_cannot_break_the_page() -> None:
    chart = {"description": "Points of a run with a strange name, to try it.", "mark": "point", "data": {"values": []}}
    cell = nbformat.v4.new_code_cell("x")
    cell.outputs = [
        nbformat.v4.new_output("display_data", data=render_chart(chart)),
        nbformat.v4.new_output("stream", name="stdout", text="</script><b>"),
        nbformat.v4.new_output("stream", name="stderr", text="a warning"),
        nbformat.v4.new_output("display_data", data={"text/markdown": "- <script>alert(1)</script>"}),
    ]
    page = report_page(nbformat.v4.new_notebook(cells=[cell]), title="<script>")
    article = page.partition("<article")[2].partition("</article>")[0]
    assert "<title>&lt;script&gt;</title>" in page
    assert "&lt;/script&gt;&lt;b&gt;" in article
    assert "alert(1)</script>" not in article
    assert "a warning" not in article


@pytest.fixture
def papermill(chapter: nbformat.NotebookNode, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for papermill: measures what it was asked to, one kind of matrix, and returns the executed chapter."""
    calls: list[dict[str, Any]] = []

    def run(raw: Path, out: Path, parameters: Path, root: Path, log: Path, **options: Any) -> None:
        given = yaml.safe_load(parameters.read_text())
        calls.append({**given, **options, "cells": nbformat.read(raw, as_version=4).cells})
        opened = open_run(given["reference"], given["tuned"], modules=given["modules"])
        diagnose_trajectory(opened.reference, opened.checkpoints, k=4, nulls=False, out=given["out"])
        nbformat.write(chapter, out)

    monkeypatch.setattr(write, "run_papermill", run)
    return calls


def test_page_and_table_are_written(
    papermill: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.html"
    options = ["--reference", "base", "--tuned", "anchor", "--modules", "k_proj", "--label", "mine", "--out", str(out)]
    assert make_report.main(options) == 0
    assert "<title>Where mine lies</title>" in out.read_text(encoding="utf-8")
    assert pd.read_parquet(tmp_path / "mine.parquet")["module"].tolist() == ["k_proj"] * 4
    (call,) = papermill
    assert (call["label"], call["out"], call["offline"]) == ("mine", str(tmp_path / "mine.work"), False)
    assert not any(BOOK_ONLY in cell.metadata.get("tags", []) for cell in call["cells"])
    printed = capsys.readouterr().out
    assert printed.index("estimated time") < printed.index("report ready")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "make report REFERENCE=<before> TUNED=<after>"),
        (["--reference", "base"], "make report REFERENCE=<before> TUNED=<after>"),
        (["--reference", "base", "--tuned", "./no/such/folder"], "no such file or folder"),
        (["--reference", "FILL-IN/a", "--tuned", "anchor"], "in place of FILL-IN"),
        (["--reference", "base", "--tuned", "anchor", "--label", "OPD"], "label is 'OPD'"),
    ],
)
def test_errors_come_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert make_report.main([*options, "--out", str(tmp_path / "x.html")]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_options_win_over_the_file_and_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, papermill: list[dict[str, Any]]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text("reference: base\ntuned: base\nmodules: [k_proj]\nlabel: file\n")
    anchor = MODELS / "anchor"
    (tmp_path / "run").symlink_to(anchor)
    arguments = ["--parameters", "p.yaml", "--tuned", "run", "--out", "r.html"]
    assert make_report.main(arguments) == 0
    (call,) = papermill
    assert (call["reference"], call["tuned"], call["label"]) == ("base", str(tmp_path / "run"), "file")
