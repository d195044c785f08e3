"""The landing page's sentences: counts from the card, clauses that follow the counts."""

import itertools
from dataclasses import replace

import pandas as pd
import pytest

from opdgeom_utils.chapters import committed_tables, findings, null_objectives, path_findings
from opdgeom_utils.claims import bearing, matching
from opdgeom_utils.measures.long_table import as_measures
from opdgeom_utils.results import Tables


def card(*rows: tuple[str, str, str]) -> pd.DataFrame:
    named = pd.DataFrame(rows, columns=["id", "condition", "verdict"])
    return named.assign(statement=named["id"] + " is so.")


@pytest.mark.parametrize(
    ("whole", "matched", "words"),
    [
        ("partly", "the opposite", "no earlier than SFT's; after as many updates SFT's is ahead."),
        ("partly", "not decided", "earlier than SFT's is not shown."),
        ("the opposite", "the opposite", "no earlier than SFT's: SFT's is ahead."),
        ("reproduced", "the opposite", "into its final space earlier than SFT's."),
    ],
)
def test_a_control_that_shows_the_opposite_is_heard(whole: str, matched: str, words: str) -> None:
    rows = card(("locking_early_k16", "paper_path", whole), ("locking_at_matched_steps", "path_matched", matched))
    assert path_findings.locking_clause(rows).strip().endswith(words)


def beside_null(verdict: str, diagnostic: str, value: float = 1.0, opposed: int = 1) -> dict[str, object]:
    means = {"value": value, "least": value, "most": value, "n_comparisons": 1, "n_opposite": opposed}
    return {"condition": "null_opd", "verdict": verdict, "diagnostic": diagnostic, **means}


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (["the opposite", "the opposite"], "give by themselves."),
        (["the opposite", "not decided"], "by themselves on 1 of 2, and on the others nothing is decided"),
        (["reproduced", "reproduced"], "show more than size"),
        (["reproduced", "the opposite"], "more than size and bf16 rounding on 1 of 2"),
        (["not testable"], "Nothing could be tested"),
    ],
)
def test_null_sentence_draws_the_conclusion_that_the_counts_allow(verdicts: list[str], words: str) -> None:
    rows = pd.DataFrame([beside_null(verdict, "update_sparsity") for verdict in verdicts])
    assert words in findings.null_sentence(rows)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        (
            {1.5: "the opposite", 2.0: "the opposite"},
            "1.5 to 2.0 times as far as their shuffled updates do, so they do not spare",
        ),
        (
            {0.5: "reproduced", 0.8: "reproduced"},
            "0.5 to 0.8 times as far as their shuffled updates do, so they spare",
        ),
        ({0.5: "reproduced", 2.0: "the opposite"}, "0.5 to 2.0 times as far as their shuffled updates do."),
        ({1.05: "not decided", 2.0: "the opposite"}, "1.1 to 2.0 times as far as their shuffled updates do."),
    ],
)
def test_a_ratio_speaks_only_when_its_interval_leaves_one(ratios: dict[float, str], words: str) -> None:
    rows = [beside_null(word, "rotation", ratio, int(word == "the opposite")) for ratio, word in ratios.items()]
    assert words in findings.null_sentence(pd.DataFrame(rows))


def test_the_range_of_ratios_is_that_of_all_comparisons_and_not_of_the_deciding_one() -> None:
    row = beside_null("the opposite", "rotation", 1.8) | {"least": 1.5, "n_comparisons": 2, "n_opposite": 2}
    drift = row | {"diagnostic": "spectral_drift", "most": 9.0}  # has weight decay in it
    said = findings.null_sentence(pd.DataFrame([row, drift]))
    assert "OPD and RLVR turn the leading directions 1.5 to 1.8 times" in said


def test_matched_sentence_counts_each_match_by_itself() -> None:
    rows = card(
        ("a", "equal_updates", "reproduced"),
        ("b", "equal_updates", "partly"),
        ("c", "equal_norm", "the opposite"),
        ("d", "equal_accuracy", "not testable"),
    )
    sentence = findings.matched_sentence(rows)
    assert (
        "depend on what is made equal: reproduced at equal updates 1 of 2 (1 partly), at equal norm of the update 0 of "
        "1 (1 the opposite), " in sentence
    )
    assert "come out alike, whatever is made equal" in findings.matched_sentence(rows.assign(verdict="partly"))
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
        ("a", "paper_path", "reproduced"), ("b", "paper_path_seen", "not decided"),
        ("c", "path_nulls_right", "not decided"), ("d", "path_nulls_left", "partly"),
        ("e", "projection", "reproduced"), ("f", "projection_nulls", "not testable"),
    )  # fmt: skip
    sentence = path_findings.path_sentence(rows)
    assert "Of 2 statements of the paper on the path 1 hold. " in sentence
    cut = findings.for_landing("path", sentence)
    assert cut["lead_path"] == "On neither side does it lock more than every made-up process that learns nothing."
    assert cut["answer_path"].startswith("Of 2 statements")
    assert 'outputs. Reproduced: "a is so".' in sentence
    assert "0 of 1 (1 not decided) hold on the side of the inputs, 0 of 1 (1 partly) on that of the outputs" in sentence
    assert sentence.endswith('early space: reproduced: "e is so". Not testable: "f is so".')


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("reproduced", "can tell objectives apart"),
        ("not decided", "no claim on a path can be tested here"),
        ("not testable", "is not known"),
    ],
)
def test_control_in_words_says_whether_the_measure_can_tell(verdict: str, words: str) -> None:
    assert words in path_findings.control_sentence(card(("a", "tokens", "partly"), ("b", "power_seen", verdict)))


def test_counts_go_by_what_a_verdict_means_and_not_by_its_word() -> None:
    rows = pd.DataFrame(
        [("for", "reproduced"), ("against", "reproduced"), ("for", "the opposite"), ("against", "the opposite"),
         ("for", "partly"), ("against", "not decided"), ("for", "not testable"), ("neither", "reproduced")],
        columns=["polarity", "verdict"],
    )  # fmt: skip
    rows = rows.assign(bearing=[bearing(*pair) for pair in rows.itertuples(index=False)])
    said = findings.counts_sentence(rows)
    assert said.startswith("Of 7 claims that bear on the paper's reading 2 speak for it, 2 against it; 1 partly, 1 not")
    assert said.endswith("1 not decided, 1 not testable. 1 more speaks for neither side.")


@pytest.mark.parametrize(
    ("sparsity", "words"),
    [(0.04, "comes within a factor of 1.00 of what OPD leaves"), (0.40, "differs by a factor of 10.00 from what")],
)
def test_the_null_objective_is_set_beside_opd(sparsity: float, words: str) -> None:
    keys = {"profile": "toy", "seed": 0, "step": 400, "module": "q_proj", "n_entries": 10, "update_norm": 1.0}
    metrics = {"left_angle_mean_deg": 3.0, "right_angle_mean_deg": 3.0, "normalized_spectral_shift": 0.01}
    rows = [keys | metrics | {"recipe": "opd", "update_sparsity": 0.04}]
    rows += [keys | metrics | {"recipe": "opd_random_credit", "update_sparsity": sparsity}]
    frame = pd.DataFrame(rows)
    said = null_objectives.nothing_sentence(Tables(frame, frame, frame))
    assert words in said
    assert f"leaves {sparsity:.1%} of the entries unchanged (OPD 4.0%)" in said
    assert null_objectives.nothing_sentence(Tables(frame[:1], frame, frame)) == ""
    mlp = [row | {"module": "up_proj", "update_norm": norm} for row, norm in zip(rows, (3.0, 2.0), strict=True)]
    frame = pd.DataFrame([*rows, *mlp])
    assert (
        "On the MLP's matrices OPD's update is 1.5 times as long, turns the leading directions 1.0 times as far and "
        "shifts the spectrum 1.0 times as far (seeds: 1)."
    ) in null_objectives.nothing_sentence(Tables(frame, frame, frame))


def test_what_size_alone_shows_of_the_order_is_said_of_every_pair_of_neighbours() -> None:
    """Angles of 4, 3 and 1: the shuffled ones fall by a half and by a quarter of that."""
    keys = {"profile": "toy", "seed": 0, "step": 400, "module": "q_proj", "n_entries": 10, "update_norm": 1.0}
    rows = []
    for recipe, own, null in (("control_sft", 4.0, 2.0), ("opd", 3.0, 1.5), ("rlvr", 1.0, 1.0)):
        metrics = dict.fromkeys(matching.METRICS, own) | dict.fromkeys(
            [f"{m}_shuffled" for m in matching.METRICS], null
        )
        rows.append(keys | metrics | {"recipe": recipe})
    frame = pd.DataFrame(rows)
    orders = pd.DataFrame({"condition": ["equal_updates", "equal_norm"], "verdict": "reproduced"})
    said = findings.order_sentence(orders, Tables(frame, frame, frame))
    assert "keep of these differences 25% to 50% in sparsity and masks and 25% to 50% in angles" in said


def test_the_order_with_the_mlp_is_counted_by_means_and_by_intervals() -> None:
    """Two seeds at one update: sparsity rises for both, the left angle by its mean alone, and nothing else is told."""
    rows = []
    for (place, recipe), seed in itertools.product(enumerate(("control_sft", "opd", "rlvr")), (0, 1)):
        row = {"profile": "toy", "recipe": recipe, "seed": seed, "step": 4, "module": "up_proj", "n_entries": 10}
        row |= dict.fromkeys(matching.METRICS, 0.5) | {"update_norm": 1.0, "reference_norm": 10.0}
        row |= {"update_sparsity": 0.1 * place, "left_angle_mean_deg": 3.0 - place * (1 if seed else -0.5)}
        rows += [row, row | {"module": "q_proj", "update_sparsity": 0.5}]
    geometry = pd.DataFrame(rows)
    said = findings.order_with_mlp(Tables(geometry, geometry, geometry))
    assert (
        "after as many updates in 1 of 6 measures, and at equal norm in 2 by their means (attention alone: 1), in 1"
        in said
    )
    attention = geometry[geometry["module"] == "q_proj"]
    assert findings.order_with_mlp(Tables(attention, geometry, geometry)) == ""


def test_a_pair_the_other_way_round_is_told_where_the_order_holds_in_part() -> None:
    frame = pd.DataFrame(
        [{"profile": "toy", "seed": 0, "step": 1, "module": "q_proj", "n_entries": 1, "recipe": "opd"}]
    )
    card_ = pd.DataFrame({"id": ["a_order", "b_order"], "condition": "paper_steps", "verdict": "partly"})
    said = findings.where_sentence(card_.assign(n_opposite=[1, 0]), frame.assign(update_norm=1.0, update_sparsity=0.1))
    assert said.endswith("In 1 of them one pair of neighbours at least is the other way round.")


def test_agreement_needs_the_null_objective_beside_it() -> None:
    keys = {"profile": "toy", "step": 400, "scope": "attention", "quantity": "update_cosine", "seed": 0}
    rows = [
        keys | {"recipe": recipe, "other_recipe": recipe, "other_seed": seed, "other_step": 400, "value": value}
        for recipe, value in (("opd", 0.8), ("opd_random_credit", 0.01), ("rlvr", 0.4))
        for seed in (1, 2)
    ]
    frame = pd.DataFrame()
    said = null_objectives.agreement_sentence(Tables(frame, frame, frame, as_measures(rows)))
    assert "OPD have a cosine of 0.80, those of two seeds of random credit one of 0.01 (2 pairs of seeds)." in said
    assert "The same cosine of the others: RLVR 0.40." in said
    assert null_objectives.agreement_sentence(Tables(frame, frame, frame, as_measures(rows[:2]))) == ""
    assert null_objectives.agreement_sentence(Tables(frame, frame, frame)) == ""


def test_the_answer_in_short_follows_the_verdicts_and_the_tables() -> None:
    tables = committed_tables.tables_for("toy", [0, 1, 2])
    conditions = {"condition": ["equal_updates", "equal_norm"], "verdict": ["reproduced", "the opposite"]}
    said = findings.short_sentence(pd.DataFrame(conditions), tables)
    assert "SFT's place, the paper's order is there. Random credit and random reward, with nothing" in said
    assert "Between updates of equal norm the order is not there. Runs with random credit lack" in said
    assert "two seeds of OPD change the weights alike (cosine 0.8" in said
    assert said.endswith("has one too (0.98), and goes from 55% to 5% right.")
    alike = tables.measures.assign(value=0.5) if tables.measures is not None else None
    alone = tables.geometry.loc[tables.geometry["recipe"] != "opd_random_credit"]
    short = findings.short_sentence(pd.DataFrame(conditions), replace(tables, geometry=alone, measures=alike))
    assert short.endswith("the paper's order is there. Between updates of equal norm the order is not there.")
    assert findings.short_sentence(pd.DataFrame(conditions).assign(verdict="not testable"), tables) == ""


def test_where_null_objectives_stand_in_the_order_is_counted_from_the_tables() -> None:
    tables = committed_tables.tables_for("toy", [0, 1, 2])
    assert (
        "in 6 and 6 of 6 measures (means over 3 seeds, attention matrices): a place in between"
        in null_objectives.between_sentence(tables)
    )
    others = tables.geometry.loc[tables.geometry["recipe"] != "opd_random_credit"]
    posed = others.loc[others["recipe"] == "control_sft"].assign(recipe="opd_random_credit")
    said = null_objectives.between_sentence(replace(tables, geometry=pd.concat([others, posed])))
    assert "in 0 and 6 of 6 measures (means over 3 seeds, attention matrices)." in said
    assert null_objectives.between_sentence(replace(tables, geometry=others)) == ""
