"""The monitor against numbers computed without it: weights, adapters, alerts, and a run that it must not change."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D

from opdgeom_utils import GeometryCallback, GeometryMonitor, cli, metrics
from opdgeom_utils.errors import MonitorError
from opdgeom_utils.monitor.alerts import Alerts, to_trackio_or_warning
from opdgeom_utils.monitor.matrices import SIZES, some_lines
from opdgeom_utils.monitor.rates import RatesTaken
from opdgeom_utils.monitor.spaces import leading_spaces, share_inside, similarity, stable_rank_of_noise, walk_similarity
from opdgeom_utils.monitor.table import summary
from opdgeom_utils.report.watched import watched_numbers

WORDS = 64


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, tie_word_embeddings=True, **{**sizes, **changes})
    return LlamaForCausalLM(config).to(torch.bfloat16).float()  # as a checkpoint in bf16 is opened


class Adam8bit(torch.optim.Optimizer):
    """What torchao's tells of itself: a group without ``decoupled_weight_decay``, an attribute ``is_adamw``."""

    is_adamw = False

    def __init__(self, parameters: Any, lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": torch.tensor(lr), "betas": (0.9, 0.999), "weight_decay": weight_decay})


def train(model: nn.Module, updates: int, watch: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Train on random tokens, with or without a monitor, and return the monitor."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=options.pop("lr", 1e-3))
    monitor = watch(model, optimizer, **options) if watch else None
    torch.manual_seed(1)
    for _ in range(updates):
        tokens = torch.randint(WORDS, (2, 12))
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if monitor:
        monitor.close()
    return monitor


def test_weights_and_random_numbers_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    alone, watched = tiny_llama(), tiny_llama()
    train(alone, 6)
    after = torch.rand(1)
    train(watched, 6, GeometryMonitor, every=2, matrices="all", activations=True, k=4, out=tmp_path / "g.parquet")
    assert torch.equal(after, torch.rand(1))
    for a, b in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_each_row_is_what_the_metrics_say(tmp_path: Path) -> None:
    model = tiny_llama()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, 6, GeometryMonitor, every=3, matrices="all", k=4, out=tmp_path / "g.parquet")
    table = pd.read_parquet(tmp_path / "g.parquet")
    assert sorted(set(table["step"])) == [3, 6]
    assert len(table) == 2 * 3 * 7
    rates, options = [1e-3] * 6, {"weight_decay": 0.01}
    for row in table[table["step"] == 6].to_dict("records"):
        w_ref, w_new = before[row["name"]], model.get_parameter(row["name"]).detach()
        delta = w_new - w_ref
        assert row["update_norm"] == pytest.approx(float(delta.norm()), rel=1e-5)
        assert row["update_sparsity"] == metrics.update_sparsity(w_ref, w_new)
        assert row["walk_ratio"] == pytest.approx(metrics.walk_ratio(delta, rates, **options), rel=1e-5)
        assert row["coherence"] == pytest.approx(metrics.coherence(delta, rates, **options), abs=1e-5)
        noise = metrics.noise_sparsity(w_ref, metrics.noise_walk_rms(rates, **options))
        assert row["update_sparsity_noise"] == pytest.approx(noise, abs=1e-6)
        assert row["stable_rank"] == pytest.approx(metrics.stable_rank(delta), rel=0.02)
        assert row["step_inside_right_random"] == 4 / w_ref.shape[1]


def test_the_share_of_a_step_is_exact_where_its_lines_are_all_there(tmp_path: Path) -> None:
    model, kept = tiny_llama(), []
    name = "model.layers.1.self_attn.q_proj.weight"  # 32 x 32: all of it is kept over a step
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer.register_step_pre_hook(lambda *_: kept.append(model.get_parameter(name).detach().clone()))
    with GeometryMonitor(model, optimizer, every=2, matrices=[name], k=4, out=tmp_path / "g.parquet"):
        for step in range(4):
            tokens = torch.randint(WORDS, (2, 12), generator=torch.Generator().manual_seed(step))
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    last = pd.read_parquet(tmp_path / "g.parquet").iloc[-1]
    step, early = model.get_parameter(name).detach() - kept[3], kept[2] - kept[0]
    u, _, vh = torch.linalg.svd(early)
    inside_right = float((step @ vh[:4].T).square().sum() / step.square().sum())
    inside_left = float((u[:, :4].T @ step).square().sum() / step.square().sum())
    assert last["step_inside_right"] == pytest.approx(inside_right, abs=0.02)
    assert last["step_inside_left"] == pytest.approx(inside_left, abs=0.02)
    end = model.get_parameter(name).detach() - kept[0]
    assert last["similarity_right"] == pytest.approx(metrics.subspace_similarity(early, end, k=4), abs=0.05)
    assert last["similarity_left"] == pytest.approx(metrics.subspace_similarity(early.T, end.T, k=4), abs=0.05)


@pytest.mark.parametrize(("decay", "error", "apart"), [(1.0, 1e-3, 0.01), (0.5, 1e-3, 0.02), (0.3, 1e-3, 0.07)])
def test_sketched_spaces_are_as_near_as_stated(decay: float, error: float, apart: float) -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 192, generator=generator)).Q for n in (256, 192))
    sizes = torch.arange(1, 193) ** -decay
    found = leading_spaces(1e-6 * (u * sizes) @ v.T, k=16)
    assert found.stable_rank == pytest.approx(float((sizes / sizes[0]).square().sum()), rel=error)
    assert similarity(u[:, :16], found.left) > 1 - apart
    assert similarity(v[:, :16], found.right) > 1 - apart


@pytest.mark.parametrize("shape", [(200, 120), (120, 200)])
def test_a_matrix_of_few_directions_has_orthonormal_spaces(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    out, in_ = (torch.randn(n, 2, generator=generator) for n in shape)
    found = leading_spaces(1e-6 * out @ in_.T, k=16)
    for space, directions in ((found.left, out), (found.right, in_)):
        assert torch.allclose(space.T @ space, torch.eye(16), atol=1e-5)
        assert share_inside(directions.T, space) > 1 - 1e-4
    assert found.stable_rank == pytest.approx(metrics.stable_rank(out @ in_.T), rel=1e-4)


def test_spaces_of_a_small_matrix_are_not_approximate() -> None:
    noise = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(noise, full_matrices=False)
    found = leading_spaces(noise, k=16)
    assert similarity(u[:, :16], found.left) > 1 - 1e-5
    assert similarity(vh[:16].T, found.right) > 1 - 1e-5
    assert found.stable_rank == pytest.approx(metrics.stable_rank(noise), rel=1e-5)


def test_noise_has_the_stable_rank_that_is_stated() -> None:
    noise = torch.randn(768, 288, generator=torch.Generator().manual_seed(0))
    exact = metrics.stable_rank(noise)
    assert stable_rank_of_noise((768, 288)) == pytest.approx(exact, rel=0.03)
    assert exact <= leading_spaces(noise).stable_rank <= 1.05 * exact


@pytest.mark.parametrize("shape", [(1, 400), (400, 1), (2, 64), (8, 2048), (32, 32), (64, 96)])
def test_noise_in_a_matrix_of_few_rows_has_the_stable_rank_that_is_stated(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [metrics.stable_rank(torch.randn(*shape, generator=generator)) for _ in range(12)]
    assert stable_rank_of_noise(shape) == pytest.approx(sum(drawn) / 12, rel=0.06)


@pytest.mark.parametrize("kept", [0.3, 0.65, 0.9])
def test_the_random_walk_at_full_size_is_near_the_small_one(kept: float) -> None:
    early, later = torch.randn(2, 640, 320, generator=torch.Generator().manual_seed(3))
    now, then = leading_spaces(kept * early + math.sqrt(1 - kept**2) * later), leading_spaces(early)
    full = similarity(then.left, now.left), similarity(then.right, now.right)
    assert walk_similarity((640, 320), kept) == pytest.approx(full, abs=0.08)


def test_a_few_rows_tell_the_share_of_a_step() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(576, 16, generator=generator)).Q
    for strength in (0.0, 1.0, 4.0):
        step = torch.randn(1536, 576, generator=generator)
        step += strength * torch.randn(1536, 16, generator=generator) @ basis.T
        few = step[some_lines(1536, seed=0)]
        exact, found = share_inside(step, basis), share_inside(few, basis)
        assert found == pytest.approx(exact, rel=0.2)
    assert len(set(some_lines(1536, seed=1).tolist())) == 32
    assert sorted(some_lines(13, seed=1).tolist()) == list(range(13))


def test_the_walk_of_a_long_run_is_scaled_within_a_percent() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.1)
    rates, given = RatesTaken(optimizer), []
    for step in range(330):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 30)
        given.append(optimizer.param_groups[0]["lr"])
        rates.record()
        if step in (50, 130, 210, 290, 329):
            walk, ballistic = rates.distances(weight)
            assert walk == pytest.approx(metrics.noise_walk_rms(given, weight_decay=0.1), rel=0.01)
            assert ballistic == pytest.approx(sum(given))


def test_another_optimizer_has_no_walk_but_the_rest(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GeometryMonitor(model, optimizer, every=1, k=2) as monitor:
        for _ in range(2):
            model(torch.randn(4, 8)).square().sum().backward()
            optimizer.step()
    assert "geometry/walk_ratio" not in monitor.latest
    assert {"geometry/update_norm", "geometry/visible_share", "geometry/step_inside_left"} <= set(monitor.latest)


def named(name: str, **attributes: Any) -> Any:
    """An AdamW under the name, and with the attributes, of another library's optimizer."""
    return type(name, (torch.optim.AdamW,), attributes)


@pytest.mark.parametrize("kind", [torch.optim.Adamax, torch.optim.RAdam, named("GrokAdamW"), named("MuonWithAuxAdam")])
def test_a_relative_of_adam_with_steps_of_another_length_has_no_walk(kind: Any) -> None:
    layer = nn.Linear(8, 8)
    assert not RatesTaken(kind(layer.parameters())).is_adam


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit", "FusedAdam", "DeepSpeedCPUAdam"])
def test_adam_under_other_names_has_its_walk(name: str) -> None:
    layer = nn.Linear(8, 8)
    rates = RatesTaken(named(name)(layer.parameters(), lr=1e-3))
    rates.record()
    assert rates.distances(layer.weight)[1] == pytest.approx(1e-3)


def test_projected_gradients_have_no_walk() -> None:
    """GaLore's and APOLLO's AdamW: their groups have a rank. On noise GaLore's goes .06 times as far as Adam."""
    layer = nn.Linear(8, 8)
    rates = RatesTaken(torch.optim.AdamW([{"params": list(layer.parameters()), "rank": 2}], lr=1e-3))
    rates.record()
    assert all(map(math.isnan, rates.distances(layer.weight)))


@pytest.mark.parametrize(
    ("kind", "decay", "known"),
    [
        (torch.optim.Adam, 0.0, True),
        (torch.optim.Adam, 0.1, False),
        (torch.optim.AdamW, 0.1, True),
        (Adam8bit, 0.1, False),
        (Adam8bit, 0.0, True),
    ],
)
def test_decay_inside_the_gradient_has_no_walk(kind: Any, decay: float, known: bool) -> None:
    layer = nn.Linear(8, 8)
    rates = RatesTaken(kind(layer.parameters(), lr=1e-3, weight_decay=decay))
    rates.record()
    assert all(map(math.isfinite, rates.distances(layer.weight))) == known


def test_what_is_frozen_is_not_watched_though_the_optimizer_holds_it() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    with GeometryMonitor(model, optimizer, every=1, k=2, matrices="all") as monitor:
        for _ in range(3):
            model(torch.ones(1, 8)).sum().backward()  # a constant gradient, which Adam follows at its rate
            optimizer.step()
            optimizer.zero_grad()
    assert [m.name for m in monitor.matrices] == ["1.weight"]
    assert monitor.latest["geometry/coherence"] == pytest.approx(1.0, abs=0.01)


def test_a_reference_on_disk_is_used_and_another_start_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    model.bfloat16().save_pretrained(tmp_path / "start")
    model.float()
    copied = train(tiny_llama(), 4, GeometryMonitor, every=2, matrices="all", k=4)
    mapped = train(model, 4, GeometryMonitor, every=2, matrices="all", k=4, reference=str(tmp_path / "start"))
    assert mapped.latest == copied.latest
    with pytest.raises(MonitorError, match="expected the weights that training starts from"):
        train(model, 1, GeometryMonitor, reference=str(tmp_path / "start"))


def test_weights_that_bf16_cannot_hold_are_kept_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    with GeometryMonitor(model, optimizer, every=1, k=2) as monitor:
        model(torch.randn(4, 16)).sum().backward()
        optimizer.step()
    assert monitor.latest["geometry/update_norm"] == pytest.approx(16e-6, rel=0.01)


def test_lora_is_measured_as_the_merged_matrix(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, before = tiny_llama(), tiny_llama()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"]))
    monitor = train(adapted, 6, GeometryMonitor, every=3, matrices="all", k=2, out=tmp_path / "g.parquet", lr=1e-2)
    assert len(monitor.matrices) == 6
    merged = adapted.merge_and_unload()
    table = pd.read_parquet(tmp_path / "g.parquet")
    for row in table[table["step"] == 6].to_dict("records"):
        w_ref, w_new = (m.get_parameter(row["name"]).detach() for m in (before, merged))
        assert row["update_norm"] == pytest.approx(float((w_new - w_ref).norm()), rel=1e-4)
        assert row["update_sparsity"] == pytest.approx(metrics.update_sparsity(w_ref, w_new), abs=2e-3)
        assert row["stable_rank"] <= 4
        assert 0 < row["walk_ratio"] < 4


def a_lora_on_noise(seed: int, *, frozen: str | None, pissa: bool, plus: float = 1.0) -> dict[str, float]:
    """Train factors of a matrix whose gradient is white noise: that of A is 0 as long as B is, and grows with it."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    start = {"init_lora_weights": "pissa"} if pissa else {}
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["0"], **start)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(96, 64)), config)
    a, b = (getattr(model.get_submodule("0"), part)["default"].weight for part in ("lora_A", "lora_B"))
    groups = [{"params": [b], "lr": plus * 1e-3}] + ([] if frozen else [{"params": [a]}])
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0)
    with GeometryMonitor(model, optimizer, every=100, k=16) as monitor:
        for _ in range(300):
            noise = torch.randn(64, 96)
            a.grad, b.grad = b.detach().T @ noise, noise @ a.detach().T
            optimizer.step()
    return {name.removeprefix("geometry/"): value for name, value in monitor.latest.items()}


@pytest.mark.parametrize(
    ("frozen", "pissa", "plus"),
    [(None, False, 1.0), (None, False, 16.0), (None, True, 1.0), ("A", False, 1.0), ("A", True, 1.0)],
)
@pytest.mark.filterwarnings("ignore:the update is no longer")
def test_what_noise_does_to_a_lora(frozen: str | None, pissa: bool, plus: float) -> None:
    """The merged matrix moves as far as stated, and where: a mean over five runs. ``plus``: LoRA+, B is faster."""
    runs = pd.DataFrame([a_lora_on_noise(seed, frozen=frozen, pissa=pissa, plus=plus) for seed in range(5)])
    found = runs.mean()
    assert found["walk_ratio"] == pytest.approx(1, abs=0.05)  # 1.15 if noise in A were as strong from the beginning
    assert found["coherence"] == pytest.approx(0, abs=5e-4)
    assert found["update_norm"] == pytest.approx(found["update_norm_noise"], rel=0.1)
    assert found["visible_share"] == pytest.approx(found["visible_share_noise"], abs=0.03)
    assert found["stable_rank"] == pytest.approx(found["stable_rank_noise"], rel=0.25 if pissa else 0.1)  # a matrix: 19
    for side in ("left", "right"):
        assert found[f"similarity_{side}"] == pytest.approx(found[f"similarity_{side}_random_walk"], abs=0.06)
        assert found[f"step_inside_{side}"] == pytest.approx(found[f"step_inside_{side}_random"], abs=0.05)
    if frozen:  # all that B can do lies in the span of A's rows: noise too is inside
        assert found["similarity_right"] == pytest.approx(1, abs=1e-5)
        assert found["step_inside_right"] == pytest.approx(1, abs=1e-5)


OTHER_ADAPTERS = {
    "DoraLinearVariant": lambda peft: peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
    "loha": lambda peft: peft.LoHaConfig(r=2, target_modules=["q_proj"]),
    "lokr": lambda peft: peft.LoKrConfig(r=2, target_modules=["q_proj"]),
    "oft": lambda peft: peft.OFTConfig(oft_block_size=8, target_modules=["q_proj"]),
    "vera": lambda peft: peft.VeraConfig(r=2, target_modules=["q_proj"]),
    "ia3": lambda peft: peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    "adalora": lambda peft: peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10, tinit=1, tfinal=1),
    "ParamWrapper": lambda peft: peft.LoraConfig(r=2, target_modules=[], target_parameters=["q_proj.weight"]),
}


@pytest.mark.parametrize("kind", OTHER_ADAPTERS)
def test_factors_of_another_adapter_are_not_taken_for_matrices(kind: str) -> None:
    peft = pytest.importorskip("peft")
    with pytest.raises(MonitorError, match=rf"q_proj\.weight has an adapter of another kind \(.*{kind}"):
        train(peft.get_peft_model(tiny_llama(), OTHER_ADAPTERS[kind](peft)), 1, GeometryMonitor)


def test_kinds_without_such_an_adapter_can_be_watched_beside_it() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, modules_to_save=["down_proj"])
    monitor = train(peft.get_peft_model(tiny_llama(), config), 1, GeometryMonitor, matrices=["down_proj"])
    assert {m.name.split(".")[-2] for m in monitor.matrices} == {"down_proj"}


def test_a_bias_beside_a_lora_does_not_hide_it() -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(16, 8))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"], lora_bias=True))
    monitor = GeometryMonitor(adapted, torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad]))
    assert [m.shape for m in monitor.matrices] == [(8, 16)]


def test_a_word_in_the_place_of_a_list_is_refused() -> None:
    layers = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(MonitorError, match=r"expected 'sample', 'all', or a list of kinds and names: \['q_proj'\]"):
        GeometryMonitor(layers, torch.optim.AdamW(layers.parameters()), matrices="q_proj")


def test_flattened_matrices_are_refused() -> None:
    flat = nn.ParameterList([nn.Parameter(torch.zeros(64))])
    with pytest.raises(MonitorError, match="FSDP 2"):
        GeometryMonitor(flat, torch.optim.AdamW(flat.parameters()))


def test_a_layer_stored_as_in_out_is_turned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(Conv1D(24, 16))  # 16 inputs, 24 outputs
    before = layers[0].weight.detach().clone()
    optimizer = torch.optim.AdamW(layers.parameters(), lr=1e-3)
    with GeometryMonitor(layers, optimizer, every=2, k=2, out=tmp_path / "g.parquet"):
        for _ in range(4):
            layers(torch.randn(4, 16)).square().sum().backward()
            optimizer.step()
    last = pd.read_parquet(tmp_path / "g.parquet").iloc[-1]
    assert last["shape"] == "24x16"
    assert (last["step_inside_left_random"], last["step_inside_right_random"]) == (2 / 24, 2 / 16)
    assert last["update_norm"] == pytest.approx(float((layers[0].weight.detach() - before).norm()), rel=1e-5)


def test_a_few_weights_tell_what_noise_would_show() -> None:
    w = 0.02 * torch.randn(1536, 576, generator=torch.Generator().manual_seed(0)).bfloat16()
    for rms in (1e-6, 1e-5, 1e-4):
        few = metrics.noise_sparsity(w[:: math.ceil(w.numel() / SIZES)], rms)
        assert few == pytest.approx(metrics.noise_sparsity(w, rms), abs=0.003)


class Lines(torch.utils.data.Dataset):
    """Eight random lines of twelve tokens."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(WORDS, (12,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": tokens, "labels": tokens}


def test_transformers_trainer_logs_numbers_and_its_own_loss(tmp_path: Path) -> None:
    settings = TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=2, logging_steps=2, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, learning_rate=1e-3,
    )  # fmt: skip
    trainer = Trainer(tiny_llama(), settings, train_dataset=Lines())
    trainer.add_callback(GeometryCallback(trainer, every=2, k=4))
    trainer.train()
    history = trainer.state.log_history
    assert [entry["step"] for entry in history if "geometry/walk_ratio" in entry] == [2, 4]
    assert [entry["step"] for entry in history if "loss" in entry] == [2, 4]
    table = pd.read_parquet(tmp_path / "geometry.parquet")
    assert list(table["learning_rate"].unique()) == [7.5e-4, 2.5e-4]  # taken at steps 2 and 4 of a linear schedule
    assert len(table) == 2 * 7


def test_a_run_that_goes_on_keeps_the_table_from_before(tmp_path: Path) -> None:
    tokens = torch.randint(WORDS, (16, 8), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    for steps, resume in ((4, None), (8, True)):
        options = TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, save_steps=4, per_device_train_batch_size=2, report_to=[],
            use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(tiny_llama(), options, train_dataset=rows)
        trainer.add_callback(GeometryCallback(trainer, every=2, k=2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.train(resume_from_checkpoint=resume)
    steps_in = {path.name: sorted(set(pd.read_parquet(path)["step"])) for path in tmp_path.glob("*.parquet")}
    assert steps_in == {"geometry.parquet": [2, 4], "geometry-from-4.parquet": [6, 8]}


def test_the_rules_of_the_alerts() -> None:
    said: list[str] = []
    alerts = Alerts(lambda title, text: said.append(title))
    quiet = {"geometry/walk_ratio": 1.05}
    alerts.look(99, 99, quiet, [])
    assert said == []
    alerts.look(100, 100, quiet, [])
    alerts.look(110, 110, quiet, [])
    assert said == ["the update is no longer than noise would make it"]

    def inside(times: float) -> dict[str, float]:
        sides = {f"geometry/step_inside_{side}{null}": 0.1 for side in ("left", "right") for null in ("", "_random")}
        return {**sides, "geometry/step_inside_left": 0.1 * times, "geometry/step_inside_right": 0.1}

    for times in (1.0, 1.0, 1.0, 1.0, 3.0, 1.0, 1.0):
        alerts.look(0, 0, inside(times), [])
    assert said[1:] == []
    alerts.look(0, 0, inside(1.0), [])
    assert said[1:] == ["the channel is being left"]


def test_bf16_weights_that_swallow_their_steps_are_named() -> None:
    said: list[str] = []
    model = tiny_llama().bfloat16()
    train(model, 4, GeometryMonitor, every=2, k=4, alert=lambda title, text: said.append(title), lr=1e-6)
    assert said == ["bf16 is swallowing the update"]
    said.clear()
    train(tiny_llama(), 4, GeometryMonitor, every=2, k=4, alert=lambda title, text: said.append(title), lr=1e-6)
    assert said == []


def test_alerts_go_to_trackio_where_it_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    trackio = SimpleNamespace(alert=lambda **words: sent.append(words), AlertLevel=SimpleNamespace(WARN="warn"))
    monkeypatch.setitem(__import__("sys").modules, "trackio", trackio)
    to_trackio_or_warning("a title", "a text")
    assert sent == [{"title": "a title", "text": "a text", "level": "warn"}]
    monkeypatch.delitem(__import__("sys").modules, "trackio")
    with pytest.warns(UserWarning, match="a title: a text"):
        to_trackio_or_warning("a title", "a text")


def test_a_diverged_run_goes_on_and_is_told() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with GeometryMonitor(model, optimizer, every=1, k=2) as monitor, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model[0].weight.grad = torch.full((8, 8), math.nan)
        optimizer.step()
    assert any("NaN or infinite" in str(w.message) for w in caught)
    assert "geometry/stable_rank" not in monitor.latest


def test_the_report_of_a_watched_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "geometry.parquet"
    monitor = train(tiny_llama(), 6, GeometryMonitor, every=2, k=4, out=table)
    assert cli.main(["report", str(table)]) == 0
    page = (tmp_path / "geometry.html").read_text()
    assert f"{monitor.latest['geometry/walk_ratio']:.2f} times as far" in page
    assert "similarity to early space, left" in page
    numbers = watched_numbers(table)
    assert list(numbers["step"]) == [2, 4, 6]
    assert numbers["coherence"].iloc[-1] == pytest.approx(monitor.latest["geometry/coherence"])
    pd.DataFrame({"step": [1]}).to_parquet(tmp_path / "other.parquet")
    assert cli.main(["report", str(tmp_path / "other.parquet")]) == 1
    assert "expected the table that a" in capsys.readouterr().err


def white(
    optimizer_of: Callable[..., torch.optim.Optimizer],
    *,
    strength: float = 1.0,
    before: int = 0,
    updates: int = 100,
    idle: Callable[[int], bool] = lambda step: False,
    dead: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, float]:
    """Drive a matrix by white noise, beside one that always has a gradient, and return what the monitor says of it."""
    torch.manual_seed(0)
    pair = nn.ModuleList([nn.Linear(48, 64, bias=False), nn.Linear(2, 2, bias=False)]).to(dtype)
    w, other = pair[0].weight, pair[1].weight
    optimizer = optimizer_of(pair.parameters())

    def step(idle: bool) -> None:
        w.grad, other.grad = None if idle else strength * torch.randn_like(w), torch.ones_like(other)
        if w.grad is not None:
            w.grad[:dead] = 0.0
        optimizer.step()

    for _ in range(before):
        step(False)
    with GeometryMonitor(pair, optimizer, every=10, matrices=["0.weight"], k=4) as monitor:
        for update in range(updates):
            step(idle(update))
    return {name.removeprefix("geometry/"): value for name, value in monitor.latest.items()}


def adamw(**options: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, **{"lr": 1e-3, "weight_decay": 0.0, **options})


@pytest.mark.filterwarnings("ignore:the update is no longer")
@pytest.mark.parametrize(
    ("options", "run"),
    [
        ({}, {"before": 500, "updates": 10}),  # Adam's moments are warm: 0.5 if they were taken for new
        ({}, {"before": 2000, "updates": 100}),
        ({}, {"idle": lambda step: step % 4 > 0}),  # an expert that one batch in four visits: 0.5
        ({}, {"idle": lambda step: step < 70}),  # unfrozen late
        ({"eps": 1e-5}, {"strength": 1e-5}),  # epsilon as large as the gradients: 0.5
        ({}, {"dead": 48}),  # rows of words that never come: 0.5
        ({"maximize": True, "fused": True}, {}),
        ({"lr": torch.tensor(1e-3), "foreach": False}, {}),
    ],
)
def test_noise_has_its_walk_however_adam_is_used(options: dict[str, Any], run: dict[str, Any]) -> None:
    found = white(adamw(**options), **run)
    assert found["walk_ratio"] == pytest.approx(1, abs=0.04)
    assert found["update_norm"] == pytest.approx(found["update_norm_noise"], rel=0.04)
    assert found["coherence"] == pytest.approx(0, abs=4e-3)


def rounding_at_random(parameters: Any) -> torch.optim.Optimizer:
    """As torchao's tell of themselves."""
    optimizer = adamw()(parameters)
    optimizer.bf16_stochastic_round = True  # pyright: ignore[reportAttributeAccessIssue]
    return optimizer


def uncorrected(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": list(parameters), "bias_correction": False}], lr=1e-3)


@pytest.mark.parametrize(
    "optimizer_of",
    [adamw(amsgrad=True), lambda p: torch.optim.NAdam(p, lr=1e-3), rounding_at_random, uncorrected],
)
def test_where_no_schedule_tells_the_length_of_a_step_there_is_no_walk(optimizer_of: Any) -> None:
    found = white(optimizer_of, updates=20)
    assert not {"walk_ratio", "coherence", "update_norm_noise", "visible_share_noise"} & set(found)
    assert {"update_norm", "stable_rank", "stable_rank_noise"} <= set(found)


def test_weight_decay_that_takes_steps_back_is_in_the_walk_between_two_computations() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    rates = RatesTaken(torch.optim.AdamW([weight], lr=1e-2, weight_decay=1.0))
    for step in range(1, 371):
        rates.record()
        if step in (300, 370):
            expected = metrics.noise_walk_rms([1e-2] * step, weight_decay=1.0)
            assert rates.distances(weight)[0] == pytest.approx(expected, rel=0.01)


def test_a_null_is_of_the_matrices_that_its_number_is_of() -> None:
    """GaLore beside Adam, and an expert that had no gradient in the measured step."""
    walks = {"entries": 4, "update_norm": 2.0, "rms": 1.0, "walk": 0.5, "ballistic": 2.0, "update_norm_noise": 1.0}
    inside = {"step_inside_left": 0.3, "step_inside_left_random": 0.1}
    projected = {**walks, "rms": 9.0, "walk": math.nan, "ballistic": math.nan, "update_norm_noise": math.nan, **inside}
    idle = {**walks, "step_inside_left": math.nan, "step_inside_left_random": 0.9}
    found = summary([walks | inside, projected, idle])
    assert found["geometry/walk_ratio"] == 2.0
    assert found["geometry/step_inside_left_random"] == pytest.approx(0.1)
    assert "geometry/update_norm_noise" not in found


def test_a_matrix_that_is_frozen_on_the_way_stays_where_it_is() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    with GeometryMonitor(model, optimizer, every=2, k=2, matrices=["0.weight"]) as monitor:
        for step in range(6):
            model[0].requires_grad_(step < 2)
            model(torch.ones(1, 8)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert monitor.latest["geometry/coherence"] == pytest.approx(1.0, abs=0.01)  # of the two steps that it had
    assert "geometry/step_changed" not in monitor.latest


def test_what_comes_into_the_optimizer_later_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = torch.optim.AdamW(model[0].parameters())
    with GeometryMonitor(model, optimizer, every=1, k=2):
        optimizer.add_param_group({"params": list(model[1].parameters())})
        model(torch.ones(1, 8)).sum().backward()
        with pytest.warns(UserWarning, match="more parameters after the monitor was made"):
            optimizer.step()


@pytest.mark.parametrize("how", ["loaded", "dtype"])
def test_a_model_that_changes_before_the_first_step_is_measured_from_there(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    with GeometryMonitor(model, optimizer, every=1, k=2) as monitor:
        if how == "dtype":
            model.bfloat16()
        else:
            model.load_state_dict({"0.weight": torch.ones(8, 8)})
        start = model[0].weight.detach().float().clone()
        model[0].weight.grad = torch.ones_like(model[0].weight)
        with pytest.warns(UserWarning, match="the update is measured from the first step"):
            optimizer.step()
    moved = model[0].weight.detach().float() - start
    assert monitor.latest["geometry/update_norm"] == pytest.approx(float(moved.norm()), rel=1e-5)


def test_a_reference_of_more_digits_than_the_model_has_adds_no_update(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=WORDS, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)  # float32
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    with GeometryMonitor(model, optimizer, every=1, k=2, reference=str(tmp_path)) as monitor:
        model(input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()
        optimizer.step()
    assert monitor.latest["geometry/update_norm"] == 0.0


def test_a_step_at_rate_zero_swallows_nothing() -> None:
    said: list[str] = []
    train(tiny_llama().bfloat16(), 4, GeometryMonitor, every=2, k=4, alert=lambda title, text: said.append(title), lr=0)
    assert said == []


def test_a_run_shorter_than_every_is_told() -> None:
    with pytest.warns(UserWarning, match="nothing was measured: 3 steps of the optimizer were seen, and every is 10"):
        train(tiny_llama(), 3, GeometryMonitor, k=4)


def test_bf16_factors_of_a_lora_that_swallow_their_steps_are_named() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=8, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(tiny_llama().bfloat16(), config, autocast_adapter_dtype=False)
    said: list[str] = []
    train(adapted, 4, GeometryMonitor, every=2, k=4, alert=lambda title, text: said.append(title), lr=1e-6)
    assert said == ["bf16 is swallowing the update"]


def test_inputs_are_no_null_for_a_lora_whose_steps_are_not_made_of_them_alone() -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    monitor = train(adapted, 6, GeometryMonitor, every=2, k=2, activations=True)
    assert "geometry/step_inside_right" in monitor.latest
    assert "geometry/step_inside_right_activations" not in monitor.latest


def test_two_adapters_of_one_matrix_at_once() -> None:
    """Both trained: refused. One frozen: what it adds is a part of the matrix that the other one changes."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
    adapted = peft.get_peft_model(nn.Sequential(nn.Linear(96, 64)), config, adapter_name="one")
    adapted.add_adapter("two", config)
    adapted.base_model.set_adapter(["one", "two"])
    both = [p for p in adapted.parameters() if p.requires_grad]
    with pytest.raises(MonitorError, match=r"0\.weight has 2 adapters that are trained at once"):
        GeometryMonitor(adapted, torch.optim.AdamW(both))
    layer = adapted.get_submodule("base_model.model.0")
    own = [layer.lora_A["two"].weight, layer.lora_B["two"].weight]
    for p in set(both) - set(own):
        p.requires_grad_(False)

    def merged() -> torch.Tensor:
        return layer.base_layer.weight.detach() + layer.get_delta_weight("one") + layer.get_delta_weight("two")

    before, optimizer = merged().detach(), torch.optim.AdamW(own, lr=1e-4)
    with GeometryMonitor(adapted, optimizer, every=1, k=2) as monitor:
        adapted(torch.randn(8, 96)).square().sum().backward()
        optimizer.step()
    sparsity = metrics.update_sparsity(before, merged().detach())
    assert monitor.latest["geometry/visible_share"] == pytest.approx(1 - sparsity, abs=2e-3)


def test_the_page_of_a_run_without_a_walk_says_so(tmp_path: Path) -> None:
    layers, table = nn.Sequential(nn.Linear(8, 8)), tmp_path / "g.parquet"
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    with GeometryMonitor(layers, optimizer, every=1, k=2, out=table):
        layers(torch.ones(1, 8)).sum().backward()
        optimizer.step()
    assert cli.main(["report", str(table)]) == 0
    page = (tmp_path / "g.html").read_text()
    assert "nan times" not in page
    assert "How far noise would go by step 1 is not known" in page


def test_a_table_that_is_not_there_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(MonitorError, match=r"there is no file .*geometry\.parquet; expected the table that a Geometry"):
        watched_numbers(tmp_path / "geometry.parquet")
