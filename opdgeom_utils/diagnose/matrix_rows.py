"""Every metric and null of one matrix, at each of its checkpoints.

This is where the metrics are put together: what depends on the reference alone is computed once, then used for the real
update, the shuffled one and the random one in the same way.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opdgeom_utils.checkpoints import StoredTensor
from opdgeom_utils.diagnose.beside_noise import place_row, walk_row
from opdgeom_utils.diagnose.expected_nulls import expected_nulls
from opdgeom_utils.diagnose.nulls import identical_angles, null_generator, random_of_norm, shuffled_difference
from opdgeom_utils.diagnose.settings import Settings
from opdgeom_utils.linalg.bf16_bits import count_true
from opdgeom_utils.linalg.factors import Factors, factorize, factorize_tall, scaled_singular_values
from opdgeom_utils.linalg.gram import TallMatrix
from opdgeom_utils.metrics.masks import low_magnitude_mask, principal_mask, principal_mask_from
from opdgeom_utils.metrics.noise_walk import Walk
from opdgeom_utils.metrics.sparsity import bf16_realised, visible_changes
from opdgeom_utils.metrics.spectra import spectral_shift, stable_rank_from, stable_rank_of, tail_exponent
from opdgeom_utils.metrics.subspaces import PrincipalAngles, angles_between

CACHED_ENTRIES = 2**18  # a block of this size stays in the cache while it is compared and counted

ANGLES = ["left_angle_max_deg", "left_angle_mean_deg", "right_angle_max_deg", "right_angle_mean_deg"]
IDENTICAL = "identical to the reference"
NO_MASK = "no gap at the principal mask's rank: the mask is arbitrary, no overlap is given"
TOO_LARGE = "measured on the processor: the device's memory was too small"
BF16_MAX = torch.finfo(torch.bfloat16).max


@dataclass(frozen=True)
class ReferenceMatrix:
    """A matrix before training, with all that is computed from it alone.

    ``factors``: singular values, and the leading vectors for the angles and the principal mask.
    ``principal``, ``low_magnitude``: the two reference masks.
    ``mask_defined``: whether there is a gap at the principal mask's rank; without one the mask is one of many.
    """

    w: Float[Tensor, "out in"]
    factors: Factors
    principal: Bool[Tensor, "out in"]
    low_magnitude: Bool[Tensor, "out in"]
    mask_defined: bool = True

    @classmethod
    def of(cls, w: Float[Tensor, "out in"], settings: Settings) -> "ReferenceMatrix":
        """Compute the factors and masks of ``w``."""
        whole = settings.rank >= min(w.shape)
        factors = factorize(w, cuts=(settings.k,) if whole else (settings.k, settings.rank))
        if whole:
            principal = principal_mask(w, rank=settings.rank, alpha=settings.alpha)
        else:
            principal = principal_mask_from(factors, rank=settings.rank, alpha=settings.alpha)
        defined = whole or factors.has_gap(settings.rank)
        return cls(w, factors, principal, low_magnitude_mask(w, alpha=settings.alpha), defined)

    def masks(self) -> dict[str, Bool[Tensor, "out in"]]:
        """Return the reference masks by the metric that counts what falls on them; without those that are arbitrary."""
        masks = {"principal_overlap": self.principal, "low_magnitude_overlap": self.low_magnitude}
        return masks if self.mask_defined else {"low_magnitude_overlap": self.low_magnitude}


def measure_checkpoints(
    name: str, before: StoredTensor, after: Sequence[StoredTensor], *, settings: Settings
) -> list[dict[str, Any]]:
    """Measure one tensor at each checkpoint.

    ``name``: the tensor's name; with the seed, it fixes the nulls.
    One row per checkpoint, with the columns that apply; tensors that are not matrices have their sparsity only. Where
    either side holds NaN or infinite values, or no values, the row's ``note`` says so in place of every metric. Raises
    CheckpointDamagedError when a tensor cannot be read.
    """
    # "auto" is decided here, on the machine that does the work, which need not be the one that asked for it.
    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return _rows(name, before, after, dataclasses.replace(settings, device=device))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        rows = _rows(name, before, after, dataclasses.replace(settings, device="cpu"))
        return [row | {"note": "; ".join(filter(None, (str(row.get("note", "")), TOO_LARGE)))} for row in rows]


def _rows(name: str, before: StoredTensor, after: Sequence[StoredTensor], settings: Settings) -> list[dict[str, Any]]:
    w_ref = before.read_unchecked().to(settings.device)
    flaw = before.flaw_of(w_ref) or _too_large(before, w_ref)
    if flaw:
        return [_form(before, stored) | {"note": flaw} for stored in after]
    walks = settings.walks or (None,) * len(after)
    if w_ref.ndim != 2:
        return [
            _form(before, stored)
            | _noted(
                stored,
                w_ref,
                lambda w_new, walk=walk: (
                    _sparsity_row(w_ref, w_new, settings) | walk_row(w_ref, walk, eta=settings.eta)
                ),
            )
            for stored, walk in zip(after, walks, strict=True)
        ]
    reference = ReferenceMatrix.of(w_ref, settings)
    shared: dict[str, Any] = {"note": "" if reference.mask_defined else NO_MASK}
    shared |= {"reference_norm": reference.factors.norm(), "gap_at_k": reference.factors.relative_gap(settings.k)}
    if settings.exact:
        shared |= _named(_angle_summary(identical_angles(reference.factors, k=settings.k)), "identical")

    def measured(w_new: Tensor, walk: Walk | None) -> dict[str, Any]:
        row = measure_matrix(name, reference, w_new, settings) | shared
        beside = walk_row(w_ref, walk, eta=settings.eta, update_norm=row["update_norm"])
        return (
            row | beside | place_row(w_ref, reference.factors, reference.masks(), walk, eta=settings.eta, k=settings.k)
        )

    return [
        _form(before, stored) | _noted(stored, w_ref, lambda w_new, walk=walk: measured(w_new, walk))
        for stored, walk in zip(after, walks, strict=True)
    ]


def _sparsity_row(w_ref: Tensor, w_new: Tensor, settings: Settings) -> dict[str, float]:
    """Measure what is defined on tensors that are not matrices."""
    column = w_new.reshape(-1, 1)
    return _elementwise(w_ref.reshape(-1, 1), lambda rows: column[rows], settings.eta)


def _noted(stored: StoredTensor, w_ref: Tensor, measure: Callable[[Tensor], dict[str, Any]]) -> dict[str, Any]:
    """Measure a checkpoint's tensor, with a note; where it is not finite, only the note."""
    w_new = stored.read_unchecked().to(w_ref.device)
    flaw = stored.flaw_of(w_new) or _too_large(stored, w_new)
    if flaw:
        return {"note": flaw}
    same = torch.equal(w_ref, w_new) if w_ref.dtype == w_new.dtype else torch.equal(w_ref.double(), w_new.double())
    row = measure(w_new)
    return row | {"note": "; ".join(filter(None, (IDENTICAL if same else "", str(row.get("note", "")))))}


def _too_large(stored: StoredTensor, values: Tensor) -> str:
    """Say where a finite value is beyond bf16, in which no such weight could be seen; empty if none is."""
    if not values.numel() or values.dtype not in (torch.float32, torch.float64):
        return ""
    largest = max(-float(values.min()), float(values.max()))
    if largest <= BF16_MAX:
        return ""
    return f"{stored.where}: tensor {stored.key} has entries up to {largest:.3g}, beyond the largest bf16 number"


def measure_matrix(
    name: str, reference: ReferenceMatrix, w_new: Float[Tensor, "out in"], settings: Settings
) -> dict[str, Any]:
    """Every metric of one matrix at one checkpoint, and its shuffled and random nulls."""
    same = w_new.dtype == reference.w.dtype and torch.equal(w_new, reference.w)
    factors = reference.factors if same else factorize(w_new, cuts=(settings.k,))
    row, defined = _against_reference(reference, lambda rows: w_new[rows], factors, settings)
    del factors
    row["angles_defined"] = defined
    delta = TallMatrix.of(w_new, minus=reference.w)
    spectrum = scaled_singular_values(delta, leading=min(settings.k, *w_new.shape))
    row["update_norm"] = float(spectrum.norm()) * delta.scale
    row["stable_rank"] = stable_rank_from(spectrum)
    row["hill"] = tail_exponent(spectrum, k=settings.k, largest_side=max(w_new.shape))
    row |= {column: measure(reference.w, w_new, row) for column, measure in FURTHER.items()}
    if settings.nulls and not settings.exact:
        row |= expected_nulls(
            reference.w, w_new, reference.factors, reference.masks(),
            update_norm=row["update_norm"], eta=settings.eta, k=settings.k,
        )  # fmt: skip
    elif settings.exact:
        for null in ("shuffled", "random"):
            generator = null_generator(settings.seed, f"{name}:{null}")
            if null == "shuffled":
                update = shuffled_difference(reference.w, w_new, generator=generator)
            else:
                update = random_of_norm(tuple(w_new.shape), row["update_norm"], generator=generator)
            row |= _named(_null_row(reference, update, settings), null)
    return row


def _stable_rank_bf16(
    w_ref: Float[Tensor, "out in"], w_new: Float[Tensor, "out in"], measured: Mapping[str, Any]
) -> float:
    """Stable rank of the update as bf16 shows it."""
    if w_ref.dtype == w_new.dtype == torch.bfloat16:
        return measured["stable_rank"]
    return stable_rank_of(TallMatrix.of(bf16_realised(w_new), minus=bf16_realised(w_ref)))


#: What is measured once all else is, by column: a function of ``w_ref``, ``w_new`` and the row so far.
FURTHER: dict[str, Callable[[Tensor, Tensor, Mapping[str, Any]], float]] = {"stable_rank_bf16": _stable_rank_bf16}


def _null_row(reference: ReferenceMatrix, update: Float[Tensor, "out in"], settings: Settings) -> dict[str, Any]:
    """Measure the reference with a null update added; the sum is made a block at a time, and so goes to a device."""
    w_ref = reference.w
    rank = stable_rank_of(TallMatrix.of(update, device=w_ref.device))
    tall = TallMatrix.of(w_ref, plus=update)
    factors = factorize_tall(tall, cuts=(settings.k,), is_wide=reference.factors.is_wide)
    row, _ = _against_reference(
        reference, lambda rows: w_ref[rows].double() + update[rows].to(w_ref.device), factors, settings
    )
    return row | {"stable_rank": rank}


def _against_reference(
    reference: ReferenceMatrix, rows_of: Callable[[slice], Tensor], factors: Factors, settings: Settings
) -> tuple[dict[str, Any], bool]:
    """Compare a matrix with its reference by all metrics that are defined on the pair; say if its angles are."""
    row: dict[str, Any] = {"principal_overlap": math.nan}
    row |= _elementwise(reference.w, rows_of, settings.eta, reference.masks())
    row["normalized_spectral_shift"] = spectral_shift(reference.factors.s, factors.s)
    k = min(settings.k, *reference.w.shape)
    defined = reference.factors.has_gap(k) and factors.has_gap(k)
    if defined:
        return row | _angle_summary(angles_between(reference.factors, factors, k=k)), True
    for side, size in zip(("left", "right"), reference.w.shape, strict=True):
        angle = 0.0 if k == size else math.nan  # a whole space has not moved, whatever the spectrum
        row |= {f"{side}_angle_max_deg": angle, f"{side}_angle_mean_deg": angle}
    return row, k == max(reference.w.shape)


def _elementwise(
    w_ref: Float[Tensor, "rows in"],
    rows_of: Callable[[slice], Tensor],
    eta: float | int,
    masks: dict[str, Bool[Tensor, "rows in"]] | None = None,
) -> dict[str, float]:
    """Update sparsity, and the overlap of the update mask with each of ``masks``, a block of rows at a time."""
    masks = masks or {}
    n_rows = max(1, CACHED_ENTRIES // w_ref.shape[1])
    n_updated, n_inside = 0, dict.fromkeys(masks, 0)
    for start in range(0, len(w_ref), n_rows):
        rows = slice(start, start + n_rows)
        visible = visible_changes(w_ref[rows], rows_of(rows), eta=eta)
        n_updated += count_true(visible)
        for metric, mask in masks.items():
            n_inside[metric] += count_true(mask[rows] & visible)
    overlaps = {metric: n / n_updated if n_updated else math.nan for metric, n in n_inside.items()}
    return {"update_sparsity": (w_ref.numel() - n_updated) / w_ref.numel(), **overlaps}


def _angle_summary(angles: PrincipalAngles) -> dict[str, float]:
    left, right = angles.left_deg, angles.right_deg
    return dict(zip(ANGLES, map(float, (left.max(), left.mean(), right.max(), right.mean())), strict=True))


def _named(row: dict[str, float], null: str) -> dict[str, float]:
    return {f"{metric}_{null}": value for metric, value in row.items()}


def _form(before: StoredTensor, after: StoredTensor) -> dict[str, Any]:
    return {
        "shape": "x".join(map(str, before.shape)),
        "dtype": f"{before.dtype}->{after.dtype}".replace("torch.", ""),
        "n_entries": math.prod(before.shape),
    }
