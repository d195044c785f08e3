"""One prompt, one group of completions, three credits: what each objective says about the same tokens.

Nothing here trains; the student writes, the verifier and the teacher judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from opdgeom_utils import objectives
from opdgeom_utils.errors import RecipeError
from opdgeom_utils.models import PAD
from opdgeom_utils.rollouts import Rollouts, decode_completions, roll_out
from opdgeom_utils.scoring import completion_logits
from opdgeom_utils.tasks import END, Example, held_out_set, verify

MAX_NEW_TOKENS = 40


@dataclass(frozen=True)
class WorkedPrompt:
    """One prompt with a group of ``G`` completions: text, reward, and the teacher's log-probability of every token."""

    example: Example
    rollouts: Rollouts
    texts: list[str]
    rewards: Float[Tensor, " G"]
    teacher_log_probs: Float[Tensor, "G T"]

    @property
    def wrong(self) -> list[int]:
        """Completions with reward 0 that end properly, in order; all with reward 0 where none ends."""
        rewards = self.rewards.tolist()
        failed = [i for i, text in enumerate(self.texts) if rewards[i] == 0.0 and PAD not in text]
        return [i for i in failed if self.texts[i].endswith(END)] or failed


@torch.no_grad()
def work_through(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    *,
    group_size: int,
    seed: int,
) -> list[WorkedPrompt]:
    """Let the student answer every example ``group_size`` times at temperature 1, and let verifier and teacher judge.

    ``seed``: of the sampling; the same arguments give the same completions.
    """
    generator = torch.Generator().manual_seed(seed)
    rollouts = roll_out(
        student, tokenizer, [e.prompt for e in examples],
        group_size=group_size, max_new_tokens=MAX_NEW_TOKENS, generator=generator,
    )  # fmt: skip
    logits = completion_logits(teacher, rollouts)
    teacher_log_probs = objectives.token_log_probs(logits, rollouts.completion_ids)
    texts = [[w.text + END * w.ended for w in row] for row in decode_completions(tokenizer, rollouts)]
    worked = []
    for i, example in enumerate(examples):
        own = rollouts.select([i])
        rewards = torch.tensor([verify(example.prompt, text) for text in texts[i]])
        worked.append(WorkedPrompt(example, own, texts[i], rewards, teacher_log_probs[i, :, : own.mask.shape[-1]]))
    return worked


def first_mixed_prompt(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    family: str,
    level: int,
    *,
    group_size: int = 8,
    tries: int = 32,
) -> WorkedPrompt:
    """Return the first held-out prompt of a family whose group holds right and wrong completions.

    Raises RecipeError if none of ``tries`` prompts has a mixed group: choose a level nearer to the student's ability.
    """
    examples = held_out_set({family: [level]}, tries)
    for worked in work_through(student, teacher, tokenizer, examples, group_size=group_size, seed=0):
        if 0 < float(worked.rewards.sum()) < group_size:
            return worked
    raise RecipeError(
        f"none of {tries} prompts of family {family!r}, level {level}, has both right and wrong completions among "
        f"{group_size}; choose another level (1 is easiest, 6 hardest) or another student"
    )


def credit_table(worked: WorkedPrompt, index: int) -> pd.DataFrame:
    """Credit that each objective would give to every token of completion ``index`` of the group.

    Returns ``objective`` (sft, opd, rlvr), ``position`` (from 1), ``token``, ``credit`` (the advantage ``a_t``; nats
    for OPD, no unit otherwise), ``mistake`` (true on the first token that leaves the worked solution).
    """
    rollouts = worked.rollouts
    mask = rollouts.mask[0]
    opd = objectives.opd_advantages(rollouts.log_probs[0], worked.teacher_log_probs, mask)
    rlvr = objectives.rlvr_advantages(worked.rewards[None], rollouts.mask)[0]
    credits = {"sft": objectives.sft_advantages(mask), "opd": opd, "rlvr": rlvr}
    text, mistake = worked.texts[index], mistake_position(worked.example, worked.texts[index])
    rows = [
        (name, t + 1, token, float(credit[index, t]), t + 1 == mistake)
        for name, credit in credits.items()
        for t, token in enumerate(text)
    ]
    return pd.DataFrame(rows, columns=["objective", "position", "token", "credit", "mistake"])


def mistake_position(example: Example, completion: str) -> int:
    """Place (from 1) of the first token that differs from the worked solution; 0 if none does.

    >>> from opdgeom_utils.tasks import make_example
    >>> mistake_position(make_example("sum", "47+8-5"), "55;40$")  # the solution is 55;50$
    4
    """
    target = example.completion
    for place, token in enumerate(completion, start=1):
        if place > len(target) or token != target[place - 1]:
            return place
    return 0 if len(completion) == len(target) else len(completion) + 1


def credit_survey(worked: Sequence[WorkedPrompt]) -> pd.DataFrame:
    """Where OPD's credit falls in every wrong completion of many groups.

    One row per wrong completion: ``domain, family, length, mistake`` (place of the first token off the worked
    solution), ``lowest`` (place of OPD's lowest credit), ``hit`` (are they the same), ``chance`` (one in ``length``),
    ``share`` (part of the sum of absolute credit that lies on the mistake), ``least_likely_hit`` (does the token that
    the student itself found least likely fall on the mistake).
    """
    rows = []
    for prompt in worked:
        mask, student = prompt.rollouts.mask[0], prompt.rollouts.log_probs[0]
        credit = objectives.opd_advantages(student, prompt.teacher_log_probs, mask)
        for i in prompt.wrong:
            length, mistake = int(mask[i].sum()), mistake_position(prompt.example, prompt.texts[i])
            if not 1 <= mistake <= length:
                continue
            own, lowest = credit[i, :length].abs(), int(credit[i, :length].argmin()) + 1
            row = {"domain": prompt.example.domain, "family": prompt.example.family, "length": length}
            row |= {"mistake": mistake, "lowest": lowest, "hit": float(lowest == mistake), "chance": 1 / length}
            row["share"] = float(own[mistake - 1]) / max(float(own.sum()), 1e-12)
            row["least_likely_hit"] = float(int(student[i, :length].argmin()) + 1 == mistake)
            rows.append(row)
    return pd.DataFrame(rows)
