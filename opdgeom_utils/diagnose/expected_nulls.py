"""What the shuffled and the random null of a matrix are expected to be, without making either.

A shuffle is one of many; its expected value answers the same question, and costs a few passes over the entries in place
of two more decompositions. What rests on the mask is counted: every weight meets every move of the update. Drift and
rotation are those of independent normal moves of the update's own size, in which a shuffle and a random update agree.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opdgeom_utils.linalg.factors import Factors
from opdgeom_utils.metrics.noise_rotation import are_drawn, expected_angles
from opdgeom_utils.metrics.noise_sparsity import codes_of, hidden_share, inside, unchanged_from
from opdgeom_utils.metrics.noise_spectrum import expected_shift, is_crowded

SAMPLED = 2**18  # moves of the update, and weights that are not in bf16: shares are then known to 0.001
COUNTED = 2**22  # entries that are counted in one go
#: Mean of the largest eigenvalue of real Wishart matrices, in the scale of its spread (Tracy and Widom).
EDGE_MEAN = -1.2065
DRAWN = "drift or rotation of the nulls was drawn: the update is large against the gaps between singular values"


def expected_nulls(
    w_ref: Float[Tensor, "out in"],
    w_new: Float[Tensor, "out in"],
    factors: Factors,
    masks: Mapping[str, Bool[Tensor, "out in"]],
    *,
    update_norm: float,
    eta: float | int,
    k: int,
) -> dict[str, Any]:
    """Return expected values of both nulls as columns of a table, and in ``null_note`` where they were drawn.

    ``factors``: of ``w_ref``.
    ``masks``: reference masks by the metric that counts what falls on them.
    ``update_norm``: Frobenius norm of the update.
    ``eta``, ``k``: as in :func:`~opdgeom_utils.diagnose.diagnose_pair`.
    """
    rms = update_norm / math.sqrt(w_ref.numel())
    values, counts = _weights(w_ref, masks)
    moves = _moves(w_ref, w_new)
    low, high, _, _ = unchanged_from(codes_of(np.abs(values)), eta)
    hidden = {"shuffled": hidden_share(values, moves, eta), "random": inside(low, high, np.abs(values), rms, "normal")}
    angles = expected_angles(factors.s, tuple(w_ref.shape), rms=rms, k=k)
    turned: dict[str, float] = {
        "left_angle_max_deg": angles.left_max_deg,
        "left_angle_mean_deg": angles.left_deg,
        "right_angle_max_deg": angles.right_max_deg,
        "right_angle_mean_deg": angles.right_deg,
        "normalized_spectral_shift": expected_shift(factors.s, longer=max(w_ref.shape), rms=rms),
    }
    largest = {"shuffled": max(-float(moves[0]), float(moves[-1])), "random": 0.0}
    row: dict[str, Any] = {"null_note": DRAWN if is_crowded(factors.s.cpu(), rms) or are_drawn(angles) else ""}
    for null, unseen in hidden.items():
        found = turned | _of_masks(unseen, counts) | {"stable_rank": _stable_rank(w_ref.shape, rms, largest[null])}
        row |= {f"{metric}_{null}": value for metric, value in found.items()}
    return row


def _weights(w_ref: Tensor, masks: Mapping[str, Tensor]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Values of the weights, and how many entries each stands for: of all, and of each mask. Few values in bf16."""
    names = list(masks)
    if w_ref.dtype != torch.bfloat16:
        chosen = _chosen(w_ref.numel()).to(w_ref.device)
        values = w_ref.detach().flatten()[chosen].double().cpu()
        order = values.argsort()
        inside_masks = {name: masks[name].flatten()[chosen].cpu()[order].double().numpy() for name in names}
        return values[order].numpy(), {"": np.ones(len(order)), **inside_masks}
    total = np.zeros(2 ** (16 + len(names)), dtype=np.int64)
    for codes, flags in _in_pieces(w_ref, [masks[name] for name in names]):
        keys = codes.astype(np.uint32)
        for flag in flags:
            keys = (keys << 1) | flag
        total += np.bincount(keys, minlength=len(total))
    table = total.reshape(2**16, *(2,) * len(names))
    every = table.sum(axis=tuple(range(1, table.ndim)))
    used = np.flatnonzero(every)
    values = torch.from_numpy(used.astype(np.uint16).view(np.int16)).view(torch.bfloat16).double().numpy()
    counts = {"": every[used]}
    for place, name in enumerate(names):
        others = tuple(axis for axis in range(1, table.ndim) if axis != place + 1)
        counts[name] = table.sum(axis=others)[used, 1]
    return values, {name: count.astype(float) for name, count in counts.items()}


def _in_pieces(w_ref: Tensor, masks: list[Tensor]) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Yield bits of the weights, and the masks beside them, a piece at a time."""
    parts = [w_ref.detach().contiguous().view(torch.int16), *masks]
    for pieces in zip(*(part.flatten().split(COUNTED) for part in parts), strict=True):
        codes, *flags = (piece.cpu().numpy() for piece in pieces)
        yield codes.view(np.uint16), flags


def _moves(w_ref: Tensor, w_new: Tensor) -> np.ndarray:
    """Entries of the update, ascending: all of them, or a sample."""
    chosen = _chosen(w_ref.numel()).to(w_ref.device)
    before, after = (w.detach().flatten()[chosen].cpu().double() for w in (w_ref, w_new))
    return np.sort((after - before).numpy())


def _chosen(n: int) -> Tensor:
    """Places of all entries, or of a sample with replacement; always the same."""
    return torch.arange(n) if n <= SAMPLED else torch.from_numpy(np.random.default_rng(0).integers(n, size=SAMPLED))


def _of_masks(hidden: np.ndarray, counts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Sparsity, and the share of what shows that falls on each mask."""
    shown = float(counts[""] @ (1 - hidden))
    of_masks = {name: float(count @ (1 - hidden)) for name, count in counts.items() if name}
    overlaps = {name: part / shown if shown > 0 else math.nan for name, part in of_masks.items()}
    return {"principal_overlap": math.nan} | overlaps | {"update_sparsity": 1 - shown / float(counts[""].sum())}


def _stable_rank(shape: torch.Size, rms: float, largest: float) -> float:
    """Stable rank expected of independent entries: the edge of their spectrum, or beyond it their largest entry.

    An update most of whose energy is in few entries has a lower one.
    """
    if rms == 0:
        return math.nan
    long, short = float(max(shape)), float(min(shape))
    width = (math.sqrt(long) + math.sqrt(short)) * (long**-0.5 + short**-0.5) ** (1 / 3)
    squared = (math.sqrt(long) + math.sqrt(short)) ** 2 + EDGE_MEAN * width if short > 1 else long
    spike = (largest / rms) ** 2
    rest = max(1 - spike / (long * short), 1e-12)  # mean square of the other entries
    if spike / rest > math.sqrt(long * short):
        squared = max(squared, (spike + rest * long) * (spike + rest * short) / spike)
    return max(1.0, long * short / squared)
