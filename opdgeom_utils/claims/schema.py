"""The claims as ``data/paper/claims*.yaml`` write them, checked field by field, and the paper's own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from opdgeom_utils.claims import path_statistics, setting_statistics, statistics
from opdgeom_utils.errors import OpdGeomError
from opdgeom_utils.project_files import PROJECT
from opdgeom_utils.scopes import SCOPES

STATISTICS = statistics.STATISTICS | path_statistics.STATISTICS | setting_statistics.STATISTICS
FILES = {
    "rq1": "claims.yaml",
    "rq2": "claims_rq2.yaml",
    "rq3": "claims_rq3.yaml",
    "variants": "claims_variants.yaml",
}
PAPER = PROJECT / "data" / "paper"
SIDES = ("above", "below", "at_least")
ARGS = {
    "settings_in_order": "settings metrics order at [descending]",
    "settings_near": "settings metrics reference order fraction at",
    "settings_within_seeds": "settings metrics reference confidence",
    "settings_off_null": "settings metrics against sign margin",
    "ordering": "metrics order at [descending] [minus_null]",
    "log10_steps": "metrics order at",
    "against_level": "metrics recipes level at",
    "off_principal": "metrics recipes level at",
    "off_principal_against_null": "metrics recipes against at",
    "against_null": "metrics recipes against at",
    "ratio_to_null": "metrics recipes against at",
    "order_in_each_seed": "metrics order at [descending]",
    "between_ends": "metrics recipes order at",
    "surviving_share": "metrics wide matched at",
    "objective_outweighs_length": "metrics order [descending]",
    "outside_interval": "metrics middle ends at",
} | dict.fromkeys(path_statistics.STATISTICS, "comparisons")


class ClaimError(OpdGeomError, ValueError):
    """A file of claims has a field that is missing, unknown or out of range."""


@dataclass(frozen=True)
class Rule:
    """When a comparison holds (its interval lies wholly on ``side`` of ``threshold``), and whether all or any must."""

    words: str
    side: str
    threshold: float
    require: str
    confidence: float
    min_seeds: int


@dataclass(frozen=True)
class Claim:
    """One claim, as its file writes it; ``question`` is the file's research question: rq1, rq2, rq3 or variants."""

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


def load_claims(path: Path | None = None) -> tuple[Claim, ...]:
    """Read and check the claims of one file, or all of them, in the order of the research questions.

    Raises
    ------
    ClaimError
        If a field is missing, unknown or out of range, an id is used twice, or a statistic does not exist.

    Examples
    --------
    >>> load_claims()[0].id
    'update_sparsity_order'
    """
    paths = {q: PAPER / name for q, name in FILES.items()} if path is None else {_question(path): path}
    claims = tuple(claim for question, file in paths.items() for claim in _read(file, question))
    ids = [claim.id for claim in claims]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ClaimError(f"claim ids used twice: {twice}; a corrected claim needs a new id")
    return claims


def _question(path: Path) -> str:
    return next((question for question, name in FILES.items() if name == path.name), "rq1")


def _read(path: Path, question: str) -> list[Claim]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or set(content) != {"schema_version", "claims"}:
        raise ClaimError(f"{path.name} must hold exactly schema_version and claims")
    return [_claim(entry, place, question) for place, entry in enumerate(content["claims"], start=1)]


def load_reported(name: str = "figures", path: Path = PAPER) -> pd.DataFrame:
    """Read the paper's own numbers: ``figures`` (one quantity for one objective) or ``table1_sparsity`` (one pair).

    >>> load_reported().query("quantity == 'update_sparsity'")["value"].tolist()
    [0.081, 0.516, 0.772]
    """
    return pd.read_csv(path / f"{name}.csv", dtype={"reported": str})


def _claim(entry: Any, place: int, question: str) -> Claim:
    name = f"claim {entry.get('id', place) if isinstance(entry, dict) else place}"
    values = _checked(entry, Claim, name)
    rule = Rule(**_checked(values["rule"], Rule, f"{name}, rule"))
    claim = Claim(
        **{
            **values,
            "rule": rule,
            "criticism": tuple(values["criticism"]),
            "seeds": tuple(values["seeds"]),
            "question": question,
        }
    )
    problems = [
        (claim.group not in ("paper", "control"), f"group {claim.group!r} is neither paper nor control"),
        (claim.scope not in SCOPES, f"scope {claim.scope!r} is not one of {list(SCOPES)}"),
        (claim.statistic not in STATISTICS, f"statistic {claim.statistic!r} is not one of {list(STATISTICS)}"),
        (not _fits(claim), f"statistic {claim.statistic} was given args {list(claim.args)}"),
        (bool(_operand_problem(claim)), _operand_problem(claim)),
        (not claim.seeds, "seeds is empty"),
        (rule.side not in SIDES, f"side {rule.side!r} is not one of {SIDES}"),
        (rule.require not in ("all", "any"), f"require {rule.require!r} is neither all nor any"),
        (not 0 < rule.confidence < 1, f"confidence {rule.confidence} is not between 0 and 1"),
        (rule.min_seeds < 2, f"min_seeds {rule.min_seeds} is below 2; an interval needs two"),
    ]
    for wrong, message in problems:
        if wrong:
            raise ClaimError(f"{name}: {message}")
    return claim


def _checked(entry: Any, kind: type[Claim] | type[Rule], name: str) -> dict[str, Any]:
    known = {f.name for f in fields(kind)} - {"question"}
    if not isinstance(entry, dict) or set(entry) != known:
        given = set(entry) if isinstance(entry, dict) else set()
        raise ClaimError(f"{name}: missing {sorted(known - given)}, unknown {sorted(str(k) for k in given - known)}")
    return dict(entry)


def _operand_problem(claim: Claim) -> str:
    if claim.statistic not in path_statistics.STATISTICS:
        return ""
    return path_statistics.problem_of(claim.statistic, claim.args)


def _fits(claim: Claim) -> bool:
    """Whether the args are those that the statistic takes; an argument in brackets may be left out."""
    words = ARGS.get(claim.statistic, "").split()
    needed = {w for w in words if not w.startswith("[")}
    return needed <= set(claim.args) <= {w.strip("[]") for w in words}
