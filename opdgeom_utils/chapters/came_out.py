"""What came out, at the top of the chapters on the early space, on tokens and on mixing.

Each answer has the finding first, then what it has to be held against, then how sure it is. Numbers, counts and the
words that depend on them come from the tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import pandas as pd

from opdgeom_utils.chapters import first_nulls, seen
from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.control import GATE, OTHER_SEED
from opdgeom_utils.chapters.moments import CHANCE, OWN_BATCHES, beside_chance
from opdgeom_utils.chapters.regime import LEARNED, gap_closed
from opdgeom_utils.chapters.sufficiency import ENOUGH, SPACES
from opdgeom_utils.intervals import number, seed_interval
from opdgeom_utils.vocabulary import listed

EARLY, REST, RANDOM, INPUTS = SPACES.values()
WEAK = 1.5  # a factor below which OPD itself is hardly nearer to its directions than a run with nothing to learn


def how_sure(tables: BookTables, until: int | None = None) -> str:
    """Say what a reader has to know before the answer: how little OPD had learned, and what does not stand beside it.

    ``until``: the update at which a chapter compares its runs, where that is not their end.
    """
    if "opd" not in set(tables.accuracy["recipe"]):
        return ""
    shares = gap_closed(tables, until=until)
    closed = fmean(shares)
    if math.isnan(closed):
        return "How far it carries: how much OPD had learned is not known."
    said = f"OPD (seeds: {len(shares)}) had closed {closed:.0%} of the gap in accuracy to its teacher"
    said += f" at update {until}, where these runs are compared" if until is not None else ""
    held = "opd_random_credit" in set(tables.accuracy["recipe"]) or tables.profile == first_nulls.ARCHIVED
    beside = "" if held else "no trained run with random credit is beside it"
    if closed >= LEARNED:
        return f"{said}{f'; {beside}' if beside else ''}."
    return f"How far it carries: {said}, so it hardly learned{f', and {beside}' if beside else ''}."


def early_space(kept: pd.DataFrame, inside: pd.DataFrame) -> str:
    """Say whether OPD's early space is enough, whether another space would do, and whether the test is tight.

    Parameters
    ----------
    kept
        From :func:`opdgeom_utils.chapters.sufficiency.start_and_ends`, with the progress ``kept``.
    inside
        One row per (projected run, seed): ``free, space, sweep`` and ``inside``, a share from 0 to 1.
    """
    by = _kept_by(kept, "teacher_distance")
    own = by.get(("opd", EARLY))
    if own is None:
        return "No run of OPD in its early space is in these tables."
    mean = seed_interval(own.dropna().to_numpy(float))
    between = f", 95% interval {mean.low:.0%} to {mean.high:.0%}" if mean.n > 1 else ""
    seeds = f"{mean.n} seed{'s' * (mean.n != 1)}"
    said = f"Held in its early space, OPD keeps {mean.mean:.0%} of its progress to the teacher ({seeds}{between}).\n"
    names = {RANDOM: "a random space", INPUTS: "the space of its inputs"}
    others = {space: by["opd", space] for space in names if ("opd", space) in by}
    if others:
        known = {INPUTS: ", known before training,"}
        levels = [f"{names[space]}{known.get(space, '')} keeps {values.mean():.0%}" for space, values in others.items()]
        alike = [names[space] for space, values in others.items() if seen.stands(own, values) != seen.ABOVE]
        said += f"{'But ' if alike else ''}{listed(levels)}. "
        if alike:
            said += f"These seeds do not tell the early space from {listed(alike)}: it is not shown to be needed. "
    if ("opd", REST) in by:
        rest, there = by["opd", REST], own.reindex(by["opd", REST].index)
        said += (
            f"All but the early space keeps {rest.mean():.0%}, where the early space keeps {there.mean():.0%} "
            f"({len(rest)} seed{'s' * (len(rest) != 1)}). "
        )
    by_accuracy, sft = _kept_by(kept, "accuracy"), ("sft", EARLY)
    if sft in by_accuracy:
        part = seed_interval(by_accuracy[sft].dropna().to_numpy(float))
        harmed = "is harmed, as the paper says" if part.high < ENOUGH else "is not shown to be harmed"
        said += f"SFT {harmed}: in its own early space it keeps {part.mean:.0%} of its gain in accuracy. "
    held = inside.loc[inside["free"].eq("opd") & inside["space"].eq(EARLY) & inside["sweep"].eq("space"), "inside"]
    if len(held):
        said += f"And the space leaks: through Adam {1 - held.mean():.0%} of OPD's update leaves it."
    return said.strip()


def _kept_by(kept: pd.DataFrame, ruler: str) -> dict[tuple[str, str], pd.Series]:
    """Progress kept by seed, of each run in each space."""
    rows = kept.loc[kept["quantity"].eq(ruler) & kept["sweep"].eq("space") & kept["kept"].notna()]
    return {(str(f), str(s)): own.set_index("seed")["kept"] for (f, s), own in rows.groupby(["free", "space"])}


def tokens(gaps: pd.DataFrame, fewer: Sequence[str], others: Sequence[str], card: pd.DataFrame) -> str:
    """Say whether fewer tokens and other writers move OPD's path, and whether this ruler could have told.

    Parameters
    ----------
    gaps
        From :func:`opdgeom_utils.chapters.control.path_gaps`.
    fewer, others
        Rows of it: those with fewer tokens, and those that others wrote.
    card
        The scorecard; it says whether RLVR leaves OPD's path.

    Examples
    --------
    >>> rows = [("top 50%", 0.01), ("anchor writes", 0.4), (OTHER_SEED, 0.1), ("RLVR", 0.2)]
    >>> gaps = pd.DataFrame(rows, columns=["row", "value"]).assign(seed=0)
    >>> row = {"id": GATE, "verdict": "not decided", "value": 0.08, "low": 0.06, "high": 0.1}
    >>> card = pd.DataFrame([row | {"threshold": 0.1, "n_seeds": 5}])
    >>> for said in tokens(gaps, ["top 50%"], ["anchor writes"], card).splitlines():
    ...     print(said)
    RLVR itself is not shown to leave OPD's path (not decided: 0.08, 0.06 to 0.1, seeds: 5; its rule
    asks for more than 0.1), so a path that stays says little of the objective.
    By means, runs with half or a quarter of the tokens lie at most 0.010 from OPD's path (mean absolute log ratio of
    stable ranks), those of another writer 0.400 to 0.400. The yardsticks: another seed of OPD is 0.100 away, RLVR
    0.200.
    """
    (kept, moved), yardsticks = _gaps_of(gaps, fewer, others)
    if yardsticks is None:
        return "The runs with fewer tokens, those of other writers and their yardsticks are not all in these tables."
    (seed, rlvr), apart = yardsticks, _told_apart(gaps, [*fewer, *others])
    tested = _power(card, "a path that stays says little of the objective")
    return (
        f"{apart}{tested if apart else tested.removeprefix('But ')}\n"
        f"By means, runs with half or a quarter of the tokens lie at most {max(kept):.3f} from OPD's path (mean "
        f"absolute log ratio of stable ranks), those of another writer {min(moved):.3f} to {max(moved):.3f}. The "
        f"yardsticks: another seed of OPD is {seed:.3f} away, RLVR {rlvr:.3f}."
    )


def _gaps_of(gaps: pd.DataFrame, *groups: Sequence[str]) -> tuple[list[list[float]], tuple[float, float] | None]:
    """Mean gaps of each group's rows, and of another seed and of RLVR; None for these where anything is missing."""
    means = gaps.groupby("row", sort=False)["value"].agg("mean").to_dict()
    found = [[float(means[name]) for name in names if name in means] for names in groups]
    known = all(found) and {OTHER_SEED, "RLVR"} <= set(means)
    return found, (float(means[OTHER_SEED]), float(means["RLVR"])) if known else None


def _told_apart(gaps: pd.DataFrame, names: Sequence[str]) -> str:
    """Say which paths are further than that of another seed on the seeds that both have; nothing with one seed each."""
    values = seen.by_seed(gaps, "row")
    held = [name for name in names if name in values and values.loc[:, name].count() > 1]
    if not held or OTHER_SEED not in values:
        return ""
    apart = [n for n in held if seen.stands(values.loc[:, n], values.loc[:, OTHER_SEED]) == seen.ABOVE]
    lone = f"; {len(names) - len(held)} more have one seed" if len(names) > len(held) else ""
    few = f" (seed by seed, of {len(held)} runs with several seeds{lone})"
    if not apart:
        return f"Neither fewer tokens nor another writer is shown to move OPD's path further than another seed{few}. "
    return (
        f"Further from OPD's path than another seed of OPD {'is' if len(apart) == 1 else 'are'} {listed(apart)}{few}. "
    )


def _seeds(gaps: pd.DataFrame) -> str:
    """Say how many seeds the mixtures have.

    >>> rows = [("a", 0, "variant"), ("b", 0, "variant"), ("b", 1, "variant"), ("RLVR", 2, "null")]
    >>> _seeds(pd.DataFrame(rows, columns=["row", "seed", "kind"]))
    ' (1 to 2 seeds each)'
    """
    each = gaps.loc[gaps["kind"] == "variant"].groupby("row").agg({"seed": "nunique"})["seed"]
    few, many = int(each.min()), int(each.max())
    return f" ({few}{f' to {many}' if many != few else ''} seed{'s' * (many != 1)} each)"


def _power(card: pd.DataFrame, so: str) -> str:
    """Say whether the path can tell objectives apart, and what it means where it is not shown to."""
    gate = card.loc[card["id"] == GATE].to_dict("records")
    if [row["verdict"] for row in gate] == ["reproduced"]:
        return "RLVR does leave OPD's path, so the ruler can tell objectives apart."
    said = ""
    for row in gate:
        value, low, high, bar = (number(float(row[name])) for name in ("value", "low", "high", "threshold"))
        n = row["n_seeds"]
        said = f" ({row['verdict']}: {value}, {low} to {high}, seeds: {n}; its rule asks for more than {bar})"
    return f"But RLVR itself is not shown to leave OPD's path{said}, so {so}."


def mixing(gaps: pd.DataFrame, aligned: pd.DataFrame, masks: Sequence[str], card: pd.DataFrame) -> str:
    """Say whether mixing moves OPD's path, whether scale makes it, and whether masks keep more than random credit does.

    Parameters
    ----------
    gaps
        From :func:`opdgeom_utils.chapters.control.path_gaps`.
    aligned
        From :func:`opdgeom_utils.chapters.moments.moment_table`, on independent batches.
    masks
        Its rows that mask tokens.
    card
        The scorecard; it says whether RLVR leaves OPD's path.

    Examples
    --------
    >>> rows = [("alpha 0.5", "variant", 0.01), (OTHER_SEED, "null", 0.04), ("RLVR", "null", 0.08)]
    >>> gaps = pd.DataFrame(rows, columns=["row", "kind", "value"]).assign(seed=0)
    >>> rows = [("top 50%", 0, 0.3), ("random credit", 0, 0.3), ("top 50%", 1, 0.4), ("random credit", 1, 0.4)]
    >>> aligned = pd.DataFrame(rows, columns=["row", "seed", "value"]).assign(panel="left moment")
    >>> row = {"id": GATE, "verdict": "not decided", "value": 0.08, "low": 0.06, "high": 0.1}
    >>> card = pd.DataFrame([row | {"threshold": 0.1, "n_seeds": 5}])
    >>> for said in mixing(gaps, aligned, ["top 50%"], card).splitlines():
    ...     print(said)
    RLVR itself is not shown to leave OPD's path (not decided: 0.08, 0.06 to 0.1, seeds: 5; its rule
    asks for more than 0.1), so the paper cannot be tested on paths here. As to the mechanism, 0 of 1 masks are shown to
    come nearer to OPD's gradient directions than random credit's gradient does (by means 0 of 1 do on every side).
    By means mixing in RLVR moves OPD's path no further than RLVR's own is: at most 0.010, RLVR 0.080 (seeds:
    1). Nearer than another seed of OPD (0.040) stay 1 of 1 mixtures (1 seed each).
    """
    (mixed,), yardsticks = _gaps_of(gaps, gaps.loc[gaps["kind"] == "variant", "row"].unique().tolist())
    if yardsticks is None:
        return "The mixtures and their yardsticks are not all in these tables."
    seed, rlvr = yardsticks
    tested = _power(card, "the paper cannot be tested on paths here").removeprefix("But ")
    how = "no further than RLVR's own is" if max(mixed) <= rlvr else "further than RLVR's own is"
    return (
        f"{tested}{_beyond_random_credit(aligned, masks)}\n"
        f"By means mixing in RLVR moves OPD's path {how}: at most {max(mixed):.3f}, RLVR {rlvr:.3f} (seeds: "
        f"{gaps.loc[gaps['row'] == 'RLVR', 'seed'].nunique()}). Nearer than another seed of OPD ({seed:.3f}) stay "
        f"{sum(m < seed for m in mixed)} of {len(mixed)} mixtures{_seeds(gaps)}."
    )


def _beyond_random_credit(aligned: pd.DataFrame, masks: Sequence[str]) -> str:
    """Count the masks that come nearer to OPD's directions than random credit does, on any side."""
    nearer, here, by_means = set(), set(), []
    for _, values, names, above in beside_chance(aligned, masks):
        here |= set(names)
        nearer |= set(above)
        by_means.append({n for n in names if values.loc[:, n].mean() > values.loc[:, CHANCE].mean()})
    if not here:
        return ""
    count = f"{len(nearer)} of {len(here)} masks"
    means, most = aligned.pivot_table(index="panel", columns="row", values="value"), ""
    if OWN_BATCHES in means:
        near = (means[OWN_BATCHES] / means[CHANCE]).to_numpy(float)
        most = f" OPD's own other batches come {near.min():.2f} to {near.max():.2f} times as near as random credit's"
        most += ": the test is weak." if near.max() < WEAK else "."
    return (
        f" As to the mechanism, {count} are shown to come nearer to OPD's gradient directions than random credit's "
        f"gradient does (by means {len(set.intersection(*by_means))} of {len(here)} do on every side).{most}"
    )
