"""Folders of ``torch.distributed.checkpoint``: a ``.metadata`` file, and chunks of tensors in ``.distcp`` files.

The metadata is a pickle; it is read without running anything in it (:mod:`opdgeom_utils.checkpoint_forms.torch_files`).
A chunk is what ``torch.save`` wrote, at an offset of its file, and is read when its tensor is.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdgeom_utils.checkpoint_forms.inert_pickles import Recorded
from opdgeom_utils.checkpoint_forms.sharded_tensors import Assembled, Piece, entries_of
from opdgeom_utils.checkpoint_forms.stored_tensors import StoredTensor
from opdgeom_utils.checkpoint_forms.torch_files import FileTensor, read_pickle, read_structure
from opdgeom_utils.checkpoint_forms.weight_files import contained
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, MetricInputError, OpdGeomError

METADATA = ".metadata"
INNER_FOLDERS = ("", "pytorch_model_fsdp_0", "pytorch_model_fsdp", "model")  # the last ones as trainers name them
MODEL_KEYS = ("model", "module", "state_dict", "model_state_dict")


@dataclass(frozen=True)
class Chunk:
    """Read one chunk: what ``torch.save`` wrote at an offset of a file."""

    file: str
    start: int
    length: int

    def __call__(self) -> Tensor:
        """Read the chunk's description, then its values."""
        tensor = read_structure(Path(self.file), start=self.start, length=self.length)
        if not isinstance(tensor, FileTensor):
            raise CheckpointDamagedError(
                f"{self.file}: holds a {type(tensor).__name__} at byte {self.start}, expected a tensor; copy it again."
            )
        return tensor()


def distributed_folder(folder: Path) -> Path | None:
    """Return the folder with the metadata: this one, or the one inside it where trainers put the model."""
    return next((folder / inner for inner in INNER_FOLDERS if (folder / inner / METADATA).is_file()), None)


def distributed_tensors(folder: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """Gather the model's floating tensors, and the names of what else is stored.

    When the saved object had the model under a key (``{"model": ..., "optim": ...}``), its tensors are those under
    ``model``, ``module``, ``state_dict`` or ``model_state_dict``, and the rest is left out.

    Raises
    ------
    CheckpointNotFoundError
        When a file that the metadata names is missing.
    CheckpointDamagedError
        When the metadata cannot be read, or chunks do not make a whole.
    CheckpointUnsafeError
        When the metadata names code, or a file outside the folder.
    MetricInputError
        When the chunks are compressed.
    """
    file = contained(folder, METADATA)
    metadata = read_pickle(file)
    try:
        entries, paths = metadata.get("state_dict_metadata"), metadata.get("planner_data") or {}
        stored = dict(_storages(metadata.get("storage_data")))
        names = {key: _inner_name(paths.get(key)) or key for key in entries}
        wrapped = any(_inner_name(paths.get(key)) for key in entries)
        tensors: dict[str, StoredTensor] = {}
        left_out: list[str] = []
        for key, entry in entries.items():
            is_weight = not wrapped or _inner_name(paths.get(key)) is not None
            if entry.name == "TensorStorageMetadata" and is_weight and _dtype(entry).is_floating_point:
                if names[key] in tensors:
                    raise ValueError(f"two tensors named {names[key]}")
                tensors[names[key]] = _tensor(folder, key, entry, stored)
            else:
                left_out.append(key)
    except OpdGeomError:
        raise
    except (AttributeError, TypeError, LookupError, ValueError) as error:
        raise CheckpointDamagedError(
            f"{file}: not readable as the metadata of a distributed checkpoint ({type(error).__name__}: {error}); copy "
            "the folder again."
        ) from error
    return tensors, left_out


def _inner_name(path: Any) -> str | None:
    """Return the name inside the model of a tensor that was saved under ``path``, None if it is not of the model."""
    if not isinstance(path, tuple) or len(path) < 2 or path[0] not in MODEL_KEYS:
        return None
    return ".".join(str(part) for part in path[1:])


def _storages(storage_data: dict[Recorded, Recorded]) -> Iterator[tuple[tuple[str, tuple[int, ...]], Recorded]]:
    for index, info in storage_data.items():
        if index.get("offset") is not None:
            yield (index.get("fqn"), tuple(index.get("offset"))), info


def _dtype(entry: Recorded) -> torch.dtype:
    properties = entry.get("properties")
    dtype = properties.state[0] if isinstance(properties.state, tuple) else properties.get("dtype")
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype {dtype!r}")
    return dtype


def _tensor(
    folder: Path, key: str, entry: Recorded, stored: dict[tuple[str, tuple[int, ...]], Recorded]
) -> StoredTensor:
    """Describe one tensor, after checking that its chunks are there and make a whole."""
    shape, pieces = _sizes(entry.get("size")), []
    for chunk in entry.get("chunks"):
        offsets, sizes = _sizes(chunk.get("offsets")), _sizes(chunk.get("sizes"))
        if any(start + size > whole for start, size, whole in zip(offsets, sizes, shape, strict=True)):
            raise ValueError(f"tensor {key}: a chunk of {sizes} at {offsets} in {shape}")
        region = tuple(((start, start + size),) if size else () for start, size in zip(offsets, sizes, strict=True))
        pieces.append(
            Piece(
                region,
                _chunk(folder, key, stored[key, offsets], math.prod(sizes) * _dtype(entry).itemsize),
                os.fspath(folder),
            )
        )
    if entries_of([piece.shape for piece in pieces]) != torch.Size(shape).numel() or not pieces:
        raise ValueError(f"tensor {key}: chunks of {[piece.shape for piece in pieces]} do not make {shape}")
    dtype = _dtype(entry)
    return StoredTensor(os.fspath(folder), key, shape, dtype, load=Assembled(key, shape, dtype, tuple(pieces)))


def _chunk(folder: Path, key: str, info: Recorded, n_bytes: int) -> Chunk:
    name, start, length = info.get("relative_path"), info.get("offset"), info.get("length")
    if not isinstance(name, str) or type(start) is not int or type(length) is not int:
        raise ValueError(f"tensor {key}: stored at {name!r}, {start!r}, {length!r}")
    file = contained(folder, name, said_by=f"{folder / METADATA}: tensor {key}")
    if info.get("transform_descriptors"):
        raise MetricInputError(
            f"{file}: tensor {key} is compressed ({info.get('transform_descriptors')}), expected plain chunks; save it "
            "without extensions."
        )
    if not file.is_file():
        raise CheckpointNotFoundError(f"{file}: no such file, but the metadata says it holds {key}; copy it too.")
    size = file.stat().st_size
    if start < 0 or length < n_bytes or start + length > size:
        raise CheckpointDamagedError(
            f"{file}: truncated inside tensor {key}: {size} bytes, expected at least {start + max(length, n_bytes)}; "
            "copy it again."
        )
    return Chunk(os.fspath(file), start, length)


def _sizes(sizes: Any) -> tuple[int, ...]:
    sizes = tuple(sizes)
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"sizes {sizes}")
    return sizes
