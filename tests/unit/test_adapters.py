"""LoRA adapters of real PEFT, read lazily, against PEFT's own merge; and adapters over the wrong base."""

import json
import os
import re
import shutil
from dataclasses import fields

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from opdgeom_utils.chapters.your_run import open_run
from opdgeom_utils.checkpoints import comparison_report, open_checkpoint
from opdgeom_utils.checkpoints.adapter_settings import KNOWN
from opdgeom_utils.checkpoints.stored_tensors import StoredTensor
from opdgeom_utils.diagnose import diagnose_pair
from opdgeom_utils.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointUnsafeError,
    MetricInputError,
)
from tests.random_adapter import random_adapter

SIZES = {
    **{"vocab_size": 20, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "pad_token_id": 0},
}
Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
OVER = "it was trained over another base"
STARTS = [False, "gaussian", "eva", "orthogonal", "mica"]
KINDS = {
    "plain": {"target_modules": ["q_proj", "down_proj"]},
    "rslora and patterns": {
        **{"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"q_proj": 4, "mlp.up_proj": 1}},
        "alpha_pattern": {r".*\.o_proj": 3, "layers.0.mlp.down_proj": 5},
    },
    "dora": {"target_modules": ["k_proj", "gate_proj"], "use_dora": True},
    "embeddings and a whole head": {"target_modules": ["embed_tokens", "q_proj"], "modules_to_save": ["lm_head"]},
    "biases": {"target_modules": ["q_proj", "v_proj"], "lora_bias": True},
    "all biases of the base": {"target_modules": ["q_proj"], "bias": "all"},
    "rows of tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 17]},
    "rows of the head": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"lm_head": [5], "embed_tokens": [2]},
    },
    "some layers": {
        **{"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
        **{"exclude_modules": ["up_proj"], "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3}},
    },
    **{f"start {start}": {"target_modules": ["q_proj"], "init_lora_weights": start} for start in STARTS},
}
BASE_CHANGING_STARTS = ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga", "some later one")
REFUSED = {
    **{"velora_config": {"scale": 1.0}, "kasa_config": {"beta": 1e-4}, "monteclora_config": {"num_samples": 8}},
    **{"arrow_config": {"top_k": 3}, "use_bdlora": {"nblocks": 2}, "use_qalora": True, "target_parameters": ["x"]},
    **{"layer_replication": [[0, 1]], "alora_invocation_tokens": [1], "megatron_config": {"x": 1}},
}
MALFORMED = (  # each had been passed over, and some made another number of it
    *((name, "false", "true or false") for name in ("use_rslora", "use_dora", "fan_in_fan_out")),
    *(("alpha_pattern", value, "numbers by name") for value in ([2], {"q_proj": "2"}, {"q_proj": True}, {"(": 2})),
    ("rank_pattern", "q_proj", "numbers by name"),
    ("target_modules", {"q_proj": 1}, "names or one pattern"),
    ("exclude_modules", [3], "names or one pattern"),
    ("modules_to_save", "lm_head", "a list of names"),
    ("layers_to_transform", "0", "numbers of layers"),
    ("trainable_token_indices", [True], "numbers of tokens"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=4, attention_bias=True)).save_pretrained(folder)
    return folder


def _adapter(base, folder, **options):
    return random_adapter(AutoModelForCausalLM.from_pretrained(base), folder, **options)


def _merged_by_peft(base, folder):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).merge_and_unload()
    return {name: value.detach() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_adapter_equals_pefts_merge(kind, base, tmp_path):
    folder = _adapter(base, tmp_path / "adapter", **KINDS[kind])
    opened, expected = open_checkpoint(folder), _merged_by_peft(base, folder)
    assert sorted(opened.tensors) == sorted(expected)
    for name, tensor in opened.tensors.items():
        torch.testing.assert_close(tensor.read(), expected[name], rtol=1e-5, atol=1e-6)
        assert tensor.shape == tuple(expected[name].shape)
    before = open_checkpoint(base)
    moved = {name for name in expected if not torch.equal(before.tensors[name].read(), expected[name])}
    assert moved <= opened.adapted
    assert opened.notes == (f"{folder} is an adapter over {base}; its configuration names {base}",)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_whose_training_changed_its_base_is_refused_until_it_is_converted(start, base, tmp_path):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)
    )
    model.peft_config["default"].init_lora_weights = True  # as PEFT asks for, to save the start of training
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = start
    with torch.no_grad():
        model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight += 0.1
    model.save_pretrained(tmp_path / "raw")
    with pytest.raises(MetricInputError, match=rf"init_lora_weights is '{start}'.*path_initial_model_for_weight"):
        open_checkpoint(tmp_path / "raw")
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "start")
    expected = _merged_by_peft(base, tmp_path / "plain")[Q]
    torch.testing.assert_close(open_checkpoint(tmp_path / "plain").tensors[Q].read(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(_merged_by_peft(base, tmp_path / "raw")[Q], expected, rtol=1e-4, atol=1e-5)


def test_each_setting_of_peft_is_known_or_refused():
    assert {field.name for field in fields(LoraConfig)} - KNOWN == set(REFUSED)


def test_an_adapter_is_diagnosed_over_its_base(base, tmp_path):
    folder = _adapter(base, tmp_path / "adapter", **KINDS["plain"])
    table = diagnose_pair(base, folder, k=3, rank=2, nulls=False).set_index("name")
    expected = _merged_by_peft(base, folder)
    delta = expected[Q].double() - open_checkpoint(base).tensors[Q].read().double()
    assert table.loc[Q, "update_norm"] == pytest.approx(float(delta.norm()), rel=1e-5)
    assert table.loc[Q, "dtype"] == "float32->float32"
    untouched = table.drop([name for name in table.index if table.loc[name, "module"] in ("q_proj", "down_proj")])
    assert set(untouched["note"]) == {"identical to the reference"}


def test_a_bf16_base_is_merged_without_rounding(base, tmp_path):
    lower = tmp_path / "lower"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(lower)
    folder = _adapter(lower, tmp_path / "adapter", **KINDS["plain"])
    merged, before = open_checkpoint(folder).tensors[Q], open_checkpoint(lower).tensors[Q]
    assert (merged.dtype, before.dtype) == (torch.float32, torch.bfloat16)
    delta = merged.read().double() - before.read().double()
    assert int((torch.linalg.svdvals(delta) > 1e-4).sum()) == 2, "the rank of the adapter, which rounding would hide"


def test_an_adapter_on_fused_matrices_is_merged_before_they_are_split(tmp_path):
    torch.manual_seed(0)
    Phi3ForCausalLM(Phi3Config(**SIZES)).save_pretrained(tmp_path / "base")
    folder = _adapter(tmp_path / "base", tmp_path / "adapter", target_modules=["qkv_proj"])
    fused = _merged_by_peft(tmp_path / "base", folder)["model.layers.0.self_attn.qkv_proj.weight"]
    opened = open_checkpoint(folder)
    for name, rows in (("q_proj", slice(0, 16)), ("k_proj", slice(16, 24)), ("v_proj", slice(24, 32))):
        part = opened.tensors[f"model.layers.0.self_attn.{name}.weight"]
        torch.testing.assert_close(part.read(), fused[rows], rtol=1e-5, atol=1e-6)
        assert f"model.layers.0.self_attn.{name}.weight" in opened.adapted


def test_opening_an_adapter_reads_no_weights(base, tmp_path, monkeypatch):
    folder = _adapter(base, tmp_path / "adapter", **KINDS["dora"])

    def refuse(*_):
        raise AssertionError("a tensor was read on opening")

    monkeypatch.setattr("opdgeom_utils.checkpoints.stored_tensors.StoredTensor.read_unchecked", refuse)
    open_checkpoint(folder)


def test_a_relative_base_counts_from_the_adapter_s_folder(base, tmp_path, monkeypatch):
    folder = _adapter(base, tmp_path / "runs" / "adapter", **KINDS["plain"])
    _rewrite(folder, base_model_name_or_path=os.path.relpath(base, folder))
    monkeypatch.chdir(tmp_path / "runs")
    torch.testing.assert_close(
        open_checkpoint(folder).tensors[Q].read(), open_checkpoint(folder, base=base).tensors[Q].read()
    )
    assert open_run(str(base), str(folder), base=str(base)).reports[0].complete


def test_a_base_can_be_given_and_must_be_there(base, tmp_path):
    folder = _adapter(base, tmp_path / "adapter", **KINDS["plain"])
    _rewrite(folder, base_model_name_or_path="some-owner/not-cached-anywhere")
    with pytest.raises(CheckpointNotFoundError, match=r"adapter: the base of this adapter.*not-cached-anywhere.*base="):
        open_checkpoint(folder)
    given = open_checkpoint(folder, base=base)
    torch.testing.assert_close(given.tensors[Q].read(), _merged_by_peft(base, folder)[Q], rtol=1e-5, atol=1e-6)
    assert len(diagnose_pair(base, given, k=2, nulls=False)) == len(given.tensors)
    _rewrite(folder, base_model_name_or_path=None)
    with pytest.raises(CheckpointNotFoundError, match="names no base model"):
        open_checkpoint(folder)
    _rewrite(folder, base_model_name_or_path=str(folder))
    with pytest.raises(MetricInputError, match=r"its base .* is an adapter too"):
        open_checkpoint(folder)
    with pytest.raises(MetricInputError, match="no adapter in it"):
        open_checkpoint(base, base=base)


def test_a_base_of_another_shape_is_refused_by_name(base, tmp_path):
    folder = _adapter(base, tmp_path / "adapter", **KINDS["plain"])
    Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "num_attention_heads": 8}, head_dim=4)).save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointMismatchError, match=r"adapter_model\.safetensors: changes tensor .*q_proj\.weight"):
        open_checkpoint(folder, base=tmp_path / "wide")
    save_file({"model.norm.weight": torch.ones(16)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"which is not in the base \(model\.norm\.weight\)"):
        open_checkpoint(folder, base=tmp_path / "other.safetensors")


def _with_other(base, file, name, change, dtype=None):
    """Write a copy of the base in which one tensor is changed."""
    weights = {key: value.to(dtype or value.dtype) for key, value in load_file(base / "model.safetensors").items()}
    weights[name] = change(weights[name])
    save_file(weights, file)
    return file


def _last_row_moved(values):
    return torch.cat([values[:-1], values[-1:] + 1])


@pytest.mark.parametrize("name", ["model.norm.weight", UP, "model.embed_tokens.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reference_that_is_not_the_base_is_refused(name, dtype, base, tmp_path):
    folder = _adapter(base, tmp_path / "adapter", **KINDS["plain"])
    other = _with_other(base, tmp_path / "other.safetensors", name, _last_row_moved, dtype)
    with pytest.raises(CheckpointMismatchError, match=rf"does not change {name}, but .*another base"):
        diagnose_pair(other, folder, nulls=False)
    assert "another base" in comparison_report(other, folder).conflicts[0]
    table = diagnose_pair(other, folder, k=2, nulls=False, strict=False)
    assert "another base" in table.attrs["comparisons"][0]["conflicts"][0]
    rounded = _with_other(base, tmp_path / "rounded.safetensors", name, lambda values: values, dtype)
    assert comparison_report(rounded, folder).complete


def test_adapters_over_two_bases_are_refused(base, tmp_path):
    other = _with_other(base, tmp_path / "other.safetensors", UP, lambda values: values + 1)
    one = _adapter(base, tmp_path / "one", target_modules=["q_proj"])
    two = _adapter(base, tmp_path / "two", target_modules=["down_proj"])
    assert comparison_report(one, two).complete
    conflicts = comparison_report(open_checkpoint(one, base=other), two).conflicts
    assert conflicts == (f"the adapter does not change {UP}, but its base has other values there than {one}: {OVER}",)
    assert not comparison_report(one, open_checkpoint(two, base=other)).complete


def test_a_full_model_after_an_adapter_may_move_everything(base, tmp_path):
    folder = _adapter(base, tmp_path / "adapter", **KINDS["plain"])
    other = _with_other(base, tmp_path / "other.safetensors", UP, lambda values: values + 1)
    assert comparison_report(folder, other).complete


def test_the_base_of_an_adapter_is_known_without_a_look(base, tmp_path, monkeypatch):
    folder, read = _adapter(base, tmp_path / "adapter", **KINDS["plain"]), []
    reading = StoredTensor.read_unchecked
    monkeypatch.setattr(StoredTensor, "read_unchecked", lambda one: read.append(one.key) or reading(one))
    assert comparison_report(base, folder).complete
    changed = {name.removesuffix(".weight") for name in open_checkpoint(folder).adapted or ()}
    modules = {name for name in changed for key in read if name in key}
    assert len(modules) == 1, "one adapted matrix, to see whether its update is a piece of it"
    assert all(next(iter(modules)) in key for key in read), "the others would be compared with themselves"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"r": 3}, CheckpointDamagedError, "rank 3 and alpha 8 for .*rank 2"),
        ({"lora_alpha": None}, CheckpointDamagedError, "alpha None"),
        ({"peft_type": "LOHA"}, MetricInputError, "kind LOHA"),
        ({"use_dora": True}, MetricInputError, "use_dora is True"),
        *(({name: value}, MetricInputError, f"LORA with {name}, expected plain") for name, value in REFUSED.items()),
        *(({"init_lora_weights": start}, MetricInputError, f"is '{start}'") for start in BASE_CHANGING_STARTS),
        ({"init_lora_weights": ["pissa"]}, MetricInputError, "init_lora_weights is"),
        ({"setting_of_a_later_version": 1}, MetricInputError, "setting_of_a_later_version"),
        *(
            ({name: value}, CheckpointDamagedError, f"{name} is .*, expected {words}")
            for name, value, words in MALFORMED
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change, error, words, base, tmp_path):
    folder = _adapter(base, tmp_path / "adapter", **KINDS["plain"])
    _rewrite(folder, **change)
    with pytest.raises(error, match=words):
        open_checkpoint(folder)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("rows", [17, 23])
def test_factors_of_a_vocabulary_of_other_length_are_merged_on_the_rows_that_both_have(module, rows, base, tmp_path):
    """Tokens were added for the training, or padding taken off; the embedding was not saved beside the factors."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(rows, mean_resizing=False)
    folder = random_adapter(model, tmp_path / "adapter", target_modules=[module])
    whole = load_file(folder / "adapter_model.safetensors")
    save_file({name: w for name, w in whole.items() if "lora" in name}, folder / "adapter_model.safetensors")
    _rewrite(folder, base_model_name_or_path=str(base))
    name = {"embed_tokens": "model.embed_tokens.weight", "lm_head": "lm_head.weight"}[module]
    one, two = (next(w for key, w in whole.items() if re.search(f"lora_.*{letter}", key)) for letter in "AB")
    product = 4 * (two @ one)
    expected = (product.T if module == "embed_tokens" else product)[:20]
    report, opened = comparison_report(base, folder), open_checkpoint(folder)
    before = load_file(base / "model.safetensors")[name][:rows]
    torch.testing.assert_close(opened.tensors[name].read() - before, expected, atol=1e-6, rtol=0)
    assert report.complete
    assert any("trained 3 rows" in note for note in report.notes) == (rows > 20)
    assert any(name in text for text in report.padded) == (rows < 20)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"target_modules": ["q_proj", "down_proj", "up_proj"]}, "up_proj"),
        ({"target_modules": r".*\.(q|up|down)_proj"}, "up_proj"),
        ({"target_modules": ["q_proj", "down_proj", "up_proj"], "exclude_modules": r".*\.up_proj"}, ""),
        ({"target_modules": ["q_proj", "down_proj", "up_proj"], "exclude_modules": ["up_proj"]}, ""),
        ({"target_modules": ["q_proj", "down_proj", "up_proj"], "layers_to_transform": [0]}, "up_proj"),
        ({"target_modules": ["q_proj", "down_proj", "up_proj"], "layers_to_transform": 3}, ""),
        ({"target_modules": ["q_proj", "down_proj", "lm_head"], "modules_to_save": ["lm_head"]}, ""),
        ({"target_modules": r"base\..*_proj"}, ""),
    ],
)
def test_what_an_adapter_was_to_train_and_has_nothing_for_is_said(changes, missing, base, tmp_path):
    folder = _adapter(base, tmp_path / "adapter", **KINDS["plain"])
    _rewrite(folder, **changes)
    said = [note for note in open_checkpoint(folder).notes if "has nothing for" in note]
    assert bool(said) == bool(missing)
    assert not missing or f"layers.0.mlp.{missing}" in said[0]


@pytest.mark.parametrize(
    "stated", [{"model_type": ["qwen3"]}, {"architectures": [1]}, {"text_config": {"model_type": 3}}]
)
def test_a_configuration_of_another_form_is_refused(stated, base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | stated))
    with pytest.raises(CheckpointDamagedError, match=r"config\.json: has model_type .*expected names"):
        open_checkpoint(tmp_path / "model")


def test_half_an_adapter_is_refused(base, tmp_path):
    folder = _adapter(base, tmp_path / "adapter", **KINDS["plain"])
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if "q_proj.lora_B" not in name}, file)
    with pytest.raises(
        CheckpointDamagedError, match=r"module model\.layers\.0\.self_attn\.q_proj has factors \['lora_A'\]"
    ):
        open_checkpoint(folder)
    tokens = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    save_file({**weights, tokens: torch.ones(1, 16)}, file)
    with pytest.raises(CheckpointDamagedError, match=r"trained rows of shape \(1, 16\) for the tokens None of 20"):
        open_checkpoint(folder)
    save_file({**weights, "base_model.model.model.norm.modules_to_save.other.weight": torch.ones(16)}, file)
    with pytest.raises(MetricInputError, match="of a kind that is not merged here"):
        open_checkpoint(folder)
    (folder / "adapter_config.json").write_text("[")
    with pytest.raises(CheckpointDamagedError, match=r"adapter_config\.json: not a readable"):
        open_checkpoint(folder)


def test_a_pickled_adapter_is_read_on_request_only(base, tmp_path):
    folder = _adapter(base, tmp_path / "adapter", **KINDS["plain"])
    expected = open_checkpoint(folder).tensors[Q].read()
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"no adapter_model\.safetensors, found .*README\.md.*copy"):
        open_checkpoint(folder)
    torch.save(weights, folder / "adapter_model.bin")
    with pytest.raises(CheckpointUnsafeError, match=r"adapter_model\.bin: is a pickle.*safetensors.*allow_pickle=True"):
        open_checkpoint(folder)
    opened = open_checkpoint(folder, allow_pickle=True)
    assert torch.equal(opened.tensors[Q].read(), expected)
    assert "adapter_model.bin over" in opened.tensors[Q].where
    assert len(diagnose_pair(base, opened, k=2, nulls=False, n_jobs=2)) == len(opened.tensors)


def test_an_unmerged_module_is_refused(base):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(MetricInputError, match="belongs to an adapter that is not merged"):
        open_checkpoint(model)


def _rewrite(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
