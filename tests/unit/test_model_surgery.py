"""Models cut from other models: what the surgery keeps, and that a mixture of experts goes through scoring and disk."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM

from opdgeom_utils import model_surgery, models
from opdgeom_utils.errors import RecipeError
from opdgeom_utils.rollouts import Rollouts, roll_out
from opdgeom_utils.scoring import completion_logits
from tools import build_models

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])


@pytest.fixture(scope="module")
def dense() -> Qwen3ForCausalLM:
    """Make an untrained tiny model."""
    return models.build_model("tiny", 0).eval()


@pytest.fixture(scope="module")
def moe(dense: Qwen3ForCausalLM) -> Qwen3MoeForCausalLM:
    """Cut it into four experts, two of them active."""
    return model_surgery.split_into_experts(dense).eval()


def test_kept_layers_are_the_model_s_own(dense: Qwen3ForCausalLM) -> None:
    small = model_surgery.keep_layers(dense, [1])
    assert len(small.model.layers) == small.config.num_hidden_layers == 1
    kept = small.model.layers[0].state_dict()
    assert all(torch.equal(kept[name], value) for name, value in dense.model.layers[1].state_dict().items())
    assert torch.equal(small.lm_head.weight, small.model.embed_tokens.weight)
    assert torch.equal(model_surgery.keep_layers(dense, [0, 1])(IDS).logits, dense(IDS).logits)


@pytest.mark.parametrize("kept", [[], [1, 0], [0, 0], [2], [-1]])
def test_layers_that_are_not_there_are_refused(dense: Qwen3ForCausalLM, kept: list[int]) -> None:
    with pytest.raises(RecipeError, match="rising indices from 0 to 1"):
        model_surgery.keep_layers(dense, kept)


def test_a_silent_layer_can_learn(dense: Qwen3ForCausalLM) -> None:
    large = model_surgery.insert_silent_layer(dense, 1)
    assert torch.equal(large(IDS).logits, dense(IDS).logits)
    large(IDS).logits.square().mean().backward()
    silent = large.model.layers[1]
    assert all(float(part.weight.grad.norm()) > 0 for part in (silent.self_attn.o_proj, silent.mlp.down_proj))
    with pytest.raises(RecipeError, match="before layer 2"):
        model_surgery.insert_silent_layer(dense, 2)


def test_with_every_expert_equally_active_the_mixture_is_the_dense_model(dense: Qwen3ForCausalLM) -> None:
    whole = model_surgery.split_into_experts(dense, n_active=4).eval()
    with torch.no_grad():
        for layer in whole.model.layers:
            layer.mlp.gate.weight.zero_()
        torch.testing.assert_close(whole(IDS).logits, dense(IDS).logits)


def test_routing_leaves_half_of_the_neurons_out(dense: Qwen3ForCausalLM, moe: Qwen3MoeForCausalLM) -> None:
    with torch.no_grad():
        assert not torch.allclose(moe(IDS).logits, dense(IDS).logits)
    assert [layer.mlp.experts.gate_up_proj.shape[0] for layer in moe.model.layers] == [4, 4]


@pytest.mark.parametrize(("n_experts", "n_active"), [(3, 2), (4, 5), (4, 0)])
def test_uneven_shares_are_refused(dense: Qwen3ForCausalLM, n_experts: int, n_active: int) -> None:
    with pytest.raises(RecipeError, match="64 neurons"):
        model_surgery.split_into_experts(dense, n_experts, n_active)


@torch.no_grad()
def test_scoring_a_mixture_equals_a_plain_forward(moe: Qwen3MoeForCausalLM) -> None:
    mask = torch.ones(1, 2, 3, dtype=torch.bool)
    completions = torch.tensor([[[11, 12, 1], [13, 14, 1]]])
    rollouts = Rollouts(IDS[:1], torch.ones(1, 4, dtype=torch.bool), completions, mask, torch.zeros(1, 2, 3))
    whole = torch.cat([IDS[:1].repeat(2, 1), completions[0]], dim=1)
    torch.testing.assert_close(completion_logits(moe, rollouts)[0], moe(whole).logits[:, 3:-1], atol=1e-5, rtol=1e-4)


def test_a_mixture_can_write(moe: Qwen3MoeForCausalLM) -> None:
    drawn = [
        roll_out(
            moe, models.build_tokenizer(), ["sum 1+2=", "gcd 8,4="], group_size=2, max_new_tokens=3,
            generator=torch.Generator().manual_seed(0),
        ).completion_ids
        for _ in range(2)
    ]  # fmt: skip
    assert torch.equal(*drawn)
    assert drawn[0].shape[:2] == (2, 2)


def test_a_stored_mixture_has_experts_apart_and_opens_as_it_was(moe: Qwen3MoeForCausalLM, tmp_path: Path) -> None:
    moe.config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(build_models.file_content(moe))
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert isinstance(opened, Qwen3MoeForCausalLM)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in moe.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value.to(torch.bfloat16).float()), name


def test_the_start_of_a_recipe_is_found_by_its_name(
    dense: Qwen3ForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (models, model_surgery):
        monkeypatch.setattr(module, "STARTS", tmp_path)
    monkeypatch.setattr(model_surgery, "load_model", lambda _name: dense)
    folder = model_surgery.write_start("derived:student_small")
    assert models.resolve_model("derived:student_small") == str(folder)
    assert models.load_model("derived:student_small").config.num_hidden_layers == 2
    with pytest.raises(RecipeError, match="student_small"):
        model_surgery.write_start("derived:student_huge")
