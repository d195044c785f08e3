"""A profile of one's own: models in folders, looked at before anything is trained, and recorded in its tables."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from opdgeom_utils import results
from opdgeom_utils.errors import CheckpointNotFoundError, OpdGeomError, RecipeError
from opdgeom_utils.measures import functional
from opdgeom_utils.measures.of_runs import measures_of_run
from opdgeom_utils.models import build_tokenizer
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.runs import load_or_train
from opdgeom_utils.starting import check_models
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
    [(with_one_more_token, r"of base and of teacher .*mine.yaml.* differ in 1 entries, such as '€' \(53\)"),
     (without_padding, r"tokenizer of \S*/own/teacher has no padding token.*pad_token = ")],
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
    expected = "tokenizers of base and of teacher" if tokens >= 1000 else "read back as '2Ġplus"
    with pytest.raises(RecipeError, match=expected):
        check_models("mine")


@pytest.mark.parametrize("where", ["defaults", "sft"])
def test_an_empty_mixture_is_refused_before_training(where: str, mine: Folders, world: World) -> None:
    models: dict[str, Path | str] = {**mine, "anchor": "run:sft@2"}
    free: dict[str, Any] = {"anchor": None, "teacher": None}
    said = {"defaults": {"mixture": {}}} if where == "defaults" else {"recipes": {"sft": free | {"mixture": {}}}}
    write(world, models, **said)
    for start in (lambda: check_models("mine"), lambda: load_or_train("sft", profile="mine")):
        with pytest.raises(RecipeError, match=r"mixture of recipe '\w+' is empty.*mine.yaml"):
            start()


def test_a_name_that_no_recipe_uses_is_a_slip(mine: Folders, world: World) -> None:
    write(world, {"student": mine["base"], "teacher": mine["teacher"], "anchor": "run:sft@2"})
    with pytest.raises(RecipeError, match=r"mine.yaml: no recipe uses student; recipes use anchor, teacher"):
        check_models("mine")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_folder_that_lacks_a_file_is_named(file: str, mine: Folders) -> None:
    (mine["teacher"] / file).unlink()
    with pytest.raises(CheckpointNotFoundError, match=f"mine.yaml: teacher cannot be opened: .*{file}"):
        check_models("mine")


def test_make_runs_stops_at_a_path_that_is_not_there(
    mine: Folders, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(world, {"base": mine["base"], "teacher": mine["teacher"].with_name("nowhere"), "anchor": "run:sft@2"})
    monkeypatch.setattr(sys, "argv", ["make_runs", "--profile", "mine"])
    with pytest.raises(OpdGeomError, match=r"teacher cannot be opened: no model '\S*/nowhere'"):
        make_runs.main()
    assert not world.runs.exists()


def test_the_run_that_makes_the_anchor_is_measured_first(mine: Folders, world: World) -> None:
    run = load_or_train("sft", profile="mine")
    assert not (world.runs / "models").exists()
    found = measures_of_run(run, ["function"])
    assert (found.loc[found["quantity"] == "teacher_distance", "value"] > 0).any()


def test_problems_of_a_file_are_trained_on_and_measured(mine: Folders, world: World, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i), "completion": str(2 * i)} for i in range(60)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    models = {name: str(folder) for name, folder in mine.items()} | {"anchor": "run:sft@2"}
    tasks, said = {"kind": "jsonl", "path": str(tmp_path / "p.jsonl")}, {"problems": ["all"]}
    write(world, {}, world={"models": models, "tasks": tasks}, defaults={"mixture": said, "evaluation": said})
    check_models("mine")
    run = load_or_train("opd", profile="mine")
    assert set(run.accuracy["family"]) == {"problems"}
    found = measures_of_run(run)
    assert {"sim_to_end", "teacher_distance"} <= set(found["quantity"])
    assert "activations" in set(found["null"])  # drawn from the file's problems


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
