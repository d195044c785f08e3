"""What is seen in the figures of OPD's variants: the ends of the guides of the two chapters on control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from opdgeom_utils.chapters import seen
from opdgeom_utils.chapters.control import AGAINST, OTHER_SEED
from opdgeom_utils.charts.axes import begun
from opdgeom_utils.vocabulary import listed

CLEAR = 0.5  # a rank correlation below this is called no clear order


def say_paths(ends: pd.DataFrame) -> str:
    """Say whether OPD and RLVR are apart at the common update, and on which side of OPD the variants end.

    Parameters
    ----------
    ends
        From :func:`opdgeom_utils.chapters.control.at_update`, of one quantity.
    """
    values = seen.by_seed(ends, "row")
    means = {str(row): float(mean) for row, mean in values.mean().items()}
    if not {"OPD", "RLVR"} <= set(means):
        return "OPD and RLVR are not both in these tables."
    said = f"At the common update RLVR is {seen.beside(values, 'RLVR', ['OPD'])}"
    said += f" ({means['RLVR']:.2f} and {means['OPD']:.2f})."
    variants = {name: means[name] for name in ends.loc[ends["kind"] == "variant", "row"].unique()}
    if not variants:
        return said
    above = [value > means["OPD"] for value in variants.values()]
    where = "above OPD" if all(above) else "on both sides of OPD" if any(above) else "below OPD"
    furthest = max(variants, key=lambda name: abs(variants[name] - means["OPD"]))
    return f"{said} The variants end {where}, furthest {furthest} at {variants[furthest]:.2f}."


def say_overlaps(overlaps: pd.DataFrame) -> str:
    """Say, by means and for each side, which variants share more with OPD than another seed does, or less than RLVR.

    Parameters
    ----------
    overlaps
        From :func:`opdgeom_utils.chapters.control.overlap_table`.
    """
    said, levels = {}, []
    for panel, own in overlaps.groupby("panel", sort=False):
        means = own.groupby("row", sort=False)["value"].agg("mean").to_dict()
        variants = {name: means[name] for name in own.loc[own["kind"] == "variant", "row"].unique()}
        if OTHER_SEED not in means or AGAINST not in means or not variants:
            continue
        more = sum(value > means[OTHER_SEED] for value in variants.values())
        less = [name for name, value in variants.items() if value < means[AGAINST]]
        said[str(panel)] = f"{more} of {len(variants)} variants share more with OPD than another seed does"
        said[str(panel)] += f", and {listed(less) if less else 'none'} less than RLVR does"
        levels.append(f"another seed {means[OTHER_SEED]:.2f}, RLVR {means[AGAINST]:.2f} on the {str(panel).split()[0]}")
    return f"{begun(seen.each_side(said))} ({levels[0]})." if said else "No overlap of a variant is in these tables."


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
    >>> print(say_bends(rows, {"distance from OPD's path": 0.2}, ["50%", "25%", "5%"]))
    The curve "top" goes beyond another seed of OPD first at 25% (distance from OPD's path).
    """
    said = []
    for series in swept["series"].unique():
        passed: dict[str, list[str]] = {}
        for panel, level in levels.items():
            own = swept[(swept["panel"] == panel) & (swept["series"] == series)]
            means, upwards = own.groupby("setting")["value"].agg("mean").to_dict(), panel.startswith("distance")
            past = [s for s in order if s in means and (means[s] > level if upwards else means[s] < level)]
            if means:
                passed.setdefault(f"first at {past[0]}" if past else "nowhere", []).append(panel)
        places = [f"{place} ({listed(panels)})" for place, panels in passed.items()]
        said += [f'The curve "{series}" goes beyond another seed of OPD {"; ".join(places)}'] if places else []
    return ". ".join(said) + "." if said else "No sweep is in these tables."


def say_skill(skill: pd.DataFrame, gaps: pd.DataFrame) -> str:
    """Say whether leaving OPD's path goes with learning less, and how the lowest and highest variant do by accuracy.

    Parameters
    ----------
    skill
        From :func:`opdgeom_utils.chapters.control.at_update`.
    gaps
        From :func:`opdgeom_utils.chapters.control.path_gaps`.
    """
    away = gaps.loc[gaps["kind"] == "variant"].groupby("row").agg({"value": "mean"}).loc[:, "value"]
    said, reach = [], ""
    for panel, own in skill.groupby("panel", sort=False):
        means = own.groupby("row", sort=False).agg({"value": "mean"}).loc[:, "value"]
        variants = means.loc[[name for name in means.index if name in away.index]]
        if len(variants) > 2:
            rank = float(variants.rank().corr(away.loc[variants.index].rank()))
            how = "in no clear order" if not abs(rank) > CLEAR else "higher" if rank > 0 else "lower"
            said.append(f"{panel} is {how} (rank correlation {rank:+.2f})")
        if panel == "accuracy" and len(variants) and "OPD" in means:
            reach = f"By accuracy variants reach {variants.min():.1%} ({variants.idxmin()}) to {variants.max():.1%} "
            reach += f"({variants.idxmax()}), OPD {means['OPD']:.1%}."
    order = f"Further from OPD's path, {listed(said)}. " if said else ""
    return f"{order}{reach}".strip() or "No skill is in these tables."


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
    writer, loss = (f"{means[word]:.2f}" for word in ("writer", "loss"))
    how = "as much" if writer == loss else "more" if means["writer"] > means["loss"] else "less"
    seeds = int(corners.loc[:, "seeds"].min())
    spread = corners.groupby("what differs")["value"].agg(["min", "max"]).map("{:.2f}".format)
    ranges = "; ".join(f"{word} {spread['min'][word]} to {spread['max'][word]}" for word in ("writer", "loss"))
    return (
        f"Changing the writer leaves {how} in common {'as' if how == 'as much' else 'than'} changing the loss "
        f"({writer} and {loss}; single pairs, {ranges}; {seeds} seed{'s' * (seeds != 1)} at the least)."
    )
