"""Whether the progress of a run whose step is held in a space is the length of its steps, whatever the space.

Runs of profile ``confined``. The line was seen first; the spaces that test it were trained after their rules.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.confined import EARLY, PAPER, SEEDS
from opdgeom_utils.chapters.learned_variants import OPEN
from opdgeom_utils.chapters.sufficiency import SPACES
from opdgeom_utils.chapters.surviving import NO, UNTESTED, YES
from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.vocabulary import listed

HELD = ", update held"
ALL_BUT = SPACES["complement"]
BLIND = (f"{SPACES['random']} of 108", ALL_BUT, f"{ALL_BUT} of {PAPER[1]}")  # spaces that the line has not seen
SIDES = {YES: "on it", OPEN: "not shown to be on it", NO: "off it"}
NEAR = 0.1  # of the progress: so near to the line is on it


def points(tables: BookTables, kept: pd.DataFrame) -> pd.DataFrame:
    """Return ``space, seed, length, kept, blind`` of every run of OPD whose step is held, a row per seed.

    ``kept``: from :func:`opdgeom_utils.chapters.confined.progress`.
    ``length``: of a held step, as a share of the step before it was cut: the root of the share of its squared norm.
    """
    assert tables.measures is not None
    inside = pick(tables.measures, quantity="update_inside", null="").set_index(["recipe", "seed"])["value"].to_dict()
    rows = kept.loc[kept["space"].str.endswith(HELD) & kept["free"].eq("opd")]
    found = [
        (space.removesuffix(HELD), seed, inside[recipe, seed] ** 0.5, value)
        for recipe, seed, space, value in rows[["recipe", "seed", "space", "kept"]].itertuples(index=False)
        if (recipe, seed) in inside
    ]
    table = pd.DataFrame(found, columns=["space", "seed", "length", "kept"])
    return table.assign(blind=table["space"].isin(BLIND))


def line(found: pd.DataFrame) -> tuple[float, float]:
    """Return where the line begins and how it rises: through the means of the spaces seen, and the free run (1, 1).

    >>> rows = {"space": ["a", "b", "c"], "seed": 0, "length": [0.2, 0.6, 0.5], "kept": [0.2, 0.6, 0.9]}
    >>> begins, rises = line(pd.DataFrame(rows).assign(blind=[False, False, True]))
    >>> round(begins, 6) + 0, round(rises, 6)
    (0.0, 1.0)
    """
    means = found.loc[~found["blind"].to_numpy(bool)].groupby("space")[["length", "kept"]].mean().to_numpy(float)
    lengths, kept = np.vstack([means, [1.0, 1.0]]).T
    rises, begins = np.polyfit(lengths, kept, 1)
    return float(begins), float(rises)


def answers(found: pd.DataFrame) -> pd.DataFrame:
    """Apply the rules to :func:`points`: ``rule``, ``found`` (mean and 95% interval), ``seeds``, ``holds``."""
    begins, rises = line(found)
    off = found.assign(off=found["kept"] - begins - rises * found["length"])
    rows = []
    for space in BLIND:
        gap = seed_interval(np.asarray(off.loc[off["space"] == space, "off"], dtype=float))
        holds = YES if max(abs(gap.low), abs(gap.high)) <= NEAR else NO if gap.low > NEAR or gap.high < -NEAR else OPEN
        rows.append((f"update held in {space}: kept as the length of its steps says", gap, holds))
    wide = found.pivot_table(index="seed", columns="space", values="kept")
    early, rest = (name for name in (f"{EARLY} of {PAPER[1]}", BLIND[2]))
    lead = wide[[early, rest]].to_numpy(float) if {early, rest} <= set(wide) else np.empty((0, 2))
    gap = seed_interval(lead[:, 0] - lead[:, 1])
    rows.append(
        (f"update held in {PAPER[1]} directions: {EARLY} keeps more than all but it", gap, YES if gap.low > 0 else NO)
    )
    return pd.DataFrame(
        [(rule, gap.text("+.0%"), gap.n, holds if gap.n >= SEEDS else UNTESTED) for rule, gap, holds in rows],
        columns=["rule", "found", "seeds", "holds"],
    )


def say(found: pd.DataFrame) -> str:
    """Say whether progress kept follows the length of the steps, in the line's own spaces and in others."""
    judged, (begins, rises) = answers(found), line(found)
    of_seeds = found.groupby("space")[["length", "kept"]].agg("mean")
    means = {str(space): row for space, row in zip(of_seeds.index, of_seeds.to_numpy(float), strict=True)}
    off = {space: abs(kept - begins - rises * length) for space, (length, kept) in means.items()}
    seen = [far for space, far in off.items() if space not in BLIND]
    near = f"over {len(seen)} spaces it lies within {max(seen):.0%} of one line"
    if UNTESTED in judged["holds"].tolist():
        return f"With the step held, {near.replace('it', 'progress kept', 1)}; in others it is not tested."
    tested = dict(zip(BLIND, judged["holds"].tolist(), strict=False))
    by = {words: [space for space, holds in tested.items() if holds == kind] for kind, words in SIDES.items()}
    head = "By means" if by[SIDES[OPEN]] else "Whatever the space"
    follows = "does not only follow" if by[SIDES[NO]] else "follows"
    where = "; ".join(f"{words} {listed(spaces)}" for words, spaces in by.items() if spaces)
    early, rest, but_four = (means[name][1] for name in (f"{EARLY} of {PAPER[1]}", BLIND[2], BLIND[1]))
    needed = "needed" if judged["holds"].tolist()[-1] == YES else "not shown to be needed"
    return (
        f"{head} the progress of a run whose step is held {follows} the length of its steps: {near}, and three that "
        f"the line had not seen within {max(off[space] for space in BLIND):.0%} (by the rule, {where}). So the early "
        f"space is {needed}: held in its {PAPER[1]} directions OPD keeps {early:.0%}, held in all but them {rest:.0%} "
        f"({judged['found'].tolist()[-1]}), and in all but its leading four {but_four:.0%}."
    )
