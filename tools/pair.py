"""Derive every ``.ipynb`` from its ``.md``: one direction only, no outputs, the same bytes each time.

``python -m tools.pair`` writes, ``--check`` compares, ``--format`` first puts the code cells of the ``.md`` into the
house format.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat

from tools.colab import add_badge, add_first_cell, repository_of
from tools.notebooks import notebook_sources, read_source

ROOT = Path(__file__).resolve().parent.parent


def derived_path(source: Path) -> Path:
    """Where the notebook of a source stands."""
    return source.with_suffix(".ipynb")


def derived_text(source: Path) -> str:
    """Return the ``.ipynb`` of a source as text: its cells, the kernel, no outputs, and a cell for Colab."""
    notebook = read_source(source)
    if repository := repository_of(source.parent.parent):
        add_badge(notebook, source.stem, repository)
        add_first_cell(notebook, repository)
    header = notebook.metadata.get("jupytext", {})
    notebook.metadata = nbformat.from_dict(
        {
            "jupytext": {"formats": header.get("formats", "ipynb,md:myst")},
            "kernelspec": notebook.metadata["kernelspec"],
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT, indent=1) + "\n"


def stale_pairs(root: Path) -> list[str]:
    """Say of each notebook that is not what its source says, what is wrong; an empty list is good news."""
    sources = notebook_sources(root)
    problems = []
    for source in sources:
        path = derived_path(source)
        if not path.exists():
            problems.append(f"{path.name} is missing")
        elif path.read_text(encoding="utf-8") != derived_text(source):
            problems.append(f"{path.name} is not what {source.name} says")
    known = {derived_path(source) for source in sources}
    problems += [f"{p.name} has no .md source" for p in sorted((root / "notebooks").glob("*.ipynb")) if p not in known]
    return problems


def format_source(source: Path) -> bool:
    """Sort the imports and format the code cells of a source with ruff; return whether anything changed."""
    notebook = jupytext.read(source)
    changed = False
    for cell in (c for c in notebook.cells if c.cell_type == "code" and not c.source.startswith("%")):
        formatted = cell.source
        for step in (["check", "--select", "I", "--fix"], ["format"]):
            command = [sys.executable, "-m", "ruff", *step, "--quiet", "--stdin-filename", "cell.py", "-"]
            done = subprocess.run(command, input=formatted, capture_output=True, text=True, cwd=ROOT, check=False)
            formatted = done.stdout.rstrip("\n") if done.returncode == 0 else formatted
        if formatted != cell.source:
            cell.source, changed = formatted, True
    if changed:
        jupytext.write(notebook, source, fmt="md:myst")
    return changed


def main(arguments: list[str] | None = None) -> int:
    """Write, check or format the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a pair is stale")
    parser.add_argument("--format", action="store_true", help="format the code cells of the sources first")
    options = parser.parse_args(arguments)
    if options.check:
        problems = stale_pairs(options.root)
        for problem in problems:
            print(f"{problem}: run `python -m tools.pair`")
        return bool(problems)
    for source in notebook_sources(options.root):
        if options.format and format_source(source):
            print(f"formatted {source.name}")
        text, path = derived_text(source), derived_path(source)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
