"""Checkpoints of which each rank wrote its own part: files ``model_world_size_N_rank_R.pt`` with sharded DTensors.

Trainers built on FSDP leave these (verl does). Each file holds, for each tensor, the local part, where its rank stands
in the mesh of ranks, and for each dimension of the mesh a placement: ``Shard(d)`` splits dimension ``d``,
``Replicate()`` repeats. A tensor that is not sharded is in every file.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from opdgeom_utils.checkpoints.mapped_tensors import FileTensor
from opdgeom_utils.checkpoints.sharded_tensors import Assembled, Intervals, Piece, block, entries_of, strided_chunk
from opdgeom_utils.checkpoints.stored_tensors import StoredTensor, is_weight
from opdgeom_utils.checkpoints.torch_files import Sharded, TorchFile, read_structure
from opdgeom_utils.checkpoints.weight_files import contained, shortened
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, MetricInputError, OpdGeomError

ACTOR = "actor"  # where a trainer of several models puts the one that is trained
RANK_FILE = re.compile(r"model_world_size_(\d{1,6})_rank_(\d{1,6})\.pt")


@dataclass(frozen=True)
class _LocalPart:
    """What one rank's file says of one tensor: the whole's form, the entries that lie here, and where."""

    shape: tuple[int, ...]
    region: tuple[Intervals, ...]
    tensor: FileTensor


def rank_folder(folder: Path) -> Path | None:
    """Return the folder with such files: this one, or the one inside it where trainers put the model.

    Raises CheckpointUnsafeError when the one inside is a link that leads elsewhere.
    """
    for place in (folder, folder / ACTOR):
        if place.is_dir() and any(RANK_FILE.fullmatch(path.name) for path in place.iterdir()):
            return place if place == folder else contained(folder, ACTOR)
    return None


def rank_tensors(folder: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """Gather the floating tensors of all ranks, and the names of what else they hold.

    Raises CheckpointNotFoundError when a rank's file is missing. Raises CheckpointDamagedError when a file cannot be
    read, or the parts of a tensor do not make a whole. Raises CheckpointUnsafeError when a file holds anything but
    tensors. Raises MetricInputError when a tensor is a partial sum, not yet added up over the ranks, or is stored
    quantised.
    """
    parts: dict[str, list[_LocalPart]] = {}
    left_out: dict[str, None] = {}
    files = _files(folder)
    for rank, file in enumerate(files):
        found = read_structure(file)
        state = found.content
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise CheckpointDamagedError(f"{file}: holds a {type(state).__name__}, expected tensors by name.")
        for name, value in state.items():
            if isinstance(value, Tensor) and is_weight(os.fspath(file), name, value.dtype):
                parts.setdefault(name, []).append(_local_part(found, name, value, rank))
            else:
                left_out[name] = None
    return {name: _whole(folder, name, found, len(files)) for name, found in parts.items()}, list(left_out)


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


def _local_part(found: TorchFile, name: str, value: Tensor, rank: int) -> _LocalPart:
    """Work out which entries of a tensor a file holds."""
    what, shape = f"{found.file}: tensor {name}", tuple(value.shape)
    region = block([0] * len(shape), shape)
    if not isinstance(value, Sharded):
        return _LocalPart(shape, region, found.located(value))
    try:
        spec = value._spec
        sizes, coordinate = _mesh_sizes(spec.mesh), spec.mesh._coordinate_on_dim
        written_by = getattr(spec.mesh, "_rank", rank)
        if written_by != rank:
            raise ValueError(f"rank {written_by} wrote it")
        if value.dtype != value._local_tensor.dtype:
            raise ValueError(f"{value._local_tensor.dtype} of a tensor of {value.dtype}")
        if not len(spec.placements) == len(sizes) == len(coordinate):
            raise ValueError(f"{len(spec.placements)} placements on a mesh of {len(sizes)} dimensions")
        for placement, size, index in zip(spec.placements, sizes, coordinate, strict=True):
            if type(index) is not int or not 0 <= index < size:
                raise ValueError(f"part {index} of {size}")
            region = _placed(region, placement, size, index, math.prod(sizes), what)
        return _LocalPart(shape, region, found.located(value._local_tensor))
    except OpdGeomError:
        raise
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError) as error:
        raise CheckpointDamagedError(
            f"{what} is sharded in a way that cannot be read ({type(error).__name__}: {error}); save the model whole, "
            "as safetensors."
        ) from error


def _mesh_sizes(mesh: Any) -> tuple[int, ...]:
    """Return how many ranks each dimension of a mesh has, as any torch from 2.3 on pickles it."""
    ranks = next((found for key in ("mesh", "_mesh") if isinstance(found := vars(mesh).get(key), Tensor)), None)
    if ranks is not None:
        return tuple(ranks.shape)
    layout = mesh._layout
    shape = tuple(axis.shape for axis in layout.axes) if hasattr(layout, "axes") else layout.shape
    sizes = tuple(_numel(part) for part in (shape if isinstance(shape, tuple) else (shape,)))
    if not 1 <= math.prod(sizes) <= mesh._rank_map.shape[0]:
        raise ValueError(f"a mesh of sizes {sizes} over {mesh._rank_map.shape[0]} ranks")
    return sizes


def _numel(shape: Any) -> int:
    """Multiply nested sizes: a dimension of a mesh may be several in one."""
    if isinstance(shape, tuple):
        return math.prod(_numel(part) for part in shape)
    if type(shape) is not int or not 0 < shape < 2**32:
        raise ValueError("a mesh whose sizes are no whole numbers")
    return shape


def _placed(
    region: tuple[Intervals, ...], placement: Any, size: int, index: int, ranks: int, what: str
) -> tuple[Intervals, ...]:
    """Cut a region down to what one coordinate of one mesh dimension holds."""
    kind = type(placement).__name__
    if kind == "Replicate":
        return region
    if kind not in ("Shard", "_StridedShard"):
        raise MetricInputError(
            f"{what} is placed as {kind}: the ranks hold summands, not weights; save it after a reduction."
        )
    dim, split = placement.dim, placement.split_factor if kind == "_StridedShard" else 1
    if type(dim) is not int or not -len(region) <= dim < len(region):
        raise ValueError(f"{kind} of a dimension that is not there, in {len(region)} dimensions")
    if type(split) is not int or not 1 <= split <= ranks:  # the product of other sizes of the mesh
        raise ValueError(f"{kind} of a split factor that does not fit {ranks} ranks")
    dim %= len(region)
    return (*region[:dim], strided_chunk(region[dim], split, size, index), *region[dim + 1 :])


def _whole(folder: Path, name: str, parts: list[_LocalPart], n_ranks: int) -> StoredTensor:
    """Check that the parts of a tensor fit together, and describe the whole."""
    shape, dtype = parts[0].shape, parts[0].tensor.dtype
    pieces = [Piece(part.region, part.tensor, part.tensor.file) for part in parts]
    for part, piece in zip(parts, pieces, strict=True):
        if (part.shape, part.tensor.dtype, part.tensor.shape) != (shape, dtype, piece.shape):
            raise CheckpointDamagedError(
                f"{piece.where}: tensor {name} is a part {part.tensor.shape} of {part.shape} in {part.tensor.dtype}, "
                f"expected a part {piece.shape} of {shape} in {dtype}; the files are not of one checkpoint."
            )
    n_held, n_all = entries_of(pieces), math.prod(shape)
    if len(parts) != n_ranks or n_held < n_all:
        raise CheckpointDamagedError(
            f"{folder}: the {len(parts)} parts of tensor {name} in {n_ranks} files hold {n_held} of its {n_all} "
            "entries; a file stands under another's name, or is of another step."
        )
    return StoredTensor(os.fspath(folder), name, shape, dtype, load=Assembled(name, shape, dtype, tuple(pieces)))
