"""The worked prompt: hand-made completions with credits that can be worked out on paper."""

import math

import pytest
import torch

from opdgeom_utils.chapters import token_credit
from opdgeom_utils.chapters.token_credit import WorkedPrompt
from opdgeom_utils.errors import RecipeError
from opdgeom_utils.models import build_model, build_tokenizer
from opdgeom_utils.rollouts import Rollouts
from opdgeom_utils.tasks import held_out_set, make_example


def hand_made() -> WorkedPrompt:
    """Two completions of ``sum 47+8-5=`` (solution 55;50$): one with a mistake at token 4, and a right one."""
    texts = ["55;40$", "55;50$"]
    ids = torch.arange(12).reshape(1, 2, 6)
    student = torch.full((1, 2, 6), math.log(0.5))
    teacher = torch.full((2, 6), math.log(0.5))
    teacher[0, 3] = math.log(0.125)  # a quarter of what the student gives: credit -log 4
    rollouts = Rollouts(
        ids[:, 0, :1], torch.ones(1, 1, dtype=torch.bool), ids, torch.ones(1, 2, 6, dtype=torch.bool), student
    )
    return WorkedPrompt(make_example("sum", "47+8-5"), rollouts, texts, torch.tensor([0.0, 1.0]), teacher)


def test_credit_table_matches_the_paper_and_pencil_case() -> None:
    credit = token_credit.credit_table(hand_made(), 0)
    table = credit.pivot(index="position", columns="objective", values="credit")
    assert table["sft"].tolist() == [1.0] * 6
    assert table["rlvr"].to_numpy() == pytest.approx([-math.sqrt(0.5)] * 6, abs=1e-4)
    assert table["opd"].to_numpy() == pytest.approx([0, 0, 0, -math.log(4), 0, 0], abs=1e-6)
    assert credit[credit["mistake"]]["position"].unique().tolist() == [4]
    assert "".join(credit[credit["objective"] == "opd"]["token"]) == "55;40$"


def test_survey_finds_the_mistake_and_all_of_the_credit_on_it() -> None:
    survey = token_credit.credit_survey([hand_made()])
    row = survey.iloc[0]
    assert len(survey) == 1
    assert (row["mistake"], row["lowest"], row["hit"], row["share"]) == (4, 4, 1.0, pytest.approx(1.0))
    assert row["chance"] == pytest.approx(1 / 6)
    assert row["least_likely_hit"] == 0.0  # the student found all tokens equally likely; the first is not the mistake


def test_a_completion_that_stops_early_leaves_the_solution_at_its_end() -> None:
    example = make_example("sum", "47+8-5")
    assert token_credit.mistake_position(example, "55;50$") == 0
    assert token_credit.mistake_position(example, "55;50") == 6
    assert token_credit.mistake_position(example, "55;50$$") == 7


def test_teacher_equal_to_student_gives_no_credit_and_same_seed_same_text() -> None:
    model, tokenizer = build_model("tiny", seed=0).eval(), build_tokenizer()
    examples = held_out_set({"sum": [1], "gcd": [1]}, 2)
    first = token_credit.work_through(model, model, tokenizer, examples, group_size=3, seed=1)
    second = token_credit.work_through(model, model, tokenizer, examples, group_size=3, seed=1)
    assert [w.texts for w in first] == [w.texts for w in second]
    for worked in first:
        mask = worked.rollouts.mask[0]
        assert (worked.rollouts.log_probs[0] - worked.teacher_log_probs)[mask].abs().max() < 1e-4


def test_a_hopeless_student_is_told_so() -> None:
    model, tokenizer = build_model("tiny", seed=0).eval(), build_tokenizer()
    with pytest.raises(RecipeError, match="choose another level"):
        token_credit.first_mixed_prompt(model, model, tokenizer, "sum", 6, group_size=2, tries=2)
