"""Where the names on a map stand: beside their marks, or apart at the end of a line, and on nothing else; their layers.

Places are fractions of the plot, from the left and from below; a plot follows its page, so each place is tried at the
width of a phone, of a tablet and of a desktop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np
import pandas as pd

WIDTHS = (275.0, 430.0, 610.0)  # of the plot, in pixels
HEIGHT = 340
LETTER, LINE = 6.7, 14  # width of a letter and height of a line, in pixels
BESIDE = (("center", 0, -15), ("left", 11, 0), ("right", -11, 0), ("center", 0, 17))
NEAR = (*BESIDE, ("right", 8, -15), ("left", -8, -15), ("right", 8, 17), ("left", -8, 17))
ASIDE = (0.0, 0.05, 0.09, 0.14, 0.2, 0.28)  # of the width, to either side
UPWARDS = tuple(range(0, 150, 15))  # pixels, to either side
CLASH, CROSSING, APART = 1000.0, 400.0, 40.0
STRUCK = 6.0  # pixels between a line and a mark that it runs through
Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """An axis from its first value to its last: 0 at the one, 1 at the other.

    >>> Scale(1.0, 100.0, log=True).along(10.0), Scale(1.0, 100.0, log=True).at(0.5), Scale(0.0, 2.0).along(0.5)
    (0.5, 10.0, 0.25)
    """

    first: float
    last: float
    log: bool = False

    def along(self, value: float) -> float:
        """Place of a value, as a fraction of the axis."""
        if self.log:
            return math.log(value / self.first) / math.log(self.last / self.first)
        return (value - self.first) / (self.last - self.first)

    def at(self, place: float) -> float:
        """Value at a place."""
        if self.log:
            return self.first * (self.last / self.first) ** place
        return self.first + (self.last - self.first) * place


@dataclass(frozen=True)
class Place:
    """Where a name stands: its alignment, its offset in pixels, its anchor, and whether a line leads there."""

    align: str
    dx: int
    dy: int
    at: Point
    apart: bool

    def box(self, name: str, width: float) -> tuple[float, float, float, float]:
        """Left, right, upper and lower end of the name in pixels."""
        x, y, long = self.at[0] * width + self.dx, (1 - self.at[1]) * HEIGHT + self.dy, LETTER * len(name)
        left = x - {"left": 0.0, "center": long / 2, "right": long}[self.align]
        return left, left + long, y - LINE / 2, y + LINE / 2


def names_on_a_map(
    names: Sequence[tuple[str, float, float]], marks: Sequence[Point], lines: Sequence[tuple[Point, Point]]
) -> list[Place]:
    """Find a place for every name, one after the other: free at every width, and as near to its mark as can be.

    Parameters
    ----------
    names
        Each name with the place of its mark.
    marks, lines
        What is drawn besides; the marks of the names belong to them.

    Examples
    --------
    >>> [place.align for place in names_on_a_map([("OPD", 0.5, 0.5)], [(0.5, 0.5)], [])]
    ['center']
    >>> marks = [(0.5, 0.5), (0.51, 0.5), (0.52, 0.5)]
    >>> found = names_on_a_map([("OPD", *marks[0]), ("RLVR", *marks[1]), ("SFT", *marks[2])], marks, [])
    >>> len({(place.at, place.dx, place.dy) for place in found})
    3
    """
    placed: list[Place] = []
    at_marks, on_lines = np.array(marks, float).reshape(1, -1, 2), _along(lines)
    for i, (name, x, y) in enumerate(names):
        others = [(names[j][0], placed[j], names[j][1:]) for j in range(i)]
        lowest, best = math.inf, None
        for place in _candidates(x, y):
            cost = _distance((x, y), place)
            if cost < lowest:  # fines only add to it
                cost += _fines(name, (x, y), place, others, at_marks, on_lines)
            if cost < lowest:
                lowest, best = cost, place
        placed += [best] if best else []
    return placed


def name_layers(
    rows: pd.DataFrame,
    axes: tuple[Callable[[str], alt.X], Callable[[str], alt.Y]],
    scales: tuple[Scale, Scale],
    marks: Sequence[Point],
    lines: Sequence[tuple[Point, Point]],
    *,
    size: int = 12,
) -> list[alt.Chart]:
    """Draw names beside their marks, with a thin line to those that stand apart.

    Parameters
    ----------
    rows
        ``tag, x, y``: a name and where its mark is, in the units of the axes.
    axes, scales
        The two axes: how the chart encodes a column on each, and how they run.
    marks, lines
        What is drawn besides, as fractions of the plot; the marks of the names belong to them.
    size
        Of the letters, in pixels.
    """
    (x, y), (across, upwards) = axes, scales
    names = [(str(tag), across.along(a), upwards.along(b)) for tag, a, b in rows[["tag", "x", "y"]].to_numpy(object)]
    found = names_on_a_map(names, marks, lines)
    rows = rows.assign(tag_x=[across.at(p.at[0]) for p in found], tag_y=[upwards.at(p.at[1]) for p in found])
    apart = rows.loc[[p.apart for p in found]]
    lead = alt.Chart(apart).mark_rule(strokeWidth=0.8, color="#7F7F7F")
    layers = [lead.encode(x=x("x"), y=y("y"), x2="tag_x:Q", y2="tag_y:Q")] if len(apart) else []
    for one in dict.fromkeys((p.align, p.dx, p.dy) for p in found):
        own = rows.loc[[(p.align, p.dx, p.dy) == one for p in found]]
        text = alt.Chart(own).mark_text(align=alt.Align(one[0]), dx=one[1], dy=one[2], fontSize=size)
        layers.append(text.encode(x=x("tag_x"), y=y("tag_y"), text="tag:N"))
    return layers


def _candidates(x: float, y: float) -> Iterator[Place]:
    for align, dx, dy in NEAR:
        yield Place(align, dx, dy, (x, y), apart=False)
    for aside in ASIDE:
        for up in UPWARDS:
            for sign in (1, -1):
                at = y + sign * up / HEIGHT
                if math.hypot(aside * WIDTHS[0], up) > 20:
                    yield Place("left", 3, 0, (x + aside, at), apart=True)
                    yield Place("right", -3, 0, (x - aside, at), apart=True)


def _distance(mark: Point, place: Place) -> float:
    """How far a place is from its mark; one apart is further than any beside it."""
    if not place.apart:
        return float(NEAR.index((place.align, place.dx, place.dy)))
    return APART + math.hypot((place.at[0] - mark[0]) * WIDTHS[1], (place.at[1] - mark[1]) * HEIGHT)


def _fines(
    name: str,
    mark: Point,
    place: Place,
    others: Sequence[tuple[str, Place, Point]],
    marks: np.ndarray,
    lines: np.ndarray,
) -> float:
    """Fine for everything that the name or its line would touch."""
    own = [(mark, place.at)] if place.apart else []
    leads = [(other_mark, other.at) for _, other, other_mark in others if other.apart]
    fines = CROSSING * sum(_cross(line, other) for line in own for other in leads)
    lines, own_line = np.concatenate([lines, _along(leads)], axis=1), _along(own)
    for width in WIDTHS:
        box = place.box(name, width)
        fines += CLASH * (box[0] < 2 or box[1] > width + 8 or box[2] < 2 or box[3] > HEIGHT - 2)
        fines += CLASH * (_inside(box, marks, width, 7.0) + _inside(box, lines, width, 2.0))
        fines += CROSSING * _struck(own_line, mark, marks, width)
        for other, stands, _ in others:
            its = stands.box(other, width)
            fines += CLASH * (box[0] < its[1] + 4 and its[0] < box[1] + 4 and box[2] < its[3] and its[2] < box[3])
            fines += CLASH * _inside(its, own_line, width, 2.0)
    return fines


def _along(lines: Sequence[tuple[Point, Point]]) -> np.ndarray:
    """Forty places on each line: place, line, across and up."""
    ends, share = np.array(lines, float).reshape(-1, 2, 2), np.linspace(0, 1, 40)[:, None, None]
    return ends[:, 0] * (1 - share) + ends[:, 1] * share


def _inside(box: tuple[float, float, float, float], places: np.ndarray, width: float, margin: float) -> int:
    """Count the lines that have a place in a box."""
    x, y = places[..., 0] * width, (1 - places[..., 1]) * HEIGHT
    touched = (x > box[0] - margin) & (x < box[1] + margin) & (y > box[2] - margin) & (y < box[3] + margin)
    return int(touched.any(axis=0).sum())


def _struck(line: np.ndarray, own: Point, marks: np.ndarray, width: float) -> int:
    """Count the marks that a line runs through, without its own and those that lie on it."""
    size = np.array([width, HEIGHT])
    there = marks[0][np.linalg.norm((marks[0] - own) * size, axis=1) > STRUCK]
    apart = np.linalg.norm((line.reshape(-1, 1, 2) - there) * size, axis=2)
    return int((apart < STRUCK).any(axis=0).sum())


def _cross(one: tuple[Point, Point], other: tuple[Point, Point]) -> bool:
    """Whether two lines cross.

    >>> line = ((0.0, 0.0), (1.0, 1.0))
    >>> _cross(line, ((0.0, 1.0), (1.0, 0.0))), _cross(line, ((0.0, 0.5), (0.2, 0.5)))
    (True, False)
    """

    def side(a: Point, b: Point, c: Point) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    (a, b), (c, d) = one, other
    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
