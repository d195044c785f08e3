"""The tables of the chapter on functional sufficiency: what each run is held in, and how much of its progress it kept.

Progress kept is ``(constrained end - start) / (free end - start)``, all three of one seed: 1 is what the free run
reached, 0 is where it stood when the projection began.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from opdgeom_utils.chapters.committed_tables import BookTables, measures_for
from opdgeom_utils.charts.theme import label
from opdgeom_utils.errors import MetricInputError, StaleResultsError
from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.measures.functional import PROJECTED, free_run_of
from opdgeom_utils.measures.long_table import nearest
from opdgeom_utils.recipes import RUN_SPACE, Recipe, load_recipe, recipe_names

QUANTITIES = {"teacher_distance": "distance to the teacher", "accuracy": "sampled accuracy"}
SPACES = {
    "early": "early space",
    "complement": "all but the early space",
    "random": "random space",
    "activations": "input activations",
}
COMPARABLE = (*[*SPACES.values()][1:], "final space", "RLVR's early space", "early space, left side")
KEPT = ["recipe", "free", "seed", "quantity", "begins", "ends", "start", "free_end", "held_end", "kept"]


def function_table(tables: BookTables) -> pd.DataFrame:
    """Return accuracy, distance to the teacher and update inside, of the profile and the seeds of ``tables``.

    Parameters
    ----------
    tables
        The chapter's result tables; where they hold no measures, the projected runs and the free runs that these are
        compared with are opened, or trained first, and measured now.

    Raises
    ------
    StaleResultsError
        If the committed measures are missing, or hold nothing of these seeds.
    """
    held = [n for n in recipe_names(tables.profile) if PROJECTED in n]
    measures = measures_for(tables, [*(free_run_of(n) for n in held), *held], ["function"])
    kept = measures["quantity"].isin([*QUANTITIES, "update_inside"]) & measures["seed"].isin(list(tables.seeds))
    if not any(kept):
        raise StaleResultsError(
            f"data/results has no measures of function for seeds {list(tables.seeds)}. Run `make runs`"
        )
    return pd.DataFrame(measures[kept]).reset_index(drop=True)


def held_recipes(rows: pd.DataFrame, profile: str) -> list[Recipe]:
    """Projected recipes that the table has, in the order of the profile's file."""
    found = set(rows["recipe"])
    return [load_recipe(n, profile) for n in recipe_names(profile) if PROJECTED in n and n in found]


def space_in_words(recipe: Recipe) -> str:
    """Say which space a run is held in, and how.

    >>> space_in_words(load_recipe("opd_project_left")), space_in_words(load_recipe("opd_project_rlvr"))
    ('early space, left side', "RLVR's early space")
    """
    found = RUN_SPACE.fullmatch(recipe.projection_space)
    if found and found["recipe"] == free_run_of(recipe.name):
        words = "final space"
    else:
        words = f"{label(found['recipe'])}'s early space" if found else SPACES[recipe.projection_space]
    words += ", left side" if recipe.projection_side == "left" else ""
    return words + (", update held" if recipe.projection_of == "update" else "")


def sweep_of(recipe: Recipe) -> str:
    """Say in what a recipe departs from the first of its kind: ``rank``, ``start``, or else ``space``.

    >>> [sweep_of(load_recipe(f"opd_project_{n}")) for n in ("k8", "from4", "random")]
    ['rank', 'start', 'space']
    """
    main = load_recipe(f"{free_run_of(recipe.name)}{PROJECTED}early", recipe.profile)
    if recipe.projection_rank != main.projection_rank:
        return "rank"
    return "start" if recipe.projection_from != main.projection_from else "space"


def progress(rows: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Progress kept by every projected run, one row for each (recipe, seed, quantity).

    Parameters
    ----------
    rows
        From :func:`function_table`.
    profile
        Whose recipes these are.

    Returns
    -------
    DataFrame
        ``recipe, free, seed, quantity``; ``begins`` and ``ends``, the free run's checkpoints nearest to where the
        projection begins and ends; ``start, free_end, held_end`` there; ``kept``, nan where the free run made no
        progress; then ``space, sweep, rank, share``, the last as a fraction of the run. A seed without its free run
        is left out.
    """
    values = rows.loc[rows["null"] == ""].set_index(["recipe", "seed", "quantity", "step"])["value"].sort_index()
    out: list[dict[str, object]] = []
    for recipe in held_recipes(rows, profile):
        said = {"space": space_in_words(recipe), "sweep": sweep_of(recipe), "rank": recipe.projection_rank}
        said["share"] = recipe.projection_from / recipe.steps
        for seed in sorted(set(rows.loc[rows["recipe"] == recipe.name, "seed"])):
            out += [found | said for found in _kept(values, recipe, int(seed))]
    return pd.DataFrame(out, columns=[*KEPT, "space", "sweep", "rank", "share"])


def _kept(values: pd.Series, recipe: Recipe, seed: int) -> Iterator[dict[str, object]]:
    free = free_run_of(recipe.name)
    for quantity in QUANTITIES:
        if (free, seed, quantity) not in values.index or (recipe.name, seed, quantity) not in values.index:
            continue
        path, held = values.loc[free, seed, quantity], float(values.loc[recipe.name, seed, quantity].loc[recipe.steps])
        begins, ends = (nearest([int(s) for s in path.index], s) for s in (recipe.projection_from, recipe.steps))
        start, end = float(path.loc[begins]), float(path.loc[ends])
        kept = share_kept(start, end, held, falls=quantity == "teacher_distance")
        yield dict(zip(KEPT, (recipe.name, free, seed, quantity, begins, ends, start, end, held, kept), strict=True))


def share_kept(start: float, free_end: float, held_end: float, *, falls: bool) -> float:
    """Progress under the constraint over free progress; nan where the free run made none.

    >>> share_kept(0.6, 0.5, 0.55, falls=True), share_kept(0.5, 0.5, 0.6, falls=False)
    (0.5, nan)
    """
    free = (start - free_end) if falls else (free_end - start)
    gained = (start - held_end) if falls else (held_end - start)
    return round(gained / free, 12) if free > 0 else float("nan")


def kept_table(kept: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Mean and 95% interval of the progress kept, one row for each recipe, as text.

    Parameters
    ----------
    kept
        From :func:`progress`.
    quantity
        A key of :data:`QUANTITIES`.
    """
    if quantity not in QUANTITIES:
        raise MetricInputError(f"quantity is {quantity!r}; expected one of {list(QUANTITIES)}")
    table = []
    for name, own in kept.loc[kept["quantity"] == quantity].groupby("recipe", sort=False):
        part = seed_interval(own["kept"].to_numpy(float))
        row = {"run": label(str(own["free"].iloc[0])), "held in": own["space"].iloc[0], "K": own["rank"].iloc[0]}
        row["from"] = f"{own['share'].iloc[0]:.0%}"
        row["free gain"] = f"{np.abs(own['free_end'] - own['start']).mean():.4f}"
        row["held minus free"] = _gap_in_words(own["held_end"] - own["free_end"], quantity)
        row["progress kept"] = "-" if np.isnan(part.mean) else f"{part.mean:.0%}"
        row["95% interval"] = f"{part.low:.0%} to {part.high:.0%}" if part.n > 1 else "one seed"
        table.append(row | {"seeds": f"{part.n} of {len(own)}", "recipe": name})
    return pd.DataFrame(table)


def _gap_in_words(gaps: pd.Series, quantity: str) -> str:
    return f"{100 * gaps.mean():+.1f} points" if quantity == "accuracy" else f"{gaps.mean():+.4f} nats"


def early_against(kept: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Hold the early space against every other space, on the seeds that both have; all else is the same.

    Parameters
    ----------
    kept
        From :func:`progress`.
    quantity
        A key of :data:`QUANTITIES`.

    Returns
    -------
    DataFrame
        ``run, other space, seeds``, progress kept by either, the difference with its 95% interval, and what it says:
        ``more``, ``less``, ``not told apart``, or ``one seed``.
    """
    rows = kept[kept["quantity"].eq(quantity) & kept["sweep"].eq("space")]
    table = []
    for free, own in rows.groupby("free", sort=False):
        wide = own.pivot_table(index="seed", columns="space", values="kept", sort=False)
        for space in (name for name in wide.columns if "early space" in wide and name in COMPARABLE):
            both = wide[["early space", space]].dropna()
            gap = seed_interval((both.loc[:, "early space"] - both.loc[:, space]).to_numpy(float))
            how = "more" if gap.low > 0 else "less" if gap.high < 0 else "not told apart"
            row = {"run": label(str(free)), "other space": space, "seeds": gap.n}
            row |= {"early keeps": f"{both['early space'].mean():.0%}", "other keeps": f"{both[space].mean():.0%}"}
            row["difference"] = f"{gap.mean:+.0%}" + (f" ({gap.low:+.0%} to {gap.high:+.0%})" if gap.n > 1 else "")
            row["verdict"] = how if gap.n > 1 else "one seed"
            table += [row] if gap.n else []
    return pd.DataFrame(table)


def ruler_table(kept: pd.DataFrame, prompts: int, samples: int) -> pd.DataFrame:
    """Show what the free runs gain between start and end of the projection, and how fine each ruler is.

    Parameters
    ----------
    kept
        From :func:`progress`.
    prompts, samples
        Held-out prompts, and completions of each, that the accuracy rests on.

    Returns
    -------
    DataFrame
        ``run, ruler, updates``; start, gain and its standard deviation over seeds; the standard error of one accuracy.
    """
    table = []
    free = kept.drop_duplicates(["free", "seed", "quantity", "begins", "ends"])
    for _, own in free.groupby(["free", "quantity", "begins", "ends"], sort=False):
        name, quantity, begins, ends = (own[c].iloc[0] for c in ("free", "quantity", "begins", "ends"))
        start, gain = own["start"].mean(), own["free_end"] - own["start"]
        row = {"run": label(str(name)), "ruler": QUANTITIES[str(quantity)], "updates": f"{begins} to {ends}"}
        error = np.sqrt(start * (1 - start) / (prompts * samples)) if quantity == "accuracy" else "none"
        row |= {
            "start": start,
            "gain": gain.mean(),
            "seed spread": gain.std(),
            "sampling error": error,
        }
        table.append(row)
    return pd.DataFrame(table)


def inside_table(rows: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Share of the realised update inside the space, one row for each projected run, beside that of no direction.

    Returns
    -------
    DataFrame
        ``recipe, free, seed, space, sweep, rank, inside, isotropic``, shares from 0 to 1.
    """
    held = {recipe.name: recipe for recipe in held_recipes(rows, profile)}
    own = rows.loc[(rows["quantity"] == "update_inside") & rows["recipe"].isin(list(held))]
    wide = own.pivot(index=["recipe", "seed"], columns="null", values="value").reset_index()
    wide = wide.rename(columns={"": "inside"}).rename_axis(columns=None)
    words = [(free_run_of(n), space_in_words(r), sweep_of(r), r.projection_rank) for n, r in held.items()]
    facts = pd.DataFrame(words, columns=["free", "space", "sweep", "rank"]).assign(recipe=list(held))
    return facts.merge(wide, on="recipe")


def say_basis(kept: pd.DataFrame) -> str:
    """Say how many projected recipes rest on how many seeds; those of one are sweeps.

    >>> say_basis(pd.DataFrame({"recipe": ["a", "a", "b"], "seed": [0, 1, 0]}))
    'Projected runs: 1 recipe with 2 seeds; 1 with one seed only, so without an interval and no ground for a verdict.'
    """
    counts = kept.groupby("recipe")["seed"].nunique().value_counts().sort_index(ascending=False)
    said = []
    for seeds, n in counts.items():
        what = "" if said else f" recipe{'s' * (n != 1)}"
        lone = "one seed only, so without an interval and no ground for a verdict"
        said.append(f"{n}{what} with " + (f"{seeds} seeds" if seeds != 1 else lone))
    return f"Projected runs: {'; '.join(said)}."


def say_starts(kept: pd.DataFrame, rows: pd.DataFrame, profile: str) -> str:
    """Say where the free run's nearest checkpoint stands in for the exact start of a projection, and how far off it is.

    Parameters
    ----------
    kept
        From :func:`progress`.
    rows
        From :func:`function_table`; a held run measured at its exact start
        gives the comparison.
    profile
        Whose recipes these are.
    """
    said = {}
    for name, own in kept.loc[kept["quantity"] == "accuracy"].groupby("recipe", sort=False):
        recipe, near = load_recipe(str(name), profile), int(own["begins"].iloc[0])
        exact = recipe.projection_from
        if exact == near or (own["free"].iloc[0], exact) in said:
            continue
        at = rows.loc[(rows["recipe"] == name) & (rows["step"] == exact) & (rows["quantity"] == "accuracy"), "value"]
        text = f"{label(own['free'].iloc[0])} has no checkpoint at update {exact}, so that at {near} stands in"
        text += f" (accuracy {own['start'].mean():.1%}; {at.mean():.1%} at {exact})" if len(at) else ""
        said[own["free"].iloc[0], exact] = text
    return "; ".join(said.values()) + "." if said else "Every free run has a checkpoint where its projection begins."


def say_early_against(table: pd.DataFrame) -> str:
    """List what :func:`early_against` found.

    >>> row = {"run": "OPD", "other space": "random space", "seeds": 1, "difference": "+30%"}
    >>> say_early_against(pd.DataFrame([row | {"verdict": "one seed"}]))
    '- OPD, early space minus random space: +30% of the progress, one seed.'
    """
    said = [
        f"- {r['run']}, early space minus {r['other space']}: {r['difference']} of the progress, {r['verdict']}"
        + (f", {r['seeds']} seeds." if r["seeds"] > 1 else ".")
        for r in table.to_dict("records")
    ]
    return "\n".join(said) or "- No other space was tried."


def say_nearly_frozen(inside: pd.DataFrame, kept: pd.DataFrame) -> str:
    """Say what is left of progress where next to nothing of an update's matrices is: embeddings and norms do that.

    Parameters
    ----------
    inside
        From :func:`inside_table`.
    kept
        From :func:`progress`.
    """
    held = inside.loc[inside["space"].str.endswith("update held")]
    rows = kept.loc[kept["space"].isin(list(held["space"])) & (kept["quantity"] == "teacher_distance")]
    if rows.empty:
        return "No run here has its update held."
    smallest = held.groupby("space")["inside"].mean()
    space = str(smallest.idxmin())
    own = rows.loc[rows["space"] == space, "kept"]
    return (
        f"Nearest to that is *{space}*: of each update of a matrix {smallest.min():.1%} of the squared norm is let "
        f"through, and the run keeps {own.mean():.0%} of the progress ({len(own)} seed{'s' * (len(own) != 1)})."
    )
