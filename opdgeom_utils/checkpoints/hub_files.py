"""Checkpoints of the Hugging Face hub: from a name and a revision to a folder, downloaded or in the local cache."""

import re
from collections.abc import Sequence
from pathlib import Path

from opdgeom_utils.errors import CheckpointNotFoundError

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?")
SAFE = ["*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json"]
FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")
PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin"]


def hub_folder(
    source: str, *, revision: str | None = None, allow_pickle: bool = False, patterns: Sequence[str] = SAFE
) -> Path:
    """Return the folder of a hub id, after downloading what is not in the cache.

    ``source``: ``name`` or ``name@revision``.
    ``revision``: branch, tag or commit, when it is not in the name.
    ``allow_pickle``: whether to fetch ``pytorch_model.bin`` and ``adapter_model.bin`` too.
    ``patterns``: which files to fetch; weights and configurations unless told otherwise.
    Raises CheckpointNotFoundError when it looks like a path, or neither the cache nor the hub has it.
    """
    if not source.strip():
        raise CheckpointNotFoundError("a checkpoint's name is empty; give a folder, a file or a hub id.")
    looks_local = source.startswith((".", "/", "~")) or source.endswith(FILES)
    if looks_local or not HUB_ID.fullmatch(source):
        raise CheckpointNotFoundError(f"{source}: no such file or folder (and not a hub id); check the path.")
    from huggingface_hub import snapshot_download

    repo_id, _, named = source.partition("@")
    if named and revision and named != revision:
        raise CheckpointNotFoundError(f"{source}: the name says revision {named}, the option {revision}; give one.")
    try:
        folder = snapshot_download(
            repo_id,
            revision=named or revision or None,
            allow_patterns=[*patterns] + PICKLED * allow_pickle,
            ignore_patterns=["*/*"],
        )
    except Exception as error:  # the hub's client lets its network library's own errors through
        reason = next(iter(str(error).strip().split("\n")), "")
        raise CheckpointNotFoundError(
            f"{source}{f'@{revision}' if revision else ''}: no such folder here, and the hub did not give it "
            f"({type(error).__name__}: {reason}). Check the name and revision; without a network, download it first "
            f"(hf download {repo_id}) or pass the path of a local folder."
        ) from error
    return Path(folder)
