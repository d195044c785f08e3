"""The commands behind the Makefile: what they reuse, what they refuse, and what they leave behind when they stop."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import cast

import pytest

from opdgeom_utils.chapters.parameters import declared_parameters
from tools import browser, setup_env, vendor
from tools.build_book import ROOT, BookFailedError, Plan, build_book, main, pages_of
from tools.notebooks import depended_files, digest_of
from tools.pair import derived_text, format_source, stale_pairs

NOTEBOOK = """---
jupytext:
  formats: ipynb,md:myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# One

Prose before.

```{{code-cell}} ipython3
:tags: [parameters]

profile: str = "toy"
```

```{{code-cell}} ipython3
{code}
```
"""
pytestmark = pytest.mark.xdist_group("tools")
INDEX = "# Small book\n\nThe formula $x^2$ and the page {{doc}}`../notebooks/01_one`. {extra}\n"
TOC = "format: jb-book\nroot: book/index\nchapters:\n  - file: notebooks/01_one\n"


@pytest.fixture(scope="module")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one page and one notebook, the real configuration, and the vendored files already there."""
    root = tmp_path_factory.mktemp("small")
    for folder in ("notebooks/params", "data", "opdgeom_utils"):
        (root / folder).mkdir(parents=True)
    shutil.copytree(ROOT / "book/_ext", root / "book/_ext", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "book/_static", root / "book/_static")
    for name in ("book/references.bib", "_config.yml", "requirements.lock", "notebooks/params/smoke.yaml"):
        shutil.copyfile(ROOT / name, root / name)
    (root / "_toc.yml").write_text(TOC)
    (root / "book/index.md").write_text(INDEX.format(extra=""))
    (root / "notebooks/01_one.md").write_text(NOTEBOOK.format(code="print(6 * 7)"))
    vendored = vendor.vendor(ROOT / "_build")
    shutil.copytree(vendored, root / "_build/vendor" / vendored.name)
    return root


@pytest.fixture
def plan(small_root: Path) -> Plan:
    return Plan(small_root, small_root / "_build", small_root / "_build/site", {})


def test_book_is_built_once_and_then_kept(plan: Plan) -> None:
    first = build_book(plan)
    assert "42" in (plan.site / "notebooks/01_one.html").read_text()
    stamp = (plan.site / "notebooks/01_one.html").stat().st_mtime_ns
    again = build_book(plan)
    assert [result.ran for result in first + again] == [True, False]
    assert (plan.site / "notebooks/01_one.html").stat().st_mtime_ns == stamp


def test_faulty_page_is_an_error_and_the_old_site_stays(plan: Plan) -> None:
    build_book(plan)
    before = sorted(path.name for path in plan.site.rglob("*.html"))
    page = plan.root / "book/index.md"
    good = page.read_text()
    page.write_text(INDEX.format(extra="{cite:t}`nobody1900`"))
    with pytest.raises(BookFailedError, match="nobody1900"):
        build_book(plan)
    page.write_text(good)
    assert sorted(path.name for path in plan.site.rglob("*.html")) == before
    assert list(plan.build.glob("stage-*")) == []


def test_failing_notebook_shows_its_cell(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    source = plan.root / "notebooks/01_one.md"
    good = source.read_text()
    source.write_text(NOTEBOOK.format(code="height = 3\nassert height > 4, 'too low by one'"))
    status = main(["--root", str(plan.root)])
    source.write_text(good)
    said = capsys.readouterr()
    assert status == 1
    assert "assert height > 4" in said.err
    assert "too low by one" in said.err


def test_undeclared_parameter_is_an_error(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = tmp_path / "typo.yaml"
    parameters.write_text("profle: smoke\n")
    assert main(["--root", str(plan.root), "--parameters", str(parameters)]) == 1
    assert "01_one: unknown parameter: profle. This notebook declares: profile" in capsys.readouterr().err


def test_pages_come_from_the_table_of_contents(small_root: Path) -> None:
    (small_root / "_toc.yml").write_text(TOC)
    assert pages_of(small_root) == ["book/index", "notebooks/01_one"]
    assert pages_of(ROOT)[0] == "book/index"


def test_key_follows_sources_but_not_runs(tmp_path: Path) -> None:
    for folder in ("opdgeom_utils", "data/runs/x", "data/results"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "requirements.lock").write_text("a==1\n")
    (tmp_path / "opdgeom_utils/m.py").write_text("x = 1\n")
    before = digest_of(depended_files(tmp_path))
    (tmp_path / "data/runs/x/log.jsonl").write_text("{}")
    assert digest_of(depended_files(tmp_path)) == before
    (tmp_path / "data/results/t.csv").write_text("1")
    after_data = digest_of(depended_files(tmp_path))
    (tmp_path / "opdgeom_utils/m.py").write_text("x = 2\n")
    after_code = digest_of(depended_files(tmp_path))
    assert len({before, after_data, after_code}) == 3


def test_another_archive_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An archive with another checksum is never unpacked, and nothing half-made stays."""

    def pack(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--pack-destination") + 1])
        (folder / "mathjax-3.2.2.tgz").write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(vendor.subprocess, "run", pack)
    with pytest.raises(vendor.VendorError, match=r"mathjax@3\.2\.2: sha256 is [0-9a-f]{64}, expected 1b9c0a1c"):
        vendor.vendor(tmp_path)
    assert list(tmp_path.glob("vendor/*")) == []


def test_unreachable_registry_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ENOTFOUND registry")

    monkeypatch.setattr(vendor.subprocess, "run", fail)
    with pytest.raises(vendor.VendorError, match="npm registry"):
        vendor.vendor(tmp_path)


def test_of_two_processes_that_fetch_at_once_the_first_ones_files_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who comes second must not take away the folder that the first has begun to read."""
    target = tmp_path / "vendor" / vendor.vendor_key()
    arrivals = []

    def unpack(archive: vendor.Archive, content: bytes, partial: Path) -> None:
        partial.mkdir(parents=True, exist_ok=True)
        if not arrivals and archive is vendor.ARCHIVES[-1]:
            arrivals.append(archive)
            (target / "mathjax").mkdir(parents=True)
            (target / "mathjax/read.js").write_text("in use")
            (target / vendor.DONE).write_text("by the first\n")

    monkeypatch.setattr(vendor, "fetch", lambda archive: b"")
    monkeypatch.setattr(vendor, "unpack", unpack)
    assert vendor.vendor(tmp_path) == target
    assert (target / "mathjax/read.js").read_text() == "in use"
    assert list((tmp_path / "vendor").iterdir()) == [target]
    (target / vendor.DONE).unlink()
    with pytest.raises(vendor.VendorError, match="half-made, delete it"):
        vendor.vendor(tmp_path)
    assert (target / "mathjax/read.js").exists()


def test_npm_of_the_lock_file_serves_where_the_machine_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vendor.shutil, "which", lambda name: None)
    command = vendor.npm_command()
    assert all(Path(part).exists() for part in command)
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert re.match(r"\d+\.\d+", done.stdout)


def test_wrong_chrome_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROME", "/nowhere/chrome")
    with pytest.raises(browser.BrowserNotFoundError, match="CHROME is set to '/nowhere/chrome'"):
        browser.find_browser()


def test_no_browser_gives_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROME", raising=False)
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    monkeypatch.setattr(browser, "of_playwright", lambda: None)
    with pytest.raises(browser.BrowserNotFoundError, match="apt-get install chromium"):
        browser.find_browser()


def test_environment_key_follows_the_lock_file(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("a==1\n")
    (tmp_path / "pyproject.toml").write_text("")
    first = setup_env.environment_key(tmp_path)
    assert setup_env.environment_key(tmp_path) == first
    (tmp_path / "requirements.lock").write_text("a==2\n")
    assert setup_env.environment_key(tmp_path) != first


def test_lock_file_is_exact_and_complete() -> None:
    """Every line pins one version; every direct requirement is among them; torch has no local build in its version."""
    lines = [x for x in (ROOT / "requirements.lock").read_text().splitlines() if x and not x.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    assert pinned["torch"] == "2.13.0"
    assert all("+" not in version for version in pinned.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(x for g in ("book", "test") for x in project["optional-dependencies"][g])]
    names = {re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - {name.lower().replace("_", "-") for name in pinned} == set()


def test_make_lists_its_targets() -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("setup", "test", "book", "serve", "runs", "models", "lint", "bench", "clean"):
        assert re.search(rf"^\s+make {target}\s+\S", done.stdout, re.MULTILINE), target


def test_types_are_checked_under_pytest() -> None:
    """The hook of conftest.py is in force: a wrong type stops a call of the package."""
    with pytest.raises(Exception, match="declared_parameters"):
        declared_parameters(source=cast(str, 3))


def test_pairing_is_byte_stable_and_sees_drift(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    source = tmp_path / "notebooks/01_one.md"
    source.write_text(NOTEBOOK.format(code="x = 1"))
    assert stale_pairs(tmp_path) == ["01_one.ipynb is missing"]
    derived = source.with_suffix(".ipynb")
    derived.write_text(derived_text(source))
    assert derived_text(source) == derived.read_text()
    assert stale_pairs(tmp_path) == []
    derived.write_text(derived.read_text().replace("x = 1", "x = 2"))
    assert stale_pairs(tmp_path) == ["01_one.ipynb is not what 01_one.md says"]


def test_formatting_touches_code_cells_only(tmp_path: Path) -> None:
    source = tmp_path / "01_one.md"
    source.write_text(NOTEBOOK.format(code="x = {'a':1}"))
    assert format_source(source)
    assert 'x = {"a": 1}' in source.read_text()
    assert "Prose before." in source.read_text()
    assert not format_source(source)


def test_setup_refuses_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_env, "WANTED", (2, 7))
    with pytest.raises(SystemExit, match=re.escape(f"this is Python {sys.version.split()[0]}")):
        setup_env.main([])


def test_the_readmes_figure_shows_what_its_text_says(book_root: Path) -> None:
    """Runs with nothing to learn are in it, each by its name, beside the three objectives."""
    drawn = (book_root / "book/_static/where_opd_lies.svg").read_text()
    assert "runs with nothing to learn" in (book_root / "README.md").read_text()
    for name in ("SFT", "OPD", "RLVR", "random credit", "random reward", "mismatched SFT", "paper's OPD"):
        assert f">{name}" in drawn, name
