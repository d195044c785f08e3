"""Safetensors files on disk: which ones make up a checkpoint, what their headers say, and whether that is true."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from opdgeom_utils.checkpoints.other_files import dequantised, kind_inside, other_kind
from opdgeom_utils.checkpoints.parameter_names import is_buffer
from opdgeom_utils.errors import (
    CheckpointDamagedError,
    CheckpointNotFoundError,
    CheckpointUnsafeError,
    MetricInputError,
)

FLOAT_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu},
}
BUFFER_DTYPES = {"BOOL": torch.bool, "I64": torch.int64}  # position ids, causal masks of older checkpoints: not weights
BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16} | {
    **{"I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8},
    **{"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
SHARD = re.compile(r"-(\d+)-of-(\d+)\.(?:safetensors|bin)$")
DOWNLOADS = ".cache/huggingface/download"  # what the hub's client keeps in a folder that it downloads to
SLICE = re.compile(r"shard-\d+-")  # of which each rank wrote its own, under a number of its own
WEIGHTS = (  # files that hold a model's weights, in whatever form
    *("*.safetensors", "pytorch_model*.bin", "*.distcp", "model_world_size_*_rank_*.pt", "consolidated*.pth"),
    *("*.gguf", "tf_model*.h5", "flax_model*.msgpack"),
)


def weight_files(folder: Path) -> list[Path]:
    """List the files of a folder's checkpoint: what the index names, else model.safetensors, else every one.

    Raises CheckpointNotFoundError when there is no safetensors file, a shard is missing, or there is only an adapter.
    Raises CheckpointDamagedError when the index cannot be read. Raises CheckpointUnsafeError when a shard's name or
    link leads out of the folder.
    """
    index = index_file(folder)
    if index is not None:
        files = indexed_files(index)
        single = folder / "model.safetensors"
        if single.exists() and single not in files:
            raise CheckpointDamagedError(
                f"{folder}: holds two checkpoints, {single.name} and the shards of {index.name}; move one of them away."
            )
        return files
    files = [contained(folder, path.name) for path in sorted(folder.glob("*.safetensors"))]
    shards = [file for file in files if SHARD.search(file.name) and not SLICE.match(file.name)]
    if folder / "model.safetensors" in files:
        if shards:
            raise CheckpointDamagedError(
                f"{folder}: holds two checkpoints, model.safetensors and {shortened([file.name for file in shards])}; "
                "move one of them away."
            )
        return [folder / "model.safetensors"]
    if not files:
        if kind := kind_inside(folder):
            raise CheckpointNotFoundError(f"{folder}: no weights, but {kind}{_elsewhere(folder)}.")
        found = shortened(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise CheckpointNotFoundError(
            f"{folder}: no .safetensors file, found {found}{_elsewhere(folder)}; expected a folder saved by "
            "save_pretrained, by torch.distributed.checkpoint, or as one file for each rank."
        )
    if any(file.name.startswith("adapter_") for file in files):
        raise CheckpointNotFoundError(
            f"{folder}: holds an adapter without its adapter_config.json; copy that too, or merge the adapter first. "
            'If none was saved, write {"peft_type": "LORA", "r": ..., "lora_alpha": ...} into one, as in training.'
        )
    require_all_shards(folder, shards)
    return files


def require_all_shards(folder: Path, files: Sequence[Path]) -> None:
    """Prove by their names that shards without an index are of one checkpoint, and all there.

    Raises CheckpointDamagedError when they are of several. Raises CheckpointNotFoundError when one is missing.
    """
    shards = [match for file in files if (match := SHARD.search(file.name))]
    counts = {int(match.group(2)) for match in shards}
    if len(counts) > 1:
        raise CheckpointDamagedError(
            f"{folder}: holds shards of checkpoints of {sorted(counts)} files, without an index that names one of "
            "them; move the others away."
        )
    if shards and len(shards) != min(counts):
        raise CheckpointNotFoundError(f"{folder}: {len(shards)} of {min(counts)} shards; copy the others.")


def indexed_files(index: Path) -> list[Path]:
    """List the shards that an index names.

    Raises CheckpointNotFoundError, CheckpointDamagedError, CheckpointUnsafeError when one is missing, the index cannot
    be read, or a name leads out of its folder.
    """
    folder = index.parent
    owners = {file: name for name, file in sorted(weight_map(index).items(), reverse=True)}
    files = []
    for name in sorted(owners):
        file = contained(folder, name, said_by=f"{index}: tensor {owners[name]}")
        if not file.is_file():
            others = sorted(path.name for path in folder.glob(f"*{file.suffix}") if path.name not in owners)
            raise CheckpointNotFoundError(
                f"{folder}: {index.name} names {name} (for {owners[name]}), not there; copy or download it again"
                + (f", or, if {shortened(others)} are the checkpoint, move the index away." if others else ".")
            )
        files.append(file)
    return files


def contained(folder: Path, name: str, *, said_by: str = "") -> Path:
    """Return the path of a file named by a checkpoint, after proving that it lies in the checkpoint's folder.

    A cache of the hub keeps its files as links to ``blobs``, two folders up; those are followed. Raises
    CheckpointUnsafeError when the name, or the link that stands there, leads elsewhere.
    """
    said = f"{said_by} " if said_by else ""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name or "\\" in name:
        raise CheckpointUnsafeError(
            f"{said or f'{folder}: '}names the file {name!r}, expected one inside {folder}; do not open this "
            "checkpoint."
        )
    path, root = folder / name, folder.resolve()
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        root = root.parent.parent
    try:
        target = path.resolve()
        is_special = path.exists() and not (path.is_file() or path.is_dir())
    except (OSError, RuntimeError) as error:
        raise CheckpointUnsafeError(f"{path}: a link that leads nowhere ({error}); copy the file itself.") from error
    if not target.is_relative_to(root):
        raise CheckpointUnsafeError(
            f"{said}{path}: is a link to {target}, outside its folder; copy the file itself, or pass its own folder."
        )
    if is_special:
        raise CheckpointUnsafeError(f"{path}: is no regular file, but a pipe or a device; copy the file itself.")
    return path


def tensor_forms(file: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return the shape and dtype of each tensor in a file, from its header; buffers keep torch.bool or torch.int64.

    Raises CheckpointDamagedError when the file is truncated or its header does not fit its content. Raises
    MetricInputError when a tensor is stored quantised.
    """
    forms = {}
    with opened(file) as content:
        names = content.keys()  # a handle, not a mapping
        for name in names:
            part = content.get_slice(name)
            dtype = part.get_dtype()
            if dtype not in FLOAT_DTYPES | BUFFER_DTYPES and is_buffer(name):
                dtype = "BOOL"  # older causal masks are of bytes; a mask is left out whatever its type
            if dtype not in FLOAT_DTYPES | BUFFER_DTYPES:
                raise MetricInputError(
                    f"{file}: tensor {name} is stored as {dtype}, expected one of {', '.join(FLOAT_DTYPES)} "
                    f"{dequantised(names)}"
                )
            forms[name] = (tuple(part.get_shape()), (FLOAT_DTYPES | BUFFER_DTYPES)[dtype])
    return forms


def header_notes(file: Path) -> dict[str, str]:
    """Return what stands in a file's header beside the tensors.

    Raises CheckpointNotFoundError or CheckpointDamagedError when the file is not there, or not readable.
    """
    with opened(file) as content:
        return content.metadata() or {}


def unread(folder: Path, read: Iterable[Path]) -> list[str]:
    """List the files of weights that lie in a checkpoint's folder and are not part of it: an older save, another form.

    An adapter beside weights is another question (:mod:`opdgeom_utils.checkpoints.opening`).
    """
    known = {file.name for file in read}
    found = {path.name for pattern in WEIGHTS for path in folder.glob(pattern) if not path.name.startswith("adapter_")}
    return [f"{name} (a file beside the checkpoint, not read)" for name in sorted(found - known)]


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Open a safetensors file, turning each way it can fail into an error that names the file and the tensor."""
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"{file}: no such file; check the path.") from error
    except (SafetensorError, OSError) as error:
        if kind := other_kind(file):
            raise CheckpointDamagedError(f"{file}: {kind}.") from error
        raise CheckpointDamagedError(f"{file}: {_damage(file)} ({error}); copy or save it again.") from error


def check_index(folder: Path, where: dict[str, str]) -> None:
    """Prove that every tensor of a folder's index, if it has one, lies in the file that the index says.

    ``where``: the name of the file in which each floating tensor was found.
    Raises CheckpointDamagedError when one is elsewhere or nowhere.
    """
    index = index_file(folder)
    if index is None:
        return
    for name, file in weight_map(index).items():
        if where.get(name) == file:
            continue  # the usual case; what follows is a left-out buffer, or a lie
        with opened(folder / file) as content:
            names = content.keys()
        if name not in names:
            raise CheckpointDamagedError(f"{index}: says that {file} holds {name}, it does not; copy the folder again.")


def read_json(file: Path, what: str) -> dict[str, Any]:
    """Read a JSON object that lies beside the weights.

    Raises CheckpointDamagedError when it cannot be read, or is no object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointDamagedError(f"{file}: not a readable {what} ({error}); copy it again.") from error
    if not isinstance(content, dict):
        raise CheckpointDamagedError(f"{file}: not a readable {what} (a {type(content).__name__}); copy it again.")
    return content


def shortened(names: list[str], *, at_most: int = 4) -> str:
    """Join names for a message, and count the rest.

    >>> shortened(["a", "b", "c"], at_most=2)
    'a, b and 1 more'
    """
    rest = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {rest} more" if rest > 0 else "")


def index_file(folder: Path) -> Path | None:
    """Return the index of a folder's shards, if there is one."""
    found = sorted(folder.glob("*.safetensors.index.json"))
    preferred = folder / "model.safetensors.index.json"
    chosen = preferred if preferred in found else next(iter(found), None)
    return None if chosen is None else contained(folder, chosen.name)


def weight_map(index: Path) -> dict[str, str]:
    """Read an index: the file that holds each tensor.

    Raises CheckpointDamagedError when it cannot be read.
    """
    named = read_json(index, "index").get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise CheckpointDamagedError(f"{index}: not a readable index with a weight_map; copy it again.")
    return named


def _elsewhere(folder: Path) -> str:
    """Say where among what a folder holds weights may lie."""
    names = [f"{place}/{name}" for name in (*WEIGHTS, "adapter_config.json") for place in ("*", "snapshots/*")]
    below = {path.parent.relative_to(folder).as_posix() for name in names for path in folder.glob(name)}
    pickles = (path for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if any(any(place.glob("*.incomplete")) for place in (folder.resolve().parent.parent / "blobs", folder / DOWNLOADS)):
        return "; its download did not finish: give `hf download` again"
    where = [*(f"{name}/" for name in sorted(below)), *(path.name for path in pickles if not other_kind(path))]
    return f"; if one of {shortened(where)} is meant, pass its path" if where else ""


def _damage(file: Path) -> str:
    """Say in words what is wrong with a file that would not open: which tensor is cut off, or misdescribed."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(start - 8) if start <= size else b"")
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            expected = math.prod(entry["shape"]) * BITS[entry["dtype"]] // 8
            if end - begin != expected:
                return f"the header gives tensor {name} {end - begin} bytes, its shape and dtype need {expected}"
            if start + end > size:
                return f"truncated inside tensor {name}: {size} bytes, expected at least {start + end}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "not a readable safetensors file"
    return "damaged"
