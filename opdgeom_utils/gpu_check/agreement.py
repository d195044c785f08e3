"""Do processor and card agree? Every metric of the same matrices; the toy student, forward and backward."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from opdgeom_utils.diagnose import diagnose_pair
from opdgeom_utils.gpu_check.parts import Found, Place
from opdgeom_utils.gpu_check.shapes import SHAPES, TINY, config_of, random_model
from opdgeom_utils.models import load_model, load_tokenizer
from opdgeom_utils.objectives import token_mean
from opdgeom_utils.precision import computing, prepare
from opdgeom_utils.rollouts import encode_pairs
from opdgeom_utils.scopes import MODULES
from opdgeom_utils.scoring import token_scores
from opdgeom_utils.tasks import Tasks

KINDS = list(MODULES)
DEGREES, SHARE, RELATIVE = 1e-4, 1e-4, 1e-6  # a share may differ where rounding swaps two entries at a mask's edge
TIMES = 4.0  # as far from float64 as the processor's rounding takes it


def moved_pair(layer: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return a model in ``dtype`` and a copy whose every weight has moved by 1e-4 times a standard normal."""
    torch.nn.Module.to(layer, dtype)
    other, generator = copy.deepcopy(layer), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(dtype), alpha=1e-4)
    return layer, other


def metrics_agree(place: Place) -> Found:
    """Diagnose one layer on the processor and on the device, in float32 and in bfloat16, and compare every number."""
    config, largest, faults = config_of(TINY if place.tiny else SHAPES["0.6B"], layers=1), {}, []
    config.vocab_size = TINY.rows  # the matrices of the layer are what is measured
    for dtype in (torch.float32, torch.bfloat16):
        before, after = moved_pair(random_model(config, "cpu", torch.float32), dtype)
        options = {"k": 16, "rank": 16, "modules": KINDS[:2] if place.tiny else [*KINDS[:2], "down_proj"]}
        here = diagnose_pair(before, after, device="cpu", **options)
        there = diagnose_pair(before, after, device=str(place.device), **options)
        for column, (difference, wrong) in compared(here, there).items():
            largest[column] = max(largest.get(column, 0.0), difference)
            faults += [f"{dtype}: {wrong}"] if wrong else []
    tolerances = {"degrees": DEGREES, "share": SHARE, "others, relative": RELATIVE}
    return Found({"largest_difference": largest, "tolerance": tolerances}, faults)


def compared(here: pd.DataFrame, there: pd.DataFrame) -> dict[str, tuple[float, str]]:
    """Return of each column of numbers the largest difference, relative where it is no angle and no share; a fault."""
    found: dict[str, tuple[float, str]] = {}
    for column in here.select_dtypes("number").columns:
        one, other = here[column].to_numpy(float), there[column].to_numpy(float)
        shares = "sparsity" in column or "overlap" in column
        allowed = DEGREES if "_deg" in column else SHARE if shares else RELATIVE
        difference = abs(one - other) / (1.0 if allowed != RELATIVE else abs(one).clip(1e-12))
        difference[np.isnan(difference)] = math.inf  # defined on one side only
        difference[(one == other) | (np.isnan(one) & np.isnan(other))] = 0.0
        worst = int(difference.argmax())
        size = float(difference[worst])
        wrong = f"{column} of {here['name'].iloc[worst]} is {one[worst]} on the processor, {other[worst]} on the device"
        found[column] = (size, "" if size <= allowed else wrong)
    return found


def student_agrees(place: Place) -> Found:
    """Compare the toy student's log-probabilities and gradient with float64, on processor and device."""
    exact = _pass("cpu", torch.float64, "float32")
    result, faults = {}, []
    for compute in ("float32", "bfloat16"):
        here, there = (_distance(_pass(where, torch.float32, compute), exact) for where in ("cpu", place.device))
        result[compute] = {"processor": here, "device": there}
        for name, size in there.items():
            if not size <= TIMES * here[name] + 1e-6:
                faults.append(f"{compute}: {name} is {size:.3g} from float64; the processor is {here[name]:.3g}")
    return Found({**result, "tolerance": f"{TIMES:.0f} times the processor's own distance from float64"}, faults)


def _pass(device: torch.device | str, dtype: torch.dtype, compute: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities of some demonstrations, and the gradient of their mean, both in float64 on the processor."""
    student, tokenizer, where = load_model("anchor"), load_tokenizer("anchor"), torch.device(device)
    torch.nn.Module.to(student, where, dtype)
    prepare(student, compute)
    problems = Tasks().draw({"sum": [2], "sort": [4], "gcd": [2]}, 12, "gpu-check")
    shown = encode_pairs(tokenizer, [p.prompt for p in problems], [p.completion for p in problems], where)
    with computing(compute, where):
        log_probs = token_scores(student, shown).log_probs
    token_mean(log_probs, shown.mask).backward()
    gradient = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    return log_probs.detach().double().cpu(), gradient.double().cpu()


def _distance(one: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Root mean square over tokens in nats, and of the gradient the norm of the difference over the norm."""
    away = (one[0] - exact[0]).square().mean().sqrt()
    return {"log_probs": float(away), "gradient": float((one[1] - exact[1]).norm() / exact[1].norm())}
