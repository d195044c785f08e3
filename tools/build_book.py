"""Build the book: execute the notebooks that changed, stage the sources, render a static site that needs no network.

Nothing is built twice. Each executed notebook is kept by key (see ``tools.notebooks``), and so is the site: while
neither the pages, nor the executed notebooks, nor the tools changed, the site on disk is today's.

The site opens from disk: ``_build/site/index.html``. ``--smoke`` builds the site of the tests instead, from tiny runs,
into ``_build/smoke_site``; each of its pages says "smoke test, not evidence".
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml
from filelock import FileLock

from opdgeom_utils.chapters.glossary import with_entries
from opdgeom_utils.errors import NotebookFailedError, NotebookParameterError
from opdgeom_utils.report.papermill_run import read_parameters
from tools.colab import add_badge, repository_of
from tools.notebooks import (
    Executed,
    depended_files,
    digest_of,
    execute,
    notebook_sources,
)
from tools.vendor import VendorError, vendor

ROOT = Path(__file__).resolve().parent.parent
KEY_FILE = ".site-key"
SMOKE_LABEL = "Smoke test, not evidence: these pages were made from tiny runs, to test the book itself."
#: What the pages may refer to, besides the notebooks.
WRITTEN_FROM = (
    *("opdgeom_utils/vocabulary.py", "opdgeom_utils/chapters/glossary.py"),  # the glossary
    *("opdgeom_utils/chapters/one_gpu.py", "opdgeom_utils/gpu_check", "opdgeom_utils/training_plan.py"),  # On one GPU
    *("opdgeom_utils/fit/memory.py", "data/recipes", "data/gpu"),
)
STAGED = ("_config.yml", "_toc.yml", "book", "data/paper", "data/results")


class BookFailedError(RuntimeError):
    """The book could not be built; the message says which step stopped and why."""


@dataclass(frozen=True)
class Plan:
    """What to build: from where, with which notebook parameters, into which site, under which banner."""

    root: Path
    build: Path
    site: Path
    parameters: Mapping[str, Any]
    label: str = ""
    jobs: int = 2


def smoke_plan(root: Path = ROOT, jobs: int = 2) -> Plan:
    """Return the plan of the tests' site: profile smoke, labelled as such."""
    build = root / "_build"
    return Plan(
        root, build, build / "smoke_site", read_parameters(root / "notebooks/params/smoke.yaml"), SMOKE_LABEL, jobs
    )


def execute_notebooks(plan: Plan) -> list[Executed]:
    """Execute all notebooks, ``plan.jobs`` at a time; raise once, with every failure, after all have been tried.

    Raises
    ------
    BookFailedError
        If a notebook has an undeclared parameter or a cell that raises.
    """
    shared = digest_of(depended_files(plan.root))
    done: list[Executed] = []
    failures: list[str] = []

    def one(source: Path) -> None:
        try:
            result = execute(source, plan.root, plan.build, plan.parameters, shared)
        except (NotebookFailedError, NotebookParameterError) as error:
            failures.append(f"notebook {source.stem} failed\n{error}")
            print(f"  {source.stem:36s} FAILED", flush=True)
            return
        done.append(result)
        print(f"  {result.name:36s} {f'{result.seconds:6.1f} s' if result.ran else 'kept'}", flush=True)

    with ThreadPoolExecutor(plan.jobs if plan.jobs > 0 else os.cpu_count()) as pool:
        list(pool.map(one, notebook_sources(plan.root)))
    if failures:
        raise BookFailedError("\n\n".join(sorted(failures)))
    return sorted(done, key=lambda result: result.name)


def pages_of(root: Path) -> list[str]:
    """Documents of the table of contents, in reading order, without suffix."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    parts = toc.get("parts", [toc])
    return [toc["root"], *(chapter["file"] for part in parts for chapter in part["chapters"])]


def site_key(plan: Plan, executed: list[Executed], vendored: Path) -> str:
    """Digest of everything that the site is made of."""
    files = [path for name in STAGED for path in _files(plan.root / name)]
    files += [path for name in WRITTEN_FROM for path in _files(plan.root / name)]
    files += [Path(__file__), plan.root / "requirements.lock", *(result.path for result in executed)]
    return digest_of(files, plan.label, vendored.name, sys.version)


def stage(plan: Plan, executed: list[Executed], vendored: Path, folder: Path) -> None:
    """Copy pages, executed notebooks and vendored files to where Sphinx reads them."""
    for name in STAGED:
        source, target = plan.root / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copyfile(source, target)
    _fill(folder / "book/glossary.md", with_entries)
    _fill(folder / "book/one_gpu.md", lambda page: _with_cards(page, plan.root))
    shutil.copytree(vendored, folder / "book/_static/vendor", ignore=shutil.ignore_patterns("complete"))
    (folder / "notebooks").mkdir()
    repository = repository_of(plan.root)
    for result in executed:
        notebook = nbformat.read(result.path, as_version=nbformat.NO_CONVERT)
        if repository:
            add_badge(notebook, result.name, repository)
        nbformat.write(notebook, folder / "notebooks" / f"{result.name}.ipynb")
    if plan.label:
        path = folder / "_config.yml"
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["html"]["announcement"] = plan.label
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def _fill(page: Path, filled: Callable[[str], str]) -> None:
    """Write what is computed into a staged page, if the book has it."""
    if page.is_file():
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def _with_cards(page: str, root: Path) -> str:
    from opdgeom_utils.chapters.one_gpu import with_cards  # brings torch: only where the page is made anew

    return with_cards(page, root / "data/gpu")


def run_sphinx(folder: Path, output: Path, log: Path, builder: str = "html") -> Path:
    """Render a staged book; a warning is an error, and all of them are reported.

    Raises
    ------
    BookFailedError
        With the warnings, if there are any.
    """
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(folder), "--path-output", str(output)]
    command += ["-W", "-n", "--keep-going", "--quiet", "--builder", builder]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "1767225600"}
    log.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    text = (done.stdout + done.stderr).replace(str(folder) + os.sep, "")
    log.write_text(text, encoding="utf-8")
    if done.returncode:
        problems = [line for line in text.splitlines() if "WARNING" in line or "ERROR" in line or "broken" in line]
        raise BookFailedError("\n".join([*(problems or text.splitlines()[-25:]), f"(whole log: {log})"]))
    return output / "_build" / builder


def build_book(plan: Plan, *, force: bool = False) -> list[Executed]:
    """Bring the site of a plan up to date; one process at a time for each build folder.

    The new site replaces the old one only when it is complete.

    Parameters
    ----------
    plan : Plan
        What to build.
    force : bool
        Render the pages even if nothing changed.

    Raises
    ------
    BookFailedError
        If a notebook or a page fails; the previous site then stays as it was.
    """
    plan.build.mkdir(parents=True, exist_ok=True)
    with FileLock(plan.build / f"{plan.site.name}.lock"):
        executed = execute_notebooks(plan)
        vendored = vendor(plan.build)
        key = site_key(plan, executed, vendored)
        recorded = plan.site / KEY_FILE
        if not force and recorded.exists() and recorded.read_text() == key:
            return executed
        with tempfile.TemporaryDirectory(dir=plan.build, prefix="stage-") as work:
            folder = Path(work) / "book"
            folder.mkdir()
            stage(plan, executed, vendored, folder)
            made = run_sphinx(folder, Path(work) / "out", plan.build / "logs" / f"{plan.site.name}.log")
            (made / ".nojekyll").touch()
            (made / KEY_FILE).write_text(key)
            shutil.rmtree(plan.site, ignore_errors=True)
            made.rename(plan.site)
    return executed


def check_links(plan: Plan) -> None:
    """Follow every outside link of the book (needs the internet)."""
    executed, vendored = execute_notebooks(plan), vendor(plan.build)
    with tempfile.TemporaryDirectory(dir=plan.build, prefix="links-") as work:
        folder = Path(work) / "book"
        folder.mkdir()
        stage(plan, executed, vendored, folder)
        run_sphinx(folder, Path(work) / "out", plan.build / "logs" / "linkcheck.log", "linkcheck")


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(f for f in path.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    return [path] if path.exists() else []


def main(arguments: list[str] | None = None) -> int:
    """Build the book, or say in plain words why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="project root")
    parser.add_argument("--site", type=Path, help="where the site goes (default: ROOT/_build/site)")
    parser.add_argument("--parameters", type=Path, help="papermill parameters for every notebook, a YAML file")
    parser.add_argument("--label", default="", help="banner on every page")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks executed at once; -1: one a core")
    parser.add_argument("--smoke", action="store_true", help="the tests' site, under profile smoke")
    parser.add_argument("--force", action="store_true", help="render the pages again even if nothing changed")
    parser.add_argument("--linkcheck", action="store_true", help="follow outside links instead of building the site")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    site = (options.site or root / "_build" / "site").resolve()
    start = time.monotonic()
    try:
        parameters = read_parameters(options.parameters) if options.parameters else {}
        plan = Plan(root, root / "_build", site, parameters, options.label, options.jobs)
        plan = smoke_plan(root, options.jobs) if options.smoke else plan
        if options.linkcheck:
            check_links(plan)
            return 0
        executed = build_book(plan, force=options.force)
    except (BookFailedError, VendorError, OSError, ValueError) as error:
        print(f"\nthe book was not built:\n{error}", file=sys.stderr)
        return 1
    ran = sum(result.ran for result in executed)
    print(f"book ready in {time.monotonic() - start:.0f} s, {ran} of {len(executed)} notebooks executed anew")
    print(f"open file://{plan.site}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
