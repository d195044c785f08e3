"""The ledger as a page shows it: each claim one row that the filter can find, and an honest kind of "no"."""

import re

import pandas as pd
import pytest

from opdgeom_utils import claims
from opdgeom_utils.chapters import verdicts
from opdgeom_utils.chapters.ledger import ledger
from opdgeom_utils.claims.look_up import Tables
from tests.claim_world import AGREEING, world
from tests.measure_world import full_world

PATHS = tuple(claim for claim in claims.load_claims() if claim.question != "rq1")


def test_a_withdrawn_claim_is_listed_with_its_reason_and_not_judged() -> None:
    gone = claims.load_claims(withdrawn=True)
    listed = verdicts.withdrawn_list(claims.load_claims() + gone).splitlines()
    assert len(listed) == len(gone)
    assert "`opd_rank_flat`. 2026-11-28. Cannot fail" in next(line for line in listed if "`opd_rank_flat`" in line)
    assert "In its place: nothing yet." in next(line for line in listed if "`opd_keeps_more_than_rlvr`" in line)
    assert claims.scorecard(world(AGREEING), gone).empty


def test_a_row_says_what_it_rests_on_which_way_it_speaks_and_what_it_could_see() -> None:
    claim = next(c for c in PATHS if c.id == "teacher_rollouts_keep_path")
    page = ledger(claims.scorecard(full_world(PATHS), [claim]))
    for words in ("rlvr_leaves_opds_path", "for the paper&#x27;s reading", "At the paper&#x27;s effect (0)"):
        assert words in page


def test_each_claim_is_one_row_that_each_filter_can_reach() -> None:
    card = claims.scorecard(full_world(PATHS), PATHS)
    page = ledger(card)
    rows = re.findall(r'<details class="opd-claim" ([^>]*)>', page)
    assert len(rows) == len(card)
    for name in ("verdict", "bearing", "question", "chapter", "group"):
        chosen = re.search(rf'<select name="{name}">(.*?)</select>', page)
        assert chosen
        offered = set(re.findall(r'<option value="([^"]+)"', chosen.group(1)))
        assert offered == {dict(re.findall(r'data-(\w+)="([^"]*)"', row))[name] for row in rows}
    assert page.count("opdgeom_utils.claims.path_statistics.kept_share") == (card["statistic"] == "kept_share").sum()


def test_text_of_a_claim_cannot_break_the_page() -> None:
    card = claims.scorecard(full_world(PATHS[:1]), PATHS[:1]).assign(statement="a < b & <script>")
    assert "a &lt; b &amp; &lt;script&gt;" in ledger(card)


def test_a_no_is_the_opposite_only_where_the_interval_says_so() -> None:
    def turned(recipe: str, quantity: str, null: str, other: str, step: int) -> float:
        return 0.3 if recipe == "rlvr" else 0.2  # OPD's norm below RLVR's

    claim = next(c for c in PATHS if c.id == "opd_norm_above_rlvr")
    table = verdicts.negatives(claims.scorecard(full_world((claim,), turned), [claim]))
    assert table[["verdict", "opposite"]].values.tolist() == [[claims.OPPOSITE, "1 of 1"]]
    assert table["needed"].tolist() == ["above 1"]
    assert verdicts.negatives(claims.scorecard(full_world((claim,)), [claim])).empty


@pytest.mark.parametrize("measured", [True, False])
def test_a_criticism_is_open_until_something_was_tested(measured: bool) -> None:
    tables: Tables = full_world(PATHS) if measured else world(AGREEING)
    card = claims.scorecard(tables, PATHS)
    table = verdicts.criticism_table(card, PATHS, {})
    state = table.set_index("criticism")["state"].to_dict()
    assert state[4] == state[5] == ("addressed" if measured else "open")
    assert state[3] == "open"  # no claim on a path takes up the tolerance of sparsity
    said = verdicts.criticisms_answered(table)
    assert "`locking_before_a_tenth`" in said
    assert all(f"**{number}. " in said for number in table["criticism"])


@pytest.mark.parametrize(("n", "folded"), [(6, 0), (7, 2), (12, 7)])
def test_a_long_list_of_verdicts_folds_and_loses_none(n: int, folded: int) -> None:
    rows = [{"id": f"claim_{i}", "condition": "chance", "diagnostic": "x", "statement": "It holds."} for i in range(n)]
    card = pd.DataFrame(rows).assign(verdict="partly", reason="some hold.")
    listed = verdicts.as_list(card, ["chance"])
    assert [f"`claim_{i}`" in listed for i in range(n)] == [True] * n
    assert (f"<summary>{folded} more: {folded} partly</summary>" in listed) == bool(folded)
    assert listed.split("<details>")[0].count("`claim_") == (n if not folded else verdicts.SHOWN)
