"""A report's plain words: where a run lies among the paper's points and ours, and what its nulls explain.

Every sentence is computed from the tables. The rules: a run does *more* (or *less*) than its shuffled null where at
least three quarters of its matrices do, and the means differ by a tenth, or for shares of entries by one percentage
point. Anything less is *about as much*. The rules were written before any pair was read with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from opdgeom_utils.chapters.your_run_caveats import narrow_formats, rounded_with_the_tuned, without_path
from opdgeom_utils.chapters.your_run_tables import SPARSITY, last_step, matrices_of
from opdgeom_utils.charts.axes import begun
from opdgeom_utils.claims.schema import reported_of
from opdgeom_utils.diagnose.matrix_rows import IDENTICAL
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.intervals import number
from opdgeom_utils.vocabulary import compared, label, listed, metric_of

AGREE, TENTH, POINT = 0.75, 1.1, 0.01
THROUGH_BF16 = (SPARSITY, "principal_overlap", "low_magnitude_overlap")


@dataclass(frozen=True)
class AgainstNull:
    """A metric of the last checkpoint beside its shuffled null, over the matrices where both are defined.

    ``own``, ``null``: means over these matrices.
    ``n``, ``n_more``, ``n_less``: matrices; those above and those below their null.
    ``word``: ``more``, ``less`` or ``about as much``, by the rule of this module; ``not judged`` where there is no
    matrix, or the metric looks through bf16 and the tuned weights were stored in 16 bits or fewer, or rounding moved
    the reference's weights too.
    """

    own: float
    null: float
    n: int
    n_more: int
    n_less: int
    word: str


def against_null(table: pd.DataFrame, metric: str, null: str = "shuffled") -> AgainstNull:
    """Set a metric beside its null, matrix by matrix.

    >>> rows = pd.DataFrame(
    ...     {"step": 0, "module": "q_proj", "shape": "2x2", "dtype": "float32->float32", "x": [2.0, 3.0]}
    ... )
    >>> against_null(rows.assign(x_shuffled=1.0), "x").word
    'more'
    >>> against_null(rows.assign(x_shuffled=[1.9, 3.1]), "x").word
    'about as much'
    """
    rows = matrices_of(last_step(table)).dropna(subset=[metric, f"{metric}_{null}"])
    own, level = rows[metric].to_numpy(float), rows[f"{metric}_{null}"].to_numpy(float)
    n, n_more, n_less = len(rows), int((own > level).sum()), int((own < level).sum())
    mean, mean_null = (float(values.mean()) if n else math.nan for values in (own, level))
    share = metric_of(metric).percent
    word = "about as much"
    if not n or (metric in THROUGH_BF16 and narrow_formats(rows)) or rounded_with_the_tuned(rows):
        word = "not judged"
    elif n_more >= AGREE * n and (mean - mean_null > POINT if share else mean > TENTH * mean_null):
        word = "more"
    elif n_less >= AGREE * n and (mean_null - mean > POINT if share else mean_null > TENTH * mean):
        word = "less"
    return AgainstNull(mean, mean_null, n, n_more, n_less, word)


def between(value: float, points: Mapping[str, float], shown: Mapping[str, str]) -> str:
    """Say between which points a number lies.

    ``points``: number of each name.

    >>> between(0.6, {"SFT": 0.1, "OPD": 0.5, "RLVR": 0.8}, {"SFT": "10%", "OPD": "50%", "RLVR": "80%"})
    'between OPD (50%) and RLVR (80%)'
    >>> between(0.9, {"SFT": 0.1, "OPD": 0.5}, {"SFT": "10%", "OPD": "50%"})
    'above both (highest: OPD, 50%)'
    """
    if not points:
        raise MetricInputError("there is no point to set the run among; expected at least one.")
    if math.isnan(value):
        return "nowhere: the number is undefined"
    order = sorted(points, key=lambda name: points[name])
    group = {1: "the only one", 2: "both", 3: "all three"}.get(len(order), f"all {len(order)}")
    lower, upper = ([n for n in order if points[n] <= value], [n for n in order if points[n] > value])
    if not lower:
        return f"below {group} (lowest: {upper[0]}, {shown[upper[0]]})"
    if not upper:
        return f"above {group} (highest: {lower[-1]}, {shown[lower[-1]]})"
    return f"between {lower[-1]} ({shown[lower[-1]]}) and {upper[0]} ({shown[upper[0]]})"


def reading_of(table: pd.DataFrame, ends: pd.DataFrame, name: str, reported: pd.DataFrame) -> list[str]:
    """Say for each ruler what the run shows, where that lies, and what its null explains, and whether rulers agree.

    ``ends``: one row per run, the run's own among them, from :func:`opdgeom_utils.chapters.your_run_tables.among`.
    ``name``: the run's ``recipe`` in ``ends``.
    Returns sentences in Markdown: one item for each ruler, and the nearest of the paper's points. One sentence alone
    where nothing has changed, or nothing could be measured.
    """
    nothing = _nothing_to_read(last_step(table))
    if nothing:
        return [nothing]
    toys = ends.loc[ends["recipe"] != name]
    said = []
    for metric in compared():
        value, shown = _own(ends, name)[metric], metric_of(metric).shown
        parts = [f"**{begun(metric_of(metric).title)}: {number(value, shown)}.**"]
        if not math.isnan(value):
            means = toys.groupby("recipe")[metric].mean().dropna()
            toy = {label(str(recipe)): float(mean) for recipe, mean in means.items()}
            among = between(value, *_papers(reported, metric))
            parts.append(f"Among the paper's points it is {among}.{_beyond(value, reported, metric)}")
            printed = {recipe: number(mean, shown) for recipe, mean in toy.items()}
            parts.append(f"Among our toy runs it is {between(value, toy, printed)}.")
        said.append(" ".join([*parts, null_words(against_null(table, metric), metric)]))
    return [*said, nearest_words(nearest(table, ends, name, reported))]


def in_short(table: pd.DataFrame, ends: pd.DataFrame, name: str, reported: pd.DataFrame) -> str:
    """Say in a few sentences what :func:`reading_of` says: the nearest of the paper's points, and what is beyond size.

    ``table``, ``ends``, ``name``, ``reported``: as for :func:`reading_of`.
    """
    if nothing := _nothing_to_read(last_step(table)):
        return nothing
    said = [nearest_words(nearest(table, ends, name, reported))]
    words: dict[str, list[str]] = {}
    for metric in compared():
        words.setdefault(against_null(table, metric).word, []).append(metric_of(metric).words)
    parts = [f"{word} by {listed(words[word])}" for word in ("more", "less", "about as much") if word in words]
    if parts:
        said.append(f"Beside its own update, shuffled, it is {'; '.join(parts)}.")
    if "not judged" in words:
        said.append(f"Not judged: {listed(words['not judged'])}.")
    return " ".join([*said, "One run has no interval."])


def null_words(found: AgainstNull, metric: str) -> str:
    """Say what the shuffled null explains of a metric.

    >>> null_words(AgainstNull(0.002, 0.001, 16, 16, 0, "more"), "normalized_spectral_shift")
    'Over 16 matrices it is 0.002, and 0.001 in the shuffled null; 16 of them are above theirs. So size alone does not
    explain it: place adds, as it does in our toy runs with nothing to learn, and as weight decay alone does.'
    """
    if not found.n:
        return "No matrix has this number and its null, so nothing is judged."
    shown = metric_of(metric).shown
    count, side = (found.n_more, "above") if found.own >= found.null else (found.n_less, "below")
    idle = "" if metric_of(metric).percent else ", as it does in our toy runs with nothing to learn"
    idle += ", and as weight decay alone does" if metric == "normalized_spectral_shift" else ""
    ends = {
        "more": f"So size alone does not explain it: place adds{idle}.",
        "less": "So size alone does not explain it: place takes away.",
        "about as much": "So its size explains it; where the entries lie adds nothing that this ruler sees.",
        "not judged": "This is not judged: weights were rounded when they were stored, which biases the comparison.",
    }
    return (
        f"Over {found.n} matri{'x' if found.n == 1 else 'ces'} it is {number(found.own, shown)}, and "
        f"{number(found.null, shown)} in the shuffled null; {count} of them {'is' if count == 1 else 'are'} {side} "
        f"theirs. {ends[found.word]}"
    )


def nearest(table: pd.DataFrame, ends: pd.DataFrame, name: str, reported: pd.DataFrame) -> dict[str, str]:
    """Name the objective of the paper that is nearest on each ruler; distances are ratios, or differences of shares.

    ``table``, ``ends``, ``name``, ``reported``: as for :func:`reading_of`.
    Returns objective for each metric whose value is known; none where nothing has changed.
    """
    found: dict[str, str] = {}
    if _nothing_to_read(last_step(table)):
        return found
    for metric, value in _own(ends, name).items():
        share, (paper, _) = metric_of(metric).percent, _papers(reported, metric)
        if math.isnan(value) or (not share and value <= 0):
            continue
        scale = (lambda x: x) if share else math.log
        found[metric] = min(paper, key=lambda objective: abs(scale(paper[objective]) - scale(value)))
    return found


def nearest_words(found: Mapping[str, str]) -> str:
    """Say whether the rulers agree on the nearest objective of the paper.

    >>> nearest_words({"update_sparsity": "OPD", "normalized_spectral_shift": "OPD"})
    "All 2 rulers put the paper's OPD nearest, which names how far an update went, not what made it."
    >>> nearest_words({"update_sparsity": "OPD", "normalized_spectral_shift": "SFT"})
    "The rulers disagree on the paper's nearest point: SFT by normalized spectral shift; OPD by update sparsity."
    """
    if not found:
        return "No ruler gives a number that could be set beside the paper's."
    objectives = sorted(set(found.values()), key=["SFT", "OPD", "RLVR"].index)
    if len(objectives) == 1:
        return (
            f"All {len(found)} rulers put the paper's {objectives[0]} nearest, which names how far an update went, not "
            "what made it."
        )
    groups = [(o, [metric_of(m).words for m in found if found[m] == o]) for o in objectives]
    clauses = "; ".join(f"{objective} by {listed(metrics)}" for objective, metrics in groups)
    return f"The rulers disagree on the paper's nearest point: {clauses}."


def _nothing_to_read(last: pd.DataFrame) -> str:
    """Say in one sentence why there is nothing to read: no change at all, or no number; empty if there is."""
    notes = last["note"].fillna("") if "note" in last else pd.Series("", index=last.index)
    if all(IDENTICAL in note for note in notes):
        return (
            f"**Nothing has changed: all {len(last)} tensors of the last checkpoint are identical to the reference.** "
            "No ruler has anything to read, and no point is near. Was this checkpoint saved before the first update?"
        )
    if SPARSITY in last and not len(last[SPARSITY].dropna()):
        return (
            f"**Nothing could be measured: none of the {len(last)} tensors of the last checkpoint has a number.** "
            f"The first says: {without_path(next(filter(None, notes), 'nothing'))}."
        )
    return ""


def _own(ends: pd.DataFrame, name: str) -> dict[str, float]:
    """Return the run's number for each ruler."""
    row = ends.loc[ends["recipe"] == name]
    return {metric: float(row[metric].iloc[0]) for metric in compared()}


def _papers(reported: pd.DataFrame, metric: str) -> tuple[dict[str, float], dict[str, str]]:
    """Return the paper's number for each objective, and as printed."""
    rows = reported_of(reported, metric).dropna(subset=["value"])
    recipes = [label(str(recipe)) for recipe in rows["recipe"]]
    units = ["%" if unit.startswith("percent") else "°" if unit == "degree" else "" for unit in rows["unit"]]
    printed = [f"{text}{unit}" for text, unit in zip(rows["reported"], units, strict=True)]
    return dict(zip(recipes, map(float, rows["value"]), strict=True)), dict(zip(recipes, printed, strict=True))


def _beyond(value: float, reported: pd.DataFrame, metric: str) -> str:
    """Return a warning where a value lies beyond a number that the paper prints as a bound or a power of ten only."""
    rows = reported_of(reported, metric).filter(items=["recipe", "value", "bound", "reported"])
    for recipe, printed_value, bound, printed in rows.itertuples(index=False):
        if (bound == "at least" and value > printed_value) or (bound == "below" and value < printed_value):
            return f" But {label(str(recipe))} is printed as a bound, {printed}, so the order beyond it is not known."
    return " The paper prints powers of ten only." if "order of magnitude" in set(rows["bound"]) else ""
