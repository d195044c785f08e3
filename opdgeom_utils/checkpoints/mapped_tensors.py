"""Tensors whose values lie in a file: mapped into memory one by one, or a part at a time, when they are asked for."""

import errno
import mmap
import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdgeom_utils.errors import (
    CheckpointDamagedError,
    CheckpointMemoryError,
    CheckpointNotFoundError,
    CheckpointUnsafeError,
)

# Everything that a damaged or hostile file can raise while it is taken apart.
DAMAGE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, OSError, EOFError, MemoryError, RecursionError),
    *(ValueError, TypeError, LookupError, AttributeError, NotImplementedError, OverflowError, RuntimeError),
    *(AssertionError, ArithmeticError),
)


@dataclass(frozen=True)
class FileTensor:
    """Where a tensor's bytes lie.

    ``start``: first byte of its storage in the file.
    ``shape``, ``stride``: form of the tensor in its storage, in entries.
    ``offset``: first entry of the tensor in its storage.
    """

    file: str
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    def __call__(self, cuts: tuple[Any, ...] = ()) -> Tensor:
        """Map a part of the tensor into memory; what is written to it does not reach the file.

        ``cuts``: an index into the tensor; empty for all of it.
        Raises CheckpointNotFoundError or CheckpointDamagedError when the file has gone, or become shorter, since it was
        opened. Raises CheckpointMemoryError when the system does not let it be mapped.
        """
        require_regular(Path(self.file))
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        storage = torch.empty(max(0, last + 1), dtype=self.dtype, device="meta")
        whole = storage.as_strided(self.shape, self.stride, self.offset)
        is_view = not any(isinstance(cut, Tensor) for cut in cuts)
        part = whole[cuts] if is_view else whole
        values = self._mapped(part) if part.numel() else torch.empty(part.shape, dtype=self.dtype)
        return values if is_view else values[cuts]

    def _mapped(self, form: Tensor) -> Tensor:
        """Map the bytes from the first entry of a view of the storage to its last."""
        width = self.dtype.itemsize
        length = width * (1 + sum((size - 1) * step for size, step in zip(form.shape, form.stride(), strict=True)))
        begin = self.start + width * int(form.storage_offset())
        before = begin % mmap.ALLOCATIONGRANULARITY
        try:
            with Path(self.file).open("rb") as stream:
                memory = mmap.mmap(stream.fileno(), before + length, offset=begin - before, access=mmap.ACCESS_COPY)
            values = torch.frombuffer(memory, dtype=torch.uint8, count=length, offset=before)
            values = values.clone() if before % width else values  # a chunk in a larger file may begin anywhere
            return values.view(self.dtype).as_strided(form.shape, form.stride())
        except FileNotFoundError as error:
            raise CheckpointNotFoundError(f"{self.file}: no such file; it was there when it was opened.") from error
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise CheckpointMemoryError(
                    f"{self.file}: the system refused to map {length} bytes ({error}); the file is as it was. Raise "
                    "the limit of address space (ulimit -v), or close other programs."
                ) from error
            raise CheckpointDamagedError(
                f"{self.file}: became unreadable after it was opened ({error}); do not write to it meanwhile."
            ) from error


def require_regular(file: Path) -> None:
    """Refuse what is no plain file before it is opened: a named pipe would wait for a writer for ever.

    Raises CheckpointNotFoundError when nothing is there. Raises CheckpointUnsafeError when it is a pipe, a device or a
    folder.
    """
    if file.is_file():
        return
    if not file.exists():
        raise CheckpointNotFoundError(f"{file}: no such file; check the path.")
    raise CheckpointUnsafeError(f"{file}: is no regular file, but a pipe, a device or a folder; copy the file itself.")
