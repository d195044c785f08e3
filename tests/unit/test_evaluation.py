"""Held-out accuracy, with a writer whose right and wrong answers are known."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from opdgeom_utils import evaluation
from opdgeom_utils.evaluation import accuracy_table, grades_on
from opdgeom_utils.models import load_model, load_tokenizer
from opdgeom_utils.rollouts import Rollouts, encode_pairs
from opdgeom_utils.tasks import draw_examples, held_out_set, make_example

MIXTURE = {"sum": [1, 2], "sort": [1, 2, 3], "gcd": [1, 3]}


def knows(prompt: str) -> bool:
    return zlib.crc32(prompt.encode()) % 3 > 0


@pytest.fixture
def tiny(tiny_models: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return load_model(tiny_models / "anchor"), load_tokenizer(tiny_models / "anchor")


@pytest.fixture
def known_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions that are right for the prompts it knows, whatever the model says."""

    def written(_: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str], **__: object) -> Rollouts:
        assert prompts == sorted(prompts, key=len), "prompts of like length share a batch"
        return encode_pairs(tokenizer, prompts, [answer_to(prompt) for prompt in prompts])

    monkeypatch.setattr(evaluation, "roll_out", written)


def answer_to(prompt: str) -> str:
    family, _, args = prompt.removesuffix("=").partition(" ")
    return make_example(family, args).completion if knows(prompt) else "0;0$"


@pytest.mark.usefixtures("known_writer")
@pytest.mark.parametrize("batch", [1, 7, 256])
def test_rewards_come_back_in_the_order_of_the_examples(
    batch: int, monkeypatch: pytest.MonkeyPatch, tiny: tuple[PreTrainedModel, PreTrainedTokenizerFast]
) -> None:
    monkeypatch.setattr(evaluation, "BATCH", batch)
    examples = draw_examples(MIXTURE, 40, seed=2)
    grades = grades_on(*tiny, examples, None)
    rewards = [grade.reward for grade in grades]
    assert all(grade.parsed for grade in grades)
    assert rewards == [float(knows(e.prompt)) for e in examples]
    assert 0 < sum(rewards) < 40


@pytest.mark.usefixtures("known_writer")
def test_accuracy_per_family_is_the_share_of_right_answers(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerFast],
) -> None:
    table = accuracy_table(*tiny, MIXTURE, per_family=20)
    assert list(table.columns)[:5] == ["domain", "family", "greedy", "sampled", "n_prompts"]
    assert (table[["greedy_parsed", "sampled_parsed"]] == 1).all(axis=None)
    expected = {name: [knows(e.prompt) for e in held_out_set(MIXTURE, 20) if e.family == name] for name in MIXTURE}
    for row in table.itertuples():
        right: Sequence[bool] = expected[str(row.family)]
        assert row.greedy == row.sampled == sum(right) / 20
        assert row.n_prompts == 20
    assert dict(zip(table["family"], table["domain"], strict=True)) == {
        "gcd": "mathematics",
        "sort": "code",
        "sum": "mathematics",
    }


def test_a_real_model_gets_the_same_accuracy_on_every_call(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerFast],
) -> None:
    torch.manual_seed(1)
    first = accuracy_table(*tiny, MIXTURE, per_family=3)
    torch.manual_seed(2)
    assert first.equals(accuracy_table(*tiny, MIXTURE, per_family=3))
    assert first[["greedy", "sampled"]].to_numpy().min() >= 0
    assert first[["greedy", "sampled"]].to_numpy().max() <= 1
