"""Open a checkpoint as named tensors that are read only when asked for.

Understood: safetensors (one file, or shards with or without an index); a hub id (``name`` or ``name@revision``); a LoRA
adapter, merged over its base; a folder of ``torch.distributed.checkpoint``; one file of DTensor shards for each rank;
``pytorch_model.bin`` and ``adapter_model.bin`` when asked for; and a loaded ``torch.nn.Module``. Names are made plain
by stated rules (:mod:`opdgeom_utils.checkpoints.layouts`), fused matrices are split, tied embeddings appear once,
under the embedding's name, unless an adapter unties them. Nothing is guessed and no code is run: what is missing,
damaged, unsafe or of another architecture stops with an error that names the file and the tensor.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from opdgeom_utils.checkpoints.adapter_settings import CONFIG as ADAPTER
from opdgeom_utils.checkpoints.adapters import PICKLED, WEIGHTS, merged_over, open_adapter
from opdgeom_utils.checkpoints.comparison import ComparisonReport, compare_opened
from opdgeom_utils.checkpoints.distributed_folders import distributed_folder, distributed_tensors
from opdgeom_utils.checkpoints.hub_files import hub_folder
from opdgeom_utils.checkpoints.layouts import canonical_name, renamed, split, text_config
from opdgeom_utils.checkpoints.other_files import other_kind
from opdgeom_utils.checkpoints.parameter_names import is_buffer
from opdgeom_utils.checkpoints.pickled_weights import ENDINGS, pickled_files, pickled_tensors
from opdgeom_utils.checkpoints.rank_files import ACTOR, rank_folder, rank_tensors
from opdgeom_utils.checkpoints.safetensors_weights import safetensors_of
from opdgeom_utils.checkpoints.scaled_weights import unscaled
from opdgeom_utils.checkpoints.stored_tensors import OpenCheckpoint, StoredTensor, in_layer_order
from opdgeom_utils.checkpoints.tied_embeddings import declared_tied, tied_once
from opdgeom_utils.checkpoints.weight_files import check_index, contained, read_json, shortened, unread, weight_files
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, MetricInputError, ways

CheckpointSource = str | os.PathLike[str] | nn.Module | OpenCheckpoint

WEIGHTY = (".safetensors", *ENDINGS)
TEXTS = (".json", ".txt", ".md", ".yaml", ".yml", ".jinja", ".csv", ".log")
CONFIG_PLACES = ("config.json", "huggingface/config.json", "../config.json", "../huggingface/config.json")


def open_checkpoint(
    source: CheckpointSource,
    *,
    revision: str | None = None,
    base: str | os.PathLike[str] | nn.Module | None = None,
    allow_pickle: bool = False,
) -> OpenCheckpoint:
    """Open a checkpoint without reading its weights, except embeddings stored twice, to see whether they are tied.

    Parameters
    ----------
    source : str, path, torch.nn.Module or OpenCheckpoint
        A folder, a ``.safetensors`` file, a hub id (``name`` or ``name@revision``), a loaded module. What is open
        already is returned as it is, so the result can be passed wherever a checkpoint is asked for.
    revision : str, optional
        Branch, tag or commit of a hub id.
    base : str, path or torch.nn.Module, optional
        The model that an adapter stands on; by default the one that its configuration names.
    allow_pickle : bool
        Whether to read ``pytorch_model.bin`` and ``adapter_model.bin``, with ``weights_only=True``. Code in them is
        refused either way.

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
    CheckpointUnsafeError
        When a pickle names code, a path leaves the folder, or a pickled file was not asked for.
    CheckpointMismatchError
        When an adapter does not fit its base.
    MetricInputError
        When the weights are quantised in a way that is not understood, or the source is of another type.

    Examples
    --------
    >>> opened = open_checkpoint(nn.Linear(3, 2, bias=False))
    >>> [(name, tensor.shape) for name, tensor in opened.tensors.items()]
    [('weight', (2, 3))]
    """
    if isinstance(source, OpenCheckpoint):
        return source
    found = _gathered(source, revision=revision, base=base, allow_pickle=allow_pickle)
    plain = split(found.tensors, found.config)
    notes, ambiguous = found.notes + plain.notes, found.ambiguous + plain.ambiguous
    return replace(found, tensors=in_layer_order(plain.tensors), notes=notes, ambiguous=ambiguous)


def comparison_report(reference: CheckpointSource, tuned: CheckpointSource) -> ComparisonReport:
    """Say what two checkpoints have in common and what not; of values, only an adapter's base is compared.

    Parameters
    ----------
    reference, tuned : str, path, torch.nn.Module or OpenCheckpoint
        As for :func:`open_checkpoint`.

    Returns
    -------
    ComparisonReport
        Names compared, missing, extra, reshaped, ambiguous and padded.

    Raises
    ------
    CheckpointNotFoundError, CheckpointDamagedError, CheckpointUnsafeError
        When one cannot be opened.

    Examples
    --------
    >>> report = comparison_report(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    >>> report.compared, report.only_in_reference, report.complete
    (('weight',), ('bias',), False)
    """
    return compare_opened(open_checkpoint(reference), open_checkpoint(tuned))


def holds_weights(folder: Path) -> bool:
    """Whether a folder holds something to open, in any of the forms above; nothing is read."""
    named = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")
    if any(any(folder.glob(pattern)) for pattern in named):
        return True
    return bool(distributed_folder(folder) or rank_folder(folder) or pickled_files(folder))


def _gathered(
    source: Any, *, revision: str | None, base: Any, allow_pickle: bool, below: str | None = None
) -> OpenCheckpoint:
    """Find what a source stores, before anything fused is split; ``below`` names the adapter that it is the base of."""
    if isinstance(source, nn.Module):
        return _plainly_named(_module_tensors(source))
    if not isinstance(source, str | os.PathLike):
        raise MetricInputError(
            f"a checkpoint is a {type(source).__name__}, expected a folder, a .safetensors file, a hub id or a module."
        )
    path = Path(os.fspath(source)).expanduser().absolute()  # another folder may be the current one when it is read
    if not str(source).strip() or not path.exists():
        path = hub_folder(os.fspath(source), revision=revision, allow_pickle=allow_pickle)
    if path.is_dir() and _is_adapter(path, chosen=base is not None):
        if below is not None:
            raise MetricInputError(
                f"{below}: its base {source} is an adapter too; merge that one with PEFT and save it."
            )
        return _with_adapter(os.fspath(source), path, base=base, allow_pickle=allow_pickle)
    if base is not None:
        raise MetricInputError(f"{source}: a base is given, but there is no adapter in it; leave the base out.")
    tensors, left_out = _file_tensors(path, allow_pickle=allow_pickle)
    if not tensors:
        raise CheckpointDamagedError(f"{path}: holds no floating tensors, expected a model's weights; save it again.")
    config = _config(path if path.is_dir() else path.parent)
    apart = [f"{found.parent.name}/" for found in sorted(path.glob(f"*/{ADAPTER}"))]
    notes = [f"{source} has an adapter below it that is no part of its weights: {shortened(apart)}"] if apart else []
    return _plainly_named(OpenCheckpoint(os.fspath(source), tensors, config, tuple(left_out), notes=tuple(notes)))


def _file_tensors(path: Path, *, allow_pickle: bool) -> tuple[dict[str, StoredTensor], list[str]]:
    """Gather the tensors of a file, or of a folder in the first form that is there."""
    if path.is_file():
        if kind := other_kind(path):
            raise MetricInputError(f"{path}: {kind}.")
        if path.suffix in TEXTS:
            raise MetricInputError(
                f"{path}: a text, no weights; pass the folder that it lies in, or a file of weights."
            )
        if path.suffix in ENDINGS:
            return pickled_tensors([path], allow_pickle=allow_pickle)
        return safetensors_of([path], path)
    if any(path.glob("*.safetensors")) or any(path.glob("*.safetensors.index.json")):
        files = weight_files(path)
        tensors, left_out = safetensors_of(files, path)
        check_index(path, {tensor.key: Path(tensor.where).name for tensor in tensors.values()})
    elif (distributed := distributed_folder(path)) is not None:
        files = distributed.glob("*.distcp")
        tensors, left_out = distributed_tensors(distributed)
    elif (ranks := rank_folder(path)) is not None:
        files = ranks.glob("model_world_size_*")
        tensors, left_out = rank_tensors(ranks)
    elif files := pickled_files(path):
        tensors, left_out = pickled_tensors(files, allow_pickle=allow_pickle)
    else:
        return safetensors_of(weight_files(path), path)  # says what it found instead
    return tensors, [*left_out, *unread(path, files)]


def _plainly_named(found: OpenCheckpoint) -> OpenCheckpoint:
    """Apply the rules for names, fold scales into their weights, and keep one of two tied embeddings."""
    unmerged = next((name for name in found.tensors if ".lora_" in name), None)
    if unmerged is not None:
        raise MetricInputError(
            f"{found.label}: tensor {unmerged} belongs to an adapter that is not merged and whose scaling is not "
            "known here; merge it, or open the adapter's own folder, with its adapter_config.json, over the base."
        )
    flat = next((name for name in found.tensors if name.endswith("flat_param")), None)
    if flat is not None:
        raise MetricInputError(
            f"{found.label}: tensor {flat} holds many weights in a row, as FSDP flattens them; save the model with "
            "StateDictType.FULL_STATE_DICT or SHARDED_STATE_DICT (in verl: hf_model among checkpoint.save_contents)."
        )
    buffers = {name for name, tensor in found.tensors.items() if is_buffer(name, tensor.shape)}
    stored = {name: tensor for name, tensor in found.tensors.items() if name not in buffers}
    tensors, ambiguous = renamed(stored, found.config)
    weights, scales = unscaled(tensors, found.config)
    once = tied_once(weights, declared_tied(found.config))
    left_out = (*found.left_out, *sorted(buffers), *scales)
    return replace(found, tensors=once, ambiguous=found.ambiguous + ambiguous, left_out=left_out)


def _with_adapter(label: str, folder: Path, *, base: Any, allow_pickle: bool) -> OpenCheckpoint:
    """Merge an adapter over its base, lazily."""
    adapter = open_adapter(folder, allow_pickle=allow_pickle)
    below = base if base is not None else _beside(folder, adapter.base)
    if below is None:
        raise CheckpointNotFoundError(
            f"{folder}: its adapter_config.json names no base model; give it: {ways('base')}."
        )
    try:
        stands_on = _gathered(below, revision=None, base=None, allow_pickle=allow_pickle, below=label)
    except (CheckpointNotFoundError, MetricInputError) as error:  # not there, or quantised
        raise type(error)(
            f"{folder}: the base of this adapter could not be opened. {error} Or give another: {ways('base')}."
        ) from error
    tensors, changed, remarks = merged_over(stands_on.tensors, adapter, stands_on.config)
    names = frozenset(split({name: tensors[name] for name in changed}, stands_on.config).tensors)
    notes = [f"{label} is an adapter over {stands_on.label}; its configuration names {adapter.base or 'no base'}"]
    used = [folder / WEIGHTS] if isinstance(below, nn.Module) else [folder / WEIGHTS, Path(below).absolute()]
    used.append(folder / PICKLED)
    others = {*folder.glob("pytorch_model*"), *(path for path in folder.iterdir() if path.suffix in WEIGHTY)}
    beside = sorted(path.name for path in others if path not in used and not other_kind(path))
    if beside:
        notes.append(f"{label} is opened as an adapter, not opened: {shortened(beside)} lie beside it")
    return replace(stands_on, label=label, tensors=tensors, notes=(*stands_on.notes, *notes, *remarks), adapted=names)


def _is_adapter(folder: Path, *, chosen: bool) -> bool:
    """Say whether a folder holds an adapter; beside a model's own weights only a given base says which is meant."""
    own = sorted(path.name for path in folder.glob("model*.safetensors*"))
    parts = sorted(path.name for path in folder.glob("adapter_*") if path.name in (ADAPTER, WEIGHTS, PICKLED))
    if own and parts and not chosen:
        raise CheckpointDamagedError(
            f"{folder}: holds a model's weights, {shortened(own)}, and an adapter, {shortened(parts)}: transformers "
            "would load both. For the weights alone, pass the path of their file or move the adapter away; for the "
            f"adapter over them, say what it stands on: {ways('base')}."
        )
    return ADAPTER in parts


def _beside(folder: Path, base: str | None) -> str | None:
    """Take a relative path to a base from the adapter's own folder; leave every other name as it is written."""
    here = folder / base if base and not Path(base).is_absolute() else None
    return str(here.resolve()) if here is not None and here.exists() else base


def _module_tensors(module: nn.Module) -> OpenCheckpoint:
    label = f"module {type(module).__name__}"
    stored = module.state_dict(keep_vars=True)  # holds what a file of it would: buffers too, if they are kept
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in stored}
    left_out = [name for name, buffer in buffers.items() if not buffer.is_floating_point()]
    tensors = {}
    for name, parameter in (*module.named_parameters(), *buffers.items()):  # what is tied comes once
        if name in left_out:
            continue
        if parameter.is_meta:
            plain = canonical_name(name)
            raise CheckpointNotFoundError(
                f"{label}: {plain} is on the meta device and has no values; load the weights."
            )
        if not parameter.is_floating_point():
            raise MetricInputError(f"{label}: {name} has dtype {parameter.dtype}; dequantise the model first.")
        tensors[name] = StoredTensor(label, name, tuple(parameter.shape), parameter.dtype, held=parameter.detach())
    if not tensors:
        raise CheckpointNotFoundError(f"{label} has no parameters, expected a loaded model.")
    config = getattr(module, "config", None)
    described: Any = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
    return OpenCheckpoint(label, tensors, described, tuple(left_out))


def _config(folder: Path) -> Mapping[str, Any]:
    """Read the configuration beside the weights; in a folder inside a checkpoint it lies one up."""
    inner = folder.name == ACTOR or distributed_folder(folder) == folder
    places = [*CONFIG_PLACES[: 4 if inner else 2], f"{ACTOR}/huggingface/config.json"]
    place = next((place for place in places if (folder / place).is_file()), None)
    if place is None:
        return {}
    file = folder / place if place.startswith("..") else contained(folder, place)
    config = read_json(file, "configuration")
    for part in (config, text_config(config)):
        kind, classes = part.get("model_type"), part.get("architectures") or []
        if not isinstance(kind, str | None) or not all(isinstance(name, str) for name in classes):
            found = f"model_type {kind!r} and architectures {classes!r}"
            raise CheckpointDamagedError(f"{file}: has {found}, expected names; copy it again.")
    return config
