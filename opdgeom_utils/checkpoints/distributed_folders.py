"""Folders of ``torch.distributed.checkpoint``: a ``.metadata`` file, and chunks of tensors in ``.distcp`` files.

The metadata is a pickle; it is read without running anything in it (:mod:`opdgeom_utils.checkpoints.torch_files`).
A chunk is what ``torch.save`` wrote, at an offset of its file, and is read when its tensor is.
"""

import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opdgeom_utils.checkpoints.inert_pickles import Recorded, whole_numbers
from opdgeom_utils.checkpoints.sharded_tensors import Assembled, Piece, entries_of
from opdgeom_utils.checkpoints.stored_tensors import StoredTensor, is_weight
from opdgeom_utils.checkpoints.torch_files import FileTensor, read_pickle, read_structure
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
class Chunk:
    """Find one chunk: what ``torch.save`` wrote at an offset of a file."""

    file: str
    start: int
    length: int

    def __call__(self) -> FileTensor:
        """Read the chunk's description, which says where its values lie."""
        tensor = read_structure(Path(self.file), start=self.start, length=self.length)
        if not isinstance(tensor, FileTensor):
            raise CheckpointDamagedError(
                f"{self.file}: holds a {type(tensor).__name__} at byte {self.start}, expected a tensor; copy it again."
            )
        return tensor


def distributed_folder(folder: Path) -> Path | None:
    """Return the folder with the metadata: this one, or the one inside it where trainers put the model.

    Raises
    ------
    CheckpointUnsafeError
        When the one inside is a link that leads elsewhere.
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
    stands beside an optimiser's moments.

    Raises
    ------
    CheckpointNotFoundError
        When a file that the metadata names is missing.
    CheckpointDamagedError
        When the metadata cannot be read, or chunks do not make a whole.
    CheckpointUnsafeError
        When the metadata names code, or a file outside the folder.
    MetricInputError
        When the chunks are compressed, or a weight is stored quantised.
    """
    folder = folder.absolute()  # a relative path would mean another folder after a chdir
    file = contained(folder, METADATA)
    metadata = read_pickle(file)
    try:
        entries, paths = metadata.get("state_dict_metadata"), metadata.get("planner_data") or {}
        stored = dict(_storages(metadata.get("storage_data")))
        names = _model_names({key: _path(key, paths.get(key)) for key in entries})
        tensors: dict[str, StoredTensor] = {}
        left_out: list[str] = []
        for key, entry in entries.items():
            is_tensor = key in names and entry.name == "TensorStorageMetadata"
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


def _model_names(paths: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return, for each key that belongs to the model, its name there.

    Examples
    --------
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
    if inside:
        return inside
    beside_moments = {key.rpartition(".")[0] for key in paths if key.endswith(MOMENTS)} - {""}
    return {
        key: key
        for key, path in paths.items()
        if not {*path, key.split(".")[0]} & set(OTHER_STATE)
        and not key.endswith(MOMENTS)
        and key.rpartition(".")[0] not in beside_moments
    }


def _storages(storage_data: dict[Recorded, Recorded]) -> Iterator[tuple[tuple[str, tuple[int, ...]], Recorded]]:
    for index, info in storage_data.items():
        if index.get("offset") is not None:
            yield (index.get("fqn"), whole_numbers(index.get("offset"), "offset")), info


def _dtype(entry: Recorded) -> torch.dtype:
    properties = entry.get("properties")
    dtype = properties.state[0] if isinstance(properties.state, tuple) else properties.get("dtype")
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype {reprlib.repr(dtype)}")
    return dtype


def _tensor(
    folder: Path, key: str, entry: Recorded, stored: dict[tuple[str, tuple[int, ...]], Recorded]
) -> StoredTensor:
    """Describe one tensor, after checking that its chunks are there and make a whole."""
    shape, pieces = whole_numbers(entry.get("size"), "size"), []
    for chunk in entry.get("chunks"):
        offsets, sizes = whole_numbers(chunk.get("offsets"), "offsets"), whole_numbers(chunk.get("sizes"), "sizes")
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
        raise ValueError(f"tensor {key}: stored at {', '.join(reprlib.repr(it) for it in (name, start, length))}")
    file = contained(folder, name, said_by=f"{folder / METADATA}: tensor {key}")
    if info.get("transform_descriptors"):
        raise MetricInputError(
            f"{file}: tensor {key} is compressed ({reprlib.repr(info.get('transform_descriptors'))}), expected plain "
            "chunks; save it without extensions."
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
