"""Which regime a chapter's runs are from, and how much of what the teacher could teach OPD has learned in it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from opdgeom_utils import scopes
from opdgeom_utils.chapters import first_nulls
from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.model_cards import card_accuracy
from opdgeom_utils.chapters.where import NULL_OBJECTIVES
from opdgeom_utils.claims.matching import accuracy_gain, final
from opdgeom_utils.intervals import Interval, seed_interval
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.recipes import load_recipe, recipe_names
from opdgeom_utils.trained_models import needed_run
from opdgeom_utils.vocabulary import label, listed

EARLY, LATE = 10, 50  # updates over which the logged distance is averaged, at the start and at the end
ALIKE = 1.5  # times as far as noise, up to which a run is said to have moved little further
LEARNED = 1 / 3  # share of the accuracy gap from which on OPD counts as having learned
HALF = 1 / 2  # of the distance to the teacher, on text that is the same for all: the other part of the book's bar


def gap_closed(tables: BookTables, recipe: str = "opd", until: int | None = None) -> list[float]:
    """Share of the sampled-accuracy gap to its teacher that each seed of a recipe has closed; 1 is all.

    ``until``: the update that is asked for, or the last checkpoint before it; None asks at the end. Empty without
    runs; nan where the teacher's accuracy is not known, or no higher than the student's own before training.
    """
    own = tables.accuracy.loc[tables.accuracy["recipe"] == recipe]
    if own.empty:
        return []
    ends = final(accuracy_gain(own if until is None else own.loc[own["step"] <= until]))
    taught = _taught(tables, recipe)
    now, gain = ends[["sampled", "gain"]].to_numpy(float).T
    gap = taught - (now - gain)
    return np.divide(gain, gap, out=np.full_like(gain, np.nan), where=gap > 0).tolist()


def _taught(tables: BookTables, recipe: str) -> float:
    """Look up the sampled accuracy of a recipe's teacher: a run of these tables made it, or its model card has it."""
    teacher = load_recipe(recipe, tables.profile).teacher
    made = needed_run(teacher)
    if made is None:
        return card_accuracy(str(teacher))["sampled"]
    rows = tables.accuracy
    there = (rows["recipe"] == made.recipe.name) & (rows["seed"] == made.seed) & (rows["step"] == made.step)
    return float(np.mean(rows.loc[there, "sampled"]))


def distance_closed(tables: BookTables, recipe: str = "opd") -> dict[str, Interval]:
    """Share of the distance to the teacher that a recipe closed, over seeds: on its ``own`` and on ``fixed`` text.

    The first is the loss that OPD is trained on: the reverse KL, nats a token, of all the text that an update has just
    written, over the last 50 updates beside the first 10. (Runs log an exact one too, of two completions an update,
    which is too few to tell.) Other objectives have other losses. The second is ``teacher_distance``, on text that the
    anchor wrote. A share that cannot be told, as in a run of fewer than 100 updates, is left out.

    >>> import pandas as pd
    >>> log = pd.DataFrame({"recipe": "opd", "seed": 0, "step": range(1, 101), "loss": [2.0] * 50 + [0.5] * 50})
    >>> distance_closed(BookTables(log, log, log, profile="toy", seeds=(0,), source=""))["own"].mean
    0.75
    """
    shares: dict[str, list[float]] = {"own": [], "fixed": []}
    made = load_recipe(recipe, tables.profile)
    is_distance = made.objective == "opd" and not made.random_credit and made.keep_fraction == 1
    for _, log in tables.training.loc[tables.training["recipe"] == recipe].groupby("seed"):
        last = int(log["step"].max())
        if is_distance and last >= 2 * LATE:
            early, late = log["step"] <= EARLY, log["step"] > last - LATE
            shares["own"].append(1 - float(log.loc[late, "loss"].mean() / log.loc[early, "loss"].mean()))
    if tables.measures is not None:
        apart = pick(tables.measures, quantity="teacher_distance", null="")
        begun = apart.loc[(apart["recipe"] == "opd") & (apart["step"] == 0), "value"].to_numpy(float)
        own = apart.loc[(apart["recipe"] == recipe) & (apart["step"] > 0)]
        ends = own.loc[own["step"] == own["step"].max(), "value"].to_numpy(float)
        shares["fixed"] = (1 - ends / begun.mean()).tolist() if len(begun) else []
    return {text: seed_interval(values) for text, values in shares.items() if values}


def how_trained(tables: BookTables) -> pd.DataFrame:
    """One row for each of the main runs in these tables: what its recipe says, as a reader would compare recipes.

    >>> none = pd.DataFrame({"recipe": ["opd"]})
    >>> how_trained(BookTables(none, none, none, profile="toy", seeds=(0,), source="")).iloc[0, 1:5].to_list() == [
    ...     *["anchor", "512 x 1", 400, 1],
    ... ]
    True
    """
    rows = []
    for name in (held for held in scopes.THROUGHOUT if held in set(tables.accuracy["recipe"])):
        made = load_recipe(name, tables.profile)
        answers = made.group_size if made.on_policy else 1
        falls = f" to {_in_tens(made.final_learning_rate)}, {made.schedule}" if made.schedule != "constant" else ""
        warms = f", {made.warmup_fraction:.0%} warm-up" if made.warmup_fraction else ""
        rows.append({
            "run": label(name),
            "starts from": made.start,
            "prompts x answers": f"{made.prompts_per_update} x {answers}",
            "updates": made.steps,
            "updates on a batch": made.updates_per_rollout if made.on_policy else 1,
            "learning rate": f"{_in_tens(made.learning_rate)}{falls}{warms}",
            "Adam's betas": f"{made.betas[0]:g}, {made.betas[1]:g}",
            "Adam's eps": _in_tens(made.eps),
            "weight decay": f"{made.weight_decay:g}",
            "gradient clipped at": f"{made.grad_clip:g}",
        })  # fmt: skip
    return pd.DataFrame(rows)


def times(profile: str, recipe: str, other: str, field: str, shown: str = "g") -> str:
    """Say how many times a recipe of a profile has of something what another one has.

    >>> times("toy", "sft", "opd", "learning_rate"), times("confined", "rlvr", "opd", "steps")
    ('5', '(one of the two is no recipe of confined)')
    """
    if not {recipe, other} <= set(recipe_names(profile)):
        return f"(one of the two is no recipe of {profile})"
    many, one = (getattr(load_recipe(name, profile), field) for name in (recipe, other))
    return format(many / one, shown)


def _in_tens(value: float) -> str:
    """Write a small number with its power of ten.

    >>> _in_tens(1e-4), _in_tens(2.5e-05), _in_tens(0.0)
    ('1e-4', '2.5e-5', '0')
    """
    digits, power = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(power)}" if value else "0"


def say_alike(trained: pd.DataFrame) -> str:
    """Say what all runs of :func:`how_trained` have in common.

    >>> say_alike(pd.DataFrame({"run": ["OPD", "SFT"], "updates": [4, 8], "weight decay": "0.1"}))
    'Alike in all: weight decay 0.1.'
    """
    alike = [f"{what} {values.iloc[0]}" for what, values in trained.items() if values.nunique() == 1]
    return f"Alike in all: {listed(alike)}." if alike else ""


def among(tables: BookTables) -> str:
    """Name the main runs together: as those that learned where each of them gained accuracy, by means over seeds."""
    ends = final(accuracy_gain(tables.accuracy))
    gains = ends.loc[ends["recipe"].isin(scopes.HEADLINE)].groupby("recipe")["gain"].agg("mean")
    return "runs that learned" if (gains > 0).all() else "runs that had something to learn"


def _nulls(tables: BookTables) -> str:
    """Say which null objectives stand beside the runs; empty where there is none."""
    held = [label(name) for name in NULL_OBJECTIVES.values() if name in set(tables.accuracy["recipe"])]
    return f" Beside it stand runs with nothing to learn: {listed(held)}." if held else ""


def _beside_noise(tables: BookTables) -> str:
    """Say how far OPD moved beside noise, at its end; empty where its norms were not measured."""
    if not {"update_norm", "n_entries"} <= set(tables.geometry):
        return ""
    ratio = first_nulls.walk_at_end(tables, "opd")
    if ratio < 1:
        return f", and it moved less far than noise would have ({ratio:.2f} times; chapter 2)"
    if ratio < ALIKE:
        return ", and it moved little further than noise would have (chapter 2)"
    return f", though it moved {ratio:.1f} times as far as noise would have (chapter 2)"


def boxed(tables: BookTables) -> str:
    """Put what :func:`say_regime` says into a box of its own, as Markdown; empty where it says nothing."""
    said, title = say_regime(tables), "How much did OPD learn, and what does that allow?"
    box = f'<div class="admonition note"><p class="admonition-title">{title}</p>'
    return f"{box}\n\n{said}\n\n</div>" if said else ""


def say_regime(tables: BookTables, until: int | None = None) -> str:
    """Say in a few sentences how OPD was trained in these tables and what that allows; empty where there is no OPD.

    ``until``: the update at which a chapter compares its runs, where that is not their end.
    """
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
        known = not math.isnan(_taught(tables, "opd"))
        why = "its teacher was no better than itself before it" if known else "its teacher's accuracy is in no table"
        return said + f"How much it learned is not known: {why}." + _nulls(tables)
    away = ", so it ended further from it than it began" if mean < 0 else ""
    said += f"In that time it closed {mean:.0%} of the gap in accuracy to its teacher ({seeds}){away}. "
    closed = distance_closed(tables)
    where = {"own": "on the text that it writes itself", "fixed": "on text that is the same for every run"}
    if closed:
        shares_of = [f"{share.mean:.0%} {where[text]}" for text, share in closed.items()]
        said += f"Of its distance to the teacher in nats it closed {listed(shares_of)}. "
    if until is not None and until < recipe.steps:
        then = seed_interval(gap_closed(tables, until=until)).mean
        said += f"This chapter compares runs at update {until}, where it had closed {then:.0%} of the gap (on "
        said += "the fewer prompts that are asked under way). "
    if mean >= LEARNED:
        fixed = closed.get("fixed", seed_interval([])).mean
        short = "" if fixed >= HALF else f" The other part of this book's bar, {HALF:.0%} of the distance, it misses."
        return f"{said}So it learned.{'' if math.isnan(fixed) else short}{_nulls(tables)}"
    held = "opd_random_credit" in set(tables.accuracy["recipe"])
    null = first_nulls.beside_regime(tables.profile, recipe.steps if until is None else until)
    beside = f" Runs with nothing to learn stand in chapter 9 (SFT's in chapter 4): {null}." if null else ""
    beside = beside or ("" if held else " No run with random credit stands beside it.")
    return said + (
        f"So it hardly learned{_beside_noise(tables)}. What is "
        f"said of OPD here is said of a run at its beginning.{beside}"
    )
