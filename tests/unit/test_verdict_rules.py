"""The rules of a verdict, one by one: the opposite, many comparisons, gates, power. Values worked out apart."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import yaml

from opdgeom_utils.claims import ClaimError, load_claims, power, scorecard, verdict
from opdgeom_utils.claims.multiplicity import levels
from opdgeom_utils.claims.schema import FILES, PAPER, Claim, Rule
from tests.claim_world import AGREEING, HandTables, hand_tables, world

CLAIMS = {claim.id: claim for claim in load_claims() + load_claims(withdrawn=True)}
SIX = ("left_angle_mean_deg", "right_angle_mean_deg", "update_sparsity", "hill", "stable_rank", "principal_overlap")
APART = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])  # standard error 0.00707, so a 95% interval reaches 0.01963


def ordered(**rule: Any) -> Claim:
    """SFT below OPD, for as many metrics as a test gives gaps."""
    base = CLAIMS["rotation_order"]
    changed: dict[str, Any] = {"correction": "none", "family": None, **rule}
    plain = dataclasses.replace(base.rule, **changed)
    return dataclasses.replace(base, rule=plain)


def judged(claim: Claim, *gaps: float) -> tuple[str, int, int]:
    """Verdict, and how many comparisons hold and show the opposite, where OPD's metrics lie so far above SFT's."""
    names = SIX[: len(gaps)]
    values = {"sft": dict.fromkeys(names, 0.0), "opd": {n: list(g + APART) for n, g in zip(names, gaps, strict=True)}}
    own = dataclasses.replace(claim, args={"metrics": list(names), "order": ["sft", "opd"], "at": "final"})
    found = verdict(own, hand_tables(values))
    return found.verdict, found.n_hold, found.n_opposite


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ((0.02,), ("reproduced", 1, 0)),
        ((0.019,), ("not decided", 0, 0)),
        ((-0.019,), ("not decided", 0, 0)),
        ((-0.02,), ("the opposite", 0, 1)),
        ((0.02, -0.02), ("partly", 1, 1)),
        ((0.0, -0.02), ("the opposite", 0, 1)),
        ((0.0, 0.01), ("not decided", 0, 0)),
    ],
)
def test_a_no_is_the_opposite_only_where_an_interval_says_so(gaps: tuple[float, ...], expected: object) -> None:
    assert judged(ordered(), *gaps) == expected


@pytest.mark.parametrize(
    ("side", "threshold", "opposite", "gap", "word"),
    [
        ("above", 0.1, None, 0.05, "the opposite"),  # 0.03 to 0.07: not as large as the rule asks
        ("above", 0.1, 0.0, 0.05, "not decided"),  # smaller than asked, and not reversed
        ("above", 0.1, 0.0, -0.05, "the opposite"),
        ("below", 0.1, None, 0.15, "the opposite"),
        ("below", 0.1, 0.2, 0.15, "not decided"),
        ("below", 0.1, 0.2, 0.25, "the opposite"),
    ],
)
def test_a_margin_has_its_own_opposite(side: str, threshold: float, opposite: object, gap: float, word: str) -> None:
    assert judged(ordered(side=side, threshold=threshold, opposite=opposite), gap)[0] == word


def test_any_of_several_is_refuted_only_by_all() -> None:
    rule = ordered(require="any", correction="bonferroni")
    assert judged(rule, -0.05, 0.0) == ("not decided", 0, 1)
    assert judged(rule, -0.05, -0.05) == ("the opposite", 0, 2)
    assert judged(rule, -0.05, 0.05)[0] == "reproduced"


def test_many_comparisons_share_the_chance_of_a_false_alarm() -> None:
    """At 0.02 a mean is 2.83 standard errors up: p is 0.047. Holm asks 0.05 / 4 of the first, so it is not enough."""
    alone = (0.02, 0.0, 0.0, 0.0)
    assert judged(ordered(), *alone) == ("partly", 1, 0)
    assert judged(ordered(correction="holm"), *alone) == ("not decided", 0, 0)
    assert judged(ordered(correction="holm"), 0.05, 0.0, 0.0, 0.0) == ("partly", 1, 0)  # 7.07: p is 0.0021
    assert judged(ordered(correction="holm"), 0.02, 0.02, 0.02, 0.02) == ("reproduced", 4, 0)  # all need no correction
    assert judged(ordered(correction="holm"), -0.02, 0.0, 0.0, 0.0) == ("not decided", 0, 0)


def test_holm_against_its_definition_by_adjusted_p_values() -> None:
    """The adjusted p of rank i is the largest of (m - j) p_j up to it; below 5% it is rejected."""
    draw, rule = np.random.default_rng(7), ordered(correction="holm").rule
    for _ in range(200):
        p = draw.uniform(size=int(draw.integers(1, 8))) ** 4
        order = np.argsort(p)
        adjusted = np.empty(len(p))
        adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
        found = np.array([p[i] < 1 - level for i, level in enumerate(levels(list(p), rule))])
        assert (found == (adjusted < 0.05)).all()


def test_six_diagnostics_share_five_percent_and_a_larger_family_is_stricter() -> None:
    rule = CLAIMS["opd_distinct_at_equal_norm"].rule
    assert levels([0.5] * 12, rule) == [pytest.approx(1 - 0.05 / 6)] * 12
    assert levels([0.01, math.nan], ordered(correction="holm", family=10).rule)[0] == pytest.approx(0.995)


def test_a_gate_closes_what_rests_on_it() -> None:
    first, second = CLAIMS["update_sparsity_order"], CLAIMS["rotation_order"]
    resting = dataclasses.replace(second, gate=(first.id,))
    open_, closed = world(AGREEING), world(AGREEING)
    swap = closed.geometry["recipe"].map({"opd": "rlvr", "rlvr": "opd"}).fillna(closed.geometry["recipe"])
    low = closed.geometry["update_sparsity"].where(swap == closed.geometry["recipe"], 0.4)
    closed = HandTables(closed.geometry.assign(update_sparsity=low), closed.accuracy)
    for tables, gate, word in ((open_, "reproduced", "reproduced"), (closed, "partly", "not testable")):
        for given in ([first, resting], [resting]):  # also where the gate itself was not asked for
            card = scorecard(tables, given).set_index("id")
            assert card.loc[second.id, "verdict"] == word
            assert card.loc[second.id, "n_hold"] == 4
        assert verdict(first, tables).verdict == gate
    assert "its gate update_sparsity_order came out as 'partly'" in card.loc[second.id, "reason"]
    assert "By its own rule alone: reproduced." in card.loc[second.id, "reason"]


def test_gates_and_replacements_have_to_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    real = yaml.load

    def without_the_gate(text: str, **options: Any) -> object:
        content = real(text, **options)
        content["claims"] = [c for c in content["claims"] if c["id"] != "rlvr_leaves_opds_path"]
        return content

    monkeypatch.setattr(yaml, "load", without_the_gate)
    with pytest.raises(ClaimError, match=r"\['rlvr_leaves_opds_path'\] of its gate or replaced_by do not stand"):
        load_claims()


def test_every_claim_in_the_files_says_which_way_it_speaks() -> None:
    for name in FILES.values():
        content = yaml.safe_load((PAPER / name).read_text(encoding="utf-8"))
        assert [c["id"] for c in content["claims"] if "polarity" not in c] == []


def test_rules_with_four_or_more_comparisons_are_corrected_and_blind_ones_untouched() -> None:
    card = scorecard(world(AGREEING))
    many = card.loc[(card["n_comparisons"] >= 4) & (card["side"] != "at_least"), "id"]
    assert {CLAIMS[name].rule.correction for name in many} <= {"holm", "bonferroni"}
    blind = [claim for claim in CLAIMS.values() if claim.condition == "noise_blind"]
    assert {(c.rule.threshold, c.rule.correction, c.rule.opposite) for c in blind} == {
        (0.0, "none", None), (0.03, "none", None),
    }  # fmt: skip


@pytest.mark.parametrize(("effect", "n"), [(1.0, 3), (2.0, 3), (0.7, 5), (1.5, 5)])
def test_power_is_how_often_new_seeds_would_pass(effect: float, n: int) -> None:
    """Forty thousand sets of seeds, each judged by its own t-interval."""
    values, rule = np.linspace(-1, 1, n), Rule("", "above", 0.2, "all", 0.95, 3)
    seeds = np.random.default_rng(3).normal(effect, values.std(ddof=1), size=(40_000, n))
    critical = {3: 4.30265, 5: 2.77645}[n]
    passed = (seeds.mean(1) - critical * seeds.std(1, ddof=1) / math.sqrt(n) > 0.2).mean()
    assert power.power_at(effect, list(values), rule, 0.95) == pytest.approx(passed, abs=0.01)
    below = dataclasses.replace(rule, side="below", threshold=-0.2)
    assert power.power_at(-effect, list(values), below, 0.95) == pytest.approx(passed, abs=0.01)


def test_the_smallest_effect_that_is_seen_has_a_power_of_eight_in_ten() -> None:
    for side, sign in (("above", 1), ("below", -1)):
        rule = Rule("", side, 1.0, "all", 0.95, 3)
        found = power.detectable([0.0, 0.5, 1.0, 2.0], rule, 0.95)
        assert sign * (found - 1.0) > 0
        assert power.power_at(found, [0.0, 0.5, 1.0, 2.0], rule, 0.95) == pytest.approx(0.8, abs=1e-6)
    assert math.isnan(power.detectable([1.0], rule, 0.95))
    assert power.power_at(2.0, [1.0, 1.0, 1.0], Rule("", "above", 1.0, "all", 0.95, 3), 0.95) == 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rotation_order", [0.5, 9.0, 0.5, 9.0]),  # <0.5, ~1 and >10 degrees, on both sides
        ("spectral_drift_decades", [1.0, 1.0]),
        ("low_magnitude_mask_order", [0.5359 - 0.3188, 0.7348 - 0.5359]),
        ("opd_off_principal", []),  # the claim names no number of the paper
        ("opd_rank_flat", [1.5]),  # 20 to 30: the rule's own threshold
        ("rlvr_rank_contracts", [0.5]),
        ("sft_rank_expands", [6.0]),
        ("locking_level", [0.8 - 0.7]),
        ("locking_early_k16", [math.nan, math.nan]),  # SFT's and RLVR's similarity are words
        ("token_retention_keeps_path", [0.0] * 4),
    ],
)
def test_the_papers_effect_is_made_of_its_printed_numbers(name: str, expected: list[float]) -> None:
    found = [part.values[0] for c in power.paper_effects(CLAIMS[name]) for part in c.parts]
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_rule_that_asks_for_the_papers_own_number_could_not_pass() -> None:
    """Its band is a factor of 1.5 and the rule asks for less: half of 5%, whatever the seeds do."""
    names = SIX[:2]
    paths = {r: {n: list(sign * APART) for n in names} for r, sign in (("opd", 1), ("rlvr", -1), ("sft", 0))}
    claim = dataclasses.replace(ordered(side="below", threshold=1.5), effect=1.5, reported=None)
    row = verdict(claim, hand_tables(paths))
    assert row.effect == 1.5
    assert row.power == pytest.approx(0.025)
    assert "this rule could not pass with 80% power" in power.words(row.effect, row.power, row.detectable, str)
