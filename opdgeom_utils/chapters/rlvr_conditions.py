"""Whether it is RLVR, or what RLVR had: few different prompts an update, fewer updates than the paper's proportion.

Its control has as many prompts and the control SFT's objective; `rlvr_long` has the paper's proportion of updates. The
rules stand in LOG.md, before these runs.
"""

from __future__ import annotations

import pandas as pd

from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.null_objectives import ASKED, RULERS, rulers_of
from opdgeom_utils.chapters.surviving import NO, YES
from opdgeom_utils.chapters.where import at_place
from opdgeom_utils.claims.schema import load_claims
from opdgeom_utils.intervals import number
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.vocabulary import label, listed, metric_of

RLVR, LONG, CONTROL, NULL = "rlvr", "rlvr_long", "control_sft_64", "rlvr_random_reward"


def beside_control(tables: BookTables) -> str:
    """Set RLVR beside its control and its null objective by the paper's rulers; empty where one was not trained.

    All after as many updates, means over seeds. The rule asks about the control; the null says what that is worth.
    """
    names = [RLVR, CONTROL, NULL]
    found = rulers_of(tables, "equal_updates", names)
    if not set(names) <= set(found.index):
        return ""
    where = {
        label(name): f"not within {ASKED} times of {label(name)} by {listed(off)}"
        if (off := _off(found, name))
        else f"within {ASKED} times of {label(name)}"
        for name in (CONTROL, NULL)
    }
    said = "; ".join(
        f"{metric_of(m).words} {', '.join(number(v, metric_of(m).shown) for v in found.loc[names, m].to_list())}"
        for m in RULERS
    )
    return (
        f"By the paper's rulers, after as many updates, RLVR lies {where[label(CONTROL)]}. It lies "
        f"{where[label(NULL)]}, which had nothing to learn. (In the order {'; '.join(map(label, names))}: "
        f"{said}.)"
    )


def _off(found: pd.DataFrame, other: str) -> list[str]:
    """Rulers by which RLVR lies further than the margin from another run."""
    ratios = found.loc[RLVR] / found.loc[other]
    return [metric_of(m).words for m in RULERS if not 1 / ASKED < ratios[m] < ASKED]


def orders(tables: BookTables) -> pd.DataFrame:
    """Ask for the paper's orders at the paper's steps, with RLVR as it is and with the paper's proportion of updates.

    Returns
    -------
    DataFrame
        ``measure`` and, for each length of RLVR, whether the runs of seed 0 are in the paper's order: *yes* or *no*.
    """
    rows, held = [], set(tables.geometry["recipe"])
    lengths = [name for name in (RLVR, LONG) if name in held]
    for claim in load_claims():
        if claim.condition != "paper_steps" or claim.statistic != "ordering" or not set(claim.args["order"]) <= held:
            continue
        row = {"measure": claim.diagnostic.replace("_", " ")}
        for rlvr in lengths:
            names = [rlvr if name == RLVR else str(name) for name in claim.args["order"]]
            ends = at_place(tables, "final", names).query("seed == 0").set_index("recipe")
            inside = all(ends.loc[names, metric].is_monotonic_increasing for metric in claim.args["metrics"])
            row[f"RLVR, {load_recipe(rlvr, tables.profile).steps:,} updates"] = YES if inside else NO
        rows.append(row)
    return pd.DataFrame(rows)


def say_orders(found: pd.DataFrame) -> str:
    """Say in how many measures the runs are in the paper's order, for each length of RLVR; nothing of no measure.

    ``found``: from :func:`orders`.

    >>> rows = {"measure": ["A", "B"], "RLVR, 800 updates": "yes", "RLVR, 1,368 updates": ["yes", "no"]}
    >>> say_orders(pd.DataFrame(rows))
    "In the paper's order at its steps, one seed: 2 of 2 measures with RLVR at 800 updates, 1 of 2 at 1,368 updates."
    """
    if found.empty:
        return ""
    said = [f"{found[c].tolist().count(YES)} of {len(found)}" for c in found.columns[1:]]
    first, *others = (str(c).removeprefix("RLVR, ") for c in found.columns[1:])
    more = "".join(f", {n} at {length}" for n, length in zip(said[1:], others, strict=True))
    return f"In the paper's order at its steps, one seed: {said[0]} measures with RLVR at {first}{more}."
