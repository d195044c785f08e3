"""What is seen in the figures of an update's path, and what comes out of its chapter, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from opdgeom_utils.chapters import seen
from opdgeom_utils.chapters.null_objectives import NOTHING
from opdgeom_utils.chapters.update_path import (
    LEARNED_AND_NULLS,
    agreement,
    at_share,
    early,
    later,
    path_curves,
    shared_rows,
)
from opdgeom_utils.charts.palette import in_order
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.measures.paths import EARLY, SIDES
from opdgeom_utils.scopes import HEADLINE, MAIN
from opdgeom_utils.vocabulary import NULLS, RESCALED, ROUNDED, label, listed, metric_of

WHOSE = {"right": "inputs", "left": "outputs"}
TENTH = 0.1  # of a run, where the book's own claim on early locking looks
TRAINED = (("opd_random_credit", ("", "activations")), ("opd", ("",)))
TRAINED_NAMES = [label("opd_random_credit"), NULLS["activations"].label, label("opd")]
STEPWISE = ("captured_share", "sim_consecutive")  # of single windows, so taken over all later ones


def at_a_fifth(measures: pd.DataFrame | None, k: int) -> str:
    """Say how like its last space OPD's leading one is a fifth into its run, beside runs that had nothing to learn.

    Control SFT, which has as many updates, stands beside them.
    """
    if measures is None:
        return ""
    own, said, seeds = label("opd"), [], 0
    for side, whose in WHOSE.items():
        values = seen.by_seed(early(measures, side, k, ["opd", *NOTHING, "control_sft"]), "series")
        if own not in values:
            return ""
        means, nulls = values.mean(), [label(name) for name in NOTHING if label(name) in values]
        names = [*nulls, *(name for name in (label("control_sft"),) if nulls and name in values)]
        beside = f" ({listed([f'{name} {means[name]:.2f}' for name in names])})" if names else ""
        said.append(f"{means[own]:.2f} on the side of the {whose}{beside}")
        seeds = len(values)
    alike = _like_nothing(measures, k)
    rest = f" It is not shown to be above {listed(alike)}." if alike else ""
    like = f"A fifth into its run OPD's {k} leading directions are like its last ones by {listed(said)}"
    return f"{_at_a_tenth(measures, k)}{like}; 1 would be the same; seeds: {seeds}.{rest}"


def _like_nothing(measures: pd.DataFrame, k: int) -> list[str] | None:
    """List the runs with nothing to learn that OPD is not shown to be above at a fifth; None where there are none."""
    own, nulls, alike = label("opd"), set(), []
    for side, whose in WHOSE.items():
        values = seen.by_seed(early(measures, side, k, ["opd", *NOTHING]), "series")
        nulls |= (here := {str(name) for name in values} - {own})
        alike += [
            f"{name} on that of the {whose}"
            for name in in_order(here)
            if seen.stands(values.loc[:, own], values.loc[:, name]) != seen.ABOVE
        ]
    return alike if nulls else None


def _at_a_tenth(measures: pd.DataFrame, k: int) -> str:
    """Set OPD beside its control and its null at a tenth of the run, between two checkpoints as the claim has it."""
    recipes, means = ["opd", NOTHING[0], "control_sft", "rlvr"], {}
    for side in WHOSE:
        curves = at_share(path_curves(measures, "sim_to_end", side=side, k=k, recipes=recipes), TENTH)
        means |= {(run, side): value for run, value in curves.groupby("recipe")["value"].agg("mean").to_dict().items()}
    names = [name for name in map(label, recipes) if {(name, side) for side in WHOSE} <= set(means)]
    if names[:2] != [label("opd"), label(NOTHING[0])]:
        return ""
    own, *rest = ((name, *(f"{means[name, side]:.2f}" for side in ("right", "left"))) for name in names)
    beside = listed(f"those of {name} by {right} and {left}" for name, right, left in rest)
    return (
        f"A tenth into its run OPD's {k} leading directions are like its last ones by {own[1]} (inputs) and {own[2]} "
        f"(outputs), {beside}. "
    )


def say_trained_null(measures: pd.DataFrame | None, k: int) -> str:
    """Hold the made-up null of real inputs against random credit, which was trained; empty where one is missing."""
    numbers, words, seeds = [], [], 0
    if measures is None:
        return ""
    for side in SIDES:
        rows = pd.concat([early(measures, side, k, [name], nulls) for name, nulls in TRAINED])
        values = seen.by_seed(rows, "series")
        if len(values.columns) < 3:
            return ""
        seeds = len(values)
        trained, made, own = (float(mean) for mean in values[TRAINED_NAMES].to_numpy(float).mean(axis=0))
        numbers.append(f"{trained:.2f} on the {side}, its made-up null {made:.2f} (OPD {own:.2f})")
        words.append(f"too {'hard' if made > trained else 'easy'} on the side of the {WHOSE[side]}")
    return (
        f"Random credit is a run with real inputs and nothing to learn. At a fifth it has {'; '.join(numbers)}. So "
        f"that null is {listed(words)} (seeds: {seeds})."
    )


NO_NULL = "No null is in these tables."


def came_out(measures: pd.DataFrame, k: int, among: str = "runs that learned", more: str = "") -> str:
    """Say whether locking tells OPD from other training, ``among`` which it is, and from null objectives (``more``)."""
    own, null, nulls = label("opd"), label("opd_random_credit"), {}
    tells = _earlier_than_others(measures, k)
    if not tells:
        return "No run of OPD is in these tables."
    for side in SIDES:
        beside, names = _with_nulls(measures, "sim_to_end", side, k, "opd")
        nulls |= {side: seen.leads(beside, own, names, "null")} if names else {}
    shown = agreement(measures, ["opd", "opd_random_credit"]).set_index("run")["cosine"].dropna().map("{:z.2f}".format)
    pairs = ", ".join(f"{name} {shown[name]}" for name in (own, null) if name in shown)
    direction = f"What seeds agree on is a direction (cosine of two seeds' updates: {pairs})." if own in shown else ""
    made_up = "made-up processes that learn nothing"
    said = f"Beside {made_up} it lies {seen.each_side(nulls)}" if nulls else f"None of the {made_up} is in these tables"
    idle = listed(label(name) for name in NOTHING if name in set(measures["recipe"]))
    slower = f" {idle[0].upper()}{idle[1:]}, with nothing to learn, lock later still."
    still = slower if _like_nothing(measures, k) == [] else ""
    return f"Among the {among}, OPD {tells}.{still}{more}\n{at_a_fifth(measures, k)} {said}. {direction}".strip()


def _earlier_than_others(measures: pd.DataFrame, k: int) -> str:
    """Say than which runs that learned OPD locks earlier, and than which later; empty where there is no OPD."""
    own, every, not_above, late, ahead = label("opd"), set(), set(), {}, []
    for side in SIDES:
        at = early(measures, side, k, HEADLINE)
        late |= at.loc[at["share"] > EARLY + 0.01].set_index("series")["share"].to_dict()
        values = seen.by_seed(at, "series")
        if own not in values:
            return ""
        how = {str(name): seen.stands(values.loc[:, own], values.loc[:, name]) for name in values if name != own}
        every |= set(how)
        not_above |= {name for name, word in how.items() if word != seen.ABOVE}
        ahead.append({name for name, word in how.items() if word == seen.BELOW})
    later_than = set.intersection(*ahead)
    groups = {
        "locks later than": later_than,
        "is not shown to lock earlier than": not_above - later_than,
        "locks earlier than": (every - not_above) if not_above else set(),
    }
    said = ", and ".join(f"{words} {listed(in_order(names))}" for words, names in groups.items() if names)
    looked = listed(f"{name} is looked at after {share:.1%} of its run" for name, share in late.items())
    return (said or "locks earlier than every other") + (f" ({looked})" if late else "")


def beside_nulls(measures: pd.DataFrame, quantity: str, side: str, k: int) -> str:
    """Say which nulls OPD exceeds, seed by seed, and which it does not.

    At a fifth of the run; over all later windows for what is measured on windows. The rule is that of
    :mod:`opdgeom_utils.chapters.seen`.
    """
    values, nulls = _with_nulls(measures, quantity, side, k, "opd")
    said = seen.beside(values, label("opd"), nulls)
    return f"{metric_of(quantity).title}, {side}, K = {k}: {label('opd')} is {said}."


def beyond_nulls(measures: pd.DataFrame, k: int) -> str:
    """List what of OPD's locking exceeds its nulls, as Markdown; last whether a run with nothing to learn does too."""
    said = [beside_nulls(measures, q, side, k) for q in ("sim_to_end", "captured_share") for side in SIDES]
    nothing = say_nulls(measures, "sim_to_end", k, NOTHING[0]).replace(NO_NULL, NO_NULL.lower())
    return "\n".join(f"- {sentence}" for sentence in [*said, f"By similarity to the end at a fifth, {nothing}"])


def _with_nulls(
    measures: pd.DataFrame, quantity: str, side: str, k: int, recipe: str, nulls: Iterable[str] = LEARNED_AND_NULLS
) -> tuple[pd.DataFrame, list[str]]:
    """Return a run and its nulls by seed, and the names of the nulls."""
    curves = path_curves(measures, quantity, side=side, k=k, recipes=[recipe], nulls=nulls)
    values = seen.by_seed(later(curves) if quantity in STEPWISE else at_share(curves), "series")
    return values, in_order(str(c) for c in values if c != label(recipe))


def say_nulls(measures: pd.DataFrame, quantity: str, k: int, recipe: str = "opd") -> str:
    """Say on both sides which nulls a run is not above, and how far the highest of them is."""
    said = {}
    for side in SIDES:
        values, nulls = _with_nulls(measures, quantity, side, k, recipe)
        if label(recipe) in values and nulls:
            gap = float(values.loc[:, label(recipe)].mean() - values.loc[:, nulls].mean().max())
            far = f"by {gap:.2f} at the least" if gap > 0 else f"{-gap:.2f} short of the highest"
            said[side] = f"{seen.leads(values, label(recipe), nulls, 'null')}, {far}"
    return f"{label(recipe)} lies {seen.each_side(said)}." if said else NO_NULL


def say_paths(measures: pd.DataFrame, k: int) -> str:
    """Say how norm and stable rank go from the first checkpoint to the last, and whether OPD is ahead at a fifth."""
    own, said, ahead = label("opd"), [], {}
    for quantity in ("update_norm", "stable_rank"):
        ends = seen.first_and_last(path_curves(measures, quantity))
        factor = f"; OPD's is {seen.trend(*ends[own])[1]:.2f} times what it was" if own in ends else ""
        said.append(f"The {metric_of(quantity).words} {seen.turns(ends)}{factor}")
    for side in SIDES:
        values = seen.by_seed(early(measures, side, k, MAIN), "series")
        ahead[side] = seen.beside(values, own, in_order(str(c) for c in values if c != own))
    return f"{'. '.join(said)}. By similarity to the end at a fifth, OPD is {seen.each_side(ahead)}."


def say_shape(measures: pd.DataFrame, recipes: Iterable[str]) -> str:
    """Say whose spectrum grows flatter and whose steeper: how the last known singular value over the first goes."""
    index = int(pick(measures, quantity="singular_value").loc[:, "k"].max())
    head, tail = (
        seen.first_and_last(path_curves(measures, "singular_value", k=i, recipes=recipes)) for i in (1, index)
    )
    ratios = {run: (tail[run][0] / head[run][0], tail[run][1] / head[run][1]) for run in head if run in tail}
    said = seen.turns(ratios, factors=True).replace("rises", "grows flatter").replace("falls", "grows steeper")
    return f"How flat a spectrum is, singular value {index} over the first says. By it the spectrum {said}."


def say_floor(panels: Mapping[str, pd.DataFrame]) -> str:
    """Say how the stable rank goes from the first checkpoint to the last: fp32, bf16, and the rescaled update."""
    ends: dict[str, dict[str, tuple[pd.Series, pd.Series]]] = {}
    for curves in panels.values():
        run = str(curves["recipe"].iloc[0])
        for name, first_and_last in seen.first_and_last(curves).items():
            ends.setdefault("" if name == run else name, {})[run] = first_and_last
    words = {"": "In fp32 the stable rank", ROUNDED: "As bf16 shows it, it"}
    words[RESCALED] = "The rescaled last update, in which nothing contracts,"
    return " ".join(f"{said} {seen.turns(ends[name])}." for name, said in words.items() if name in ends)


def say_highest(measures: pd.DataFrame, k: int, nulls: Iterable[str] = LEARNED_AND_NULLS) -> str:
    """Say which runs lock more than each of their nulls, at a fifth, on both sides."""
    said, held = {}, False
    for side in SIDES:
        beyond = []
        for recipe in MAIN:
            values, others = _with_nulls(measures, "sim_to_end", side, k, recipe, nulls)
            held |= bool(others)
            if seen.leads(values, label(recipe), others, "null") == "above every null":
                beyond.append(label(recipe))
        said[side] = listed(beyond) if beyond else "none"
    return f"Runs that lie above every one of their nulls: {seen.each_side(said)}." if held else NO_NULL


def say_scopes(table: pd.DataFrame) -> str:
    """Say by how much means move when the MLP's matrices come in, and whether the order of the runs stays.

    Parameters
    ----------
    table
        ``recipe, value`` and ``column``, which begins with the side; two columns for each side.
    """
    means = pd.DataFrame(table.groupby(["recipe", "column"]).agg({"value": "mean"}).loc[:, "value"].unstack())
    moved, changed = pd.Series(dtype=float), []
    for side in SIDES:
        own = means.loc[:, [c for c in means.columns if str(c).startswith(side)]]
        if own.shape[1] == 2:
            moved = pd.concat([moved, (own.iloc[:, 0] - own.iloc[:, 1]).abs()])
            one, other = (own.loc[:, str(c)].sort_values().index.tolist() for c in own)
            changed += [f"on the {side}"] * (one != other)
    if moved.empty:
        return "There is one choice of matrices only."
    order = f"changes {listed(changed)}" if changed else "stays"
    return (
        f"The order of the runs {order}, and no mean moves by more than {moved.max():.2f} "
        f"({label(str(moved.idxmax()))})."
    )


def say_inputs(ends: pd.DataFrame, noise: str, inputs: str) -> str:
    """Say how far each run's final space lies on the way from that of noise to that which the inputs alone make.

    Parameters
    ----------
    ends
        ``run, of, seed, value``; ``of`` is ``noise``, ``inputs`` or what the run itself has.
    """
    means = pd.DataFrame(ends.groupby(["run", "of"], sort=False).agg({"value": "mean"}).loc[:, "value"].unstack())
    if noise not in means or inputs not in means:
        return "The two nulls are not in these tables."
    own = means.loc[:, next(str(c) for c in means if c not in (noise, inputs))]
    way = ((own - means.loc[:, noise]) / (means.loc[:, inputs] - means.loc[:, noise])).dropna()
    between = "Every run lies" if way.between(0, 1).all() else "Not every run lies"
    span = [f"{share:.0%} of the way ({run})" for run, share in ((way.idxmin(), way.min()), (way.idxmax(), way.max()))]
    return f"{between} between noise and inputs alone: from {span[0]} to {span[1]}."


def say_channel(measures: pd.DataFrame, k: int) -> str:
    """Say whether OPD's final space is nearer to other seeds of OPD than to all else in the figure, on both sides."""
    said, shares = {}, []
    for side in SIDES:
        values = seen.by_seed(shared_rows(measures, side, k), "kind")
        said[side] = seen.leads(values, "other seeds", [str(c) for c in values if c != "other seeds"], "other row")
        means = values.mean()
        if {"other seeds", "itself at a fifth"} <= set(means.index):
            shares.append(
                f"{means['other seeds']:.2f} on the {side} (itself at a fifth {means['itself at a fifth']:.2f})"
            )
    share = f" They share {listed(shares)}." if shares else ""
    return f"By overlap with OPD's end, other seeds of OPD lie {seen.each_side(said)}.{share}"
