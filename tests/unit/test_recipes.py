"""Recipe files: what is read, and which slips stop before any training does."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from opdgeom_utils import recipes
from opdgeom_utils.errors import OpdGeomError, RecipeError, UnknownProfileError, UnknownRecipeError
from opdgeom_utils.profile_files import RECIPES
from opdgeom_utils.recipes import Recipe, load_recipe, recipe_names
from opdgeom_utils.tasks import draw_examples, held_out_set
from tests.tiny_world import DEFAULTS, World

PUBLISHED = sorted(path.stem for path in RECIPES.glob("*.yaml"))
HEADLINE = {"sft", "opd", "rlvr", "control_sft"}


@pytest.mark.parametrize("profile", PUBLISHED)
def test_every_recipe_of_every_profile_is_valid(profile: str) -> None:
    for name in recipe_names(profile):
        recipe = load_recipe(name, profile)
        assert (recipe.name, recipe.profile) == (name, profile)


@pytest.mark.parametrize("profile", ["smoke", "first_regime"])
def test_the_paper_s_contrasts_hold_in_both_profiles(profile: str) -> None:
    assert set(recipe_names(profile)) >= HEADLINE
    sft, opd, rlvr, control = (load_recipe(name, profile) for name in ("sft", "opd", "rlvr", "control_sft"))
    assert (sft.start, opd.start, rlvr.start, control.start) == ("base", "anchor", "anchor", "anchor")
    assert sft.learning_rate == pytest.approx(10 * opd.learning_rate)
    assert opd.learning_rate == rlvr.learning_rate == control.learning_rate
    assert (sft.schedule, opd.schedule, rlvr.schedule, control.schedule) == ("cosine", *["constant"] * 3)
    assert rlvr.steps == pytest.approx(opd.steps * 1023 / 299, abs=1)
    assert opd.steps in rlvr.checkpoints, "the comparison at equal updates needs this checkpoint"
    assert control.steps == opd.steps
    assert control.prompts_per_update * control.group_size == opd.prompts_per_update * opd.group_size


def test_smoke_completions_fit_its_token_limit() -> None:
    for name in recipe_names("smoke"):
        recipe = load_recipe(name, "smoke")
        examples = draw_examples(recipe.mixture, 600, 0) + held_out_set(recipe.held_out, 20)
        assert max(len(example.completion) for example in examples) <= recipe.max_new_tokens


def test_like_takes_over_what_is_not_said(world: World) -> None:
    opd, mixed = load_recipe("opd", "tiny"), load_recipe("mixed", "tiny")
    assert (mixed.objective, mixed.alpha) == ("mixed", 0.5)
    assert (mixed.steps, mixed.start, mixed.mixture) == (opd.steps, opd.start, opd.mixture)


def test_on_policy_and_held_out(make_recipe: Callable[..., Recipe]) -> None:
    assert [make_recipe(objective=o).on_policy for o in recipes.OBJECTIVES] == [False, True, True, True]
    assert make_recipe().held_out == make_recipe().mixture
    assert make_recipe(evaluation={"mod": [2]}).held_out == {"mod": [2]}


def test_a_recipe_cannot_be_changed(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(AttributeError):
        make_recipe().steps = 5  # pyright: ignore[reportAttributeAccessIssue]


def test_unknown_names_say_what_is_known(world: World) -> None:
    with pytest.raises(UnknownProfileError, match=r"unknown profile 'toi'.*one of tiny"):
        load_recipe("opd", "toi")
    with pytest.raises(UnknownRecipeError, match=r"unknown recipe 'odp' in profile 'tiny'; did you mean 'opd'\?"):
        load_recipe("odp", "tiny")
    with pytest.raises(KeyError):
        recipe_names("toi")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "dpo"}, "objective"),
        ({"schedule": "linear"}, "schedule"),
        ({"estimator": "exact"}, "estimator"),
        ({"steps": 0, "checkpoints": [0]}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"alpha": 1.5}, "alpha"),
        ({"grad_clip": -1.0}, "grad_clip is -1.0; expected a positive number"),  # turned every gradient round
        ({"grad_clip": 0.0}, "grad_clip"),
        ({"eps": float("inf")}, "eps"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"final_learning_rate": -1e-5}, "final_learning_rate is -1e-05; expected 0 or more"),  # it climbed
        ({"final_learning_rate": float("nan")}, "final_learning_rate"),
        ({"clip_low": -0.2}, "clip_low is -0.2; expected 0 to 1"),
        ({"clip_high": float("inf")}, "clip_high is inf; expected 0 or more"),
        ({"checkpoints": [0, 4]}, "checkpoints .0, 4. must rise .* from update 1"),  # which no run ever stored
        ({"seeds": [0, 0]}, "seeds are .0, 0.; expected different"),  # two rows of one run in every table
        ({"seeds": [-1]}, "seeds are .-1."),
        ({"seeds": [2**32]}, "seeds are .4294967296.; expected different whole numbers from 0 to 4294967295"),
        ({"warmup_fraction": 2.0}, "warmup_fraction is 2.0; expected 0 to 1"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"probe_prompts": 0}, "probe_prompts"),
        ({"objective": "rlvr", "group_size": 1}, "RLVR compares the answers to one prompt"),
        ({"checkpoints": []}, "checkpoint"),
        ({"checkpoints": [1, 2]}, "the last at the last step"),
        ({"checkpoints": [2, 1, 4]}, "rise"),
        ({"checkpoints": [2, 2, 4]}, "rise"),
        ({"updates_per_rollout": 2}, "multiple"),
        ({"objective": "opd", "teacher": None}, "teacher"),
        ({"objective": "opd", "estimator": "full_vocab", "random_credit": True}, "random_credit"),
        ({"objective": "opd", "random_reward": True}, "random_reward"),
        ({"compute": "float16"}, "compute"),
        ({"micro_tokens": -1}, "micro_tokens"),
        ({"objective": "opd", "keep_fraction": 0.0}, "keep_fraction"),
        ({"objective": "opd", "keep_fraction": 1.5}, "keep_fraction"),
        ({"objective": "opd", "keep_fraction": float("nan")}, "keep_fraction"),
        ({"objective": "opd", "keep_fraction": 0.5, "keep_by": "bottom"}, "keep_by"),
        ({"objective": "rlvr", "keep_fraction": 0.5}, "sampled estimator"),
        ({"objective": "mixed", "keep_fraction": 0.5}, "sampled estimator"),
        ({"objective": "opd", "estimator": "full_vocab", "keep_fraction": 0.5}, "sampled estimator"),
        ({"objective": "opd", "equal_gradients": True}, "equal_gradients"),
        ({"objective": "sft", "writer": "teacher"}, "writer"),
        ({"projection_space": "late", "projection_rank": 2, "projection_from": 2}, "projection_space"),
        ({"projection_space": "run:opd", "projection_rank": 2}, "projection_space"),
        ({"projection_space": "run:made@2", "projection_rank": 2}, "its own end"),
        ({"projection_space": "random", "projection_rank": 0}, "projection_rank"),
        ({"projection_space": "random", "projection_rank": 2, "projection_from": 4}, "projection_from"),
        ({"projection_space": "random", "projection_rank": 2, "projection_from": -1}, "projection_from"),
        ({"projection_space": "early", "projection_rank": 2}, "at least one update"),
        ({"projection_space": "complement", "projection_rank": 2, "projection_from": 3}, "add 3 to checkpoints"),
        ({"projection_space": "random", "projection_rank": 2, "projection_side": "top"}, "projection_side"),
        ({"projection_space": "activations", "projection_rank": 2, "projection_side": "left"}, "right space"),
        ({"projection_space": "random", "projection_rank": 2, "projection_of": "weights"}, "projection_of"),
    ],
)
def test_a_value_out_of_range_is_a_recipe_error(
    make_recipe: Callable[..., Recipe], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe(**changes)


def write(folder: Path, text: str) -> None:
    (folder / "slip.yaml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("defaults", "own", "message"),
    [
        ({"learnin_rate": 0.1}, {}, "learnin_rate"),
        ({}, {"mixture": {"tetris": [1]}}, "tetris"),
        ({}, {"evaluation": {"sum": [9]}}, "sum"),
        ({}, {"random_credit": 1}, "random_credit"),
        ({}, {"learning_rate": "1e-5"}, r"1\.0e-5"),
        ({}, {"steps": 4.5}, "steps"),
        ({}, {"steps": True}, "steps"),
        ({}, {"checkpoints": 4}, "checkpoints"),
        ({}, {"mixture": ["sum"]}, "mixture"),
        ({}, {"like": "nothing"}, "not another recipe"),
        ({}, {"like": "slip"}, "not another recipe"),
        ({}, {"like": "other"}, "not another recipe"),
    ],
)
def test_slips_in_a_file_are_recipe_errors(
    world: World, defaults: dict[str, object], own: dict[str, object], message: str
) -> None:
    content = {"defaults": {**DEFAULTS, **defaults}, "recipes": {"slip": own, "other": {"like": "slip"}}}
    write(world.recipes, yaml.safe_dump(content))
    with pytest.raises(RecipeError, match=message):
        load_recipe("slip", "slip")


def test_a_recipe_that_leaves_something_out_says_what(world: World) -> None:
    content = {"defaults": {k: v for k, v in DEFAULTS.items() if k != "steps"}, "recipes": {"slip": None}}
    write(world.recipes, yaml.safe_dump(content))
    with pytest.raises(OpdGeomError, match=r"slip.yaml, line \d+: recipe 'slip' does not say steps"):
        load_recipe("slip", "slip")


def test_whole_numbers_stand_for_floats(world: World) -> None:
    write(world.recipes, yaml.safe_dump({"defaults": DEFAULTS, "recipes": {"slip": {"grad_clip": 2, "alpha": 1}}}))
    recipe = load_recipe("slip", "slip")
    assert (repr(recipe.grad_clip), repr(recipe.alpha)) == ("2.0", "1.0")


@pytest.mark.parametrize("name", sorted(recipes.VARIANT_FIELDS))
def test_a_variant_field_counts_only_where_it_is_used(make_recipe: Callable[..., Recipe], name: str) -> None:
    """Runs from before the field existed stay true: its default leaves no trace in what decides the numbers."""
    plain = make_recipe(objective="mixed", alpha=0.5)
    assert name in plain.as_dict()
    assert name not in plain.settings()
    used = {"writer": "teacher", "equal_gradients": True, "keep_by": "random", "keep_rescaled": False,
            "projection_rank": 3, "projection_from": 2, "projection_side": "left", "projection_of": "update",
            "projection_space": "random", "keep_fraction": 0.5, "random_credit": True, "random_reward": True,
            "compute": "bfloat16", "micro_tokens": 9, "gradient_checkpointing": True}  # fmt: skip
    needs = {"projection_space": {"projection_rank": 3}, "keep_fraction": {"objective": "opd"},
             "random_credit": {"objective": "opd"}, "random_reward": {"objective": "rlvr"}}.get(name, {})  # fmt: skip
    changed = make_recipe(**{"objective": "mixed", "alpha": 0.5, name: used[name], **needs})
    assert changed.settings()[name] == used[name]


def test_no_field_but_the_variants_may_be_left_out(make_recipe: Callable[..., Recipe]) -> None:
    kept = make_recipe().settings()
    assert set(make_recipe().as_dict()) - set(kept) == {"seeds", *recipes.VARIANT_FIELDS}
    assert make_recipe(seeds=[7]).settings() == kept


def test_every_space_of_another_run_has_its_checkpoint() -> None:
    for profile in PUBLISHED:
        for name in recipe_names(profile):
            found = recipes.RUN_SPACE.fullmatch(load_recipe(name, profile).projection_space)
            if found:
                assert int(found["step"]) in load_recipe(found["recipe"], profile).checkpoints


@pytest.mark.parametrize("start", ["slip", "other"])
def test_two_runs_that_need_each_other_s_space_are_refused(world: World, start: str) -> None:
    recipes = {
        "slip": {"projection_space": "run:other@2", "projection_rank": 2},
        "other": {"projection_space": "run:slip@2", "projection_rank": 2},
    }
    write(world.recipes, yaml.safe_dump({"defaults": DEFAULTS, "recipes": recipes}))
    with pytest.raises(RecipeError, match=rf"{start} -> \w+ -> {start}"):
        load_recipe(start, "slip")
