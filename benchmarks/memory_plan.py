"""The memory plan beside what was measured: short runs of a large model, each in a process of its own.

A run is whole: models are loaded, the student is evaluated, trained for a few updates and stored, as
:func:`opdgeom_utils.runs.load_or_train` does it. Measured is the largest resident memory of the process, which Linux
counts. The model has the class and widths of SmolLM2-135M with random weights, fewer layers and tokens, so that
a run stays below 1.5 GB; ``--weights`` takes the model itself (about 10 GB). One token in 64 ends a completion.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
import yaml
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from opdgeom_utils import batches, profile_files, runs, training_plan
from opdgeom_utils.fit.memory import GB
from opdgeom_utils.gpu_check.shapes import made_tokenizer

OBJECTIVES = ("opd", "opd_full_vocab", "rlvr", "sft")
SMOLLM2: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
PROFILE = "smollm2-135m"


def peak_resident() -> int:
    """Largest resident memory that this process has had, in bytes."""
    rows = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows["VmHWM"].split()[0]) * 1024


def save_model(folder: Path, layers: int, tokens: int) -> None:
    """Save a model of SmolLM2's widths with random weights and a tokenizer of one token a character."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(**SMOLLM2, num_hidden_layers=layers, vocab_size=tokens, tie_word_embeddings=True, head_dim=64)
    )
    model.generation_config.eos_token_id = list(range(1, tokens, 64))
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)
    made_tokenizer(tokens).save_pretrained(folder)


def write_profile(folder: Path, updates: int, model: Path | None) -> None:
    """Write the committed profile with fewer updates; with one model in place of its own where one is given."""
    content = profile_files.read_profile(PROFILE)
    for recipe in content["recipes"].values():
        recipe |= {"steps": updates, "checkpoints": [updates // 2, updates]}
    if model:
        content["defaults"] |= {"eval_per_family": 2, "final_eval_per_family": 4}
        content["world"]["models"] = dict.fromkeys(("base", "anchor", "teacher"), str(model))
    else:
        content["world"]["models"] |= dict.fromkeys(("anchor", "teacher"), content["world"]["models"]["base"])
    (folder / f"{PROFILE}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def halves(learner: Any, problems: Any, rollouts: Any) -> Tensor:
    """Give half of each group a reward: random weights earn none, and RLVR computes nothing for equal rewards."""
    rewards = torch.zeros(rollouts.mask.shape[:2])
    rewards[:, ::2] = 1.0
    return rewards


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train one recipe in a folder of its own; what was planned and what was measured, in bytes."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    folder, name = Path(options.folder), options.objectives[0]
    plans, check = [], runs.check_memory

    def noted(*arguments: Any) -> Any:
        plans.append(check(*arguments))
        return plans[-1]

    content = yaml.safe_load((folder / f"{PROFILE}.yaml").read_text())
    content["defaults"]["gradient_checkpointing"] = options.checkpointing
    (folder / f"{PROFILE}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    imported = peak_resident()
    with (
        mock.patch.object(profile_files, "RECIPES", folder),
        mock.patch.object(training_plan, "LARGE", 1),
        mock.patch.object(runs, "check_memory", noted),
        mock.patch.object(batches, "reward_of", halves),
    ):
        runs.load_or_train(name, profile=PROFILE, device="cpu")
    (plan,) = plans
    return {"planned": plan.peak, "measured": peak_resident(), "imported": imported, "memory": plan.memory}


def main(arguments: list[str] | None = None) -> int:
    """Run every case; the exit code is 1 where a plan is below what was measured or above 1.25 times of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=("opd", "rlvr", "sft"))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=2048, help="entries of the vocabulary")
    parser.add_argument("--updates", type=int, default=4, help="updates of each run; two of them are stored")
    parser.add_argument("--weights", action="store_true", help="the real SmolLM2-135M: 10 GB of memory, an hour")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    if options.folder:
        print(json.dumps(measure(options)))
        return 0
    bad = 0
    print(f"{'':28}{'planned':>9}{'measured':>9}{'ratio':>7}   GB")
    for name in options.objectives:
        for checkpointing in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                model = None if options.weights else Path(folder) / "model"
                if model:
                    save_model(model, options.layers, options.tokens)
                write_profile(Path(folder), options.updates, model)
                command = [sys.executable, __file__, "--folder", folder, "--objectives", name]
                command += ["--checkpointing"] * checkpointing
                place = {**os.environ, "OPDGEOM_RUNS": f"{folder}/runs"}
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=place).stdout
            found = json.loads(said.splitlines()[-1])
            ratio = found["planned"] / found["measured"]
            bad += not 1 <= ratio <= 1.25
            label = name + ", checkpointing" * checkpointing
            print(f"{label:28}{found['planned'] / GB:9.2f}{found['measured'] / GB:9.2f}{ratio:7.2f}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
