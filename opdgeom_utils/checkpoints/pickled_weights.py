"""Weights in ``pytorch_model.bin``, one file or shards with an index: read only when asked for, and only as tensors.

A ``.bin`` file is a pickle. It is first read as a structure, without running anything
(:mod:`opdgeom_utils.checkpoints.torch_files`), then its tensors come from ``torch.load`` with
``weights_only=True``, memory-mapped.
"""

import functools
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdgeom_utils.checkpoints.inert_pickles import DAMAGE
from opdgeom_utils.checkpoints.stored_tensors import StoredTensor, is_weight
from opdgeom_utils.checkpoints.torch_files import FileTensor, read_structure, require_regular
from opdgeom_utils.checkpoints.weight_files import contained, indexed_files
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointUnsafeError, ways

ENDINGS = (".bin", ".pt", ".pth")
INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class Pickled:
    """Read one tensor of a pickled file."""

    file: str
    keys: tuple[str, ...]

    def __call__(self) -> Tensor:
        """Map the file, if this process has not yet, and return the tensor."""
        require_regular(Path(self.file))
        status = Path(self.file).stat()
        found: Any = _mapped(self.file, (status.st_mtime_ns, status.st_size))
        for key in self.keys:
            found = found[key] if isinstance(found, Mapping) and key in found else None
        if not isinstance(found, Tensor):
            raise CheckpointDamagedError(
                f"{self.file}: tensor {self.keys[-1]} is gone; the file was written to meanwhile."
            )
        return found.detach()


def pickled_files(folder: Path) -> list[Path]:
    """List the ``.bin`` files of a folder's checkpoint, none if there are none.

    Raises
    ------
    CheckpointNotFoundError, CheckpointDamagedError, CheckpointUnsafeError
        When the index cannot be read, or names what is missing or outside the folder.
    """
    if (folder / INDEX).is_file():
        return indexed_files(folder / INDEX)
    return [contained(folder, "pytorch_model.bin")] if (folder / "pytorch_model.bin").is_file() else []


def pickled_tensors(files: list[Path], *, allow_pickle: bool) -> tuple[dict[str, StoredTensor], list[str]]:
    """Gather the floating tensors of pickled files, and the names of what else they hold.

    Raises
    ------
    CheckpointUnsafeError
        When ``allow_pickle`` is False, or a file holds more than tensors.
    CheckpointNotFoundError, CheckpointDamagedError
        When a file is missing or cannot be read, or two files hold one name.
    MetricInputError
        When a weight is stored quantised.
    """
    if not allow_pickle:
        raise CheckpointUnsafeError(
            f"{files[0]}: is a pickle, a format that can hold code. Convert it to safetensors, or, to have its "
            f"tensors read with weights_only=True, give {ways('allow_pickle')}."
        )
    tensors: dict[str, StoredTensor] = {}
    left_out: dict[str, None] = {}  # by full path: a model and what stands beside it may share a name
    for file in (file.absolute() for file in files):  # a relative path would mean another file after a chdir
        for keys, found in _tensors_in(read_structure(file)):
            name, path = keys[-1], ".".join(keys)
            if path in left_out or (name in tensors and isinstance(found, FileTensor)):
                raise CheckpointDamagedError(
                    f"{file}: tensor {name} is there twice, or in another file too; copy again."
                )
            if isinstance(found, FileTensor) and is_weight(os.fspath(file), name, found.dtype):
                load = Pickled(os.fspath(file), keys)
                tensors[name] = StoredTensor(os.fspath(file), name, found.shape, found.dtype, load=load)
            else:
                left_out[path] = None
        _mapped(os.fspath(file), (file.stat().st_mtime_ns, file.stat().st_size))
    return tensors, list(left_out)


def _tensors_in(state: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Walk a state dict, or one that lies under ``model``, ``module``, ``state_dict`` or ``model_state_dict``."""
    if not isinstance(state, Mapping):
        return
    for outer in ("model", "module", "state_dict", "model_state_dict"):
        inner = state.get(outer)
        if isinstance(inner, Mapping):
            yield from (((outer, name), value) for name, value in inner.items() if isinstance(name, str))
            yield from (((name,), None) for name in state if name != outer and isinstance(name, str))
            return
    yield from (((name,), value) for name, value in state.items() if isinstance(name, str))


@functools.lru_cache(maxsize=64)
def _mapped(file: str, _form: tuple[int, int]) -> Any:
    """Return the tensors of a file, mapped and not read; once for each state of the file."""
    try:
        return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointUnsafeError(f"{file}: holds more than tensors ({reason}); save the weights alone.") from error
    except DAMAGE as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointDamagedError(
            f"{file}: not readable by torch.load ({reason}); copy or save it again."
        ) from error
