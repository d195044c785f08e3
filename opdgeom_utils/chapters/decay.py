"""What of the spectral shift is weight decay, which moves every singular value by the same share and no direction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd

from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.literature import PAPER, kind_of, rates_published
from opdgeom_utils.chapters.where import NULL_OBJECTIVES, at_place
from opdgeom_utils.claims import load_reported
from opdgeom_utils.intervals import difference, number, seed_interval
from opdgeom_utils.measures.noise import walk_of
from opdgeom_utils.metrics import decay_shrinkage, drift_without_decay
from opdgeom_utils.vocabulary import label, listed, metric_of

WHERE = {
    "equal_norm": "where all of these have one norm",
    "final": "at their ends",
    "equal_updates": "after as many updates",
}
PAIRS = 3  # of runs, that are told apart or not: OPD and RLVR, and each beside its null objective
EACH = {"ratio": "each", "ratio_rest": "each_rest"}  # the seeds of an interval
DRIFT, SHUFFLED, REST, DECAY = "normalized_spectral_shift", "normalized_spectral_shift_shuffled", "undecayed", "decay"


@cache
def shrinkage_of(recipe: str, profile: str, step: int) -> float:
    """Share of themselves that weights have lost to decay after so many updates of a recipe.

    >>> round(shrinkage_of("opd", "toy", 400), 4)
    0.004
    """
    return walk_of(recipe, profile, step).shrinkage


def with_decay(tables: BookTables) -> BookTables:
    """Add to each matrix's row its shift by decay alone, ``decay``, and the shift without it, ``undecayed``."""
    rows = tables.geometry.loc[tables.geometry[DRIFT].notna() & (tables.geometry["step"] > 0)]
    runs = rows[["recipe", "step"]].itertuples(index=False)
    decay = [shrinkage_of(str(run.recipe), tables.profile, int(run.step)) for run in runs]
    sizes = rows["update_norm"] / rows["reference_norm"]
    rest = [drift_without_decay(*values) for values in zip(rows[DRIFT], sizes, decay, strict=True)]
    return dataclasses.replace(tables, geometry=rows.assign(decay=decay, undecayed=rest))


def beside_shuffle(tables: BookTables, place: str, recipes: Sequence[str]) -> pd.DataFrame:
    """Hold each kind of run against its shuffled updates where the runs are compared, with decay and without.

    ``tables``: from :func:`with_decay`. ``place``: a key of :data:`opdgeom_utils.claims.matching.PLACES`.
    Returns ``recipe``, the means over seeds ``drift, decay, undecayed, shuffled``, and the intervals ``ratio`` and
    ``ratio_rest`` of the shift, and of the shift without decay, over the shuffled one, with their seeds ``each`` and
    ``each_rest``. Empty without a shuffled null.
    """
    rows, columns = [], ["recipe", "drift", DECAY, REST, "shuffled", *EACH, *EACH.values()]
    if SHUFFLED not in tables.geometry:
        return pd.DataFrame(rows, columns=columns)
    ends = at_place(tables, place, recipes).dropna(subset=[DRIFT, SHUFFLED])
    for recipe in (name for name in recipes if name in set(ends["recipe"])):
        own = ends.loc[ends["recipe"] == recipe]
        ratios = [(own[column] / own[SHUFFLED]).to_numpy(float) for column in (DRIFT, REST)]
        means = own[[DRIFT, DECAY, REST, SHUFFLED]].mean().tolist()
        rows.append((recipe, *means, *map(seed_interval, ratios), *ratios))
    return pd.DataFrame(rows, columns=columns)


def shown(found: pd.DataFrame) -> pd.DataFrame:
    """Lay out :func:`beside_shuffle` as text."""
    text = metric_of(DRIFT).shown
    columns: dict[str, list[str]] = {"run": [label(str(name)) for name in found["recipe"]]}
    heads = {"drift": "shift", DECAY: "decay alone", REST: "without decay", "shuffled": "shuffled"}
    ratios = {"ratio": "shift over shuffled", "ratio_rest": "the same without decay"}
    columns |= {head: [interval.text(".2f") for interval in found[name]] for name, head in ratios.items()}
    columns |= {head: [number(float(value), text) for value in found[name]] for name, head in heads.items()}
    return pd.DataFrame(columns)


def say(found: pd.DataFrame, place: str, elsewhere: Mapping[str, pd.DataFrame] | None = None) -> str:
    """Say on one line what is left of the shifts without decay, beside shuffled updates, and on the next the numbers.

    ``found``: from :func:`beside_shuffle` at ``place``.
    ``elsewhere``: the same at other places, for the null objectives.

    >>> from opdgeom_utils.intervals import Interval
    >>> one, two = Interval(2.0, 1.9, 2.1, 2), Interval(1.0, 0.9, 1.1, 2)
    >>> row = {"recipe": ["opd"], "drift": 4e-4, "decay": 3e-4, "ratio": [one], "ratio_rest": [two]}
    >>> print(say(pd.DataFrame(row), "equal_norm"))
    Take weight decay away, and size explains the spectral shift: with it shifts are 2.00 times those of shuffled
    updates, without it 1.00 times.
    Where all of these have one norm, decay alone would shift the spectrum by 0.0003 (OPD, which shows 0.0004).
    """
    if found.empty:
        return ""
    text, rows = metric_of(DRIFT).shown, {label(str(row["recipe"])): row for row in found.to_dict("records")}
    alone = listed(
        f"{number(row[DECAY], text)} ({name}, which shows {number(row['drift'], text)})" for name, row in rows.items()
    )
    numbers = f"\n{WHERE[place][:1].upper()}{WHERE[place][1:]}, decay alone would shift the spectrum by {alone}."
    spans = []
    for column in ("ratio", "ratio_rest"):
        means = [row[column].mean for row in rows.values()]
        spans.append(" to ".join(dict.fromkeys(f"{end:.2f}" for end in (min(means), max(means)))))
    if all(row["ratio_rest"].low <= 1 <= row["ratio_rest"].high for row in rows.values()):
        return (
            f"Take weight decay away, and size explains the spectral shift: with it shifts are {spans[0]} times those "
            f"of shuffled updates, without it {spans[1]} times.{numbers}"
        )
    opd, rlvr = (rows.get(label(name)) for name in ("opd", "rlvr"))
    if opd is None or rlvr is None:
        return f"Beside shuffled updates shifts are {spans[0]} times as large, without decay {spans[1]} times.{numbers}"
    then, now = (_apart(opd, rlvr, column) for column in EACH.values())
    words, places = {True: "told apart", False: "not told apart"}, {place: found, **(elsewhere or {})}
    beside = {at: _beside_nothing(there) for at, there in places.items()}
    told: dict[str, list[str]] = {}  # what is told, and where
    for at, said in beside.items():
        told.setdefault(" and ".join(said), []).append(WHERE[at])
    nothing = "".join(f" Without it, {' and '.join(where)}, {words_}." for words_, where in told.items() if words_)
    shares = [f"; {WHERE[at]} {listed(said.values())}" for at, said in beside.items() if said]
    return (
        f"A part of the spectral shift is weight decay, and no learning: with it RLVR and OPD are {words[then]} from "
        f"each other, without it they are {words[now]}.{nothing}\nAs multiples of their shuffled updates' the shifts "
        f"of RLVR and OPD are {rlvr['ratio'].mean:.2f} and {opd['ratio'].mean:.2f}, without decay "
        f"{rlvr['ratio_rest'].mean:.2f} and {opd['ratio_rest'].mean:.2f}{''.join(shares)}. {numbers.strip()}"
    )


def _apart(one: Mapping[str, Any], other: Mapping[str, Any], column: str) -> bool:
    """Whether the interval of the difference of means leaves out 0 (Welch; 95% with an allowance for the pairs)."""
    low, high = difference(one[column], other[column], among=PAIRS)
    return low > 0 or high < 0


def _beside_nothing(found: pd.DataFrame) -> dict[str, str]:
    """Say whether the shift without decay tells each run from its null objective: the words, and both numbers."""
    rows = {row["recipe"]: row for row in found.to_dict("records")}
    said = {}
    for name, null in NULL_OBJECTIVES.items():
        if {name, null} <= set(rows):
            own, other = (rows[recipe]["ratio_rest"].mean for recipe in (name, null))
            told = "is" if _apart(rows[name], rows[null], EACH["ratio_rest"]) else "is not"
            words = f"{label(name)} {told} told apart from {label(null)}"
            said[words] = f"{label(name)} {own:.2f}, {label(null)} {other:.2f}"
    return said


def of_the_paper() -> str:
    """Say what decay alone makes of the shift of the paper's runs, by their recipes, beside what the paper prints."""
    runs = load_reported("published_runs").set_index("run").loc[PAPER]
    printed = load_reported("figures").query("metric == @DRIFT").set_index("recipe")["value"]
    said = []
    for _, run in runs.iterrows():
        share = decay_shrinkage(rates_published(run, int(run["updates"])), weight_decay=run["weight_decay"])
        kind = kind_of(run["objective"])
        said.append(f"{number(share, '.1e')} ({kind}; printed: of the order of {printed[kind.lower()]:.0e})")
    return (
        f"By the paper's own recipes decay alone, before rounding, would shift the spectrum by {listed(said)}. Where "
        "that is more than what is printed, bf16 hides it or there was no such decay."
    )
