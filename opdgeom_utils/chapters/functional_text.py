"""What the chapter on functional sufficiency says in words, each sentence computed from its tables."""

from __future__ import annotations

import pandas as pd

from opdgeom_utils.charts.theme import label
from opdgeom_utils.recipes import load_recipe


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
        From :func:`~opdgeom_utils.chapters.functional_tables.progress`.
    rows
        From :func:`~opdgeom_utils.chapters.functional_tables.function_table`; a held run measured at its exact start
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
    """List what :func:`~opdgeom_utils.chapters.functional_tables.early_against` found.

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
        From :func:`~opdgeom_utils.chapters.functional_tables.inside_table`.
    kept
        From :func:`~opdgeom_utils.chapters.functional_tables.progress`.
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
