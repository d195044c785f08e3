"""Files of ``torch.save``: torch reads what they hold, and each tensor's values stay in the file until asked for.

``torch.load(weights_only=True, map_location="meta")`` returns tensors without values that know where their bytes lie.
A tensor, or a part of it, is then mapped into memory alone: ``mmap=True`` of torch maps the file as a whole, which
Linux refuses for one larger than the memory, and cannot map a file inside another, as a distributed checkpoint's are.
Files from before torch 1.6 do not say where their bytes lie and are read whole.
"""

import functools
import io
import math
import pickle
import re
import struct
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals, get_unsafe_globals_in_checkpoint

from opdgeom_utils.checkpoints.inert_pickles import DESCRIBED, asks_for, described, load_metadata, require_small
from opdgeom_utils.checkpoints.mapped_tensors import DAMAGE, FileTensor, require_regular
from opdgeom_utils.checkpoints.other_files import other_kind
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, CheckpointUnsafeError

ARCHIVE = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickled number, which older files begin with
LEGACY_PICKLES = 5  # the number, a version, the machine, the objects, the storages; the values follow
_LOADING = threading.Lock()  # what torch allows is one list for the whole process


@dataclass(frozen=True)
class TorchFile:
    """What ``torch.save`` wrote.

    ``content``: the objects; tensors have no values, except in a file from before torch 1.6.
    ``start``: first byte of what was saved in the file.
    ``storages``: the length of each storage by its first byte in what was saved; None before torch 1.6.
    """

    file: Path
    content: Any
    start: int = 0
    storages: dict[int, int] | None = field(default_factory=dict)

    def located(self, tensor: Tensor) -> FileTensor:
        """Say where a tensor's bytes lie, after checking that they lie in its storage, and that in the file.

        Raises CheckpointDamagedError when they do not, or the tensor was saved without values.
        """
        try:
            storage = tensor.untyped_storage()
            first = getattr(storage, "_checkpoint_offset", -1)
            shape, stride, offset = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
            last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
            length = (self.storages or {}).get(first, -1)
            needed = max(last + 1, math.prod(shape)) * tensor.dtype.itemsize
            if (storage.nbytes() > length or needed > length or min(stride, default=0) < 0) and 0 not in shape:
                raise ValueError(f"shape {shape} and stride {stride} in {max(length, 0)} bytes")
        except DAMAGE as error:
            raise CheckpointDamagedError(
                f"{self.file}: not a readable file of torch.save (a tensor whose values are not there: {error}); copy "
                "or save it again."
            ) from error
        return FileTensor(str(self.file), self.start + first, tensor.dtype, shape, stride, offset)


def read_structure(file: Path, *, start: int = 0, length: int | None = None) -> TorchFile:
    """Return what ``torch.save`` wrote, without the values of its tensors.

    ``file``: a file of ``torch.save``, or one that holds such a file at an offset.
    ``start``, ``length``: the part of the file; all of it by default.
    Raises CheckpointNotFoundError when the file is not there. Raises CheckpointUnsafeError when its pickle names
    anything but tensors and their placements. Raises CheckpointDamagedError when it is truncated, or torch cannot read
    it.
    """
    with _damage_named(file, "not a readable file of torch.save", "copy or save it again"):
        status = file.stat()
        length = status.st_size - start if length is None else length
        if start < 0 or length <= 0 or start + length > status.st_size:
            raise ValueError(f"{status.st_size} bytes, expected at least {start + length}")
        with file.open("rb") as stream:
            kind = stream.read(len(LEGACY))
            if kind == LEGACY and not start:
                return TorchFile(file, _legacy(file, status.st_mtime_ns, status.st_size), storages=None)
            return _read_archive(file, io.BufferedReader(_Window(stream, start, length)), start, length)


def legacy_tensor(file: str, keys: tuple[str, ...], cuts: tuple[Any, ...]) -> Tensor:
    """Read one tensor of a file from before torch 1.6, and with it the file; the last two of these stay in memory."""
    found: Any = read_structure(Path(file)).content
    for key in keys:
        found = found[key] if isinstance(found, dict) and key in found else None
    if not isinstance(found, Tensor):
        raise CheckpointDamagedError(f"{file}: tensor {keys[-1]} is gone; it was written to meanwhile.")
    return found.detach()[cuts]


def read_metadata(file: Path) -> Any:
    """Return the objects of a distributed checkpoint's ``.metadata``.

    Raises CheckpointNotFoundError, CheckpointUnsafeError, CheckpointDamagedError as for :func:`read_structure`.
    """
    with _damage_named(file, "not readable", "copy it again", in_its_folder=True):
        return load_metadata(file)


def _read_archive(file: Path, stream: Any, start: int, length: int) -> TorchFile:
    """Check an archive, and let torch read it."""
    storages = _storages(stream, length)
    stream.seek(0)
    content = torch._C.PyTorchFileReader(stream).get_record("data.pkl")  # as torch.load will find it
    require_small(io.BytesIO(content), len(content))
    with _LOADING, _nothing_allowed():
        stream.seek(0)
        for name in get_unsafe_globals_in_checkpoint(stream):
            module, _, last = name.rpartition(".")
            if module.split(".")[0] != "torch" or last not in {*DESCRIBED, "DTensor"}:
                raise CheckpointUnsafeError(asks_for(file, name))
            add_safe_globals([(Sharded if last == "DTensor" else described(last), name)])
        stream.seek(0)
        found = torch.load(stream, map_location="meta", weights_only=True)
    return TorchFile(file, found, start, storages)


def _storages(stream: Any, length: int) -> dict[int, int]:
    """Check what torch does not: checksums, compression, byte order, and the headers before the storages."""
    storages = {}
    with zipfile.ZipFile(stream) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise ValueError("compressed or encrypted, expected plain entries")
            if "/data/" not in entry.filename:
                content = archive.read(entry)  # checks its checksum
                if entry.filename.endswith("/byteorder") and content != b"little":
                    raise ValueError("written on a big-endian machine")
                continue
            stream.seek(entry.header_offset)
            magic, name_length, extra_length = struct.unpack("<4s22xHH", stream.read(30))
            name, extra = stream.read(name_length), stream.read(extra_length)
            first = stream.tell()
            if magic != ARCHIVE or name != entry.filename.encode() or not _is_whole(extra):
                raise ValueError(f"the header before {entry.filename} is damaged")
            if first + entry.file_size > min(archive.start_dir, length):
                raise ValueError(f"{entry.filename} ends behind the archive")
            storages[first] = entry.file_size
    return storages


def _is_whole(extra: bytes) -> bool:
    """Say whether a header's extra field ends where its own lengths say: a damaged length would shift the data."""
    at = 0
    while at + 4 <= len(extra):
        at += 4 + int.from_bytes(extra[at + 2 : at + 4], "little")
    return at == len(extra)


class Sharded(Tensor):
    """Stands for a ``DTensor``: a form without values, the local part, and how it was placed."""

    _local_tensor: Tensor
    _spec: Any

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{func} of a sharded tensor, of which only a part is here")


@functools.lru_cache(maxsize=2)
def _legacy(file: Path, _changed: int, length: int) -> Any:
    """Read a file from before torch 1.6, whole."""
    with file.open("rb") as stream:
        for _ in range(LEGACY_PICKLES):
            require_small(stream, length)
    with _LOADING, _nothing_allowed():
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name = re.search(r"GLOBAL (\S+) was not", str(error))
            if name:
                raise CheckpointUnsafeError(asks_for(file, name.group(1))) from error
            raise


@contextmanager
def _nothing_allowed() -> Iterator[None]:
    """Forget for a while what this process has told torch to allow."""
    before = get_safe_globals()
    clear_safe_globals()
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


@contextmanager
def _damage_named(file: Path, what: str, remedy: str, *, in_its_folder: bool = False) -> Iterator[None]:
    """Turn whatever a damaged file raises into an error that names it."""
    try:
        require_regular(file)
        yield
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"{file}: no such file; check the path.") from error
    except (CheckpointUnsafeError, CheckpointDamagedError):
        raise
    except DAMAGE as error:
        if (kind := other_kind(file)) and not in_its_folder:
            raise CheckpointDamagedError(f"{file}: {kind}.") from error
        reason = next(iter(str(error).strip().split("\n")), "")[:300]
        raise CheckpointDamagedError(f"{file}: {what} ({type(error).__name__}: {reason}); {remedy}.") from error


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, stream: Any, start: int, length: int) -> None:
        self.stream, self.start, self.length, self.at = stream, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.length)[whence]
        if self.at < 0:
            raise OSError(f"position {self.at} before the start")
        return self.at

    def readinto(self, buffer: Any) -> int:
        self.stream.seek(self.start + self.at)
        content = self.stream.read(max(0, min(len(buffer), self.length - self.at)))
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)
