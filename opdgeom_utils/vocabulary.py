"""What the book's things are called, once: metrics, objectives, and the sets of matrices behind a number."""

from __future__ import annotations

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")  # the matrices of the paper's trajectory figures
SCOPES: dict[str, tuple[str, ...] | None] = {"attention": ATTENTION, "all": None}
