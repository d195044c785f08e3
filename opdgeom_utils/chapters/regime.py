"""Which regime a chapter's runs are from, and how much of what the teacher could teach OPD has learned in it."""

from __future__ import annotations

import math

from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.model_cards import card_accuracy
from opdgeom_utils.claims.matching import accuracy_gain, final
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.vocabulary import label, listed

LEARNED = 1 / 3  # share of the accuracy gap from which on OPD counts as having learned


def gap_closed(tables: BookTables, recipe: str = "opd") -> list[float]:
    """Share of the sampled-accuracy gap to its teacher that each seed of a recipe has closed at its end; 1 is all."""
    ends = final(accuracy_gain(tables.accuracy.loc[tables.accuracy["recipe"] == recipe]))
    taught = card_accuracy(str(load_recipe(recipe, tables.profile).teacher))["sampled"]
    return [gain / (taught - (now - gain)) for now, gain in ends[["sampled", "gain"]].to_numpy(float).tolist()]


def _nulls(tables: BookTables) -> str:
    """Say which null objectives stand beside the runs; empty where there is none."""
    held = [
        label(name) for name in ("opd_random_credit", "rlvr_random_reward") if name in set(tables.accuracy["recipe"])
    ]
    return f" Beside it stand runs with nothing to learn: {listed(held)}." if held else ""


def say_regime(tables: BookTables) -> str:
    """Say in two sentences how OPD was trained in these tables and what that allows; empty where there is no OPD."""
    if "opd" not in set(tables.accuracy["recipe"]):
        return ""
    recipe, shares = load_recipe("opd", tables.profile), gap_closed(tables)
    mean = sum(shares) / len(shares)
    seeds = f"mean of {len(shares)} seeds" if len(shares) > 1 else "one seed"
    words = tables.profile.replace("_", " ")
    times = "once" if recipe.group_size == 1 else f"{recipe.group_size} times"
    said = (
        f"**Which runs?** Those of profile *{words}*: OPD answers {recipe.prompts_per_update} different prompts an "
        f"update, {times} each, for {recipe.steps} updates. "
    )
    if math.isnan(mean):
        return said + "How much it learned is not known."
    said += f"In that time it closed {mean:.0%} of the gap in accuracy to its teacher ({seeds}). "
    if mean >= LEARNED:
        return said + "So it learned a good part of what there was to learn." + _nulls(tables)
    held = "opd_random_credit" in set(tables.accuracy["recipe"])
    beside = "" if held else " No run with random credit stands beside it."
    return said + (
        "So it hardly learned, and it moved little further than noise would have (chapter 2). What is "
        f"said of OPD here is said of a run at its beginning.{beside}"
    )
