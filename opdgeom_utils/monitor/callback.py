"""The monitor as a callback: transformers' Trainer, and every trainer of TRL, which are built on it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from opdgeom_utils.monitor.watch import GeometryMonitor

FILE = "geometry.parquet"


class GeometryCallback(TrainerCallback):
    """Watch a Trainer's run: ``trainer.add_callback(GeometryCallback(trainer))``.

    Parameters
    ----------
    trainer : transformers.Trainer
        The trainer itself, since only it can add to its log. TRL's trainers average what is in their ``_metrics`` at
        the next log; transformers' own gets an entry at the measured step.
    out : path, optional
        The parquet file; without it ``geometry.parquet`` in the trainer's output folder.
    **options
        As for :class:`GeometryMonitor`: ``every``, ``matrices``, ``reference``, ``k``, ``activations``, ``alert``.

    Attributes
    ----------
    monitor : GeometryMonitor or None
        From the beginning of training on.

    Notes
    -----
    A run that goes on from a checkpoint is watched from there: rates and weights before it are not known. Its steps
    keep their numbers, and its rows go into a file of their own (``geometry-from-50.parquet``).

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> GeometryCallback(SimpleNamespace(), every=10, matrices="all").monitor is None
    True
    """

    def __init__(self, trainer: Any, *, out: str | Path | None = None, **options: Any) -> None:
        self.trainer, self.out, self.options = trainer, out, options
        self.monitor: GeometryMonitor | None = None
        self._waiting: list[Mapping[str, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach the monitor to what the trainer has prepared."""
        self.on_train_end(args, state, control)
        out = Path(args.output_dir or ".") / FILE if self.out is None else Path(self.out)
        if state.global_step:
            out = out.with_name(f"{out.stem}-from-{state.global_step}{out.suffix}")
            warnings.warn(
                f"training goes on from step {state.global_step}: the update is measured from there.", stacklevel=2
            )
        self.monitor = GeometryMonitor(
            kwargs["model"],
            kwargs["optimizer"],
            out=out,
            first_step=state.global_step,
            on_measured=lambda _, numbers: self._waiting.append(numbers),
            **self.options,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hand on what was measured, before the trainer's own log of this step."""
        for numbers in self._waiting:
            kept = getattr(self.trainer, "_metrics", None)
            if kept is not None and "train" in kept:
                for name, value in numbers.items():
                    kept["train"][name].append(value)
            else:
                due = control.should_log  # logging takes this flag down, and the loss would not be logged
                self.trainer.log(dict(numbers))
                control.should_log = due
        self._waiting.clear()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the hooks off and write the table."""
        if self.monitor is not None:
            self.monitor.close()
