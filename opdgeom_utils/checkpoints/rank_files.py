"""Checkpoints of which each rank wrote its own part: files ``model_world_size_N_rank_R.pt`` with sharded DTensors.

Trainers built on FSDP leave these (verl does). Each file holds, for each tensor, the local part, the mesh of ranks, and
for each dimension of the mesh a placement: ``Shard(d)`` splits dimension ``d``, ``Replicate()`` repeats. A tensor that
is not sharded is in every file.
"""

import math
import os
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opdgeom_utils.checkpoints.inert_pickles import NUMBERS_AT_MOST, Recorded, whole_numbers
from opdgeom_utils.checkpoints.sharded_tensors import Assembled, Intervals, Piece, entries_of, strided_chunk
from opdgeom_utils.checkpoints.stored_tensors import StoredTensor, is_weight
from opdgeom_utils.checkpoints.torch_files import FileTensor, read_structure
from opdgeom_utils.checkpoints.weight_files import contained, shortened
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, MetricInputError, OpdGeomError

ACTOR = "actor"  # where a trainer of several models puts the one that is trained
RANK_FILE = re.compile(r"model_world_size_(\d{1,6})_rank_(\d{1,6})\.pt")


@dataclass(frozen=True)
class LocalPart:
    """What one rank's file says of one tensor.

    Attributes
    ----------
    shape : tuple of int
        Form of the whole tensor.
    region : tuple of Intervals
        The entries that this rank holds, for each dimension.
    tensor : FileTensor
        Where they lie.
    """

    shape: tuple[int, ...]
    region: tuple[Intervals, ...]
    tensor: FileTensor


def rank_folder(folder: Path) -> Path | None:
    """Return the folder with such files: this one, or the one inside it where trainers put the model.

    Raises
    ------
    CheckpointUnsafeError
        When the one inside is a link that leads elsewhere.
    """
    for place in (folder, folder / ACTOR):
        if place.is_dir() and any(RANK_FILE.fullmatch(path.name) for path in place.iterdir()):
            return place if place == folder else contained(folder, ACTOR)
    return None


def rank_tensors(folder: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """Gather the floating tensors of all ranks, and the names of what else they hold.

    Raises
    ------
    CheckpointNotFoundError
        When a rank's file is missing.
    CheckpointDamagedError
        When a file cannot be read, or the parts of a tensor do not make a whole.
    CheckpointUnsafeError
        When a file holds anything but tensors.
    MetricInputError
        When a tensor is a partial sum, not yet added up over the ranks, or is stored quantised.
    """
    folder = folder.absolute()  # a relative path would mean another folder after a chdir
    parts: dict[str, list[LocalPart]] = {}
    left_out: dict[str, None] = {}
    files = _files(folder)
    for rank, file in enumerate(files):
        state = read_structure(file)
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise CheckpointDamagedError(f"{file}: holds a {type(state).__name__}, expected tensors by name.")
        for name, value in state.items():
            if isinstance(value, FileTensor | Recorded):
                parts.setdefault(name, []).append(_local_part(file, name, value, rank))
            else:
                left_out[name] = None
    tensors = {name: _whole(folder, name, found, len(files)) for name, found in parts.items()}
    weights = {name: t for name, t in tensors.items() if is_weight(parts[name][0].tensor.file, name, t.dtype)}
    return weights, [*(name for name in tensors if name not in weights), *left_out]


def _files(folder: Path) -> list[Path]:
    found = {path.name: match for path in folder.iterdir() if (match := RANK_FILE.fullmatch(path.name))}
    sizes = sorted({int(match.group(1)) for match in found.values()})
    if len(sizes) != 1:
        raise CheckpointDamagedError(f"{folder}: files of world sizes {sizes}, expected one checkpoint in a folder.")
    names = [f"model_world_size_{sizes[0]}_rank_{rank}.pt" for rank in range(min(sizes[0], len(found) + 1))]
    missing = [name for name in names if name not in found]
    if missing:
        raise CheckpointNotFoundError(
            f"{folder}: {len(found)} of {sizes[0]} ranks, without {shortened(missing)}; copy the others too."
        )
    return [contained(folder, name) for name in names]


def _local_part(file: Path, name: str, value: FileTensor | Recorded, rank: int) -> LocalPart:
    """Work out which entries of a tensor a file holds."""
    if isinstance(value, FileTensor):
        return LocalPart(value.shape, _all_of(value.shape), value)
    try:
        spec = value.get("_spec")
        meta = spec.get("tensor_meta")
        shape = whole_numbers(meta.args[0] if meta is not None else value.args[2], "shape")
        placements, mesh, local = spec.get("placements"), _Mesh.of(spec.get("mesh")), value.get("_local_tensor")
        coordinate = mesh.coordinate_of(rank)
        if not isinstance(local, FileTensor) or len(placements) != len(mesh.sizes):
            raise ValueError(f"{len(placements)} placements on a mesh of {len(mesh.sizes)} dimensions")
        region = _all_of(shape)
        for placement, size, index in zip(placements, mesh.sizes, coordinate, strict=True):
            region = _placed(region, placement, size, index, mesh, f"{file}: tensor {name}")
    except OpdGeomError:
        raise
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError) as error:
        raise CheckpointDamagedError(
            f"{file}: tensor {name} is sharded in a way that cannot be read ({type(error).__name__}: {error}); save "
            "the model whole, as safetensors."
        ) from error
    return LocalPart(shape, region, local)


@dataclass(frozen=True)
class _Mesh:
    """The grid of ranks over which a tensor is spread, as any torch from 2.3 on pickles it."""

    sizes: tuple[int, ...]
    ranks: torch.Tensor

    @classmethod
    def of(cls, mesh: Recorded) -> "_Mesh":
        ranks = next((found for key in ("mesh", "_mesh") if isinstance(found := mesh.get(key), FileTensor)), None)
        if ranks is not None:
            return cls(ranks.shape, ranks())
        layout, rank_map = mesh.get("_layout"), mesh.get("_rank_map")
        axes = layout.get("axes") or [layout]
        sizes = _numbers([axis.get("shape") for axis in axes])
        strides = _numbers([axis.get("stride") for axis in axes])
        needed = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if min(sizes, default=1) < 1 or max(needed, math.prod(sizes)) > rank_map.shape[0]:
            raise ValueError(f"a mesh of sizes {sizes} and strides {strides} over {rank_map.shape} ranks")
        return cls(sizes, rank_map().as_strided(sizes, strides))

    def coordinate_of(self, rank: int) -> list[int]:
        found = (self.ranks == rank).nonzero().tolist()
        if len(found) != 1:
            raise ValueError(f"rank {rank} stands {len(found)} times in the mesh {reprlib.repr(self.ranks.tolist())}")
        return found[0]


def _numbers(nested: Any) -> tuple[int, ...]:
    """Flatten nested tuples of whole numbers, of which there may be few: lists can hold themselves many times over."""
    found, waiting = [], [nested]
    for _ in range(4 * NUMBERS_AT_MOST):
        if not waiting:
            return whole_numbers(found, "mesh")
        item = waiting.pop()
        if isinstance(item, tuple | list):
            waiting.extend(reversed(item))
        else:
            found.append(item)
    raise ValueError(f"a mesh described by more than {4 * NUMBERS_AT_MOST} parts")


def _placed(
    region: tuple[Intervals, ...], placement: Recorded, size: int, index: int, mesh: _Mesh, what: str
) -> tuple[Intervals, ...]:
    """Cut a region down to what one coordinate of one mesh dimension holds."""
    if placement.name == "Replicate":
        return region
    if placement.name not in ("Shard", "_StridedShard"):
        raise MetricInputError(
            f"{what} is placed as {placement.name}: the ranks hold summands, not weights; save it after a reduction."
        )
    dim = placement.get("dim")
    split = placement.get("split_factor") if placement.name == "_StridedShard" else 1
    if type(dim) is not int or not -len(region) <= dim < len(region):
        raise ValueError(f"{placement.name} of dimension {reprlib.repr(dim)} in {len(region)} dimensions")
    if type(split) is not int or not 1 <= split <= mesh.ranks.numel():  # the product of other sizes of the mesh
        raise ValueError(f"{placement.name} of split factor {reprlib.repr(split)} on {mesh.ranks.numel()} ranks")
    dim %= len(region)
    return (*region[:dim], strided_chunk(region[dim], split, size, index), *region[dim + 1 :])


def _all_of(shape: tuple[int, ...]) -> tuple[Intervals, ...]:
    return tuple(((0, size),) if size else () for size in shape)


def _whole(folder: Path, name: str, parts: list[LocalPart], n_ranks: int) -> StoredTensor:
    """Check that the parts of a tensor fit together, and describe the whole."""
    shape, dtype = parts[0].shape, parts[0].tensor.dtype
    pieces = [Piece(part.region, part.tensor, part.tensor.file) for part in parts]
    for part, piece in zip(parts, pieces, strict=True):
        if (part.shape, part.tensor.dtype, part.tensor.shape) != (shape, dtype, piece.shape):
            raise CheckpointDamagedError(
                f"{piece.where}: tensor {name} is a part {part.tensor.shape} of {part.shape} in {part.tensor.dtype}, "
                f"expected a part {piece.shape} of {shape} in {dtype}; the files are not of one checkpoint."
            )
    held = {piece.region: piece.shape for piece in pieces}
    if len(parts) != n_ranks or entries_of(list(held.values())) < torch.Size(shape).numel():
        raise CheckpointDamagedError(
            f"{folder}: the {len(parts)} parts of tensor {name} in {n_ranks} files hold "
            f"{entries_of(list(held.values()))} of its {torch.Size(shape).numel()} entries; a file stands under "
            "another's name, or is of another step."
        )
    return StoredTensor(os.fspath(folder), name, shape, dtype, load=Assembled(name, shape, dtype, tuple(pieces)))
