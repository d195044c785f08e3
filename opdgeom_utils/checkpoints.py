"""Open a checkpoint as named tensors that are read only when asked for.

Understood: a folder of safetensors (one file, or shards with or without an index), a single ``.safetensors`` file, a
hub id (``name`` or ``name@revision``), and a loaded ``torch.nn.Module``. Tied embeddings appear once, under the
embedding's name. Nothing is guessed: what is missing, damaged or of another architecture stops with an error that names
the file and the tensor.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import CheckpointDamagedError, CheckpointMismatchError, CheckpointNotFoundError, MetricInputError
from .weight_files import check_index, declared_tied, opened, shortened, tensor_forms, weight_files

CheckpointSource = str | os.PathLike[str] | nn.Module

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint: its form now, its values when :meth:`read` is called.

    Attributes
    ----------
    where : str
        The file, or the class of the module, for messages.
    key : str
        The name it has there.
    shape : tuple of int
        Matrices are (out, in).
    dtype : torch.dtype
        As stored.
    held : Tensor or None
        The tensor itself when it came from a loaded module; None when it lies in a file.
    """

    where: str
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    held: Tensor | None = None

    def read(self) -> Tensor:
        """Return the values, on the CPU for files, checked to be finite.

        Raises
        ------
        CheckpointNotFoundError
            When the file has gone since it was opened.
        CheckpointDamagedError
            When it can no longer be read, or holds NaN or infinite values.
        """
        values = self.read_unchecked()
        n_bad = int((~torch.isfinite(values)).sum())
        if n_bad:
            raise CheckpointDamagedError(
                f"{self.where}: tensor {self.key} has {n_bad} NaN or infinite values of {values.numel()}, expected "
                "none; this checkpoint diverged or was damaged, use an earlier one."
            )
        return values

    def read_unchecked(self) -> Tensor:
        """Return the values, whatever they are."""
        if self.held is not None:
            return self.held.detach()
        with opened(Path(self.where)) as file:
            return file.get_tensor(self.key)


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint's tensors by name, in layer order.

    Attributes
    ----------
    label : str
        What was opened, for messages.
    tensors : Mapping of str to StoredTensor
        Floating tensors only; tied embeddings once.
    """

    label: str
    tensors: Mapping[str, StoredTensor]


def open_checkpoint(source: CheckpointSource) -> OpenCheckpoint:
    """Open a checkpoint without reading its weights.

    Parameters
    ----------
    source : str, path or torch.nn.Module
        A folder, a ``.safetensors`` file, a hub id (``name`` or ``name@revision``), or a loaded module.

    Returns
    -------
    OpenCheckpoint
        Names, shapes and dtypes now; values when a tensor is read.

    Raises
    ------
    CheckpointNotFoundError
        When nothing is there, a shard is missing, or the hub cannot be reached.
    CheckpointDamagedError
        When a file is truncated, its header does not fit its content, or an index names what is not there.
    MetricInputError
        When the weights are quantised, or the source is of another type.

    Examples
    --------
    >>> opened = open_checkpoint(nn.Linear(3, 2, bias=False))
    >>> [(name, tensor.shape) for name, tensor in opened.tensors.items()]
    [('weight', (2, 3))]
    """
    if isinstance(source, nn.Module):
        return _open_module(source)
    if not isinstance(source, str | os.PathLike):
        raise MetricInputError(
            f"a checkpoint is a {type(source).__name__}, expected a folder, a .safetensors file, a hub id or a module."
        )
    path = Path(source).expanduser()
    if not path.exists():
        path = _download(os.fspath(source))
    tensors = _file_tensors(path)
    tied = declared_tied(path if path.is_dir() else path.parent)
    return OpenCheckpoint(os.fspath(source), _in_layer_order(_tied_once(tensors, tied)))


def matching_names(reference: OpenCheckpoint, tuned: OpenCheckpoint) -> list[str]:
    """Names of the tensors that both checkpoints hold, after proving that they hold the same ones.

    Raises
    ------
    CheckpointMismatchError
        When a name is on one side only, or its shapes differ.

    Examples
    --------
    >>> one, other = open_checkpoint(nn.Linear(2, 2)), open_checkpoint(nn.Linear(2, 2))
    >>> matching_names(one, other)
    ['bias', 'weight']
    """
    before, after = reference.tensors, tuned.tensors
    shapes = [
        f"{name} is {before[name].shape} and {after[name].shape}"
        for name in before
        if name in after and before[name].shape != after[name].shape
    ]
    problems = {
        f"only in {reference.label}": [name for name in before if name not in after],
        f"only in {tuned.label}": [name for name in after if name not in before],
        "of another shape": shapes,
    }
    found = [f"{what}: {shortened(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointMismatchError(
            f"{reference.label} and {tuned.label} are not one architecture. {'; '.join(found)}. Expected the same "
            "names and shapes; pass the model that this one was trained from, with any adapter merged into it."
        )
    return list(before)


def layer_of(name: str) -> int:
    """Return the layer number in a parameter's name, -1 if there is none.

    Examples
    --------
    >>> layer_of("model.layers.12.mlp.up_proj.weight"), layer_of("model.norm.weight")
    (12, -1)
    """
    match = re.search(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.", name)
    return int(match.group(1)) if match else -1


def module_of(name: str) -> str:
    """Return the last part of a parameter's name that is not ``weight`` or ``bias``.

    Examples
    --------
    >>> module_of("model.layers.0.self_attn.q_proj.weight"), module_of("model.norm.weight")
    ('q_proj', 'norm')
    """
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 and parts[-1] in ("weight", "bias") else parts[-1]


def _open_module(module: nn.Module) -> OpenCheckpoint:
    label = f"module {type(module).__name__}"
    tensors = {}
    for full_name, parameter in module.named_parameters():  # a tied parameter is listed once, under its first name
        name = full_name.replace("_orig_mod.", "").removeprefix("module.")
        if parameter.is_meta:
            raise CheckpointNotFoundError(f"{label}: {name} is on the meta device and has no values; load the weights.")
        if not parameter.is_floating_point():
            raise MetricInputError(f"{label}: {name} has dtype {parameter.dtype}; dequantise the model first.")
        tensors[name] = StoredTensor(label, name, tuple(parameter.shape), parameter.dtype, held=parameter.detach())
    if not tensors:
        raise CheckpointNotFoundError(f"{label} has no parameters, expected a loaded model.")
    return OpenCheckpoint(label, _in_layer_order(tensors))


def _download(source: str) -> Path:
    looks_local = source.startswith((".", "/", "~")) or source.endswith(".safetensors") or not HUB_ID.fullmatch(source)
    if looks_local:
        raise CheckpointNotFoundError(f"{source}: no such file or folder (and not a hub id); check the path.")
    from huggingface_hub import snapshot_download

    repo_id, _, revision = source.partition("@")
    try:
        folder = snapshot_download(
            repo_id,
            revision=revision or None,
            allow_patterns=["*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json"],
            ignore_patterns=["*/*"],
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointNotFoundError(
            f"{source}: no such folder here, and the hub did not give it ({type(error).__name__}: {reason}). Check the "
            "name and revision; without a network, download it first or pass the path of a local folder."
        ) from error
    return Path(folder)


def _file_tensors(path: Path) -> dict[str, StoredTensor]:
    """Gather the tensors of a file, or of all the files of a folder."""
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(path) if path.is_dir() else [path]:
        for name, (shape, dtype) in tensor_forms(file).items():
            if name in tensors:
                raise CheckpointDamagedError(
                    f"{path}: tensor {name} is in both {Path(tensors[name].where).name} and {file.name}, expected one "
                    "checkpoint; pass the path of one file."
                )
            tensors[name] = StoredTensor(os.fspath(file), name, shape, dtype)
    if path.is_dir():
        check_index(path, {name: Path(tensor.where).name for name, tensor in tensors.items()})
    if not tensors:
        raise CheckpointDamagedError(f"{path}: holds no floating tensors, expected a model's weights; save it again.")
    return tensors


def _tied_once(tensors: dict[str, StoredTensor], declared: bool | None) -> dict[str, StoredTensor]:
    """Keep one of two equal embeddings, under the name of the input embedding."""
    if HEAD not in tensors or declared is False:
        return tensors
    head = tensors[HEAD]
    others = {name: tensor for name, tensor in tensors.items() if name != HEAD}
    if EMBEDDING not in tensors:
        return others | {EMBEDDING: head} if declared else tensors
    embedding = tensors[EMBEDDING]
    same_form = (head.shape, head.dtype) == (embedding.shape, embedding.dtype)
    return others if same_form and torch.equal(head.read_unchecked(), embedding.read_unchecked()) else tensors


def _in_layer_order(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    def key(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]

    return {name: tensors[name] for name in sorted(tensors, key=key)}
