"""More troubles that users of trainers reported in public; ``tests/REPORTS.md`` lists them with their sources."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from opdgeom_utils import comparison_report, diagnose_pair, open_checkpoint
from opdgeom_utils.errors import OpdGeomError
from tests.reported import HIDDEN, QWEN3, VOCABULARY, Q, adapter, lora, moved, norm_of, saved, weights

K = "model.layers.0.self_attn.k_proj.weight"
SIZES = {
    **{"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
}


def distance(name: str = Q) -> float:
    """How far ``moved`` takes a matrix of ``weights``."""
    return float(torch.linalg.norm((moved(weights())[name] - weights()[name]).double()))


def pickled(folder: Path, state: object, name: str) -> Path:
    """A folder with one pickle and the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    (folder / "config.json").write_text(json.dumps(QWEN3))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(tmp_path / "base", weights())


@pytest.mark.parametrize(
    "before",
    [
        "model.",
        "pretrained_model.",
        "policy.",
        "_forward_module.",
        "module.pretrained_model.",
        "model.base_model.model.",
    ],
)
def test_a_model_inside_another_module_keeps_its_names(before, base, tmp_path):
    """trl 3071, transformers 9209, Lightning 17604: every name begins with the trainer's own attribute."""
    state = {f"{before}{name}": w for name, w in moved(weights()).items()}
    table = diagnose_pair(base, saved(tmp_path / "tuned", state), nulls=False)
    assert norm_of(table, Q) == pytest.approx(distance(), rel=1e-6)


def test_a_value_head_beside_a_policy_is_named_and_left_out_on_request(base, tmp_path):
    """trl 3071: ``v_head`` is stored with the model that it was put on."""
    state = {f"pretrained_model.{name}": w for name, w in moved(weights()).items()}
    tuned = saved(tmp_path / "tuned", state | {"v_head.summary.weight": torch.ones(1, HIDDEN)})
    with pytest.raises(OpdGeomError, match="v_head"):
        diagnose_pair(base, tuned)
    assert norm_of(diagnose_pair(base, tuned, nulls=False, strict=False), Q) == pytest.approx(distance(), rel=1e-6)


@pytest.mark.parametrize("key", ["state", "policy", "model_state"])
def test_the_only_state_dict_in_a_pickle_is_the_model(key, base, tmp_path):
    """direct-preference-optimization 49: ``policy.pt`` has the model under ``state``."""
    folder = pickled(tmp_path / "t", {"step_idx": 3, key: moved(weights()), "optimizer": {"w": torch.ones(2)}}, "p.pt")
    opened = open_checkpoint(folder / "p.pt", allow_pickle=True)
    assert norm_of(diagnose_pair(base, opened, nulls=False), Q) == pytest.approx(distance(), rel=1e-6)
    assert "optimizer" in opened.left_out


def test_of_two_state_dicts_in_a_pickle_none_is_guessed_and_the_advice_works(base, tmp_path, monkeypatch):
    """The same, with two models in one file."""
    folder = pickled(tmp_path / "t", {"actor": moved(weights()), "critic": weights()}, "p.pt")
    monkeypatch.chdir(folder)
    with pytest.raises(OpdGeomError, match="'actor', 'critic'") as error:
        open_checkpoint(folder / "p.pt", allow_pickle=True)
    exec(str(error.value).rpartition("alone: ")[2].removesuffix("."), {"torch": torch})
    opened = open_checkpoint(folder / "whole.pt", allow_pickle=True)
    assert norm_of(diagnose_pair(base, opened, nulls=False), Q) == pytest.approx(distance(), rel=1e-6)


@pytest.mark.parametrize(
    "names",
    [
        ("hf_model_0001_0.pt", "hf_model_0002_0.pt"),
        ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
        ("pytorch_model_fsdp.bin",),
    ],
)
def test_pickles_without_an_index_are_put_together(names, base, tmp_path):
    """torchtune 2048: full checkpoints under names of its own, without an index."""
    tuned = moved(weights())
    for number, name in enumerate(names):
        pickled(tmp_path / "t", {k: w for i, (k, w) in enumerate(tuned.items()) if i % len(names) == number}, name)
    pickled(tmp_path / "t", {"state": {}}, "optimizer.pt")
    opened = open_checkpoint(tmp_path / "t", allow_pickle=True)
    assert norm_of(diagnose_pair(base, opened, nulls=False), Q) == pytest.approx(distance(), rel=1e-6)


def test_a_pickled_shard_that_is_missing_is_noticed(tmp_path):
    """The same, with a shard not copied."""
    folder = pickled(tmp_path / "t", weights(), "pytorch_model-00001-of-00002.bin")
    with pytest.raises(OpdGeomError, match="1 of 2 shards"):
        open_checkpoint(folder, allow_pickle=True)


@pytest.mark.parametrize("place", ["pytorch_model/model.safetensors", "policy.pt"])
def test_where_weights_lie_is_said_and_can_be_passed(place, tmp_path):
    """trlx 545: the weights lie in a folder below, or under another name."""
    folder = pickled(tmp_path / "t", {"state": {}}, "optimizer.pt")
    (folder / place).parent.mkdir(exist_ok=True)
    if place.endswith("pt"):
        torch.save(weights(), folder / place)
    else:
        save_file(weights(), folder / place)
    with pytest.raises(OpdGeomError) as error:
        open_checkpoint(folder)
    where = str(error.value).partition("if one of ")[2].partition(" is meant")[0]
    assert Q in open_checkpoint(folder / where, allow_pickle=True).tensors


def test_an_index_of_other_shards_can_be_moved_away(base, tmp_path):
    """CoSER 3, mlx-vlm 1827: the base's index lies beside the tuned shards."""
    tuned = saved(tmp_path / "t", moved(weights()))
    (tuned / "model.safetensors").rename(tuned / "model-00001-of-00001.safetensors")
    index = tuned / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights(), "model-00001-of-00030.safetensors")}))
    with pytest.raises(
        OpdGeomError, match=r"if model-00001-of-00001\.safetensors are the checkpoint, move the index away"
    ):
        open_checkpoint(tuned)
    index.rename(tmp_path / "index.json")
    assert norm_of(diagnose_pair(base, tuned, nulls=False), Q) == pytest.approx(distance(), rel=1e-6)


def test_a_whole_file_beside_indexed_shards_is_not_mixed_in(tmp_path):
    """accelerate 2698, mlx-vlm 1464: a stray ``model.safetensors`` beside the shards of the index."""
    tuned = saved(tmp_path / "t", moved(weights()))
    shard = "model-00001-of-00001.safetensors"
    save_file(weights(), tuned / shard)
    (tuned / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(weights(), shard)}))
    with pytest.raises(OpdGeomError, match=r"two checkpoints, model\.safetensors and .*move one of them away"):
        open_checkpoint(tuned)


@pytest.mark.parametrize("turned", [(Q, K), (Q,), (K,)])
def test_queries_in_another_order_of_rows_are_not_measured_row_by_row(turned, base, tmp_path):
    """torchtitan 335, nanotron 427, transformers 31788: one side converted for other rotary embeddings."""
    tuned = moved(weights())
    for name in turned:
        tuned[name] = tuned[name].view(-1, 4, 2, HIDDEN).transpose(1, 2).reshape(tuned[name].shape)
    folder = saved(tmp_path / "t", tuned)
    with pytest.raises(OpdGeomError, match=r"q_proj.* rows in another order .*rotary"):
        diagnose_pair(base, folder)
    table = diagnose_pair(base, folder, strict=False, nulls=False)
    assert not set(table["module"]) & {"q_proj", "k_proj"}
    assert norm_of(table, "model.embed_tokens.weight") == pytest.approx(distance("model.embed_tokens.weight"), rel=1e-6)


def test_meta_s_slices_are_not_taken_for_a_model(base, tmp_path):
    """transformers 25199, llama3-from-scratch 20: ``consolidated.00.pth``; alone it may be a half of a model."""
    halves = {name: w[: len(w) // 2].clone() for name, w in weights().items()}
    folder = pickled(tmp_path / "t", halves, "consolidated.00.pth")
    for source in (folder, folder / "consolidated.00.pth"):
        with pytest.raises(OpdGeomError, match="Meta's own form"):
            open_checkpoint(source, allow_pickle=True)


def trained(model, config: LoraConfig, base: Path):
    """A model with an adapter after two steps of Adam."""
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for seed in range(2):
        tokens = torch.randint(0, VOCABULARY, (4, 8), generator=torch.Generator().manual_seed(seed))
        adapted(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted


def test_an_adapter_that_took_a_piece_of_its_base_is_found_out(tmp_path):
    """LlamaFactory 9404, peft 2184: a copy of a PiSSA adapter is saved as if its base were unchanged."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    model.save_pretrained(tmp_path / "base")
    adapted = trained(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="pissa"), tmp_path / "base"
    )
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(tmp_path / "tuned")
    with pytest.raises(OpdGeomError, match=r"q_proj\.weight is a piece of the base's own matrix"):
        diagnose_pair(tmp_path / "base", tmp_path / "tuned")
    before = load_file(tmp_path / "base" / "model.safetensors")[Q]
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    expected = float(torch.linalg.norm((merged.state_dict()[Q] - before).double()))
    assert norm_of(diagnose_pair(tmp_path / "base", tmp_path / "merged", nulls=False), Q) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize(
    ("start", "alpha", "rs"), [(s, a, rs) for s in ("pissa", "olora") for a in (1, 4, 16) for rs in (False, True)]
)
def test_a_piece_is_found_out_whatever_its_scaling(tmp_path, start, alpha, rs):
    """OLoRA takes alpha / r of its piece out of the base, so the update is another multiple of what the base has."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    model.save_pretrained(tmp_path / "base")
    options = {"r": 4, "lora_alpha": alpha, "use_rslora": rs, "target_modules": ["q_proj"], "init_lora_weights": start}
    adapted = trained(model, LoraConfig(**options), tmp_path / "base")
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(tmp_path / "tuned")
    with pytest.raises(OpdGeomError, match=r"q_proj\.weight is a piece of the base's own matrix"):
        diagnose_pair(tmp_path / "base", tmp_path / "tuned")


@pytest.mark.parametrize("start", [True, "gaussian", "orthogonal"])
@pytest.mark.parametrize("size", [0.02, 1.0])
def test_what_training_added_is_no_piece(tmp_path, start, size):
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    model.save_pretrained(tmp_path / "base")
    options = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj"], "init_lora_weights": start}
    adapted = trained(model, LoraConfig(**options), tmp_path / "base")
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.add_(size * torch.randn(value.shape, generator=torch.Generator().manual_seed(7)))
    adapted.save_pretrained(tmp_path / "tuned")
    assert norm_of(diagnose_pair(tmp_path / "base", tmp_path / "tuned", nulls=False), Q) > 0


def test_an_adapter_of_mlx_is_named(base, tmp_path):
    """mlx-lm 1119: ``adapter_config.json`` has no ``peft_type``, and the factors lie turned."""
    folder = tmp_path / "t"
    folder.mkdir()
    settings = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 2, "scale": 20.0}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({Q.replace("weight", "lora_a"): torch.ones(HIDDEN, 2)}, folder / "adapters.safetensors")
    with pytest.raises(OpdGeomError, match=r"adapter of MLX.*mlx_lm\.fuse"):
        diagnose_pair(base, folder)


def test_arrays_of_numpy_are_named(tmp_path):
    """mlx-examples 1317: ``adapters.npz``."""
    (tmp_path / "adapters.npz").write_bytes(b"PK\x03\x04")
    for source in (tmp_path, tmp_path / "adapters.npz"):
        with pytest.raises(OpdGeomError, match="NumPy"):
            open_checkpoint(source)


def test_prompts_that_were_trained_change_no_weight(tmp_path):
    """peft 1030: an adapter of prompts cannot be merged, and there is nothing to merge."""
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    model.save_pretrained(tmp_path / "base")
    get_peft_model(model, PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(tmp_path / "tuned")
    with pytest.raises(OpdGeomError, match=r"PROMPT_TUNING .*changes no weight"):
        diagnose_pair(tmp_path / "base", tmp_path / "tuned")


def test_an_adapter_without_settings_is_read_once_they_are_written_as_told(base, tmp_path):
    """torchtune 2159: a DPO recipe saved no ``adapter_config.json``."""
    factors = lora("base_model.model.model.layers.0.self_attn.q_proj")
    tuned = adapter(tmp_path / "t", factors, base)
    (tuned / "adapter_config.json").unlink()
    with pytest.raises(OpdGeomError, match="If none was saved") as error:
        open_checkpoint(tuned)
    told = str(error.value).partition("write ")[2].partition(" into")[0]
    (tuned / "adapter_config.json").write_text(told.replace("...", "2", 1).replace("...", "6", 1))
    table = diagnose_pair(base, open_checkpoint(tuned, base=base), nulls=False)
    a, b = factors.values()
    assert norm_of(table, Q) == pytest.approx(float(torch.linalg.norm((3.0 * b @ a).double())), rel=1e-5)


def test_an_adapter_of_packed_experts_is_refused_and_merged_by_peft(tmp_path):
    """vllm 41384, sglang 27381: ``target_parameters`` of PEFT adapt packed experts; loaders drop them silently."""
    torch.manual_seed(0)
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts))
    model.save_pretrained(tmp_path / "base")
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    config = LoraConfig(r=2, lora_alpha=4, target_modules=[], target_parameters=["mlp.experts.down_proj"])
    adapted = trained(model, config, tmp_path / "base")
    adapted.save_pretrained(tmp_path / "tuned")
    with pytest.raises(OpdGeomError, match=r"target_parameters.*merge_and_unload"):
        diagnose_pair(tmp_path / "base", tmp_path / "tuned")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    packed = "model.layers.0.mlp.experts.down_proj"
    change = (dict(merged.named_parameters())[packed] - before[packed]).double()
    assert float(change.norm()) > 0
    table = diagnose_pair(tmp_path / "base", tmp_path / "merged", nulls=False)
    for expert in range(2):
        name = f"model.layers.0.mlp.experts.{expert}.down_proj.weight"
        assert norm_of(table, name) == pytest.approx(float(change[expert].norm()), rel=1e-5)


def test_factors_inside_a_whole_model_s_pickle_are_refused(base, tmp_path):
    """peft 345: the Trainer left ``pytorch_model.bin`` with factors in it and no settings."""
    state = weights() | lora("base_model.model.model.layers.0.self_attn.q_proj")
    folder = pickled(tmp_path / "t", state, "pytorch_model.bin")
    with pytest.raises(OpdGeomError, match=r"lora_A.* adapter that is not merged"):
        diagnose_pair(base, open_checkpoint(folder, allow_pickle=True))


def test_an_ordinary_adapter_is_no_piece_of_its_base(base, tmp_path):
    """The other side of LlamaFactory 9404: a large random update is not taken for one."""
    tuned = adapter(tmp_path / "t", lora("base_model.model.model.layers.0.self_attn.q_proj"), base, lora_alpha=200)
    assert comparison_report(base, tuned).complete
