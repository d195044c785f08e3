"""Models and tokenizer: built, saved, and opened again through the standard classes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from opdgeom_utils import models
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, RecipeError
from opdgeom_utils.families import FAMILIES, LEVELS
from opdgeom_utils.tasks import CHARACTERS, END, draw_examples
from tests.tiny_world import World


def test_tokenizer_round_trip_through_auto_tokenizer(tiny_models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "anchor")
    for example in draw_examples({name: list(LEVELS) for name in FAMILIES}, 120, seed=0):
        text = example.prompt + example.completion
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.pad_token_id not in ids


def test_every_character_has_its_own_token() -> None:
    tokenizer = models.build_tokenizer()
    ids = [tokenizer(character)["input_ids"] for character in END + CHARACTERS]
    assert ids == [[i] for i in range(1, len(CHARACTERS) + 2)]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, len(CHARACTERS) + 2)


def test_saved_tokenizer_pads_on_the_left(tiny_models: Path) -> None:
    for tokenizer in (models.load_tokenizer(tiny_models / "base"), AutoTokenizer.from_pretrained(tiny_models / "base")):
        batch = tokenizer(["ab", "a"], padding=True)
        assert batch["input_ids"][1][0] == tokenizer.pad_token_id
        assert batch["attention_mask"] == [[1, 1], [0, 1]]


def test_model_is_a_plain_qwen3_and_its_seed_decides_it() -> None:
    torch.manual_seed(5)
    first = models.build_model("tiny", 0)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    second, other = models.build_model("tiny", 0), models.build_model("tiny", 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(first) is Qwen3ForCausalLM
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_the_student_has_between_one_and_three_million_parameters() -> None:
    with torch.device("meta"):
        model = models.build_model("student", 0)
    assert 1.0e6 <= sum(p.numel() for p in model.parameters()) <= 3.0e6
    assert model.config.tie_word_embeddings


def test_unknown_architecture_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match="tiny"):
        models.build_model("huge", 0)


def test_saved_folder_opens_through_auto_model(tiny_models: Path) -> None:
    opened = AutoModelForCausalLM.from_pretrained(tiny_models / "anchor")
    assert type(opened) is Qwen3ForCausalLM
    assert set(load_file(tiny_models / "anchor" / "model.safetensors")) == set(models.stored_state(opened))


def test_load_gives_fp32_masters_equal_to_the_bf16_on_disk(world: World) -> None:
    stored = load_file(world.models / "anchor" / "model.safetensors")
    state = models.stored_state(models.load_model("anchor"))
    assert "lm_head.weight" not in state
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert all(torch.equal(state[name], stored[name].float()) for name in stored)


def test_stored_state_round_trip() -> None:
    source, target = models.build_model("tiny", 0), models.build_model("tiny", 1)
    models.load_stored_state(target, models.stored_state(source))
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(source(ids).logits, target(ids).logits)
    assert target.lm_head.weight is target.model.embed_tokens.weight


def test_stored_state_of_another_shape_or_name_is_refused() -> None:
    model = models.build_model("tiny", 0)
    state = models.stored_state(model)
    with pytest.raises(RecipeError, match="missing"):
        models.load_stored_state(model, {k: v for k, v in state.items() if not k.endswith("norm.weight")})
    with pytest.raises(RecipeError, match="stray"):
        models.load_stored_state(model, {**state, "stray": torch.zeros(1)})


def test_names_folders_and_hub_ids_resolve(world: World, tmp_path: Path) -> None:
    assert models.resolve_model("anchor") == str(world.models / "anchor")
    assert models.resolve_model(world.models / "base") == str(world.models / "base")
    with pytest.raises(CheckpointNotFoundError, match=r"no model '\./anchor'"):  # one's own folder, which is not there
        models.resolve_model("./anchor")
    assert models.resolve_model("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    for wrong in ("anchr", tmp_path / "nowhere", "./nowhere", "/no/where"):
        with pytest.raises(CheckpointNotFoundError, match="anchor, base, teacher"):
            models.resolve_model(wrong)


def test_a_folder_without_weights_is_a_clear_error(world: World, tmp_path: Path) -> None:
    models.build_model("tiny", 0).config.save_pretrained(tmp_path / "empty")
    with pytest.raises(CheckpointNotFoundError, match="empty"):
        models.load_model(tmp_path / "empty")
    with pytest.raises(CheckpointNotFoundError, match="tokenizer"):
        models.load_tokenizer(tmp_path / "empty")


def test_a_truncated_weights_file_is_a_clear_error(world: World, tmp_path: Path) -> None:
    models.build_model("tiny", 0).save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointDamagedError, match="cut"):
        models.load_model(tmp_path / "cut")


def test_device_choice() -> None:
    assert models.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_weights_that_lack_a_layer_are_not_filled_at_random(tmp_path: Path) -> None:
    """A configuration of one layer more than the weights: refused, where transformers would make the layer up."""
    model = models.load_model("student_small")
    model.config.num_hidden_layers += 1
    model.config.layer_types = [*model.config.layer_types, model.config.layer_types[-1]]
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointDamagedError, match=r"lack \d+ tensors .* model\.layers\.\d+\..* first"):
        models.load_model(tmp_path)
