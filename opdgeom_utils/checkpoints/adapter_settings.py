"""What an adapter's ``adapter_config.json`` says: whether its kind is merged here, and by how much a product counts.

An adapter is merged over the base that it names, so its base must be that one. Some initialisations take the first
product of the factors out of the base before training (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ), and KaSA truncates it:
over the named base they would come out wrong without any sign. So what is known to be right is listed, and everything
else is refused by name. Whatever names modules means the names that the trainer saw, before any are made plain.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opdgeom_utils.checkpoints.weight_files import read_json, shortened
from opdgeom_utils.errors import CheckpointDamagedError, MetricInputError

CONFIG = "adapter_config.json"
STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # of training: these leave the base as it is
USED = (
    *("peft_type", "base_model_name_or_path", "revision", "init_lora_weights", "trainable_token_indices"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "modules_to_save"),
)
SEEN_IN_THE_WEIGHTS = ("layers_pattern", "bias", "lora_bias", "ensure_weight_tying")  # which tensors are there says it
WITHOUT_EFFECT = (  # on the weights, given how training started and that the variants are off
    *("task_type", "auto_mapping", "peft_version", "inference_mode", "runtime_config", "lora_dropout"),
    *("megatron_core", "qalora_group_size", "eva_config", "corda_config", "lora_ga_config", "loftq_config"),
)
NO_UPDATE = (  # kinds that add what is read beside the weights, and leave those as they are
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT"),
)
UNMERGEABLE = {  # kinds and settings under which the input decides what is added: there is no one update
    **dict.fromkeys(("XLORA", "POLY", "arrow_config"), "mixes its parts anew for each input"),
    "alora_invocation_tokens": "acts only after its invocation tokens",
}
FORMS: dict[tuple[str, ...], tuple[str, tuple[type, ...]]] = {  # of settings that are used; None is allowed for all
    ("use_rslora", "use_dora", "fan_in_fan_out"): ("true or false", (bool,)),
    ("rank_pattern", "alpha_pattern"): ("numbers by name", (dict,)),
    ("target_modules", "exclude_modules"): ("names or one pattern", (list, str)),
    ("modules_to_save",): ("a list of names", (list,)),
    ("layers_to_transform",): ("numbers of layers", (list, int)),
    ("trainable_token_indices",): ("numbers of tokens", (list, dict)),
}
KNOWN = frozenset(USED + SEEN_IN_THE_WEIGHTS + WITHOUT_EFFECT)


def adapter_settings(folder: Path) -> dict[str, Any]:
    """Read ``adapter_config.json`` and prove that the adapter is of a kind that is merged here.

    Raises CheckpointDamagedError when it cannot be read, or a setting is of another form than PEFT writes. Raises
    MetricInputError when it is not a LoRA adapter, a setting in it is not known, or its training started by changing
    the base.
    """
    file = folder / CONFIG
    settings = read_json(file, "adapter configuration")
    kind = settings.get("peft_type")
    if kind in NO_UPDATE:
        raise MetricInputError(
            f"{file}: an adapter of kind {kind} adds prompts or layers of its own and changes no weight: there is no "
            "update to measure; expected LoRA, or a whole model."
        )
    if kind is None and "fine_tune_type" in settings:
        raise MetricInputError(
            f"{file}: an adapter of MLX, expected one of PEFT; merge it with `mlx_lm.fuse --model MODEL --adapter-path "
            f"{folder} --save-path merged` (--dequantize if MODEL is quantised) and give the merged folder."
        )
    unknown = sorted(name for name, value in settings.items() if value and name not in KNOWN)
    if kind != "LORA" or unknown:
        with_these = f" with {shortened(unknown)}" if unknown else ""
        by_input = next((why for name, why in UNMERGEABLE.items() if name in (kind, *unknown)), "")
        remedy = (
            f"it {by_input}, so that no one matrix holds its update, and there is nothing to merge or to measure"
            if by_input
            else "merge it with PEFT (merge_and_unload) and give the merged folder"
        )
        raise MetricInputError(
            f"{file}: an adapter of kind {kind}{with_these}, expected plain LoRA, rsLoRA or DoRA; {remedy}."
        )
    _check_forms(settings, file)
    start = settings.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in STARTS:
        raise MetricInputError(
            f"{file}: init_lora_weights is {start!r}, expected one of {', '.join(map(str, STARTS))}. Training that "
            "starts otherwise first changes the base, and the adapter does not fit the one that it names. Save it as "
            "plain LoRA (save_pretrained with path_initial_model_for_weight_conversion), or merge the trained model "
            "with PEFT (merge_and_unload) and give the merged folder."
        )
    return settings


def scaling_of(settings: Mapping[str, Any], module: str, rank: int, *, file: Path) -> float:
    """Return the factor of ``B A`` for a module, after checking that the rank is the declared one.

    Raises CheckpointDamagedError when there is no rank or alpha, alpha is 0, or the factors have another rank.

    >>> settings = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 2}}
    >>> [scaling_of(settings, f"layers.0.{name}", 4, file=Path("x")) for name in ("q_proj", "k_proj")]
    [0.5, 2.0]
    """
    declared = _of_the_pattern(settings.get("rank_pattern"), module, settings.get("r"))
    alpha = _of_the_pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha"))
    if (
        not all(_is_any(value, (int, float)) for value in (declared, alpha))
        or declared != rank
        or not math.isfinite(alpha)
    ):
        raise CheckpointDamagedError(
            f"{file}: rank {declared!r} and alpha {alpha!r} for {module}, whose factors have rank {rank}; the "
            "configuration is not of these weights, copy both again."
        )
    if not alpha:
        raise CheckpointDamagedError(
            f"{file}: alpha is 0 for {module}, so that its factors count for nothing: a tool that did not know it "
            "wrote this (verl's merger does). Write the lora_alpha of the training into this file; verl keeps it in "
            "lora_train_meta.json or in the run's own settings."
        )
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def trained_tokens(settings: Mapping[str, Any], module: str) -> list[int] | None:
    """Return the rows of an embedding that were trained on their own, None where the settings name none.

    >>> trained_tokens({"trainable_token_indices": [3, 5]}, "model.embed_tokens")
    [3, 5]
    >>> trained_tokens({"trainable_token_indices": {"lm_head": [7]}}, "model.embed_tokens")
    """
    rows = settings.get("trainable_token_indices")
    if isinstance(rows, Mapping):  # a name in it may be of the whole module or of its end
        rows = next((found for name, found in rows.items() if module.endswith(name)), None)
    return rows if isinstance(rows, list) and all(type(row) is int and row >= 0 for row in rows) else None


def untrained(settings: Mapping[str, Any], trained: Sequence[str], modules: Sequence[str]) -> list[str]:
    r"""Name the modules of a base that the settings target and for which the adapter has nothing.

    A pattern is judged where it fits the names of all that was trained; others mean names that only the trainer saw.

    >>> untrained({"target_modules": ["q_proj", "k_proj"]}, ["0.q_proj"], ["0.q_proj", "0.k_proj", "0.v_proj"])
    ['0.k_proj']
    >>> untrained({"target_modules": r".*\.[qk]_proj", "exclude_modules": ["k_proj"]}, ["0.q_proj"], ["0.k_proj"])
    []
    """
    targets, layers = settings.get("target_modules"), settings.get("layers_to_transform")
    names_all = isinstance(targets, str) and all(_fits(name, targets) for name in trained)
    if not (isinstance(targets, list) or names_all):
        return []
    apart = (settings.get("exclude_modules"), settings.get("modules_to_save"))
    missing = [name for name in sorted(set(modules) - set(trained)) if _fits(name, targets)]
    if layers is not None:  # an empty list is one of no layers
        numbers = {str(layer) for layer in (layers if isinstance(layers, list) else [layers])}
        missing = [name for name in missing if numbers & set(name.split("."))]
    return [name for name in missing if not any(_fits(name, names) for names in apart)]


def _check_forms(settings: Mapping[str, Any], file: Path) -> None:
    """Prove that the settings that are used have the forms that PEFT writes: "false" in quotes would count as true."""
    for names, (words, types) in FORMS.items():
        for name in names:
            value = settings.get(name)
            if value is not None and not (_is_any(value, types) and _fits_inside(name, value)):
                raise CheckpointDamagedError(
                    f"{file}: {name} is {value!r}, expected {words}; PEFT writes no such settings: copy the file "
                    "again, or correct it."
                )


def _fits_inside(name: str, value: Any) -> bool:
    if name.endswith("_pattern"):
        return all(_is_pattern(key) and _is_any(number, (int, float)) for key, number in value.items())
    inside = int if name in ("layers_to_transform", "trainable_token_indices") else str
    return not isinstance(value, list) or all(_is_any(item, (inside,)) for item in value)


def _is_any(value: Any, types: tuple[type, ...]) -> bool:
    """Say whether a value is of some types; True is no number."""
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return True


def _fits(module: str, names: Any) -> bool:
    """Say whether a module is among those that a setting names: by the ends of their names, or by one pattern."""
    if isinstance(names, str):
        return _is_pattern(names) and re.fullmatch(names, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in names or ())


def _of_the_pattern(patterns: Mapping[str, Any] | None, module: str, common: Any) -> Any:
    """Return what the first pattern says that a module's name ends with, else the common value, as PEFT does."""
    found = (value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(found, common)
