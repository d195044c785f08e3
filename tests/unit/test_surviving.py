"""What survives in a pretrained model: every rule is met by the toy's own tables, and can fail."""

from dataclasses import replace

import pandas as pd
import pytest

from opdgeom_utils.chapters import committed_tables, pretrained, surviving, update_path
from opdgeom_utils.chapters.committed_tables import BookTables


@pytest.fixture(scope="module")
def toy() -> BookTables:
    return committed_tables.tables_for("toy", [0, 1, 2])


def broken(toy: BookTables, rule: int) -> BookTables:
    """Change the toy's tables where a rule looks."""
    geometry, measures = toy.geometry.copy(), toy.measures.copy() if toy.measures is not None else pd.DataFrame()
    null, opd = (geometry["recipe"] == name for name in ("opd_random_credit", "opd"))
    cosine, early = (measures["quantity"] == quantity for quantity in ("update_cosine", "sim_to_end"))
    if rule == 0:
        geometry.loc[null, "update_sparsity"] += 0.05
    elif rule == 1:
        geometry.loc[null, "update_norm"] *= 1.2
    elif rule == 2:
        geometry.loc[opd, "normalized_spectral_shift"] *= 2
    elif rule == 3:
        measures.loc[cosine & (measures["recipe"] == measures["other_recipe"]), "value"] = 0.05
    elif rule == 5:
        geometry.loc[opd, "update_sparsity"] = 0.9
    elif rule == 6:
        measures.loc[early & (measures["recipe"] == "opd"), "value"] = 0.1
    else:
        geometry.loc[opd & (geometry["module"] == "v_proj"), "update_norm"] *= 3
    return replace(toy, geometry=geometry, measures=measures)


LOPSIDED = 4  # runs of one seed on the same prompts, beside seeds on different ones


@pytest.mark.parametrize("rule", set(range(len(surviving.RULES))) - {LOPSIDED})
def test_a_finding_is_there_in_the_toy_and_can_be_lost(toy: BookTables, rule: int) -> None:
    says, ask = list(surviving.RULES.items())[rule]
    assert ask(toy)[1] is True, says
    assert ask(broken(toy, rule))[1] is False


def test_a_lopsided_rule_shows_its_numbers_and_judges_nothing(toy: BookTables) -> None:
    row = surviving.surviving(toy, toy).iloc[LOPSIDED]
    assert row["survives"] == surviving.UNTESTED
    assert "on the same prompts; own seeds, on others, 0.8" in row["toy"]


def test_what_was_not_run_is_not_testable(toy: BookTables) -> None:
    left = replace(toy, geometry=toy.geometry[toy.geometry["recipe"] == "sft"], measures=None)
    found = surviving.surviving(left, toy)
    assert set(found["survives"]) == {surviving.UNTESTED}
    assert surviving.say(found) == "Of 0 findings of the toy that can be tested here 0 survive."


def test_cosines_are_those_of_pairs_of_seeds_or_of_one_seed(toy: BookTables) -> None:
    assert (
        len(update_path.cosines(toy.measures, "opd", "opd"))
        == len(update_path.cosines(toy.measures, "opd", "control_sft"))
        == 3
    )
    assert max(update_path.cosines(toy.measures, "opd_random_credit", "opd_random_credit")) < 0.1


def test_of_one_seed_nothing_is_said_of_direction(toy: BookTables) -> None:
    cut = committed_tables.tables_for("toy", [0])
    assert cut.measures is not None
    rows = cut.measures
    alone = replace(cut, measures=rows[rows["recipe"] != rows["other_recipe"]])  # as where no other seed was run
    said = pretrained.say_found(alone, toy)
    assert "Of direction nothing can be said: that takes two seeds" in said
    assert said.endswith("Runs have one seed here at most.")
    assert "nan" not in said
    assert "Direction tells the two apart: the cosine of two seeds is 0." in pretrained.say_found(toy, toy)


@pytest.mark.parametrize(("end", "said"), [(0.0, "RLVR lost accuracy"), (0.5, "RLVR gained no accuracy")])
def test_the_order_is_not_tested_where_rlvr_did_not_learn(toy: BookTables, end: float, said: str) -> None:
    """A run that gained nothing has the place of a run that did not learn; here it starts at a half."""
    value = (toy.accuracy["step"] == 0).map({True: 0.5, False: end})
    own = toy.accuracy["recipe"] == "rlvr"
    accuracy = toy.accuracy.assign(sampled=toy.accuracy["sampled"].where(~own, value))
    row = surviving.surviving(replace(toy, accuracy=accuracy), toy).iloc[5]
    assert (row["survives"], said in row["this model"]) == (surviving.UNTESTED, True)
