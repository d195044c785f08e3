"""OPD for longer, until it has met the bar: what was said of it after fewer updates, asked again.

The bar and the rules stand in LOG.md, before these runs. A rule that the runs at hand cannot test says so.
"""

from __future__ import annotations

from itertools import pairwise

import pandas as pd

from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.noise import own_runs
from opdgeom_utils.chapters.null_objectives import ASKED, rulers_of
from opdgeom_utils.chapters.regime import HALF, distance_closed, gap_closed
from opdgeom_utils.chapters.regime import LEARNED as THIRD
from opdgeom_utils.chapters.surviving import NO, NOTHING, UNTESTED, YES, Found
from opdgeom_utils.chapters.update_path import cosines
from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.vocabulary import label, listed

OPD, NULL = ("opd", "opd_long"), ("opd_random_credit", "opd_random_credit_long")  # short and long
FURTHER, AGREE = 1.5, 0.3


def longer(tables: BookTables) -> pd.DataFrame:
    """Set OPD and random credit of one length beside those of another, row by row, with what the rules say.

    Returns
    -------
    DataFrame
        ``what``; then, for the shorter and for the longer run, a column of numbers as text that is named after the
        length, and beside it ``held`` or ``holds``: *yes*, *no*, *not testable*.
    """
    rows = []
    for what, rule in RULES.items():
        row = {"what": what}
        for which, verdict in enumerate(("held", "holds")):
            row[_length(tables, which)], held = rule(tables, OPD[which], NULL[which])
            row[verdict] = UNTESTED if held is None else YES if held else NO
        rows.append(row)
    return pd.DataFrame(rows)


def say_seeds(tables: BookTables) -> str:
    """Say how many seeds of the longer runs there are; nothing where there are none."""
    runs = tables.geometry.groupby("recipe").agg({"seed": "nunique"})["seed"].to_dict()
    said = [f"{runs[long]} of {label(short)}" for short, long in (OPD, NULL) if long in runs]
    return f"Seeds of the longer runs: {listed(said)}." if said else ""


def _length(tables: BookTables, which: int) -> str:
    return f"{load_recipe(OPD[which], tables.profile).steps:,} updates"


def _accuracy(tables: BookTables, opd: str, _null: str) -> Found:
    closed = seed_interval(gap_closed(tables, opd))
    return closed.text(".0%"), closed.mean >= THIRD if closed.n else None


def _distance(tables: BookTables, opd: str, _null: str) -> Found:
    closed = distance_closed(tables, opd)
    where = {"own": "its own text", "fixed": "the anchor's"}
    return listed(f"{share.text('.0%')} on {where[text]}" for text, share in closed.items()), (
        closed["fixed"].mean >= HALF if "fixed" in closed else None
    )


def _flattening(tables: BookTables, opd: str, _null: str) -> Found:
    """Nats that the last fifth of the updates closed, beside the fifth before it, on the anchor's text."""
    if tables.measures is None:
        return NOTHING
    apart = pick(tables.measures, quantity="teacher_distance", null="", recipe=opd)
    end = load_recipe(opd, tables.profile).steps
    along = [apart.loc[apart["step"] == end * share // 5, "value"].to_numpy(float) for share in (3, 4, 5)]
    if not all(map(len, along)):
        return NOTHING
    before, now = (float(a.mean() - b.mean()) for a, b in pairwise(along))
    return f"{now:.3f} after {before:.3f}", now < before


def _rulers(tables: BookTables, opd: str, null: str) -> Found:
    if not {opd, null} <= set(tables.geometry["recipe"]):
        return NOTHING
    ends = rulers_of(tables, "final", [opd, null])
    ratios = (ends.loc[opd] / ends.loc[null]).to_list()
    said = "sparsity {:.2f}, angles {:.2f} and {:.2f}, shift {:.2f}".format(*ratios)
    return said, all(1 / ASKED < r < ASKED for r in ratios)


def _directions(tables: BookTables, opd: str, null: str) -> Found:
    own, other = (seed_interval(cosines(tables.measures, name, name)) for name in (opd, null))
    if not own.n:
        return NOTHING
    beside = f"; random credit {other.mean:z.2f}" if other.n else ""
    return f"{own.mean:z.2f}{beside}", own.mean >= AGREE


def _length_beside_noise(tables: BookTables, opd: str, null: str) -> Found:
    if not {opd, null} <= set(tables.geometry["recipe"]):
        return NOTHING
    own, other = own_runs(tables, [opd, null])["ratio"].tolist()
    return f"{own:.2f}; random credit {other:.2f}", 1 < own / other < FURTHER


def _noise(tables: BookTables, _opd: str, null: str) -> Found:
    if null not in set(tables.geometry["recipe"]):
        return NOTHING
    run = own_runs(tables, [null]).iloc[0]
    off = round(100 * (run["sparsity"] - run["predicted"]), 2) + 0.0
    return f"{off:+.2f} points; {run['ratio']:.2f} times", bool(abs(off) <= 3 and 0.9 <= run["ratio"] <= 1.1)


RULES = {
    "gap in accuracy closed: a third or more": _accuracy,
    "distance to the teacher closed: half or more on the anchor's text": _distance,
    "the curve flattens: nats closed by the last fifth of the updates, fewer than by the fifth before": _flattening,
    f"within {ASKED} times of random credit by the paper's rulers": _rulers,
    f"two seeds' updates point alike: a cosine of {AGREE} or more": _directions,
    f"OPD goes further beside noise than random credit: by less than {FURTHER} times": _length_beside_noise,
    "the ruler holds for random credit: 3 points of sparsity, .9 to 1.1 times the length": _noise,
}


def say_longer(found: pd.DataFrame) -> str:
    """Say whether the bar was met, which other rules do not hold, and since when; ``found``: from :func:`longer`.

    >>> says = {"what": ["gap: a third", "distance", "cosine: .3"], "400 updates": [".2", ".2", ".1"]}
    >>> says |= {"held": ["no", "no", "no"], "1,000 updates": "55%", "holds": ["yes", "yes", "no"]}
    >>> say_longer(pd.DataFrame(says)).split("updates. ")[1]
    'Not: cosine (55%; nor after 400 updates: .1).'
    """
    short, long = (str(name) for name in found.columns if str(name).endswith(" updates"))
    bar, rest = found.iloc[:2], found.iloc[2:]
    gap, distance = bar[long]
    met = "past" if (bar["holds"] == YES).all() else "not past"
    tested = rest.loc[rest["holds"] != UNTESTED]
    failed = [
        f"{str(row['what']).split(':')[0]} ({row[long]}"
        + (f"; nor after {short}: {row[short]})" if row["held"] == NO else ")")
        for row in tested.loc[tested["holds"] == NO].to_dict("records")
    ]
    learned = f"In {long} OPD closed {gap} of the gap in accuracy and, of the distance, {distance}"
    before = "" if (bar["held"] == YES).all() else f" ({short} are not enough)"
    held = f"Of the other lines of its table, {len(tested) - len(failed)} of {len(tested)} hold after {long}."
    rest = f" Not: {'; '.join(failed)}." if failed else ""
    return f"**{learned}: {met} this book's bar, a third and a half, by their means{before}.**\n{held}{rest}"
