"""The landing page's sentences: counts from the card, clauses that follow the counts."""

import pandas as pd
import pytest

from opdgeom_utils.chapters import findings


def card(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["id", "condition", "verdict"])


def beside_null(verdict: str, diagnostic: str, value: float = 1.0, reach: float = 0.1) -> dict[str, object]:
    interval = {"value": value, "low": value - reach, "high": value + reach}
    return {"condition": "null_opd", "verdict": verdict, "diagnostic": diagnostic, **interval}


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (["not reproduced", "partly"], "give by themselves"),
        (["reproduced", "reproduced"], "show more than size"),
        (["reproduced", "not reproduced"], "more than size and bf16 rounding on 1 of 2"),
        (["not testable at this scale"], "Nothing could be tested"),
    ],
)
def test_null_sentence_draws_the_conclusion_that_the_counts_allow(verdicts: list[str], words: str) -> None:
    rows = pd.DataFrame([beside_null(verdict, "update_sparsity") for verdict in verdicts])
    assert words in findings.null_sentence(rows)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ([1.5, 2.0], "1.5 to 2.0 times the shuffled ones, so these updates do not spare"),
        ([0.5, 0.8], "0.5 to 0.8 times the shuffled ones, so these updates spare the leading"),
        ([0.5, 2.0], "0.5 to 2.0 times the shuffled ones."),
        ([1.05, 2.0], "1.1 to 2.0 times the shuffled ones."),  # the first interval reaches below 1
    ],
)
def test_a_ratio_speaks_only_when_its_interval_leaves_one(ratios: list[float], words: str) -> None:
    rows = [beside_null("not reproduced", "rotation", ratio) for ratio in ratios]
    assert words in findings.null_sentence(pd.DataFrame(rows))


def test_matched_sentence_counts_each_match_by_itself() -> None:
    rows = card(
        ("a", "equal_updates", "reproduced"),
        ("b", "equal_updates", "partly"),
        ("c", "equal_norm", "not reproduced"),
        ("d", "equal_accuracy", "not testable at this scale"),
    )
    sentence = findings.matched_sentence(rows)
    assert "reproduced now? At equal updates 1 of 2 (1 partly); at equal norm of the update 0 of 1; " in sentence
    assert "at equal accuracy gained 0 of 1 (1 not testable)." in sentence


def test_where_sentence_weighs_sparsity_by_entries_and_counts_orders_only() -> None:
    geometry = pd.DataFrame(
        {"recipe": ["sft", "opd", "opd"], "n_entries": [4, 3, 1], "update_sparsity": [0.125, 0.5, 0.9]}
    ).assign(profile="first_regime", seed=0, step=1, module="q_proj", update_norm=1.0)
    rows = card(
        ("update_sparsity_order", "paper_steps", "reproduced"), ("spectral_drift_decades", "paper_steps", "partly")
    )
    sentence = findings.where_sentence(rows, geometry)
    assert "OPD has left 60.0% of the weight entries unchanged" in sentence
    assert "SFT 12.5% and RLVR an unknown share" in sentence
    assert "one order of the three on 1 diagnostics. Reproduced: 1 of 1." in sentence


def test_the_path_in_words_counts_the_paper_apart_from_nulls() -> None:
    rows = card(
        ("a", "paper_path", "reproduced"), ("b", "paper_path_seen", "not reproduced"),
        ("c", "path_nulls_right", "not reproduced"), ("d", "path_nulls_left", "partly"),
        ("e", "projection", "reproduced"), ("f", "projection_nulls", "not testable at this scale"),
    )  # fmt: skip
    sentence = findings.path_sentence(rows)
    assert "says of the path: 1 of 2." in sentence
    assert "0 of 1 on the side of the inputs, 0 of 1 (1 partly) on that of the outputs" in sentence
    assert "other spaces: 0 of 1 (1 not testable)." in sentence


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("reproduced", "can tell objectives apart"),
        ("not reproduced", "staying on a path shows little here"),
        ("not testable at this scale", "is not known"),
    ],
)
def test_control_in_words_says_whether_the_measure_can_tell(verdict: str, words: str) -> None:
    assert words in findings.control_sentence(card(("a", "tokens", "partly"), ("b", "power_seen", verdict)))


def test_counts_are_those_of_the_committed_card() -> None:
    rows = card(*[(str(i), "x", verdict) for i, verdict in enumerate(["reproduced", "partly", "not reproduced"])])
    said = findings.counts_sentence(rows.assign(group=["paper", "paper", "control"]))
    assert said.startswith("Of 2 statements of the paper 1 are reproduced, 1 partly, 0 not")
    assert "Of 1 control of ours on them 0 came out for the paper, 0 partly, 1 against it" in said
