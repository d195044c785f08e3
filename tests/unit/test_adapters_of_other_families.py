"""Adapters under the names that the trainer saw: towers, GPT-2, experts, heads and new tokens, against real PEFT."""

import json

import pytest
import torch
from peft import PeftModel, TaskType
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    GPT2Config,
    Qwen2_5_VLConfig,
    Qwen3Config,
)

from opdgeom_utils.checkpoints import comparison_report, open_checkpoint
from opdgeom_utils.diagnose import diagnose_pair
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointMismatchError, MetricInputError
from tests.random_adapter import random_adapter

SIZES = {
    **{"vocab_size": 20, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
Q = "model.layers.0.self_attn.q_proj"
FACTORS = {"lora_A": torch.ones(2, 16), "lora_B": torch.ones(16, 2)}


def _vl():
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 12, "num_heads": 2, "out_hidden_size": 16}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4}
    return Qwen2_5_VLConfig(text_config={**SIZES, "rope_parameters": rope}, vision_config=vision)


MODELS = {
    "gpt2": (AutoModelForCausalLM, lambda: GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=4, n_positions=8)),
    "gpt2, base alone": (AutoModel, lambda: GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=4, n_positions=8)),
    "qwen3, base alone": (AutoModel, lambda: Qwen3Config(**SIZES, head_dim=4)),
    "qwen2.5-vl": (AutoModelForImageTextToText, _vl),
}
VL_Q = "model.language_model.layers.0.self_attn.q_proj"
CASES = {
    "square Conv1D beside a linear head": ("gpt2", {"target_modules": ["attn.c_proj", "lm_head"]}),
    "linear head visited last": ("gpt2", {"target_modules": ["c_attn", "c_proj", "lm_head"], "fan_in_fan_out": True}),
    "alpha of a whole name": ("qwen2.5-vl", {"target_modules": ["q_proj", "up_proj"], "alpha_pattern": {VL_Q: 32}}),
    "anchored pattern": (
        "qwen2.5-vl",
        {"target_modules": ["q_proj"], "alpha_pattern": {f"^{VL_Q}": 32}, "rank_pattern": {r"layers\.1\..*q_proj": 3}},
    ),
    "a part of the name that is dropped": (
        "qwen2.5-vl",
        {
            "target_modules": r"model\.(language_model|visual)\..*(q_proj|attn\.proj|o_proj)",
            "alpha_pattern": {r"language_model\.layers\.\d\.self_attn\.q_proj": 5, r"visual\.blocks\.0\.attn\.proj": 7},
        },
    ),
    "adapter of a base alone": (
        "qwen3, base alone",
        {"target_modules": ["q_proj"], "alpha_pattern": {"^layers.1.self_attn.q_proj": 3}},
    ),
    "Conv1D of a base alone": (
        "gpt2, base alone",
        {"target_modules": ["c_attn"], "alpha_pattern": {"^h.0.attn.c_attn": 3}},
    ),
}


def _saved(kind, folder):
    auto, config = MODELS[kind]
    torch.manual_seed(0)
    auto.from_config(config()).save_pretrained(folder)
    return auto


@pytest.mark.parametrize("case", CASES)
def test_patterns_mean_the_names_that_the_trainer_saw(case, tmp_path):
    kind, options = CASES[case]
    auto = _saved(kind, tmp_path / "base")
    folder = random_adapter(auto.from_pretrained(tmp_path / "base"), tmp_path / "adapter", **options)
    merged = PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base"), folder).merge_and_unload()
    if "lm_head" in options["target_modules"]:  # PEFT merges into the tensor that embedding and head share
        merged.lm_head.weight.data -= auto.from_pretrained(tmp_path / "base").lm_head.weight - _head(tmp_path, folder)
    expected, opened = open_checkpoint(merged), open_checkpoint(folder, base=tmp_path / "base")
    before = open_checkpoint(tmp_path / "base")
    assert set(opened.tensors) - {"lm_head.weight"} == set(expected.tensors) - {"lm_head.weight"}
    moved = set()
    for name in set(expected.tensors) - {"transformer.wte.weight"}:
        torch.testing.assert_close(opened.tensors[name].read(), expected.tensors[name].read(), rtol=1e-5, atol=1e-6)
        moved |= {name} if not torch.equal(before.tensors[name].read(), expected.tensors[name].read()) else set()
    assert moved
    assert moved <= opened.adapted


def _head(tmp_path, folder):
    return open_checkpoint(folder, base=tmp_path / "base").tensors["lm_head.weight"].read()


def test_alpha_of_experts_under_their_older_names(tmp_path):
    """PEFT of today has no such modules: the scaling is alpha / r of the pattern that names w1, by hand."""
    parent = "model.layers.0.block_sparse_moe.experts.0"
    weights = {f"{parent}.{name}.weight": torch.zeros(16, 16) for name in ("w1", "w2")}
    base = _folder(tmp_path / "base", weights, {"model_type": "mixtral", "hidden_size": 16})
    factors = {f"{parent}.{name}.{part}.weight": w for name in ("w1", "w2") for part, w in FACTORS.items()}
    folder = _by_hand(tmp_path / "adapter", factors, alpha_pattern={"w1": 32}, target_modules=["w1", "w2"])
    opened = open_checkpoint(folder, base=base).tensors
    values = {name.split(".")[-2]: float(tensor.read()[0, 0]) for name, tensor in opened.items()}
    assert values == {"gate_proj": 2 * 32 / 2, "down_proj": 2 * 4 / 2}


def _folder(folder, weights, config=None, name="model.safetensors"):
    folder.mkdir(parents=True)
    save_file({key: value.clone() for key, value in weights.items()}, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def _by_hand(folder, tensors, **settings):
    _folder(folder, {f"base_model.model.{name}": w for name, w in tensors.items()}, name="adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **settings}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def grown(request, tmp_path_factory):
    """A base, a run of LoRA that added four tokens, and PEFT's own merge of it."""
    place = tmp_path_factory.mktemp("grown")
    torch.manual_seed(0)
    settings = Qwen3Config(**SIZES, head_dim=4, tie_word_embeddings=request.param)
    AutoModelForCausalLM.from_config(settings).save_pretrained(place / "base")

    def resized():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(place / "base")
        model.resize_token_embeddings(24)
        return model

    random_adapter(resized(), place / "adapter", target_modules=["q_proj"])
    PeftModel.from_pretrained(resized(), place / "adapter").merge_and_unload().save_pretrained(place / "merged")
    return place


@pytest.mark.parametrize("strict", [True, False])
def test_a_run_with_added_tokens_is_measured_alike_as_an_adapter_and_merged(grown, strict):
    options = {"k": 2, "nulls": False, "strict": strict}
    tables = [
        diagnose_pair(grown / "base", open_checkpoint(grown / name, **given), **options).set_index("name")
        for name, given in (("adapter", {"base": grown / "base"}), ("merged", {}))
    ]
    assert list(tables[0].index) == list(tables[1].index)
    assert tables[0]["update_norm"].tolist() == pytest.approx(
        tables[1]["update_norm"].tolist(), rel=1e-4, abs=1e-5, nan_ok=True
    )
    reports = [table.attrs["comparisons"][0] for table in tables]
    assert reports[0]["padded"] == reports[1]["padded"]
    assert reports[0]["padded"][-1] == "model.embed_tokens.weight is (20, 16) and (24, 16)"
    assert reports[0]["conflicts"] == []


def test_an_added_head_obeys_strict_as_in_a_full_model(tmp_path):
    config = Qwen3Config(**SIZES, head_dim=4, num_labels=1)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    folder = random_adapter(model, tmp_path / "reward", target_modules=["q_proj"], task_type=TaskType.SEQ_CLS)
    opened = open_checkpoint(folder, base=tmp_path / "base")
    report = comparison_report(tmp_path / "base", opened)
    assert (report.only_in_tuned, report.only_in_reference, report.conflicts) == (("score.weight",), (), ())
    with pytest.raises(CheckpointMismatchError, match=r"only in .*reward: score\.weight\. Expected"):
        diagnose_pair(tmp_path / "base", opened, nulls=False)
    table = diagnose_pair(tmp_path / "base", opened, k=2, nulls=False, strict=False)
    assert "score.weight" not in set(table["name"])
    assert table.set_index("name").loc[f"{Q}.weight", "update_norm"] > 0


@pytest.fixture
def base(tmp_path):
    weights = {f"{Q}.weight": torch.eye(16), f"{Q.replace('q_proj', 'k_proj')}.weight": torch.eye(16)}
    return _folder(tmp_path / "base", weights, {"model_type": "qwen3"})


def test_an_adapter_without_tensors_is_an_error(base, tmp_path):
    folder = _by_hand(tmp_path / "empty", {})
    with pytest.raises(CheckpointDamagedError, match=r"adapter_model\.safetensors: holds no tensors.*ZeRO-3"):
        diagnose_pair(base, open_checkpoint(folder, base=base))
    folder = _by_hand(tmp_path / "gathered not", {f"{Q}.lora_{letter}.weight": torch.zeros(0) for letter in "AB"})
    with pytest.raises(CheckpointDamagedError, match=r"2 of 2 tensors are empty, .*lora_A.*lora_B.*ZeRO-3"):
        open_checkpoint(folder, base=base)


def test_a_target_for_which_nothing_is_stored_is_noted(base, tmp_path):
    factors = {f"{Q}.{part}.weight": w for part, w in FACTORS.items()}
    whole = open_checkpoint(_by_hand(tmp_path / "whole", factors), base=base)
    half = open_checkpoint(_by_hand(tmp_path / "half", factors, target_modules=["q_proj", "k_proj"]), base=base)
    assert not any("has nothing for" in note for note in whole.notes)
    (note,) = (note for note in half.notes if "has nothing for" in note)
    assert "has nothing for model.layers.0.self_attn.k_proj, which its target_modules name: they count as" in note
    assert note in comparison_report(base, half).notes


@pytest.mark.parametrize("config", [True, False], ids=["with its settings", "without"])
@pytest.mark.parametrize("own", ["model.safetensors", "model-00001-of-00001.safetensors"])
def test_weights_and_an_adapter_in_one_folder_are_refused_until_one_is_chosen(config, own, base, tmp_path):
    factors = {f"{Q}.{part}.weight": w for part, w in FACTORS.items()}
    both = _by_hand(tmp_path / "both", factors)
    (both / own).write_bytes((base / "model.safetensors").read_bytes())
    if not config:
        (both / "adapter_config.json").unlink()
    with pytest.raises(
        CheckpointDamagedError, match=rf"both: holds a model's weights, {own}, and an adapter, adapter_"
    ):
        diagnose_pair(base, both, nulls=False)
    alone = diagnose_pair(base, both / own, k=2, nulls=False)
    assert set(alone["note"]) == {"identical to the reference"}
    if config:  # 2 is alpha / r; the product of the factors is 2 everywhere
        table = diagnose_pair(base, open_checkpoint(both, base=base), k=2, nulls=False).set_index("name")
        assert table.loc[f"{Q}.weight", "update_norm"] == pytest.approx(2 * 2 * 16)


def test_other_weights_beside_an_adapter_are_listed(base, tmp_path):
    folder = _by_hand(tmp_path / "adapter", {f"{Q}.{part}.weight": w for part, w in FACTORS.items()})
    (folder / "pytorch_model.bin").write_bytes(b"a value head")
    (folder / "pytorch_model_fsdp_0").mkdir()
    notes = open_checkpoint(folder, base=base).notes
    assert any(note.endswith("not opened: pytorch_model.bin, pytorch_model_fsdp_0 lie beside it") for note in notes)


def test_a_quantised_base_is_replaced_by_a_given_one(base, tmp_path):
    packed = {f"{Q}.weight": torch.ones(128, 1, dtype=torch.uint8)}
    folder = _by_hand(
        tmp_path / "adapter",
        {f"{Q}.{part}.weight": w for part, w in FACTORS.items()},
        base_model_name_or_path=str(_folder(tmp_path / "model-bnb-4bit", packed)),
    )
    with pytest.raises(MetricInputError, match=r"base of this adapter could not be opened.*stored as U8.*base="):
        open_checkpoint(folder)
    assert open_checkpoint(folder, base=base).adapted == {f"{Q}.weight"}


def test_another_base_is_said_only_where_a_matrix_is_there_and_does_not_fit(base, tmp_path):
    wide = {f"{Q}.lora_A.weight": torch.ones(2, 8), f"{Q}.lora_B.weight": torch.ones(16, 2)}
    with pytest.raises(
        CheckpointMismatchError, match=r"of shape \(16, 8\), which is \(16, 16\).*trained over another base"
    ):
        open_checkpoint(_by_hand(tmp_path / "wide", wide), base=base)
    elsewhere = {f"other.{Q}.{part}.weight": w for part, w in FACTORS.items()}
    with pytest.raises(CheckpointMismatchError) as caught:
        open_checkpoint(_by_hand(tmp_path / "elsewhere", elsewhere), base=base)
    assert "is not in the base" in str(caught.value)
    assert "another base" not in str(caught.value)


def test_an_adapter_of_a_whole_model_fits_a_base_saved_alone_and_the_other_way_round(tmp_path):
    _saved("gpt2", tmp_path / "whole")
    alone = {n.removeprefix("transformer."): w for n, w in load_file(tmp_path / "whole" / "model.safetensors").items()}
    _folder(tmp_path / "hub", alone, json.loads((tmp_path / "whole" / "config.json").read_text()))
    folder = random_adapter(
        AutoModelForCausalLM.from_pretrained(tmp_path / "whole"), tmp_path / "a", target_modules=["c_attn"]
    )
    one, other = (open_checkpoint(folder, base=tmp_path / name) for name in ("whole", "hub"))
    assert comparison_report(tmp_path / "whole", other).complete
    assert list(one.tensors) == list(other.tensors)
    assert all(torch.equal(one.tensors[name].read(), other.tensors[name].read()) for name in one.tensors)
