"""The plan before a large model is trained: counted by hand, refused where it does not fit, silent for small ones."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from opdgeom_utils import bf16_products, load_or_train, training_plan
from opdgeom_utils.errors import TrainingMemoryError
from opdgeom_utils.fit.memory import ACTIVATIONS, KV, Setting
from opdgeom_utils.fit.processor import compiled_bytes, products
from opdgeom_utils.fit.sides import open_side
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.training_plan import COPIES, LOGITS, Clock, Plan, check_memory, free_bytes, plan_of
from tests.tiny_world import DEFAULTS, RECIPES, World

CPU = torch.device("cpu")


@pytest.fixture
def large(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world in which tiny models count as large."""
    monkeypatch.setattr(training_plan, "LARGE", 100)
    return world


def test_memory_is_counted_by_hand(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16_products, "are_slow", lambda: False)
    recipe = dataclasses.replace(load_recipe("opd", "tiny"), compute="bfloat16")
    sides = {name: open_side(name) for name in ("anchor", "teacher")}
    n = sides["anchor"].n_parameters
    plan = plan_of(recipe, sides, (10, 5), CPU)
    stays = ["weights, fp32", "the weights it starts from, fp32", "AdamW, two moments in fp32",
             "bf16 copy under autocast", "teacher, fixed", "anchor, fixed"]  # fmt: skip
    assert [plan.memory[part] for part in stays] == [4 * n, 4 * n, 8 * n, 2 * n, 2 * n, 2 * n]
    assert plan.memory["gradients, fp32"] == 4 * n
    assert plan.memory[LOGITS] == 20 * 53 * 1 * 2 * 5  # a prompt at a time, two completions of five tokens
    assert plan.tokens == 2 * 2 * 15
    assert plan.memory["a checkpoint being written"] == 16 * n  # both moments, once a matrix and once as a whole file
    # a layer of 32 wide has 32 x 32, 32 x 16, 32 x 64, 64 x 32, and there is the head: five products a number of rows
    setting = Setting(sequences=4, micro_batch=2, prompt_tokens=10, completion_tokens=5)
    config = sides["anchor"].config
    assert products(config, setting, 10**6) == 5 * 4 + 3 * (4 * 2 * 15 + 4 * 15)
    assert products(config, setting, 1) == 5 * 4 + 3 * (4 * 1 + 1)
    assert compiled_bytes(2000) == 2000 * 400_000 + 1024 * 300_000
    # keys of 16 in fp32, values of 16 in bf16, two layers, 4 rows of 15 tokens, and once more as they are selected
    rows = max(4, 1 * len(recipe.held_out))
    assert plan.memory[KV] + plan.memory[COPIES] == 2 * 2 * rows * 15 * (16 * 4 + 16 * 2)
    assert plan.peak == sum(plan.memory.values())  # what one phase frees is not given to the next
    monkeypatch.setattr(bf16_products, "are_slow", lambda: True)  # what products keep is then in float32
    wider = plan_of(recipe, sides, (10, 5), CPU)
    assert wider.memory["rounded weights, in fp32"] == 4 * n
    assert wider.memory[ACTIVATIONS] == 2 * plan.memory[ACTIVATIONS]
    assert wider.memory["compiled products"] == 0  # float32's are not


def test_what_is_true_on_a_cpu_only_is_not_asked_of_a_card(world: World) -> None:
    recipe = dataclasses.replace(load_recipe("opd", "tiny"), compute="bfloat16")
    sides = {name: open_side(name) for name in ("anchor", "teacher")}
    n, card = sides["anchor"].n_parameters, plan_of(recipe, sides, (10, 5), torch.device("cuda"))
    phases = [4 * n + card.memory[ACTIVATIONS] + card.memory[LOGITS], card.memory[KV]]
    assert card.peak == 16 * n + 2 * n + 4 * n + 10**9 + max(phases)
    single = dataclasses.replace(recipe, compute="float32")
    assert plan_of(single, sides, (10, 5), CPU).memory["compiled products"] == 0  # fp32 products are not compiled


def test_small_models_get_no_plan(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_memory(load_recipe("opd", "tiny")) is None
    assert capsys.readouterr().out == ""


def test_a_plan_is_printed_before_and_the_time_after_a_few_updates(
    large: World, capsys: pytest.CaptureFixture[str]
) -> None:
    load_or_train("opd", profile="tiny")
    said = capsys.readouterr()
    assert "plan: 0.0 M parameters, 4 updates of up to" in said.out
    assert "teacher, fixed" in said.out
    assert "2 more and 1 evaluations: about 0 h 0 min" in said.out + said.err


def test_what_does_not_fit_is_refused_with_what_would(large: World, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"defaults": {**DEFAULTS, "prompts_per_update": 64, "micro_batches": 1}, "recipes": RECIPES}
    (large.recipes / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    plan = check_memory(load_recipe("opd", "tiny"))
    assert plan is not None
    libraries = plan.memory["libraries"]
    monkeypatch.setattr(training_plan, "free_bytes", lambda device: libraries + int((plan.peak - libraries) * 0.7))
    with pytest.raises(TrainingMemoryError, match=r"Set in the recipe \w+: ") as told:
        load_or_train("opd", profile="tiny")
    fields = yaml.safe_load("{" + str(told.value).partition("Set in the recipe ")[2] + "}")
    content["defaults"] |= fields
    (large.recipes / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert check_memory(load_recipe("opd", "tiny")) is not None
    monkeypatch.setattr(training_plan, "free_bytes", lambda device: 1000)
    with pytest.raises(MemoryError, match="No setting tried here"):
        check_memory(load_recipe("opd", "tiny"))


def test_the_clock_speaks_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 100.0, 108.0])
    monkeypatch.setattr(training_plan.time, "perf_counter", lambda: next(now))
    recipe = dataclasses.replace(load_recipe("opd", "tiny"), steps=902, checkpoints=(1, 500, 902), eval_per_family=10,
                                 final_eval_per_family=20)  # fmt: skip
    clock = Clock(Plan(1, {}, None, 1, 902), recipe, 0)
    clock.evaluated(40.0, 10)
    assert clock.updated(1) == ""
    assert clock.updated(2) == "an update takes 4.0 s; 900 more and 2 evaluations: about 1 h 2 min"
    assert clock.updated(3) == ""


def test_free_memory_is_what_the_system_says() -> None:
    said = free_bytes(CPU)
    assert said is None or 10**8 < said < 10**14
    assert (said is None) == (not Path("/proc/meminfo").is_file())
