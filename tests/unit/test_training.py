"""The loop: schedule, batches, one update against plain torch, logs, and what happens when a number is lost."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM

from opdgeom_utils import objectives
from opdgeom_utils.batches import length_groups, make_batches, reward_of
from opdgeom_utils.errors import TrainingDivergedError
from opdgeom_utils.learner import Learner, stream_seed
from opdgeom_utils.models import build_model, build_tokenizer, load_model
from opdgeom_utils.precision import prepare
from opdgeom_utils.recipes import OBJECTIVES, Recipe
from opdgeom_utils.rollouts import encode_pairs
from opdgeom_utils.tasks import draw_examples
from opdgeom_utils.training import apply_update, learning_rate_at, train

COLUMNS = {
    "step", "loss", "reward", "reverse_kl_sampled", "reverse_kl_full_vocab", "kl_to_anchor", "entropy",
    "completion_length", "grad_norm", "grad_clipped", "clip_rate", "update_norm", "tokens_per_second", "learning_rate",
}  # fmt: skip
MakeRecipe = Callable[..., Recipe]


def learner_of(recipe: Recipe, seed: int = 0, student: Qwen3ForCausalLM | None = None) -> Learner:
    student = student or build_model("tiny", 1)
    return Learner(
        recipe, seed, student, build_tokenizer(), build_model("tiny", 2).eval(), build_model("tiny", 1).eval()
    )


def test_warm_up_then_cosine_by_hand(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        steps=12, checkpoints=[12], learning_rate=1.0, final_learning_rate=0.2, schedule="cosine", warmup_fraction=1 / 6
    )
    rates = [learning_rate_at(recipe, step) for step in range(12)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])  # two updates of warm-up, then the top
    assert rates[7] == pytest.approx(0.6)  # half way down
    assert learning_rate_at(recipe, 12) == pytest.approx(0.2)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_constant_rate_stays(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(steps=10, checkpoints=[10], warmup_fraction=0.2)
    assert [learning_rate_at(recipe, step) for step in (0, 1, 2, 9)] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3])
    assert learning_rate_at(make_recipe(), 0) == 1e-3


def test_streams_of_randomness_differ() -> None:
    seeds = [stream_seed("rollout", run, step) for run in range(20) for step in range(50)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream_seed("rollout", 1, 12) != stream_seed("rollout", 11, 2)


def test_one_sft_update_equals_plain_torch(make_recipe: MakeRecipe) -> None:
    """The same update written with nothing of ours but the examples: Hugging Face's own loss and torch's AdamW."""
    recipe = make_recipe(steps=1, checkpoints=[1], prompts_per_update=5, group_size=1, micro_batches=3, grad_clip=0.5)
    learner = learner_of(recipe, seed=7)
    log = next(train(learner))
    model, tokenizer = build_model("tiny", 1).train(), build_tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    examples = draw_examples(recipe.mixture, 5, seed="7:0")
    tokens, total = 0, torch.zeros(())
    for example in examples:
        prompt, completion = tokenizer(example.prompt)["input_ids"], tokenizer(example.completion)["input_ids"]
        labels = torch.tensor([[-100] * len(prompt) + completion])
        total = total + model(torch.tensor([prompt + completion]), labels=labels).loss * len(completion)
        tokens += len(completion)
    (total / tokens).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    assert log["loss"] == pytest.approx(float(total.detach() / tokens), rel=1e-5)
    assert log["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert log["grad_clipped"] == float(norm > 0.5)
    assert log["completion_length"] == tokens / 5
    for ours, plain in zip(learner.student.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_log_has_every_column(objective: str, make_recipe: MakeRecipe) -> None:
    learner = learner_of(make_recipe(objective=objective, alpha=0.5))
    rows = list(train(learner))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert set(row) == COLUMNS
        assert all(math.isfinite(value) for value in row.values())
        assert 0 <= row["reward"] <= 1
        assert 0 <= row["clip_rate"] <= 1
        assert 0 <= row["entropy"] <= math.log(len(learner.tokenizer)) + 1e-4
        assert min(row["reverse_kl_full_vocab"], row["kl_to_anchor"]) >= -1e-6
        assert row["tokens_per_second"] > 0
    assert rows[0]["kl_to_anchor"] == pytest.approx(0.0, abs=1e-6)
    # weight decay moves the weights even where a policy gradient is zero
    assert [row["update_norm"] for row in rows] == sorted(row["update_norm"] for row in rows)


def test_update_norm_is_the_distance_from_the_start(make_recipe: MakeRecipe) -> None:
    learner = learner_of(make_recipe())
    assert learner.update_norm() == 0.0
    rows = list(train(learner))
    start = build_model("tiny", 1).parameters()
    squares = [
        float((a - b).detach().double().square().sum())
        for a, b in zip(learner.student.parameters(), start, strict=True)
    ]
    assert rows[-1]["update_norm"] == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)


def test_without_fixed_models_their_distances_are_nan(make_recipe: MakeRecipe) -> None:
    learner = Learner(make_recipe(teacher=None, anchor=None), 0, build_model("tiny", 1), build_tokenizer())
    log = next(train(learner))
    assert all(math.isnan(log[key]) for key in ("reverse_kl_sampled", "reverse_kl_full_vocab", "kl_to_anchor"))
    assert math.isfinite(log["loss"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_same_seed_same_weights_other_seed_others(objective: str, make_recipe: MakeRecipe) -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(weights))  # the global generator must not matter
        learner = learner_of(make_recipe(objective=objective, steps=2, checkpoints=[2]), seed)
        list(train(learner))
        weights.append(torch.cat([p.detach().flatten() for p in learner.student.parameters()]))
    assert torch.equal(weights[0], weights[1])
    if objective != "rlvr":  # with no reward yet, RLVR is weight decay alone, whatever the seed
        assert not torch.equal(weights[0], weights[2])


def test_opd_brings_the_student_to_the_teacher(make_recipe: MakeRecipe) -> None:
    """Two blown-up models far apart: forty updates must take much of the divergence away."""
    recipe = make_recipe(
        objective="opd", steps=40, checkpoints=[40], learning_rate=1e-2, group_size=8, prompts_per_update=4,
        mixture={"sum": [1]}, probe_prompts=4, micro_batches=1,
    )  # fmt: skip
    learner = learner_of(recipe)
    assert learner.teacher is not None
    with torch.no_grad():
        learner.teacher.model.norm.weight.mul_(15.0)
    rows = list(train(learner))
    first, last = (sum(row["reverse_kl_full_vocab"] for row in part) / 5 for part in (rows[:5], rows[-5:]))
    assert first > 0.5
    assert last < 0.5 * first


def test_several_updates_from_one_round_of_rollouts(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(objective="opd", updates_per_rollout=2, checkpoints=[2, 4])
    batches = make_batches(learner_of(recipe))
    assert [len(batch.rewards) for batch in batches] == [2, 2]
    rows = list(train(learner_of(recipe)))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_length_groups_hold_every_prompt_once(make_recipe: MakeRecipe) -> None:
    tokenizer = build_tokenizer()
    examples = draw_examples({"sum": [1, 6], "sort": [1, 5]}, 11, seed=0)
    pairs = encode_pairs(tokenizer, [e.prompt for e in examples], [e.completion for e in examples])
    for parts in (1, 2, 4, 11, 20):
        groups = length_groups(pairs, parts)
        assert sorted(row for group in groups for row in group) == list(range(11))
        assert len(groups) <= parts
    lengths = [
        len(examples[row].prompt + examples[row].completion) for group in length_groups(pairs, 4) for row in group
    ]
    assert lengths == sorted(lengths)


def test_rewards_come_from_the_verifier(make_recipe: MakeRecipe) -> None:
    learner = learner_of(make_recipe())
    examples = draw_examples({"sum": [2]}, 3, seed=0)
    texts = [examples[0].completion, "0;0$", examples[2].completion[:-1]]
    rewards = reward_of(learner, examples, encode_pairs(learner.tokenizer, [e.prompt for e in examples], texts))
    assert rewards.tolist() == [[1.0], [0.0], [0.0]]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_poisoned_weight_stops_training_before_it_spreads(
    objective: str, make_recipe: MakeRecipe, tiny_models: Path
) -> None:
    learner = learner_of(make_recipe(objective=objective, alpha=0.5, prompts_per_update=2))
    batch = make_batches(learner)[0]
    if objective == "rlvr":  # an untrained student is never right; give it a group that says something
        batch.rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        batch.advantages = objectives.rlvr_advantages(batch.rewards, batch.rollouts.mask)
    with torch.no_grad():
        learner.student.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    before = [p.detach().clone() for p in learner.student.parameters()]
    with pytest.raises(TrainingDivergedError, match=r"made, seed 0, update 1: loss nan") as raised:
        apply_update(learner, batch)
    assert isinstance(raised.value, FloatingPointError)
    assert learner.step == 0
    for now, then in zip(learner.student.parameters(), before, strict=True):
        assert torch.equal(now.nan_to_num(7.0), then.nan_to_num(7.0))


def test_an_infinite_gradient_with_a_finite_loss_stops_too(make_recipe: MakeRecipe) -> None:
    learner = learner_of(make_recipe())
    batch = make_batches(learner)[0]
    learner.student.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingDivergedError, match="gradient norm"):
        apply_update(learner, batch)


def test_optimiser_follows_the_recipe(make_recipe: MakeRecipe) -> None:
    values: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 1e-15, "weight_decay": 0.3}
    group = learner_of(make_recipe(**values)).optimizer.param_groups[0]
    assert {key: group[key] for key in values} == values


def test_master_weights_are_fp32(tiny_models: Path, make_recipe: MakeRecipe) -> None:
    student = load_model(tiny_models / "anchor")
    learner = Learner(make_recipe(teacher=None, anchor=None), 0, student, build_tokenizer())
    list(train(learner))
    assert {p.dtype for p in student.parameters()} == {torch.float32}


@pytest.mark.parametrize("estimator", ["sampled", "full_vocab"])
def test_products_in_bf16_change_the_gradient_little_and_leave_weights_in_fp32(
    estimator: str, make_recipe: MakeRecipe
) -> None:
    gradients = []
    for compute in ("float32", "bfloat16"):
        recipe = make_recipe(objective="opd", estimator=estimator, prompts_per_update=16, compute=compute)
        learner = learner_of(recipe)
        prepare(learner.student, compute)
        prepare(learner.teacher, compute, fixed=True)
        batch = make_batches(learner_of(dataclasses.replace(recipe, compute="float32")))[0]  # one text for both
        apply_update(learner, batch)
        assert {p.dtype for p in learner.student.parameters()} == {p.grad.dtype for p in learner.student.parameters()}
        assert {p.dtype for p in learner.student.parameters()} == {torch.float32}
        gradients.append(torch.cat([p.grad.flatten() for p in learner.student.parameters()]))
    full, half = gradients
    assert not torch.equal(full, half)
    assert torch.cosine_similarity(full, half, dim=0) > 0.995
