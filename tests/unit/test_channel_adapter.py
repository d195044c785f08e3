"""An adapter whose update cannot leave a space: in PEFT's hands, in a real Trainer, and against full matrices."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from opdgeom_utils.channel_adapter import channel_adapter, freeze_spaces
from opdgeom_utils.channel_spaces import random_spaces, spaces_of_activations, spaces_of_update
from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.errors import CheckpointMismatchError, MetricInputError, MissingPackageError
from opdgeom_utils.projection import Projector

CONFIG = LlamaConfig(
    vocab_size=40, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0,
)  # fmt: skip
Q, K, DOWN = (f"model.layers.1.{name}.weight" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"))
SIDES = ["right", "left"]


def a_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(CONFIG)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    a_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(base: Path, **options: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base, **options)


def plain(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def some_ids(seed: int = 0) -> Tensor:
    return torch.randint(1, 40, (3, 9), generator=torch.Generator().manual_seed(seed))


def moved(adapted: PeftModel) -> PeftModel:
    """Throw dice for what is trained."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapted


def outside(delta_w: Tensor, space: Tensor, side: str) -> float:
    """Share of an update's norm that is not in a space."""
    q = space.double()
    inside = delta_w @ q @ q.T if side == "right" else q @ q.T @ delta_w
    return float((delta_w - inside).norm() / delta_w.norm())


# --- in PEFT's hands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("rank", [3, 18])  # 18 is more than some matrices have
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_opened_and_merged_by_peft(base: Path, tmp_path: Path, side: Any, rank: int, dtype: torch.dtype) -> None:
    model = load(base, dtype=dtype)
    before, ids = model(some_ids()).logits, some_ids()
    start, on_disk = plain(model), plain(load(base))
    adapted = channel_adapter(model, random_spaces(model, rank, side=side), rank, side=side)
    assert torch.equal(adapted(ids).logits, before), "at the start nothing has changed"
    logits = moved(adapted)(ids).logits
    assert not torch.allclose(logits, before, atol=1e-3)
    with adapted.disable_adapter():
        assert torch.equal(adapted(ids).logits, before)
    adapted.save_pretrained(tmp_path / "adapter")
    opened = PeftModel.from_pretrained(load(base, dtype=dtype), tmp_path / "adapter")
    assert torch.equal(opened(ids).logits, logits)
    merged = opened.merge_and_unload(safe_merge=True)
    read = open_checkpoint(tmp_path / "adapter").tensors
    for name, layer in adapted.named_modules():
        if hasattr(layer, "lora_A"):
            weight = f"{name.removeprefix('base_model.model.')}.weight"
            a, b = (getattr(layer, part)["default"].weight.detach() for part in ("lora_A", "lora_B"))
            torch.testing.assert_close(read[weight].read(), on_disk[weight] + b @ a, rtol=1e-6, atol=1e-6)
            expected = start[weight].float() + b @ a
            rounded = {} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
            torch.testing.assert_close(merged.state_dict()[weight].float(), expected, **rounded)
    if dtype == torch.float32:
        torch.testing.assert_close(merged(ids).logits, logits, rtol=1e-4, atol=1e-5)


def test_the_ranks_are_those_of_the_spaces(base: Path) -> None:
    model = load(base)
    adapted = channel_adapter(model, random_spaces(model, 18, side="left"), 18, side="left")
    ranks = {name.split(".")[-4]: value.shape[1] for name, value in adapted.named_parameters() if "lora_B" in name}
    assert ranks == {"q_proj": 18, "k_proj": 12, "v_proj": 12, "o_proj": 18, "gate_proj": 18, "up_proj": 18,
                     "down_proj": 18}  # fmt: skip
    scalings = {module.scaling["default"] for module in adapted.modules() if hasattr(module, "lora_A")}
    assert scalings == {1.0}


def test_merged_and_taken_out_again(base: Path) -> None:
    model = load(base)
    start = plain(model)[Q]
    adapted = moved(channel_adapter(model, random_spaces(model, 4), 4))
    adapted.merge_adapter()
    layer = adapted.base_model.model.model.layers[1].self_attn.q_proj
    assert float((layer.base_layer.weight - start).norm()) > 0.1
    adapted.unmerge_adapter()
    torch.testing.assert_close(layer.base_layer.weight.detach(), start, rtol=1e-5, atol=1e-6)


# --- in a real Trainer ------------------------------------------------------------------------------------------------


def train(model: Any, folder: Path, steps: int, resume: bool = False) -> Trainer:
    data = [{"input_ids": row, "labels": row} for row in some_ids(1).repeat(4, 1)]
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=3, learning_rate=1e-2, weight_decay=0.1, seed=0,
        save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=100,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def factors(adapted: nn.Module, part: str) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in adapted.named_parameters() if part in name}


@pytest.mark.parametrize(("side", "frozen", "trained"), [("right", "lora_A", "lora_B"), ("left", "lora_B", "lora_A")])
def test_a_trainer_moves_one_factor_alone(base: Path, tmp_path: Path, side: Any, frozen: str, trained: str) -> None:
    model = load(base)
    spaces, start = random_spaces(model, 3, side=side), plain(model)
    adapted = channel_adapter(model, spaces, 3, side=side)
    held = factors(adapted, frozen)
    trainer = train(adapted, tmp_path / "run", 2)
    groups: Any = trainer.optimizer.param_groups
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(
        value.numel() for value in factors(adapted, trained).values()
    )
    # goes on from its checkpoint, which PEFT opens again, in a new process's place
    again = channel_adapter(load(base), spaces, 3, side=side)
    train(again, tmp_path / "run", 4, resume=True)
    again.set_adapter("default")
    for adapter in (adapted, again):
        assert all(torch.equal(value, held[name]) for name, value in factors(adapter, frozen).items())
        assert {n for n, p in adapter.named_parameters() if p.requires_grad} == set(factors(adapter, trained))
        assert all(float(value.norm()) > 0 for value in factors(adapter, trained).values())
    merged = plain(again.merge_and_unload())
    for name, space in spaces.items():
        assert outside((merged[name] - start[name]).double(), space, side) < 1e-4


def test_opened_again_for_training_it_is_frozen_on_request(base: Path, tmp_path: Path) -> None:
    for side, trained in (("right", "lora_B"), ("left", "lora_A")):
        model = load(base)
        moved(channel_adapter(model, random_spaces(model, 3, side=side), 3, side=side)).save_pretrained(tmp_path / side)
        opened = PeftModel.from_pretrained(load(base), tmp_path / side, is_trainable=True)
        assert any("lora_A" in n and p.requires_grad for n, p in opened.named_parameters())
        freeze_spaces(opened).set_adapter("default")
        assert {n for n, p in opened.named_parameters() if p.requires_grad} == set(factors(opened, trained))
    with torch.no_grad():
        for value in opened.parameters():
            value += 0.5
    with pytest.raises(MetricInputError, match=r"neither factor of this adapter has orthonormal columns"):
        freeze_spaces(opened)


# --- against full matrices --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_under_plain_descent_it_is_the_projected_gradient(side: Any) -> None:
    torch.manual_seed(0)
    full, small = (
        nn.Sequential(nn.Linear(7, 5, bias=False)).double(),
        nn.Sequential(nn.Linear(7, 5, bias=False)).double(),
    )
    small.load_state_dict(full.state_dict())
    space = torch.linalg.qr(torch.randn(7 if side == "right" else 5, 2).double()).Q
    adapted = channel_adapter(small, {"0.weight": space}, 2, side=side).double()
    with torch.no_grad():  # PEFT makes its factors in fp32
        getattr(adapted.base_model.model[0], "lora_A" if side == "right" else "lora_B")["default"].weight.copy_(
            space.T if side == "right" else space
        )
    x, y = torch.randn(11, 7).double(), torch.randn(11, 5).double()
    projector, start = Projector({"0": space}, side), (full(x) - y).square().mean().item()
    descent = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    whole = torch.optim.SGD(full.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        for net, optimizer in ((adapted, descent), (full, whole)):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            if net is full:
                projector.project_gradients({"0": full[0]})
            optimizer.step()
    expected = full[0].weight.detach()
    torch.testing.assert_close(adapted.merge_and_unload()[0].weight.detach(), expected, rtol=1e-10, atol=1e-12)
    assert (full(x) - y).square().mean().item() < start


def test_under_adam_it_stays_where_a_projected_gradient_does_not() -> None:
    torch.manual_seed(0)
    start = torch.randn(5, 7)
    space = torch.linalg.qr(torch.randn(7, 2)).Q
    x, y = torch.randn(11, 7), torch.randn(11, 5)
    left = {}
    for kind in ("full", "adapter"):
        net: Any = nn.Sequential(nn.Linear(7, 5, bias=False))
        with torch.no_grad():
            net[0].weight.copy_(start)
        layer = net[0]
        if kind == "adapter":
            net = channel_adapter(net, {"0": space}, 2)
        adam = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01)
        for _ in range(10):
            adam.zero_grad()
            (net(x) - y).square().mean().backward()
            if kind == "full":
                Projector({"0": space}).project_gradients({"0": layer})
            adam.step()
        after = net.merge_and_unload()[0].weight if kind == "adapter" else layer.weight
        left[kind] = outside((after.detach() - start).double(), space, "right")
    assert left["adapter"] < 1e-5
    assert left["full"] > 0.1


# --- the spaces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_spaces_of_an_update_are_its_leading_singular_vectors(base: Path, side: Any) -> None:
    after = a_model(1)
    spaces = spaces_of_update(base, after, 5, side=side)
    assert set(spaces) == {n for n, p in load(base).named_parameters() if ".layers." in n and p.ndim == 2}
    for name in (Q, K, DOWN):
        delta_w = (after.state_dict()[name] - plain(load(base))[name]).double()
        u, _, vh = torch.linalg.svd(delta_w, full_matrices=False)
        expected = vh[:5].T if side == "right" else u[:, :5]
        cosines = (spaces[name].double() * expected).sum(0).abs()
        torch.testing.assert_close(cosines, torch.ones(5).double(), rtol=0, atol=1e-6)
    assert channel_adapter(load(base), spaces, 5, side=side).peft_config["default"].r == 5


def test_an_update_of_low_rank_has_no_larger_space(base: Path) -> None:
    after = load(base)
    with torch.no_grad():
        for name, parameter in after.named_parameters():
            if ".layers." in name and parameter.ndim == 2:
                parameter[:2] *= 2.0
    assert spaces_of_update(base, after, 2)[Q].shape == (24, 2)
    with pytest.raises(MetricInputError, match=r"_proj\.weight: the update has 2 directions, expected 3; take a later"):
        spaces_of_update(base, after, 3)
    with pytest.raises(MetricInputError, match="the update has 0 directions"):
        spaces_of_update(base, base, 1)


def test_spaces_of_activations_are_those_of_what_is_read(base: Path) -> None:
    model = load(base).eval()
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, :4] = 0
    batches = [{"input_ids": some_ids(seed), "attention_mask": mask} for seed in (0, 1)]
    spaces = spaces_of_activations(model, batches, 4)
    assert set(spaces) == {n for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2}
    second = torch.zeros(24, 24, dtype=torch.float64)
    for batch in batches:
        with torch.no_grad():
            hidden = model(**batch, output_hidden_states=True).hidden_states[1]
            read = model.model.layers[1].input_layernorm(hidden)[mask.bool()].double()
        second += read.T @ read
    for name in (Q, K, Q.replace("q_proj", "v_proj")):
        basis = spaces[name].double()
        held = torch.trace(basis.T @ second @ basis)
        assert float(held) == pytest.approx(float(torch.linalg.eigvalsh(second)[-4:].sum()), rel=1e-6)
    assert spaces[DOWN].shape == (36, 4)
    unmasked = spaces_of_activations(model, [{"input_ids": batch["input_ids"]} for batch in batches], 4)
    assert not torch.allclose(unmasked[Q] @ unmasked[Q].T, spaces[Q] @ spaces[Q].T, atol=1e-3)
    assert channel_adapter(model, spaces, 4).peft_config["default"].r == 4
    with pytest.raises(MetricInputError, match="give a few batches"):
        spaces_of_activations(load(base), [], 4)


def test_random_spaces_differ_by_matrix_and_seed(base: Path) -> None:
    model = load(base)
    spaces = random_spaces(model, 4, seed=0)
    again, others = random_spaces(model, 4, seed=0), random_spaces(model, 4, seed=1)
    for name, space in spaces.items():
        torch.testing.assert_close(space.T @ space, torch.eye(4))
        assert torch.equal(space, again[name])
        assert not torch.allclose(space, others[name])
    assert not torch.allclose(spaces[Q], spaces[K])


# --- what is refused --------------------------------------------------------------------------------------------------


def test_spaces_of_another_model_are_refused(base: Path) -> None:
    model, eye = load(base), torch.eye(24)
    for spaces, rank, side, error, said in (
        (
            {"model.layers.7.self_attn.q_proj.weight": eye},
            2,
            "right",
            CheckpointMismatchError,
            r"1 spaces belong to no",
        ),
        ({DOWN: eye}, 2, "right", CheckpointMismatchError, r"shape \(24, 24\), expected \(36, k\) on the right side"),
        ({Q: 2 * eye}, 2, "right", MetricInputError, r"not orthonormal; take torch\.linalg\.qr"),
        ({Q: eye[:, :0]}, 2, "right", MetricInputError, "not orthonormal"),
        ({Q: float("nan") * eye}, 2, "right", MetricInputError, "not orthonormal"),
        ({}, 2, "right", MetricInputError, "0 spaces"),
        ({Q: eye}, 0, "right", MetricInputError, "rank 0"),
    ):
        with pytest.raises(error, match=said):
            channel_adapter(model, spaces, rank, side=side)
    assert not any("lora" in name for name, _ in model.named_modules()), "nothing was changed"


def test_without_peft_it_is_said_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, *rest, **options)

    model = load(base)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match="pip install"):
        channel_adapter(model, {Q: torch.eye(24)}, 2)


def test_what_is_saved_is_a_plain_adapter(base: Path, tmp_path: Path) -> None:
    model = load(base)
    spaces = random_spaces(model, 3)
    channel_adapter(model, spaces, 3).save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(saved) == 2 * len(spaces)
    assert torch.equal(saved[f"base_model.model.{Q.removesuffix('.weight')}.lora_A.weight"], spaces[Q].T)
