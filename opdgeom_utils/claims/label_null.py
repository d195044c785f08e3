"""What the scorecard finds by chance: claims about an order, judged after the runs' names were dealt at random.

In each seed the names of the recipes are permuted among the runs, in the geometry and in the accuracy table alike. The
numbers stay; what they are said to come from does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from opdgeom_utils.claims.judge import VERDICTS, verdict
from opdgeom_utils.claims.look_up import Sources, Tables
from opdgeom_utils.claims.schema import Claim
from opdgeom_utils.errors import MetricInputError


@dataclass(frozen=True)
class Relabelled:
    """Geometry and accuracy whose recipe names were dealt anew; no claim about an order reads the measures."""

    geometry: pd.DataFrame
    accuracy: pd.DataFrame
    measures: None = None


def order_claims_under_relabelling(
    tables: Tables, claims: Sequence[Claim], *, n: int, seed: int
) -> tuple[pd.Series, pd.DataFrame]:
    """Judge all claims about an order with the true names and with random ones.

    ``claims``: from :func:`opdgeom_utils.claims.load_claims`; those whose statistic is no plain order are left out.
    Names are dealt among the recipes that these claims put into an order.
    Returns ``n_claims`` and the count of each verdict, with the true names and, one row each, for the deals. Raises
    MetricInputError if ``n`` is below 1.
    """
    if n < 1:
        raise MetricInputError(f"n is {n}; expected at least one deal of the names")
    rng = np.random.default_rng(seed)
    orders = [claim for claim in claims if claim.statistic == "ordering"]
    named = sorted({str(recipe) for claim in orders for recipe in claim.args["order"]})
    geometry, accuracy = (pd.DataFrame(t[t["recipe"].isin(named)]) for t in (tables.geometry, tables.accuracy))
    true = Relabelled(geometry, accuracy)
    deals = [_counts(relabel(true, rng), orders) for _ in range(n)]
    return pd.Series(_counts(true, orders)), pd.DataFrame(deals)


def relabel(tables: Tables, rng: np.random.Generator) -> Relabelled:
    """Deal the recipe names anew, independently in each seed.

    Two runs can only keep or trade their names.

    >>> frame = pd.DataFrame({"recipe": ["opd", "sft"], "seed": 0, "x": [1.0, 2.0]})
    >>> dealt = relabel(Relabelled(frame, frame), np.random.default_rng(0))
    >>> sorted(dealt.geometry["recipe"]), dealt.geometry["x"].tolist()
    (['opd', 'sft'], [1.0, 2.0])
    """
    names = sorted(tables.geometry["recipe"].unique())
    dealt = {
        (seed, name): new
        for seed in sorted(tables.geometry["seed"].unique())
        for name, new in zip(names, rng.permutation(names), strict=True)
    }
    geometry, accuracy = (
        table.assign(recipe=[dealt[key] for key in zip(table["seed"], table["recipe"], strict=True)])
        for table in (tables.geometry, tables.accuracy)
    )
    return Relabelled(geometry, accuracy)


def chance_sentence(true: pd.Series, relabelled: pd.DataFrame) -> str:
    """Say how the true count of reproduced orders compares with the deals.

    >>> deals = pd.DataFrame({"reproduced": [0, 1, 0, 0]})
    >>> for said in chance_sentence(pd.Series({"n_claims": 20, "reproduced": 6}), deals).split(": "):
    ...     print(said)
    No deal of the names in 4 reaches the 6 reproduced orders of the true names
    runs of a name are alike in what decides them, size or more.
    """
    found, n = int(true.to_dict()["reproduced"]), len(relabelled)
    reached = int((relabelled["reproduced"].to_numpy() >= found).sum())
    orders = f"the {found} reproduced orders of the true names"
    if found == 0:
        return "With the true names no order is reproduced, so there is nothing that chance would have to explain."
    if reached == 0:
        alike = "runs of a name are alike in what decides them, size or more"
        return f"No deal of the names in {n} reaches {orders}: {alike}."
    return f"{reached} of {n} deals of the names reach {orders}: may be chance."


def _counts(tables: Tables, claims: Sequence[Claim]) -> dict[str, int]:
    sources = Sources(tables)
    verdicts = [verdict(claim, sources).verdict for claim in claims]
    return {"n_claims": len(claims)} | {word: verdicts.count(word) for word in VERDICTS}
