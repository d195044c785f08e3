"""What watching costs: TRL's trainers on the shapes of SmolLM2-135M, with the monitor's own seconds and bytes apart.

The weights are random; the shapes are the true ones (134.5 M parameters). In each run of a trainer the time of the
monitor (its start, its hooks, its handing on, its file) is taken with the same clock as the run's, so their ratio does
not depend on how busy the machine is. Memory is counted: what the monitor holds at its fullest (references, early
spaces, sizes of weights, the lines kept over a step) and four float32 copies of its largest matrix to work with, over
the most that the process had allocated around an optimizer's step, which is less than the peak inside a backward pass.

    .venv/bin/python benchmarks/monitor.py                      # SFT and distillation, about 10 minutes on one core
    .venv/bin/python benchmarks/monitor.py --trainers sft --steps 20 --tokens 1024
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback

from opdgeom_utils.models import build_tokenizer
from opdgeom_utils.monitor import GeometryCallback, GeometryMonitor

EVERY = 10
LIMITS = {"sample": 0.01, "all": 0.03}


def smollm2(layers: int) -> LlamaForCausalLM:
    """Random weights that bf16 holds, in the shapes of SmolLM2-135M."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
        vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16).float()


def anonymous_bytes() -> int:
    """Memory that this process has allocated; mapped files are not in it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def held_bytes(monitor: GeometryMonitor) -> int:
    """Count what a monitor holds now, and what it needs to work with."""
    early = monitor._early.values()
    kept = [
        part for m in monitor.matrices for part in (m.reference, m.counted, *m.before) if isinstance(part, torch.Tensor)
    ]
    kept += [side for spaces in early for side in (spaces.left, spaces.right)]
    return sum(part.nbytes for part in kept) + 16 * max(m.parameters[0].numel() for m in monitor.matrices)


class Clock(TrainerCallback):
    """Seconds of the whole run and of the monitor; the peak of memory at the ends of backward passes and of steps."""

    def __init__(self) -> None:
        self.whole = self.watching = 0.0
        self.peak = self.held = 0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Add the processor seconds of a call to the monitor's, and look at what the monitor holds."""

        def wrapped(*given: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return call(*given, **named)
            finally:
                self.watching += time.process_time() - began
                if given and isinstance(given[0], GeometryMonitor):
                    self.held = max(self.held, held_bytes(given[0]))

        return wrapped

    def on_train_begin(self, *given: Any, **named: Any) -> None:
        """Start the run's clock."""
        self._began = time.process_time()

    def on_pre_optimizer_step(self, *given: Any, **named: Any) -> None:
        """Look at the memory."""
        self.peak = max(self.peak, anonymous_bytes())

    on_optimizer_step = on_pre_optimizer_step

    def on_train_end(self, *given: Any, **named: Any) -> None:
        """Stop it."""
        self.whole = time.process_time() - self._began


def trainer_of(kind: str, options: argparse.Namespace, model: LlamaForCausalLM, folder: str) -> Any:
    """Make a trainer of TRL; every step has ``--tokens`` tokens in eight sequences."""
    import trl
    from datasets import Dataset

    shared = {
        "output_dir": folder, "max_steps": options.steps, "report_to": "none", "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "learning_rate": 1e-5, "per_device_train_batch_size": 8,
    }  # fmt: skip
    words, length = build_tokenizer(), options.tokens // 8
    if kind == "sft":
        rows = Dataset.from_dict({"input_ids": torch.randint(3, 40, (64, length)).tolist()})
        args = trl.SFTConfig(**shared, max_length=length)
        return trl.SFTTrainer(model, args, train_dataset=rows, processing_class=words)
    rows = Dataset.from_dict({"prompt": ["1 + 2 ="] * 64})
    if kind == "grpo":
        args = trl.GRPOConfig(**shared, num_generations=8, max_completion_length=length)

        def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            return [float(sum(ids) % 7) for ids in completion_ids]

        return trl.GRPOTrainer(model, reward, args, train_dataset=rows, processing_class=words)
    args = trl.DistillationConfig(**shared, max_completion_length=length)
    return trl.DistillationTrainer(model, smollm2(options.layers), args, train_dataset=rows, processing_class=words)


def measure(kind: str, matrices: str, options: argparse.Namespace, start: str) -> tuple[float, float, float]:
    """Run a trainer under the monitor; return seconds of a step without it, and its share of time and of memory."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(kind, options, smollm2(options.layers), folder)
        clock = Clock()
        reference = start if matrices == "all" else None
        callback = GeometryCallback(trainer, every=options.every, matrices=matrices, reference=reference)
        # The optimizer's hooks are bound when the monitor is made, so they are timed in the class.
        hooks = {name: getattr(GeometryMonitor, name) for name in ("_before_step", "_after_step")}
        try:
            for name, hook in hooks.items():
                setattr(GeometryMonitor, name, clock.timed(hook))
            for name in ("on_train_begin", "on_step_end", "on_train_end"):
                setattr(callback, name, clock.timed(getattr(callback, name)))
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(clock)
            trainer.add_callback(callback)
            trainer.train()
        finally:
            for name, hook in hooks.items():
                setattr(GeometryMonitor, name, hook)
        assert callback.monitor is not None
        assert callback.monitor.latest, "nothing was measured; more --steps"
        step = (clock.whole - clock.watching) / options.steps
        measurement = clock.watching / (options.steps // options.every)
        return step, measurement / (EVERY * step + measurement), clock.held / clock.peak


def main() -> int:
    """Print a table; the exit status is 1 where a share is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ["sft", "grpo", "distillation"]
    parser.add_argument("--trainers", nargs="+", default=["sft", "distillation"], choices=kinds)
    parser.add_argument("--matrices", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=EVERY, help=f"steps; shares are still those of every {EVERY}th")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    over = False
    with tempfile.TemporaryDirectory() as start:
        smollm2(options.layers).to(torch.bfloat16).save_pretrained(start)
        print(f"{options.steps} steps of {options.tokens} tokens in 8 sequences, one thread; shares at every {EVERY}th")
        print(f"{'trainer':14s}{'matrices':>10s}{'cpu s/step':>12s}{'time':>8s}{'memory':>8s}{'limit':>8s}")
        for kind in options.trainers:
            for matrices, limit in ((name, LIMITS[name]) for name in options.matrices):
                seconds, of_time, of_memory = measure(kind, matrices, options, start)
                over |= max(of_time, of_memory) > limit
                print(f"{kind:14s}{matrices:>10s}{seconds:12.2f}{of_time:8.2%}{of_memory:8.2%}{limit:8.0%}", flush=True)
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
