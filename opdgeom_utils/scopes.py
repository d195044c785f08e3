"""Which runs and which matrices stand behind a number. Words are the vocabulary's; a change here measures again."""

from __future__ import annotations

HEADLINE = ("sft", "opd", "rlvr", "control_sft")  # the paper's three and their control
MAIN = (*HEADLINE, "opd_random_credit", "rlvr_random_reward")  # beside the null objectives: what figures draw
SFT_NULLS = ("sft_mismatched", "control_sft_mismatched")
THROUGHOUT = (*MAIN, "opd_full_vocab", *SFT_NULLS)  # recipes of which every checkpoint is measured
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")  # the matrices of the paper's trajectory figures
MODULES = (*ATTENTION, "gate_proj", "up_proj", "down_proj")  # as the data flows through a layer
SCOPES: dict[str, tuple[str, ...] | None] = {"attention": ATTENTION, "all": None}
