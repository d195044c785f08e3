"""Find the tensors in a file of ``torch.save`` without running anything that is in it.

Such a file is a zip archive: a pickle that describes the objects, and the bytes of each storage, uncompressed. The
pickle is read by :mod:`opdgeom_utils.checkpoints.inert_pickles`; a tensor becomes a :class:`FileTensor`, which
says where its bytes lie.
"""

import errno
import functools
import io
import math
import mmap
import struct
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdgeom_utils.checkpoints.inert_pickles import DAMAGE, InertUnpickler, whole_numbers
from opdgeom_utils.errors import (
    CheckpointDamagedError,
    CheckpointMemoryError,
    CheckpointNotFoundError,
    CheckpointUnsafeError,
)


@dataclass(frozen=True)
class FileTensor:
    """Where a tensor's bytes lie.

    Attributes
    ----------
    file : str
        The file.
    start, length : int
        First byte of its storage in the file, and the storage's number of bytes.
    dtype : torch.dtype
        Type of the entries.
    shape, stride : tuple of int
        Form of the tensor in its storage, in entries.
    offset : int
        First entry of the tensor in its storage.
    """

    file: str
    start: int
    length: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def __call__(self) -> Tensor:
        """Return the tensor, as :meth:`read_part` does."""
        return self.read_part(())

    def read_part(self, cuts: tuple[Any, ...]) -> Tensor:
        """Map the storage into memory and return a part of the tensor, not to be written to: it is the file itself.

        Only the pages that are then looked at are read, so that a file may be larger than the memory.

        Parameters
        ----------
        cuts : tuple
            An index into the tensor; empty for all of it.

        Raises
        ------
        CheckpointNotFoundError, CheckpointDamagedError
            When the file has gone, or become shorter, since it was opened.
        CheckpointMemoryError
            When the system does not let it be mapped.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)[cuts]
        width = self.dtype.itemsize
        before = self.start % mmap.ALLOCATIONGRANULARITY
        require_regular(Path(self.file))
        try:
            with Path(self.file).open("rb") as stream:
                memory = mmap.mmap(
                    stream.fileno(), before + self.length, offset=self.start - before, access=mmap.ACCESS_READ
                )
            if before % width == 0:
                whole = _read_only(memory, before, self.length // width, self.dtype)
                return whole.as_strided(self.shape, self.stride, self.offset)[cuts]
            # a chunk inside a larger file may begin at an odd byte: cut its bytes, then put them where they may stand
            steps = (*(step * width for step in self.stride), 1)
            whole = _read_only(memory, before, self.length, torch.uint8)
            part = whole.as_strided((*self.shape, width), steps, self.offset * width)[cuts]
            return part.clone(memory_format=torch.contiguous_format).view(self.dtype).squeeze(-1)
        except FileNotFoundError as error:
            raise CheckpointNotFoundError(f"{self.file}: no such file; it was there when it was opened.") from error
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise CheckpointMemoryError(
                    f"{self.file}: the system refused to map {self.length} bytes ({error}); the file is as it was. "
                    "Raise the limit of address space (ulimit -v), or close other programs."
                ) from error
            raise CheckpointDamagedError(
                f"{self.file}: became unreadable after it was opened ({error}); do not write to it meanwhile."
            ) from error


def require_regular(file: Path) -> None:
    """Refuse what is no plain file before it is opened: a named pipe would wait for a writer for ever.

    Raises
    ------
    CheckpointNotFoundError
        When nothing is there.
    CheckpointUnsafeError
        When it is a pipe, a device or a folder.
    """
    if file.is_file():
        return
    if not file.exists():
        raise CheckpointNotFoundError(f"{file}: no such file; check the path.")
    raise CheckpointUnsafeError(f"{file}: is no regular file, but a pipe, a device or a folder; copy the file itself.")


def read_structure(file: Path, *, start: int = 0, length: int | None = None) -> Any:
    """Return the objects that ``torch.save`` wrote, with a :class:`FileTensor` in place of each tensor.

    Parameters
    ----------
    file : Path
        A file of ``torch.save``, or one that holds such a file at an offset.
    start, length : int
        The part of the file; all of it by default.

    Raises
    ------
    CheckpointNotFoundError
        When the file is not there.
    CheckpointUnsafeError
        When its pickle names anything but tensors and their placements.
    CheckpointDamagedError
        When it is truncated, in the format before torch 1.6, or its pickle does not fit its checksum
        or its storages.
    """
    try:
        require_regular(file)
        size = file.stat().st_size
        length = size - start if length is None else length
        if start < 0 or length <= 0 or start + length > size:
            raise ValueError(f"{size} bytes, expected at least {start + length}")
        with file.open("rb") as stream:
            return _Archive(file, io.BufferedReader(_Window(stream, start, length)), start).load()
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"{file}: no such file; check the path.") from error
    except (CheckpointUnsafeError, CheckpointDamagedError):
        raise
    except DAMAGE as error:
        raise CheckpointDamagedError(
            f"{file}: not a readable file of torch.save ({type(error).__name__}: {error}); copy or save it again."
        ) from error


def read_pickle(file: Path) -> Any:
    """Return the objects of a plain pickle without tensors, such as a distributed checkpoint's ``.metadata``.

    Raises
    ------
    CheckpointNotFoundError, CheckpointUnsafeError, CheckpointDamagedError
        As for :func:`read_structure`.
    """
    try:
        require_regular(file)
        return InertUnpickler(file, file.read_bytes()).load()
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"{file}: no such file; check the path.") from error
    except (CheckpointUnsafeError, CheckpointDamagedError):
        raise
    except DAMAGE as error:
        raise CheckpointDamagedError(
            f"{file}: not readable ({type(error).__name__}: {error}); copy it again."
        ) from error


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, stream: io.BufferedReader, start: int, length: int) -> None:
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


class _Archive:
    """The zip archive of one ``torch.save``."""

    def __init__(self, file: Path, stream: io.BufferedReader, start: int) -> None:
        self.file, self.stream, self.start = file, stream, start
        self.zip = zipfile.ZipFile(stream)
        self.entries = {entry.filename: entry for entry in self.zip.infolist()}
        if len(self.entries) < len(self.zip.infolist()):
            raise ValueError("two entries of one name")
        pickles = [name for name in self.entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{len(pickles)} entries named data.pkl, expected one")
        self.root = pickles[0].removesuffix("data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in self.zip.infolist()):
            raise ValueError("compressed or encrypted, expected plain entries")

    def load(self) -> Any:
        small = [name for name in self.entries if not name.startswith(f"{self.root}data/")]
        described = {name.removeprefix(self.root): self.zip.read(name) for name in small}  # checks their checksums
        if described.get("byteorder", b"little") != b"little":
            raise ValueError("written on a big-endian machine")
        content = described["data.pkl"]
        return InertUnpickler(self.file, content, self.storage, functools.partial(_placed, str(self.file))).load()

    def storage(self, pid: Any) -> tuple[int, int, torch.dtype]:
        """Return the first byte of a storage in the file, its length, and its type."""
        _, kind, key, _, count = pid
        if not isinstance(kind, torch.dtype) or not isinstance(key, str) or type(count) is not int:
            raise ValueError("a storage without a type, a key or a size")
        entry = self.entries[f"{self.root}data/{key}"]
        self.stream.seek(entry.header_offset)
        magic, name_length, extra_length = struct.unpack("<4s22xHH", self.stream.read(30))
        name, extra = self.stream.read(name_length), self.stream.read(extra_length)
        if magic != b"PK\x03\x04" or name != entry.filename.encode() or not _is_whole(extra):
            raise ValueError(f"the header before storage {key} is damaged")
        begin, length = entry.header_offset + 30 + name_length + extra_length, count * kind.itemsize
        if not 0 <= length <= entry.file_size or begin + length > self.zip.start_dir:
            raise ValueError(f"storage {key} has {entry.file_size} bytes, its type and size need {length}")
        return self.start + begin, length, kind


def _read_only(memory: mmap.mmap, start: int, count: int, dtype: torch.dtype) -> Tensor:
    """Return a tensor over mapped memory; torch warns that it cannot be written to, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=start)


def _is_whole(extra: bytes) -> bool:
    """Say whether a header's extra field ends where its own lengths say: a damaged length would shift the data."""
    at = 0
    while at + 4 <= len(extra):
        at += 4 + int.from_bytes(extra[at + 2 : at + 4], "little")
    return at == len(extra)


def _placed(file: str, start: int, length: int, dtype: torch.dtype, offset: int, shape: Any, stride: Any) -> FileTensor:
    """Check that a tensor fits its storage."""
    shape, stride = whole_numbers(shape, "a tensor of shape"), whole_numbers(stride, "a tensor of stride")
    (offset,) = whole_numbers((offset,), "a tensor at")
    if len(shape) != len(stride) or not isinstance(dtype, torch.dtype):
        raise ValueError(f"a tensor of shape {shape}, stride {stride} and {type(dtype).__name__}")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if 0 not in shape and max(last + 1, math.prod(shape)) * dtype.itemsize > length:
        raise ValueError(f"a tensor of shape {shape} and stride {stride} in a storage of {length} bytes")
    return FileTensor(file, start, length, dtype, shape, stride, offset)
