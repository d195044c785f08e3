"""The statistics of ``claims_variants.yaml``: the share of OPD's settings for which a thing holds.

Each gives one number per setting instead of one per seed: 1 where the statement holds in the setting's own seed, 0
where it does not, ``nan`` where the setting, or what it is compared with, was not measured. ``at`` says where the two
ends of an order stand beside a setting: ``equal_updates``, or ``paper_steps``: SFT at its end, RLVR at the paper's
proportion of updates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from opdgeom_utils.claims.comparisons import Comparison, functions_of, part_of
from opdgeom_utils.claims.look_up import LookUp, value_at
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.intervals import further_seed
from opdgeom_utils.vocabulary import label

PAPER_STEPS = 1023 / 299  # updates of the paper's RLVR for each of its OPD
Names = Sequence[str]


@dataclass(frozen=True)
class _Setting:
    """One run of OPD under other circumstances: its first seed, at its last step."""

    recipe: str
    seed: int
    step: int
    look: LookUp

    def own(self, metric: str) -> float:
        return self.of(self.recipe, metric)

    def of(self, recipe: str, metric: str, *, seed: int | None = None, proportion: float | None = 1.0) -> float:
        """Return the number of a run beside the setting; ``proportion`` None takes that run's last checkpoint."""
        runs = self.look.sources.runs(self.look.scope)
        column = f"{metric}_{self.look.null}" if self.look.null else metric
        step = None if proportion is None else self.step * proportion
        return value_at(runs, recipe, self.seed if seed is None else seed, step, column)

    def ends(self, metric: str, order: Names, at: str) -> tuple[float, float]:
        if at not in ("paper_steps", "equal_updates"):
            raise MetricInputError(f"at is {at!r}; expected paper_steps or equal_updates")
        low, high = (1.0, 1.0) if at == "equal_updates" else (None, PAPER_STEPS)
        return self.of(order[0], metric, proportion=low), self.of(order[1], metric, proportion=high)


def settings_in_order(
    look: LookUp, *, settings: Names, metrics: Names, order: Names, at: str, descending: Names = ()
) -> list[Comparison]:
    """Strictly between the two ends, in the direction of the paper."""

    def holds(setting: _Setting, metric: str) -> float:
        low, high = setting.ends(metric, order, at)
        sign = -1 if metric in descending else 1
        return _truth(sign * low < sign * setting.own(metric) < sign * high, low, setting.own(metric), high)

    return _shares(look, settings, metrics, holds, f"between {label(order[0])} and {label(order[1])}")


def settings_near(
    look: LookUp, *, settings: Names, metrics: Names, reference: str, order: Names, fraction: float | int, at: str
) -> list[Comparison]:
    """At most a fraction of the distance between the two ends away from the reference."""

    def holds(setting: _Setting, metric: str) -> float:
        low, high = setting.ends(metric, order, at)
        distance = abs(setting.own(metric) - setting.of(reference, metric))
        return _truth(distance <= fraction * abs(high - low), distance, low, high)

    return _shares(look, settings, metrics, holds, f"within {fraction:g} of the ends' distance from OPD")


def settings_within_seeds(
    look: LookUp, *, settings: Names, metrics: Names, reference: str, confidence: float
) -> list[Comparison]:
    """Where one more seed of the reference would be expected, at the setting's number of updates."""

    def holds(setting: _Setting, metric: str) -> float:
        seeds = [setting.of(reference, metric, seed=seed) for seed in look.seeds]
        low, high = further_seed(seeds, confidence)
        return _truth(low <= setting.own(metric) <= high, low, setting.own(metric), high)

    return _shares(look, settings, metrics, holds, "inside the range of a further seed of OPD")


def settings_off_null(
    look: LookUp, *, settings: Names, metrics: Names, against: str, sign: str, margin: float | int
) -> list[Comparison]:
    """Away from the setting's own null by more than a margin: above it, or on either side."""

    def holds(setting: _Setting, metric: str) -> float:
        distance = setting.own(metric) - setting.own(f"{metric}_{against}")
        return _truth((abs(distance) if sign == "both" else distance) > margin, distance)

    return _shares(look.real, settings, metrics, holds, f"off the {against} null")


STATISTICS = functions_of(__name__)


def _shares(
    look: LookUp, settings: Names, metrics: Names, holds: Callable[[_Setting, str], float], words: str
) -> list[Comparison]:
    found = [_setting(look, recipe) for recipe in settings]
    out = []
    for metric in metrics:
        values = np.array([np.nan if setting is None else holds(setting, metric) for setting in found])
        out.append(Comparison((part_of(metric, f"share of settings {words}", values, unit=False, over="settings"),)))
    return out


def _setting(look: LookUp, recipe: str) -> _Setting | None:
    """Find a setting in the tables; None for one that is not there, and note it."""
    runs = look.sources.runs(look.scope)
    seeds = [seed for name, seed in runs if name == recipe and seed in look.seeds]
    if not seeds:
        look.note(f"there is no run of {recipe} in the tables")
        return None
    return _Setting(recipe, min(seeds), int(runs[recipe, min(seeds)]["step"].to_numpy(int).max()), look)


def _truth(holds: bool, *numbers: float) -> float:
    """1 or 0, or ``nan`` where a number that it rests on is missing."""
    return float(holds) if np.isfinite(numbers).all() else float("nan")
