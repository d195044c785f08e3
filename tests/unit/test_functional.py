"""The two rulers of function: closed forms, the same text for all, and which checkpoints are measured."""

from collections.abc import Iterator

import pandas as pd
import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerFast

from opdgeom_utils import evaluation, load_or_train, run_files
from opdgeom_utils.measures import functional
from opdgeom_utils.measures.functional import (
    Yardstick,
    function_measures,
    inside_rows,
    isotropic_share,
    points_of,
    sampled_accuracy,
    teacher_distance,
    yardstick_of,
)
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.models import load_model
from opdgeom_utils.projection import Projector, random_space
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.rollouts import Rollouts, encode_pairs, roll_out
from tests.tiny_world import DEFAULTS, RECIPES, World


@pytest.fixture
def yardstick(world: World) -> Iterator[Yardstick]:
    functional._yardstick.cache_clear()
    yield yardstick_of(load_recipe("opd", "tiny"))
    functional._yardstick.cache_clear()


def test_the_distance_of_the_teacher_to_itself_is_zero_and_of_others_that_of_plain_forwards(
    yardstick: Yardstick, world: World
) -> None:
    teacher, student = (load_model(world.models / name).eval() for name in ("teacher", "anchor"))
    assert teacher_distance(teacher, yardstick) == pytest.approx(0.0, abs=1e-6)
    total, tokens = 0.0, 0
    for text in yardstick.texts:
        for prompt, prompt_mask, ids, mask in zip(
            text.prompt_ids, text.prompt_mask, text.completion_ids[:, 0], text.mask[:, 0], strict=True
        ):
            whole = torch.cat([prompt[prompt_mask], ids[mask]])[None]
            with torch.no_grad():
                own, other = (model(whole).logits[0].double().log_softmax(-1) for model in (student, teacher))
            start = int(prompt_mask.sum()) - 1
            total += float((own.exp() * (own - other)).sum(-1)[start:-1].sum())
            tokens += int(mask.sum())
    found = teacher_distance(student, yardstick)
    assert found == pytest.approx(total / tokens, rel=1e-3)
    assert found > 1e-6


def test_the_text_is_the_anchor_s_whichever_run_asks(yardstick: Yardstick) -> None:
    sft = load_recipe("sft", "tiny")
    assert sft.start == "base"
    assert yardstick_of(sft) is yardstick
    prompts = [e.prompt for e in yardstick.problems][::2]
    written = roll_out(
        load_model("anchor").eval(), yardstick.tokenizer, prompts,
        max_new_tokens=sft.max_new_tokens, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert len(yardstick.texts) == 1
    assert torch.equal(yardstick.texts[0].completion_ids, written.completion_ids)


def test_accuracy_is_the_share_of_right_completions(yardstick: Yardstick, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that is right on the first, the fourth, the seventh... prompt: a third, rounded up."""
    right = {e.prompt: e.completion for e in yardstick.problems[::3]}

    def written(_: object, tokenizer: PreTrainedTokenizerFast, prompts: list[str], **__: object) -> Rollouts:
        return encode_pairs(tokenizer, prompts, [right.get(p, "0;x$") for p in prompts])

    monkeypatch.setattr(evaluation, "roll_out", written)
    shares = [e.prompt in right for e in yardstick.problems]
    assert sampled_accuracy(load_model("anchor"), yardstick) == sum(shares) / len(shares)
    assert 0 < sum(shares) < len(shares)


def test_the_same_numbers_on_every_call(yardstick: Yardstick) -> None:
    model = load_model("anchor").eval()
    torch.manual_seed(3)
    first = sampled_accuracy(model, yardstick, longest=5), teacher_distance(model, yardstick)
    torch.manual_seed(4)
    assert (sampled_accuracy(model, yardstick, longest=5), teacher_distance(model, yardstick)) == first


def test_an_update_without_direction_has_the_isotropic_share() -> None:
    """Gaussian updates of two shapes, random spaces of two dimensions each."""
    layers = {"a": torch.nn.Linear(6, 9, bias=False), "b": torch.nn.Linear(12, 4, bias=False)}
    before = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    shares = []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in layers.values():
                layer.weight.normal_(generator=generator)
        space = Projector({"a": random_space(6, 2, seed), "b": random_space(12, 2, seed)})
        shares.append(space.share_inside(layers, before))
    assert sum(shares) / 100 == pytest.approx(isotropic_share([(9, 6), (4, 12)], 2), abs=0.02)


def test_inside_counts_from_the_projection_on(world: World) -> None:
    recipe = load_recipe("opd_project_early", "tiny")  # from update 2 on, rank 2
    log = pd.DataFrame({"step": [1, 2, 3, 4], "update_inside": [0.1, 0.2, 0.5, 0.7]})
    assert [row["value"] for row in inside_rows(recipe, log, [(4, 8)])] == pytest.approx([0.6, 0.25])


def test_a_free_run_is_measured_where_its_projected_runs_begin_and_end(world: World) -> None:
    assert points_of(load_recipe("opd", "tiny")) == [0, 2, 4]
    assert points_of(load_recipe("opd_project_early", "tiny")) == [4]
    assert points_of(load_recipe("sft", "tiny")) == [4]
    changed = {**RECIPES, "opd": {**RECIPES["opd"], "checkpoints": [1, 4]}}
    changed["opd_project_early"] = {**RECIPES["opd_project_early"], "checkpoints": [2, 4]}
    content = {"defaults": DEFAULTS, "recipes": changed}
    (world.recipes / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert points_of(load_recipe("opd", "tiny")) == [0, 1, 4], "the nearest"
    assert points_of(load_recipe("opd_project_early", "tiny")) == [2, 4], "its own start, which the free run lacks"


def test_measures_of_a_projected_run_and_of_the_free_one(
    yardstick: Yardstick, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, free = (load_or_train(name, profile="tiny") for name in ("opd_project_early", "opd"))
    table = function_measures(held)
    assert table.groupby("quantity")["step"].unique().map(list).to_dict() == {
        "accuracy": [4], "teacher_distance": [4], "update_inside": [4]
    }  # fmt: skip
    own = table.loc[(table["quantity"] == "update_inside") & (table["null"] == ""), "value"].item()
    assert own == pytest.approx(float(held.log["update_inside"].mean()))
    paths = function_measures(free)
    followed, accuracy = (pick(paths, quantity=name) for name in ("teacher_distance", "accuracy"))
    assert followed["step"].tolist() == [0, *free.recipe.checkpoints]
    assert accuracy["step"].tolist() == points_of(free.recipe)
    assert followed["value"].iloc[0] == pytest.approx(teacher_distance(load_model("anchor"), yardstick), rel=1e-6)
    assert followed["value"].nunique() == len(followed)
    monkeypatch.setattr(functional, "_measured", lambda *_: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(function_measures(held), table)


def test_of_a_large_model_only_the_distance_is_measured_and_as_its_runs_compute(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_or_train("opd", profile="tiny")
    functional._yardstick.cache_clear()
    for module in (functional, run_files):
        monkeypatch.setattr(module, "is_large", lambda _: True)
    table = function_measures(run)
    functional._yardstick.cache_clear()
    assert table[["quantity", "step"]].to_numpy().tolist() == [["teacher_distance", 0], ["teacher_distance", 2],
                                                              ["teacher_distance", 4]]  # fmt: skip
    few = functional.yardstick_of(run.recipe)
    assert sum(len(text.mask) for text in few.texts) == -(-len(few.problems) // functional.TEXTS_OF_LARGE)
    assert few.compute == run.recipe.compute
