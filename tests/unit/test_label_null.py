"""Random names: what stays, what moves, and what it does to a world with a clear order."""

import numpy as np
import pandas as pd
import pytest

from opdgeom_utils.claims import label_null, load_claims
from opdgeom_utils.errors import MetricInputError
from tests.claim_world import AGREEING, world


def test_names_are_dealt_within_a_seed_and_alike_in_both_tables() -> None:
    tables = world(AGREEING)
    dealt = label_null.relabel(tables, np.random.default_rng(1))
    for before, after in ((tables.geometry, dealt.geometry), (tables.accuracy, dealt.accuracy)):
        assert after.drop(columns="recipe").equals(before.drop(columns="recipe"))
        pairs = pd.DataFrame(
            {"seed": before["seed"], "old": before["recipe"], "new": after["recipe"]}
        ).drop_duplicates()
        assert pairs.groupby(["seed", "old"]).size().eq(1).all()
        assert pairs.groupby("seed")["new"].nunique().eq(4).all()
    keys = ["seed", "recipe"]
    assert set(map(tuple, dealt.geometry[keys].values)) == set(map(tuple, dealt.accuracy[keys].values))


def test_random_names_lose_a_clear_order() -> None:
    ledger = [claim for claim in load_claims() if claim.condition == "paper_steps"]
    true, deals = label_null.order_claims_under_relabelling(world(AGREEING), ledger, n=8, seed=0)
    assert true["n_claims"] == true["reproduced"] == 5
    assert len(deals) == 8
    assert deals["reproduced"].mean() < 1
    again = label_null.order_claims_under_relabelling(world(AGREEING), ledger, n=8, seed=0)[1]
    pd.testing.assert_frame_equal(deals, again)


def test_no_deal_is_an_error() -> None:
    with pytest.raises(MetricInputError, match="at least one"):
        label_null.order_claims_under_relabelling(world(AGREEING), load_claims(), n=0, seed=0)


@pytest.mark.parametrize(
    ("found", "deals", "words"),
    [(0, [0, 0], "no order is reproduced"), (3, [0, 1], "size or more"), (1, [0, 1, 2], "2 of 3 deals")],
)
def test_words_follow_the_counts(found: int, deals: list[int], words: str) -> None:
    assert words in label_null.chance_sentence(pd.Series({"reproduced": found}), pd.DataFrame({"reproduced": deals}))
