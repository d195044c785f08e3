"""A report's words about noise: how far Adam would have gone on noise along the run's own schedule, and what it shows.

A run went *further* (or *less far*) than noise where its update is longer (or shorter) by a tenth. It shows *more*
change (or *less*) than noise where its sparsity is one percentage point lower (or higher).
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from opdgeom_utils.chapters.your_run_caveats import narrow_formats, rounded_with_the_tuned
from opdgeom_utils.chapters.your_run_tables import SPARSITY, frozen, last_step, matrices_of
from opdgeom_utils.chapters.your_run_text import POINT, TENTH
from opdgeom_utils.intervals import number
from opdgeom_utils.vocabulary import compared, metric_of

NOISE = "noise, same schedule"
PLACED = ("left_angle_mean_deg", "right_angle_mean_deg", "normalized_spectral_shift")
#: Squared length of a straight line over that of a walk, below which moves are not normal yet and the predicted
#: sparsity is off by a percentage point and more: 30 updates at a constant rate have 23, one has 1.
FEW = 22


def noise_of(table: pd.DataFrame) -> dict[str, float]:
    """Fold the last checkpoint's columns of noise into one number each; nothing where there are none.

    ``table``: one row per (step, tensor), from :func:`opdgeom_utils.diagnose_trajectory`.
    Returns ``walk_ratio`` and ``coherence`` of the report's matrices together, their number as ``matrices``;
    ``noise_sparsity`` and ``update_sparsity`` over all tensors, weighted by entries, and with ``_moved`` over those
    that changed; ``frozen``, the share of entries in those that did not; ``straight``, as for :data:`FEW`; and the mean
    of each column that ends in ``_noise``.

    >>> rows = pd.DataFrame(
    ...     {"step": 1, "module": "q_proj", "shape": "2x2", "n_entries": [4, 4], "walk_ratio": [1.0, 7.0]}
    ... )
    >>> rows = rows.assign(coherence=[0.0, 0.5], noise_sparsity=[0.5, 0.7], update_sparsity=0.5)
    >>> found = noise_of(rows)
    >>> found["walk_ratio"], found["coherence"], found["noise_sparsity"]
    (5.0, 0.25, 0.6)
    """
    last = last_step(table)
    if "noise_sparsity" not in last or not _numbers(last, "noise_sparsity").size:
        return {}
    known, rows = last.dropna(subset=["noise_sparsity", SPARSITY]), matrices_of(last)
    found = {column: _weighted(known, column) for column in ("noise_sparsity", SPARSITY)}
    moved = known.loc[~frozen(known)]
    found |= {f"{column}_moved": _weighted(moved, column) for column in ("noise_sparsity", SPARSITY)}
    found["frozen"] = 1 - float(_numbers(moved, "n_entries").sum() / _numbers(known, "n_entries").sum())
    found |= {"matrices": float(_numbers(rows, "walk_ratio").size), "straight": _straight(rows)}
    found |= {"walk_ratio": _weighted(rows, "walk_ratio", power=2) ** 0.5, "coherence": _weighted(rows, "coherence")}
    places = [str(column) for column in rows if str(column).endswith("_noise")]
    return found | {
        name: float(np.mean(_numbers(rows, name) if _numbers(rows, name).size else math.nan)) for name in places
    }


def with_noise(ends: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Add noise's own place to the runs of a figure, as one more run; as they are where no schedule is known.

    ``ends``: one row per run, from :func:`opdgeom_utils.chapters.your_run_tables.among`.
    """
    found = noise_of(table)
    if not found:
        return ends
    place = {metric: found.get(f"{metric}_noise", math.nan) for metric in compared()}
    place[SPARSITY] = found["noise_sparsity"]
    return pd.concat([ends, pd.DataFrame([{"recipe": NOISE, "seed": 0, **place}])], ignore_index=True)


def noise_reading(table: pd.DataFrame) -> list[str]:
    """Say how the run compares with noise along its schedule, and where noise lies on the map.

    Returns sentences in Markdown, none where no schedule is known or nothing has changed.
    """
    found = noise_of(table)
    if not found or math.isnan(found["walk_ratio"]) or found["frozen"] == 1:
        return []
    last = last_step(table)
    unsure = "This is not judged: rounding moved the weights too." if rounded_with_the_tuned(last) else ""
    hidden = "rounding hid its smaller steps, or " if narrow_formats(last) else ""
    return [_length_words(found, unsure, hidden), _sparsity_words(found), _place_words(found)]


def _length_words(found: dict[str, float], unsure: str, hidden: str) -> str:
    ratio, coherent = found["walk_ratio"], found["coherence"]
    share = (
        "" if math.isnan(coherent) else f" Coherence: {number(coherent, '.2g')} (0 for a walk, 1 for a straight line)."
    )
    if unsure:
        verdict = unsure
    elif coherent > TENTH or (ratio > TENTH and found["straight"] <= 1):
        verdict = (
            "That is further than these rates could carry any weight, even with the same gradient at every update. So "
            "the rate, the number of updates or the optimiser is not as told."
        )
    elif ratio > TENTH:
        verdict = "It went further than noise: its gradients agreed from update to update, or weight decay pulled."
    elif ratio < 1 / TENTH:
        verdict = (
            f"It went less far than noise of this schedule. Either {hidden}its steps undid each other, or a part was "
            "frozen, or weights were averaged, or the schedule or the betas were not as told."
        )
    else:
        verdict = "It went as far as noise goes. Its length says nothing of what was learned."
    over = "over one matrix" if found["matrices"] == 1 else f"over {found['matrices']:.0f} matrices"
    return f"**Beside noise: {number(ratio, '.3g')} times as far, {over}.**{share} {verdict}"


def _sparsity_words(found: dict[str, float]) -> str:
    own, noise = found[SPARSITY], found["noise_sparsity"]
    said = (
        f"**Predicted by noise: {number(noise, '.1%')} unchanged; measured: {number(own, '.1%')}.** The prediction "
        "knows the learning rates and the sizes of the weights, and nothing else."
    )
    if found["frozen"] > POINT:
        own, noise = found[f"{SPARSITY}_moved"], found["noise_sparsity_moved"]
        said += (
            f" {number(found['frozen'], '.1%')} of the entries lie in tensors that have not changed at all; over the "
            f"others {number(noise, '.1%')} is predicted, and {number(own, '.1%')} measured."
        )
    verdict = "Sparsity is what noise at this rate gives; it is no finding about the objective."
    if own < noise - POINT and found["straight"] < FEW:
        verdict = (
            "So few updates are not judged: the prediction takes moves as normal, and is too high for a few steps."
        )
    elif own < noise - POINT:
        verdict = "More entries changed than noise explains."
    elif own > noise + POINT:
        verdict = "Fewer entries changed than noise explains: steps undid each other, or some weights were not trained."
    return f"{said} {verdict}"


def _place_words(found: dict[str, float]) -> str:
    parts = [
        f"{metric_of(metric).words} {number(found[f'{metric}_noise'], metric_of(metric).shown)}"
        for metric in (*PLACED, "principal_overlap", "low_magnitude_overlap")
    ]
    return f"**Noise's own place on the map:** {', '.join(parts)}. What a run has beyond these is left to explain."


def noise_caveats(table: pd.DataFrame) -> list[str]:
    """Say what to mind about the ruler itself, where it was used."""
    if not noise_of(table):
        return []
    said = [
        "Noise's ruler knows amounts and no directions: a run may go as far as noise and still go somewhere.",
        "Noise's ruler is of weights that the optimiser moved one by one. If these were merged from a LoRA, which "
        "moves two thin factors instead, its walk ratio, coherence and predicted sparsity do not hold.",
    ]
    if narrow_formats(last_step(table)):
        said.append(
            "The walk ratio and coherence are of weights as they were stored, rounded: what did not show counts as no "
            "move, and what showed as a whole step of the grid. The predicted sparsity holds all the same, if a copy "
            "in float32 was trained."
        )
    return said


def _numbers(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column without its gaps."""
    values = rows[column].to_numpy(float)
    return values[~np.isnan(values)]


def _straight(rows: pd.DataFrame) -> float:
    """Squared length of a straight line over that of a walk, by a row's ratio and coherence; infinite if unknown."""
    known = rows.loc[rows["walk_ratio"].notna(), ["walk_ratio", "coherence"]].to_numpy(float)
    if not len(known):
        return math.inf
    if np.isnan(known[:, 1]).all():  # the two are one
        return 1.0
    ratio, coherent = known[np.nanargmax(np.abs(known[:, 1]))]
    return 1 + (ratio**2 - 1) / coherent if coherent else math.inf


def _weighted(rows: pd.DataFrame, column: str, power: int = 1) -> float:
    """Mean over entries of a column's power; nan where it has no number."""
    known = rows.loc[:, ["n_entries", column]].dropna().to_numpy(float)
    return float(np.average(known[:, 1] ** power, weights=known[:, 0])) if len(known) else math.nan
