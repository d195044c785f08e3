"""Make the virtual environment, once for each content of the lock file.

Run by the machine's own Python 3.11, before anything is installed, so it uses the standard library only. The
environment's key is the sha256 of ``requirements.lock``, ``pyproject.toml`` and the interpreter's version. While the
key stands, a second call only compares two strings.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEY_FILE = "setup-key"
WANTED = (3, 11)


def environment_key(root: Path) -> str:
    """Digest of everything that decides what the environment holds."""
    digest = hashlib.sha256(f"{sys.version_info[:3]}".encode())
    for name in ("requirements.lock", "pyproject.toml"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def pip(python: Path, *arguments: str) -> None:
    """Run one pip command in the environment; stop with pip's own message if it fails."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    print("  pip", *arguments, flush=True)
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(
            f"\nsetup stopped: `pip {' '.join(arguments)}` failed. Nothing else was changed; run the command again."
        )


def create(folder: Path) -> None:
    """Fill ``folder`` with the exact versions of the lock file and the project itself, editable."""
    print(f"setting up {folder.name} (first time, or the lock file changed)", flush=True)
    python = folder / "bin" / "python"
    if not (folder / "bin" / "pip").exists():
        try:
            venv.create(folder, with_pip=True)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(
                f"setup stopped: no virtual environment ({error}). On Debian, Ubuntu: apt-get install python3-venv"
            )
    pip(python, "install", "-qq", "--requirement", "requirements.lock")
    pip(python, "install", "-qq", "--no-build-isolation", "--no-deps", "--editable", ".")


def main(arguments: list[str] | None = None) -> int:
    """Set the environment up unless its key says that it is already right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", default=".venv", help="folder of the environment")
    options = parser.parse_args(arguments)
    if sys.version_info[:2] != WANTED:
        sys.exit(
            f"setup stopped: this is Python {sys.version.split()[0]}, the lock file is for 3.11. "
            "Call `make PYTHON=/path/to/python3.11 ...`."
        )
    folder = ROOT / options.venv
    key = environment_key(ROOT)
    recorded = folder / KEY_FILE
    if recorded.exists() and recorded.read_text() == key:
        return 0
    create(folder)
    partial = recorded.with_suffix(f".{os.getpid()}")
    partial.write_text(key)
    partial.replace(recorded)
    return 0


if __name__ == "__main__":
    sys.exit(main())
