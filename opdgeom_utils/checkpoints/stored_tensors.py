"""Tensors that know their form and read their values only when asked, and the checkpoint that they make up."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdgeom_utils.checkpoints.other_files import dequantised
from opdgeom_utils.checkpoints.parameter_names import is_buffer
from opdgeom_utils.checkpoints.weight_files import BUFFER_DTYPES, FLOAT_DTYPES, opened, shortened
from opdgeom_utils.errors import CheckpointDamagedError, MetricInputError
from opdgeom_utils.linalg.bf16_bits import is_finite

Cut = int | slice


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint: its form now, its values when :meth:`read` is called.

    ``where``: the file, or the class of the module, for messages.
    ``key``: the name it has there.
    ``shape``: matrices are (out, in).
    ``dtype``: as stored; for a merged adapter the dtype of the sum.
    ``held``: the tensor itself when it came from a loaded module; None when it lies in a file.
    ``load``: from an index, ``()`` for all, to the values at it, where they are not simply the tensor ``key`` of the
    safetensors file ``where``. It can be pickled, so that another process can read.
    """

    where: str
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    held: Tensor | None = None
    load: Callable[[tuple[Cut, ...]], Tensor] | None = None

    def read(self) -> Tensor:
        """Return the values, on the CPU for files, checked to be finite.

        Raises CheckpointNotFoundError when the file has gone since it was opened. Raises CheckpointDamagedError when it
        can no longer be read, has changed, or holds NaN or infinite values.
        """
        values = self.read_unchecked()
        flaw = self.flaw_of(values)
        if flaw:
            raise CheckpointDamagedError(
                f"{flaw}, expected none; this checkpoint diverged or was damaged, use an earlier one."
            )
        return values

    def read_unchecked(self) -> Tensor:
        """Return the values, finite or not.

        Raises CheckpointNotFoundError or CheckpointDamagedError as for :meth:`read`, except for the values themselves.
        """
        if self.held is not None:
            return self.held.detach()
        values = self.load(()) if self.load is not None else read_safetensors(self.where, self.key)
        if tuple(values.shape) != self.shape:
            raise CheckpointDamagedError(
                f"{self.where}: tensor {self.key} has shape {tuple(values.shape)}, it was {self.shape} when the "
                "checkpoint was opened; do not write to a checkpoint while it is read."
            )
        return values

    def read_part(self, cuts: tuple[Cut, ...]) -> Tensor:
        """Return a part of the values, finite or not, without reading the rest where the form allows it.

        Raises CheckpointNotFoundError or CheckpointDamagedError as for :meth:`read_unchecked`.
        """
        if self.held is not None:
            return self.held.detach()[cuts]
        if self.load is not None:
            return self.load(cuts)
        with opened(Path(self.where)) as content:
            stored = content.get_slice(self.key)
            if tuple(stored.get_shape()) == self.shape:
                return stored[cuts]
        return self.read_unchecked()[cuts]  # says what has changed

    def flaw_of(self, values: Tensor) -> str:
        """Say what is wrong with the values, in words that name the file and the tensor; empty if nothing is.

        >>> tensor = StoredTensor("x.safetensors", "w", (2,), torch.float32)
        >>> tensor.flaw_of(torch.tensor([1.0, float("nan")]))
        'x.safetensors: tensor w has 1 NaN or infinite values of 2'
        >>> tensor.flaw_of(torch.tensor([1.0, 2.0]))
        ''
        """
        if not values.numel():
            return f"{self.where}: tensor {self.key} has no values"
        if is_finite(values):
            return ""
        n_bad = int((~torch.isfinite(values)).sum())
        return f"{self.where}: tensor {self.key} has {n_bad} NaN or infinite values of {values.numel()}"


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint's tensors by name, in layer order.

    ``label``: what was opened, for messages.
    ``tensors``: floating tensors only, under plain names; tied embeddings once.
    ``config``: the model's configuration, empty if there is none.
    ``left_out``: names of what is stored but is no weight: buffers, scales, the state of an optimiser.
    ``ambiguous``: plain names that two stored tensors claim, and which ones.
    ``notes``: what the reader of a comparison should know: what could not be split, which base an adapter stands on.
    ``adapted``: for an adapter over its base, the names that it changes; else None.
    """

    label: str
    tensors: Mapping[str, StoredTensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    adapted: frozenset[str] | None = None


def part_of(whole: StoredTensor, *cuts: Cut, transposed: bool = False, blocks: int = 1) -> StoredTensor:
    """Describe a part of a stored tensor, without reading it.

    ``*cuts``: the index of each leading dimension.
    ``transposed``: whether to turn the part, a matrix stored as (in, out), into (out, in).
    ``blocks``: cut each of so many equal blocks of rows alike, and put together what is left of them.

    >>> whole = StoredTensor("memory", "qkv", (6, 2), torch.float32, held=torch.arange(12.0).reshape(6, 2))
    >>> q = part_of(whole, slice(0, 2))
    >>> q.key, q.shape, q.read().tolist()
    ('qkv[0:2]', (2, 2), [[0.0, 1.0], [2.0, 3.0]])
    >>> q = part_of(whole, slice(0, 1), blocks=2)
    >>> q.key, q.shape, q.read().tolist()
    ('qkv[0:1 of each of 2 blocks]', (2, 2), [[0.0, 1.0], [6.0, 7.0]])
    """
    form = _cut(torch.empty(whole.shape, device="meta"), cuts, blocks).shape
    text = ", ".join(str(cut) if isinstance(cut, int) else _slice_text(cut) for cut in cuts)
    text += f" of each of {blocks} blocks" if blocks > 1 else ""
    shape = tuple(reversed(form)) if transposed else tuple(form)
    load = partial(_read_cut, whole, cuts, blocks, transposed)
    return StoredTensor(whole.where, f"{whole.key}[{text}]", shape, whole.dtype, load=load)


def _read_cut(
    whole: StoredTensor, cuts: tuple[Cut, ...], blocks: int, transposed: bool, inside: tuple[Cut, ...]
) -> Tensor:
    """Read a part of another tensor; the whole only where blocks of it are cut."""
    part = whole.read_part(cuts) if blocks == 1 else _cut(whole.read_unchecked(), cuts, blocks)
    return (part.T if transposed else part)[inside]


def _cut(values: Tensor, cuts: tuple[Cut, ...], blocks: int) -> Tensor:
    if blocks == 1:
        return values[cuts]
    return values.unflatten(0, (blocks, -1))[(slice(None), *cuts)].flatten(0, 1)


def in_layer_order(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Sort by name, with numbers in names compared as numbers."""

    def key(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]

    return {name: tensors[name] for name in sorted(tensors, key=key)}


def is_weight(where: str, name: str, dtype: torch.dtype, beside: Iterable[str] = ()) -> bool:
    """Say whether a tensor is a weight, from its type; position ids and masks are not.

    Raises MetricInputError when it is neither: whole numbers of other types are how weights are stored quantised. The
    names ``beside`` it tell by which method.

    >>> is_weight("x.bin", "w", torch.bfloat16), is_weight("x.bin", "position_ids", torch.int64)
    (True, False)
    """
    if dtype in FLOAT_DTYPES.values():
        return True
    if dtype in BUFFER_DTYPES.values() or is_buffer(name):
        return False
    raise MetricInputError(
        f"{where}: tensor {name} is stored as {str(dtype).removeprefix('torch.')}, expected one of "
        f"{', '.join(FLOAT_DTYPES)} {dequantised([name, *beside])}"
    )


def require_values(tensors: Mapping[str, StoredTensor], of: Path) -> None:
    """Refuse the placeholders that DeepSpeed's ZeRO-3 leaves in the place of weights.

    Raises CheckpointDamagedError when a tensor is of shape (0,).
    """
    empty = [name for name, tensor in tensors.items() if tensor.shape == (0,)]
    if empty:
        raise CheckpointDamagedError(
            f"{of}: {len(empty)} of {len(tensors)} tensors are empty, {shortened(empty)}: placeholders for what the "
            "ranks of DeepSpeed's ZeRO-3 hold. Run `python zero_to_fp32.py . whole --safe_serialization` in the "
            "checkpoint's folder and pass the folder that it writes, or train with "
            "stage3_gather_16bit_weights_on_model_save."
        )


def read_safetensors(file: str, key: str) -> Tensor:
    """Read one tensor from a memory-mapped safetensors file."""
    with opened(Path(file)) as content:
        return content.get_tensor(key)


def _slice_text(cut: slice) -> str:
    text = f"{'' if cut.start is None else cut.start}:{'' if cut.stop is None else cut.stop}"
    return text if cut.step in (None, 1) else f"{text}:{cut.step}"
