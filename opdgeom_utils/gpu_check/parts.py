"""One part of the check at a time: timed, its memory taken, its error kept, and the rest goes on."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Place:
    """Where the check runs, and whether on the small shapes that test its own code."""

    device: torch.device
    tiny: bool


@dataclass
class Found:
    """What a part found: numbers, and what is wrong, in words; nothing wrong is a pass."""

    result: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


Part = Callable[[Place], Found]


def run_part(part: Part, place: Place) -> dict[str, Any]:
    """Run a part and return its entry: ``passed, seconds, peak_bytes, result, faults``; an error is a fault."""
    settle(place.device)
    began = time.perf_counter()
    try:
        found = part(place)
    except Exception as error:  # whatever it is, the other parts are still worth knowing
        found = Found(faults=[f"{type(error).__name__}: {error}"])
    entry = {
        "passed": not found.faults,
        "seconds": seconds_since(began, place.device),
        "peak_bytes": peak_bytes(place.device),
        "result": plain(found.result),
        "faults": found.faults,
    }
    settle(place.device)
    return entry


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: a number that is not finite becomes its name.

    >>> plain({"loss": float("nan"), "steps": (1, 2)})
    {'loss': 'nan', 'steps': [1, 2]}
    """
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def settle(device: torch.device) -> None:
    """Give back what is no longer used, and count the peak of memory from here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def seconds_since(began: float, device: torch.device) -> float:
    """Seconds since ``began``, once everything that the card was told is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return round(time.perf_counter() - began, 4)


def peak_bytes(device: torch.device) -> int | None:
    """Most bytes that tensors have held since :func:`settle`; None on a processor, which does not count them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def held_bytes(device: torch.device) -> int | None:
    """Bytes that tensors hold now; None on a processor."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None
