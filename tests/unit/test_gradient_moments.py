"""Gradients of every objective on one set of completions: against the training loop's own, and in the long table."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from opdgeom_utils import objectives, runs
from opdgeom_utils.measures import moments
from opdgeom_utils.measures.gradient_moments import KEPT, RANDOM_CREDIT, Gradients, MomentPlan, collect_gradients
from opdgeom_utils.measures.moments import ALPHAS, mixtures_of, moment_rows
from opdgeom_utils.scoring import completion_logits
from tests.tiny_world import World

PLAN = MomentPlan(batches=4, prompts=3, group_size=4, replicates=8)


@pytest.fixture
def found(world: World) -> Gradients:
    run = runs.load_or_train("opd", seed=0, profile="tiny")
    return collect_gradients(runs.make_learner(run, "cpu"), PLAN)


def test_every_objective_has_a_gradient_of_every_attention_matrix(found: Gradients) -> None:
    assert set(found) == {"opd", "rlvr", *KEPT, RANDOM_CREDIT, "opd_full_vocab", "opd_teacher_writes"}
    shapes = {name: {m: g.shape for m, g in by.items()} for name, by in found.items()}
    assert all(of == shapes["opd"] for of in shapes.values())
    assert {m.split(".")[-2] for m in shapes["opd"]} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(shape[0] == 4 for shape in shapes["opd"].values())


def test_linear_in_the_credit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a mixed credit is the mixture of the gradients: the training loop's loss on fresh completions."""
    learner = runs.make_learner(runs.load_or_train("opd", seed=0, profile="tiny"), "cpu")
    taken: list[tuple] = []
    original = objectives.opd_advantages

    def remember(own, teacher, mask):
        taken.append((own, original(own, teacher, mask)))
        return taken[-1][1]

    parts: list = []

    def seen(model, part):
        if model is learner.student:
            parts.append(part)
        return completion_logits(model, part)

    monkeypatch.setattr("opdgeom_utils.measures.gradient_moments.objectives.opd_advantages", remember)
    monkeypatch.setattr("opdgeom_utils.measures.gradient_moments.completion_logits", seen)
    gradients = collect_gradients(learner, replace(PLAN, batches=1))
    name = next(iter(gradients["opd"]))
    weight = dict(learner.student.named_parameters())[name]
    total, whole = float(sum(p.mask.sum() for p in parts[:2])), torch.zeros_like(weight)
    for part, (_, credit) in zip(parts[:2], taken[:2], strict=True):
        log_probs = objectives.token_log_probs(completion_logits(learner.student, part).float(), part.completion_ids)
        mixed = 0.25 * credit + 0.75 * part.mask
        loss = objectives.policy_loss(log_probs, log_probs.detach(), mixed, part.mask, total=total).loss
        plain = objectives.policy_loss(log_probs, log_probs.detach(), part.mask.float(), part.mask, total=total).loss
        whole += torch.autograd.grad(loss, weight, retain_graph=True)[0] - 0.75 * torch.autograd.grad(plain, weight)[0]
    assert torch.allclose(whole, 0.25 * gradients["opd"][name][0], atol=1e-6)


def test_the_same_call_gives_the_same_gradients_and_each_batch_its_own(world: World, found: Gradients) -> None:
    learner = runs.make_learner(runs.load_or_train("opd", seed=0, profile="tiny"), "cpu")
    again = collect_gradients(learner, replace(PLAN, batches=2))
    for name, by in again.items():
        for matrix, value in by.items():
            assert torch.equal(value, found[name][matrix][:2])
    first, second = (torch.cat([g[i].flatten() for g in again["opd"].values()]) for i in (0, 1))
    assert not torch.equal(first, second)


def test_mixtures_of_equal_norm(found: Gradients) -> None:
    rlvr = {m: 0.1 * g for m, g in found["opd"].items()}
    mixed = mixtures_of({"opd": found["opd"], "rlvr": rlvr})
    for matrix, g in found["opd"].items():
        assert torch.allclose(mixed["equal_mix_25"][matrix], g, rtol=1e-4, atol=1e-9)
        assert torch.allclose(mixed["mix_25"][matrix], (0.25 + 0.075) * g, rtol=1e-4, atol=1e-9)


def test_rows_of_gradients_whose_moments_are_known() -> None:
    """RLVR is twice OPD: every alignment and fit is one, the formula needs its cross term, the ratio is one half."""
    generator = torch.Generator().manual_seed(0)
    opd = {"a": torch.randn(6, 20, 24, generator=generator)}
    rows = moment_rows({"opd": opd, "rlvr": {"a": 2 * opd["a"]}}, replicates=5)
    table = pd.DataFrame(rows).set_index(["recipe", "quantity", "side", "k", "other_recipe", "null"])["value"]
    for side in ("right", "left"):
        assert table["rlvr", "moment_alignment", side, 4, "opd", ""] == pytest.approx(1)
        assert table["rlvr", "moment_fit", side, 0, "opd", ""] == pytest.approx(1)
        assert table["rlvr", "moment_scale", side, 0, "opd", ""] == pytest.approx(4)
        halves = table["opd", "moment_alignment", side, 4, "opd", "half_batches"]
        assert table["rlvr", "moment_alignment_independent", side, 4, "opd", ""] == pytest.approx(halves)
        assert 4 / 24 < halves < 1
        assert table["rlvr", "moment_fit_low", side, 0, "opd", ""] == pytest.approx(1)
        for name, alpha in ALPHAS.items():
            assert table[name, "moment_fit", side, 0, "opd+rlvr+cross", ""] == pytest.approx(1)
            part = (alpha**2 + 4 * (1 - alpha) ** 2) / (alpha + 2 * (1 - alpha)) ** 2
            assert table[name, "moment_fit", side, 0, "opd+rlvr", ""] == pytest.approx(1 - (1 - part) ** 2)
    assert table["opd", "moment_alignment", "left", 4, "opd", "random"] == pytest.approx(4 / 20)
    assert table["opd", "gradient_ratio", "", 0, "rlvr", ""] == pytest.approx(0.5)
    assert table["rlvr", "gradient_cosine", "", 0, "opd", ""] == pytest.approx(1)


def test_an_objective_without_a_gradient_has_no_alignment() -> None:
    opd = {"a": torch.randn(4, 20, 20, generator=torch.Generator().manual_seed(0))}
    rows = moment_rows({"opd": opd, "rlvr": {"a": torch.zeros(4, 20, 20)}}, replicates=0)
    own = {(r["quantity"], r["side"], r["k"]): r["value"] for r in rows if r["recipe"] == "rlvr"}
    assert math.isnan(own["moment_alignment", "left", 4])
    assert math.isnan(own["gradient_cosine", "", 0])
    assert own["gradient_norm", "", 0] == 0
    assert "moment_fit_low" not in {quantity for quantity, _, _ in own}


def test_measures_of_a_run_are_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.load_or_train("opd", seed=1, profile="tiny")
    plan = MomentPlan(batches=2, prompts=2, group_size=2, replicates=0, layers=(0,))
    table = moments.moment_measures(run, plan=plan)
    assert sorted(table["step"].unique()) == [0, 2]
    assert set(table["seed"]) == {1}
    monkeypatch.setattr(moments, "collect_gradients", lambda *_: pytest.fail("measured twice"))
    assert moments.moment_measures(run, plan=plan).equals(table)
