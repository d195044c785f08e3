"""Result tables small enough to judge by hand: one matrix for each run and step, values given outright."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from opdgeom_utils.claims.look_up import LookUp, Sources

SEEDS = (0, 1, 2, 3, 4)
JITTER = (-0.002, -0.001, 0.0, 0.001, 0.002)
Values = Mapping[str, Mapping[str, Sequence[float] | float]]


@dataclass(frozen=True)
class HandTables:
    """Geometry, accuracy and measures, as a verdict asks for them."""

    geometry: pd.DataFrame
    accuracy: pd.DataFrame
    measures: pd.DataFrame | None = None


def hand_tables(values: Values, steps: Mapping[str, Mapping[int, tuple[float, float]]] | None = None) -> HandTables:
    """Tables with the given number of every metric in every seed.

    Parameters
    ----------
    values
        ``{recipe: {metric: one number per seed, or one for all}}``; the same at every step.
    steps
        ``{recipe: {step: (norm, accuracy gained)}}``; by default one step, norm 1 and no gain.
    """
    geometry, accuracy = [], []
    for recipe, metrics in values.items():
        lengths = [len(v) for v in metrics.values() if not isinstance(v, float)]
        for seed in range(max(lengths, default=len(SEEDS))):
            keys = {"profile": "first_regime", "recipe": recipe, "seed": seed}
            accuracy.append(keys | {"step": 0, "domain": "code", "family": "runs", "sampled": 0.4})
            for step, (norm, gain) in (steps or {}).get(recipe, {1: (1.0, 0.0)}).items():
                own = {m: v if isinstance(v, float) else v[seed] for m, v in metrics.items()}
                matrix = {"layer": 0, "module": "q_proj", "n_entries": 10, "update_norm": norm, "reference_norm": 10.0}
                geometry.append(keys | {"step": step} | matrix | own)
                accuracy.append(accuracy[-1] | {"step": step, "sampled": 0.4 + gain})
    return HandTables(pd.DataFrame(geometry), pd.DataFrame(accuracy))


def look_up(values: Values, steps: Mapping[str, Mapping[int, tuple[float, float]]] | None = None) -> LookUp:
    """Look-up of the hand-made tables, with as many seeds as they have."""
    tables = hand_tables(values, steps)
    seeds = tuple(sorted(int(s) for s in tables.geometry["seed"].unique()))
    return LookUp(Sources(tables), "attention", seeds)


#: A world that agrees with the paper in everything, except that OPD then lies between SFT and RLVR on every diagnostic.
AGREEING: dict[str, dict[str, tuple[float, float]]] = {
    "sft": {"update_sparsity": (0.1, 0.08), "angle": (10.0, 12.0), "normalized_spectral_shift": (1e-3, 1.2e-3),
            "principal_overlap": (0.296, 0.30), "low_magnitude_overlap": (0.319, 0.31)},
    "control_sft": {"update_sparsity": (0.2, 0.15), "angle": (5.0, 6.0), "normalized_spectral_shift": (5e-4, 6e-4),
                    "principal_overlap": (0.29, 0.30), "low_magnitude_overlap": (0.4, 0.35)},
    "opd": {"update_sparsity": (0.5, 0.45), "angle": (1.0, 1.2), "normalized_spectral_shift": (1e-4, 1.2e-4),
            "principal_overlap": (0.273, 0.30), "low_magnitude_overlap": (0.536, 0.4)},
    "rlvr": {"update_sparsity": (0.75, 0.7), "angle": (0.4, 0.5), "normalized_spectral_shift": (1e-5, 1.2e-5),
             "principal_overlap": (0.2665, 0.30), "low_magnitude_overlap": (0.735, 0.45)},
}  # fmt: skip
STEPS = {
    "sft": {4: (4.0, 0.1), 8: (8.0, 0.2)},
    "control_sft": {1: (0.5, 0.05), 2: (2.0, 0.1)},
    "opd": {1: (0.5, 0.05), 2: (1.0, 0.15)},
    "rlvr": {1: (0.3, 0.02), 2: (0.8, 0.1), 6: (1.5, 0.2)},
}


def world(numbers: Mapping[str, Mapping[str, tuple[float, float]]]) -> HandTables:
    """Tables of a world given as (value, shuffled value): seeds differ by up to 0.2 percent, in a way of their own."""
    values: dict[str, dict[str, list[float]]] = {}
    for place, (recipe, metrics) in enumerate(numbers.items()):
        turned = JITTER[place:] + JITTER[:place]
        values[recipe] = {}
        for metric, pair in metrics.items():
            names = ("left_angle_mean_deg", "right_angle_mean_deg") if metric == "angle" else (metric,)
            for name in names:
                for column, value in zip((name, f"{name}_shuffled"), pair, strict=True):
                    values[recipe][column] = [value * (1 + j) for j in turned]
    return hand_tables(values, STEPS)
