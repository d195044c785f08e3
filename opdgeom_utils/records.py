"""What the book knows of a metric, an objective or a null; all of them are in :mod:`opdgeom_utils.vocabulary`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One number that the tables hold, and everything a page has to know to show it.

    ``name``: its column, or its ``quantity`` in the long table.
    ``words``: what axes and sentences call it.
    ``definition``: what it is, its range and how to read it, in Markdown, for the glossary. Empty where ``entry`` says
    it.
    ``entry``: the glossary's entry, where several metrics share one or the paper has a name of its own.
    ``unit``: ``degrees`` or ``nats``; empty for a ratio or a count.
    ``percent``: a share from 0 to 1, which pages show in percent.
    ``logarithmic``: whether figures give it a logarithmic axis.
    ``digits``: significant digits, where it is no share.
    ``nulls``: suffixes of its null columns in a table of matrices.
    ``per_matrix``: whether a pair of matrices has it: then it is a column of :func:`opdgeom_utils.diagnose_pair`.
    ``compared``: whether claims, chapters and reports compare runs by it.
    """

    name: str
    words: str
    definition: str = ""
    entry: str = ""
    unit: str = ""
    percent: bool = False
    logarithmic: bool = False
    digits: int = 3
    nulls: tuple[str, ...] = ()
    per_matrix: bool = False
    compared: bool = False

    @property
    def title(self) -> str:
        """Words and unit, as an axis or a heading has them."""
        return f"{self.words} ({self.unit})" if self.unit else self.words

    @property
    def shown(self) -> str:
        """How its numbers are printed, in the notation of d3 and of Python alike."""
        return ".1%" if self.percent else f".{self.digits}g"

    @property
    def ticks(self) -> str:
        """How the labels of its axis are printed: whole percents, or what a tick needs."""
        return ".0%" if self.percent else "~g"


@dataclass(frozen=True)
class Objective:
    """What a run is trained by. ``name`` is its recipe's, ``label`` what pages write, ``definition`` Markdown."""

    name: str
    label: str
    definition: str


@dataclass(frozen=True)
class Null:
    """The same measurement where nothing was learned; ``name`` is a column's suffix, or ``null`` of the long table."""

    name: str
    label: str
    definition: str
    of_path: bool = False
