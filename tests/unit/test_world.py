"""The world of a profile: what is read of it, and which slips stop before any training does."""

import pytest
import yaml

from opdgeom_utils import models
from opdgeom_utils.errors import RecipeError
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.world import World, load_world
from tests.tiny_world import DEFAULTS, RECIPES
from tests.tiny_world import World as TinyWorld


def write(world: TinyWorld, block: object) -> None:
    content = {"world": block, "defaults": DEFAULTS, "recipes": RECIPES}
    (world.recipes / "other.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"task": {"kind": "families"}}, "task"),
        ({"tasks": "families"}, "tasks is .families.; expected a block"),
        ({"tasks": {"path": "p"}}, "kind of tasks is None; expected one of families"),
        ({"prompt": "chatt"}, "did you mean .chat."),
        ({"tasks": {"kind": "tetris"}}, "tetris"),
        ({"prompt": "shout"}, "shout"),
        (["models"], "models"),
    ],
)
def test_a_slip_in_a_world_is_a_recipe_error(world: TinyWorld, block: object, message: str) -> None:
    write(world, block)
    with pytest.raises(RecipeError, match=message):
        load_world("other")


def test_a_kind_of_tasks_says_which_argument_it_does_not_know(world: TinyWorld) -> None:
    write(world, {"tasks": {"kind": "families", "levls": [1]}})
    with pytest.raises(RecipeError, match="levls"):
        load_recipe("opd", "other")


def test_a_world_s_own_name_for_a_model_stands_for_its_source(world: TinyWorld) -> None:
    write(world, {"models": {"teacher": str(world.models / "anchor")}})
    assert load_recipe("opd", "other").teacher == str(world.models / "anchor")
    assert load_recipe("opd", "tiny").teacher == "teacher"


def test_a_chat_prompt_needs_a_template() -> None:
    tokenizer = models.build_tokenizer()
    with pytest.raises(RecipeError, match="no chat template"):
        World(prompt="chat").put(tokenizer, "sum 1+1=")
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<model>"
    assert World(prompt="chat").put(tokenizer, "sum 1+1=") == "<user>sum 1+1=<model>"
    assert World().put(tokenizer, "sum 1+1=") == "sum 1+1="


def test_a_demonstration_ends_once() -> None:
    tokenizer = models.build_tokenizer()
    assert [World().demonstrated(tokenizer, text) for text in ("12;13", "12;13$")] == ["12;13$", "12;13$"]
