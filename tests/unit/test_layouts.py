"""Names by rule, fused matrices by head counts, experts apart: real models of each layout, against plain matrices."""

import math

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification

from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.checkpoints.fused_attention import FUSED_ATTENTION
from opdgeom_utils.checkpoints.layouts import canonical_name, renamed, split
from opdgeom_utils.checkpoints.stored_tensors import StoredTensor
from opdgeom_utils.diagnose import diagnose_pair
from opdgeom_utils.errors import CheckpointDamagedError

PHI3 = {"model_type": "phi3", "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 4}
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
    "openai_privacy_filter": {"num_local_experts": 2, "head_dim": 4},
    "phimoe": {"num_local_experts": 2},
    "granitemoe": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "granitemoeshared": {"num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 6},
    "gpt2": {"num_key_value_heads": 4},
    "gpt_neox": {},
    "bloom": {},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
}
CLASSES = {"openai_privacy_filter": AutoModelForTokenClassification}
IN_OUT = ("gpt_oss", "llama4_text", "openai_privacy_filter")
MODULES = {
    "qwen3": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "q_norm", "k_norm"},
    "qwen3_moe": {f"expert_{e}.{part}_proj" for e in range(3) for part in ("gate", "up", "down")} | {"gate", "q_proj"},
    "phi": {"dense", "fc1", "fc2", "q_proj", "k_proj", "v_proj"},
    "phi3": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "mixtral": {f"expert_{e}.{part}_proj" for e in range(2) for part in ("gate", "up", "down")} | {"gate"},
    "gpt_oss": {f"expert_{e}.{part}_proj" for e in range(2) for part in ("gate", "up", "down")} | {"router", "sinks"},
    "llama4_text": {"expert_1.up_proj", "shared_expert.up_proj", "router"},
    "openai_privacy_filter": {"expert_1.up_proj", "expert_0.down_proj", "router"},
    "phimoe": {"expert_1.up_proj", "router"},
    "granitemoe": {"expert_1.up_proj", "expert_1.down_proj", "router"},
    "gpt2": {"q_proj", "k_proj", "v_proj", "c_proj", "c_fc"},
    "gpt_neox": {"q_proj", "k_proj", "v_proj", "dense"},
}


QKV = {  # as each modelling file takes its slices
    "gpt2": lambda whole, _: whole.chunk(3),
    "gpt_neox": lambda whole, size: [part.flatten(0, 1) for part in whole.unflatten(0, (4, -1)).chunk(3, dim=1)],
    "bloom": lambda whole, size: [whole.unflatten(0, (4, 3, size))[:, i].flatten(0, 1) for i in range(3)],
    "falcon": lambda whole, size: [
        whole.unflatten(0, (2, 4, size))[:, heads].flatten(0, 2) for heads in (slice(-2), [-2], [-1])
    ],
}


def _model(kind, seed):
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[kind](**{**SIZES, **LAYOUTS[kind]})
    return CLASSES.get(kind, AutoModelForCausalLM).from_config(config)


def _plain(model):
    """The matrices of a model written out by hand, from the modules in memory."""
    config, kind = model.config, model.config.model_type
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    rows = [config.num_attention_heads * size, groups * size, groups * size]
    plain = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("block_sparse_moe", "mlp")
        parent = name.rsplit(".", 2)[0] if name.endswith(".weight") else name.rsplit(".", 1)[0]
        if FUSED_ATTENTION.fullmatch(name) and kind in QKV:
            whole = tensor.mT if kind == "gpt2" and tensor.ndim == 2 else tensor
            parts = dict(zip(("q_proj", "k_proj", "v_proj"), QKV[kind](whole, size), strict=True))
            *_, ending = name.split(".")
            plain |= {f"{name.rsplit('.', 2)[0]}.{part}.{ending}": value for part, value in parts.items()}
        elif kind == "gpt2" and name.split(".")[-2] in ("c_proj", "c_fc"):
            plain[name] = tensor.mT if tensor.ndim == 2 else tensor
        elif name.endswith("qkv_proj.weight"):
            parts = dict(zip(("q_proj", "k_proj", "v_proj"), tensor.split(rows), strict=True))
            plain |= {f"{parent}.{part}.weight": value for part, value in parts.items()}
        elif name.endswith("gate_up_proj.weight"):
            plain |= {f"{parent}.gate_proj.weight": tensor[:12], f"{parent}.up_proj.weight": tensor[12:]}
        elif "experts." in name:
            for expert, packed in enumerate(tensor):
                value = packed.T if kind in IN_OUT and packed.ndim == 2 else packed
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


@pytest.mark.parametrize("sizes", [{}, {"moe_intermediate_size": 8}], ids=["one way fits", "both fit"])
def test_experts_of_one_type_are_turned_by_their_shape(sizes, tmp_path):
    sizes = {**SIZES, "num_experts": 2, "moe_intermediate_size": 10, "num_experts_per_tok": 1, "head_dim": 4, **sizes}
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIG_MAPPING["qwen3_vl_moe_text"](**sizes))
    for name, turned in (("memory", False), ("hub", True)):
        packed = {k: v.mT.contiguous() if turned and ".experts." in k else v for k, v in model.state_dict().items()}
        model.config.save_pretrained(tmp_path / name)
        save_file(packed, tmp_path / name / "model.safetensors")
    opened = {name: open_checkpoint(tmp_path / name) for name in ("memory", "hub")}
    if sizes["moe_intermediate_size"] == 8:  # two times 8 is the hidden size
        assert {note.partition("store")[0] for note in opened["hub"].notes} == {
            "model.layers.0.mlp.experts.gate_up_proj stays packed: qwen3_vl_moe_text may "
        }
        return
    table = diagnose_pair(opened["memory"], opened["hub"], k=2, nulls=False)
    assert set(table["note"]) == {"identical to the reference"}
    up = model.layers[0].mlp.experts.gate_up_proj[1, 10:]
    assert torch.equal(opened["hub"].tensors["model.layers.0.mlp.experts.1.up_proj.weight"].read(), up)


@pytest.mark.parametrize("kind", ["gpt_oss", "qwen3_moe", "glm4v_moe_text"])
def test_where_both_ways_fit_the_type_decides(kind):
    square = StoredTensor("memory", "stored", (2, 4, 4), torch.float32, held=torch.arange(32.0).reshape(2, 4, 4))
    config = {"model_type": kind, "hidden_size": 4}
    plain = split({"a.experts.down_proj": square}, config).tensors
    expected = square.held[1].T if kind == "gpt_oss" else square.held[1]
    assert torch.equal(plain["a.experts.1.down_proj.weight"].read(), expected)
    assert split({"a.experts.down_proj": _stored((2, 3, 5))}, {"model_type": kind}).notes == ()
    assert (
        "stays packed: other may store"
        in split({"a.experts.down_proj": square}, config | {"model_type": "other"}).notes[0]
    )


def test_a_packed_tensor_of_another_name_is_noted():
    tensors = {"a.moe.input_linear.weight": _stored((2, 3, 4)), "a.conv1d.weight": _stored((4, 1, 3))}
    plain = split(tensors, {"model_type": "jetmoe", "hidden_size": 4})
    assert list(plain.tensors) == list(tensors)
    assert plain.notes == (
        "a.moe.input_linear.weight stays packed: only the sparsity of its shape (2, 3, 4) is measured",
    )


def test_what_is_fused_in_a_tower_stays_whole():
    names = ["model.visual.blocks.0.attn.qkv_proj.weight", "model.audio_tower.layers.0.mlp.gate_up_proj.weight"]
    plain = split({name: _stored((8, 2)) for name in names}, PHI3)
    assert list(plain.tensors) == names
    assert all("stays fused: it is outside the language model" in note for note in plain.notes)
    assert (
        "mtp.layers.0.attn.q_proj.weight" in split({"mtp.layers.0.attn.qkv_proj.weight": _stored((8, 2))}, PHI3).tensors
    )


def test_an_adapter_finds_its_modules_under_the_names_on_disk(tmp_path):
    model = _model("phimoe", 0)
    model.save_pretrained(tmp_path / "base")
    name = "base_model.model.model.layers.0.block_sparse_moe.gate.lora_{}.weight"
    (tmp_path / "lora").mkdir()
    save_file(
        {name.format("A"): torch.ones(1, 16), name.format("B"): torch.ones(2, 1)},
        tmp_path / "lora" / "adapter_model.safetensors",
    )
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    merged = open_checkpoint(tmp_path / "lora", base=tmp_path / "base")
    assert merged.adapted == {"model.layers.0.mlp.router.weight"}


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


def test_two_tensors_of_one_name_are_reported():
    one, other = _stored((2, 2)), _stored((2, 2))
    found, ambiguous = renamed({"w": one, "module.w": other, "b": one}, {})
    assert (list(found), ambiguous) == (["b"], ("w is stored as w and as module.w",))
    fused = {"a.qkv_proj.weight": _stored((8, 2)), "a.q_proj.weight": _stored((4, 2))}
    plain = split(fused, PHI3 | {"head_dim": 2})
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
        ("a.experts.gate_up_proj", (2, 3, 4), "even number of gate and up rows"),
        ("a.experts.gate_up_proj", (2, 6, 5), "expected 4, the hidden size"),
        ("a.experts.down_proj", (2, 6, 5), "expected 4, the hidden size"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(name, shape, words):
    config = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 4, "model_type": "qwen3_moe"}
    with pytest.raises(CheckpointDamagedError, match=f"memory: tensor stored .*{words}"):
        split({name: _stored(shape)}, config)


def test_a_part_reads_only_itself_and_knows_its_form():
    plain = split({"a.qkv_proj.weight": _stored((8, 3))}, PHI3).tensors
    assert {name: tensor.shape for name, tensor in plain.items()} == {
        "a.q_proj.weight": (4, 3), "a.k_proj.weight": (2, 3), "a.v_proj.weight": (2, 3)
    }  # fmt: skip
    assert plain["a.k_proj.weight"].read().tolist() == [[12.0, 13.0, 14.0], [15.0, 16.0, 17.0]]
    assert plain["a.k_proj.weight"].key == "stored[4:6]"


def _stored(shape):
    values = torch.arange(float(math.prod(shape))).reshape(shape)
    return StoredTensor("memory", "stored", shape, torch.float32, held=values)
