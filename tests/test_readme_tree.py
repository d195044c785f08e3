"""The tree in README.md is the tree on disk: each file has its line, each line its file and a description.

The tree is the first fenced block after the heading ``## The tree``. Two spaces indent a level, two or more spaces
separate a name from its description, a folder ends in ``/``. A name may hold ``*``. A folder without lines below it
stands for everything in it; the folders in SPELT_OUT may not do that.
"""

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPELT_OUT = ("opdgeom_utils/", "opdgeom_utils/metrics/", "tools/", "notebooks/", "book/")
HEADING = "## The tree"


def tree_entries(readme: str) -> dict[str, str]:
    """Path of each line of the tree (folders end in a slash) and its description."""
    _, _, after = readme.partition(f"\n{HEADING}")
    block = re.search(r"```[a-z]*\n(.*?)```", after, re.DOTALL)
    assert block, f"README.md has no fenced block after the heading {HEADING!r}"
    entries: dict[str, str] = {}
    folders: list[str] = []
    for line in block.group(1).splitlines():
        found = re.fullmatch(r"( *)(\S+)\s*(.*)", line)
        assert found, f"README.md, tree: {line!r} is empty"
        indent, name, description = found.groups()
        folders = folders[: len(indent) // 2]
        path = "".join(folders) + name
        entries[path] = description
        if name.endswith("/"):
            folders.append(name)
    return entries


def listed_files(root: Path) -> list[str]:
    """Files that belong to the project: tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return sorted(name for name in set(done.stdout.splitlines()) if (root / name).exists())


def covers(entry: str, path: str, entries: dict[str, str]) -> bool:
    """Whether a line of the tree stands for a file."""
    if entry.endswith("/"):
        childless = not any(other != entry and other.startswith(entry) for other in entries)
        return childless and path.startswith(entry)
    return path.count("/") == entry.count("/") and fnmatch(path, entry)


@pytest.fixture(scope="module")
def entries() -> dict[str, str]:
    return tree_entries((ROOT / "README.md").read_text(encoding="utf-8"))


def test_each_file_has_its_line(entries: dict[str, str]) -> None:
    missing = [p for p in listed_files(ROOT) if not any(covers(entry, p, entries) for entry in entries)]
    assert missing == [], "add a line for each to the tree in README.md"


def test_each_line_has_its_file(entries: dict[str, str]) -> None:
    files = listed_files(ROOT)
    stale = [
        e for e in entries if not any(p.startswith(e) if e.endswith("/") else covers(e, p, entries) for p in files)
    ]
    assert stale == [], "these lines of the tree in README.md stand for nothing"


def test_each_line_says_what_it_is(entries: dict[str, str]) -> None:
    assert [entry for entry, description in entries.items() if not description] == []


def test_code_is_spelt_out(entries: dict[str, str]) -> None:
    lazy = [folder for folder in SPELT_OUT if not any(e != folder and e.startswith(folder) for e in entries)]
    assert lazy == [], "list the files of these folders one by one"


def test_reading_a_tree() -> None:
    readme = "# x\n\n## The tree\n\n```text\nMakefile    commands\nbook/       pages\n  index.md  landing\n```\n"
    assert tree_entries(readme) == {"Makefile": "commands", "book/": "pages", "book/index.md": "landing"}
    assert covers("data/", "data/a/b.csv", {"data/": ""})
    assert not covers("book/", "book/x.md", tree_entries(readme))
