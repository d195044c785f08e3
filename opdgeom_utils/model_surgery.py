"""Models of other sizes made from the shipped ones: layers dropped, a silent layer added, MLPs cut into experts.

Training another teacher from nothing takes half an hour of a core. Each model here starts as a shipped one, cut or
grown, and is then mended by a few hundred updates of SFT (``data/recipes/models.yaml``, ``start: derived:<name>``).
What the surgery itself does has no learning in it and gives the same weights each time.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# (the layers of a transformers model are typed as plain modules)
from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from opdgeom_utils.errors import RecipeError
from opdgeom_utils.models import DERIVED, STARTS, build_tokenizer, load_model

N_EXPERTS, N_ACTIVE = 4, 2
ROUTER_SEED = 0
SHARED_SETTINGS = [
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "max_position_embeddings",
    "pad_token_id", "eos_token_id", "bos_token_id", "initializer_range", "attention_bias", "hidden_act",
]  # fmt: skip


def keep_layers(model: Qwen3ForCausalLM, kept: Sequence[int]) -> Qwen3ForCausalLM:
    """Return a copy of a dense model with the layers ``kept`` only; refuse indices that do not rise or do not exist.

    >>> from opdgeom_utils.models import build_model
    >>> keep_layers(build_model("tiny", 0), [1]).config.num_hidden_layers
    1
    """
    n_layers = len(model.model.layers)
    if not kept or list(kept) != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < n_layers:
        raise RecipeError(f"layers to keep are {list(kept)}; expected rising indices from 0 to {n_layers - 1}")
    return _with_layers(model, [copy.deepcopy(model.model.layers[i]) for i in kept])


def insert_silent_layer(model: Qwen3ForCausalLM, before: int) -> Qwen3ForCausalLM:
    """Return a copy with one layer more, which at first changes nothing: both its output matrices are zero.

    The new layer's other weights are those of the layer that it is put before. A :class:`RecipeError` says that there
    is no layer ``before``.

    >>> from opdgeom_utils.models import build_model
    >>> small = build_model("tiny", 0)
    >>> large, ids = insert_silent_layer(small, 1), torch.tensor([[3, 4]])
    >>> large.config.num_hidden_layers, bool(torch.equal(large(ids).logits, small(ids).logits))
    (3, True)
    """
    layers = [copy.deepcopy(layer) for layer in model.model.layers]
    if not 0 <= before < len(layers):
        raise RecipeError(f"a layer was to be put before layer {before}; expected 0 to {len(layers) - 1}")
    silent = copy.deepcopy(layers[before])
    with torch.no_grad():
        silent.self_attn.o_proj.weight.zero_()
        silent.mlp.down_proj.weight.zero_()
    return _with_layers(model, [*layers[:before], silent, *layers[before:]])


def split_into_experts(
    model: Qwen3ForCausalLM, n_experts: int = N_EXPERTS, n_active: int = N_ACTIVE
) -> Qwen3MoeForCausalLM:
    """Return a mixture of experts whose experts share out the neurons of the model's MLPs.

    Neuron ``j`` goes to expert ``j mod n_experts``, so there are as many weights as before, plus a router (normal
    noise of standard deviation 0.02) for each layer. The weights of the active experts are made to add up to 1, so each
    expert's output matrix is multiplied by ``n_experts``: with all experts active and equal weights the layer is the
    dense one. A :class:`RecipeError` says that the neurons cannot be shared out evenly, or that more experts are to be
    active than there are.

    >>> from opdgeom_utils.models import build_model
    >>> moe = split_into_experts(build_model("tiny", 0))
    >>> moe.config.num_experts, moe.config.num_experts_per_tok, moe.config.moe_intermediate_size
    (4, 2, 16)
    """
    width = model.config.intermediate_size
    if width % n_experts or not 0 < n_active <= n_experts:
        raise RecipeError(
            f"{width} neurons, {n_experts} experts, {n_active} active: expected an even share, some active"
        )
    config = Qwen3MoeConfig(
        **{key: getattr(model.config, key) for key in SHARED_SETTINGS},
        num_experts=n_experts, num_experts_per_tok=n_active, moe_intermediate_size=width // n_experts,
        norm_topk_prob=True, decoder_sparse_step=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ROUTER_SEED)
        moe = Qwen3MoeForCausalLM(config).to(model.dtype)
    shared = {name: value for name, value in model.state_dict().items() if ".mlp." not in name}
    _, unexpected = moe.load_state_dict(shared, strict=False)
    assert not unexpected
    with torch.no_grad():
        for sparse, dense in zip(moe.model.layers, model.model.layers, strict=True):
            _share_out(sparse.mlp.experts, dense.mlp, n_experts)
    return moe


def _share_out(experts: Any, mlp: Any, n_experts: int) -> None:
    """Copy the neurons of one dense MLP into its experts, in place."""
    for i in range(n_experts):
        gate, up = mlp.gate_proj.weight[i::n_experts], mlp.up_proj.weight[i::n_experts]
        experts.gate_up_proj[i].copy_(torch.cat([gate, up]))
        experts.down_proj[i].copy_(n_experts * mlp.down_proj.weight[:, i::n_experts])


def _with_layers(model: Qwen3ForCausalLM, layers: list[torch.nn.Module]) -> Qwen3ForCausalLM:
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(layers)
    config.layer_types = None if config.layer_types is None else [config.layer_types[0]] * len(layers)
    result = Qwen3ForCausalLM(config).to(model.dtype)
    state = {name: value for name, value in model.state_dict().items() if ".layers." not in name}
    for i, layer in enumerate(layers):
        state |= {f"model.layers.{i}.{name}": value for name, value in layer.state_dict().items()}
    result.load_state_dict(state)
    return result


def write_start(start: str) -> Path:
    """Write the model that a recipe starts from (``derived:<name>``) into the build folder, and return its folder.

    ``teacher_small`` and ``student_small`` are the first two of the teacher's and of the anchor's four layers,
    ``teacher_large`` has a fifth in the middle, ``teacher_moe`` has its MLPs cut into four experts, two of them active.
    Raises RecipeError if no such model is known.
    """
    name = start.removeprefix(DERIVED)
    if name in ("teacher_small", "student_small"):
        model = keep_layers(load_model("teacher" if name == "teacher_small" else "anchor"), [0, 1])
    elif name == "teacher_large":
        model = insert_silent_layer(load_model("teacher"), 2)
    elif name == "teacher_moe":
        model = split_into_experts(load_model("teacher"))
    else:
        raise RecipeError(f"no derived model {name!r}; known: teacher_small, teacher_large, teacher_moe, student_small")
    folder = STARTS / name
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder
