"""The training step: one OPD and one RLVR update of ours beside TRL's, in one process, turn by turn.

Both sides get the same student, teacher, prompts, number of completions and of new tokens, AdamW settings, gradient
clip, fp32 and one thread. After each update of TRL's comes one of each of ours, so a busy machine slows all alike. Ours
does its logging too: the distances to teacher and anchor and the norm of the update. Run it with ``make bench``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from transformers import PreTrainedModel, TrainerCallback

from opdgeom_utils import batches, bf16_products, training
from opdgeom_utils.errors import CheckpointNotFoundError
from opdgeom_utils.learner import Learner
from opdgeom_utils.models import keep_freed_memory, load_model, load_tokenizer, resolve_model
from opdgeom_utils.precision import computing, prepare
from opdgeom_utils.recipes import Recipe, load_recipe
from opdgeom_utils.tasks import draw_examples, verify

LENGTH_TOLERANCE = 0.15
SEED = 0


class PhaseClock:
    """Processor seconds of named calls. A timed call inside another one counts for the outer one only."""

    def __init__(self, now: Callable[[], float] = time.process_time) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._now = now
        self._busy = False

    def timed(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap ``call`` so that its time is added to ``phase``."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            if self._busy:
                return call(*arguments, **options)
            self._busy, began = True, self._now()
            try:
                return call(*arguments, **options)
            finally:
                self._busy = False
                self.seconds[phase] += self._now() - began

        return wrapped

    @contextmanager
    def watching(self, learner: Learner) -> Iterator[None]:
        """Time the parts of our update while the block runs."""
        places = [
            (batches, "roll_out", "sampling"), (batches, "score", "teacher scoring"),
            (training, "token_scores", "forward"), (torch.Tensor, "backward", "backward"),
            (learner.optimizer, "step", "optimiser"), (training, "probe", "probe"),
            (learner, "update_norm", "update norm"), (torch.nn.utils, "clip_grad_norm_", "gradient clip"),
        ]  # fmt: skip
        with ExitStack() as stack:
            for owner, name, phase in places:
                stack.enter_context(mock.patch.object(owner, name, self.timed(phase, getattr(owner, name))))
            yield


def read_clocks() -> tuple[float, float]:
    """Processor seconds of this process, and seconds that passed."""
    return time.process_time(), time.perf_counter()


@dataclass
class Side:
    """What one side of the comparison did: seconds of every update and proof that it worked."""

    label: str
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    moved: float = 0.0

    def add(self, began: tuple[float, float], updates: int = 1) -> float:
        """Note the seconds of an update, when ``updates`` of them began at ``began``; return all processor seconds."""
        cpu, wall = (now - then for now, then in zip(read_clocks(), began, strict=True))
        self.cpu.append(cpu / updates)
        self.wall.append(wall / updates)
        return cpu

    def line(self, reference: Side) -> str:
        """Return one row of the printed table; ``reference`` is TRL's side."""
        cpu, wall = statistics.median(self.cpu), statistics.median(self.wall)
        ratios = [statistics.median(reference.cpu) / cpu, statistics.median(reference.wall) / wall]
        reward = f"{statistics.mean(self.rewards):8.2f}" if self.rewards else f"{'-':>8}"
        seconds = f"{cpu:8.3f}{ratios[0]:8.2f}{wall:10.3f}{ratios[1]:8.2f}"
        return f"  {self.label:<46}{seconds}{statistics.mean(self.lengths):9.1f}{reward}{self.moved:10.1e}"


HEADER = f"  {'':<46}{'cpu s':>8}{'TRL/it':>8}{'wall s':>10}{'TRL/it':>8}{'tokens':>9}{'reward':>8}{'|dW|/|W|':>10}"


def unfair(sides: list[Side]) -> list[str]:
    """Say why a comparison may not be believed; an empty list means that it may. The first side is TRL's."""
    problems = [f"{side.label}: the weights did not move" for side in sides if not side.moved > 0]
    expected = statistics.mean(sides[0].lengths)
    for side in sides[1:]:
        length = statistics.mean(side.lengths)
        if abs(length / expected - 1) > LENGTH_TOLERANCE:
            problems.append(f"{side.label}: {length:.1f} tokens a completion, TRL {expected:.1f}")
    return problems


@dataclass
class Ours:
    """One of our learners, timed update by update."""

    side: Side
    learner: Learner
    phases: PhaseClock = field(default_factory=PhaseClock)
    updates: int = 0
    seconds: float = 0.0

    def turn(self, keep: bool) -> None:
        """Do one round of rollouts and its updates; note the time of one update."""
        began = read_clocks()
        with (self.phases if keep else PhaseClock()).watching(self.learner), bf16_products.made_fast():
            with computing(self.learner.recipe.compute, self.learner.device):
                made = training.make_batches(self.learner)
            logs = [training.apply_update(self.learner, batch) for batch in made]
        if keep:
            self.seconds += self.side.add(began, len(logs))
            self.updates += len(logs)
            self.side.lengths += [log["completion_length"] for log in logs]
            self.side.rewards += [log["reward"] for log in logs]
        self.side.moved = relative_change(self.learner.student, self.learner.start_weights)

    def where_the_time_goes(self) -> str:
        """Return milliseconds an update (mean) and share of each part, largest first, from a thousandth on."""
        parts = {**self.phases.seconds, "everything else": self.seconds - sum(self.phases.seconds.values())}
        ordered = sorted(((part, name) for name, part in parts.items() if part > 1e-3 * self.seconds), reverse=True)
        each, total = self.updates / 1e3, self.seconds / 100
        return "\n".join(f"      {name:<18}{s / each:8.1f} ms{s / total:7.1f} %" for s, name in ordered)


def relative_change(model: PreTrainedModel, start: list[torch.Tensor]) -> float:
    """Frobenius norm of the cumulative update over that of the starting weights, all parameters together."""
    pairs = list(zip(model.parameters(), start, strict=True))
    moved = sum(float((p.detach() - s).double().square().sum()) for p, s in pairs)
    return (moved / sum(float(s.double().square().sum()) for s in start)) ** 0.5


class Turns(TrainerCallback):
    """Time TRL's updates, and let ours run between them, outside TRL's time."""

    def __init__(self, side: Side, ours: list[Ours], warm_up: int) -> None:
        self.side, self.ours, self.warm_up = side, ours, warm_up
        self.clocks = (0.0, 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """Stop TRL's clock, run ours, start TRL's clock again: its data loading and its log count."""
        if keep := state.global_step > self.warm_up:
            self.side.add(self.clocks)
        for mine in self.ours:
            mine.turn(keep)
        self.clocks = read_clocks()


def trl_settings(recipe: Recipe, rounds: int, folder: str) -> dict[str, Any]:
    """Return what both of TRL's configurations share: our recipe in TRL's words, and nothing that slows it down."""
    return {
        "output_dir": folder, "max_steps": rounds, "seed": SEED, "report_to": "none", "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "per_device_train_batch_size": recipe.prompts_per_update * recipe.group_size // recipe.micro_batches,
        "gradient_accumulation_steps": recipe.micro_batches, "shuffle_dataset": False,
        "max_completion_length": recipe.max_new_tokens, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
        "learning_rate": recipe.learning_rate, "lr_scheduler_type": "constant", "warmup_steps": 0,
        "optim": "adamw_torch_fused", "adam_beta1": recipe.betas[0], "adam_beta2": recipe.betas[1],
        "adam_epsilon": recipe.eps, "weight_decay": recipe.weight_decay, "max_grad_norm": recipe.grad_clip,
    }  # fmt: skip


def trl_trainer(recipe: Recipe, student: str, teacher: str, settings: dict[str, Any]) -> Any:
    """Make TRL's trainer for the objective of ``recipe``, fed with the very prompts that our updates draw."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

    size, steps = recipe.prompts_per_update, range(settings["max_steps"])
    prompts = [e.prompt for k in steps for e in draw_examples(recipe.mixture, size, seed=f"{SEED}:{k}")]
    tokenizer = load_tokenizer(student)
    shared = {"model": load_model(student), "processing_class": tokenizer}
    if recipe.objective == "opd":  # one completion a row: each prompt stands there as often as it is to be answered
        rows = Dataset.from_dict({"prompt": [p for p in prompts for _ in range(recipe.group_size)]})
        args = DistillationConfig(**settings, beta=1.0)
        trainer = DistillationTrainer(**shared, teacher_model=load_model(teacher), args=args, train_dataset=rows)
    else:

        def reward(prompts: list[str], completion_ids: list[list[int]], **unused: Any) -> list[float]:
            texts = ["".join(tokenizer.convert_ids_to_tokens(ids)) for ids in completion_ids]
            return [verify(p, t) for p, t in zip(prompts, texts, strict=True)]

        args = GRPOConfig(
            **settings, num_generations=recipe.group_size, beta=0.0, loss_type="dapo", scale_rewards="group",
            epsilon=recipe.clip_low, epsilon_high=recipe.clip_high,
        )  # fmt: skip
        rows = Dataset.from_dict({"prompt": prompts})
        trainer = GRPOTrainer(**shared, reward_funcs=reward, args=args, train_dataset=rows)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def our_variants(name: str, prompts: int = 16, micro_batches: int = 4) -> list[tuple[str, Recipe]]:
    """Return our sides of one objective: like TRL's update first, all in fp32, then the other ways to compute one."""
    batch = {"prompts_per_update": prompts, "micro_batches": micro_batches}
    single = dataclasses.replace(load_recipe(name, "first_regime"), updates_per_rollout=1, **batch)
    variants = [("ours, fp32", single), ("ours, products in bf16", dataclasses.replace(single, compute="bfloat16"))]
    if name == "opd":
        variants.append(("ours, fp32, full vocabulary", dataclasses.replace(single, estimator="full_vocab")))
    return variants


def learner_of(recipe: Recipe, student: str, teacher: str) -> Learner:
    """Return our side of a comparison, ready for its recipe's kind of compute."""
    own = prepare(load_model(student), recipe.compute)
    fixed = [prepare(load_model(name).eval(), recipe.compute, fixed=True) for name in (teacher, student)]
    return Learner(recipe, SEED, own, load_tokenizer(student), *fixed)


def compare(name: str, options: argparse.Namespace) -> list[str]:
    """Run one objective on all sides, print its table, return what makes the comparison unfair."""
    student, teacher = options.student, options.teacher
    variants = our_variants(name, options.prompts, options.micro_batches)
    ours = [Ours(Side(label), learner_of(recipe, student, teacher)) for label, recipe in variants]
    rounds = options.warm_up + options.rounds
    theirs = Side({"opd": "TRL DistillationTrainer", "rlvr": "TRL GRPOTrainer"}[name])
    with tempfile.TemporaryDirectory() as folder:
        settings = trl_settings(single := ours[0].learner.recipe, rounds, folder)
        trainer = trl_trainer(single, student, teacher, settings)
        trainer.add_callback(Turns(theirs, ours, options.warm_up))
        start = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        theirs.moved = relative_change(trainer.model, start)
    logged = [row for row in trainer.state.log_history if "completions/mean_length" in row][options.warm_up :]
    theirs.lengths = [row["completions/mean_length"] for row in logged]
    theirs.rewards = [row["reward"] for row in logged if "reward" in row]
    sides = [theirs, *(mine.side for mine in ours)]
    print(f"\n{name.upper()}, median of {options.rounds} updates", HEADER, *(s.line(theirs) for s in sides), sep="\n")
    for mine in (ours[0], ours[-1]):
        print(f"    where the time of an update goes, {mine.side.label}:\n{mine.where_the_time_goes()}")
    return unfair(sides)


def main(arguments: list[str] | None = None) -> int:
    """Compare OPD and RLVR; the exit code is 1 when a side did not do its share of the work, 2 without TRL."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="anchor", help="shipped model or folder")
    parser.add_argument("--teacher", default="teacher", help="shipped model or folder; the student where it is missing")
    parser.add_argument("--objectives", nargs="+", choices=("opd", "rlvr"), default=("opd", "rlvr"))
    parser.add_argument("--rounds", type=int, default=12, help="timed updates of each side")
    parser.add_argument("--warm-up", type=int, default=2, help="updates before them")
    parser.add_argument("--prompts", type=int, default=16, help="prompts of an update; the book's runs have 64")
    parser.add_argument("--micro-batches", type=int, default=4, help="parts of an update, on both sides; for 64: 8")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    import trl

    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        resolve_model(options.teacher)
    except CheckpointNotFoundError:
        print(f"no model {options.teacher!r}: the student is its own teacher (no gradient at the first update)")
        options.teacher = options.student
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (torch, transformers, trl))
    print(f"student {options.student}, teacher {options.teacher}, fp32, one thread; {versions}")
    problems = [line for name in options.objectives for line in compare(name, options)]
    print("\nTRL/it: TRL's time over this row's. TRL's OPD is over the full vocabulary, `ours` over sampled tokens.")
    for line in problems:
        print(f"not a fair comparison: {line}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
