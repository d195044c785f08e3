"""An adapter whose update cannot leave a space: in PEFT's hands, in a real Trainer, and against full matrices."""

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import config
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
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


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """As a user calls; the tests otherwise check the types of all arguments."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


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


def test_a_space_is_frozen_whatever_the_name_of_its_adapter(base: Path, tmp_path: Path) -> None:
    model = load(base)
    moved(channel_adapter(model, random_spaces(model, 3), 3)).save_pretrained(tmp_path / "adapter")
    opened = PeftModel.from_pretrained(load(base), tmp_path / "adapter", adapter_name="channel", is_trainable=True)
    opened.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    freeze_spaces(opened)
    opened.base_model.set_adapter(["other", "channel"])
    freeze_spaces(opened)
    trained = {n for n, p in opened.named_parameters() if p.requires_grad}
    assert trained == {n for n in factors(opened, "lora_") if "lora_B.channel" in n or ".other." in n}
    opened.set_adapter("other")
    with pytest.raises(MetricInputError, match=r"LoRA: other; neither factor"):
        freeze_spaces(opened)
    with pytest.raises(MetricInputError, match=r"LoRA: none"):
        freeze_spaces(load(base))


def test_a_trained_factor_of_length_one_is_not_taken_for_the_space(base: Path, tmp_path: Path) -> None:
    model = load(base)
    adapted = channel_adapter(model, random_spaces(model, 1, side="left"), 1, side="left")
    with torch.no_grad():
        for value in (p for p in adapted.parameters() if p.requires_grad):
            value.fill_(1.0001 / value.numel() ** 0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    opened = freeze_spaces(PeftModel.from_pretrained(load(base), tmp_path / "adapter", is_trainable=True))
    assert {n for n, p in opened.named_parameters() if p.requires_grad} == set(factors(opened, "lora_A"))


def test_a_space_that_was_saved_in_half_precision_is_known_again(base: Path, tmp_path: Path) -> None:
    model = load(base)
    moved(channel_adapter(model, random_spaces(model, 6), 6)).to(torch.bfloat16).save_pretrained(tmp_path / "adapter")
    opened = freeze_spaces(PeftModel.from_pretrained(load(base), tmp_path / "adapter", is_trainable=True))
    assert {n for n, p in opened.named_parameters() if p.requires_grad} == set(factors(opened, "lora_B"))


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_name_is_that_of_one_matrix_though_another_ends_so(tmp_path: Path) -> None:
    def nested() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))

    net, start, x, eye = nested(), plain(nested()), torch.ones(2, 4), torch.eye(4)
    adapted = moved(channel_adapter(net, {"0": eye[:, :2], "1.0.weight": eye[:, 1:]}, 3))
    logits = adapted(x)
    adapted.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(nested(), tmp_path)
    assert torch.equal(opened(x), logits)
    changed = {n: v - start[n] for n, v in plain(opened.merge_and_unload()).items()}
    assert {n for n, v in changed.items() if v.any()} == {"0.weight", "1.0.weight"}
    assert torch.linalg.matrix_rank(changed["0.weight"]) == 2
    assert not changed["0.weight"][:, 2:].any()
    assert torch.linalg.matrix_rank(changed["1.0.weight"]) == 3
    assert not changed["1.0.weight"][:, 0].any()
    (alone,) = (p for p in channel_adapter(nested(), {"0": eye}, 1).parameters() if p.requires_grad)
    assert alone.shape == (4, 1)


def test_names_are_no_patterns() -> None:
    eye = torch.eye(4)
    net = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("a+b", "c(d", "e[x", "a*")})
    adapted = channel_adapter(net, {"a+b": eye, "c(d": eye[:, :2], "e[x": eye[:, :1], "a*": eye[:, 1:]}, 4)
    ranks = {n.split(".")[2]: p.shape[1] for n, p in adapted.named_parameters() if p.requires_grad}
    assert ranks == {"a+b": 4, "c(d": 2, "e[x": 1, "a*": 3}


def test_an_update_of_a_vision_language_models_text_is_found_by_its_plain_names() -> None:
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    both = Gemma3Config(text_config=sizes, vision_config=vision, mm_tokens_per_image=4)
    before, after = Gemma3ForConditionalGeneration(both), Gemma3ForConditionalGeneration(both)
    spaces = spaces_of_update(before, after, 2)
    adapted = channel_adapter(before, spaces, 2)
    held = {n.removeprefix("base_model.model.model.language_").partition(".lora")[0]: v.T
            for n, v in factors(adapted, "lora_A").items()}  # fmt: skip
    assert {f"{name}.weight": space.shape for name, space in held.items()} == {n: s.shape for n, s in spaces.items()}
    assert all(torch.equal(spaces[f"{name}.weight"], space) for name, space in held.items())


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
    with pytest.raises(MetricInputError, match=r"_proj\.weight: the update has 2 directions that .* expected 3; take"):
        spaces_of_update(base, after, 3)
    with pytest.raises(MetricInputError, match="no matrix of the layers changed"):
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
    with pytest.raises(MetricInputError, match="expected a few batches"):
        spaces_of_activations(load(base), [], 4)


def test_only_what_changed_has_a_space(base: Path) -> None:
    after = load(base)
    with torch.no_grad():
        after.get_parameter(Q).add_(torch.randn(24, 24, generator=torch.Generator().manual_seed(1)))
    assert set(spaces_of_update(base, after, 4)) == {Q}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_rounding_leaves_is_no_direction(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = load(base)
    moved(channel_adapter(model, random_spaces(model, 3), 3)).save_pretrained(tmp_path / "adapter")
    after: Any = tmp_path / "adapter"  # of rank 3, merged in float32
    if dtype == torch.bfloat16:
        after = PeftModel.from_pretrained(load(base), after).merge_and_unload().to(dtype)
    spaces = spaces_of_update(base, after, 3)
    assert spaces[Q].shape == (24, 3)
    with pytest.raises(MetricInputError, match=r"has 3 directions that are more than rounding, expected 4"):
        spaces_of_update(base, after, 4)


def test_a_start_in_bf16_does_not_hide_a_small_update() -> None:
    before, after = a_model().to(torch.bfloat16), a_model().to(torch.bfloat16).float()
    with torch.no_grad():
        for parameter in after.parameters():
            parameter += 1e-6 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    assert spaces_of_update(before, after, 8)[Q].shape == (24, 8)


def test_an_adapter_over_another_base_has_no_update(base: Path, tmp_path: Path) -> None:
    model = load(base)
    moved(channel_adapter(model, random_spaces(model, 3), 3)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointMismatchError, match="another base"):
        spaces_of_update(a_model(5), tmp_path / "adapter", 3)


def test_fewer_tokens_than_directions_are_refused(base: Path) -> None:
    model, ids = load(base), some_ids()
    for batch, found in (
        ({"input_ids": ids[:1, :3]}, 3),
        ({"input_ids": ids, "attention_mask": torch.zeros_like(ids)}, 0),
    ):
        with pytest.raises(MetricInputError, match=rf"reads {found} directions, expected 4; give more tokens"):
            spaces_of_activations(model, [batch], 4)
    assert spaces_of_activations(model, [{"input_ids": ids}], 24)[Q].shape == (24, 24)


@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_batch_is_refused(base: Path) -> None:
    model, ids = load(base), some_ids()
    wrong: Any
    for wrong, said in (
        ([ids], "a batch is a Tensor"),
        ({"input_ids": ids}, "a batch is a str"),
        ([{"input_ids": ids[:0]}], "a batch is empty: input_ids"),
        ([{"input_ids": ids, "attention_mask": torch.ones(3, 1, 9, 9)}], r"attention_mask of shape \(3, 1, 9, 9\)"),
    ):
        with pytest.raises(MetricInputError, match=said):
            spaces_of_activations(model, wrong, 4)
    with torch.no_grad():
        model.get_parameter(DOWN)[0, 0] = float("nan")
        model.get_parameter(DOWN.replace(".1.", ".0."))[0, 0] = float("nan")
    with pytest.raises(MetricInputError, match=r"layers\.1\..*: reads NaN or infinite values"):
        spaces_of_activations(model, [{"input_ids": ids}], 4)
    assert not any(layer._forward_pre_hooks for layer in model.modules())


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"ids": some_ids()}, r"batch of ids \(torch.int64\) .*expected what a tokenizer of this model returns"),
        ({}, "batch of nothing"),
        ({"input_ids": some_ids().tolist()}, r"batch of input_ids \(list\)"),
        ({"input_ids": some_ids().float()}, r"batch of input_ids \(torch.float32\)"),
        ({"input_ids": some_ids() + 10**6}, "index out of range"),
        ({"input_ids": some_ids(), "attention_mask": some_ids()[:1] * 0 + 1}, "attention_mask of shape"),
    ],
)
def test_a_batch_that_the_model_cannot_be_called_with_is_named(base: Path, batch: Any, said: str) -> None:
    with pytest.raises(MetricInputError, match=said):
        spaces_of_activations(load(base), [batch], 4)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("seed", [1.5, "a", None, 2**80])
def test_a_seed_is_a_whole_number(base: Path, seed: Any) -> None:
    with pytest.raises(MetricInputError, match=r"seed .*; expected a whole number"):
        random_spaces(load(base), 2, seed=seed)


def test_padding_is_left_out_where_tokens_stand_in_one_row() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(4, 2)})])

        def forward(self, read: Tensor, attention_mask: Tensor) -> None:
            layer: Any = self.layers[0]
            layer["up"](read.flatten(0, 1))

    read = torch.eye(4).repeat(2, 1, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0]])
    (space,) = spaces_of_activations(Flat(), [{"read": read, "attention_mask": mask}], 2).values()
    assert space.abs().tolist() == [[0, 1], [1, 0], [0, 0], [0, 0]]


def test_activations_are_read_without_dropout(base: Path) -> None:
    model = load(base, attention_dropout=0.5).train()
    model.model.norm.eval()
    first, second = (spaces_of_activations(model, [{"input_ids": some_ids()}], 4) for _ in range(2))
    assert all(torch.equal(first[name], space) for name, space in second.items())
    assert model.training
    assert model.model.layers[1].training
    assert not model.model.norm.training


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("rank", [0, -1, True, 2.0, "2"])
def test_a_rank_is_a_count(base: Path, rank: Any) -> None:
    model = load(base)
    for make in (
        lambda: channel_adapter(model, {Q: torch.eye(24)}, rank),
        lambda: random_spaces(model, rank),
        lambda: spaces_of_update(base, a_model(1), rank),
        lambda: spaces_of_activations(model, [{"input_ids": some_ids()}], rank),
    ):
        with pytest.raises(MetricInputError, match=rf"rank {rank!r}"):
            make()


@pytest.mark.usefixtures("without_type_checks")
def test_a_side_is_one_of_two(base: Path) -> None:
    wrong: Any = "Right"
    for make in (
        lambda: random_spaces(load(base), 2, side=wrong),
        lambda: spaces_of_update(base, a_model(1), 2, side=wrong),
        lambda: channel_adapter(load(base), {Q: torch.eye(24)}, 2, side=wrong),
    ):
        with pytest.raises(MetricInputError, match="side 'Right'"):
            make()


def test_a_model_without_linear_maps_has_no_spaces() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=24, n_layer=1, n_head=2))
    for make in (lambda: random_spaces(gpt2, 2), lambda: spaces_of_activations(gpt2, [{"input_ids": some_ids()}], 2)):
        with pytest.raises(MetricInputError, match="none of 1 linear maps of GPT2LMHeadModel"):
            make()


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
        (
            {DOWN: eye},
            2,
            "right",
            CheckpointMismatchError,
            r"shape \(24, 24\), expected a tensor \(36, k\) on the right",
        ),
        ({Q: 2 * eye}, 2, "right", MetricInputError, r"not orthonormal; take torch\.linalg\.qr"),
        ({Q: eye[:, :0]}, 2, "right", MetricInputError, "not orthonormal"),
        ({Q: float("nan") * eye}, 2, "right", MetricInputError, "not orthonormal"),
        ({}, 2, "right", MetricInputError, "no spaces"),
        ({Q: eye}, 0, "right", MetricInputError, "rank 0"),
    ):
        with pytest.raises(error, match=said):
            channel_adapter(model, spaces, rank, side=side)
    assert not any("lora" in name for name, _ in model.named_modules()), "nothing was changed"


@pytest.mark.usefixtures("without_type_checks")
def test_names_and_spaces_that_are_none_are_refused(base: Path) -> None:
    model, eye = load(base), torch.eye(24)
    wrong: Any
    for wrong, error, said in (
        ([eye], MetricInputError, "no spaces in"),
        ({Q: eye.numpy()}, CheckpointMismatchError, "a ndarray, expected a tensor"),
        ({Q: eye, Q.removesuffix(".weight"): eye}, CheckpointMismatchError, "two spaces under two names"),
        ({1: eye}, CheckpointMismatchError, "1 spaces belong to no linear map"),
        ({"model.embed_tokens": eye}, CheckpointMismatchError, r"belong to no linear map.*leave the spaces out"),
    ):
        with pytest.raises(error, match=said):
            channel_adapter(model, wrong, 2)


def test_a_weight_that_serves_twice_is_refused(base: Path) -> None:
    with pytest.raises(MetricInputError, match=r"lm_head: its weight serves another module too"):
        channel_adapter(load(base), {"lm_head": torch.eye(24)}, 2)
    twice = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    twice.append(twice[0])
    with pytest.raises(MetricInputError, match=r"0: its weight serves another module too"):
        channel_adapter(twice, {"0": torch.eye(4)}, 2)
    assert channel_adapter(twice, {"1": torch.eye(4)}, 2).peft_config["default"].r == 2


def test_a_model_with_an_adapter_is_refused(base: Path) -> None:
    adapted = channel_adapter(load(base), {Q: torch.eye(24)}, 2)
    for make in (
        lambda: channel_adapter(adapted, {K: torch.eye(24)[:, :2]}, 2),
        lambda: random_spaces(adapted, 2),
        lambda: spaces_of_activations(adapted, [{"input_ids": some_ids()}], 2),
    ):
        with pytest.raises(MetricInputError, match=r"the model has an adapter"):
            make()
    plain_again = adapted.unload()
    assert channel_adapter(plain_again, random_spaces(plain_again, 2), 2).peft_config["default"].r == 2


def test_a_peft_that_would_train_the_space_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(BaseTunerLayer, "frozen_peft_weight_names")
    with pytest.raises(MissingPackageError, match=r"peft>=0\.21'\. Found: peft \d"):
        channel_adapter(load(base), {Q: torch.eye(24)}, 2)


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
