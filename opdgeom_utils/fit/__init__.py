"""Will they fit? What a student and a teacher have in common, and what their training takes, before it is started.

Only configurations and tokenizers are read. No weights are loaded, and nothing is downloaded but small files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.fit import findings as _look
from opdgeom_utils.fit import token_findings as _tokens
from opdgeom_utils.fit.findings import Finding
from opdgeom_utils.fit.memory import CARD_GB, CHUNKED, FULL, GB, Setting, memory_parts, peak, smaller
from opdgeom_utils.fit.sides import Side, open_side

__all__ = ["Finding", "Fit", "Setting", "Side", "check_fit"]


@dataclass(frozen=True)
class Fit:
    """Whether a student can be distilled from a teacher, and what has to be changed first.

    ``findings``: everything that was looked at, what stops first.
    ``memory``: bytes of each part; see :mod:`opdgeom_utils.fit.memory`.
    ``peak``: bytes at the fullest moment.
    """

    student: Side
    teacher: Side
    setting: Setting
    findings: tuple[Finding, ...]
    memory: Mapping[str, int]
    peak: int

    @property
    def fits(self) -> bool:
        """Whether nothing stops the training."""
        return not any(finding.level == "stop" for finding in self.findings)

    def text(self) -> str:
        """Return all of it as lines to be read in a terminal."""
        lines = [f"{role}  {side.name}: {side.n_parameters:,} parameters, {len(side.tokens):,} tokens"
                 for role, side in (("student", self.student), ("teacher", self.teacher))]  # fmt: skip
        for finding in self.findings:
            lines.append(f"{finding.level:<8} {finding.topic}: {finding.found}.")
            lines += [f"         -> {finding.advice}."] if finding.advice else []
        unused = CHUNKED if self.setting.full_logits else FULL
        lines.append("memory in GB (10^9 bytes)")
        lines += [f"{size / GB:8.2f} {part}{' (not so set)' * (part == unused)}" for part, size in self.memory.items()]
        lines.append(f"{self.peak / GB:8.2f} at the fullest moment: a rollout and the learning after it take turns")
        topics = {level: [f.topic for f in self.findings if f.level == level] for level in ("stop", "change")}
        change = f"change first: {', '.join(topics['change'])}" if topics["change"] else "nothing has to be changed"
        lines.append(f"they fit; {change}." if self.fits else f"they do not fit: {', '.join(topics['stop'])}.")
        return "\n".join(lines)


def check_fit(
    student: str | Path, teacher: str | Path, *, gpu_gb: float | int | None = None, setting: Setting | None = None
) -> Fit:
    """Look at a student and a teacher before a distillation, in seconds and without their weights.

    Parameters
    ----------
    student, teacher : str or path
        Folders, shipped models (``anchor``) or hub ids (``name`` or ``name@revision``).
    gpu_gb : float, optional
        Memory of the card in GB as cards count them (2^30 bytes); without it memory is counted and not judged.
    setting : Setting, optional
        Lengths, batch, LoRA, and how the loss is taken; else 16 completions of up to 256 tokens, trained in full.

    Returns
    -------
    Fit
        What stops, what to change, what to know; bytes by part.

    Raises
    ------
    CheckpointNotFoundError, CheckpointDamagedError
        When a configuration or a tokenizer is missing or cannot be read.
    MetricInputError
        When the card's memory is not a positive number.

    Examples
    --------
    >>> fit = check_fit("anchor", "teacher", gpu_gb=4, setting=Setting(prompt_tokens=40, completion_tokens=40))
    >>> fit.fits, [finding.topic for finding in fit.findings if finding.level != "note"]
    (True, ['tokens', 'vocabulary', 'end tokens', 'chat template', 'thinking mode', 'lengths', 'teacher', 'memory'])
    """
    if gpu_gb is not None and not 0 < gpu_gb < math.inf:
        raise MetricInputError(f"the card's memory is {gpu_gb} GB, expected a positive number.")
    setting, ours, theirs = setting or Setting(), open_side(student), open_side(teacher)
    parts = memory_parts(ours, theirs, setting)
    needed = peak(parts, setting)
    found = [
        *_look.name_findings(student, teacher),
        _tokens.tokens_finding(ours, theirs),
        _tokens.rows_finding(ours, theirs),
        *_tokens.end_findings(ours, theirs),
        _look.template_finding(ours, theirs),
        _look.thinking_finding(ours, theirs, setting),
        _look.length_finding(ours, theirs, setting),
        _look.size_finding(ours, theirs),
        *([] if gpu_gb is None else [_memory_finding(ours, theirs, setting, needed, gpu_gb)]),
        *_look.notes(ours, theirs, setting),
    ]
    order = ("stop", "change", "note", "fine")
    ordered = tuple(sorted(found, key=lambda finding: order.index(finding.level)))
    return Fit(ours, theirs, setting, ordered, parts, needed)


def _memory_finding(student: Side, teacher: Side, setting: Setting, needed: int, gpu_gb: float | int) -> Finding:
    """Say whether it fits the card, and if not, what to change, least first."""
    found = f"{needed / CARD_GB:.1f} GB are needed at the fullest moment, the card has {gpu_gb:g} (of 2^30 bytes)"
    if needed <= gpu_gb * CARD_GB:
        return Finding("fine", "memory", found)
    for words, changed in smaller(setting):
        if peak(memory_parts(student, teacher, changed), changed) <= gpu_gb * CARD_GB:
            return Finding("stop", "memory", found, f"{words}{_teacher_instead(teacher, needed - gpu_gb * CARD_GB)}")
    advice = "no setting tried here is small enough: put the teacher on another card or a server, or take a smaller one"
    return Finding("stop", "memory", found, advice)


def _teacher_instead(teacher: Side, excess: float | int) -> str:
    """Say how small a teacher would do as well, if one would."""
    left = teacher.n_parameters - excess / 2
    return (
        f"; or keep this setting and take a teacher of at most {left / GB:.1f} billion parameters" if left > 1e8 else ""
    )
