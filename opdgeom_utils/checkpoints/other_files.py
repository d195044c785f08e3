"""Files that hold no weights to read, or not as a trainer left them: what each is, and what to do instead."""

import re
from collections.abc import Iterable
from pathlib import Path

_WHOLE = "pass the model that it was made from, as save_pretrained writes it"
_ZERO = (
    "a partition of DeepSpeed's ZeRO, of which each rank wrote its own; put them together with the script that lies "
    "beside them, `python zero_to_fp32.py . whole --safe_serialization`, and pass that folder, whole"
)
_STATE = "the state of a training, no weights; pass the folder of the model's weights"
_OLD = "of which transformers 5 reads no more; save_pretrained it with transformers 4 ({0}) and pass that folder"
_TENSORFLOW = f"a TensorFlow model, {_OLD.format('from_tf=True')}"

#: By name: a pattern, what such a file or folder is and what to do. The first that fits says it.
NAMED = (
    (r"(bf16_)?zero_pp_rank_\d+_.*\.pt|mp_rank_\d+_model_states\.pt|.*_optim_states\.pt", _ZERO),
    (r"global_step\d+|zero_to_fp32\.py", _ZERO),
    (
        r"model_optim_rng\.pt|distrib_optim\.pt|iter_\d{7}",
        "a partition of Megatron-LM; convert it to transformers' form (Megatron Bridge does) and pass that folder",
    ),
    (r"model-rank-\d+-part-\d+\.safetensors", f"a slice of vLLM's sharded state, one of each rank; {_WHOLE}"),
    (
        r"consolidated\.\d+\.pth",
        "a checkpoint in Meta's own form, or a rank's slice of one, with queries and keys in another order of rows; "
        "pass the same model in transformers' form, or make that (convert_llama_weights_to_hf.py of transformers 4)",
    ),
    (r".*\.npz", f"a file of NumPy's arrays, as older MLX writes them; {_WHOLE}"),
    (r".*\.(gguf|ggml)", f"a GGUF file of llama.cpp, mostly quantised; {_WHOLE}"),
    (r".*\.onnx(_data)?", f"a graph exported to ONNX, without the names of weights; {_WHOLE}"),
    (r"tf_model.*\.h5|.*\.ckpt\.(index|meta|data-.*)|saved_model\.pb", _TENSORFLOW),
    (r"flax_model.*\.msgpack", f"a Flax model, {_OLD.format('from_flax=True')}"),
    (
        r".*\.distcp|\.metadata",
        "a part of a folder of torch.distributed.checkpoint; pass the folder, with its .metadata (which is written "
        "last: where there is none, the save did not finish)",
    ),
    (r".*\.(nemo|tar|gz|tgz|zip|zst|7z)", "an archive; unpack it and pass the folder with the weights in it"),
    (r".*\.(pkl|pickle|joblib)", "a pickle of any kind; save the state dict alone, best as safetensors"),
    (r"training_args\.bin|(optimizer|scheduler|scaler|training_state)\.(pt|bin)|trainer_state\.json", _STATE),
    (r"rng_state.*\.pth|random_states_\d+\.pkl|(optim|extra_state)_world_size_\d+_rank_\d+\.pt|optimizer_\d+", _STATE),
)
#: By content: the first bytes, in lower case, what such a file is and what to do.
BEGINNING = (
    (
        b"version https://git-lfs",
        "a pointer of git-lfs, not the file itself; run `git lfs install && git lfs pull` in its repository, or "
        "download it with `hf download`",
    ),
    (b"gguf", f"a GGUF file of llama.cpp, mostly quantised; {_WHOLE}"),
    (b"<!doctype html", "a web page, probably the hub's instead of the file; download it with `hf download`"),
    (b"<html", "a web page, probably the hub's instead of the file; download it with `hf download`"),
    (b"\x89hdf", _TENSORFLOW),
)
#: Of quantised weights: how a tensor's name ends, and whose it is.
QUANTISED = (
    (r"\.(absmax|quant_map|nested_absmax|quant_state\.bitsandbytes__\w+)", "4 bits of bitsandbytes"),
    (r"\.(SCB|weight_format)", "8 bits of bitsandbytes"),
    (r"\.g_idx", "GPTQ"),
    (r"\.(qweight|qzeros)", "AWQ or GPTQ"),
    (r"\.weight_(packed|shape|zero_point)", "compressed-tensors"),
    (r"_(blocks|scales)", "MXFP4"),
    (r"\.weight_scale_2", "NVFP4"),
    (r"\.(scales|biases)", "MLX"),
)


def other_kind(path: Path) -> str:
    """Say what a file or folder is, if it is known not to hold weights to read, and what to do; else return nothing.

    >>> other_kind(Path("model.Q4_K_M.gguf"))[:27], other_kind(Path("model.safetensors"))
    ('a GGUF file of llama.cpp, m', '')
    """
    named = next((words for pattern, words in NAMED if re.fullmatch(pattern, path.name)), "")
    if named or not path.is_file():
        return named
    try:
        with path.open("rb") as stream:
            beginning = stream.read(64).lstrip().lower()
    except OSError:
        return ""
    return next((words for start, words in BEGINNING if beginning.startswith(start)), "")


def kind_inside(folder: Path) -> str:
    """Say what a folder without weights holds instead, if it is known: the kind that :data:`NAMED` has first."""
    names = sorted(path.name for path in folder.iterdir())
    return next((words for pattern, words in NAMED if any(re.fullmatch(pattern, name) for name in names)), "")


def dequantised(names: Iterable[str]) -> str:
    """Say how quantised weights were stored, from the names beside them, and how to get plain ones.

    >>> dequantised(["a.qweight", "a.qzeros"])[:37]
    '(as AWQ or GPTQ leaves it); pass the '
    """
    names = list(names)
    found = (whose for pattern, whose in QUANTISED if any(re.search(f"{pattern}$", name) for name in names))
    whose = next(found, "")
    said = f"(as {whose} leaves it); " if whose else "; "
    return (
        f"{said}pass the model before it was quantised, or load it with transformers, call model.dequantize() where "
        "its method has that, and save_pretrained it."
    )
