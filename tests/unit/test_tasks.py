"""Prompts, splits and the verifier."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdgeom_utils.errors import RecipeError
from opdgeom_utils.families import FAMILIES, LEVELS
from opdgeom_utils.tasks import (
    CHARACTERS,
    END,
    check_mixture,
    draw_examples,
    held_out_set,
    make_example,
    split_of,
    verify,
)

EVERYTHING = {name: list(LEVELS) for name in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_train_and_held_out_prompts_never_overlap(family: str) -> None:
    mixture = {family: list(LEVELS)}
    train = {e.prompt for seed in range(25) for e in draw_examples(mixture, 40, seed)}
    held_out = {e.prompt for seed in range(25) for e in draw_examples(mixture, 10, seed, "held_out")}
    held_out |= {e.prompt for seed in range(5) for e in held_out_set(mixture, 30, seed)}
    assert train
    assert held_out
    assert train.isdisjoint(held_out)
    assert {split_of(p) for p in train} == {"train"}
    assert {split_of(p) for p in held_out} == {"held_out"}


def test_one_prompt_in_eight_is_held_out() -> None:
    sides = [split_of(f"sum {a}+{b}=") for a in range(10, 99) for b in range(1, 9)]
    assert 0.1 < sides.count("held_out") / len(sides) < 0.15


def test_draws_depend_on_seed_and_split_only() -> None:
    first = draw_examples(EVERYTHING, 60, seed=3)
    assert first == draw_examples(EVERYTHING, 60, seed=3)
    assert first != draw_examples(EVERYTHING, 60, seed=4)
    assert first[:20] == draw_examples(EVERYTHING, 20, seed=3)
    assert {e.family for e in draw_examples(EVERYTHING, 400, seed=0)} == set(FAMILIES)


def test_order_of_a_mixture_does_not_matter() -> None:
    turned = dict(reversed(EVERYTHING.items()))
    assert draw_examples(EVERYTHING, 30, seed=0) == draw_examples(turned, 30, seed=0)


def test_held_out_set_has_the_asked_number_of_each_family() -> None:
    families = [e.family for e in held_out_set(EVERYTHING, 7)]
    assert {name: families.count(name) for name in FAMILIES} == dict.fromkeys(FAMILIES, 7)
    assert all(e.level in LEVELS for e in held_out_set(EVERYTHING, 7))


def test_every_demonstration_scores_one() -> None:
    for example in draw_examples(EVERYTHING, 300, seed=11):
        assert verify(example.prompt, example.completion) == 1.0
        assert example.domain == FAMILIES[example.family].domain
        assert len(example.completion) <= 40  # fits the default number of new tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_malformed_completions_score_zero(family: str) -> None:
    example = draw_examples({family: [2]}, 1, seed=0)[0]
    good, answer = example.completion, example.answer
    malformed = [
        "", END, END + END, good[:-1], good + END, END + good, good + "1", good + " ", answer, f"{answer};{END}",
        f";{END}",
        f"{answer} {END}", f" {answer}{END}", f"{answer}<pad>{END}", f"<pad>{answer}{END}", f"{answer};wrong{END}",
        f"{answer}{answer}{END}", good.replace(";", ",") if ";" in good else f"0,{good}",
    ]  # fmt: skip
    assert {text: verify(example.prompt, text) for text in malformed} == dict.fromkeys(malformed, 0.0)


def test_an_equal_number_in_another_spelling_scores_zero() -> None:
    assert verify("sum 98+7=", "05$") == 1.0
    assert verify("sum 98+7=", "5$") == 0.0
    assert verify("add 47,85=", "0132$") == 0.0


@given(st.text(alphabet=CHARACTERS + END, max_size=40), st.integers(0, 50))
def test_verifier_is_right_about_any_text(text: str, seed: int) -> None:
    example = draw_examples(EVERYTHING, 1, seed=seed)[0]
    is_right = text.endswith(END) and END not in text[:-1] and text[:-1].rsplit(";", 1)[-1] == example.answer
    assert verify(example.prompt, text) == float(is_right)


@pytest.mark.parametrize("mixture", [{"sums": [1]}, {"sum": []}, {"sum": [0]}, {"sum": [7]}, {"sum": [1, 9]}])
def test_a_wrong_mixture_is_a_recipe_error(mixture: dict[str, list[int]]) -> None:
    with pytest.raises(RecipeError, match="sum"):
        check_mixture(mixture)


def test_an_exhausted_prompt_space_is_a_recipe_error(monkeypatch: pytest.MonkeyPatch) -> None:
    side = split_of(make_example("sum", "10+1").prompt)
    other = "held_out" if side == "train" else "train"
    single = FAMILIES["sum"].__class__(
        "sum", "mathematics", "one prompt only", lambda *_: "10+1", FAMILIES["sum"].solve
    )
    monkeypatch.setitem(FAMILIES, "sum", single)
    assert draw_examples({"sum": [1]}, 1, 0, side)[0].prompt == "sum 10+1="
    with pytest.raises(RecipeError, match="too small"):
        draw_examples({"sum": [1]}, 1, 0, other)
