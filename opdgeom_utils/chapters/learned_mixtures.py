"""Mixtures of OPD and RLVR where both learn: runs of profile ``mixing``, by the rules LOG.md had before them.

Everything is of attention matrices, seed by seed, at the runs' end. Where between the two objectives a mixture's update
lies is read from three cosines; what its path tells is read beside random credit, of profile ``rq3``.
"""

from __future__ import annotations

import pandas as pd

from opdgeom_utils.chapters import control
from opdgeom_utils.chapters import learned_variants as learned
from opdgeom_utils.chapters.committed_tables import BookTables, tables_for
from opdgeom_utils.chapters.confined import SEEDS
from opdgeom_utils.chapters.regime import distance_closed
from opdgeom_utils.chapters.sufficiency import ENOUGH
from opdgeom_utils.chapters.surviving import NO, UNTESTED, YES
from opdgeom_utils.claims.matching import accuracy_gain, final
from opdgeom_utils.intervals import Interval, seed_interval
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.vocabulary import listed

PROFILE = "mixing"
MIXTURES = ("mix_50", "mix_05", "equal_mix_50")
CLOSED, GAINED = 0.15, 0.03  # of the distance to the teacher, by OPD; sampled accuracy, by RLVR
WITH_RLVR, SHARE = "cosine with RLVR", "OPD's share of its direction"
_RANDOM = control.variant_label(learned.NULL)
STRENGTH, WEIGHT, NEITHER = "strength", "alpha", "neither"
ASKED = (learned.PATH, learned.DIRECTION, WITH_RLVR, SHARE, learned.PROGRESS, learned.ACCURACY)
SAID = {"way": "goes whose way", "share": "OPD's share", "nearer": "nearer to", "path": "stays on OPD's path",
        "progress": "keeps OPD's progress", "gain": "keeps RLVR's gain"}  # fmt: skip


def trained() -> BookTables:
    """Return the committed tables of the mixtures where both objectives learn."""
    return tables_for(PROFILE, load_recipe("opd", PROFILE).seeds)


def numbers(tables: BookTables, beside: BookTables) -> pd.DataFrame:
    """Return every mixture's numbers beside OPD and RLVR of its seed: ``row, panel, kind, seed, value``.

    ``beside``: tables that hold random credit and the OPD from whose path its distance is taken. Panels: how far the
    stable-rank path lies from OPD's, cosines with the updates of OPD and of RLVR, OPD's share of the direction,
    progress to the teacher as a share of OPD's, and sampled accuracy.
    """
    assert tables.measures is not None
    assert beside.measures is not None
    own = learned.numbers(tables, MIXTURES)
    null = control.path_gaps(beside.measures, [learned.NULL]).assign(panel=learned.PATH, kind="null")
    null = null[null["row"] == _RANDOM]
    rlvr = learned.cosines(tables.measures, ["opd", *MIXTURES], "rlvr").assign(panel=WITH_RLVR)
    found = pd.concat([own, null, rlvr], ignore_index=True)
    found["kind"] = found["kind"].where(found["row"] != "OPD", "null")
    found = pd.concat([found, _shares(found)])
    return found.sort_values("panel", key=lambda panels: panels.map(ASKED.index), kind="stable", ignore_index=True)


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
    wide = found.pivot_table(index="seed", columns=["panel", "row"], values="value")
    ends = (("OPD", 1.0), ("RLVR", 0.0))
    rows = [(name, SHARE, "null", seed, share) for name, share in ends for seed in wide.index]
    for name in map(control.variant_label, MIXTURES):
        if {(learned.DIRECTION, name), (learned.DIRECTION, "RLVR"), (WITH_RLVR, name)} <= set(wide.columns):
            three = wide[[(learned.DIRECTION, name), (WITH_RLVR, name), (learned.DIRECTION, "RLVR")]].dropna()
            rows += [(name, SHARE, "variant", seed, share_of(*own)) for seed, *own in three.itertuples()]
    return pd.DataFrame(rows, columns=control.STRIP)


def expected_shares(measures: pd.DataFrame) -> pd.DataFrame:
    """Return what OPD's share of the gradient is, a row per mixture: ``strength`` (by both norms) and ``alpha``.

    The norms are those at the anchor, attention matrices; where the two are brought to one norm both say the same.
    """
    ratio = float(pick(measures, quantity="gradient_ratio", step=0)["value"].mean())
    made = {control.variant_label(name): load_recipe(name, PROFILE) for name in MIXTURES}
    q = {name: 1.0 if recipe.equal_gradients else ratio for name, recipe in made.items()}
    rows = {name: (r.alpha * q[name] / (r.alpha * q[name] + 1 - r.alpha), r.alpha) for name, r in made.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=[STRENGTH, WEIGHT])


def answers(found: pd.DataFrame, expected: pd.DataFrame) -> pd.DataFrame:
    """Apply the rules to :func:`numbers`, a row per mixture.

    Columns: ``way`` (whose way its update goes), ``share`` and ``nearer`` (OPD's share of its direction, and whether
    that lies nearer to what strength gives or to alpha), ``path`` and ``progress`` (whether it stays on OPD's path and
    keeps its progress), ``gain`` (whether it keeps RLVR's gain in accuracy).
    """
    wide = found.pivot_table(index="seed", columns=["panel", "row"], values="value")
    rows = {}
    for name in map(control.variant_label, MIXTURES):
        own = {panel: there[name] for panel in ASKED if name in (there := pd.DataFrame(wide.get(panel)))}
        if len(own) < len(ASKED) or int(own[SHARE].count()) < SEEDS:
            rows[name] = dict.fromkeys(("way", "share", "nearer", "path", "progress", "gain"), UNTESTED)
            continue
        lead, kept = interval(own[learned.DIRECTION] - own[WITH_RLVR]), interval(own[learned.PROGRESS])
        strength, alpha = expected.loc[name, [STRENGTH, WEIGHT]].to_numpy(float)
        beyond = interval((own[SHARE] - strength).abs() - (own[SHARE] - alpha).abs())
        told = "" if strength == alpha else _side(beyond, STRENGTH, WEIGHT)
        rows[name] = {
            "way": _side(lead, "RLVR's", "OPD's"),
            "share": interval(own[SHARE]).text(".2f"),
            "nearer": told,
            "path": _path(own[learned.PATH], pd.DataFrame(wide[learned.PATH])),
            "progress": YES if kept.low >= ENOUGH else NO if kept.high < ENOUGH else learned.OPEN,
            "gain": NO if interval(own[learned.ACCURACY] - wide[learned.ACCURACY, "RLVR"]).high < 0 else YES,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _side(difference: Interval, below: str, above: str) -> str:
    return below if difference.high < 0 else above if difference.low > 0 else NEITHER


def _path(own: pd.Series, there: pd.DataFrame) -> str:
    """Judge a path: *yes* where near and nearer than random credit, *no* where further than another seed of OPD."""
    near, beyond = interval(own), interval(own - there[_RANDOM])
    if near.high < learned.NEAR and beyond.high < 0:
        return YES
    return NO if interval(own - there[control.OTHER_SEED]).low > 0 else learned.OPEN


def interval(values: pd.Series) -> Interval:
    """95% interval over seeds, those without a number left out."""
    return seed_interval(values.dropna().to_numpy(float))


def shown(judged: pd.DataFrame, expected: pd.DataFrame) -> pd.DataFrame:
    """Lay the answers out, with the shares that strength and alpha give, a row per mixture."""
    table = judged.rename(columns=SAID).join(expected.map("{:.2f}".format).add_prefix("by "))
    ordered = table.rename_axis("mixture").reset_index()
    first = ["mixture", SAID["way"], SAID["share"], *(f"by {c}" for c in expected)]
    return ordered[[*first, *(c for c in ordered if c not in first)]]


def say(tables: BookTables, found: pd.DataFrame, expected: pd.DataFrame, judged: pd.DataFrame) -> str:
    """Say what decides a mixture's direction, what the path tells of it, and what it learns; first the finding."""
    if UNTESTED in judged["way"].tolist():
        return "What a mixture of objectives does where both learn is not tested: too few seeds.\n"
    wide = found.pivot_table(index="seed", columns=["panel", "row"], values="value")
    means, runs, closed = wide.mean(), list(judged.index), distance_closed(tables)["fixed"]
    gained = float(final(accuracy_gain(tables.accuracy.loc[tables.accuracy["recipe"] == "rlvr"]))["gain"].mean())
    both = closed.mean >= CLOSED and gained >= GAINED
    where = "Where both objectives learn" if both else "Where they learned less than was asked"
    between, seeds = (wide[learned.DIRECTION, row] for row in ("RLVR", control.OTHER_SEED))
    apart = interval(between - seeds).high < 0
    way = _direction(wide) if apart else "the two are not told apart by direction, so no mixture is placed"
    shares = "; ".join(
        f"{run} {judged.loc[run, 'share']}, by strength {strength:.2f}, by alpha {alpha:.2f}"
        for run, strength, alpha in expected.itertuples()
    )
    cosines = listed(f"{run} {means[learned.DIRECTION, run]:.2f} and {means[WITH_RLVR, run]:.2f}" for run in runs)
    gaps = listed(f"{run} {means[learned.PATH, run]:.2f}" for run in (*runs, "RLVR", control.OTHER_SEED, _RANDOM))
    progress = listed(f"{run} {interval(wide[learned.PROGRESS, run]).text('.0%')}" for run in runs)
    scores = listed(f"{run} {means[learned.ACCURACY, run]:.1%}" for run in ("OPD", *runs, "RLVR"))
    return (
        f"{where}, {way}. {_path_tells(wide, judged)}\n"
        f"After {load_recipe('opd', PROFILE).steps} updates OPD has closed {closed.text('.0%')} of its distance to the "
        f"teacher, and RLVR has gained {100 * gained:.1f} points of accuracy (seeds: {closed.n}). OPD's share of a "
        f"mixture's direction: {shares}. Cosine of a mixture's update with OPD's and with RLVR's: {cosines}; of OPD's "
        f"with RLVR's {between.mean():.2f}, with another seed's {seeds.mean():.2f}. Mean absolute log ratio to OPD's "
        f"stable-rank path: {gaps}. Share of OPD's progress to its teacher: {progress}. Sampled accuracy: {scores}."
    )


def _direction(wide: pd.DataFrame) -> str:
    """Say whether the strength of the gradients decides where a mixture's update goes, or its weight alone."""
    half, equal = (wide[SHARE, control.variant_label(name)] for name in ("mix_50", "equal_mix_50"))
    counts = "counts" if interval(half - equal).low > 0 else "is not shown to count"
    return (
        f"the strength of a gradient {counts} in a mixture, beside its weight: of half OPD and half RLVR, OPD's share "
        f"of the direction is {half.mean():.2f} as they are and {equal.mean():.2f} where both are brought to one norm"
    )


def _path_tells(wide: pd.DataFrame, judged: pd.DataFrame) -> str:
    """Say which mixtures stay on OPD's stable-rank path, and whether RLVR itself leaves it.

    >>> head = pd.MultiIndex.from_product([[learned.PATH], ["RLVR", control.OTHER_SEED]])
    >>> near = pd.DataFrame([[0.03, 0.04], [0.04, 0.03], [0.03, 0.03]], columns=head)
    >>> _path_tells(near, pd.DataFrame({"path": [YES, NO]}, index=["a", "b"]))
    'The stable-rank path does not tell: RLVR itself is not shown to leave it.'
    >>> _path_tells(near + [0.2, 0.0], pd.DataFrame({"path": [YES, NO]}, index=["a", "b"]))
    "RLVR leaves OPD's stable-rank path; shown to stay on it: a; shown to leave it: b."
    """
    if interval(wide[learned.PATH, "RLVR"] - wide[learned.PATH, control.OTHER_SEED]).low <= 0:
        return "The stable-rank path does not tell: RLVR itself is not shown to leave it."
    on, off = (listed(judged.index[judged["path"] == kind].tolist() or ["none"]) for kind in (YES, NO))
    return f"RLVR leaves OPD's stable-rank path; shown to stay on it: {on}; shown to leave it: {off}."
