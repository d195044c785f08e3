"""The figure of the settings: how far each lies from OPD, in units of what a further seed would do."""

from __future__ import annotations

import altair as alt
import pandas as pd

from opdgeom_utils.charts.series import need
from opdgeom_utils.charts.theme import Figure

LIMIT = 3.0


def settings_against_seeds(ranges: pd.DataFrame) -> Figure:
    """Draw one cell for each run and diagnostic: its distance from OPD's mean, 1 being the reach of a further seed.

    Parameters
    ----------
    ranges
        From :func:`opdgeom_utils.chapters.settings.in_seed_ranges`: settings first, OPD's own seeds after them.
    """
    need(ranges, ["run", "metric", "value", "distance", "inside"])
    runs, metrics = (list(ranges.loc[:, c].drop_duplicates()) for c in ("run", "metric"))
    scale = alt.Scale(scheme="blueorange", domain=[-LIMIT, LIMIT], clamp=True)
    table = ranges.assign(shown=[f"{d:+.1f}" for d in ranges.loc[:, "distance"]])
    base = alt.Chart(table).encode(
        x=alt.X("metric:N", sort=metrics, title=None).axis(labelAngle=-35, labelLimit=150, orient="bottom"),
        y=alt.Y("run:N", sort=runs, title=None).axis(labelLimit=200),
    )
    cells = base.mark_rect(stroke="#FFFFFF").encode(
        color=alt.Color("distance:Q", title="distance (1: reach of a further seed)", scale=scale).legend(
            orient="top", titleLimit=260, gradientLength=180, format="+.0f"
        ),
        tooltip=[
            alt.Tooltip("run:N"), alt.Tooltip("metric:N"), alt.Tooltip("value:Q", format=".3g"),
            alt.Tooltip("distance:Q", format="+.2f"), alt.Tooltip("inside:N", title="a seed could have done it"),
        ],
    )  # fmt: skip
    numbers = base.mark_text(fontSize=11).encode(
        text="shown:N",
        color=alt.condition(f"abs(datum.distance) > {0.6 * LIMIT}", alt.value("#FFFFFF"), alt.value("#222222")),
    )
    outside = ", ".join(
        f"{run} {metric} {shown}"
        for run, metric, shown, inside in table[["run", "metric", "shown", "inside"]].itertuples(index=False)
        if not inside
    )
    said = f"Distance of each run from OPD's mean, in reaches of a further seed. Outside: {outside or 'none'}."
    return alt.layer(cells, numbers).properties(width="container", height=26 * len(runs), description=said)
