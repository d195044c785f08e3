"""The statistics that ``data/paper/claims_variants.yaml`` names: the share of OPD's settings for which a thing holds.

Each gives one number per setting instead of one per seed: 1 where the statement holds in the setting's own seed, 0
where it does not, ``nan`` where the setting, or what it is compared with, was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy import stats

from opdgeom_utils.claims import matching
from opdgeom_utils.claims.look_up import Measured
from opdgeom_utils.claims.statistics import Comparison, Part
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.scopes import SCOPES
from opdgeom_utils.vocabulary import label, metric_of

PAPER_STEPS = 1023 / 299  # updates of the paper's RLVR for each of its OPD
Runs = Mapping[tuple[str, int], pd.DataFrame]


@dataclass(frozen=True)
class Setting:
    """One run of OPD under other circumstances, and everything that was measured in its scope."""

    recipe: str
    seed: int
    step: int
    runs: Runs
    suffix: str = ""

    def own(self, metric: str) -> float:
        """Return the setting's own number at its last checkpoint."""
        return value_at(self.runs, self.recipe, self.seed, float(self.step), metric + self.suffix)

    def ends(self, metric: str, order: list[str], at: str) -> tuple[float, float]:
        """Return the same number of the two ends of an order, at the place that the rule names."""
        if at not in ("paper_steps", "equal_updates"):
            raise MetricInputError(f"at is {at!r}; expected paper_steps or equal_updates")
        low, high = order
        equal = at == "equal_updates"
        steps = (float(self.step), float(self.step)) if equal else (None, self.step * PAPER_STEPS)
        first, second = (
            value_at(self.runs, recipe, self.seed, step, metric + self.suffix)
            for recipe, step in zip((low, high), steps, strict=True)
        )
        return first, second


Holds = Callable[[Setting, str], float]


def runs_of(summary: pd.DataFrame) -> Runs:
    """Split one row per checkpoint into one table per run, by recipe and seed, in step order.

    Parameters
    ----------
    summary
        From :func:`opdgeom_utils.claims.matching.summarise`.

    Examples
    --------
    >>> list(runs_of(pd.DataFrame({"recipe": ["opd", "opd"], "seed": 0, "step": [8, 4]}))["opd", 0]["step"])
    [4, 8]
    """
    parts = summary.sort_values("step").groupby(["recipe", "seed"], sort=False)
    return {cast("tuple[str, int]", key): part for key, part in parts}


def value_at(runs: Runs, recipe: str, seed: int, step: float | None, metric: str) -> float:
    """Look up the number of one run at a step; between two checkpoints it is interpolated, outside them ``nan``.

    Parameters
    ----------
    runs
        From :func:`runs_of`.
    recipe, seed
        Whose run.
    step
        Number of updates; None takes the run's last checkpoint.
    metric
        A column of its table.

    Examples
    --------
    Half way between 30 and 50 updates lies half way between their numbers.

    >>> runs = runs_of(pd.DataFrame({"recipe": "rlvr", "seed": 0, "step": [30, 50], "x": [1.0, 3.0]}))
    >>> [value_at(runs, "rlvr", 0, step, "x") for step in (40.0, None, 60.0)]
    [2.0, 3.0, nan]
    """
    rows = runs.get((recipe, seed))
    if rows is None or metric not in rows:
        return float("nan")
    steps, values = rows["step"].to_numpy(float), rows[metric].to_numpy(float)
    return float(np.interp(steps[-1] if step is None else step, steps, values, left=np.nan, right=np.nan))


def settings_in_order(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Strictly between the two ends, in the direction of the paper."""

    def holds(setting: Setting, metric: str) -> float:
        low, high = setting.ends(metric, args["order"], args["at"])
        sign = -1 if metric in args.get("descending", ()) else 1
        return _truth(sign * low < sign * setting.own(metric) < sign * high, low, setting.own(metric), high)

    return _shares(measured, args, holds, "between " + " and ".join(label(str(r)) for r in args["order"]))


def settings_near(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """At most a fraction of the distance between the two ends away from the reference."""

    def holds(setting: Setting, metric: str) -> float:
        low, high = setting.ends(metric, args["order"], args["at"])
        reference = value_at(
            setting.runs, args["reference"], setting.seed, float(setting.step), metric + setting.suffix
        )
        distance = abs(setting.own(metric) - reference)
        return _truth(distance <= args["fraction"] * abs(high - low), distance, low, high)

    return _shares(measured, args, holds, f"within {args['fraction']:g} of the ends' distance from OPD")


def settings_within_seeds(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Where one more seed of the reference would be expected."""

    def holds(setting: Setting, metric: str) -> float:
        low, high = seed_range(setting, args["reference"], metric, measured.seeds, args["confidence"])
        return _truth(low <= setting.own(metric) <= high, low, setting.own(metric), high)

    return _shares(measured, args, holds, "inside the range of a further seed of OPD")


def settings_off_null(measured: Measured, args: Mapping[str, Any]) -> list[Comparison]:
    """Away from the setting's own null by more than a margin: above it, or on either side."""

    def holds(setting: Setting, metric: str) -> float:
        distance = setting.own(metric) - setting.own(f"{metric}_{args['against']}")
        return _truth((abs(distance) if args["sign"] == "both" else distance) > args["margin"], distance)

    plain = Measured(measured.tables, measured.scope, measured.seeds, problems=measured.problems)
    return _shares(plain, args, holds, f"off the {args['against']} null")


STATISTICS = {f.__name__: f for f in (settings_in_order, settings_near, settings_within_seeds, settings_off_null)}


def seed_range(
    setting: Setting, reference: str, metric: str, seeds: tuple[int, ...], confidence: float = 0.95
) -> tuple[float, float]:
    """Prediction interval for one more seed of the reference, at the setting's number of updates.

    The mean over seeds ``+- t * s * sqrt(1 + 1/n)``, as :func:`opdgeom_utils.results.check_live` has it.

    Examples
    --------
    Seeds 0 and 2: mean 1, deviation the root of 2, and the t-value of one degree of freedom is 12.706.

    >>> runs = runs_of(pd.DataFrame({"recipe": "opd", "seed": [0, 1], "step": 4, "x": [0.0, 2.0]}))
    >>> [round(x, 3) for x in seed_range(Setting("opd_code", 0, 4, runs), "opd", "x", (0, 1))]
    [-21.008, 23.008]
    """
    found = [value_at(setting.runs, reference, s, float(setting.step), metric + setting.suffix) for s in seeds]
    known = np.array([value for value in found if np.isfinite(value)])
    if len(known) < 2:
        return float("nan"), float("nan")
    reach = float(stats.t.ppf((1 + confidence) / 2, len(known) - 1) * known.std(ddof=1) * (1 + 1 / len(known)) ** 0.5)
    return float(known.mean()) - reach, float(known.mean()) + reach


def settings_of(measured: Measured, recipes: list[str]) -> list[Setting | None]:
    """Find the first seed of each setting at its last step; None for one that is not in the tables, and say so."""
    runs = runs_of(matching.summarise(measured.tables.geometry, SCOPES[measured.scope]))
    found: list[Setting | None] = []
    for recipe in recipes:
        seeds = [seed for name, seed in runs if name == recipe and seed in measured.seeds]
        if not seeds:
            measured.problems.append(f"there is no run of {recipe} in the tables")
            found.append(None)
            continue
        step = int(runs[recipe, min(seeds)].loc[:, "step"].to_numpy(int).max())
        found.append(Setting(recipe, min(seeds), step, runs, measured.suffix))
    return found


def _shares(measured: Measured, args: Mapping[str, Any], holds: Holds, words: str) -> list[Comparison]:
    settings = settings_of(measured, args["settings"])
    out = []
    for metric in args["metrics"]:
        values = tuple(float("nan") if setting is None else holds(setting, metric) for setting in settings)
        named = f"share of settings {words}, {metric_of(metric).words}"
        out.append(Comparison((Part(named, values, over="settings"),)))
    return out


def _truth(holds: bool, *numbers: float) -> float:
    """1 or 0, or ``nan`` where a number that it rests on is missing."""
    return float(holds) if np.isfinite(numbers).all() else float("nan")
