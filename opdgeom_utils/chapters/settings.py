"""The tables of the chapter on settings: OPD under other circumstances, beside its seeds, its nulls and the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from opdgeom_utils.claims import matching
from opdgeom_utils.claims.look_up import Runs, Tables, runs_of, value_at
from opdgeom_utils.claims.setting_statistics import PAPER_STEPS
from opdgeom_utils.intervals import further_seed, number
from opdgeom_utils.models import MODELS
from opdgeom_utils.recipes import load_recipe, recipe_names
from opdgeom_utils.scopes import ATTENTION
from opdgeom_utils.trained_models import models_of
from opdgeom_utils.vocabulary import label, listed, metric_of

SETTINGS = {
    "opd_teacher_small": "teacher of two layers",
    "opd_teacher_large": "teacher of five layers",
    "opd_teacher_moe": "mixture-of-experts teacher",
    "opd_student_small": "student of two layers",
    "opd_mathematics": "mathematics only",
    "opd_code": "code only",
}
QUESTIONS = {
    "Teacher size": ("opd_teacher_small", "opd_teacher_large"),
    "Kind of teacher": ("opd_teacher_moe",),
    "Student size": ("opd_student_small",),
    "Training domain": ("opd_mathematics", "opd_code"),
}
COUNTERPARTS = {
    "sft": "Qwen3-8B-SFT",
    "opd": "OPD-8B-T32B",
    "opd_teacher_small": "OPD-4B-T8B",
    "opd_teacher_large": "OPD-4B-T32B",
    "opd_teacher_moe": "OPD-8B-T32B-MoE",
    "opd_student_small": "OPD-4B-T32B",
    "opd_mathematics": "OPD-8B-T32B",
    "opd_code": "OPD-8B-T32B-Code",
    "rlvr": "RLVR-8B",
}
WITHIN = "settings_sparsity_within_seeds_corrected_seen"  # the claim on the range of the furthest of many seeds
EQUAL_UPDATES = "settings_sparsity_order_equal_updates"


def setting_label(recipe: str) -> str:
    """Name of a recipe in this chapter's tables.

    >>> setting_label("opd_code"), setting_label("rlvr")
    ('code only', 'RLVR')
    """
    return SETTINGS.get(recipe, label(recipe))


def say_trained(held: Sequence[str], profile: str) -> str:
    """Say, in Markdown, which of the settings the tables have, so that no page promises a run that is not there.

    >>> say_trained([], "first_regime").split(".")[0]
    '**None of the 6 settings has been trained for these tables'
    >>> say_trained(["opd_code"], "first_regime")
    '**1 of 6 settings is in these tables**, one seed each: code only.'
    >>> say_trained([], "smollm2-135m").split("** ")[0]
    '**None of the 6 settings is in these tables, nor a recipe of profile smollm2-135m.'
    """
    names, verb = ", ".join(SETTINGS[name] for name in held), "is" if len(held) == 1 else "are"
    if held:
        return f"**{len(held)} of {len(SETTINGS)} settings {verb} in these tables**, one seed each: {names}."
    rest = "This page has the method, the surgery, OPD's own seeds and the paper's rows; what it asks stays open"
    if set(SETTINGS) & set(recipe_names(profile)):
        return (
            f"**None of the {len(SETTINGS)} settings has been trained for these tables.** {rest} until `make models` "
            f"and `make runs PROFILE={profile}` have made the rest."
        )
    return (
        f"**None of the {len(SETTINGS)} settings is in these tables, nor a recipe of profile {profile}.** {rest}. To "
        f"ask it of {profile}: in data/recipes/{profile}.yaml, write `opd_mathematics` and `opd_code` as "
        "first_regime.yaml has them, with a part of your own problems as `mixture`, or `opd_teacher_small` and "
        f"`opd_teacher_large` with other teachers; then `make runs PROFILE={profile} ADD=1`. Each takes about as long "
        "as a run of `opd`."
    )


def shipped_models(profile: str) -> list[str]:
    """Names of the models that come with the book and that OPD and the settings of a profile use, if they are here.

    >>> shipped_models("first_regime")[:3], shipped_models("smollm2-135m")
    (['anchor', 'teacher', 'teacher_small'], [])
    """
    names = [name for name in ("opd", *SETTINGS) if name in recipe_names(profile)]
    models = [model for name in names for model in models_of(load_recipe(name, profile))]
    return [model for model in dict.fromkeys(models) if (MODELS / model / "config.json").is_file()]


def setting_rows(tables: Tables) -> pd.DataFrame:
    """One row per run: every setting at its end, OPD at as many updates, SFT and RLVR at the paper's proportions.

    ``tables``: geometry and accuracy of one profile. Settings that they lack do not appear.
    Returns ``recipe, seed, step``, the six diagnostics and their shuffled nulls (sparsity over all tensors, the others
    over the attention matrices), and ``gain``, sampled accuracy minus its start on the same prompts. Numbers of RLVR
    are interpolated between two checkpoints where it has none at its place.
    """
    attention, everything = (runs_of(matching.summarise(tables.geometry, m)) for m in (ATTENTION, None))
    gains = runs_of(matching.accuracy_gain(tables.accuracy))
    held = list(dict.fromkeys(recipe for recipe, _ in attention))
    settings = [recipe for recipe in SETTINGS if recipe in held]
    own = [recipe for recipe in settings or ["opd"] if recipe in held]
    step = min(_last(run) for (recipe, _), run in attention.items() if recipe in own)
    places = {"sft": None, "opd": step, **dict.fromkeys(settings, step), "rlvr": step * PAPER_STEPS}
    rows = [
        _row(recipe, seed, at, attention, everything, gains)
        for recipe, at in places.items()
        for name, seed in attention
        if name == recipe
    ]
    return pd.DataFrame(rows)


def _last(run: pd.DataFrame) -> float:
    return float(run.loc[:, "step"].to_numpy(float).max())


def _row(
    recipe: str, seed: int, step: float | None, attention: Runs, everything: Runs, gains: Runs
) -> dict[str, object]:
    row: dict[str, object] = {"recipe": recipe, "seed": seed}
    row["step"] = _last(attention[recipe, seed]) if step is None else step
    for metric in matching.METRICS:
        runs = everything if metric == "update_sparsity" else attention
        for column in (metric, f"{metric}_shuffled"):
            row[column] = value_at(runs, recipe, seed, step, column)
    row["gain"] = value_at(gains, recipe, seed, step, "gain")
    return row


def in_seed_ranges(rows: pd.DataFrame) -> pd.DataFrame:
    """Distance from OPD's mean in units of the reach of a further seed: between -1 and 1 a seed could have done it.

    A seed of OPD is held against the range of the *other* seeds; its own number would widen the range and hide it.
    Returns ``run, metric, value, distance, low, high, inside``, one row per setting or seed of OPD, and diagnostic;
    ``low`` and ``high`` end the 95% prediction interval for one more seed. Empty where OPD has too few seeds for one.
    """
    first = rows["recipe"].isin(list(SETTINGS))
    opd, out = rows.loc[rows["recipe"] == "opd"], []
    shown_runs = pd.concat([rows.loc[first], opd.sort_values("seed")])
    for metric in matching.METRICS:
        for recipe, seed, value in shown_runs[["recipe", "seed", metric]].itertuples(index=False):
            others = opd if recipe in SETTINGS else opd.loc[opd["seed"] != seed]
            low, high = further_seed(others[metric].to_numpy(float))
            run = setting_label(recipe) if recipe in SETTINGS else f"OPD, seed {seed}"
            distance = (value - (low + high) / 2) / ((high - low) / 2)
            shown = (run, metric_of(metric).words, value, distance, low, high)
            out.append((*shown, low <= value <= high))
    table = pd.DataFrame(out, columns=["run", "metric", "value", "distance", "low", "high", "inside"])
    return table.loc[table["distance"].notna()].reset_index(drop=True)


def say_cloud(rows: pd.DataFrame, ranges: pd.DataFrame) -> str:
    """Say how many settings lie in the range of a further seed of OPD by sparsity, and what the shuffle moves.

    Parameters
    ----------
    rows, ranges
        From :func:`setting_rows` and :func:`in_seed_ranges`.
    """
    own = ranges[ranges["run"].isin(list(SETTINGS.values())) & ranges["metric"].eq(metric_of("update_sparsity").words)]
    if own.empty:
        return "No setting is in these tables, or OPD has too few seeds for a range."
    away = [str(run) for run in own.loc[~own["inside"].astype(bool), "run"]]
    moved = (rows.loc[:, "update_sparsity"] - rows.loc[:, "update_sparsity_shuffled"]).abs().max()
    where = f"By sparsity {len(own) - len(away)} of {len(own)} settings lie in the range of a further seed"
    where += f"; outside: {listed(away)}" if away else ""
    return f"{where}. Shuffling moves no run's sparsity by more than {number(float(moved), unit='points')}."


def say_cells(ranges: pd.DataFrame) -> str:
    """Count the cells outside the range of a further seed: of the settings, and of OPD's own seeds, their null."""
    setting, outside = ranges.loc[:, "run"].isin(list(SETTINGS.values())), ~ranges.loc[:, "inside"].astype(bool)
    if not setting.any():
        return "No setting is in these tables."
    runs = listed(str(run) for run in ranges.loc[setting & outside, "run"].unique())
    return (
        f"Outside lie {(setting & outside).sum()} of the settings' {setting.sum()} cells ({runs}), and "
        f"{(~setting & outside).sum()} of the {(~setting).sum()} of OPD's own seeds."
    )


def say_places(places: pd.Series) -> str:
    """Say which runs lie between SFT, at 0, and RLVR, at 1, and where OPD lies.

    >>> say_places(pd.Series({"SFT": 0.0, "OPD": 1.5, "code only": 0.5, "RLVR": 1.0}))
    'Between SFT and RLVR lie 1 of the 2 others (code only); OPD is at 1.50.'
    """
    if places.filter(["SFT", "RLVR"]).isna().any():
        long = f"RLVR for {PAPER_STEPS:.2f} times the updates of OPD"
        return f"No place is defined: that takes a run of SFT, and one of {long}, as in the paper."
    others = places.drop(["SFT", "RLVR"], errors="ignore")
    inside = [str(run) for run, place in others.items() if 0 <= place <= 1]
    named = f" ({listed(inside)})" if inside else ""
    opd = f"; OPD is at {others['OPD']:.2f}" if "OPD" in others else ""
    return f"Between SFT and RLVR lie {len(inside)} of the {len(others)} others{named}{opd}."


def came_out(rows: pd.DataFrame, ranges: pd.DataFrame, places: Mapping[str, float], card: pd.DataFrame) -> str:
    """Say whether another teacher, student or domain moves OPD further than a seed does, and where the settings lie.

    Parameters
    ----------
    rows, ranges
        From :func:`opdgeom_utils.chapters.settings.setting_rows` and ``in_seed_ranges``.
    places
        Place of each run on the way from SFT, at 0, to RLVR, at 1, by sparsity.
    card
        The verdicts on settings.
    """
    mine = ranges.loc[ranges["run"].isin(list(SETTINGS.values()))]
    if mine.empty:
        return "No setting is in these tables."
    outside = mine.loc[~mine["inside"].astype(bool)]
    seeds, settings = _cells_of_seeds(ranges), mine["run"].nunique()
    between = sum(0 <= place <= 1 for run, place in places.items() if run in SETTINGS.values())
    order = "as the paper says" if between == settings else "against the paper's order"
    return (
        f"{_further(card, outside['run'].nunique(), settings)}\nBy the range of a single further seed of OPD "
        f"{len(outside)} of {len(mine)} numbers are outside; of OPD's own seeds, each held against the others, "
        f"{seeds}. {_largest_shift(rows)}Between SFT and RLVR by sparsity lie {between} of {settings}, {order}"
        f"{_at_equal_updates(card, settings)}."
    )


def _further(card: pd.DataFrame, away: int, settings: int) -> str:
    """Say how many settings take OPD further than another seed would, with an allowance for many comparisons.

    >>> card = pd.DataFrame({"id": [WITHIN], "value": [0.75]})
    >>> _further(card, 3, 4)
    'Of 4 other teachers, students and data 1 takes OPD further than another seed would by sparsity, with an allowance
    for so many. (One seed of each can show a difference, not its absence.)'
    """
    shares = card.loc[card["id"].eq(WITHIN), "value"].dropna().tolist()
    if not shares:
        return f"{away} of {settings} settings take OPD further than another seed would, in some diagnostic."
    out = round((1 - shares[0]) * settings)
    return (
        f"Of {settings} other teachers, students and data {out} {'takes' if out == 1 else 'take'} OPD further than "
        "another seed would by sparsity, with an allowance for so many. (One seed of each can show a difference, not "
        "its absence.)"
    )


def _at_equal_updates(card: pd.DataFrame, settings: int) -> str:
    """Say how many settings lie between control SFT and RLVR after as many updates; nothing where that is not judged.

    >>> card = pd.DataFrame({"id": [EQUAL_UPDATES], "value": [0.75]})
    >>> _at_equal_updates(card, 4), _at_equal_updates(card.assign(value=float("nan")), 4)
    ('; after as many updates 3 of 4 lie between control SFT and RLVR', '')
    """
    shares = card.loc[card["id"].eq(EQUAL_UPDATES), "value"].dropna().tolist()
    if not shares:
        return ""
    return f"; after as many updates {round(shares[0] * settings)} of {settings} lie between control SFT and RLVR"


def _cells_of_seeds(ranges: pd.DataFrame) -> str:
    own = ranges.loc[~ranges["run"].isin(list(SETTINGS.values()))]
    return f"{own['inside'].astype(bool).tolist().count(False)} of {len(own)}"


def _largest_shift(rows: pd.DataFrame) -> str:
    """Say how far a setting moves sparsity at most, and how much of that a shuffle moves."""
    means = rows.groupby("recipe")["update_sparsity"].agg("mean").to_dict()
    own = [name for name in SETTINGS if name in means]
    if not own or "opd" not in means:
        return ""
    furthest = max(own, key=lambda name: abs(float(means[name] - means["opd"])))
    gap = abs(float(means[furthest] - means["opd"]))
    both = rows[["update_sparsity", "update_sparsity_shuffled"]].to_numpy(float)
    most = float(abs(both[:, 0] - both[:, 1]).max())
    size = ": what differs is how large the update is beside the weights, not its place" if most < gap / 2 else ""
    return (
        f"By {metric_of('update_sparsity').words} the largest move is {number(gap, unit='points')} "
        f"({SETTINGS[furthest]}); shuffling moves no run by more than {number(most, unit='points')}{size}. "
    )
