"""Which of the toy's findings survive in a model that others pretrained: eight rules, applied to both.

The rules stand in LOG.md, before any geometry of the pretrained model's runs. Each looks at attention matrices and at
means over the seeds there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.noise import by_kind, own_runs
from opdgeom_utils.chapters.null_objectives import AGREE
from opdgeom_utils.chapters.pretrained import CONTROL, OPD, RANDOM, RLVR, RULERS, means_of
from opdgeom_utils.chapters.update_path import cosines, early
from opdgeom_utils.chapters.where import at_place
from opdgeom_utils.claims.matching import accuracy_gain, final
from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.measures.paths import SIDES
from opdgeom_utils.scopes import ATTENTION, MODULES

YES, NO, UNTESTED = "yes", "no", "not testable"
Found = tuple[str, bool | None]  # what was found, in words, and whether the finding is there; None is not testable
NOTHING: Found = ("-", None)


def surviving(tables: BookTables, toy: BookTables) -> pd.DataFrame:
    """Apply the eight rules to the pretrained model's runs and to the toy's.

    Returns
    -------
    DataFrame
        ``finding``, what was found in the ``toy`` and in ``this model``, and ``survives``: *yes*, *no*, *not testable*;
        *no* also where the toy does not show it by this rule.
    """
    rows = []
    for says, rule in RULES.items():
        (here, holds), (there, was) = rule(tables), rule(toy)
        verdict = UNTESTED if holds is None or was is None else YES if holds and was else NO
        rows.append({"finding": says, "toy": there, "this model": here, "survives": verdict})
    return pd.DataFrame(rows)


def say(found: pd.DataFrame) -> str:
    """Say how many findings survive, and which.

    >>> say(pd.DataFrame({"finding": ["A", "B", "C"], "survives": ["yes", "no", "not testable"]}))
    'Of 2 findings of the toy that can be tested here 1 survives. Here too: "A". Not here: "B".'
    """
    named = {
        verdict: [f'"{name.split(" (")[0]}"' for name in found.loc[found["survives"] == verdict, "finding"]]
        for verdict in (YES, NO)
    }
    kept, tested = len(named[YES]), sum(map(len, named.values()))
    which = [f" {head}: {'; '.join(named[v])}." for v, head in ((YES, "Here too"), (NO, "Not here")) if named[v]]
    survive = f"{kept} survive{'s' * (kept == 1)}"
    return f"Of {tested} findings of the toy that can be tested here {survive}.{''.join(which)}"


def _held(tables: BookTables, *recipes: str) -> bool:
    return set(recipes) <= set(tables.geometry["recipe"])


def _noise_sparsity(tables: BookTables) -> Found:
    if not _held(tables, RANDOM):
        return NOTHING
    noise, seen = means_of(own_runs(tables, [RANDOM], ATTENTION), RANDOM, ["predicted", "sparsity"])
    return f"{noise:.1%}, measured {seen:.1%}", abs(noise - seen) <= 0.03


def _noise_length(tables: BookTables) -> Found:
    if not _held(tables, RANDOM):
        return NOTHING
    ratio = float(own_runs(tables, [RANDOM], ATTENTION)["ratio"].iloc[0])
    return f"{ratio:.2f} times", 0.9 <= ratio <= 1.1


def _rulers(tables: BookTables) -> Found:
    if not _held(tables, RANDOM, OPD):
        return NOTHING
    ends = at_place(tables, "equal_updates", [RANDOM, OPD])
    ratios = [a / b for a, b in zip(*(means_of(ends, name, RULERS) for name in (OPD, RANDOM)), strict=True)]
    return " and ".join([f"{r:.2f}" for r in ratios]) + " times", all(1 / 1.5 < r < 1.5 for r in ratios)


def _agreement(tables: BookTables) -> Found:
    opd, null = (seed_interval(cosines(tables.measures, name, name)).mean for name in (OPD, RANDOM))
    if math.isnan(opd + null):
        return NOTHING
    return f"{opd:z.2f}, random credit {null:z.2f}", opd >= null + AGREE and abs(null) < 0.1


def _same_way(tables: BookTables) -> Found:
    """Find a rule that turned out lopsided: runs of one seed share their prompts, two seeds of OPD do not."""
    across, own = (seed_interval(cosines(tables.measures, OPD, other)).mean for other in (CONTROL, OPD))
    if math.isnan(across):
        return NOTHING
    beside = "" if math.isnan(own) else f"; own seeds, on others, {own:.2f}"
    return f"{across:.2f} on the same prompts{beside}", None


def _order(tables: BookTables) -> Found:
    order = [CONTROL, OPD, RLVR]
    if not _held(tables, *order):
        return NOTHING
    gained = final(accuracy_gain(tables.accuracy.loc[tables.accuracy["recipe"] == RLVR]))["gain"]
    attention = tables.geometry.loc[tables.geometry["module"].isin(ATTENTION)]
    ends = at_place(replace(tables, geometry=attention), "equal_updates", order)
    shift, hidden = zip(*(means_of(ends, name, [RULERS[2], "update_sparsity"]) for name in order), strict=True)
    said = f"{', '.join(f'{v:.1e}' for v in shift)}; {', '.join(f'{v:.1%}' for v in hidden)}"
    if _held(tables, RANDOM):
        null = at_place(replace(tables, geometry=attention), "equal_updates", [*order, RANDOM])
        said += "; random credit {:.1e}, {:.1%}".format(*means_of(null, RANDOM, [RULERS[2], "update_sparsity"]))
    gain = float(gained.to_numpy(float).mean())
    if gain <= 0:  # the place of a run that did not learn says nothing of its objective
        return f"{said}; RLVR {'lost accuracy' if gain < 0 else 'gained no accuracy'}", None
    return said, [*shift] == sorted(shift, reverse=True) and [*hidden] == sorted(hidden)


def _early_space(tables: BookTables) -> Found:
    if tables.measures is None or not _held(tables, RANDOM, OPD):
        return NOTHING
    values = {}
    for side in SIDES:
        for name in (OPD, RANDOM):
            at = early(tables.measures, side, 4, [name]).loc[:, "value"].to_numpy(float)
            values[side, name] = seed_interval(at).mean
    said = "; ".join(f"{side} {values[side, OPD]:.2f}, random credit {values[side, RANDOM]:.2f}" for side in SIDES)
    return said, all(values[side, OPD] > values[side, RANDOM] for side in SIDES)


def _values_least(tables: BookTables) -> Found:
    if not _held(tables, OPD):
        return NOTHING
    ratios = by_kind(tables, [OPD]).loc[list(MODULES)].iloc[:, 0]
    least = str(ratios.idxmin())
    return f"{least} ({ratios.min():.2f} to {ratios.max():.2f})", least == "v_proj"


RULES: dict[str, Callable[[BookTables], Found]] = {
    "Noise gives random credit's sparsity to three points": _noise_sparsity,
    "Random credit's update is .9 to 1.1 times as long as noise makes it": _noise_length,
    "By angles and spectral shift OPD is less than 1.5 times from random credit (left, right, shift)": _rulers,
    "Two seeds of OPD agree by .3 more than two of random credit, and these by less than .1 (cosine)": _agreement,
    "OPD agrees with control SFT at least half as well as with another seed of its own (cosine)": _same_way,
    "At equal updates control SFT moves most, then OPD, then RLVR (spectral shift; sparsity)": _order,
    "OPD finds its final space earlier than random credit (similarity at a fifth, K = 4)": _early_space,
    "OPD's value matrices go least far beside noise (smallest and largest ratio of the kinds)": _values_least,
}
