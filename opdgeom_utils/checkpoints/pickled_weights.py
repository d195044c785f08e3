"""``pytorch_model.bin``, one file or shards with an index, and other pickled state dicts: only when asked for.

Such a file is a pickle, which could hold code. torch reads it with ``weights_only=True``, which runs none
(:mod:`opdgeom_utils.checkpoints.torch_files`).
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from opdgeom_utils.checkpoints.distributed_folders import MODEL_KEYS, OTHER_STATE
from opdgeom_utils.checkpoints.stored_tensors import StoredTensor, is_weight, require_values
from opdgeom_utils.checkpoints.torch_files import legacy_tensor, read_structure
from opdgeom_utils.checkpoints.weight_files import contained, indexed_files, require_all_shards, shortened
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointUnsafeError, ways

ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
INDEX, WHOLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
OTHERS = ("pytorch_model*.bin", "hf_model_*.pt")  # without an index, from accelerate's FSDP and from torchtune


def pickled_files(folder: Path) -> list[Path]:
    """List the pickled files of a folder's checkpoint, if any: those of an index, one whole, or all of a kind.

    Raises CheckpointNotFoundError, CheckpointDamagedError, CheckpointUnsafeError when the index cannot be read, or
    names what is missing or outside the folder, or a shard is missing.
    """
    if (folder / INDEX).is_file():
        return indexed_files(folder / INDEX)
    if (folder / WHOLE).is_file():
        return [contained(folder, WHOLE)]
    found = next(filter(None, (sorted(folder.glob(pattern)) for pattern in OTHERS)), [])
    require_all_shards(folder, found)
    return [contained(folder, path.name) for path in found]


def pickled_tensors(files: list[Path], *, allow_pickle: bool) -> tuple[dict[str, StoredTensor], list[str]]:
    """Gather the floating tensors of pickled files, and the names of what else they hold.

    Raises CheckpointUnsafeError when ``allow_pickle`` is False, or a file holds more than tensors. Raises
    CheckpointNotFoundError or CheckpointDamagedError when a file is missing or cannot be read, or two files hold one
    name. Raises MetricInputError when a weight is stored quantised.
    """
    if not allow_pickle:
        raise CheckpointUnsafeError(
            f"{files[0]}: is a pickle, a format that can hold code. Convert it to safetensors, or, to have its "
            f"tensors read with weights_only=True, which runs none, give {ways('allow_pickle')}."
        )
    tensors: dict[str, StoredTensor] = {}
    left_out: dict[str, None] = {}  # by full path: a model and what stands beside it may share a name
    for file in files:
        found = read_structure(file)
        inside = list(_tensors_in(found.content, file))
        names = [keys[-1] for keys, _ in inside]
        for keys, value in inside:
            name, path = keys[-1], ".".join(keys)
            if path in left_out or (name in tensors and isinstance(value, Tensor)):
                raise CheckpointDamagedError(
                    f"{file}: tensor {name} is there twice, or in another file too, expected one checkpoint; pass the "
                    "path of one file."
                )
            if isinstance(value, Tensor) and is_weight(os.fspath(file), name, value.dtype, names):
                where, old = os.fspath(file), found.storages is None
                load = partial(legacy_tensor, where, keys) if old else found.located(value)
                tensors[name] = StoredTensor(where, name, tuple(value.shape), value.dtype, load=load)
            else:
                left_out[path] = None
    require_values(tensors, files[0])
    return tensors, list(left_out)


def _tensors_in(state: Any, file: Path) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Walk a state dict, or the one inside a training's state: under a key of the model, or the only one there."""
    if not isinstance(state, Mapping):
        return
    outer = next((key for key in MODEL_KEYS if isinstance(state.get(key), Mapping)), None)
    if outer is None and not any(isinstance(value, Tensor) for value in state.values()):
        held = [key for key, value in state.items() if key not in OTHER_STATE and _holds_tensors(value)]
        if len(held) > 1:
            raise CheckpointDamagedError(
                f"{file}: holds several sets of tensors, {shortened([repr(key) for key in held])}, expected one model, "
                f"or one named {', '.join(MODEL_KEYS)}. Save the one that you mean alone: "
                f"torch.save(torch.load('{file.name}')[{held[0]!r}], 'whole.pt')."
            )
        outer = next((key for key in held if isinstance(key, str)), None)
    if outer is None:
        yield from (((name,), value) for name, value in state.items() if isinstance(name, str))
        return
    yield from (((outer, name), value) for name, value in state[outer].items() if isinstance(name, str))
    yield from (((name,), None) for name in state if name != outer and isinstance(name, str))


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(inner, Tensor) for inner in value.values())
