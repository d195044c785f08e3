"""Is the early space enough: what each projected run is held in, and the numbers that its progress is made of.

Progress kept is ``(held end - start) / (free end - start)``, all of one seed: 1 is what the free run reached, 0 is
where it stood when the projection began. The division itself stands in the chapter.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.measures.functional import PROJECTED, free_run_of
from opdgeom_utils.measures.long_table import nearest_step
from opdgeom_utils.recipes import RUN_SPACE, Recipe, load_recipe, recipe_names
from opdgeom_utils.vocabulary import label, listed

RULERS = {"teacher_distance": "distance to the teacher", "accuracy": "sampled accuracy"}
SPACES = {
    "early": "early space",
    "complement": "all but the early space",
    "random": "random space",
    "activations": "input activations",
}
ALL_SEEDS = "early keeps, all seeds"
ENOUGH = 0.8  # of the progress: the claims' line for "as well"
COMPARABLE = (*[*SPACES.values()][1:], "final space", "RLVR's early space", "early space, left side")


def projected_runs(profile: str) -> pd.DataFrame:
    """Say what each projected recipe of a profile is held in, in the order of the profile's file.

    Returns ``recipe``; ``free``, the recipe that it is compared with; ``space`` in words; ``sweep``, in what it departs
    from the first of its kind: ``rank``, ``start``, or else ``space``; ``rank``; ``starts`` and ``steps``, updates;
    ``share``, the first of these as a part of the second.

    >>> runs = projected_runs("first_regime").set_index("recipe")
    >>> runs.loc["opd_project_left", ["free", "space", "sweep"]].tolist()
    ['opd', 'early space, left side', 'space']
    """
    recipes = [load_recipe(name, profile) for name in recipe_names(profile) if PROJECTED in name]
    runs = pd.DataFrame({"recipe": [r.name for r in recipes], "free": [free_run_of(r.name) for r in recipes]})
    runs["space"] = [_space_in_words(r) for r in recipes]
    runs["sweep"] = [_sweep_of(r) for r in recipes]
    runs["rank"] = [r.projection_rank for r in recipes]
    runs["starts"], runs["steps"] = ([getattr(r, part) for r in recipes] for part in ("projection_from", "steps"))
    return runs.assign(share=runs["starts"] / runs["steps"])


def _space_in_words(recipe: Recipe) -> str:
    found = RUN_SPACE.fullmatch(recipe.projection_space)
    if found and found["recipe"] == free_run_of(recipe.name):
        words = "final space"
    else:
        words = f"{label(found['recipe'])}'s early space" if found else SPACES[recipe.projection_space]
    words += ", left side" if recipe.projection_side == "left" else ""
    return words + (", update held" if recipe.projection_of == "update" else "")


def _sweep_of(recipe: Recipe) -> str:
    main = load_recipe(f"{free_run_of(recipe.name)}{PROJECTED}early", recipe.profile)
    if recipe.projection_rank != main.projection_rank:
        return "rank"
    return "start" if recipe.projection_from != main.projection_from else "space"


def start_and_ends(measures: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Where each projected run starts, where it ends, and where its free run ends, on either ruler.

    ``measures``: the long table; rows of :data:`RULERS` are read.
    ``runs``: from :func:`projected_runs`.
    Returns the columns of ``runs``, and ``seed, quantity``; ``begins`` and ``ends``, the free run's checkpoints nearest
    to where the projection begins and ends; ``start, free_end, held_end``, the ruler there, accuracy from 0 to 1 or
    nats. A seed without its free run is left out.
    """
    values = measures[(measures["null"] == "") & measures["quantity"].isin(list(RULERS))]
    values = values.set_index(["recipe", "seed", "quantity", "step"])["value"].sort_index()
    rows = []
    for run in runs.to_dict("records"):
        seeds = sorted(set(measures.loc[measures["recipe"] == run["recipe"], "seed"]))
        for seed, quantity in ((s, q) for s in seeds for q in RULERS):
            held, free = ((run[who], seed, quantity) for who in ("recipe", "free"))
            if held not in values.index or free not in values.index:
                continue
            path = values.loc[free]
            begins, ends = (nearest_step([int(s) for s in path.index], run[at]) for at in ("starts", "steps"))
            found = {"start": path[begins], "free_end": path[ends], "held_end": values.loc[held][run["steps"]]}
            rows.append({**run, "seed": seed, "quantity": quantity, "begins": begins, "ends": ends, **found})
    columns = [*runs.columns, "seed", "quantity", "begins", "ends", "start", "free_end", "held_end"]
    return pd.DataFrame(rows, columns=columns)


def early_against(kept: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Hold the early space against every other space, on the seeds that both have; all else is the same.

    ``kept``: from :func:`start_and_ends`, with the progress ``kept``.
    ``quantity``: a key of :data:`RULERS`.
    Returns ``run, other space, seeds``, progress kept by either on these seeds, and by the early space on all of its
    own; the difference with its 95% interval, and what it says: ``more``, ``less``, ``not told apart``, ``one seed``.
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
            row[ALL_SEEDS] = f"{wide['early space'].mean():.0%}"
            row["difference"] = f"{gap.mean:+.0%}" + (f" ({gap.low:+.0%} to {gap.high:+.0%})" if gap.n > 1 else "")
            row["verdict"] = how if gap.n > 1 else "one seed"
            table += [row] if gap.n else []
    return pd.DataFrame(table)


def every_run(kept: pd.DataFrame) -> pd.DataFrame:
    """Lay out the progress that every projected run kept, as text: a row for each run and ruler, with its seeds.

    ``kept``: from :func:`start_and_ends`, with the progress ``kept``; a seed without a number counts among no seeds.
    """
    table = []
    for _, own in kept.groupby(["quantity", "recipe"], sort=False):
        ends = own[["kept", "held_end", "free_end"]].to_numpy(float)
        ruler, part = str(own["quantity"].iloc[0]), seed_interval(ends[:, 0])
        gap = seed_interval(ends[:, 1] - ends[:, 2]).mean
        row = {"run": label(str(own["free"].iloc[0])), "held in": own["space"].iloc[0]}
        row["progress kept"] = "-" if part.n == 0 else f"{part.mean:.0%}"
        row["95% interval"] = f"{part.low:.0%} to {part.high:.0%}" if part.n > 1 else "one seed"
        row |= {"seeds": f"{part.n} of {len(own)}", "ruler": RULERS[ruler], "K": own["rank"].iloc[0]}
        row |= {
            "from": f"{own['share'].iloc[0]:.0%}",
            "free gain": f"{(own['free_end'] - own['start']).abs().mean():.4f}",
        }
        row["held minus free"] = f"{100 * gap:+.1f} points" if ruler == "accuracy" else f"{gap:+.4f} nats"
        table.append(row)
    return pd.DataFrame(table).sort_values("ruler", kind="stable") if table else pd.DataFrame()


def say_basis(runs: pd.DataFrame) -> str:
    """Say how many projected recipes rest on how many seeds; those of one are sweeps.

    >>> say_basis(pd.DataFrame({"recipe": ["a", "a", "b"], "seed": [0, 1, 0]}))
    'Projected runs: 1 recipe with 2 seeds; 1 with one seed only, so without an interval and no ground for a verdict.'
    """
    counts = runs.groupby("recipe")["seed"].nunique().value_counts().sort_index(ascending=False)
    said = []
    for seeds, n in counts.items():
        what = "" if said else f" recipe{'s' * (n != 1)}"
        lone = "one seed only, so without an interval and no ground for a verdict"
        said.append(f"{n}{what} with " + (f"{seeds} seeds" if seeds != 1 else lone))
    return f"Projected runs: {'; '.join(said)}."


def _progress_from(measures: pd.DataFrame, own: pd.DataFrame, exact: int) -> str:
    """Say what share of its progress to the teacher a held run keeps, counted from its own value at its exact start."""
    rows = own[own["quantity"].eq("teacher_distance")].set_index("seed")
    here = measures["recipe"].isin(rows["recipe"]) & measures["step"].eq(exact) & measures["null"].eq("")
    here &= measures["quantity"].eq("teacher_distance")
    start = measures[here].set_index("seed")["value"].reindex(rows.index)
    near = np.nanmean(((rows["held_end"] - rows["start"]) / (rows["free_end"] - rows["start"])).to_numpy(float))
    from_own = np.nanmean(((rows["held_end"] - start) / (rows["free_end"] - start)).to_numpy(float))
    if math.isnan(near) or math.isnan(from_own):
        return ""
    return f"; from its own distance at {exact} on, the held run keeps {from_own:.0%} of the progress, not {near:.0%}"


def say_starts(measures: pd.DataFrame, ends: pd.DataFrame) -> str:
    """Say where a free run's nearest checkpoint stands in for the exact start of a projection, and how far off it is.

    ``measures``: the long table; a held run that was measured at its exact start gives the comparison.
    ``ends``: from :func:`start_and_ends`.
    """
    said: dict[tuple[str, int], str] = {}
    apart = pd.DataFrame(ends[ends["quantity"].eq("accuracy") & ends["starts"].ne(ends["begins"])])
    for name, own in apart.groupby("recipe", sort=False):
        free, exact, near = own[["free", "starts", "begins"]].iloc[0].tolist()
        if (free, exact) in said:
            continue
        exactly = measures["recipe"].eq(name) & measures["step"].eq(exact) & measures["quantity"].eq("accuracy")
        at = measures.loc[exactly, "value"]
        text = f"{label(str(free))} has no checkpoint at update {exact}, so that at {near} stands in"
        text += f" (accuracy {own['start'].mean():.1%}; {at.mean():.1%} at {exact})" if len(at) else ""
        text += _progress_from(measures, pd.DataFrame(ends[ends["recipe"].eq(name)]), int(exact))
        said[free, exact] = text
    return "; ".join(said.values()) + "." if said else "Every free run has a checkpoint where its projection begins."


def say_inside(inside: pd.DataFrame) -> str:
    """Say how much of OPD's realised update lies in its early space, and how much the projection lets escape.

    Parameters
    ----------
    inside
        One row per (projected run, seed): ``free, space, sweep, inside, isotropic``, shares from 0 to 1.
    """
    rows = inside.loc[inside["sweep"].eq("space") & ~inside["space"].str.endswith("update held")]
    early = rows.loc[rows["free"].eq("opd") & rows["space"].eq("early space")]
    if early.empty:
        return "No run of OPD in its early space is in these tables."
    held, chance = early["inside"].mean(), early["isotropic"].mean()
    means = rows.groupby(["free", "space"])["inside"].agg("mean")
    return (
        f"Of OPD's update {1 - held:.0%} escapes the early space on which its gradient was projected; without "
        f"direction {1 - chance:.0%} would. Of all projected runs {1 - means.max():.0%} to {1 - means.min():.0%} do."
    )


def say_rulers(rulers: pd.DataFrame) -> str:
    """Say which ruler is finer, by the smallest gain over the spread of the seeds among the runs.

    Parameters
    ----------
    rulers
        ``ruler, gain`` and ``seed spread``.
    """
    times = (rulers.loc[:, "gain"].abs() / rulers.loc[:, "seed spread"]).groupby(rulers["ruler"], sort=False).min()
    known = times.dropna().sort_values(ascending=False)
    if known.empty:
        return "One seed has no spread."
    said = (
        f"The finer ruler is {known.index[0]}: its gain is at least {known.iloc[0]:.1f} times the spread of the seeds"
    )
    return said + "".join(f", that by {ruler} {least:.1f} times" for ruler, least in known.iloc[1:].items()) + "."


def say_spaces(against: pd.DataFrame) -> str:
    """Say what the early space keeps, and beside which other spaces that is more, less, or not told apart.

    Parameters
    ----------
    against
        From :func:`early_against`.
    """
    if against.empty:
        return "No other space was tried."
    words = {"more": "more than", "less": "less than", "not told apart": "not told apart from"}
    said = []
    for run, own in against.groupby("run", sort=False):
        parts = []
        for verdict in (word for word in words if word in set(own["verdict"])):
            rows = own.loc[own["verdict"] == verdict, ["other space", "other keeps"]].to_numpy()
            parts.append(f"{words[verdict]} {listed(f'{space} ({kept})' for space, kept in rows)}")
        lone = own["verdict"].tolist().count("one seed")
        parts += [f"{lone} other space{'s' * (lone != 1)} with one seed, not compared"] if lone else []
        said.append(f"{run}'s early space keeps {own[ALL_SEEDS].iloc[0]}: {'; '.join(parts)}")
    return ". ".join(said) + "."


def say_sweep(early: pd.DataFrame, along: str, words: str) -> str:
    """Say what the first and the last place of a sweep keep, and from where on four fifths are kept.

    Parameters
    ----------
    early
        Rows with ``kept``, a share, and the column ``along``.
    along, words
        Column of the sweep, and the format of a place in it, such as ``"K = {:g}"``.

    Examples
    --------
    >>> rows = pd.DataFrame({"rank": [1, 4, 16], "kept": [0.5, 0.9, 0.95]})
    >>> say_sweep(rows, "rank", "K = {:g}")
    'Four fifths are kept from K = 4 on (K = 1 keeps 50%, K = 16 keeps 95%).'
    """
    means = early.groupby(along).agg({"kept": "mean"}).loc[:, "kept"].dropna()
    if means.empty:
        return "No place of this sweep has a number."
    enough = [place for place in means.index if (means[means.index >= place] >= ENOUGH).all()]
    ends = dict.fromkeys([means.index[0], means.index[-1]])
    said = ", ".join(f"{words.format(place)} keeps {means[place]:.0%}" for place in ends)
    last = f"kept from {words.format(enough[0])} on" if enough else "not kept at the last place"
    return f"Four fifths are {last} ({said})."
