"""Names that families, trainers and versions give one model, against the names that transformers itself saves."""

import json
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from opdgeom_utils.checkpoints import comparison_report
from opdgeom_utils.checkpoints.layouts import plain_names
from opdgeom_utils.checkpoints.parameter_names import embedding_and_head, is_buffer, is_vocabulary, layer_of
from opdgeom_utils.diagnose import diagnose_pair

WITH_TOWERS = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "llava", "llava_next", "mistral3", "internvl", "paligemma"),
    *("mllama", "idefics3", "aya_vision", "qwen3_5", "glm4v", "paddleocr_vl", "llama4", "fuyu", "video_llava"),
)
CAUSAL = {  # each with its input embedding and head, as get_input_embeddings and get_output_embeddings give them
    "gpt2": ("transformer.wte", "lm_head"),
    "gpt_neox": ("gpt_neox.embed_in", "lm_head"),
    "gpt_neox_japanese": ("gpt_neox_japanese.embed_in", "embed_out"),
    "bloom": ("transformer.word_embeddings", "lm_head"),
    "falcon": ("transformer.word_embeddings", "lm_head"),
    "mpt": ("transformer.wte", "lm_head"),
    "gptj": ("transformer.wte", "lm_head"),
    "opt": ("model.decoder.embed_tokens", "lm_head"),
    "biogpt": ("biogpt.embed_tokens", "output_projection"),
    "llama": ("model.embed_tokens", "lm_head"),
    "qwen3": ("model.embed_tokens", "lm_head"),
}
SMALL = {
    **{"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 40},
    **{"num_key_value_heads": 2, "head_dim": 4, "depth": 1, "num_heads": 4, "embed_dim": 16, "out_hidden_size": 16},
    **{"hidden_dim": 16, "d_model": 16, "image_size": 28, "num_local_experts": 2, "n_embd": 16, "n_layer": 1},
    **{"n_head": 4, "n_layers": 1, "n_heads": 4, "rotary_dim": 4, "num_kv_heads": 4, "ffn_dim": 12},
    **{"word_embed_proj_dim": 16, "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1},
}


def _shrunk(config):
    for name, value in SMALL.items():
        if isinstance(getattr(config, name, None), int):
            with suppress(AttributeError):  # some are computed
                setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    for name in getattr(config, "sub_configs", {}):
        if getattr(config, name, None) is not None:
            _shrunk(getattr(config, name))
    return config


def _on_meta(auto, kind):
    with torch.device("meta"):
        return auto.from_config(_shrunk(CONFIG_MAPPING[kind]()))


@pytest.mark.parametrize("kind", WITH_TOWERS)
def test_the_names_of_the_hub_and_of_memory_are_one(kind, tmp_path):
    model = _on_meta(AutoModelForImageTextToText, kind)
    memory = {name: torch.zeros(value.shape) for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=dict(memory))  # renames as its own mapping says, and drops what is tied
    hub, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    one, other = ({plain_names(names, config)[name] for name in names} for names in (memory, hub))
    assert one - {"lm_head.weight"} == other - {"lm_head.weight"}
    assert {layer_of(name) for name in one} >= {-1, 0}, "a tower, and the language model's own layers"


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_base_model_s_names_get_its_prefix(kind):
    whole, base = _on_meta(AutoModelForCausalLM, kind), _on_meta(AutoModel, kind)
    config = whole.config.to_dict()
    names = plain_names(whole.state_dict(), config)
    own = {name.split(".")[0] for name in set(names.values())} - {name.split(".")[0] for name in base.state_dict()}
    heads = {name for name in names.values() if name.split(".")[0] in own - {whole.base_model_prefix}}
    assert set(plain_names(base.state_dict(), config).values()) == set(names.values()) - heads
    assert embedding_and_head(names.values()) == tuple(f"{name}.weight" for name in CAUSAL[kind])
    parts = whole.get_input_embeddings(), whole.get_output_embeddings()
    found = [name for part in parts for name, module in whole.named_modules() if module is part]
    assert [names[f"{name}.weight"].removesuffix(".weight") for name in found] == list(CAUSAL[kind])
    assert not any(is_buffer(name, tuple(value.shape)) for name, value in whole.named_parameters())
    assert {name for name in names.values() if is_vocabulary(name) and name.endswith("weight")} == {
        f"{name}.weight" for name in CAUSAL[kind]
    }


def test_a_model_with_a_tower_is_one_under_every_way_of_saving(tmp_path):
    text = {**{k: v for k, v in SMALL.items() if not k.endswith("token_id")}, "num_hidden_layers": 1}
    config = {"model_type": "qwen2_5_vl", "text_config": {"model_type": "qwen2_5_vl_text", **text}, "vision_config": {}}
    rows = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    hub = {"model.layers.0.self_attn.o_proj.weight": rows, "visual.blocks.0.attn.proj.weight": 2 * rows}
    ways = {
        "hub": (hub, {**text, "model_type": "qwen2_5_vl"}),
        "saved again": (hub, config),
        "memory": (
            {"model.language_model" + n[5:] if n[0] == "m" else f"model.{n}": w for n, w in hub.items()},
            config,
        ),
        "older": ({f"language_model.{n}" if n[0] == "m" else n: w for n, w in hub.items()}, config),
        "tower without a model": ({n.replace("model", "language_model"): w for n, w in hub.items()}, config),
    }
    for way, (weights, settings) in ways.items():
        (tmp_path / way).mkdir()
        save_file(weights, tmp_path / way / "model.safetensors")
        (tmp_path / way / "config.json").write_text(json.dumps(settings))
        table = diagnose_pair(tmp_path / "hub", tmp_path / way, k=2, nulls=False)
        assert set(table["note"]) == {"identical to the reference"}, way
        assert dict(zip(table["name"], table["layer"], strict=True)) == {
            "model.layers.0.self_attn.o_proj.weight": 0, "model.visual.blocks.0.attn.proj.weight": -1
        }  # fmt: skip


OLD_BUFFERS = {  # what releases of transformers, GPT-2 and Megatron saved beside the weights
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    "model.rotary_emb.original_inv_freq": torch.ones(4),
    "rope.freqs": torch.ones(4),
    "model.layers.0.self_attn.rotary_emb.cos_cached": torch.ones(1, 1, 8, 4),
    "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8),
    "transformer.h.1.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
    "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
    "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
    "transformer.h.0.attn.causal_mask": torch.ones(1, 1, 8, 8),
    "model.vision_model.embeddings.position_ids": torch.arange(4, dtype=torch.int32),
    "norm.num_batches_tracked": torch.tensor(3),
    "norm.running_mean": torch.ones(3),
    "decoder.layers.0.self_attention.linear_qkv._extra_state": torch.zeros(5, dtype=torch.uint8),
    "model.alibi": torch.ones(1, 2, 4),
    "step": torch.tensor(7.0),
    "wpe.sinusoid": torch.ones(8, 4),
    "model.layers.0.self_attn.sliding_window_mask": torch.ones(8, 8),
    "model.layers.0.router.local_tokens_per_expert": torch.ones(4),
    "model.layers.0.self_attn.slope_rate": torch.ones(2, 1, 1),
    "model.layers.0.self_attn.key_decay": torch.ones(2, 4, 1),
    "transformer.alibi_slopes": torch.ones(2),
    "model.layers.0.self_attn.rotary_emb.cos_sin_cache": torch.ones(8, 4),
    "layers.0.attention.k_cache": torch.ones(1, 4, 2, 2),
    "blocks.0.attn.tril": torch.ones(8, 8),
    "decoder.embed_positions._float_tensor": torch.ones(1),
}


@pytest.mark.parametrize("side", [0, 1, 2], ids=["reference", "tuned", "both"])
def test_buffers_are_listed_and_left_out_whatever_their_type_and_side(side, tmp_path):
    weights = {"model.layers.0.mlp.up_proj.weight": torch.ones(3, 2), "model.layers.0.attn.bias": torch.ones(3)}
    for number, name in enumerate(("a", "b")):
        held = weights | (OLD_BUFFERS if side in (number, 2) else {})
        save_file({key: value.clone() for key, value in held.items()}, tmp_path / f"{name}.safetensors")
    report = comparison_report(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert report.complete
    assert set(report.compared) == set(weights), "a vector of that name is a weight"
    assert set(report.left_out) == set(OLD_BUFFERS)


def test_a_loaded_module_keeps_the_buffers_that_its_file_has(tmp_path):
    module = torch.nn.Module()
    module.gate = torch.nn.Linear(3, 2, bias=False)
    module.gate.register_buffer("e_score_correction_bias", torch.ones(2))
    module.gate.register_buffer("cache", torch.ones(2), persistent=False)
    module.norm = torch.nn.BatchNorm1d(2)
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    report = comparison_report(module, tmp_path)
    assert report.complete
    assert "gate.e_score_correction_bias" in report.compared
    assert set(report.left_out) == {f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
