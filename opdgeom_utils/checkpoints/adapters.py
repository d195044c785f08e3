"""LoRA adapters as PEFT saves them, merged over their base one matrix at a time.

A merged matrix is ``W + scaling * B A`` in float32 and is not rounded to the base's type, so that the update is of the
adapter's rank. ``scaling`` is alpha / r, or alpha / sqrt(r) under rsLoRA. Under DoRA, row i of the merged matrix has
the length that the adapter's magnitude vector says.

Where the base ties its embeddings and the adapter changes one of them, the merged model has both: a trained model reads
the other one unchanged.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdgeom_utils.checkpoints.adapter_settings import CONFIG, adapter_settings, scaling_of
from opdgeom_utils.checkpoints.layouts import canonical_name
from opdgeom_utils.checkpoints.parameter_names import EMBEDDING, HEAD
from opdgeom_utils.checkpoints.pickled_weights import pickled_tensors
from opdgeom_utils.checkpoints.stored_tensors import StoredTensor, safetensors_of
from opdgeom_utils.checkpoints.tied_embeddings import changed_alike, with_own_head
from opdgeom_utils.checkpoints.weight_files import contained, shortened
from opdgeom_utils.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    MetricInputError,
    ways,
)

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
LOW_RANK = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.default)?(?P<bias>\.bias)?(?:\.weight)?"
)


@dataclass(frozen=True)
class Adapter:
    """An adapter's tensors and how they act.

    Attributes
    ----------
    folder, file : Path
        Where it lies, and its weights.
    settings : Mapping of str to Any
        Its ``adapter_config.json``.
    low_rank : Mapping of str to Mapping of str to StoredTensor
        For each module, its parts ``lora_A``, ``lora_B``, ``lora_magnitude_vector``, ``bias``.
    replaced : Mapping of str to StoredTensor
        Tensors that stand in full in place of the base's.
    """

    folder: Path
    file: Path
    settings: Mapping[str, Any]
    low_rank: Mapping[str, Mapping[str, StoredTensor]]
    replaced: Mapping[str, StoredTensor]

    @property
    def base(self) -> str | None:
        """The name or path of its base, with the revision if one is declared."""
        name, revision = self.settings.get("base_model_name_or_path"), self.settings.get("revision")
        if not isinstance(name, str) or not name:
            return None
        return f"{name}@{revision}" if isinstance(revision, str) and revision and not Path(name).exists() else name

    @property
    def changes(self) -> frozenset[str]:
        """Names of the tensors that it changes."""
        biased = (f"{module}.bias" for module, parts in self.low_rank.items() if "bias" in parts)
        return frozenset([*self.replaced, *(f"{module}.weight" for module in self.low_rank), *biased])


@dataclass(frozen=True)
class Merged:
    """Read a matrix of the base and add the low-rank update.

    Attributes
    ----------
    base, a, b : StoredTensor
        The base's matrix (out, in), and the factors (r, in) and (out, r).
    scaling : float
        Factor of the product.
    transposed : bool
        Whether the product is turned before it is added: embeddings, and layers stored as (in, out).
    magnitude : StoredTensor or None
        Length of each row, under DoRA.
    """

    base: StoredTensor
    a: StoredTensor
    b: StoredTensor
    scaling: float
    transposed: bool
    magnitude: StoredTensor | None

    def __call__(self) -> Tensor:
        """Return the merged matrix in the widest type of its parts, float32 at least."""
        parts = [tensor.read_unchecked() for tensor in (self.base, self.a, self.b)]
        dtype = _sum_type(*(part.dtype for part in parts))
        weight, a, b = (part.to(dtype) for part in parts)
        product = b @ a
        merged = weight + self.scaling * (product.T if self.transposed else product)
        if self.magnitude is None:
            return merged
        along = 0 if self.transposed else 1
        return merged * (self.magnitude.read_unchecked().to(dtype) / merged.norm(dim=along)).unsqueeze(along)


@dataclass(frozen=True)
class Shifted:
    """Read a bias of the base and add the adapter's."""

    base: StoredTensor
    bias: StoredTensor
    scaling: float

    def __call__(self) -> Tensor:
        """Return the sum, in float32 at least."""
        base, bias = self.base.read_unchecked(), self.bias.read_unchecked()
        dtype = _sum_type(base.dtype, bias.dtype)
        return base.to(dtype) + self.scaling * bias.to(dtype)


def open_adapter(folder: Path, *, allow_pickle: bool = False) -> Adapter:
    """Open an adapter's folder without reading its weights.

    Parameters
    ----------
    folder : Path
        Where ``adapter_config.json`` lies.
    allow_pickle : bool
        Whether to read ``adapter_model.bin`` where there is no ``adapter_model.safetensors``.

    Raises
    ------
    CheckpointNotFoundError, CheckpointDamagedError, CheckpointUnsafeError
        When its files are missing or cannot be read, lead out of the folder, or are a pickle that was not asked for.
    MetricInputError
        When it is of a kind that is not merged here.
    """
    settings = adapter_settings(folder)
    file, tensors = _weights(folder, allow_pickle=allow_pickle)
    low_rank: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    for raw, tensor in tensors.items():
        name = canonical_name(raw)
        found = LOW_RANK.fullmatch(name)
        if found:
            part = "bias" if found["bias"] else found["part"]
            low_rank.setdefault(found["module"], {})[part] = tensor
        elif any(word in name for word in ("lora_", "token_adapter", "modules_to_save", "trainable_tokens")):
            raise MetricInputError(f"{file}: tensor {raw} is of a kind that is not merged here; merge with PEFT.")
        else:
            replaced[name.replace(".base_layer.", ".")] = tensor
    return Adapter(folder, file, settings, low_rank, replaced)


def _weights(folder: Path, *, allow_pickle: bool) -> tuple[Path, dict[str, StoredTensor]]:
    """Return the file of an adapter's weights and what it holds; a pickle is looked for last."""
    found = next((contained(folder, name) for name in (WEIGHTS, PICKLED) if (folder / name).is_file()), None)
    if found is None:
        others = shortened(sorted(path.name for path in folder.iterdir()))
        raise CheckpointNotFoundError(
            f"{folder}: no {WEIGHTS}, found {others}; copy the adapter's weights too. From a hub {PICKLED}, which is a "
            f"pickle, is fetched only on request: {ways('allow_pickle')}."
        )
    if found.name == PICKLED:
        return found, pickled_tensors([found], allow_pickle=allow_pickle)[0]
    return found, safetensors_of([found], folder)[0]


def merged_over(
    base: Mapping[str, StoredTensor], adapter: Adapter, *, tied: bool | None = None
) -> tuple[dict[str, StoredTensor], frozenset[str], tuple[str, ...]]:
    """Merge an adapter over its base, lazily; of weights, at most the adapter's own embeddings are read.

    Parameters
    ----------
    base : Mapping of str to StoredTensor
        The base's tensors, under canonical names, tied embeddings once, before anything fused is split.
    adapter : Adapter
        What changes them.
    tied : bool, optional
        What the base's configuration says of its embeddings.

    Returns
    -------
    tuple of dict, frozenset and tuple
        The merged tensors, the names of those that the adapter changes, and notes for the comparison's reader.

    Raises
    ------
    CheckpointMismatchError
        When the adapter changes a tensor that the base does not have, or has in another shape.
    CheckpointDamagedError
        When half of a pair of factors is missing, or the ranks differ.
    """
    changed = adapter.changes
    unties = HEAD in changed or (EMBEDDING in changed and tied is True)
    before = with_own_head(base, tied) if unties else dict(base)
    merged = dict(before)
    for name, tensor in adapter.replaced.items():
        if name not in before or before[name].shape != tensor.shape:
            raise _other_base(adapter, name, tensor.shape, before)
        merged[name] = tensor
    for module, parts in adapter.low_rank.items():
        name = f"{module}.weight"
        if name not in before:
            raise _other_base(adapter, name, None, before)
        merged[name] = _merged(adapter, module, merged[name], parts)
        if "bias" in parts:
            merged[f"{module}.bias"] = _shifted(adapter, module, merged, parts)
    if HEAD not in before or HEAD in base:
        return merged, changed, ()
    if _keeps_tied(adapter):
        return {name: tensor for name, tensor in merged.items() if name != HEAD}, changed - {HEAD}, ()
    untied = " and ".join(sorted(changed & {EMBEDDING, HEAD}))
    return merged, changed, (f"{EMBEDDING} and {HEAD} are one tensor in the base, untied by the adapter in {untied}",)


def _keeps_tied(adapter: Adapter) -> bool:
    """Say whether an adapter changes both embeddings in the same way, as it does under ``ensure_weight_tying``."""
    modules = [name.removesuffix(".weight") for name in (EMBEDDING, HEAD)]
    embedding, head = (
        {**adapter.low_rank.get(module, {}), **{k: t for k, t in adapter.replaced.items() if k == f"{module}.weight"}}
        for module in modules
    )
    a = embedding.get("lora_embedding_A")
    scalings = {_scaling(adapter, module, a.shape[0]) for module in modules} if a is not None else set()
    return changed_alike(embedding, head) and len(scalings) < 2


def _merged(adapter: Adapter, module: str, base: StoredTensor, parts: Mapping[str, StoredTensor]) -> StoredTensor:
    of_embedding = "lora_embedding_A" in parts
    a, b = (
        (parts.get("lora_embedding_A"), parts.get("lora_embedding_B"))
        if of_embedding
        else (parts.get("lora_A"), parts.get("lora_B"))
    )
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise CheckpointDamagedError(
            f"{adapter.file}: module {module} has factors {sorted(parts)} of shapes "
            f"{[part.shape for part in parts.values()]}, expected A (r, in) and B (out, r); copy the adapter again."
        )
    if bool(adapter.settings.get("use_dora")) != ("lora_magnitude_vector" in parts) or (
        of_embedding and "lora_magnitude_vector" in parts
    ):
        raise MetricInputError(
            f"{adapter.file}: module {module} has parts {sorted(parts)} and use_dora is "
            f"{adapter.settings.get('use_dora')}, expected a magnitude for each linear module under DoRA, and none "
            "elsewhere; merge it with PEFT."
        )
    transposed = of_embedding or bool(adapter.settings.get("fan_in_fan_out"))
    shape = (a.shape[1], b.shape[0]) if transposed else (b.shape[0], a.shape[1])
    magnitude = parts.get("lora_magnitude_vector")
    if shape != base.shape or (magnitude is not None and magnitude.shape != (b.shape[0],)):
        raise _other_base(adapter, f"{module}.weight", shape, {f"{module}.weight": base})
    load = Merged(base, a, b, _scaling(adapter, module, a.shape[0]), transposed, magnitude)
    where, dtype = f"{adapter.file} over {base.where}", _sum_type(base.dtype, a.dtype, b.dtype)
    return StoredTensor(where, f"{module}.weight", shape, dtype, load=load)


def _shifted(
    adapter: Adapter, module: str, merged: Mapping[str, StoredTensor], parts: Mapping[str, StoredTensor]
) -> StoredTensor:
    name, bias = f"{module}.bias", parts["bias"]
    if name not in merged or merged[name].shape != bias.shape:
        raise _other_base(adapter, name, bias.shape, merged)
    base, rank = merged[name], parts["lora_B"].shape[-1]
    load = Shifted(base, bias, _scaling(adapter, module, rank))
    where = f"{adapter.file} over {base.where}"
    return StoredTensor(where, base.key, base.shape, _sum_type(base.dtype, bias.dtype), load=load)


def _scaling(adapter: Adapter, module: str, rank: int) -> float:
    return scaling_of(adapter.settings, module, rank, file=adapter.folder / CONFIG)


def _other_base(
    adapter: Adapter, name: str, shape: tuple[int, ...] | None, base: Mapping[str, StoredTensor]
) -> CheckpointMismatchError:
    found = (
        f"{base[name].shape} in {base[name].where}" if name in base else f"not in the base ({shortened(sorted(base))})"
    )
    return CheckpointMismatchError(
        f"{adapter.file}: changes tensor {name}{f' of shape {shape}' if shape else ''}, which is {found}. The adapter "
        f"was trained over another base; pass that one (it names {adapter.base or 'none'})."
    )


def _sum_type(*dtypes: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32
