"""The claims as ``data/paper/claims*.yaml`` write them, checked field by field, and the paper's own numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from opdgeom_utils.claims import geometry_statistics, noise_statistics, path_statistics, setting_statistics
from opdgeom_utils.errors import OpdGeomError
from opdgeom_utils.profile_files import LOADER
from opdgeom_utils.project_files import PROJECT
from opdgeom_utils.scopes import SCOPES

STATISTICS = {
    name: function
    for module in (geometry_statistics, path_statistics, setting_statistics, noise_statistics)
    for name, function in module.STATISTICS.items()
}
FILES = {
    "rq1": "claims.yaml",
    "rq2": "claims_rq2.yaml",
    "rq3": "claims_rq3.yaml",
    "variants": "claims_variants.yaml",
    "noise": "claims_noise.yaml",
}
PAPER = PROJECT / "data" / "paper"
POLARITIES = ("for", "against", "neither")
CHOICES = {
    "group": ("paper", "control"),
    "polarity": POLARITIES,
    "scope": tuple(SCOPES),
    "statistic": tuple(STATISTICS),
}
RULE_CHOICES = {
    "side": ("above", "below", "at_least"),
    "require": ("all", "any"),
    "correction": ("none", "bonferroni", "holm"),
}


class ClaimError(OpdGeomError, ValueError):
    """A file of claims has a field that is missing, unknown or out of range."""


@dataclass(frozen=True)
class Rule:
    """When a comparison holds (its interval lies wholly on ``side`` of ``threshold``), and whether all or any must.

    It shows the opposite where its interval lies wholly on the other side of ``opposite``: by default the threshold
    itself, and for ``at_least``, which has no interval, 0. ``correction`` is for many comparisons, ``family`` how many
    they count as; by default as many as there are.
    """

    words: str
    side: str
    threshold: float
    require: str
    confidence: float
    min_seeds: int
    opposite: float | None = None
    correction: str = "none"
    family: int | None = None

    @property
    def contrary(self) -> float:
        """The level beyond which the opposite is shown.

        >>> Rule("", "above", 0.1, "all", 0.95, 3).contrary, Rule("", "at_least", 1.0, "all", 0.95, 3).contrary
        (0.1, 0.0)
        """
        if self.opposite is not None:
            return self.opposite
        return 0.0 if self.side == "at_least" else self.threshold


@dataclass(frozen=True)
class Withdrawn:
    """When and why a claim is no longer judged, and the ids of the claims that ask its question now."""

    date: str
    reason: str
    replaced_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """One claim, as its file writes it; ``question`` is the file's research question: a key of :data:`FILES`.

    ``polarity``: whether it speaks for the paper's reading, against it, or neither, when it is reproduced.
    ``gate``: ids of claims without which it says nothing; where one is not reproduced, this one is not testable.
    ``profile``: whose runs the book judges it by; the file's, where a claim does not say.
    ``effect``: what the paper says in words, as a number of its comparisons ("keeps the path" is a distance of 0).
    """

    id: str
    group: str
    diagnostic: str
    condition: str
    criticism: tuple[int, ...]
    statement: str
    where: str
    reported: str | None
    scope: str
    seeds: tuple[int, ...]
    statistic: str
    args: Mapping[str, Any]
    rule: Rule
    refuted_by: str
    question: str = "rq1"
    polarity: str = "for"
    gate: tuple[str, ...] = ()
    effect: float | None = None
    profile: str = "first_regime"
    withdrawn: Withdrawn | None = None


def load_claims(path: Path | None = None, *, withdrawn: bool = False) -> tuple[Claim, ...]:
    """Read and check the claims of one file, or all of them, in the order of the research questions.

    ``path``: a file of claims; all files by default.
    ``withdrawn``: return the claims that were withdrawn, instead of those that stand.
    Raises ClaimError if a field is missing, unknown or out of range, an id is used twice, a statistic does not exist,
    or a gate or a replacement is no claim that stands.

    >>> load_claims()[0].id
    'update_sparsity_order'
    """
    claims = _all(path)
    return tuple(claim for claim in claims if (claim.withdrawn is not None) == withdrawn)


def _all(path: Path | None) -> tuple[Claim, ...]:
    paths = {q: PAPER / name for q, name in FILES.items()} if path is None else {_question(path): path}
    claims = tuple(claim for question, file in paths.items() for claim in _read(file, question))
    ids = [claim.id for claim in claims]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ClaimError(f"claim ids used twice: {twice}; a corrected claim needs a new id")
    standing = {claim.id for claim in claims if claim.withdrawn is None}
    for claim in claims if path is None else ():
        named = {*claim.gate, *(claim.withdrawn.replaced_by if claim.withdrawn else ())}
        if not named <= standing:
            raise ClaimError(f"claim {claim.id}: {sorted(named - standing)} of its gate or replaced_by do not stand")
    return claims


def _question(path: Path) -> str:
    return next((question for question, name in FILES.items() if name == path.name), "rq1")


def load_reported(name: str = "figures", path: Path = PAPER) -> pd.DataFrame:
    """Read a table of ``data/paper``, whose README says what its columns are and how sure each entry is.

    ``figures`` (one quantity for one objective) and ``table1_sparsity`` (one pair) are the paper's own numbers;
    ``published_runs``, ``published_overlaps`` and ``weight_sizes`` (one matrix of one model) are the literature's.

    >>> load_reported().query("quantity == 'update_sparsity'")["value"].tolist()
    [0.081, 0.516, 0.772]
    """
    return pd.read_csv(path / f"{name}.csv", dtype={"reported": str})


def reported_of(reported: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of :func:`load_reported` that are about a metric; one row may be about several."""
    return reported.loc[reported["metric"].fillna("").str.split(";").map(lambda names: metric in names)]


def _read(path: Path, question: str) -> list[Claim]:
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    if not isinstance(content, dict) or set(content) - {"profile"} != {"schema_version", "claims"}:
        raise ClaimError(f"{path.name} must hold schema_version, claims and, where it names one for all, profile")
    given = {"profile": content["profile"]} if "profile" in content else {}
    entries = (given | entry if isinstance(entry, dict) else entry for entry in content["claims"])
    return [_claim(entry, number, question) for number, entry in enumerate(entries, start=1)]


def _claim(entry: Any, number: int, question: str) -> Claim:
    name = f"claim {entry.get('id', number) if isinstance(entry, dict) else number}"
    values = _checked(entry, Claim, name, CHOICES)
    rule = Rule(**_checked(values["rule"], Rule, f"{name}, rule", RULE_CHOICES))
    lists = {key: tuple(values.get(key, ())) for key in ("criticism", "seeds", "gate")}
    gone = _withdrawn(values.get("withdrawn"), name)
    claim = Claim(**{**values, **lists, "rule": rule, "question": question, "withdrawn": gone})
    problems = [
        _wrong_arguments(claim),
        "" if claim.seeds else "seeds is empty",
        "" if 0 < rule.confidence < 1 else f"confidence {rule.confidence} is not between 0 and 1",
        "" if rule.min_seeds >= 2 else f"min_seeds {rule.min_seeds} is below 2; an interval needs two",
        _wrong_rule(rule),
    ]
    for problem in filter(None, problems):
        raise ClaimError(f"{name}: {problem}")
    return claim


def _withdrawn(entry: Any, name: str) -> Withdrawn | None:
    """Read when and why a claim was withdrawn; None for a claim that stands."""
    if entry is None:
        return None
    values = _checked(entry, Withdrawn, f"{name}, withdrawn", {})
    return Withdrawn(str(values["date"]), values["reason"], tuple(values.get("replaced_by", ())))


def _wrong_rule(rule: Rule) -> str:
    """Say what is wrong with the opposite or the correction of a rule; empty if nothing is."""
    beyond = rule.contrary - rule.threshold
    if (rule.side == "above" and beyond > 0) or (rule.side == "below" and beyond < 0):
        return f"opposite {rule.contrary} lies on the side {rule.side} of threshold {rule.threshold}, where it holds"
    if rule.require == "any" and rule.correction == "none":
        return "any of several comparisons is enough, so the rule needs a correction: bonferroni or holm"
    if rule.family is not None and (rule.family < 1 or rule.correction == "none"):
        return f"family {rule.family} needs to be 1 or more, and a correction"
    return ""


def _checked(
    entry: Any, kind: type[Claim] | type[Rule] | type[Withdrawn], name: str, choices: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """Return the fields of an entry: every needed one, no unknown one, each with a value that it may have."""
    known = {f.name for f in fields(kind)} - {"question"}
    needed = {f.name for f in fields(kind) if f.default is MISSING}
    given = set(entry) if isinstance(entry, dict) else set()
    if not isinstance(entry, dict) or not needed <= given <= known:
        raise ClaimError(f"{name}: missing {sorted(needed - given)}, unknown {sorted(str(k) for k in given - known)}")
    for field, allowed in choices.items():
        if field in entry and entry[field] not in allowed:
            raise ClaimError(f"{name}: {field} is {entry[field]!r}; expected one of {list(allowed)}")
    return dict(entry)


def _wrong_arguments(claim: Claim) -> str:
    """Say what is wrong with the args, as the statistic's own signature has them; empty if nothing is."""
    _, *taken = inspect.signature(STATISTICS[claim.statistic]).parameters.values()
    needed = {p.name for p in taken if p.default is p.empty}
    if not needed <= set(claim.args) <= {p.name for p in taken}:
        return f"statistic {claim.statistic} was given args {sorted(claim.args)}; it takes {[p.name for p in taken]}"
    if claim.statistic in path_statistics.STATISTICS:
        return path_statistics.problem_of(claim.statistic, claim.args["comparisons"])
    return ""
