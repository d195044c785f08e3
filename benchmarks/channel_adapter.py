"""Training inside a space beside plain LoRA and full training: one step at SmolLM2-135M shapes, turn by turn.

    python benchmarks/channel_adapter.py                  # rank 16, bf16 autocast, 4 x 128 tokens: two minutes
    python benchmarks/channel_adapter.py --rank 64 --fp32

All train the same random weights on the same tokens with AdamW, on one thread; after a step of one comes a step of each
other. Memory is counted and not sampled: weights, moments of AdamW, and the most bytes that the step's own tensors
(activations, gradients, logits) held at once. The loss has to fall on every side.
"""

from __future__ import annotations

import argparse
import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from opdgeom_utils.channel_adapter import channel_adapter
from opdgeom_utils.channel_spaces import random_spaces, spaces_of_activations, spaces_of_update

SMOLLM2 = LlamaConfig(
    vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, tie_word_embeddings=True,
)  # fmt: skip


class Held(TorchDispatchMode):
    """The most bytes that tensors made inside it held at once; what was there before does not count."""

    def __init__(self, there: set[int]) -> None:
        super().__init__()
        self.there, self.now, self.most = there, {}, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages that it made."""
        out = function(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.there and storage._cdata not in self.now:
                self.now[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.now.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.now.values()))
        return out


class Contender:
    """A model, what of it is trained, and its optimiser."""

    def __init__(self, wrap: Callable[[LlamaForCausalLM], nn.Module], ids: torch.Tensor, *, fp32: bool) -> None:
        torch.manual_seed(0)
        self.model: Any = wrap(LlamaForCausalLM(SMOLLM2)).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.trained, lr=1e-3)
        self.ids, self.fp32 = ids, fp32
        self.seconds: list[tuple[float, float]] = []
        self.losses: list[float] = []

    def step(self) -> None:
        """Take one step and time it."""
        cpu, wall = time.process_time(), time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=not self.fp32):
            loss = self.model(input_ids=self.ids, labels=self.ids).loss
        loss.backward()
        self.adam.step()
        self.adam.zero_grad()
        self.seconds.append((time.process_time() - cpu, time.perf_counter() - wall))
        self.losses.append(loss.item())

    def bytes(self) -> tuple[int, int, int]:
        """Weights, moments, and the peak of a further step, which is not timed."""
        moments = [m for state in self.adam.state.values() for m in state.values() if m.numel() > 1]
        kept = [*self.model.parameters(), *self.model.buffers(), *moments]
        with Held({tensor.untyped_storage()._cdata for tensor in kept}) as held:
            self.step()
        self.seconds.pop()
        return sum(p.nbytes for p in self.model.parameters()), sum(m.nbytes for m in moments), held.most


def main() -> None:
    """Take the steps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=6, help="timed steps of each, after one to warm up")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--fp32", action="store_true", help="no bf16 autocast")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rank = given.rank
    ids = torch.randint(
        0, SMOLLM2.vocab_size, (given.sequences, given.tokens), generator=torch.Generator().manual_seed(0)
    )
    plain = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    contenders = {
        name: Contender(wrap, ids, fp32=given.fp32)
        for name, wrap in {
            "full": lambda model: model,
            "LoRA": lambda model: get_peft_model(model, plain),
            "channel, right": lambda model: channel_adapter(model, random_spaces(model, rank), rank),
            "channel, left": lambda model: channel_adapter(
                model, random_spaces(model, rank, side="left"), rank, side="left"
            ),
        }.items()
    }
    for turn in range(given.rounds + 1):
        for contender in contenders.values():
            contender.step()
            if not turn:
                contender.seconds.clear()
    print(f"rank {rank}, {given.sequences} x {given.tokens} tokens, {'fp32' if given.fp32 else 'bf16 autocast'}, "
          f"{given.rounds} rounds, torch {torch.__version__}, one thread")  # fmt: skip
    print(f"{'':<16}{'trained M':>10}{'cpu s':>8}{'/full':>7}{'/LoRA':>7}{'wall s':>8}{'weights':>9}{'AdamW':>8}"
          f"{'step':>8}{'MB':>8}{'/full':>7}{'/LoRA':>7}  loss")  # fmt: skip
    medians = {n: [statistics.median(s) for s in zip(*c.seconds, strict=True)] for n, c in contenders.items()}
    memory = {name: contender.bytes() for name, contender in contenders.items()}
    for name, contender in contenders.items():
        (cpu, wall), parts = medians[name], memory[name]
        millions = sum(p.numel() for p in contender.trained) / 1e6
        times = "".join(f"{cpu / medians[other][0]:7.2f}" for other in ("full", "LoRA"))
        sizes = "".join(f"{sum(parts) / sum(memory[other]):7.2f}" for other in ("full", "LoRA"))
        w, moments, step = (part / 1e6 for part in parts)
        print(f"{name:<16}{millions:10.2f}{cpu:8.2f}{times}{wall:8.2f}{w:9.0f}{moments:8.0f}{step:8.0f}"
              f"{sum(parts) / 1e6:8.0f}{sizes}  {contender.losses[0]:.2f} to {contender.losses[-1]:.2f}")  # fmt: skip
        if contender.losses[-1] >= contender.losses[0]:
            raise SystemExit(f"{name}: the loss did not fall, so the times mean nothing")
    for name, make in {
        "an update": lambda m: spaces_of_update(LlamaForCausalLM(SMOLLM2), m, rank),
        "activations": lambda m: spaces_of_activations(m, [{"input_ids": ids}], rank),
        "random": lambda m: random_spaces(m, rank),
    }.items():
        began = time.process_time()
        make(contenders["full"].model)
        print(f"spaces of {name}: {time.process_time() - began:.1f} cpu s, once")


if __name__ == "__main__":
    main()
