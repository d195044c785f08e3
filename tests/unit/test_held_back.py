"""What chapter 2 says of windows: the rule of LOG.md on what is held back, on a table made for it."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from opdgeom_utils.chapters.committed_tables import tables_for
from opdgeom_utils.chapters.held_back import held_back


def test_held_back_is_shorter_than_the_null_and_turned_back_on_every_seed() -> None:
    """Seed 1 of one kind is not shorter; a kind that turns nowhere must be much shorter."""
    tables = tables_for("toy", [0, 1])
    row = {"profile": "toy", "step": 400, "side": "", "k": 0, "null": "", "other_recipe": "", "other_seed": -1}
    seen = {  # kind: (length, turn) of each seed, beside a null of length 1 that turns by 0
        "q_proj": [(0.85, -0.1), (0.85, -0.1)],
        "k_proj": [(0.85, -0.1), (0.95, -0.1)],
        "v_proj": [(0.85, 0.1), (0.85, 0.1)],
        "o_proj": [(0.75, 0.1), (0.75, 0.1)],
    }
    rows = []
    for kind, seeds in seen.items():
        for seed, (length, turn) in enumerate(seeds):
            for recipe, values in {"opd": (length, turn), "opd_random_credit": (1.0, 0.0)}.items():
                own = row | {"recipe": recipe, "seed": seed, "scope": kind, "other_step": -1}
                names = ("window_rms", "window_cosine")
                rows += [own | {"quantity": q, "value": v} for q, v in zip(names, values, strict=True)]
    found = held_back(replace(tables, measures=pd.DataFrame(rows)), ["opd"])
    held = dict(zip(found["kind"], found["held"], strict=True))
    assert held == {"q_proj": True, "k_proj": False, "v_proj": False, "o_proj": True}
    assert set(found["seeds"]) == {2}
    assert found["strength"].between(0.9, 1.1).all()  # both clip nearly every gradient to one norm
