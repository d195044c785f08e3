"""Queries, keys and values taken apart: the real model computes the same when each head is scaled as its rows say."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from opdgeom_utils.checkpoints.fused_attention import FUSED_ATTENTION
from opdgeom_utils.checkpoints.layouts import split
from opdgeom_utils.checkpoints.stored_tensors import StoredTensor

HEADS, SIZE = 4, 4
SIZES = {
    **{"vocab_size": 20, "hidden_size": HEADS * SIZE, "intermediate_size": 12, "num_hidden_layers": 1},
    **{"num_attention_heads": HEADS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
MODELS = {  # how many heads of keys, and what the configuration says
    "phi3": (2, {"num_key_value_heads": 2}),
    "gpt2": (4, {}),
    "gpt_neox": (4, {}),
    "gpt_neox_japanese": (4, {}),
    "bloom": (4, {}),
    "persimmon": (4, {"qk_layernorm": False}),
    "mpt": (4, {}),
    "falcon": (1, {}),
    "falcon, a key for each head": (4, {"multi_query": False}),
    "falcon, new decoder": (2, {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_bigcode": (1, {}),
    "gpt_bigcode, a key for each head": (4, {"multi_query": False}),
}
OUTPUT = ("dense.weight", "attn.c_proj.weight", "out_proj.weight", "o_proj.weight")


@pytest.mark.parametrize("case", MODELS)
def test_heads_scaled_against_each_other_leave_the_model_as_it_is(case):
    groups, options = MODELS[case]
    kind = case.partition(",")[0]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SIZES, **options)).double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    tokens = torch.randint(3, 20, (2, 7), generator=generator)
    before = model(tokens).logits

    factors = torch.tensor([0.5, 3.0, 2.0, 0.25], dtype=torch.float64)[:groups]
    of_groups, of_heads = factors.repeat_interleave(SIZE), factors.repeat_interleave(HEADS // groups * SIZE)
    _scale(model, "q_proj", of_heads)
    assert (model(tokens).logits - before).abs().max() > 1e-3, "queries alone change the model"
    _scale(model, "k_proj", 1 / of_groups)
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-4)
    _scale(model, "v_proj", of_groups)
    assert (model(tokens).logits - before).abs().max() > 1e-3, "values alone change the model"
    (output,) = (weight for name, weight in model.named_parameters() if ".0." in name and _is_output(name))
    output.data.mul_(1 / of_heads if kind != "gpt2" else 1 / of_heads.unsqueeze(1))
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-4)


def test_the_bias_is_cut_as_its_matrix():
    config = {"model_type": "gpt_neox", "num_attention_heads": 2, "hidden_size": 4}
    parts = split({"a.query_key_value.bias": _numbered((12,), 0)}, config).tensors
    assert {name: part.read().tolist() for name, part in parts.items()} == {
        "a.q_proj.bias": [0, 1, 6, 7], "a.k_proj.bias": [2, 3, 8, 9], "a.v_proj.bias": [4, 5, 10, 11]
    }  # fmt: skip


@pytest.mark.parametrize("groups", [2, 4])
def test_lightning_attention_stays_whole_and_says_so(groups):
    kinds = ["linear_attention", "full_attention"]
    options = {"num_key_value_heads": groups, "num_local_experts": 2, "layer_types": kinds, "num_hidden_layers": 2}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["minimax"](**{**SIZES, **options}))
    state = {name: _numbered(tuple(tensor.shape), 0) for name, tensor in model.state_dict().items()}
    plain = split(state, model.config.to_dict())
    name = "model.layers.0.self_attn.qkv_proj.weight"
    assert name in plain.tensors
    why = "it mixes queries, keys and values, and the order of its rows in minimax is not known here"
    assert plain.notes == (f"{name} stays fused: {why}",)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "no config.json with its head counts"),
        ({"model_type": "chatglm", "num_attention_heads": 2, "hidden_size": 4}, "chatglm is not known here"),
        ({"model_type": "bloom", "n_head": 2, "n_embed": 6}, "has shape (12, 3) where the config.json gives 18 rows"),
    ],
)
def test_what_is_not_known_stays_whole_with_a_reason(config, why):
    plain = split({"a.query_key_value.weight": _numbered((12, 3), 0)}, config)
    assert list(plain.tensors) == ["a.query_key_value.weight"]
    assert why in plain.notes[0]


def _is_output(name):
    return name.endswith(OUTPUT) and "mlp" not in name


def _scale(model, module, factors):
    """Scale the rows of one part of the fused matrix, and of its bias, in the model itself."""
    kind = model.config.model_type
    for name, parameter in model.named_parameters():
        if not FUSED_ATTENTION.fullmatch(name):
            continue
        along = parameter.ndim - 1 if kind == "gpt2" else 0
        parts = split({name: _numbered(tuple(parameter.shape), along)}, model.config.to_dict()).tensors
        rows = next(part for found, part in parts.items() if f".{module}." in found).read()
        rows = rows.long() if rows.ndim == 1 else rows[:, 0].long()
        view = parameter.data.movedim(along, 0)
        view[rows] = view[rows] * (factors if view.ndim == 1 else factors.unsqueeze(1))


def _numbered(shape, along):
    """Store a tensor that holds, everywhere, its own index in one dimension."""
    index = torch.arange(float(shape[along])).reshape([-1 if axis == along else 1 for axis in range(len(shape))])
    return StoredTensor("memory", "stored", shape, torch.float32, held=index.expand(shape))
