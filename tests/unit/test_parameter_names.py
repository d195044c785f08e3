"""A tensor's layer and module in words: the language model's own layers, experts, and towers beside it."""

import torch
from safetensors.torch import save_file

from opdgeom_utils.checkpoints.parameter_names import kind_of, layer_of, module_of
from opdgeom_utils.diagnose import diagnose_pair


def test_layer_and_module_are_read_from_names():
    names = {
        "model.layers.0.self_attn.q_proj.weight": (0, "q_proj"),
        "model.layers.11.mlp.down_proj.weight": (11, "down_proj"),
        "model.layers.3.self_attn.q_proj.bias": (3, "q_proj"),
        "model.layers.3.input_layernorm.weight": (3, "input_layernorm"),
        "transformer.h.7.attn.c_attn.weight": (7, "c_attn"),
        "model.embed_tokens.weight": (-1, "embed_tokens"),
        "model.norm.weight": (-1, "norm"),
        "weight": (-1, "weight"),
        "model.layers.4.mlp.experts.12.gate_proj.weight": (4, "expert_12.gate_proj"),
        "model.layers.4.mlp.experts.12.gate_proj.bias": (4, "expert_12.gate_proj"),
        "model.layers.4.mlp.shared_expert.up_proj.weight": (4, "shared_expert.up_proj"),
        "model.layers.4.mlp.shared_experts.up_proj.weight": (4, "shared_experts.up_proj"),
        "model.layers.4.mlp.gate.weight": (4, "gate"),
    }
    assert {name: (layer_of(name), module_of(name)) for name in names} == names


def test_only_the_language_models_layers_are_layers():
    names = {
        "model.vision_tower.vision_model.encoder.layers.3.self_attn.q_proj.weight": (-1, "vision_tower.q_proj"),
        "model.visual.blocks.0.attn.qkv.weight": (-1, "visual.qkv"),
        "model.audio_tower.layers.0.fc1.weight": (-1, "audio_tower.fc1"),
        "mtp.layers.0.self_attn.q_proj.weight": (-1, "mtp.q_proj"),
        "mtp.layers.0.mlp.experts.3.up_proj.weight": (-1, "mtp.expert_3.up_proj"),
        "mtp.fc.weight": (-1, "mtp.fc"),
        "model.mtp_layers.0.self_attn.q_proj.weight": (-1, "mtp_layers.q_proj"),
        "talker.model.layers.1.self_attn.q_proj.weight": (-1, "talker.q_proj"),
        "sam_model.blocks.1.attn.proj.weight": (-1, "sam_model.proj"),
        "model.multi_modal_projector.linear_1.weight": (-1, "multi_modal_projector.linear_1"),
        "model.encoder.layers.2.self_attn.q_proj.weight": (-1, "encoder.q_proj"),
        "model.decoder.layers.2.encoder_attn.q_proj.weight": (2, "q_proj"),
        "thinker.model.layers.1.self_attn.q_proj.weight": (1, "q_proj"),
        "pretrained_model.model.layers.1.self_attn.q_proj.weight": (1, "q_proj"),
        "transformer.encoder.layers.1.self_attention.query_key_value.weight": (1, "query_key_value"),
        "gpt_neox.layers.1.attention.dense.weight": (1, "dense"),
        "transformer.blocks.1.attn.out_proj.weight": (1, "out_proj"),
        "layers.1.self_attn.q_proj.weight": (1, "q_proj"),
        "model.image_newline": (-1, "image_newline"),
        "lm_head.weight": (-1, "lm_head"),
    }
    assert {name: (layer_of(name), module_of(name)) for name in names} == names
    assert kind_of("mtp.layers.0.mlp.experts.3.up_proj.weight") == "mtp.experts.up_proj"


def test_chosen_modules_are_the_language_models(tmp_path):
    own, other = "model.layers.0.self_attn.q_proj.weight", "model.visual.blocks.0.attn.q_proj.weight"
    save_file({own: torch.eye(4), other: torch.eye(4)}, tmp_path / "a.safetensors")
    for module, name in (("q_proj", own), ("visual.q_proj", other)):
        table = diagnose_pair(*[tmp_path / "a.safetensors"] * 2, modules=[module], k=2, nulls=False)
        assert table["name"].tolist() == [name]
