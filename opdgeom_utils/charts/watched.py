"""The figure of a run that was watched while it trained: every number along the steps, its null beside it."""

from __future__ import annotations

import math

import altair as alt
import pandas as pd

from opdgeom_utils.charts.palette import PALETTE, Figure
from opdgeom_utils.charts.seed_points import figure, need

WIDTH, HEIGHT = 280, 150
#: Column, its null (a column or a number), and the words of its axis.
PANELS = (
    ("walk_ratio", 1.0, "distance, in noise walks"),
    ("coherence", 0.0, "coherence"),
    ("visible_share", "visible_share_noise", "share that bf16 shows"),
    ("stable_rank", "stable_rank_noise", "stable rank of the update"),
    *((f"similarity_{s}", f"similarity_{s}_random_walk", f"similarity to early space, {s}") for s in ("left", "right")),
    *((f"step_inside_{s}", f"step_inside_{s}_random", f"step inside early space, {s}") for s in ("left", "right")),
)
SERIES = alt.Scale(domain=["measured", "its null"], range=[PALETTE["measured"], PALETTE["chance"]])


@figure
def watched_run(numbers: pd.DataFrame) -> Figure:
    """Draw what a monitor logged, a panel for each number with its null.

    ``numbers``: one row per measured step: ``step`` and the columns of the monitor's log, without ``geometry/``.

    >>> drawn = watched_run(pd.DataFrame({"step": [10, 20], "walk_ratio": [1.1, 1.4]})).to_dict()
    >>> drawn["description"]
    'Along the steps, a panel for each number with its null. At step 20: distance, in noise walks 1.4 (null 1).'
    """
    need(numbers, ["step"])
    panels, said = [], []
    for column, null, words in PANELS:
        if column not in numbers or not numbers[column].notna().to_numpy().any():
            continue
        known = null if not isinstance(null, str) else numbers.get(null, math.nan)
        against = pd.Series(known, index=numbers.index, dtype=float)
        parts = [("measured", numbers[column]), ("its null", against)]
        rows = pd.concat([pd.DataFrame({"step": numbers["step"], "value": v, "series": name}) for name, v in parts])
        panels.append(_panel(rows.dropna(), words))
        last = against.iloc[-1]
        beside = "no null" if math.isnan(last) else f"null {last:.3g}"
        said.append(f"{words} {numbers[column].iloc[-1]:.3g} ({beside})")
    chart = alt.concat(*panels, columns=2)
    return chart.properties(
        description=f"Along the steps, a panel for each number with its null. At step {numbers['step'].iloc[-1]}: "
        f"{'; '.join(said)}."
    )


def _panel(rows: pd.DataFrame, words: str) -> alt.Chart:
    return (
        alt.Chart(rows)
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", title="step").axis(format="d", tickMinStep=1, tickCount=4),
            y=alt.Y("value:Q", title=words).scale(zero=False),
            color=alt.Color("series:N", title=None, scale=SERIES).legend(orient="top"),
            strokeDash=alt.StrokeDash("series:N", legend=None).scale(domain=SERIES.domain, range=[[1, 0], [3, 3]]),
            tooltip=["series:N", "step:Q", alt.Tooltip("value:Q", format=".4g")],
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
