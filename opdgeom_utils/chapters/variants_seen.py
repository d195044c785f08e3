"""What is seen in the figures of OPD's variants: the ends of the guides of the two chapters on control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from opdgeom_utils.chapters import seen
from opdgeom_utils.chapters.control import AGAINST, OTHER_SEED
from opdgeom_utils.charts.axes import begun
from opdgeom_utils.intervals import number
from opdgeom_utils.vocabulary import listed, metric_of


def say_paths(ends: pd.DataFrame) -> str:
    """Say where OPD, RLVR and the variants stand at the common update.

    Parameters
    ----------
    ends
        From :func:`opdgeom_utils.chapters.control.at_update`, of one quantity.
    """
    values = seen.by_seed(ends, "row")
    said = f"At the common update: {seen.averages(values, ['OPD', 'RLVR'])}; RLVR is "
    said += seen.beside(values, "RLVR", ["OPD"])
    means = ends[ends["kind"] == "variant"].groupby("row", sort=False)["value"].agg("mean")
    if len(means):
        least, most = (f"{means[name]:.2f} ({name})" for name in (means.idxmin(), means.idxmax()))
        said += f". The variants lie between {least} and {most}"
    return f"{said}."


def say_overlaps(overlaps: pd.DataFrame) -> str:
    """Say, by means and for each side, which variants share more with OPD than another seed does, or less than RLVR.

    Parameters
    ----------
    overlaps
        From :func:`opdgeom_utils.chapters.control.overlap_table`.
    """
    said = []
    for panel, own in overlaps.groupby("panel", sort=False):
        means = own.groupby("row", sort=False)["value"].agg("mean").to_dict()
        levels = {name: means[name] for name in (OTHER_SEED, AGAINST, "chance") if name in means}
        variants = {name: means[name] for name in own.loc[own["kind"] == "variant", "row"].unique()}
        more = [name for name, value in variants.items() if value > levels.get(OTHER_SEED, 1.0)]
        less = [name for name, value in variants.items() if value < levels.get(AGAINST, 0.0)]
        words = ", ".join(f"{name} {value:.2f}" for name, value in levels.items())
        count = f"{len(more)} of {len(variants)} variants lie above another seed"
        said.append(f'{begun(str(panel))} ({words}): {count}; below "{AGAINST}" {listed(less)}')
    return ". ".join(said) + "." if said else "No overlap is in these tables."


def say_bends(swept: pd.DataFrame, levels: Mapping[str, float], order: Sequence[str]) -> str:
    """Say where each curve of a sweep first passes the level of another seed of OPD, by means.

    Parameters
    ----------
    swept
        From :func:`opdgeom_utils.chapters.control.sweep`: ``setting, series, panel, value``.
    levels
        Another seed's mean in each panel. A distance passes it upwards, an overlap downwards.
    order
        Settings from the one that is nearest to OPD to the furthest.

    Examples
    --------
    >>> rows = [("50%", 0.1), ("25%", 0.3), ("5%", 0.5)]
    >>> rows = pd.DataFrame(rows, columns=["setting", "value"]).assign(series="top", panel="distance from OPD's path")
    >>> say_bends(rows, {"distance from OPD's path": 0.2}, ["50%", "25%", "5%"])
    "Distance from OPD's path: top passes another seed at 25%."
    """
    said = []
    for panel, level in levels.items():
        upwards, parts = panel.startswith("distance"), []
        for series, own in swept[swept["panel"] == panel].groupby("series", sort=False):
            means = own.groupby("setting")["value"].agg("mean").to_dict()
            past = [s for s in order if s in means and (means[s] > level if upwards else means[s] < level)]
            parts.append(
                f"{series} passes another seed at {past[0]}" if past else f"{series} never passes another seed"
            )
        said += [f"{begun(panel)}: {', '.join(parts)}"] if parts else []
    return ". ".join(said) + "." if said else "No sweep is in these tables."


def say_skill(skill: pd.DataFrame, gaps: pd.DataFrame) -> str:
    """Say who ends highest and lowest on each ruler, and whether keeping OPD's path goes with it.

    Parameters
    ----------
    skill
        From :func:`opdgeom_utils.chapters.control.at_update`.
    gaps
        From :func:`opdgeom_utils.chapters.control.path_gaps`.
    """
    away, said = gaps.loc[gaps["kind"] == "variant"].groupby("row").agg({"value": "mean"}).loc[:, "value"], []
    for panel, own in skill.groupby("panel", sort=False):
        shown = metric_of("accuracy").shown if panel != "accuracy" else ".1%"
        means = own.groupby("row", sort=False).agg({"value": "mean"}).loc[:, "value"]
        variants = means.loc[[name for name in means.index if name in away.index]]
        words = ", ".join(f"{name} {number(means[name], shown)}" for name in ("OPD", "RLVR") if name in means)
        if len(variants):
            words += f"; variants from {number(variants.min(), shown)} ({variants.idxmin()}) to "
            words += f"{number(variants.max(), shown)} ({variants.idxmax()})"
        if len(variants) > 2:
            rank = variants.rank().corr(away.loc[variants.index].rank())
            words += f"; rank correlation with the distance from the path {rank:+.2f}"
        said.append(f"{begun(str(panel))}: {words}")
    return ". ".join(said) + "." if said else "No skill is in these tables."


def say_corners(corners: pd.DataFrame) -> str:
    """Say which change leaves more in common, that of the writer or that of the loss.

    Parameters
    ----------
    corners
        ``what differs, value, seeds``, one line per pair of runs.
    """
    means = corners.groupby("what differs")["value"].agg("mean").to_dict()
    if not {"writer", "loss"} <= set(means):
        return "The four runs are not all in these tables."
    apart = f"{means['writer']:.2f}" != f"{means['loss']:.2f}"
    more = f"changing the {max(('writer', 'loss'), key=lambda word: means[word])}" if apart else "neither"
    seeds = int(corners.loc[:, "seeds"].min())
    return (
        f"Two runs that differ in the writer have {means['writer']:.2f} in common, in the loss {means['loss']:.2f}: "
        f"{more} leaves more ({seeds} seed{'s' * (seeds != 1)} at the least)."
    )
