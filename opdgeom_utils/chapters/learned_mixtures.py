"""Mixtures of OPD and RLVR where both learn: runs of profile ``mixing``, by the rules LOG.md had before them.

Everything is of attention matrices, seed by seed, at the runs' end. Where between the two objectives a mixture's update
lies is read from three cosines; what its path tells is read beside random credit.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from opdgeom_utils.chapters import control
from opdgeom_utils.chapters import learned_variants as learned
from opdgeom_utils.chapters.committed_tables import BookTables, tables_for
from opdgeom_utils.chapters.confined import SEEDS
from opdgeom_utils.chapters.regime import distance_closed
from opdgeom_utils.chapters.sufficiency import ENOUGH
from opdgeom_utils.chapters.surviving import NO, UNTESTED, YES
from opdgeom_utils.claims.matching import accuracy_gain, final
from opdgeom_utils.intervals import over_pairs, seed_interval
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.vocabulary import listed

PROFILE = "mixing"
MIXTURES = ("mix_50", "mix_05", "equal_mix_50")
CLOSED, GAINED = 0.15, 0.03  # of the distance to the teacher, by OPD; sampled accuracy, by RLVR
WITH_RLVR, SHARE = "cosine with RLVR", "OPD's share of its direction"
_RANDOM = control.variant_label(learned.NULL)
STRENGTH, WEIGHT, NEITHER, UNPLACED = "strength", "alpha", "neither", "not placed"
ASKED = (learned.PATH, learned.DIRECTION, WITH_RLVR, SHARE, learned.PROGRESS, learned.ACCURACY)
SAID = {"way": "goes whose way", "share": "OPD's share", "nearer": "nearer to", "path": "stays on OPD's path",
        "progress": "keeps OPD's progress", "gain": "keeps RLVR's gain"}  # fmt: skip


def trained() -> BookTables:
    """Return the committed tables of the mixtures where both objectives learn."""
    return tables_for(PROFILE, load_recipe("opd", PROFILE).seeds)


def numbers(tables: BookTables) -> pd.DataFrame:
    """Return every mixture's numbers beside OPD, RLVR and random credit of its seed: ``row, panel, kind, seed, value``.

    Panels: how far the stable-rank path lies from OPD's, cosines with the updates of OPD and of RLVR, OPD's share of
    the direction, progress to the teacher as a share of OPD's, and sampled accuracy.
    """
    assert tables.measures is not None
    own = learned.numbers(tables, MIXTURES)
    rlvr = learned.cosines(tables.measures, ["opd", *MIXTURES], "rlvr").assign(panel=WITH_RLVR)
    scores = final(accuracy_gain(tables.accuracy))
    scores = scores.loc[scores["recipe"].isin(["opd", "rlvr", *MIXTURES])]
    rows = scores["recipe"].map(control.variant_label)
    scores = scores.assign(row=rows, panel=learned.ACCURACY, kind="variant", value=scores["sampled"])
    scores = scores.filter(items=control.STRIP)
    parts = [own.loc[own["panel"] != learned.ACCURACY], rlvr, scores]
    found = pd.concat([*parts, _shares(pd.concat(parts))])
    found = found.assign(kind=found["kind"].where(found["row"].isin([*map(control.variant_label, MIXTURES)]), "null"))
    return pd.concat([found.loc[found["panel"] == panel] for panel in ASKED], ignore_index=True)


def seeds_of(found: pd.DataFrame, panel: str, row: str) -> pd.Series:
    """One number of one run by seed; empty where it was not trained.

    >>> rows = pd.DataFrame([["OPD", "p", "null", 3, 0.5]], columns=control.STRIP)
    >>> seeds_of(rows, "p", "OPD").to_dict(), len(seeds_of(rows, "p", "RLVR"))
    ({3: 0.5}, 0)
    """
    own = found.loc[(found["panel"] == panel) & (found["row"] == row)]
    return pd.Series(own["value"].to_numpy(float), index=own["seed"].to_numpy(int))


def share_of(with_opd: float, with_rlvr: float, between: float) -> float:
    """OPD's share of a direction: its coefficient over the sum of both, where both are fitted by least squares.

    The two updates are brought to length one. ``with_opd``, ``with_rlvr``: cosines of the mixture's update with theirs;
    ``between``: the cosine of these two. 1 is OPD's direction and 0 RLVR's; outside 0 to 1 one coefficient is negative.
    nan where the two are one direction, or the mixture has no more of them than their difference.

    >>> share_of(1.0, 0.4, 0.4), share_of(0.4, 1.0, 0.4), share_of(0.8, 0.8, 0.4)
    (1.0, 0.0, 0.5)
    """
    both = (with_opd + with_rlvr) * (1 - between)
    return (with_opd - between * with_rlvr) / both if both else float("nan")


def _shares(found: pd.DataFrame) -> pd.DataFrame:
    """OPD's share of every mixture's direction, by seeds, as more rows of the table."""
    between = seeds_of(found, learned.DIRECTION, "RLVR")
    rows = [
        (name, SHARE, "null", seed, share) for name, share in (("OPD", 1.0), ("RLVR", 0.0)) for seed in between.index
    ]
    for name in map(control.variant_label, MIXTURES):
        opd, rlvr = (seeds_of(found, panel, name) for panel in (learned.DIRECTION, WITH_RLVR))
        held = [seed for seed in between.index if seed in opd.index and seed in rlvr.index]
        rows += [(name, SHARE, "variant", seed, share_of(opd[seed], rlvr[seed], between[seed])) for seed in held]
    return pd.DataFrame(rows, columns=control.STRIP)


def expected_shares(measures: pd.DataFrame) -> pd.DataFrame:
    """Return what OPD's share of the gradient is, a row per mixture: ``strength`` (by both norms) and ``alpha``.

    The norms are those at the anchor, attention matrices; where the two are brought to one norm both say the same.
    """
    ratio = float(pick(measures, quantity="gradient_ratio", step=0)["value"].to_numpy(float).mean())
    made = {control.variant_label(name): load_recipe(name, PROFILE) for name in MIXTURES}
    q = {name: 1.0 if recipe.equal_gradients else ratio for name, recipe in made.items()}
    rows = {name: (r.alpha * q[name] / (r.alpha * q[name] + 1 - r.alpha), r.alpha) for name, r in made.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=[STRENGTH, WEIGHT])


def answers(found: pd.DataFrame, expected: pd.DataFrame) -> pd.DataFrame:
    """Apply the rules to :func:`numbers`, a row per mixture.

    Columns: ``way`` (whose way its update goes), ``share`` and ``nearer`` (OPD's share of its direction, and whether
    that lies nearer to what strength gives or to alpha), ``path`` and ``progress`` (whether it stays on OPD's path and
    keeps its progress), ``gain`` (whether it keeps RLVR's gain in accuracy). Where OPD and RLVR are not told apart by
    direction, the first three are ``not placed``.
    """
    rows, rlvr = {}, seeds_of(found, learned.ACCURACY, "RLVR")
    for name in map(control.variant_label, MIXTURES):
        own = {panel: seeds_of(found, panel, name) for panel in ASKED}
        if min(map(len, own.values())) < SEEDS:
            rows[name] = dict.fromkeys(SAID, UNTESTED)
            continue
        strength, alpha = expected.loc[name, [STRENGTH, WEIGHT]].to_numpy(float)
        beyond = (own[SHARE] - strength).abs() - (own[SHARE] - alpha).abs()
        kept = seed_interval(own[learned.PROGRESS])
        placed = {
            "way": _side(own[learned.DIRECTION] - own[WITH_RLVR], "RLVR's", "OPD's"),
            "share": seed_interval(own[SHARE]).text(".2f"),
            "nearer": "" if strength == alpha else _side(beyond, STRENGTH, WEIGHT),
        }
        rows[name] = (placed if told_apart(found) else dict.fromkeys(placed, UNPLACED)) | {
            "path": _path(found, own[learned.PATH]),
            "progress": YES if kept.low >= ENOUGH else NO if kept.high < ENOUGH else learned.OPEN,
            "gain": NO if seed_interval(own[learned.ACCURACY] - rlvr).high < 0 else YES,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def told_apart(found: pd.DataFrame) -> bool:
    """Whether OPD's direction is further from RLVR's than from another seed's of OPD."""
    between, seeds = (seeds_of(found, learned.DIRECTION, row) for row in ("RLVR", control.OTHER_SEED))
    return seed_interval(between - pd.Series(over_pairs(seeds), seeds.index)).high < 0


def _side(difference: pd.Series, below: str, above: str) -> str:
    """Say on which side of 0 the seeds are, by the interval of their mean."""
    found = seed_interval(difference)
    return below if found.high < 0 else above if found.low > 0 else NEITHER


def _path(found: pd.DataFrame, own: pd.Series) -> str:
    """Judge a path: *yes* where near and nearer than random credit, *no* where further than another seed of OPD."""
    random, seeds = (seeds_of(found, learned.PATH, row) for row in (_RANDOM, control.OTHER_SEED))
    if len(random) < SEEDS:
        return UNTESTED
    if seed_interval(own).high < learned.NEAR and seed_interval(own - random).high < 0:
        return YES
    return NO if seed_interval(own - seeds).low > 0 else learned.OPEN


def shown(judged: pd.DataFrame, expected: pd.DataFrame) -> pd.DataFrame:
    """Lay the answers out, with the shares that strength and alpha give and without intervals, a row per mixture."""
    cells = {"mixture": judged.index.tolist(), SAID["way"]: judged["way"].tolist()}
    cells[SAID["share"]] = [share.split(" (")[0] for share in judged["share"].tolist()]
    cells |= {f"by {column}": [f"{value:.2f}" for value in expected[column].tolist()] for column in expected}
    cells |= {SAID[key]: judged[key].tolist() for key in ("nearer", "path", "progress", "gain")}
    return pd.DataFrame(cells)


def say(tables: BookTables, found: pd.DataFrame, expected: pd.DataFrame, judged: pd.DataFrame) -> str:
    """Say what decides a mixture's direction, what the path tells of it, and what it learns; first the finding."""
    if UNTESTED in judged["way"].tolist():
        return "What a mixture of objectives does where both learn is not tested: too few seeds.\n"

    def listed_of(panel: str, rows: Sequence[str], shown: str = ".2f") -> str:
        return listed(f"{seeds_of(found, panel, row).to_numpy(float).mean():{shown}} ({_named(row)})" for row in rows)

    null = [_RANDOM] if _RANDOM in set(found["row"]) else []
    runs, closed = judged.index.tolist(), distance_closed(tables)["fixed"]
    gained = final(accuracy_gain(tables.accuracy.loc[tables.accuracy["recipe"] == "rlvr"]))["gain"].to_numpy(float)
    both = closed.mean >= CLOSED and gained.mean() >= GAINED
    where = "Where both objectives learn" if both else "Where they learned less than was asked"
    apart = told_apart(found)
    way = _direction(found, expected) if apart else "the two are not told apart by direction, so no mixture is placed"
    shares = "; ".join(
        f"{judged.loc[run, 'share']} at {_named(run)}, where strength gives {strength:.2f} and alpha {alpha:.2f}"
        for run, strength, alpha in expected.itertuples()
    )
    kept = [(seed_interval(seeds_of(found, learned.PROGRESS, run)).text(".0%"), _named(run)) for run in runs]
    progress = listed(f"{share} at {run}" for share, run in kept)
    return (
        f"{where}, {way}. {_path_tells(found, judged)}\n"
        f"After {load_recipe('opd', PROFILE).steps} updates OPD has closed {closed.text('.0%')} of its distance to the "
        f"teacher, and RLVR has gained {100 * gained.mean():.1f} points of accuracy (seeds: {closed.n}). OPD's share "
        f"of a mixture's direction: {shares}. Cosine with OPD's update: "
        f"{listed_of(learned.DIRECTION, [*runs, 'RLVR', control.OTHER_SEED])}; with RLVR's: "
        f"{listed_of(WITH_RLVR, [*runs, control.another_seed('rlvr')])}. Mean absolute log ratio to OPD's stable-rank "
        f"path: {listed_of(learned.PATH, [*runs, 'RLVR', control.OTHER_SEED, *null])}. Share of "
        f"OPD's progress to its teacher: {progress}. Sampled accuracy: "
        f"{listed_of(learned.ACCURACY, ['OPD', *runs, 'RLVR'], '.1%')}."
    )


def _named(row: str) -> str:
    """Name of a run inside parentheses.

    >>> _named("alpha 0.5 (equal norms)")
    'alpha 0.5, equal norms'
    """
    return row.replace(" (", ", ").rstrip(")")


def _direction(found: pd.DataFrame, expected: pd.DataFrame) -> str:
    """Say whether the strength of the gradients decides where a mixture's update goes, or its weight alone."""
    names = [control.variant_label(name) for name in ("mix_50", "equal_mix_50", "mix_05")]
    half, equal, little = (seeds_of(found, SHARE, name) for name in names)
    counts = "counts" if seed_interval(half - equal).low > 0 else "is not shown to count"
    means = [float(share.to_numpy(float).mean()) for share in (half, equal, little)]
    strength, alpha = expected.loc[names[2], [STRENGTH, WEIGHT]].to_numpy(float)
    by, alone = expected.loc[names[0], [STRENGTH, WEIGHT]].to_numpy(float)
    return (
        f"the strength of a gradient {counts} in a mixture, beside its weight: at half OPD and half RLVR OPD's share "
        f"of the direction is {means[0]:.2f}, where strength predicts {by:.2f} and weight {alone:.2f}. With both "
        f"gradients at one norm it is {means[1]:.2f}, where either predicts {expected.loc[names[1], STRENGTH]:.2f}; of "
        f"{alpha:.0%} OPD it is {means[2]:.2f} (strength: {strength:.2f})"
    )


def _path_tells(found: pd.DataFrame, judged: pd.DataFrame) -> str:
    """Say which mixtures stay on OPD's stable-rank path, and whether RLVR itself leaves it."""
    rlvr, seeds = (seeds_of(found, learned.PATH, row) for row in ("RLVR", control.OTHER_SEED))
    if seed_interval(rlvr - seeds).low <= 0:
        return "The stable-rank path does not tell: RLVR itself is not shown to leave it."
    runs = {kind: [run for run, path in judged["path"].to_dict().items() if path == kind] for kind in (YES, NO)}
    on, off = (listed(map(str, names or ["none"])) for names in runs.values())
    return f"RLVR leaves OPD's stable-rank path; shown to stay on it: {on}; shown to leave it: {off}."
