"""Figures of runs held in a small space: progress kept by space and along a sweep, and how much of an update stayed."""

from __future__ import annotations

import altair as alt
import pandas as pd

from opdgeom_utils.charts.series import folded, need
from opdgeom_utils.charts.theme import PALETTE, Figure, colour_scale, in_order, label, legend

ROW = 38
BREAK = "|"
NARROWEST = 0.35


def kept_by_space(kept: pd.DataFrame, what: str) -> Figure:
    """Draw the progress that each projected run kept: small points are seeds, the large one their mean.

    Parameters
    ----------
    kept
        Rows of one quantity: ``recipe, free, seed, space, kept``.
    what
        The quantity in words, for the axis and the description.
    """
    table = _rows(need(kept, ["recipe", "free", "seed", "space", "kept"]), "kept")
    x = f"progress kept, by {what}"
    marks = pd.DataFrame({"at": [0.0, 1.0], "text": ["start of the projection", "the free run"]})
    return _strips(kept, table, x, _around(table, [0.0, 1.0]), marks)


def inside_shares(inside: pd.DataFrame) -> Figure:
    """Draw the share of the realised update that lies in the space, and a tick where one without direction would be.

    Parameters
    ----------
    inside
        ``recipe, free, seed, space, inside, isotropic``.
    """
    table = _rows(need(inside, ["recipe", "free", "seed", "space", "inside", "isotropic"]), "inside")
    chance = inside.drop_duplicates("recipe")
    ticks = pd.DataFrame({"row": _names(chance), "at": chance.loc[:, "isotropic"]})
    ticks["text"] = [f"{share:.1%} without direction" for share in ticks.loc[:, "at"]]
    return _strips(inside, table, "share of the realised update inside the space", [0.0, 1.0], ticks)


def kept_along(kept: pd.DataFrame, by: str, title: str, what: str) -> Figure:
    """Draw the progress kept along a sweep, a line for each seed that has more than one place.

    Parameters
    ----------
    kept
        Rows of one quantity: ``free, seed, kept`` and the column ``by``.
    by
        ``rank`` (logarithmic axis) or ``share``, the part of the run that was free.
    title
        Of the horizontal axis.
    what
        The quantity in words.
    """
    known = need(kept, ["free", "seed", "kept", by]).loc[kept.loc[:, "kept"].notna()].sort_values(by)
    seeds = [f"seed {s}" for s in sorted(set(kept.loc[:, "seed"]))]
    table = known.filter(items=["kept", by]).assign(
        objective=[label(str(free)) for free in known.loc[:, "free"]],
        seed=[f"seed {s}" for s in known.loc[:, "seed"]],
        text=[f"{k:.0%}" for k in known.loc[:, "kept"]],
    )
    places = sorted(set(kept.loc[:, by]))
    shown = "d" if by == "rank" else ".0%"
    wide = [places[0] / 1.3, places[-1] * 1.3] if by == "rank" else [0.0, places[-1] + 0.05]
    scale = alt.Scale(type="log" if by == "rank" else "linear", domain=wide, nice=False)
    x = alt.X(f"{by}:Q", title=title, scale=scale, axis=alt.Axis(values=places, format=shown))
    bounds = _around(table.rename(columns={"kept": "value"}), [0.0, 1.0])
    height = alt.Scale(domain=bounds, nice=False)
    y = alt.Y("kept:Q", title="progress kept", scale=height, axis=alt.Axis(format=".0%", tickCount=5))
    names = in_order(label(str(free)) for free in kept.loc[:, "free"])
    colour = alt.Color("objective:N", title=None, scale=colour_scale(names), legend=legend(names))
    shape = alt.Shape("seed:N", title=None, scale=alt.Scale(domain=seeds), legend=legend(seeds))
    tip = [alt.Tooltip(f"{by}:Q", title=title, format=shown), "seed:N", alt.Tooltip("text:N", title="progress kept")]
    base = alt.Chart(table).encode(x=x, y=y, color=colour, detail="seed:N", tooltip=tip)
    marks = alt.Chart(pd.DataFrame({"at": [0.0, 1.0]})).mark_rule(strokeDash=[4, 3])
    said = "; ".join(
        f"{s} at {p:{shown}}: {t}" for s, p, t in zip(table["seed"], table[by], table["text"], strict=True)
    )
    lines = [
        marks.encode(y=alt.Y("at:Q", title="progress kept", scale=height)),
        base.mark_line(strokeWidth=1.5),
        base.mark_point(filled=True, size=70).encode(shape=shape),
    ]
    return alt.layer(*lines).properties(
        width="container", height=260, description=f"Progress kept, by {what}, against {title}. {said}."
    )


def _names(table: pd.DataFrame) -> list[str]:
    """Name each line of a figure, with a mark where its label is broken."""
    pairs = zip(table.loc[:, "free"], table.loc[:, "space"], strict=True)
    parts = [(label(str(free)), *str(space).partition(", ")) for free, space in pairs]
    return [f"{name}{comma}{how}{BREAK}{space}" for name, space, comma, how in parts]


def _rows(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Points of the seeds and, for each recipe, their mean with its 95% interval."""
    out: list[dict[str, object]] = []
    known = table.assign(row=_names(table)).loc[table.loc[:, column].notna()]
    for row, own in known.groupby("row", sort=False):
        keep: dict[str, object] = {
            "row": row,
            "run": _said(str(row)),
            "objective": label(str(own.loc[:, "free"].iloc[0])),
        }
        for seed, value in zip(own.loc[:, "seed"], own.loc[:, column], strict=True):
            out.append(keep | {"role": "seed", "value": float(value), "text": f"{value:.0%}, seed {seed}"})
        fold = folded(own.loc[:, column], "gain")
        out.append(keep | {"role": "mean"} | fold)
    columns = ["row", "run", "objective", "role", "value", "low", "high", "text"]
    return pd.DataFrame(out, columns=columns)


def _said(row: str) -> str:
    """Write the name of a line as a sentence does.

    >>> _said("OPD, left side|early space")
    'OPD, left side: early space'
    """
    return row.replace(BREAK, ": ")


def _around(table: pd.DataFrame, least: list[float]) -> list[float]:
    """Return an axis that holds all values and, at least, these; wide intervals are cut at its ends."""
    values = [*least, *table.loc[:, "value"].dropna()]
    room = max(NARROWEST, 0.12 * (max(values) - min(values)))
    return [min(values) - room, max(values) + room]


def _strips(given: pd.DataFrame, table: pd.DataFrame, title: str, bounds: list[float], marks: pd.DataFrame) -> Figure:
    """Draw one line per run of ``given``; a run without a number keeps its line, empty."""
    rows = list(dict.fromkeys(_names(given)))
    names = in_order(label(str(free)) for free in given.loc[:, "free"])
    y = alt.Y(
        "row:N",
        scale=alt.Scale(domain=rows),
        title=None,
        axis=alt.Axis(grid=True, labelLimit=150, labelExpr=f"split(datum.label, '{BREAK}')"),
    )
    scale = alt.Scale(domain=bounds, nice=False)
    x = alt.X("value:Q", title=title, scale=scale, axis=alt.Axis(format=".0%", tickCount=5))
    colour = alt.Color("objective:N", title=None, scale=colour_scale(names), legend=legend(names))
    tip = [alt.Tooltip("run:N", title="run"), alt.Tooltip("text:N", title="value")]
    base = alt.Chart(table).encode(y=y, color=colour)
    mean, seed = "datum.role == 'mean'", "datum.role == 'seed'"
    reach = base.transform_filter(mean).mark_rule(strokeWidth=2, clip=True)
    layers = [
        reach.encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q"),
        base.transform_filter(seed).mark_point(filled=True, size=30, opacity=0.6, clip=True).encode(x=x, tooltip=tip),
        base.transform_filter(mean).mark_point(filled=True, size=90, opacity=1, clip=True).encode(x=x, tooltip=tip),
    ]
    behind = alt.Chart(marks).encode(
        x=alt.X("at:Q", title=title, scale=scale), tooltip=alt.Tooltip("text:N", title="mark")
    )
    if "row" in marks:
        layers.insert(0, behind.mark_tick(thickness=3, size=20, color=PALETTE["random null"]).encode(y=y))
    else:
        layers.insert(0, behind.mark_rule(strokeDash=[4, 3], strokeWidth=1.5))
    ends = table.loc[table.loc[:, "role"] == "mean"]
    said = "; ".join(f"{run} {text}" for run, text in zip(ends.loc[:, "run"], ends.loc[:, "text"], strict=True))
    lost = [_said(row) for row in rows if row not in set(ends.loc[:, "row"])]
    said += f"; without a number: {', '.join(lost)}" if lost else ""
    return alt.layer(*layers).properties(
        width="container", height=len(rows) * ROW, description=f"{title[0].upper()}{title[1:]}. {said}."
    )
