"""Axes whose labels can be told apart: scales, ranges and ticks that fit what is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

import altair as alt

from opdgeom_utils.vocabulary import metric_of

_Channel = TypeVar("_Channel", alt.X, alt.Y)
QUARTERS = [0, 0.25, 0.5, 0.75, 1]


def begun(words: str) -> str:
    """Words as the beginning of a sentence.

    >>> begun("norm of KL")
    'Norm of KL'
    """
    return words[:1].upper() + words[1:]


def tick_step(span: float, count: int) -> float:
    """Distance of the ticks that d3 draws over a span: 1, 2 or 5 times a power of ten.

    >>> tick_step(1.0, 5), round(tick_step(0.013, 5), 6)
    (0.2, 0.002)
    """
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    bounds = ((10, 50**0.5), (5, 10**0.5), (2, 2**0.5), (1, 0))
    return power * next(part for part, least in bounds if raw / power >= least)


def tick_format(metric: str, numbers: Iterable[float] = (), count: int = 5) -> str:
    """How the labels of an axis are printed so that neighbours differ: whole percents, unless the range is narrow.

    >>> tick_format("update_sparsity", [0.1, 0.9]), tick_format("update_sparsity", [0.0, 0.0004]), tick_format("hill")
    ('.0%', '.2%', '~g')
    """
    found, known = metric_of(metric), [n for n in numbers if math.isfinite(n)]
    span = max(known) - min(known) if known else 0.0
    if not found.percent or span <= 0:  # d3 gives "g" the digits of a tick's distance: 10 after 8 reads 1e+1
        return "~f" if not found.percent and span > 0 and tick_step(span, count) >= 1e-4 else found.ticks
    return f".{max(0, math.ceil(-math.log10(100 * tick_step(span, count)) - 1e-9))}%"


def log_ticks(low: float, high: float) -> list[float]:
    """Few round ticks between two positive numbers: powers of ten over three decades or more, else some between.

    >>> log_ticks(0.0002, 0.3), log_ticks(0.4, 30.0), log_ticks(0.4, 6.0), log_ticks(2.2, 4.6)
    ([0.001, 0.01, 0.1], [1.0, 3.0, 10.0, 30.0], [0.5, 1.0, 2.0, 5.0], [3.0, 4.0])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    parts = (1,) if high / low >= 1000 else (1, 3) if high / low >= 30 else (1, 2, 5)
    steps = range(first, last + 1, 2 if last - first > 6 else 1)
    ticks = [float(f"{m}e{power}") for power in steps for m in parts]
    inside = [t for t in ticks if low <= t <= high]
    if len(inside) > 1 or high <= low:
        return inside
    step = tick_step(high - low, 3)
    return [float(f"{i * step:.6g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def ends_of_log(numbers: Iterable[float], room: float = 1.25) -> tuple[float, float]:
    """Find the ends of a logarithmic axis that holds all positive numbers, with some room.

    >>> ends_of_log([0.0, 2.0, 8.0], 2.0)
    (1.0, 16.0)
    """
    known = [n for n in numbers if n > 0] or [1.0]
    return min(known) / room, max(known) * room


def value_axis(
    channel: _Channel,
    metric: str,
    numbers: Iterable[float],
    *,
    log: bool | None = None,
    room: float = 1.25,
    ticks: int = 5,
) -> _Channel:
    """Give an axis the scale, the range and the ticks that fit a metric: few, and not forced to start at zero.

    ``numbers``: everything that must fit on the axis.
    ``log``: whether the axis is logarithmic; None asks the metric.
    ``room``: factor of space at both ends of a logarithmic axis.
    ``ticks``: about so many on a linear one.
    """
    numbers = list(numbers)
    if not (metric_of(metric).logarithmic if log is None else log):
        shown = tick_format(metric, numbers)
        return channel.scale(zero=False, nice=True).axis(format=shown, tickCount=ticks, labelOverlap=True)
    low, high = ends_of_log(numbers, room)
    at = log_ticks(low, high)
    return channel.scale(type="log", domain=[low, high], nice=False).axis(format="~g", values=at, labelOverlap=True)
