"""The tensors of safetensors files: one file, shards, or slices of which each rank wrote its own.

Two things stand in a header beside the tensors. ``safetensors.torch.save_model`` keeps one of several names of a shared
tensor and notes the others: a tensor kept under the head's name alone goes by the input embedding's. And torch's
``HuggingFaceStorageWriter`` notes where in the whole tensor the slice in the file begins.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from opdgeom_utils.checkpoints.parameter_names import VOCABULARY
from opdgeom_utils.checkpoints.sharded_tensors import Assembled, Piece, block, entries_of
from opdgeom_utils.checkpoints.stored_tensors import StoredTensor, is_weight, require_values
from opdgeom_utils.checkpoints.weight_files import header_notes, index_file, tensor_forms
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError

SLICES = "DCP_SHARDING_INFO"
RANK = re.compile(r"shard-(\d+)-")


def safetensors_of(files: Iterable[Path], of: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """Gather the floating tensors of safetensors files, and the names of the others.

    Raises CheckpointDamagedError when two files hold one name, a file cannot be read, or slices do not make a whole.
    Raises CheckpointNotFoundError when a rank's slices are missing, or one file of slices is given. Raises
    MetricInputError when a tensor is stored quantised.
    """
    notes = {file: header_notes(file) for file in files}
    folder = of if of.is_dir() else of.parent
    offsets = {file: _offsets(file, noted[SLICES]) for file, noted in notes.items() if SLICES in noted}
    if any(any(map(any, begins.values())) for begins in offsets.values()) or (offsets and index_file(folder) is None):
        if of.is_file():
            raise CheckpointNotFoundError(
                f"{of}: holds slices of tensors, of which each rank wrote its own; pass the folder with all of them, "
                f"{folder}."
            )
        return _put_together(offsets, of)
    tensors: dict[str, StoredTensor] = {}
    buffers: list[str] = []
    for file, noted in notes.items():
        forms = tensor_forms(file)
        for stored, (shape, dtype) in forms.items():
            name = _plain_name(stored, [one for one, kept in noted.items() if kept == stored and one not in forms])
            if name in tensors:
                raise CheckpointDamagedError(
                    f"{of}: tensor {name} is in both {Path(tensors[name].where).name} and {file.name}, expected one "
                    "checkpoint; pass the path of one file."
                )
            if not is_weight(os.fspath(file), name, dtype):
                buffers.append(name)
            else:
                tensors[name] = StoredTensor(os.fspath(file), stored, shape, dtype)
    require_values(tensors, of)
    return tensors, buffers


def _plain_name(stored: str, others: list[str]) -> str:
    """Choose one of the names of a shared tensor: the input embedding's if it is one, else the one that was kept."""
    embeddings = [name for name in [stored, *others] if (match := VOCABULARY.fullmatch(name)) and match["embedding"]]
    return min(embeddings, key=lambda name: (name.count("."), name)) if others and embeddings else stored


def _offsets(file: Path, noted: str) -> dict[str, tuple[int, ...]]:
    """Read where each slice in a file begins."""
    try:
        found: Any = json.loads(noted)
        begins = {name: tuple(entry["saved_offsets"]) for name, entry in found.items()}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointDamagedError(
            f"{file}: its {SLICES} cannot be read ({error}); copy or save it again."
        ) from error
    if not all(type(begin) is int and 0 <= begin < 2**62 for each in begins.values() for begin in each):
        raise CheckpointDamagedError(f"{file}: its {SLICES} holds no whole numbers; copy or save it again.")
    return begins


def _put_together(
    offsets: Mapping[Path, dict[str, tuple[int, ...]]], folder: Path
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Describe each tensor by its slices; how long the whole is, only the last of them says."""
    ranks = {int(match[1]) for file in offsets if (match := RANK.match(file.name))}
    missing = sorted(set(range(1, max(ranks, default=0) + 1)) - ranks)
    if missing:
        raise CheckpointNotFoundError(f"{folder}: the slices of ranks {missing} are not there; copy their files too.")
    pieces: dict[str, list[Piece]] = {}
    kinds: dict[str, torch.dtype] = {}
    buffers: dict[str, None] = {}
    for file, begins in offsets.items():
        for name, (shape, dtype) in tensor_forms(file).items():
            if not is_weight(os.fspath(file), name, dtype):
                buffers[name] = None
                continue
            if len(begins.get(name, ())) != len(shape) or kinds.setdefault(name, dtype) != dtype:
                raise CheckpointDamagedError(
                    f"{file}: the slice of tensor {name} is {shape} of {dtype} at {begins.get(name)}, which does not "
                    "fit the others; copy or save the checkpoint again."
                )
            part = StoredTensor(os.fspath(file), name, shape, dtype)
            pieces.setdefault(name, []).append(Piece(block(begins[name], shape), part.read_part, part.where))
    tensors = {}
    for name, found in pieces.items():
        axes = zip(*(piece.region for piece in found), strict=True)
        shape = tuple(max((end for each in axis for _, end in each), default=0) for axis in axes)
        n_held, n_all = entries_of(found), math.prod(shape)
        if n_held < n_all:
            raise CheckpointDamagedError(
                f"{folder}: the slices of tensor {name} hold {n_held} of the {n_all} entries of {shape}; a file is "
                "missing or of another step."
            )
        load = Assembled(name, shape, kinds[name], tuple(found), open_ended=True)
        tensors[name] = StoredTensor(os.fspath(folder), name, shape, kinds[name], load=load)
    require_values(tensors, folder)
    return tensors, list(buffers)
