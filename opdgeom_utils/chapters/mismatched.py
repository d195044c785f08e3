"""SFT beside a run that cannot get better: the same prompts, each with the demonstration of another problem.

Profile ``sft_null`` trains these nulls as profile ``toy`` trains control SFT and SFT. The rules are in LOG.md.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import TypeVar

import pandas as pd

from opdgeom_utils.chapters.committed_tables import PUBLISHED, BookTables
from opdgeom_utils.chapters.first_nulls import walk_at_end
from opdgeom_utils.chapters.null_objectives import AGREE
from opdgeom_utils.chapters.path_seen import WHOSE
from opdgeom_utils.chapters.update_path import K, cosines, early
from opdgeom_utils.chapters.where import OF_SFT as NULLS
from opdgeom_utils.chapters.where import at_place
from opdgeom_utils.claims import look_up, matching
from opdgeom_utils.intervals import difference, number, seed_interval
from opdgeom_utils.measures.paths import SIDES
from opdgeom_utils.results import Tables, load_tables
from opdgeom_utils.vocabulary import label, listed, metric_of

PROFILE = "sft_null"
OPD, CONTROL, NULL, SFT, RANDOM = "opd", "control_sft", "control_sft_mismatched", "sft", "opd_random_credit"
COMPARED = {CONTROL: (OPD, CONTROL, NULL), SFT: (SFT, NULLS[SFT])}  # what has one norm in common
PLACES = ("equal_updates", "equal_norm")
PARTS = ("geometry", "training", "accuracy", "measures")
Made = TypeVar("Made", Tables, BookTables)
# What a difference of OPD and control SFT needs, by the null.
TEXT, LEARNED, OPEN = "no learning is needed", "it takes learning", "the null lies beyond OPD"
FEW = "the null has too few seeds"


@cache
def both() -> Tables:
    """Return the toy's tables with the runs on mismatched demonstrations."""
    return joined(load_tables(PUBLISHED))


def joined(tables: Made) -> Made:
    """Add SFT's nulls to tables of runs, seed by seed, where they are those that the nulls belong to."""
    if set(tables.geometry["profile"]) != {PUBLISHED}:
        return tables
    nulls, seeds = load_tables(PROFILE), set(tables.geometry["seed"])
    parts = {part: (getattr(tables, part), getattr(nulls, part)) for part in PARTS}
    added = {
        part: pd.concat([own, rows.loc[rows["seed"].isin(seeds)]], ignore_index=True)
        for part, (own, rows) in parts.items()
        if own is not None
    }
    return replace(tables, **added)


def beside(tables: Tables) -> pd.DataFrame:
    """Hold control SFT and SFT against their nulls, after as many updates and at equal norm, by the six diagnostics.

    Returns ``run, place, metric``, the means ``own, null``, the interval of the difference of means ``low, high``
    (Welch; 95% with an allowance for six diagnostics) and ``apart`` (it leaves out 0).
    """
    rows = []
    for (run, names), place in itertools.product(COMPARED.items(), PLACES):
        there = at_place(tables, place, names)
        rows += [{"run": run, "place": place, "metric": m} | _pair(there, run, NULLS[run], m) for m in matching.METRICS]
    return pd.DataFrame(rows).rename(columns={"one": "own", "other": "null"})


def needs(tables: Tables) -> pd.DataFrame:
    """Ask of each difference of OPD and control SFT at equal norm whether a run that cannot get better has it.

    Returns ``metric``, the means ``opd, control, null``, whether OPD and control SFT are ``apart``, and ``needs``: ``no
    learning is needed`` where the null lies on control SFT's side of OPD, told apart from it; ``it takes learning``
    where the null is not told apart from OPD; ``the null lies beyond OPD`` where it is, on the other side; empty where
    OPD and control SFT are alike.
    """
    rows, runs = [], at_place(tables, "equal_norm", COMPARED[CONTROL])
    for metric in matching.METRICS:
        own, null = _pair(runs, CONTROL, OPD, metric), _pair(runs, NULL, OPD, metric)
        same_side = (own["one"] - own["other"]) * (null["one"] - null["other"]) > 0
        few = null["low"] != null["low"]  # undefined: too few seeds
        said = FEW if few else LEARNED if not null["apart"] else TEXT if same_side else OPEN
        said = said if own["apart"] else ""
        row = {"metric": metric, "opd": own["other"], "control": own["one"], "null": null["one"]}
        rows.append(row | {"apart": own["apart"], "needs": said})
    return pd.DataFrame(rows)


def _pair(runs: pd.DataFrame, one: str, other: str, metric: str) -> dict[str, float | bool]:
    """Means of two recipes, the interval of their difference, and whether it leaves out 0."""
    own, its = (runs.loc[runs["recipe"] == name, metric].dropna().to_numpy(float) for name in (one, other))
    low, high = difference(own, its, among=len(matching.METRICS))
    return {"one": own.mean(), "other": its.mean(), "low": low, "high": high, "apart": low > 0 or high < 0}


def common_push(tables: look_up.Tables) -> str:
    """Say that a run that gets no better can have a direction that seeds share; empty but for the nulls' own profile.

    Begins with a space.
    """
    if set(tables.geometry["profile"]) != {PUBLISHED}:
        return ""
    cosine = seed_interval(cosines(both().measures, NULL, NULL)).mean
    if not cosine >= AGREE:
        return ""
    start, end, nothing = learned_nothing(both())[NULL]
    if not nothing:
        return ""
    return (
        " But a common direction is not skill: control SFT on the solutions of other problems has one too "
        f"({cosine:.2f}), and goes from {start:.0%} to {end:.0%} right."
    )


def locking(tables: Tables) -> pd.DataFrame:
    """Similarity at a fifth of the run to its end, of the null, control SFT and random credit, on both sides.

    Returns ``side``, the means ``null, control, random``, ``below`` (the interval of null minus control SFT is wholly
    below 0) and ``above`` (that of null minus random credit is wholly above); Welch, 95%, with an allowance for two.
    """
    assert tables.measures is not None
    rows = []
    for side in SIDES:
        found = early(tables.measures, side, K, [NULL, CONTROL, RANDOM])
        own, control, random = (
            found.loc[found["series"] == label(n), "value"].to_numpy(float) for n in (NULL, CONTROL, RANDOM)
        )
        below = difference(own, control, among=len(SIDES))[1] < 0
        above = difference(own, random, among=len(SIDES))[0] > 0
        rows.append((side, own.mean(), control.mean(), random.mean(), below, above))
    return pd.DataFrame(rows, columns=["side", "null", "control", "random", "below", "above"])


def also_locks(profile: str) -> str:
    """Say whether control SFT's null locks as early as control SFT; of other runs than its own, nothing.

    Begins with a space.
    """
    if profile != PUBLISHED:
        return ""
    found = locking(both())
    as_early = True not in found["below"].tolist()
    return f" Control SFT's null {'locks as early as control SFT' if as_early else 'locks later than control SFT'}."


def _say_locking(found: pd.DataFrame) -> str:
    """Say whether a run that cannot get better locks as control SFT does, and whether it locks more than noise."""
    at = listed(
        f"{row['null']:.2f} on the side of the {WHOSE[row['side']]} (control SFT {row['control']:.2f}, random credit "
        f"{row['random']:.2f})"
        for row in found.to_dict("records")
    )
    both = ~found["below"].to_numpy(bool) & found["above"].to_numpy(bool)
    lesson = (
        "So a run need not gain accuracy to lock"
        if both.all()
        else "So on one side a run need not gain accuracy to lock"
        if both.any()
        else "So it does not lock as a run that learns does"
    )
    return f"A fifth into its run its {K} leading directions are like its last ones by {at}. {lesson}."


def learned_nothing(tables: Tables) -> dict[str, tuple[float, float, bool]]:
    """Return each null's sampled accuracy at its start and its end, mean of seeds, and whether no seed gained any."""
    found = {}
    for name in NULLS.values():
        ends = matching.final(matching.accuracy_gain(tables.accuracy.loc[tables.accuracy["recipe"] == name]))
        end, gain = (ends[column].to_numpy(float) for column in ("sampled", "gain"))
        found[name] = float((end - gain).mean()), float(end.mean()), bool((gain <= 0).all())
    return found


def shown(tables: Tables) -> pd.DataFrame:
    """Lay the comparison at equal norm out as text, a row for each diagnostic."""
    held, rows = beside(tables).set_index(["run", "place", "metric"]), []
    for row in needs(tables).to_dict("records"):
        metric = metric_of(row["metric"])
        apart = bool(held.loc[(CONTROL, "equal_norm", row["metric"]), "apart"])
        cells = (number(float(row[name]), metric.shown) for name in ("opd", "control", "null"))
        unlike = f"yes: {row['needs']}" if row["apart"] else "no"
        rows.append((metric.title, "yes" if apart else "no", unlike, *cells))
    told = [f"{label(CONTROL)} apart from its null", "apart from OPD"]
    head = ["diagnostic", *told, label(OPD), label(CONTROL), label(NULL)]
    return pd.DataFrame(rows, columns=head)


def say(tables: Tables) -> str:
    """Say what runs on mismatched demonstrations show beside SFT, control SFT and OPD; the first line is the answer."""
    held, of = beside(tables).set_index(["run", "place"]), len(matching.METRICS)
    apart = {key: int(held.loc[key, "apart"].sum()) for key in held.index.unique()}
    ratios = held.loc[(SFT, "equal_updates"), "null"] / held.loc[(SFT, "equal_updates"), "own"]
    learned = {
        run: f"{'gains nothing' if nothing else 'still learns'} (from {start:.0%} to {end:.0%} right)"
        for run, (start, end, nothing) in zip(NULLS, learned_nothing(tables).values(), strict=True)
    }
    names = (*NULLS, *NULLS.values(), RANDOM)
    agree = {name: seed_interval(cosines(tables.measures, name, name)).mean for name in names}
    told = [agree[null] - agree[RANDOM] >= AGREE for null in NULLS.values()]
    common = (
        "agreement of seeds alone is no sign that a run got better"
        if all(told)
        else "its seeds do not agree as those of a run that learns do"
    )
    seeds = tables.geometry.groupby("recipe")["seed"].nunique().to_dict()
    walks = {name: f"{walk_at_end(tables, name):.2f}" for name in (NULL, CONTROL)}
    return (
        f"SFT on the solutions of other problems {learned[SFT]} and ends with {ratios.min():.2f} to {ratios.max():.2f} "
        f"times SFT's numbers; {apart[SFT, 'equal_updates']} of {of} diagnostics tell the two apart there, "
        f"{apart[SFT, 'equal_norm']} at equal norm. The cosine of two of its seeds is {agree[NULLS[SFT]]:z.2f}, of "
        f"SFT's {agree[SFT]:z.2f}: {common}. (These solutions push the same way in every update: how answers look "
        "without their problem.)\n"
        f"Control SFT on the solutions of other problems {learned[CONTROL]}. {apart[CONTROL, 'equal_updates']} of {of} "
        f"diagnostics tell it from control SFT after as many updates, {apart[CONTROL, 'equal_norm']} at equal norm. "
        f"Its update is {walks[NULL]} times as long as noise makes it (control SFT's {walks[CONTROL]}); two of its "
        f"seeds have a cosine of {agree[NULL]:z.2f} (control SFT {agree[CONTROL]:z.2f}, random credit "
        f"{agree[RANDOM]:z.2f}). {_say_needs(needs(tables))} {_say_locking(locking(tables))} Seeds of the nulls: "
        f"{seeds[NULL]} of control SFT's, {seeds[NULLS[SFT]]} of SFT's."
    )


def _say_needs(found: pd.DataFrame) -> str:
    """Say what tells OPD from control SFT at equal norm, and whether the null has it too."""
    unlike = found.loc[found["apart"].astype(bool)]
    said = [f"{metric_of(row['metric']).words}: {row['needs']}" for row in unlike.to_dict("records")]
    why = f" ({'; '.join(said)})" if said else ""
    return f"At equal norm {len(unlike)} of {len(found)} tell OPD from control SFT{why}."
