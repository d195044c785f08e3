"""Names by rule, fused matrices by head counts, experts apart: real models of each layout, against plain matrices."""

import math

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from opdgeom_utils.checkpoint_forms.layouts import canonical_name, renamed, split
from opdgeom_utils.checkpoint_forms.parameter_names import layer_of, module_of
from opdgeom_utils.checkpoint_forms.stored_tensors import StoredTensor
from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.diagnose import diagnose_pair
from opdgeom_utils.errors import CheckpointDamagedError

SIZES = {
    **{"vocab_size": 20, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1},
    **{"eos_token_id": 2},
}
LAYOUTS = {
    "qwen3": {"head_dim": 6, "num_hidden_layers": 2},
    "qwen3_moe": {"num_experts": 3, "moe_intermediate_size": 10, "num_experts_per_tok": 2, "head_dim": 4},
    "llama": {"tie_word_embeddings": True},
    "smollm3": {},
    "gemma": {"head_dim": 8},
    "mistral": {"head_dim": 4},
    "phi": {},
    "phi3": {},
    "mixtral": {"num_local_experts": 2, "head_dim": 4},
    "gpt_oss": {"num_local_experts": 2, "head_dim": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "llama4_text": {"num_local_experts": 2, "intermediate_size_mlp": 12, "head_dim": 4},
}
MODULES = {
    "qwen3": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "q_norm", "k_norm"},
    "qwen3_moe": {f"expert_{e}.{part}_proj" for e in range(3) for part in ("gate", "up", "down")} | {"gate", "q_proj"},
    "phi": {"dense", "fc1", "fc2", "q_proj", "k_proj", "v_proj"},
    "phi3": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "mixtral": {f"expert_{e}.{part}_proj" for e in range(2) for part in ("gate", "up", "down")} | {"gate"},
    "gpt_oss": {f"expert_{e}.{part}_proj" for e in range(2) for part in ("gate", "up", "down")} | {"router", "sinks"},
    "llama4_text": {"expert_1.up_proj", "shared_expert.up_proj", "router"},
}


def _model(kind, seed):
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[kind](**{**SIZES, **LAYOUTS[kind]})
    return AutoModelForCausalLM.from_config(config)


def _plain(model):
    """The matrices of a model written out by hand, from the modules in memory."""
    config, kind = model.config, model.config.model_type
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows = [config.num_attention_heads * size, config.num_key_value_heads * size, config.num_key_value_heads * size]
    plain = {}
    for name, tensor in model.state_dict().items():
        parent = name.rsplit(".", 2)[0] if name.endswith(".weight") else name.rsplit(".", 1)[0]
        if name.endswith("qkv_proj.weight"):
            parts = dict(zip(("q_proj", "k_proj", "v_proj"), tensor.split(rows), strict=True))
            plain |= {f"{parent}.{part}.weight": value for part, value in parts.items()}
        elif name.endswith("gate_up_proj.weight"):
            plain |= {f"{parent}.gate_proj.weight": tensor[:12], f"{parent}.up_proj.weight": tensor[12:]}
        elif "experts." in name:
            for expert, packed in enumerate(tensor):
                value = packed.T if kind in ("gpt_oss", "llama4_text") and packed.ndim == 2 else packed
                ending = "bias" if name.endswith("_bias") else "weight"
                if "down_proj" in name:
                    plain[f"{parent}.{expert}.down_proj.{ending}"] = value
                else:
                    gate, up = (value[::2], value[1::2]) if kind == "gpt_oss" else value.chunk(2)
                    plain |= {f"{parent}.{expert}.gate_proj.{ending}": gate, f"{parent}.{expert}.up_proj.{ending}": up}
        elif not (name == "lm_head.weight" and config.tie_word_embeddings):
            plain[name] = tensor
    return {name: tensor.contiguous() for name, tensor in plain.items()}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_real_model_gives_the_rows_of_its_plain_matrices(kind, tmp_path):
    before, after = _model(kind, 0), _model(kind, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in after.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    for name, model in (("before", before), ("after", after)):
        model.save_pretrained(tmp_path / name)
        save_file(_plain(model), tmp_path / f"{name}.safetensors")
    options = {"k": 3, "rank": 2, "nulls": False}
    table = diagnose_pair(tmp_path / "before", tmp_path / "after", **options)
    plain = diagnose_pair(tmp_path / "before.safetensors", tmp_path / "after.safetensors", **options)
    assert sorted(table["name"]) == sorted(_plain(after)), "the names are those of the matrices written out by hand"
    pd.testing.assert_frame_equal(table, plain, rtol=1e-12, atol=1e-10)
    pd.testing.assert_frame_equal(diagnose_pair(before, tmp_path / "after", **options), table, rtol=1e-12, atol=1e-10)
    assert MODULES.get(kind, set()) <= set(table["module"])
    assert set(table["layer"]) == {-1, *range(after.config.num_hidden_layers)}
    assert table.attrs["comparisons"][0]["notes"] == []


def test_names_lose_their_wrappers():
    name = "model.layers.0.mlp.up_proj.weight"
    wrapped = [
        *(f"module.{name}", f"module.module.{name}", f"_orig_mod.{name}", f"base_model.model.{name}"),
        *("model.layers.0._orig_mod.mlp.up_proj.weight", "model._fsdp_wrapped_module.layers.0.mlp.up_proj.weight"),
        *("model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight", f"module._orig_mod.{name}"),
        *("model.language_model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.up_proj.weight"),
    ]
    assert {canonical_name(raw) for raw in [name, *wrapped]} == {name}
    kept = [
        "model.visual.blocks.0.attn.proj.weight",
        "module_list.0.weight",
        "my_orig_mod.weight",
        "model.module.weight",
    ]
    assert [canonical_name(raw) for raw in kept] == kept


def test_a_wrapped_model_is_the_model(tmp_path):
    model = _model("qwen3", 0)
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, tmp_path / "plain.safetensors")
    save_file({f"module._orig_mod.{name}": value for name, value in state.items()}, tmp_path / "wrapped.safetensors")
    table = diagnose_pair(tmp_path / "plain.safetensors", tmp_path / "wrapped.safetensors", k=2, nulls=False)
    assert len(table) == len(state)
    assert set(table["note"]) == {"identical to the reference"}


def test_two_tensors_of_one_name_are_reported():
    one, other = _stored((2, 2)), _stored((2, 2))
    found, ambiguous = renamed({"w": one, "module.w": other, "b": one})
    assert (list(found), ambiguous) == (["b"], ("w is stored as w and as module.w",))
    fused = {"a.qkv_proj.weight": _stored((8, 2)), "a.q_proj.weight": _stored((4, 2))}
    plain = split(fused, {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2})
    assert list(plain.tensors) == ["a.k_proj.weight", "a.v_proj.weight"]
    assert plain.ambiguous == ("a.q_proj.weight is stored as a.qkv_proj.weight and in a.q_proj.weight",)


def test_a_fused_matrix_without_head_counts_stays_whole_and_says_so():
    plain = split({"a.qkv_proj.weight": _stored((8, 2)), "a.c_attn.weight": _stored((3, 9))}, {})
    assert list(plain.tensors) == ["a.qkv_proj.weight", "a.c_attn.weight"]
    assert [note.partition(":")[0] for note in plain.notes] == [
        f"a.{m}.weight stays fused" for m in ("qkv_proj", "c_attn")
    ]
    packed = split({"mlp.experts.down_proj": _stored((2, 3, 4))}, {})
    assert packed.notes == ("mlp.experts.down_proj stays packed: no model_type in a config.json",)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("a.qkv_proj.weight", (9, 2), "'q_proj': 4, 'k_proj': 2, 'v_proj': 2"),
        ("a.experts.gate_up_proj", (2, 3, 4), "even number of gate and up rows"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(name, shape, words):
    config = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 4, "model_type": "qwen3_moe"}
    with pytest.raises(CheckpointDamagedError, match=f"memory: tensor stored .*{words}"):
        split({name: _stored(shape)}, config)


def test_a_part_reads_only_itself_and_knows_its_form():
    config = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 4}
    plain = split({"a.qkv_proj.weight": _stored((8, 3))}, config).tensors
    assert {name: tensor.shape for name, tensor in plain.items()} == {
        "a.q_proj.weight": (4, 3), "a.k_proj.weight": (2, 3), "a.v_proj.weight": (2, 3)
    }  # fmt: skip
    assert plain["a.k_proj.weight"].read().tolist() == [[12.0, 13.0, 14.0], [15.0, 16.0, 17.0]]
    assert plain["a.k_proj.weight"].key == "stored[4:6]"


def test_experts_and_shared_experts_have_plain_names():
    names = {
        "model.layers.4.mlp.experts.12.gate_proj.weight": (4, "expert_12.gate_proj"),
        "model.layers.4.mlp.experts.12.gate_proj.bias": (4, "expert_12.gate_proj"),
        "model.layers.4.mlp.shared_expert.up_proj.weight": (4, "shared_expert.up_proj"),
        "model.layers.4.mlp.shared_experts.up_proj.weight": (4, "shared_experts.up_proj"),
        "model.layers.4.mlp.gate.weight": (4, "gate"),
    }
    assert {name: (layer_of(name), module_of(name)) for name in names} == names


def test_tied_embeddings_are_one_row_in_every_form(tmp_path):
    model = _model("llama", 0)
    model.save_pretrained(tmp_path / "tied")
    opened = [open_checkpoint(model), open_checkpoint(tmp_path / "tied")]
    assert all(
        "lm_head.weight" not in found.tensors and "model.embed_tokens.weight" in found.tensors for found in opened
    )


def _stored(shape):
    values = torch.arange(float(math.prod(shape))).reshape(shape)
    return StoredTensor("memory", "stored", shape, torch.float32, held=values)
