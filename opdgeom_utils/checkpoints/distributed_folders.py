"""Folders of ``torch.distributed.checkpoint``: a ``.metadata`` file, and chunks of tensors in ``.distcp`` files.

The metadata is a plain pickle; it is read without running anything in it
(:mod:`opdgeom_utils.checkpoints.inert_pickles`). A chunk is what ``torch.save`` wrote, at an offset of its file, and is
read when its tensor is, or a part of it; torch's own ``FileSystemReader`` reads a chunk that holds all experts of a
layer whole, for each of them.
"""

import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdgeom_utils.checkpoints.sharded_tensors import Assembled, Piece, block, entries_of
from opdgeom_utils.checkpoints.stored_tensors import StoredTensor, is_weight
from opdgeom_utils.checkpoints.torch_files import read_metadata, read_structure
from opdgeom_utils.checkpoints.weight_files import contained
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, MetricInputError, OpdGeomError

METADATA = ".metadata"
INNER_FOLDERS = ("", "pytorch_model_fsdp_0", "pytorch_model_fsdp", "model")  # the last ones as trainers name them
OTHER_STATE = (  # what trainers save beside the model
    *("optim", "optims", "optimizer", "optimizers", "optimizer_state_dict", "optim_state_dict", "lr_scheduler"),
    *("lr_schedulers", "scheduler", "train_state", "dataloader", "rng_state"),
)
MOMENTS = ("exp_avg", "exp_avg_sq")
MODEL_KEYS = ("model", "module", "state_dict", "model_state_dict")


@dataclass(frozen=True)
class _Chunk:
    """One chunk: what ``torch.save`` wrote at an offset of a file."""

    file: str
    start: int
    length: int
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __call__(self, cuts: tuple[Any, ...]) -> Tensor:
        """Read the chunk's description, check that it is what the metadata say, and read some of its values."""
        found = read_structure(Path(self.file), start=self.start, length=self.length)
        tensor = found.content
        said = f"{self.file}: the piece of tensor {self.key} is"
        if not isinstance(tensor, Tensor):
            raise CheckpointDamagedError(f"{said} a {type(tensor).__name__}, expected a tensor; copy it again.")
        if (tuple(tensor.shape), tensor.dtype) != (self.shape, self.dtype):
            raise CheckpointDamagedError(
                f"{said} {tuple(tensor.shape)} of {tensor.dtype}, expected {self.shape} of {self.dtype}; copy or save "
                "the checkpoint again."
            )
        return found.located(tensor)(cuts)


def distributed_folder(folder: Path) -> Path | None:
    """Return the folder with the metadata: this one, or the one inside it where trainers put the model.

    Raises CheckpointUnsafeError when the one inside is a link that leads elsewhere.
    """
    inner = next((inner for inner in INNER_FOLDERS if (folder / inner / METADATA).is_file()), None)
    if inner is None:
        return None
    return contained(folder, inner) if inner else folder


def distributed_tensors(folder: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """Gather the model's floating tensors, and the names of what else is stored.

    When the saved object had the model under a key (``{"model": ..., "optim": ...}``), its tensors are those under
    ``model``, ``module``, ``state_dict`` or ``model_state_dict``, at any depth, and the rest is left out. When it had
    not, everything is the model but what lies under a key of an optimiser, a scheduler or a data loader, and what
    stands beside an optimiser's moments. Raises CheckpointNotFoundError when a file that the metadata names is missing.
    Raises CheckpointDamagedError when the metadata cannot be read, or chunks do not make a whole. Raises
    CheckpointUnsafeError when the metadata names code, or a file outside the folder. Raises MetricInputError when the
    chunks are compressed, or a weight is stored quantised.
    """
    file = contained(folder, METADATA)
    metadata = read_metadata(file)
    try:
        entries, paths = metadata.state_dict_metadata, metadata.planner_data or {}
        stored = dict(_storages(metadata.storage_data))
        told = {key: _path(key, paths.get(key)) for key in entries}
        names = _model_names(told, whole=not paths)
        tensors: dict[str, StoredTensor] = {}
        left_out: list[str] = []
        for key, entry in entries.items():
            is_tensor = key in names and type(entry).__name__ == "TensorStorageMetadata"
            if not is_tensor or not is_weight(os.fspath(file), key, _dtype(entry)):
                left_out.append(key)
                continue
            if names[key] in tensors:
                raise ValueError(f"two tensors named {names[key]}")
            tensors[names[key]] = _tensor(folder, key, entry, stored)
    except OpdGeomError:
        raise
    except (AttributeError, TypeError, LookupError, ValueError) as error:
        raise CheckpointDamagedError(
            f"{file}: not readable as the metadata of a distributed checkpoint ({type(error).__name__}: {error}); copy "
            "the folder again."
        ) from error
    return tensors, left_out


def _path(key: Any, path: Any) -> tuple[str, ...]:
    """Return the keys under which a tensor stood in the object that was saved; from its name if they are not told."""
    parts = tuple(key.split(".")) if path is None else path
    if not isinstance(key, str) or not isinstance(parts, tuple) or not all(type(part) in (str, int) for part in parts):
        raise ValueError(f"a tensor named {reprlib.repr(key)}, saved under a {type(path).__name__}, expected names")
    return tuple(str(part) for part in parts)


def _model_names(paths: Mapping[str, tuple[str, ...]], *, whole: bool = False) -> dict[str, str]:
    """Return, for each key that belongs to the model, its name there.

    ``whole``: the keys were not told and may be a model's own names, of which most begin with ``model``.

    >>> _model_names({"app.model.w": ("app", "model", "w"), "app.optim.lr": ("app", "optim", "lr")})
    {'app.model.w': 'w'}
    >>> _model_names({"a.w": ("a.w",), "optim.a.w.exp_avg": ("optim", "a.w", "exp_avg")})
    {'a.w': 'a.w'}
    """
    inside = {}
    for key, path in paths.items():
        place = next((number for number, part in enumerate(path[:-1]) if part in MODEL_KEYS), None)
        if place is not None and not set(path[: place + 2]) & set(OTHER_STATE):
            inside[key] = ".".join(path[place + 1 :])
    outside = [path for key, path in paths.items() if key not in inside and not set(path) & set(OTHER_STATE)]
    if inside and not (whole and outside):
        return inside
    beside_moments = {key.rpartition(".")[0] for key in paths if key.endswith(MOMENTS)} - {""}
    return {
        key: key
        for key, path in paths.items()
        if not {*path, key.split(".")[0]} & set(OTHER_STATE)
        and not key.endswith(MOMENTS)
        and key.rpartition(".")[0] not in beside_moments
    }


def _whole_numbers(found: Any, what: str) -> tuple[int, ...]:
    """Return what a pickle holds as sizes or offsets, after checking that it is that."""
    if not isinstance(found, tuple | list) or not all(type(n) is int and 0 <= n < 2**63 for n in found):
        raise ValueError(f"{what} {reprlib.repr(found)}, expected whole numbers")
    return tuple(found)


def _storages(storage_data: dict[Any, Any]) -> Iterator[tuple[tuple[str, tuple[int, ...]], Any]]:
    for index, info in storage_data.items():
        if getattr(index, "offset", None) is not None:
            yield (index.fqn, _whole_numbers(index.offset, "offset")), info


def _dtype(entry: Any) -> torch.dtype:
    properties = entry.properties
    dtype = properties.values[0] if hasattr(properties, "values") else properties.dtype
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype {reprlib.repr(dtype)}")
    return dtype


def _tensor(folder: Path, key: str, entry: Any, stored: dict[tuple[str, tuple[int, ...]], Any]) -> StoredTensor:
    """Describe one tensor, after checking that its chunks are there and make a whole."""
    shape, dtype, pieces = _whole_numbers(entry.size, "size"), _dtype(entry), []
    for chunk in entry.chunks:
        offsets, sizes = _whole_numbers(chunk.offsets, "offsets"), _whole_numbers(chunk.sizes, "sizes")
        if any(start + size > whole for start, size, whole in zip(offsets, sizes, shape, strict=True)):
            raise ValueError(f"tensor {key}: a chunk of {sizes} at {offsets} in {shape}")
        load = _chunk(folder, key, stored[key, offsets], sizes, dtype)
        pieces.append(Piece(block(offsets, sizes), load, os.fspath(folder)))
    if entries_of(pieces) != math.prod(shape) or not pieces:
        raise ValueError(f"tensor {key}: chunks of {[piece.shape for piece in pieces]} do not make {shape}")
    return StoredTensor(os.fspath(folder), key, shape, dtype, load=Assembled(key, shape, dtype, tuple(pieces)))


def _chunk(folder: Path, key: str, info: Any, sizes: tuple[int, ...], dtype: torch.dtype) -> _Chunk:
    name, start, length = info.relative_path, info.offset, info.length
    if not isinstance(name, str) or type(start) is not int or type(length) is not int:
        raise ValueError(f"tensor {key}: stored at {', '.join(reprlib.repr(it) for it in (name, start, length))}")
    file = contained(folder, name, said_by=f"{folder / METADATA}: tensor {key}")
    if getattr(info, "transform_descriptors", None):
        raise MetricInputError(
            f"{file}: tensor {key} is compressed ({reprlib.repr(info.transform_descriptors)}), expected plain chunks; "
            "save it without extensions."
        )
    if not file.is_file():
        raise CheckpointNotFoundError(f"{file}: no such file, but the metadata says it holds {key}; copy it too.")
    size, n_bytes = file.stat().st_size, math.prod(sizes) * dtype.itemsize
    if start < 0 or length < n_bytes or start + length > size:
        raise CheckpointDamagedError(
            f"{file}: truncated inside tensor {key}: {size} bytes, expected at least {start + max(length, n_bytes)}; "
            "copy it again."
        )
    return _Chunk(os.fspath(file), start, length, key, sizes, dtype)
