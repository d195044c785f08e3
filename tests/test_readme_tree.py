"""README.md: short, and its tree is the tree on disk: every folder two deep and every public module, each with a line.

The tree is the first fenced block after the heading ``## The house``. Two spaces indent a level, two or more spaces
separate a name from its description, a folder ends in ``/``.
"""

import re
import subprocess
from pathlib import Path

import pytest

import opdgeom_utils

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
HEADING = "## The house"
MOST_WORDS = 900
ONE_LINE = (
    "data/models",
    "book/_ext",
    "book/_static",
    "notebooks/params",
    ".github/workflows",
)  # told by the line above


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
        entries["".join(folders) + name] = description
        if name.endswith("/"):
            folders.append(name)
    return entries


def expected_entries() -> set[str]:
    """Folders of the project's files, down to two levels, and the modules behind the package's public names."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    folders = {p for name in files if (ROOT / name).exists() for p in list(Path(name).parents)[:-1]}
    kept = [p for p in folders if len(p.parts) <= 2 and p.as_posix() not in ONE_LINE]
    package = ROOT / "opdgeom_utils"
    homes = {vars(opdgeom_utils)["_HOME"].get(name, name) for name in opdgeom_utils.__all__}
    modules = {f"opdgeom_utils/{home}.py" for home in homes if (package / f"{home}.py").is_file()}
    return {f"{p.as_posix()}/" for p in kept} | modules


@pytest.fixture(scope="module")
def entries() -> dict[str, str]:
    return tree_entries(README.read_text(encoding="utf-8"))


def test_the_tree_is_the_one_on_disk(entries: dict[str, str]) -> None:
    assert set(entries) == expected_entries(), "README.md: the tree and the folders on disk differ"


def test_each_line_says_what_it_is(entries: dict[str, str]) -> None:
    assert [entry for entry, description in entries.items() if not description] == []


def test_it_can_be_read_in_a_few_minutes() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= MOST_WORDS


def test_reading_a_tree() -> None:
    readme = f"# x\n\n{HEADING}\n\n```text\nMakefile    commands\nbook/       pages\n  index.md  landing\n```\n"
    assert tree_entries(readme) == {"Makefile": "commands", "book/": "pages", "book/index.md": "landing"}
