"""Safetensors files on disk: which ones make up a checkpoint, what their headers say, and whether that is true."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import CheckpointDamagedError, CheckpointNotFoundError, MetricInputError

FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BUFFER_DTYPES = {"BOOL", "I64"}  # position ids and causal masks of older checkpoints: not weights
DTYPE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1}
SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")


def weight_files(folder: Path) -> list[Path]:
    """List the files of a folder's checkpoint: what the index names, else model.safetensors, else every one.

    Raises
    ------
    CheckpointNotFoundError
        When there is no safetensors file, a shard is missing, or there is only an adapter.
    CheckpointDamagedError
        When the index cannot be read.
    """
    index = _index_file(folder)
    if index is not None:
        names = sorted(set(_weight_map(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointNotFoundError(f"{folder}: {index.name} names {shortened(missing)}, not there; copy again.")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if folder / "model.safetensors" in files:
        return [folder / "model.safetensors"]
    if not files:
        others = sorted(path.name for path in folder.iterdir())
        raise CheckpointNotFoundError(
            f"{folder}: no .safetensors file, found {shortened(others) or 'nothing'}; expected a folder saved by "
            "save_pretrained. Convert .bin or .pt weights first."
        )
    if any(file.name.startswith("adapter_") for file in files):
        raise CheckpointNotFoundError(f"{folder}: holds an adapter only; merge it into its base model and save that.")
    shards = [match for file in files if (match := SHARD.search(file.name))]
    if shards and len(shards) != int(shards[0].group(2)):
        raise CheckpointNotFoundError(f"{folder}: {len(shards)} of {int(shards[0].group(2))} shards; copy the others.")
    return files


def tensor_forms(file: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return the shape and dtype of each floating tensor in a file, from its header.

    Raises
    ------
    CheckpointDamagedError
        When the file is truncated or its header does not fit its content.
    MetricInputError
        When a tensor is stored quantised.
    """
    forms = {}
    with opened(file) as content:
        names = content.keys()
        for name in names:
            part = content.get_slice(name)
            dtype = part.get_dtype()
            if dtype in FLOAT_DTYPES:
                forms[name] = (tuple(part.get_shape()), FLOAT_DTYPES[dtype])
            elif dtype not in BUFFER_DTYPES:
                raise MetricInputError(
                    f"{file}: tensor {name} is stored as {dtype}, expected one of {', '.join(FLOAT_DTYPES)}; "
                    "dequantise the model and save it again."
                )
    return forms


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Open a safetensors file, turning each way it can fail into an error that names the file and the tensor."""
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"{file}: no such file; check the path.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointDamagedError(f"{file}: {_damage(file)} ({error}); copy or save it again.") from error


def check_index(folder: Path, where: dict[str, str]) -> None:
    """Prove that every tensor of a folder's index, if it has one, lies in the file that the index says.

    Parameters
    ----------
    folder : Path
        The checkpoint's folder.
    where : dict of str to str
        The name of the file in which each floating tensor was found.

    Raises
    ------
    CheckpointDamagedError
        When one is elsewhere or nowhere.
    """
    index = _index_file(folder)
    if index is None:
        return
    for name, file in _weight_map(index).items():
        if where.get(name) == file:
            continue  # the usual case; what follows is a left-out buffer, or a lie
        with opened(folder / file) as content:
            names = content.keys()
        if name not in names:
            raise CheckpointDamagedError(f"{index}: says that {file} holds {name}, it does not; copy the folder again.")


def declared_tied(folder: Path) -> bool | None:
    """Return what config.json says about tied embeddings, None if it says nothing.

    Raises
    ------
    CheckpointDamagedError
        When config.json cannot be read.
    """
    config = folder / "config.json"
    if not config.is_file():
        return None
    try:
        declared = json.loads(config.read_text())
        return declared.get("tie_word_embeddings", declared.get("text_config", {}).get("tie_word_embeddings"))
    except (ValueError, AttributeError) as error:
        raise CheckpointDamagedError(f"{config}: not a readable configuration ({error}); copy it again.") from error


def shortened(names: list[str], *, at_most: int = 4) -> str:
    """Join names for a message, and count the rest.

    Examples
    --------
    >>> shortened(["a", "b", "c"], at_most=2)
    'a, b and 1 more'
    """
    rest = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {rest} more" if rest > 0 else "")


def _index_file(folder: Path) -> Path | None:
    found = sorted(folder.glob("*.safetensors.index.json"))
    preferred = folder / "model.safetensors.index.json"
    return preferred if preferred in found else next(iter(found), None)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointDamagedError(
            f"{index}: not a readable index with a weight_map ({error}); copy again."
        ) from error


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
            expected = int(torch.Size(entry["shape"]).numel()) * DTYPE_BYTES[entry["dtype"]]
            if end - begin != expected:
                return f"the header gives tensor {name} {end - begin} bytes, its shape and dtype need {expected}"
            if start + end > size:
                return f"truncated inside tensor {name}: {size} bytes, expected at least {start + end}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "not a readable safetensors file"
    return "damaged"
