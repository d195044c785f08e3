"""Figures of runs held in a small space: progress kept by space and along a sweep, and how much of an update stayed."""

from __future__ import annotations

import textwrap

import altair as alt
import pandas as pd

from opdgeom_utils.charts.axes import begun
from opdgeom_utils.charts.palette import PALETTE, Figure, coloured, in_order, legend, tips
from opdgeom_utils.charts.rows_of_points import reach_seeds_means
from opdgeom_utils.charts.seed_points import figure, folded, known, need
from opdgeom_utils.intervals import number
from opdgeom_utils.vocabulary import NULLS, label

ROW = 38
TITLE = 26  # letters in a line of an axis' title, which stands beside long labels
BREAK = "|"
NARROWEST = 0.35
SHORT = {"early space": "early", "input activations": "inputs", "random space": "random"}  # in a legend
SHORT |= {"all but the early space": "all but early"}


@figure
def kept_by_space(kept: pd.DataFrame, what: str) -> Figure:
    """Draw the progress that each projected run kept: small points are seeds, the large one their mean.

    ``kept``: rows of one quantity: ``recipe, free, seed, space, kept``.
    """
    title = f"progress kept, by {what}"
    table = _points(need(kept, ["recipe", "free", "seed", "space", "kept"]), "kept", title)
    marks = pd.DataFrame({"at": [0.0, 1.0], "text": ["start of the projection", "the free run"]})
    return _strips(kept, table, title, _around(table.loc[:, "value"]), marks)


@figure
def inside_shares(inside: pd.DataFrame) -> Figure:
    """Draw the share of the realised update that lies in the space, and a tick where one without direction would be.

    ``inside``: ``recipe, free, seed, space, inside, isotropic``.
    """
    title = "share of the realised update inside the space"
    table = _points(need(inside, ["recipe", "free", "seed", "space", "inside", "isotropic"]), "inside", title)
    chance = inside.dropna(subset=["isotropic"]).drop_duplicates("recipe")
    ticks = pd.DataFrame({"row": _names(chance), "at": chance.loc[:, "isotropic"]})
    ticks["text"] = [f"{number(share, '.1%')} without direction" for share in ticks.loc[:, "at"]]
    return _strips(inside, table, title, [0.0, 1.0], ticks)


@figure
def kept_by_length(kept: pd.DataFrame, begins: float, rises: float) -> Figure:
    """Draw the progress kept against the length of the held steps: a point for each space, seeds small, and a line.

    ``kept``: ``space, seed, length, kept, blind``; spaces that the line has not seen are hollow.
    ``begins, rises``: of the line, where steps have no length, and until they are whole.
    """
    rows = known(need(kept, ["space", "seed", "length", "kept", "blind"]), "kept", "progress kept")
    rows = known(rows, "length", "the length of steps")
    means = rows.groupby(["space", "blind"], sort=False)[["length", "kept"]].agg("mean").reset_index()
    table = pd.concat([rows.assign(role="seed"), means.assign(role="mean", seed=0)])
    table["kind"] = [SHORT.get(str(space).split(" of ")[0], str(space)) for space in table["space"]]
    table["text"] = [f"{number(k, '.0%')} kept, steps {number(at, '.0%')} as long"
                     for k, at in zip(table["kept"], table["length"], strict=True)]  # fmt: skip
    scale, axis = alt.Scale(domain=[0.0, 1.05], nice=False), alt.Axis(format=".0%", tickCount=5)
    x = alt.X("length:Q", title="length of the held steps", scale=scale, axis=axis)
    y = alt.Y("kept:Q", title="progress kept", scale=scale, axis=axis)
    base = alt.Chart(table.filter(items=["space", "kind", "role", "length", "kept", "blind", "text"])).encode(
        x=x, y=y, color=coloured("kind", table["kind"]), tooltip=tips("space", ("text", "mean or seed"))
    )
    ends = pd.DataFrame({"length": [0.0, 1.0], "kept": [begins, begins + rises]})
    layers = [alt.Chart(ends).mark_line(strokeDash=[4, 3], strokeWidth=1.5).encode(x=x, y=y)]
    for role, size in (("seed", 25), ("mean", 110)):
        for hollow in (False, True):
            own = base.transform_filter(f"datum.role == '{role}' && {'' if hollow else '!'}datum.blind")
            layers.append(own.mark_point(filled=not hollow, size=size, opacity=0.5 if role == "seed" else 1))
    own = table.loc[table["role"] == "mean", ["space", "text"]].itertuples(index=False)
    said = "; ".join(f"{space}: {text}" for space, text in own)
    description = f"Progress kept against the length of the held steps. {said}."
    return alt.layer(*layers).properties(width="container", height=300, description=description)


@figure
def kept_along(kept: pd.DataFrame, by: str, title: str, what: str) -> Figure:
    """Draw the progress kept along a sweep, a line for each seed that has more than one place.

    ``kept``: rows of one quantity: ``free, seed, kept`` and the column ``by``.
    ``by``: ``rank`` (logarithmic axis) or ``share``, the part of the run that was free.
    """
    rows = known(need(kept, ["free", "seed", "kept", by]), "kept", f"progress kept, by {what}").sort_values(by)
    seeds = [f"seed {s}" for s in sorted(set(kept.loc[:, "seed"]))]
    table = rows.filter(items=["kept", by]).assign(
        objective=[label(str(free)) for free in rows.loc[:, "free"]],
        seed=[f"seed {s}" for s in rows.loc[:, "seed"]],
        text=[number(k, ".0%") for k in rows.loc[:, "kept"]],
    )
    places = sorted(set(kept.loc[:, by]))
    shown, kind = ("d", "log") if by == "rank" else (".0%", "linear")
    wide = [places[0] / 1.3, places[-1] * 1.3] if by == "rank" else [0.0, places[-1] + 0.05]
    scale = alt.Scale(type=kind, domain=wide, nice=False)
    height = alt.Scale(domain=_around(table.loc[:, "kept"]), nice=False)
    x = alt.X(f"{by}:Q", title=title, scale=scale, axis=alt.Axis(values=places, format=shown))
    y = alt.Y("kept:Q", title="progress kept", scale=height, axis=alt.Axis(format=".0%", tickCount=5))
    colour = coloured("objective", [label(str(free)) for free in kept.loc[:, "free"]])
    shape = alt.Shape("seed:N", title=None, scale=alt.Scale(domain=seeds), legend=legend(seeds))
    tip = [alt.Tooltip(f"{by}:Q", title=title, format=shown), *tips("seed", ("text", "progress kept"))]
    base = alt.Chart(table).encode(x=x, y=y, color=colour, detail="seed:N", tooltip=tip)
    marks = alt.Chart(pd.DataFrame({"at": [0.0, 1.0]})).mark_rule(strokeDash=[4, 3])
    lines = [
        marks.encode(y=alt.Y("at:Q", title="progress kept", scale=height)),
        base.mark_line(strokeWidth=1.5),
        base.mark_point(filled=True, size=70).encode(shape=shape),
    ]
    said = "; ".join(
        f"{s} at {p:{shown}}: {t}" for s, p, t in zip(table["seed"], table[by], table["text"], strict=True)
    )
    return alt.layer(*lines).properties(
        width="container", height=260, description=f"Progress kept, by {what}, against {title}. {said}."
    )


def _names(table: pd.DataFrame) -> list[str]:
    """Name each line of a figure, with a mark where its label is broken."""
    pairs = zip(table.loc[:, "free"], table.loc[:, "space"], strict=True)
    parts = [(label(str(free)), *str(space).partition(", ")) for free, space in pairs]
    return [f"{name}{comma}{how}{BREAK}{space}" for name, space, comma, how in parts]


def _points(table: pd.DataFrame, column: str, what: str) -> pd.DataFrame:
    """Points of the seeds and, for each recipe, their mean with its 95% interval."""
    out: list[dict[str, object]] = []
    for row, own in known(table.assign(row=_names(table)), column, what).groupby("row", sort=False):
        keep: dict[str, object] = {"row": row, "run": str(row).replace(BREAK, ": ")}
        keep["objective"] = label(str(own.loc[:, "free"].iloc[0]))
        for seed, value in zip(own.loc[:, "seed"], own.loc[:, column], strict=True):
            text = f"{number(value, '.0%')}, seed {seed}"
            out.append(keep | {"role": "seed", "value": float(value), "text": text})
        out.append(keep | {"role": "mean"} | folded(own.loc[:, column], "kept"))
    return pd.DataFrame(out)


def _around(values: pd.Series) -> list[float]:
    """Return an axis that holds all values, 0 and 1; wide intervals are cut at its ends."""
    low, high = min(0.0, *values), max(1.0, *values)
    room = max(NARROWEST, 0.12 * (high - low))
    return [low - room, high + room]


def _strips(given: pd.DataFrame, table: pd.DataFrame, title: str, bounds: list[float], marks: pd.DataFrame) -> Figure:
    """Draw one line per run of ``given``; a run without a number keeps its line, empty."""
    rows = list(dict.fromkeys(_names(given)))
    axis = alt.Axis(grid=True, labelLimit=150, labelExpr=f"split(datum.label, '{BREAK}')")
    y = alt.Y("row:N", scale=alt.Scale(domain=rows), title=None, axis=axis)
    scale = alt.Scale(domain=bounds, nice=False)
    lines = textwrap.wrap(title, TITLE)
    x = alt.X("value:Q", title=lines, scale=scale, axis=alt.Axis(format=".0%", tickCount=5, titleAnchor="end"))
    low, at = (alt.X(f"{column}:Q", title=lines, scale=scale) for column in ("low", "at"))
    names = in_order(label(str(free)) for free in given.loc[:, "free"])
    base = alt.Chart(table).encode(y=y, color=coloured("objective", names))
    tip = tips("run", ("text", "value"))
    behind = alt.Chart(marks).encode(x=at, tooltip=tips(("text", "mark")))
    if "row" in marks:
        behind = behind.mark_tick(thickness=3, size=20, color=PALETTE[NULLS["random"].label]).encode(y=y)
    else:
        behind = behind.mark_rule(strokeDash=[4, 3], strokeWidth=1.5)
    layers = [behind, *reach_seeds_means(base, x, low, tip, sizes=(30, 90), faint=0.6, clip=True)]
    ends = table.loc[table.loc[:, "role"] == "mean"]
    said = "; ".join(f"{run} {text}" for run, text in zip(ends.loc[:, "run"], ends.loc[:, "text"], strict=True))
    lost = [row.replace(BREAK, ": ") for row in rows if row not in set(ends.loc[:, "row"])]
    said += f"; without a number: {', '.join(lost)}" if lost else ""
    return alt.layer(*layers).properties(
        width="container", height=len(rows) * ROW, description=f"{begun(title)}. {said}."
    )
