"""The monitor in trainers of others: TRL's SFT, GRPO and distillation, a LoRA under one of them, shards of FSDP 2."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opdgeom_utils import GeometryCallback

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
ROOT = Path(__file__).resolve().parents[2]


def settings(kind: Any, folder: Path, **more: Any) -> Any:
    return kind(
        output_dir=str(folder), max_steps=4, logging_steps=2, report_to=[], use_cpu=True, save_strategy="no",
        bf16=False, learning_rate=1e-3, per_device_train_batch_size=2, disable_tqdm=True, gradient_checkpointing=False,
        **more,
    )  # fmt: skip


def made(kind: str, models: Path, folder: Path, **more: Any) -> Any:
    """A trainer of TRL over the tiny models."""
    student = AutoModelForCausalLM.from_pretrained(models / "anchor", dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(models / "anchor")
    prompts = datasets.Dataset.from_dict({"prompt": ["1 + 2 =", "3 + 4 =", "5 + 1 =", "2 + 2 ="] * 2})
    texts = datasets.Dataset.from_dict({"text": ["1 + 2 = 3", "3 + 4 = 7", "5 + 1 = 6", "2 + 2 = 4"] * 2})
    if kind == "sft":
        args = settings(trl.SFTConfig, folder, max_length=16)
        return trl.SFTTrainer(student, args, train_dataset=texts, processing_class=words, **more)
    if kind == "grpo":
        args = settings(trl.GRPOConfig, folder, num_generations=2, max_completion_length=4)

        def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            return [float(sum(ids) % 7) for ids in completion_ids]

        return trl.GRPOTrainer(student, reward, args, train_dataset=prompts, processing_class=words, **more)
    args = settings(trl.DistillationConfig, folder, max_completion_length=4)
    teacher = AutoModelForCausalLM.from_pretrained(models / "teacher", dtype=torch.float32)
    return trl.DistillationTrainer(student, teacher, args, train_dataset=prompts, processing_class=words, **more)


@pytest.mark.parametrize("kind", ["sft", "grpo", "distillation"])
def test_trl_logs_the_numbers_and_trains_as_without(kind: str, tiny_models: Path, tmp_path: Path) -> None:
    alone = made(kind, tiny_models, tmp_path / "alone")
    alone.train()
    watched = made(kind, tiny_models, tmp_path / "watched")  # making a trainer sets the seed
    watched.add_callback(GeometryCallback(watched, every=2, k=4, matrices="all"))
    watched.train()
    logged = [entry for entry in watched.state.log_history if "geometry/walk_ratio" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]
    assert all("loss" in entry for entry in logged), "in the trainer's own entry"
    assert {"geometry/visible_share_noise", "geometry/step_inside_left_random"} <= set(logged[-1])
    for a, b in zip(alone.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    table = pd.read_parquet(tmp_path / "watched" / "geometry.parquet")
    assert sorted(set(table["step"])) == [2, 4]
    assert (table[table["step"] == 4]["update_norm"] > 0).all()


def test_trl_with_a_lora(tiny_models: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    trainer = made("sft", tiny_models, tmp_path, peft_config=peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    trainer.add_callback(GeometryCallback(trainer, every=2, k=2))
    trainer.train()
    table = pd.read_parquet(tmp_path / "geometry.parquet")
    assert set(table["module"]) == {"q_proj", "v_proj"}
    assert (table["stable_rank"] <= 2).all()


def test_shards_of_two_processes_give_the_numbers_of_the_whole(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("watch_shards.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(rank), str(port), str(tmp_path)],
            stderr=subprocess.PIPE, env={**__import__("os").environ, "PYTHONPATH": str(ROOT)},
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()[-2000:]
    sharded, whole = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("sharded", "whole"))
    assert len(sharded) == 2 * 2
    pd.testing.assert_frame_equal(sharded, whole, rtol=1e-3)
