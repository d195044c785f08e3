"""LoRA adapters as PEFT saves them, merged over their base one matrix at a time.

A merged matrix is ``W + scaling * B A`` in float32 and is not rounded to the base's type, so that the update is of the
adapter's rank. ``scaling`` is alpha / r, or alpha / sqrt(r) under rsLoRA. Under DoRA, row i of the merged matrix has
the length that the adapter's magnitude vector says. Rows of an embedding that were trained on their own
(``trainable_token_indices``) stand in place of the base's.

What an adapter stores in full (added heads, embeddings of a resized vocabulary) is taken as it is, whatever the base
has there: the comparison says what does not fit, as for the full model of the same run.

Where the base ties its embeddings and the adapter changes one of them, the merged model has both: a trained model reads
the other one unchanged.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdgeom_utils.checkpoints.adapter_settings import CONFIG, adapter_settings, scaling_of, trained_tokens, untrained
from opdgeom_utils.checkpoints.fused_attention import CONV1D, IN_OUT
from opdgeom_utils.checkpoints.layouts import WRAPPERS, plain_names, text_config
from opdgeom_utils.checkpoints.parameter_names import (
    PADDING_AT_MOST,
    embedding_and_head,
    is_padding,
    is_vocabulary,
    tower_of,
)
from opdgeom_utils.checkpoints.pickled_weights import pickled_tensors
from opdgeom_utils.checkpoints.safetensors_weights import safetensors_of
from opdgeom_utils.checkpoints.stored_tensors import Cut, StoredTensor, part_of
from opdgeom_utils.checkpoints.tied_embeddings import changed_alike, declared_tied, with_own_head
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
    r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
    r"|token_adapter\.trainable_tokens_delta)(?:\.default)?(?P<bias>\.bias)?(?:\.weight)?"
)
TOKENS = "token_adapter.trainable_tokens_delta"
TOKENS_OVER = ".token_adapter.base_layer.weight"  # saved where the vocabulary was resized


@dataclass(frozen=True)
class Adapter:
    """An adapter's tensors and how they act, under the names of the model that was trained."""

    folder: Path
    file: Path
    settings: Mapping[str, Any]
    low_rank: Mapping[str, Mapping[str, StoredTensor]]  # of each module its factors, bias, magnitude or rows of tokens
    replaced: Mapping[str, StoredTensor]  # what stands in full in place of the base's

    @property
    def base(self) -> str | None:
        """The name or path of its base, with the revision if one is declared."""
        name, revision = self.settings.get("base_model_name_or_path"), self.settings.get("revision")
        if not isinstance(name, str) or not name:
            return None
        return f"{name}@{revision}" if isinstance(revision, str) and revision and not Path(name).exists() else name


def open_adapter(folder: Path, *, allow_pickle: bool = False) -> Adapter:
    """Open an adapter's folder without reading its weights.

    Raises CheckpointNotFoundError, CheckpointDamagedError or CheckpointUnsafeError for its files, MetricInputError for
    a kind that is not merged here.
    """
    settings = adapter_settings(folder)
    file, tensors = _weights(folder, allow_pickle=allow_pickle)
    low_rank: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    for raw, tensor in tensors.items():
        name = WRAPPERS.sub("", raw).removeprefix("module.").removeprefix("base_model.model.")
        found = LOW_RANK.fullmatch(name)
        if found and len(tensor.shape) > 2:
            raise MetricInputError(
                f"{file}: tensor {raw} has shape {tensor.shape}: factors of a convolution, or of all experts of a "
                "layer in one. Merge them with the tool that trained them and give the merged folder."
            )
        if found:
            low_rank.setdefault(found["module"], {})["bias" if found["bias"] else found["part"]] = tensor
        elif name.endswith(TOKENS_OVER):
            replaced[name.replace(TOKENS_OVER, ".weight")] = tensor
        elif any(word in name for word in ("lora_", "token_adapter", "modules_to_save", "trainable_tokens")):
            raise MetricInputError(f"{file}: tensor {raw} is of a kind that is not merged here; merge with PEFT.")
        else:
            replaced[name.replace(".base_layer.", ".")] = tensor
    if not tensors:
        raise CheckpointDamagedError(
            f"{file}: holds no tensors, expected the factors of LoRA; it was saved before they were gathered (as under "
            "DeepSpeed ZeRO-3 or FSDP). Save it again with its whole state dict, or use an earlier one."
        )
    return Adapter(folder, file, settings, low_rank, replaced)


def _weights(folder: Path, *, allow_pickle: bool) -> tuple[Path, dict[str, StoredTensor]]:
    """Return the file of an adapter's weights and what it holds; a pickle is looked for last."""
    file = next((contained(folder, name) for name in (WEIGHTS, PICKLED) if (folder / name).is_file()), None)
    if file is None:
        others = shortened(sorted(path.name for path in folder.iterdir()))
        raise CheckpointNotFoundError(
            f"{folder}: no {WEIGHTS}, found {others}; copy the adapter's weights too. From a hub {PICKLED}, which is a "
            f"pickle, is fetched only on request: {ways('allow_pickle')}."
        )
    if file.name == PICKLED:
        return file, pickled_tensors([file], allow_pickle=allow_pickle)[0]
    return file, safetensors_of([file], folder)[0]


def merged_over(
    base: Mapping[str, StoredTensor], adapter: Adapter, config: Mapping[str, Any]
) -> tuple[dict[str, StoredTensor], frozenset[str], tuple[str, ...]]:
    """Merge an adapter over its base, lazily: the tensors, the names of those that it changes, and notes.

    The base's are under canonical names, tied embeddings once, before anything fused is split. Of weights, at most the
    adapter's own embeddings are read. Raises CheckpointMismatchError or CheckpointDamagedError when the base has no
    matrix of the shape of a pair of factors; when half of a pair is missing or ranks differ.
    """
    modules, replaced = _plainly(adapter, base, config)
    tied, (embedding, head) = declared_tied(config), embedding_and_head(base)
    changed = {*replaced, *modules} | {_bias_of(name) for name, (_, parts) in modules.items() if "bias" in parts}
    own = {name: dict(modules[name][1]) if name in modules else {} for name in (embedding, head)}
    for name in own.keys() & replaced.keys():
        own[name]["whole"] = replaced[name]
    alone = embedding in changed and tied is True and TOKENS not in own[embedding]  # rows are trained for both
    merged = with_own_head(base, tied) if head in changed or alone else dict(base)
    unties = head in merged and head not in base
    merged |= replaced
    for name, (module, parts) in modules.items():
        if name not in merged:
            raise _other_base(adapter, name, None, merged)
        merged[name] = _merged(adapter, module, name, merged[name], parts, text_config(config).get("model_type"))
        if "bias" in parts:
            merged[_bias_of(name)] = _shifted(adapter, module, _bias_of(name), merged, parts)
    notes = (*_nothing_for(adapter, base, modules), *_added(adapter, merged, modules))
    if not unties:
        return merged, frozenset(changed), notes
    modules_alike = {_scaling(adapter, modules[name][0], parts) for name, parts in own.items() if name in modules}
    if changed_alike(own[embedding], own[head]) and len(modules_alike) < 2:
        return {name: tensor for name, tensor in merged.items() if name != head}, frozenset(changed - {head}), notes
    untied = " and ".join(sorted(changed & {embedding, head}))
    note = f"{embedding} and {head} are one tensor in the base, untied by the adapter in {untied}"
    return merged, frozenset(changed), (*notes, note)


def _plainly(
    adapter: Adapter, base: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> tuple[dict[str, tuple[str, Mapping[str, StoredTensor]]], dict[str, StoredTensor]]:
    """Find the base's names for an adapter's modules, each with its own name and parts, and for what it replaces."""
    names = plain_names([*(f"{module}.weight" for module in adapter.low_rank), *adapter.replaced], config)
    for raw, name in names.items():
        longer = [f"{before}.{name}" for before in ("model", "transformer", "gpt_neox", "backbone")]
        names[raw] = next((other for other in (name, *longer) if other in base), name)
    if len(set(names.values())) < len({*names}):
        raise CheckpointDamagedError(f"{adapter.file}: two of its modules have one name; save it again with PEFT.")
    modules = {names[f"{module}.weight"]: (module, parts) for module, parts in adapter.low_rank.items()}
    return modules, {names[raw]: tensor for raw, tensor in adapter.replaced.items()}


def _nothing_for(adapter: Adapter, base: Mapping[str, StoredTensor], modules: Mapping[str, Any]) -> tuple[str, ...]:
    """Say which of the modules that the settings target are in the base and not in the adapter."""
    there = [n.removesuffix(".weight") for n in base if n.endswith(".weight") and len(base[n].shape) == 2]
    trained = [name.removesuffix(".weight") for name in modules]
    missing = untrained(adapter.settings, trained, [name for name in there if not tower_of(name)])
    named = f"{shortened(missing)}, which its target_modules name"
    return (f"{adapter.file} has nothing for {named}: they count as unchanged",) if missing else ()


def _added(adapter: Adapter, base: Mapping[str, StoredTensor], modules: Mapping[str, Any]) -> Iterator[str]:
    """Say which trained rows are of tokens that the base has not, as a full model's longer vocabulary is said."""
    for name, (module, parts) in modules.items():
        n_rows = base[name].shape[0] if name in base and is_vocabulary(name) else math.inf
        factor = parts.get("lora_embedding_A", parts.get("lora_B"))
        of_factors = range(max(factor.shape, default=0) if factor is not None else 0)
        added = [row for row in of_factors or trained_tokens(adapter.settings, module) or () if row >= n_rows]
        if added:
            yield f"{adapter.file} trained {len(added)} rows of {name} that its base of {n_rows} has not: left out"


def _merged(
    adapter: Adapter, module: str, name: str, base: StoredTensor, parts: Mapping[str, StoredTensor], kind: Any
) -> StoredTensor:
    """Merge what an adapter has for one module: rows of tokens, or factors."""
    if TOKENS in parts:
        return _with_rows(adapter, module, name, base, parts)
    of_embedding = "lora_embedding_A" in parts
    a, b = (parts.get(f"lora_{'embedding_' if of_embedding else ''}{letter}") for letter in "AB")
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise CheckpointDamagedError(
            f"{adapter.file}: module {module} has factors {sorted(parts)} of shapes "
            f"{[part.shape for part in parts.values()]}, expected A (r, in) and B (out, r); copy the adapter again, or "
            "save it again: a shape (0,) is what DeepSpeed ZeRO-3 leaves where nothing was gathered."
        )
    magnitude = parts.get("lora_magnitude_vector")
    if bool(adapter.settings.get("use_dora")) != (magnitude is not None) or (of_embedding and magnitude is not None):
        raise MetricInputError(
            f"{adapter.file}: module {module} has parts {sorted(parts)} and use_dora is "
            f"{adapter.settings.get('use_dora')}, expected a magnitude for each linear module under DoRA, and none "
            "elsewhere; merge it with PEFT."
        )
    # PEFT keeps one fan_in_fan_out for all modules and overrules it by each layer's type
    in_out = CONV1D.fullmatch(name) if kind in IN_OUT else adapter.settings.get("fan_in_fan_out")
    transposed = of_embedding or bool(in_out)
    shape = (a.shape[1], b.shape[0]) if transposed else (b.shape[0], a.shape[1])
    if is_padding(name, base.shape, shape):  # the vocabulary of the training had a few rows more, or fewer
        n_rows = min(shape[0], base.shape[0])
        shape, base = (n_rows, shape[1]), part_of(base, slice(0, n_rows))
        magnitude = magnitude and part_of(magnitude, slice(0, n_rows))
    if shape != base.shape or (magnitude is not None and magnitude.shape != (shape[int(transposed)],)):
        raise _other_base(adapter, name, shape, {name: base})
    add = partial(_with_product, scaling=_scaling(adapter, module, parts), transposed=transposed, magnitude=magnitude)
    return _over(adapter, name, add, base, a, b)


def _with_product(
    weight: Tensor, a: Tensor, b: Tensor, *, scaling: float, transposed: bool, magnitude: StoredTensor | None
) -> Tensor:
    """Add a low-rank product, turned for embeddings and layers stored as (in, out)."""
    product = b @ a
    merged = weight + scaling * (product.T if transposed else product)[: len(weight)]
    if magnitude is None:
        return merged
    along = 0 if transposed else 1
    return merged * (magnitude.read_unchecked().to(merged.dtype) / merged.norm(dim=along)).unsqueeze(along)


def _with_rows(
    adapter: Adapter, module: str, name: str, base: StoredTensor, parts: Mapping[str, StoredTensor]
) -> StoredTensor:
    rows, values = trained_tokens(adapter.settings, module), parts[TOKENS]
    most = base.shape[0] + PADDING_AT_MOST  # tokens that the trainer added come after those of the base
    if rows is None or values.shape != (len(rows), *base.shape[1:]) or max(rows, default=0) >= most:
        raise CheckpointDamagedError(
            f"{adapter.file}: module {module} has trained rows of shape {values.shape} for the tokens {rows} of "
            f"{base.shape[0]}; the configuration is not of these weights, copy both again."
        )
    if len(parts) > 1:
        raise MetricInputError(f"{adapter.file}: module {module} has trained rows and factors; merge it with PEFT.")
    return _over(adapter, name, partial(_put_in, rows=rows), base, values)


def _put_in(weight: Tensor, values: Tensor, *, rows: list[int]) -> Tensor:
    there = [place for place, row in enumerate(rows) if row < len(weight)]
    return weight.index_copy(0, torch.tensor([rows[place] for place in there], device=weight.device), values[there])


def _shifted(
    adapter: Adapter, module: str, name: str, merged: Mapping[str, StoredTensor], parts: Mapping[str, StoredTensor]
) -> StoredTensor:
    base, bias = merged.get(name), parts["bias"]
    if base is None or base.shape != bias.shape:
        raise _other_base(adapter, name, bias.shape, merged)
    return _over(adapter, base.key, partial(torch.add, alpha=_scaling(adapter, module, parts)), base, bias)


def _scaling(adapter: Adapter, module: str, parts: Mapping[str, StoredTensor]) -> float:
    rank = next((tensor.shape[0] for part, tensor in parts.items() if part in ("lora_A", "lora_embedding_A")), 0)
    return scaling_of(adapter.settings, module, rank, file=adapter.folder / CONFIG) if rank else 0.0


def _bias_of(name: str) -> str:
    return f"{name.removesuffix('.weight')}.bias"


def _other_base(
    adapter: Adapter, name: str, shape: tuple[int, ...] | None, base: Mapping[str, StoredTensor]
) -> CheckpointMismatchError:
    there = name in base
    found = f"{base[name].shape} in {base[name].where}" if there else f"not in the base ({shortened(sorted(base))})"
    advice = "was trained over another base; pass that one" if there else "needs the base that it was trained over"
    return CheckpointMismatchError(
        f"{adapter.file}: changes tensor {name}{f' of shape {shape}' if shape else ''}, which is {found}. The adapter "
        f"{advice} (it names {adapter.base or 'none'})."
    )


def _over(adapter: Adapter, key: str, merge: Callable[..., Tensor], *tensors: StoredTensor) -> StoredTensor:
    """Describe what ``merge`` makes of a tensor of the base and of the adapter's, all in one type."""
    base, dtype = tensors[0], torch.float64 if torch.float64 in {t.dtype for t in tensors} else torch.float32
    load = partial(_merge, merge, tensors, dtype)
    return StoredTensor(f"{adapter.file} over {base.where}", key, base.shape, dtype, load=load)


def _merge(
    merge: Callable[..., Tensor], tensors: Sequence[StoredTensor], dtype: torch.dtype, cuts: tuple[Cut, ...]
) -> Tensor:
    return merge(*(tensor.read_unchecked().to(dtype) for tensor in tensors))[cuts]
