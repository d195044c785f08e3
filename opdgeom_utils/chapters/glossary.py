"""The glossary's entries of metrics, objectives and nulls, written from their records when the book is staged."""

from __future__ import annotations

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.vocabulary import METRICS, NULLS, OBJECTIVES, listed

NULL = "The same measurement on something that cannot have the property in question."


def with_entries(page: str) -> str:
    """Fill the marks of a page (``<!-- metrics -->``, ``<!-- objectives -->``, ``<!-- nulls -->``) with entries.

    Raises MetricInputError if the page lacks a mark.

    >>> print(with_entries("<!-- objectives --><!-- metrics --><!-- nulls -->")[:96])
    SFT
      Supervised fine-tuning. Completions come from demonstrations; every token has advantage 1.
    """
    written = {"metrics": metric_entries(), "objectives": objective_entries(), "nulls": null_entries()}
    for mark, entries in written.items():
        line = f"<!-- {mark} -->"
        if line not in page:
            raise MetricInputError(f"the glossary has no line {line}; expected one where the entries of {mark} belong")
        page = page.replace(line, "\n\n".join(f"{term}\n  {text}" for term, text in entries.items()))
    return page


def metric_entries() -> dict[str, str]:
    """Return what the glossary says of every metric, by entry: its columns, then its definition.

    >>> metric_entries()["Hill estimate"][:50]
    '`hill`: how fast the largest singular values of an'
    """
    columns: dict[str, list[str]] = {}
    for metric in METRICS.values():
        columns.setdefault(metric.entry or metric.words, []).append(f"`{metric.name}`")
    said = {metric.entry or metric.words: metric.definition for metric in METRICS.values() if metric.definition}
    return {entry: f"{', '.join(columns[entry])}: {definition}" for entry, definition in said.items()}


def objective_entries() -> dict[str, str]:
    """Return what the glossary says of every objective, by its label."""
    return {objective.label: f"{objective.definition} `{name}` in tables." for name, objective in OBJECTIVES.items()}


def null_entries() -> dict[str, str]:
    """Return the entries of the nulls of an update and of its path."""
    endings = [f"`_{null.name}` ({null.definition})" for null in NULLS.values() if not null.of_path]
    paths = [f"`{null.name}`: {null.definition}." for null in NULLS.values() if null.of_path]
    return {"null": f"{NULL} Columns end in {listed(endings)}.", "nulls of the path": " ".join(paths)}
