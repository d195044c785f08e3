"""Broken profiles: each is refused with the file, the line, what was found, what was expected, and the nearest word."""

import re

import pytest
import yaml

from opdgeom_utils.errors import OpdGeomError, RecipeError, UnknownProfileError
from opdgeom_utils.profile_files import place_of, read_profile
from opdgeom_utils.recipes import load_recipe, recipe_names
from opdgeom_utils.world import tasks_of
from tests.tiny_world import DEFAULTS, RECIPES, World


def write(world: World, text: str | bytes, name: str = "slip") -> None:
    (world.recipes / f"{name}.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    tasks_of.cache_clear()  # by the profile's name, which every test here gives anew


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # not YAML, or no blocks
        ("", " is empty; expected the blocks like, world, defaults, recipes"),
        ("# to do\n", " is empty"),
        ("- like: tiny\n", " holds [{'like': 'tiny'}]; expected the blocks"),
        ("like tiny\n", " holds 'like tiny'; expected the blocks"),
        ("like: tiny\nworld:\n\tprompt: chat\n", ", line 3: not readable as YAML"),
        ("like: tiny\nworld: {prompt: chat\n", ", line 3: not readable as YAML (did not find expected ',' or '}')"),
        ("world:\n  models: {base: x}\n  end: a: b\n", ", line 3: not readable as YAML (mapping values"),
        ("like: tiny\n---\nworld: {}\n", ", line 2: not readable as YAML (but found another document)"),
        ("like: !!python/object:os.system ls\n", ", line 1: not readable as YAML (could not determine a constructor"),
        ('like: "ti\0ny"\n', ": not readable as YAML (unacceptable character"),
        (b"like: tiny # \xe9\n", " is not UTF-8 text ('utf-8' codec"),
        # blocks and keys
        ("like: tiny\nwrld: {}\n", ", line 2: unknown block 'wrld'; did you mean 'world'?"),
        ("like: tiny\nmodels: {}\n", ", line 2: unknown block 'models'; expected one of like, world"),
        ("like: tiny\n1: {}\n", ", line 2: the key '1' is no text; expected a name"),
        ("like: tiny\ndefaults: {}\ndefaults: {}\n", ", line 3: defaults stands in line 2 already; expected it once"),
        ("like: tiny\nrecipes:\n  opd: {steps: 4}\n  opd:\n    steps: 2\n", ", line 4: opd stands in line 3 already"),
        ("like: tiny\nworld: toy\n", ", line 2: world is 'toy'; expected a block of `name: value` lines"),
        ("like: tiny\ndefaults: [seeds]\n", ", line 2: defaults is ['seeds']; expected a block"),
        ("like: tiny\nrecipes: [opd]\n", ", line 2: recipes is ['opd']; expected a block"),
        ("like: tiny\nrecipes:\n  opd: short\n", ", line 3: recipes.opd is 'short'; expected a block"),
        ("like: tiny\nworld:\n  models: /a/folder\n", ", line 3: world.models is '/a/folder'; expected a block"),
        ("world: {}\ndefaults: {}\n", " has world and defaults, not recipes; add what it lacks, or begin with `like:"),
        # like
        ("like: tinny\n", ", line 1: unknown profile 'tinny': there is no tinny.yaml in data/recipes; did"),
        ("like: [tiny, toy]\n", ", line 1: like is ['tiny', 'toy']; expected the name of one profile"),
        ("like:\n", ", line 1: like is None; expected the name"),
        ("defaults: {}\nlike: slip\n", ", line 2: slip is like slip, which is like slip; expected another"),
        # world
        ("like: tiny\nworld:\n  promt: chat\n", ", line 3: a world has no 'promt'; did you mean 'prompt'?"),
        ("like: tiny\nworld:\n  prompt: chatt\n", ", line 3: prompt is 'chatt'; did you mean 'chat'?"),
        ("like: tiny\nworld:\n  end: 0\n", ", line 3: end is 0; expected a token's text in quotes"),
        ("like: tiny\nworld:\n  tasks: {kind: json}\n", ", line 3: kind of tasks is 'json'; did you mean 'jsonl'?"),
        ("like: tiny\nworld:\n  tasks: {kind: jsonl, pth: p}\n", ", line 3: tasks of kind jsonl have no 'pth'; did"),
        ("like: tiny\nworld:\n  tasks: {kind: jsonl}\n", ", line 3: tasks of kind jsonl do not say path"),
        ("like: tiny\nworld:\n  tasks: {kind: jsonl, path: 3}\n", ", line 3: tasks {'kind': 'jsonl', 'path': 3} of a"),
        ("like: tiny\nworld:\n  tasks: {kind: jsonl, path: /no/p}\n", ", line 3: tasks of kind jsonl: there is no"),
        ("like: tiny\nworld:\n  models: {base: 3}\n", ", line 3: model base is 3; expected a folder, a hub id"),
        ("like: tiny\nworld:\n  models:\n    base: run:sft\n", ", line 4: model base is 'run:sft'; expected run:"),
        ("like: tiny\nworld:\n  tasks: {kind: [jsonl]}\n", ", line 3: kind of tasks is ['jsonl']; did you"),
        # recipes
        ("like: tiny\ndefaults: &a {mixture: *a}\n", ": a block holds itself, or blocks lie too deep; write out"),
        ("like: tiny\nrecipes:\n  opd: {like: [rlvr]}\n", ", line 3: recipe 'opd' is like ['rlvr'], which is not"),
        ("like: tiny\ndefaults:\n  mixture: {sum: [true]}\n", ", line 3: levels of 'sum' are [True]; true and"),
        ("like: tiny\ndefaults:\n  seeds: [0, 1, 0]\n", ", line 3: recipe 'opd' of profile 'slip': seeds are [0, 1"),
        ("like: tiny\nrecipes:\n  opd: {step: 4}\n", ", line 3: a recipe has no 'step'; did you mean 'steps'?"),
        ("like: tiny\ndefaults:\n  lr: 0.1\n", ", line 3: a recipe has no 'lr'; expected one of alpha, anchor"),
        ("like: tiny\nrecipes:\n  opd: {name: x}\n", ", line 3: a recipe has no 'name'"),
        ("like: tiny\ndefaults:\n  learning_rate: 1e-5\n", ", line 3: learning_rate is '1e-5'; expected a number"),
        ("like: tiny\ndefaults:\n  seeds: 0\n", ", line 3: seeds is 0; expected a list of whole numbers"),
        ("like: tiny\ndefaults:\n  seeds: ['0']\n", ", line 3: seeds is ['0']; expected a list of whole numbers"),
        ("like: tiny\ndefaults:\n  seeds: []\n", ", line 3: seeds is []; expected a list of whole numbers"),
        ("like: tiny\ndefaults:\n  betas: [0.9]\n", ", line 3: betas is [0.9]; expected two numbers"),
        ("like: tiny\ndefaults:\n  teacher: 3\n", ", line 3: teacher is 3; expected a text, or null for none"),
        ("like: tiny\ndefaults:\n  mixture: {sum: 1}\n", ", line 3: mixture is {'sum': 1}; expected a block of"),
        ("like: tiny\ndefaults:\n  mixture: {sums: [1]}\n", ", line 3: unknown task family 'sums'; known: sum, add"),
        ("like: tiny\ndefaults:\n  weights: {sort: 0}\n", ", line 3: weight of 'sort' is 0"),
        ("like: tiny\ndefaults:\n  group_size: 0\n", ", line 3: recipe 'opd' of profile 'slip': group_size is 0"),
        ("like: tiny\ndefaults:\n  updates_per_rollout: 0\n", ", line 3: recipe 'opd' of profile 'slip': updates_per"),
        ("like: tiny\ndefaults:\n  schedule: cosin\n", ", line 3: recipe 'opd' of profile 'slip': schedule is 'cosin'"),
        ("like: tiny\nrecipes:\n  opd:\n    steps: 9\n", ", line 4: recipe 'opd' of profile 'slip': steps is 9"),
        ("like: tiny\nrecipes:\n  opd: {like: rlrv}\n", ", line 3: recipe 'opd' is like 'rlrv', which is not another "
         "recipe of the profile; did you mean 'rlvr'?"),
    ],
)  # fmt: skip
def test_a_slip_is_told_with_its_place_and_what_to_do(world: World, text: str | bytes, said: str) -> None:
    write(world, text)
    with pytest.raises(OpdGeomError, match=re.escape(f"data/recipes/slip.yaml{said}")):
        load_recipe("opd", "slip")


@pytest.mark.parametrize("name", ["..", "a/b", "", "a b", ".hidden", "-s", "x" * 101, "a\n"])
def test_a_recipe_is_called_as_a_folder_may_be(world: World, name: str) -> None:
    write(world, yaml.safe_dump({"like": "tiny", "recipes": {name: {"like": "opd"}}}))
    with pytest.raises(RecipeError, match=r"slip.yaml, line 3: a recipe is called .*; its runs' folders begin with it"):
        load_recipe(name, "slip")


@pytest.mark.parametrize("name", ["größe", "opd-2", "opd_1.5", "_x", "x" * 100])
def test_other_names_of_recipes_stay(world: World, name: str) -> None:
    write(world, yaml.safe_dump({"like": "tiny", "recipes": {name: {"like": "opd"}}}, allow_unicode=True))
    assert load_recipe(name, "slip").name == name


def test_a_profile_s_name_can_stand_in_that_of_a_model(world: World) -> None:
    write(world, "like: tiny\n", "my profile")
    with pytest.raises(RecipeError, match=r"my profile.yaml: a profile is called 'my profile'; expected letters"):
        load_recipe("opd", "my profile")


def test_a_slip_in_the_profile_that_it_is_like_is_told_in_both(world: World) -> None:
    write(world, "like: other\n")
    write(world, "like: tiny\nrecipe: {}\n", "other")
    with pytest.raises(RecipeError, match=r"slip.yaml, line 1: data/recipes/other.yaml, line 2: unknown block"):
        recipe_names("slip")
    write(world, "like: slip\n", "other")
    with pytest.raises(RecipeError, match="other is like slip, which is like other"):
        recipe_names("slip")


def test_the_line_is_where_the_value_that_counts_is_written(world: World) -> None:
    """What a recipe says counts more than the defaults, in whichever of the files they stand."""
    above = {"defaults": DEFAULTS, "recipes": {**RECIPES, "more": {"like": "opd", "steps": "many"}}}
    write(world, yaml.safe_dump(above, sort_keys=False), "other")
    lines = (world.recipes / "other.yaml").read_text().splitlines()
    write(world, "like: other\ndefaults:\n  steps: 4\n")
    with pytest.raises(RecipeError, match=rf"other.yaml, line {lines.index('    steps: many') + 1}: steps is 'many'"):
        load_recipe("more", "slip")
    assert place_of("slip", ("defaults", "steps")) == "data/recipes/slip.yaml, line 3"
    assert place_of("slip", ("recipes", "none"), ("defaults",)) == "data/recipes/slip.yaml, line 2"
    assert place_of("slip", ("recipes", "none")) == "data/recipes/slip.yaml"


def test_a_profile_that_is_not_there_says_which_are(world: World) -> None:
    with pytest.raises(UnknownProfileError, match=r"no toi.yaml in data/recipes; expected one of tiny"):
        read_profile("toi")


def test_empty_blocks_are_blocks(world: World) -> None:
    write(world, "like: tiny\nworld:\ndefaults:\nrecipes:\n  opd:\n")
    assert load_recipe("opd", "slip").settings() == {**load_recipe("opd", "tiny").settings(), "profile": "slip"}
