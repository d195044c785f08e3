"""Holding a run in a space: the projection in closed form, the spaces, and what one update really does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from opdgeom_utils.batches import make_batches
from opdgeom_utils.learner import Learner
from opdgeom_utils.models import build_model, build_tokenizer
from opdgeom_utils.projection import Projector, activation_moments, leading_space, projected_layers, random_space
from opdgeom_utils.projection_spaces import make_projector
from opdgeom_utils.recipes import Recipe
from opdgeom_utils.rollouts import encode_pairs
from opdgeom_utils.training import apply_update, train

MakeRecipe = Callable[..., Recipe]
HELD = {"projection_rank": 2, "projection_from": 2}


def learner_of(recipe: Recipe, seed: int = 0, other: dict[str, Tensor] | None = None) -> Learner:
    models = build_model("tiny", 1), build_tokenizer(), build_model("tiny", 2).eval(), build_model("tiny", 1).eval()
    return Learner(recipe, seed, *models, other_update=other)


def layers_of(learner: Learner) -> dict[str, nn.Linear]:
    return dict(projected_layers(learner.student))


def weights_of(learner: Learner) -> dict[str, Tensor]:
    return {name: layer.weight.detach().clone() for name, layer in layers_of(learner).items()}


def share_in(matrix: Tensor, q: Tensor, side: str = "right") -> float:
    inside = matrix @ q if side == "right" else q.T @ matrix
    return float(inside.double().square().sum() / matrix.double().square().sum())


def begin(learner: Learner, updates: int) -> None:
    """Take updates until the projection has just begun."""
    steps = train(learner)
    for _ in range(updates):
        next(steps)


# --- the projection --------------------------------------------------------------------------------------------------


def test_projection_by_hand() -> None:
    """Onto the direction (3, 4) / 5: a row (1, 0) keeps 3/5 of itself along it, (9, 12) / 25."""
    q = torch.tensor([[0.6], [0.8]])
    matrix = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    right, left = (Projector({"w": q}, side).project("w", matrix) for side in ("right", "left"))
    torch.testing.assert_close(right, torch.tensor([[0.36, 0.48], [2.4, 3.2]]))
    torch.testing.assert_close(left, torch.tensor([[0.36, 2.4], [0.48, 3.2]]))
    outside = Projector({"w": q}, complement=True).project("w", matrix)
    torch.testing.assert_close(outside, matrix - right)
    assert not torch.allclose(outside, torch.zeros(2, 2))
    torch.testing.assert_close(outside @ q, torch.zeros(2, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_inside_and_outside_make_the_whole_and_projecting_twice_changes_nothing(side: str) -> None:
    matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    bases = {"w": random_space(9 if side == "right" else 6, 4, 1)}
    inside, outside = (Projector(bases, side, complement).project("w", matrix) for complement in (False, True))
    torch.testing.assert_close(inside + outside, matrix)
    torch.testing.assert_close(Projector(bases, side).project("w", inside), inside)
    assert float((inside * outside).sum()) == pytest.approx(0.0, abs=1e-5)
    assert int(torch.linalg.matrix_rank(inside)) == 4


@pytest.mark.parametrize("side", ["right", "left"])
def test_leading_space_finds_the_planted_one(side: str) -> None:
    u, v = random_space(12, 3, 2), random_space(7, 3, 3)
    noise = torch.randn(12, 7, generator=torch.Generator().manual_seed(4)) * 1e-4
    delta_w = u @ torch.diag(torch.tensor([9.0, 5.0, 2.0])) @ v.T + noise
    found, planted = leading_space(delta_w, 3, side), v if side == "right" else u
    torch.testing.assert_close(torch.linalg.svdvals(found.T @ planted), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.T @ found, torch.eye(3), atol=1e-5, rtol=0)


def test_a_space_wider_than_the_matrix_is_cut_to_it() -> None:
    delta_w = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert leading_space(delta_w, 16).shape == (8, 3)
    torch.testing.assert_close(Projector({"w": leading_space(delta_w, 16)}).project("w", delta_w), delta_w)


def test_a_random_space_holds_k_of_n_of_anything() -> None:
    """The mean over 200 spaces of the share of one matrix's squared norm inside is K / n."""
    layer = nn.Linear(8, 5, bias=False)
    before = {"w": torch.zeros(5, 8)}
    shares = [Projector({"w": random_space(8, 2, seed)}).share_inside({"w": layer}, before) for seed in range(200)]
    assert sum(shares) / len(shares) == pytest.approx(2 / 8, abs=0.03)
    assert min(shares) >= 0
    assert max(shares) <= 1


def test_share_inside_is_over_all_weights_together() -> None:
    """Updates (3, 4) and (0, 12) with the first axis as the space: 9 of 25 + 144."""
    first, second = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[4.0, 5.0]]))
        second.weight.copy_(torch.tensor([[1.0, 13.0]]))
    layers, before = {"a": first, "b": second}, {"a": torch.ones(1, 2), "b": torch.ones(1, 2)}
    axis = {name: torch.tensor([[1.0], [0.0]]) for name in layers}
    assert Projector(axis).share_inside(layers, before) == pytest.approx(9 / 169)
    assert Projector(axis, complement=True).share_inside(layers, before) == pytest.approx(160 / 169)
    unmoved = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    assert str(Projector(axis).share_inside(layers, unmoved)) == "nan"


def test_adam_leaves_the_space_by_hand() -> None:
    """G = (2, 1) lies on a line; Adam's first step has equal entries, (1, 1), of which 9/10 lies on that line."""
    layer = nn.Linear(2, 1, bias=False)
    line = Projector({"w": torch.tensor([[2.0], [1.0]]) / 5**0.5})
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0.0)
    layer.weight.grad = torch.tensor([[2.0, 1.0]])
    line.project_gradients({"w": layer})
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[2.0, 1.0]]))
    before = {"w": layer.weight.detach().clone()}
    optimizer.step()
    assert line.share_inside({"w": layer}, before) == pytest.approx(0.9, abs=1e-3)
    line.project_update({"w": layer}, before)
    assert line.share_inside({"w": layer}, before) == pytest.approx(1.0, abs=1e-5)


# --- which matrices, which spaces ------------------------------------------------------------------------------------


def test_projected_are_the_seven_matrices_of_each_layer() -> None:
    model = build_model("tiny", 0)
    names = [name for name, _ in projected_layers(model)]
    assert len(names) == 7 * model.config.num_hidden_layers
    assert not [name for name in names if "embed" in name or "norm" in name or "lm_head" in name]
    assert set(names) <= {name for name, _ in model.named_parameters()}


def test_activation_moments_are_those_of_plain_hooks_on_unpadded_rows() -> None:
    """One example at a time, nothing padded, must give the same sums as the padded batch."""
    model, tokenizer = build_model("tiny", 0), build_tokenizer()
    texts = [("1+2=", "3$"), ("12+30+7=", "42;49$")]
    found = activation_moments(model, [encode_pairs(tokenizer, *map(list, zip(*texts, strict=True)))])
    sums: dict[str, Tensor] = {}

    def add(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0][0].double()
            sums[name] = sums.get(name, torch.zeros(())) + rows.T @ rows

        return hook

    for name, layer in projected_layers(model):
        layer.register_forward_pre_hook(add(name))
    with torch.no_grad():
        for prompt, completion in texts:
            model(torch.tensor([tokenizer(prompt)["input_ids"] + tokenizer(completion)["input_ids"]]))
    assert found.keys() == sums.keys()
    for name, moment in found.items():
        torch.testing.assert_close(moment, sums[name], rtol=1e-4, atol=1e-6)


def test_activation_moments_leave_no_hook_behind() -> None:
    model, tokenizer = build_model("tiny", 0), build_tokenizer()
    activation_moments(model, [encode_pairs(tokenizer, ["1+2="], ["3$"])])
    assert not any(layer._forward_pre_hooks for _, layer in projected_layers(model))


@pytest.mark.parametrize("objective", ["opd", "sft"])
def test_the_activations_space_is_that_of_the_start_whenever_it_is_asked_for(
    objective: str, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(objective=objective, projection_space="activations", **HELD)
    fresh, trained = learner_of(recipe), learner_of(recipe)
    begin(trained, 2)
    bases = make_projector(fresh).bases
    for name, basis in make_projector(trained).bases.items():
        assert torch.equal(basis, bases[name])
        assert basis.shape == (layers_of(fresh)[name].weight.shape[1], 2)
    assert any(not torch.equal(make_projector(learner_of(recipe, 1)).bases[name], bases[name]) for name in bases)


def test_early_is_the_space_of_the_update_so_far_and_run_that_of_another(make_recipe: MakeRecipe) -> None:
    early = learner_of(make_recipe(objective="opd", projection_space="early", **HELD))
    begin(early, 2)
    update = early.cumulative_update()
    other = {name: torch.randn(value.shape) for name, value in update.items()}
    elsewhere = learner_of(make_recipe(objective="opd", projection_space="run:opd@2", **HELD), other=other)
    for learner, deltas in ((early, update), (elsewhere, other)):
        for name, basis in make_projector(learner).bases.items():
            _, _, vh = torch.linalg.svd(deltas[name].double())
            cosines = torch.linalg.svdvals(basis.double().T @ vh.T[:, :2])
            torch.testing.assert_close(cosines, torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_left_spaces_span_outputs(make_recipe: MakeRecipe) -> None:
    for space in ("early", "random"):
        recipe = make_recipe(objective="opd", projection_space=space, projection_side="left", **HELD)
        learner = learner_of(recipe)
        begin(learner, 2)
        for name, basis in make_projector(learner).bases.items():
            assert basis.shape == (layers_of(learner)[name].weight.shape[0], 2)


def test_random_spaces_differ_by_matrix_and_by_seed(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(objective="opd", projection_space="random", **HELD)
    one, again, two = (make_projector(learner_of(recipe, seed)).bases for seed in (0, 0, 1))
    names = [name for name in one if "q_proj" in name or "k_proj" in name]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], two[name]) for name in one)
    assert len({one[name].numpy().tobytes() for name in names}) == len(names)


# --- one update ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "side"), [("opd", "right"), ("sft", "left"), ("mixed", "right")])
def test_the_gradient_that_adam_sees_lies_in_the_space(objective: str, side: str, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(objective=objective, projection_space="early", projection_side=side, **HELD)
    learner = learner_of(recipe)
    begin(learner, 3)
    assert learner.projector is not None
    for name, layer in layers_of(learner).items():
        gradient, basis = layer.weight.grad, learner.projector.bases[name]
        assert gradient is not None
        assert share_in(gradient, basis, side) == pytest.approx(1.0, abs=1e-5)
    embedding = learner.student.get_input_embeddings().weight.grad
    assert embedding is not None
    assert int(torch.linalg.matrix_rank(embedding)) > 2, "embeddings stay free"


def test_the_projected_gradient_is_the_projection_of_the_free_one(make_recipe: MakeRecipe) -> None:
    """Two learners with one past: the gradient of the third update, held and free."""
    free, held = (
        learner_of(make_recipe(objective="opd", grad_clip=1e9, **changes))
        for changes in ({}, {"projection_space": "early", **HELD})
    )
    for learner in (free, held):
        begin(learner, 3)
    assert held.projector is not None
    for name, layer in layers_of(free).items():
        gradient, kept = layer.weight.grad, layers_of(held)[name].weight.grad
        assert gradient is not None
        assert kept is not None
        torch.testing.assert_close(kept, held.projector.project(name, gradient))


def test_the_complement_s_gradient_has_nothing_inside(make_recipe: MakeRecipe) -> None:
    learner = learner_of(make_recipe(objective="opd", projection_space="complement", **HELD))
    begin(learner, 3)
    assert learner.projector is not None
    for name, layer in layers_of(learner).items():
        gradient = layer.weight.grad
        assert gradient is not None
        assert share_in(gradient, learner.projector.bases[name]) == pytest.approx(0.0, abs=1e-9)
        assert gradient.any()


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_projected_update_stays_inside_to_the_end_weight_decay_too(side: str, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        objective="opd", steps=6, checkpoints=[2, 6], projection_space="early", projection_side=side,
        projection_of="update", weight_decay=0.5, **HELD,
    )  # fmt: skip
    learner = learner_of(recipe)
    begin(learner, 2)
    before = weights_of(learner)
    logs = list(train(learner))
    assert learner.projector is not None
    for name, now in weights_of(learner).items():
        assert share_in(now - before[name], learner.projector.bases[name], side) == pytest.approx(1.0, abs=1e-4)
    assert all(0 < log["update_inside"] < 0.95 for log in logs), "the share before the update is projected"


def test_a_projected_gradient_does_not_keep_the_update_inside_and_the_log_says_so(make_recipe: MakeRecipe) -> None:
    learner = learner_of(make_recipe(objective="opd", projection_space="random", **HELD))
    steps = train(learner)
    assert "update_inside" not in next(steps)
    assert "update_inside" not in next(steps)
    before = weights_of(learner)
    log = next(steps)
    assert learner.projector is not None
    now = weights_of(learner)
    whole = sum(float((now[name] - before[name]).double().square().sum()) for name in now)
    inside = sum(
        float(((now[name] - before[name]) @ learner.projector.bases[name]).double().square().sum()) for name in now
    )
    assert log["update_inside"] == pytest.approx(inside / whole, rel=1e-4)
    assert 0 < log["update_inside"] < 0.99


def test_before_the_projection_begins_the_run_is_the_free_run(make_recipe: MakeRecipe) -> None:
    free = learner_of(make_recipe(objective="opd"))
    held = learner_of(make_recipe(objective="opd", projection_space="early", **HELD))
    for learner in (free, held):
        begin(learner, 2)
    for name, weight in weights_of(held).items():
        assert torch.equal(weight, weights_of(free)[name])


def test_a_run_can_be_held_from_its_first_update(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(objective="opd", projection_space="random", projection_rank=2, projection_of="update")
    learner = learner_of(recipe)
    apply_update(learner, make_batches(learner)[0])
    assert learner.projector is not None
    update = learner.cumulative_update()
    for name, basis in learner.projector.bases.items():
        assert share_in(update[name], basis) == pytest.approx(1.0, abs=1e-4)
