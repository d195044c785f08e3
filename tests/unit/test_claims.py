"""Verdicts of worlds made by hand: one that agrees with the paper, one upside down, one with too few seeds."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from opdgeom_utils.claims import VERDICTS, ClaimError, load_claims, scorecard, verdict
from opdgeom_utils.claims.schema import PAPER, STATISTICS
from opdgeom_utils.intervals import seed_interval
from tests.claim_world import AGREEING, HandTables, world

REPRODUCED, PARTLY, UNDECIDED, OPPOSITE, UNTESTABLE = VERDICTS
LEDGER = tuple(claim for claim in load_claims() if claim.question == "rq1")


def verdicts(tables: HandTables) -> dict[str, str]:
    return scorecard(tables, LEDGER).set_index("id")["verdict"].to_dict()


def test_a_world_that_agrees_with_the_paper_gets_every_claim_but_the_distinct_regime() -> None:
    found = verdicts(world(AGREEING))
    assert found.pop("opd_distinct_at_equal_norm") == OPPOSITE  # on every diagnostic it is shown to lie between
    assert set(found.values()) == {REPRODUCED}


def test_trading_opd_with_rlvr_turns_every_order_to_partly_or_worse() -> None:
    traded = copy.deepcopy(AGREEING)
    traded["opd"], traded["rlvr"] = traded["rlvr"], traded["opd"]
    orders = {
        name: found for name, found in verdicts(world(traded)).items() if "_order" in name and "masks" not in name
    }
    assert orders
    assert set(orders.values()) <= {PARTLY, OPPOSITE}


def test_shuffled_updates_that_measure_the_same_leave_no_control_against_the_null() -> None:
    same = {r: {m: (real, real) for m, (real, _) in metrics.items()} for r, metrics in AGREEING.items()}
    found = verdicts(world(same))
    nulls = [
        claim.id for claim in LEDGER if claim.condition.removesuffix("_seen") in ("null_opd", "null_rlvr", "null_order")
    ]
    assert nulls
    assert {found[name] for name in nulls} == {UNDECIDED, OPPOSITE}  # a ratio of 1 is neither below 0.95 nor above 1
    assert found["update_sparsity_order"] == REPRODUCED  # an order needs no null


def test_two_seeds_are_too_few_for_any_verdict() -> None:
    tables = world(AGREEING)
    few = HandTables(*(t.loc[t["seed"] < 2] for t in (tables.geometry, tables.accuracy)))
    assert set(verdicts(few).values()) == {UNTESTABLE}


def test_three_of_five_seeds_are_enough() -> None:
    tables = world(AGREEING)
    some = HandTables(*(t.loc[t["seed"] < 3] for t in (tables.geometry, tables.accuracy)))
    card = scorecard(some, LEDGER).set_index("id")
    assert card.loc["update_sparsity_order", "verdict"] == REPRODUCED
    assert card.loc["update_sparsity_order", "n_seeds"] == 3


def test_a_run_that_is_missing_is_named_in_the_reason() -> None:
    tables = world(AGREEING)
    without = HandTables(*(t.loc[t["recipe"] != "rlvr"] for t in (tables.geometry, tables.accuracy)))
    row = scorecard(without, LEDGER).set_index("id").loc["update_sparsity_order"]
    assert row["verdict"] == UNTESTABLE
    assert "there is no run of rlvr" in row["reason"]


def test_the_interval_decides_and_not_the_mean() -> None:
    """The same mean difference, seeds that agree or do not."""
    claim = next(c for c in LEDGER if c.id == "update_sparsity_order")
    tables = world(AGREEING)
    assert verdict(claim, tables).verdict == REPRODUCED
    noise = {0: -0.9, 1: 0.9, 2: 0.0, 3: -0.5, 4: 0.5}
    loud = tables.geometry.assign(
        update_sparsity=tables.geometry["update_sparsity"]
        + tables.geometry["seed"].map(noise) * (tables.geometry["recipe"] == "opd")
    )
    result = verdict(claim, HandTables(loud, tables.accuracy))
    assert result.verdict == UNDECIDED
    assert result.low < 0 < result.high


def test_a_stricter_rule_never_reproduces_more() -> None:
    tables = world(AGREEING)
    ledger = LEDGER
    strict = [dataclasses.replace(c, rule=dataclasses.replace(c.rule, confidence=0.9999)) for c in ledger]
    held, again = (int(scorecard(tables, c)["n_hold"].sum()) for c in (ledger, strict))
    assert again <= held


def test_the_scorecard_keeps_the_order_and_the_words_of_the_file() -> None:
    ledger = load_claims()
    card = scorecard(world(AGREEING), ledger)
    assert card["id"].tolist() == [claim.id for claim in ledger]
    assert card["rule"].tolist() == [claim.rule.words for claim in ledger]
    assert (card["n_hold"] <= card["n_comparisons"]).all()


def nested(node: object) -> set[str]:
    """Operations that stand inside the operands of others."""
    if isinstance(node, list):
        return set().union(*map(nested, node))
    if not isinstance(node, dict) or "recipe" in node:
        return set()
    return set(node).intersection(STATISTICS).union(*map(nested, node.values()))


def test_every_statistic_is_used_by_a_claim() -> None:
    claims = load_claims() + load_claims(withdrawn=True)
    assert {claim.statistic for claim in claims}.union(*(nested(dict(c.args)) for c in claims)) == set(STATISTICS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("scope"), r"missing \['scope'\]"),
        (lambda c: c.update(scpoe="all"), r"unknown \['scpoe'\]"),
        (lambda c: c.update(group="ours"), "group is 'ours'; expected one of"),
        (lambda c: c.update(scope="mlp"), "scope is 'mlp'"),
        (lambda c: c.update(statistic="order"), "statistic is 'order'"),
        (lambda c: c.update(seeds=[]), "seeds is empty"),
        (lambda c: c["args"].pop("order"), r"ordering was given args \['at', 'metrics'\]; it takes"),
        (lambda c: c["args"].update(oder=[]), "ordering was given args"),
        (lambda c: c["rule"].update(side="over"), "rule: side is 'over'"),
        (lambda c: c["rule"].update(require="most"), "rule: require is 'most'"),
        (lambda c: c["rule"].update(confidence=1.5), "confidence 1.5 is not between 0 and 1"),
        (lambda c: c["rule"].update(min_seeds=1), "min_seeds 1 is below 2"),
        (lambda c: c.update(polarity="pro"), "polarity is 'pro'; expected one of"),
        (lambda c: c.update(withdrawn={"date": "2026-11-28"}), r"withdrawn: missing \['reason'\]"),
        (lambda c: c["rule"].update(opposite=0.5), "opposite 0.5 lies on the side above of threshold 0.0"),
        (lambda c: c["rule"].update(correction="sidak"), "rule: correction is 'sidak'"),
        (lambda c: c["rule"].update(require="any"), "needs a correction"),
        (lambda c: c["rule"].update(family=3), "family 3 needs to be 1 or more, and a correction"),
        (lambda c: c.update(statistic="band", args={"comparisons": [{"value": {"recipe": "opd"}}]}), "has no label"),
    ],
)
def test_a_slip_in_a_claim_is_named(change: Callable[[dict[str, Any]], Any], words: str, tmp_path: Path) -> None:
    content = yaml.safe_load((PAPER / "claims.yaml").read_text(encoding="utf-8"))
    claim = content["claims"][0]
    change(claim)
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content | {"claims": [claim]}), encoding="utf-8")
    with pytest.raises(ClaimError, match=words):
        load_claims(path)


def test_an_id_used_twice_is_refused(tmp_path: Path) -> None:
    content = yaml.safe_load((PAPER / "claims.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content | {"claims": content["claims"][:1] * 2}), encoding="utf-8")
    with pytest.raises(ClaimError, match="used twice"):
        load_claims(path)


def test_one_number_has_no_interval() -> None:
    interval = seed_interval([0.5])
    assert (interval.mean, interval.n) == (0.5, 1)
    assert pd.isna(interval.low)
    assert pd.isna(seed_interval([]).mean)


def test_a_confidence_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        seed_interval([0.0, 1.0], confidence=1.0)
