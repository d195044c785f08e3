"""The benchmark of the training step: its clock, and its refusal of comparisons that are not fair."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from benchmarks.toy_step import Ours, PhaseClock, Side, our_variants, relative_change, trl_settings, unfair
from opdgeom_utils.learner import Learner
from opdgeom_utils.models import build_model, build_tokenizer


def ticks(*times: float) -> Iterator[float]:
    return iter(times)


def test_a_call_inside_a_timed_call_counts_for_the_outer_one() -> None:
    clock = PhaseClock(ticks(0.0, 5.0, 7.0, 8.0).__next__)
    inner = clock.timed("forward", lambda: "logits")
    outer = clock.timed("probe", inner)
    assert outer() == "logits"
    assert inner() == "logits"
    assert dict(clock.seconds) == {"probe": 5.0, "forward": 1.0}


def test_a_failed_call_stops_the_clock() -> None:
    def fail() -> None:
        raise RuntimeError

    clock = PhaseClock(ticks(0.0, 2.0, 3.0, 4.0).__next__)
    with pytest.raises(RuntimeError):
        clock.timed("sampling", fail)()
    clock.timed("probe", lambda: None)()
    assert dict(clock.seconds) == {"sampling": 2.0, "probe": 1.0}


def test_ratios_are_of_medians() -> None:
    theirs = Side("TRL", cpu=[2.0, 9.0, 2.0], wall=[3.0, 3.0, 9.0], lengths=[16.0], moved=1e-3)
    ours = Side("ours", cpu=[1.0, 1.0, 8.0], wall=[2.0, 7.0, 2.0], lengths=[15.0], rewards=[0.5], moved=1e-3)
    assert ours.line(theirs).split() == ["ours", "1.000", "2.00", "2.000", "1.50", "15.0", "0.50", "1.0e-03"]
    assert unfair([theirs, ours]) == []


def test_shorter_completions_and_still_weights_are_not_fair() -> None:
    theirs, ours = Side("TRL", lengths=[16.0], moved=0.0), Side("ours", lengths=[12.0, 14.0], moved=1e-3)
    assert unfair([theirs, ours]) == ["TRL: the weights did not move", "ours: 13.0 tokens a completion, TRL 16.0"]


def test_relative_change_of_doubled_weights_is_one() -> None:
    model = build_model("tiny", 0)
    start = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert relative_change(model, start) == pytest.approx(1.0)


def test_both_sides_get_the_same_number_of_completions() -> None:
    for name in ("opd", "rlvr"):
        (_, single), (_, half), *_ = our_variants(name)
        assert (single.updates_per_rollout, single.compute, half.compute) == (1, "float32", "bfloat16")
        settings = trl_settings(single, 3, "folder")
        completions = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        assert completions == single.prompts_per_update * single.group_size == 128


def test_our_turn_is_a_real_update_and_its_parts_are_timed() -> None:
    small = {"prompts_per_update": 2, "group_size": 2, "max_new_tokens": 6, "micro_batches": 1}
    recipe = dataclasses.replace(our_variants("opd")[0][1], **small)
    models = [build_model("tiny", seed) for seed in (0, 1, 0)]
    ours = Ours(Side("ours"), Learner(recipe, 0, models[0], build_tokenizer(), *models[1:]))
    ours.turn(keep=False)
    assert ours.side.cpu == []
    assert ours.phases.seconds == {}
    ours.turn(keep=True)
    assert len(ours.side.cpu) == ours.updates == 1
    assert ours.side.moved > 0
    assert {"sampling", "teacher scoring", "forward", "backward", "optimiser", "probe"} <= set(ours.phases.seconds)
    assert 0 < sum(ours.phases.seconds.values()) <= ours.seconds
