"""Files that are whole or absent: write to a temporary name, flush, rename; check what is read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, RunLockedError, StorageError

MAKE_SECONDS = 3600.0  # how long another process may take to make a folder


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` holds either all of it or what was there before.

    Raises StorageError if the disk is full or not writable; the temporary file is removed.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise StorageError(
            f"could not write {path}: {error.strerror or error}. Free some space or choose another folder; "
            "nothing half-written was left"
        ) from error


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file atomically and its sha256 beside it; return the sha256."""
    content = save_bytes(
        {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata=dict(metadata or {"format": "pt"})
    )
    digest = hashlib.sha256(content).hexdigest()
    write_atomic(path, content)
    write_atomic(path.with_suffix(".sha256"), f"{digest}  {path.name}\n".encode())
    return digest


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file whose sha256 stands beside it.

    Raises CheckpointNotFoundError if the file or its checksum is missing. Raises CheckpointDamagedError if the content
    is not what was written.
    """
    recorded = path.with_suffix(".sha256")
    if not path.is_file() or not recorded.is_file():
        raise CheckpointNotFoundError(f"{path} or its checksum {recorded.name} is missing; train the run again")
    content = path.read_bytes()
    expected = recorded.read_text(encoding="utf-8", errors="replace").partition(" ")[0]
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise CheckpointDamagedError(
            f"{path} is damaged: sha256 {found[:12]}, expected {expected[:12]}; it will be trained again"
        )
    try:
        return load_bytes(content)
    except SafetensorError as error:
        raise CheckpointDamagedError(f"{path} is not a readable safetensors file: {error}") from error


@contextlib.contextmanager
def locked(folder: Path, *, wait_seconds: float, note: Callable[[str], Any] = print) -> Iterator[None]:
    """Hold the folder's lock, waiting for another process that has it.

    The lock is the operating system's own, so a process that dies, even by ``kill -9``, lets go of it. Raises
    RunLockedError if the other process still holds it after ``wait_seconds``. Raises StorageError if the folder cannot
    be made or written to.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            note(f"{folder.name}: another process is training this run; waiting for it")
            lock.acquire(timeout=wait_seconds, poll_interval=0.2)
    except Timeout:
        raise RunLockedError(f"{folder} has been in use by another process for {wait_seconds:.0f} s") from None
    except OSError as error:
        raise StorageError(f"could not write to {folder}: {error.strerror or error}; choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """Encode a table as compressed parquet, without its attributes: they name paths of this machine."""
    buffer, table = io.BytesIO(), table.copy(deep=False)
    table.attrs = {}
    table.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder that is whole or absent; ``make`` fills it under another name, one process at a time.

    Raises StorageError if it cannot be written; nothing half-written is left under its name.
    """
    if not folder.is_dir():
        with locked(folder.parent / f".{folder.name}.lock", wait_seconds=MAKE_SECONDS):
            if not folder.is_dir():
                try:
                    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as part:
                        (whole := Path(part) / "whole").mkdir()
                        make(whole)
                        whole.rename(folder)
                except OSError as error:
                    if isinstance(error, CheckpointNotFoundError):
                        raise
                    raise StorageError(f"could not write {folder}: {error}; free some space") from error
    return folder
