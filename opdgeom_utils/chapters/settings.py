"""The tables of the chapter on settings: OPD under other circumstances, beside its seeds, its nulls and the paper."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from opdgeom_utils.chapters.model_cards import model_facts
from opdgeom_utils.claims import matching
from opdgeom_utils.claims.look_up import Runs, Tables, runs_of, value_at
from opdgeom_utils.claims.setting_statistics import PAPER_STEPS
from opdgeom_utils.intervals import further_seed
from opdgeom_utils.models import MODELS, resolve_model
from opdgeom_utils.scopes import ATTENTION
from opdgeom_utils.vocabulary import label, metric_of

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
MODEL_NAMES = ("anchor", "teacher", "teacher_small", "teacher_large", "teacher_moe", "student_small")


def words(recipe: str) -> str:
    """Name of a recipe in this chapter's tables.

    >>> words("opd_code"), words("rlvr")
    ('code only', 'RLVR')
    """
    return SETTINGS.get(recipe, label(recipe))


def say_trained(held: Sequence[str]) -> str:
    """Say, in Markdown, which of the settings the tables have, so that no page promises a run that is not there.

    >>> say_trained([]).split(".")[0]
    '**None of the 6 settings has been trained for these tables'
    >>> say_trained(["opd_code"])
    '**1 of 6 settings is in these tables**, one seed each: code only.'
    """
    if not held:
        return (
            f"**None of the {len(SETTINGS)} settings has been trained for these tables.** This page has the method, "
            "the surgery, OPD's own seeds and the paper's rows; what it asks stays open until `make models` and "
            "`make runs` have made the rest."
        )
    names, verb = ", ".join(SETTINGS[name] for name in held), "is" if len(held) == 1 else "are"
    return f"**{len(held)} of {len(SETTINGS)} settings {verb} in these tables**, one seed each: {names}."


def setting_rows(tables: Tables) -> pd.DataFrame:
    """One row per run: every setting at its end, OPD at as many updates, SFT and RLVR at the paper's proportions.

    Parameters
    ----------
    tables
        Geometry and accuracy of one profile. Settings that they lack do not appear.

    Returns
    -------
    DataFrame
        ``recipe, seed, step``, the six diagnostics and their shuffled nulls (sparsity over all tensors, the others over
        the attention matrices), and ``gain``, sampled accuracy minus its start on the same prompts. Numbers of RLVR are
        interpolated between two checkpoints where it has none at its place.
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


def setting_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Write each recipe's numbers as text, mean over its seeds, the shuffled null in brackets.

    >>> rows = pd.DataFrame({"recipe": ["opd"], "seed": [0], "step": [40.0], "gain": [0.02]})
    >>> for metric in matching.METRICS:
    ...     rows = rows.assign(**{metric: 0.5, f"{metric}_shuffled": 0.4})
    >>> setting_table(rows).iloc[0, [0, 2, 3]].tolist()
    ['OPD', '40', '50.0% (40.0%)']
    """
    out = []
    for recipe, own in rows.groupby("recipe", sort=False):
        row: dict[str, object] = {"run": words(str(recipe)), "seeds": len(own), "updates": f"{own['step'].mean():.0f}"}
        for metric in matching.METRICS:
            shown = metric_of(metric).shown
            value, null = own[metric].mean(), own[f"{metric}_shuffled"].mean()
            row[metric_of(metric).title] = f"{value:{shown}} ({null:{shown}})"
        row[metric_of("gain").title] = f"{own['gain'].mean():+.1%}"
        out.append(row)
    return pd.DataFrame(out)


def beside_the_paper(rows: pd.DataFrame, table1: pd.DataFrame) -> pd.DataFrame:
    """Lay update sparsity beside the paper's nearest row, and its place on the way from SFT (0) to RLVR (1).

    Parameters
    ----------
    rows
        From :func:`setting_rows`.
    table1
        The paper's Table 1, from ``load_reported("table1_sparsity")``.

    Returns
    -------
    DataFrame
        ``run, sparsity, place, the paper's row, its sparsity, its place``; numbers, not text.
    """
    ours = {
        str(r): float(own["update_sparsity"].to_numpy(float).mean()) for r, own in rows.groupby("recipe", sort=False)
    }
    theirs = dict(zip(table1["finetuned"], table1["update_sparsity"].to_numpy(float), strict=True))
    ends = {name: theirs[COUNTERPARTS[name]] for name in ("sft", "rlvr")}
    out = []
    for recipe, value in ours.items():
        pair = COUNTERPARTS[recipe]
        out.append({
            "run": words(recipe),
            "sparsity": value,
            "place": (value - ours["sft"]) / (ours["rlvr"] - ours["sft"]),
            "the paper's row": pair,
            "its sparsity": theirs[pair],
            "its place": (theirs[pair] - ends["sft"]) / (ends["rlvr"] - ends["sft"]),
        })  # fmt: skip
    return pd.DataFrame(out)


def papers_places(table1: pd.DataFrame) -> pd.DataFrame:
    """Place of every OPD row of the paper's Table 1 on the way from its SFT row (0) to its RLVR row (1).

    >>> table1 = pd.DataFrame(
    ...     {
    ...         "finetuned": ["Qwen3-8B-SFT", "OPD-8B-T32B", "RLVR-8B"],
    ...         "algorithm": ["SFT", "OPD", "GRPO"],
    ...         "update_sparsity": [0.0, 0.5, 1.0],
    ...     }
    ... )
    >>> papers_places(table1).values.tolist()
    [['OPD-8B-T32B', 0.5, 0.5]]
    """
    by_name = table1.set_index("finetuned")["update_sparsity"]
    low, high = (by_name[COUNTERPARTS[name]] for name in ("sft", "rlvr"))
    rows = table1.loc[table1["algorithm"] == "OPD", ["finetuned", "update_sparsity"]]
    return rows.assign(place=(rows["update_sparsity"] - low) / (high - low)).reset_index(drop=True)


def say_places(beside: pd.DataFrame, ranges: pd.DataFrame) -> str:
    """Say how many settings lie between SFT and RLVR by update sparsity, and how many leave the range of seeds."""
    places = beside.loc[beside["run"].isin(list(SETTINGS.values())), "place"]
    if places.empty:
        return "No setting is in these tables."
    between = int(places.between(0, 1).sum())
    mine = ranges.loc[ranges["run"].isin(list(SETTINGS.values()))]
    runs, metrics = set(mine.loc[:, "run"]), set(mine.loc[:, "metric"])
    beyond = set(mine.loc[~mine["inside"].astype(bool), "run"])
    return (
        f"By update sparsity {between} of {len(places)} settings lie between SFT and RLVR. "
        f"{len(beyond)} of {len(runs)} leave the range of a further seed of OPD in at least one of {len(metrics)} "
        "diagnostics."
    )


def in_seed_ranges(rows: pd.DataFrame) -> pd.DataFrame:
    """Distance from OPD's mean in units of the reach of a further seed: between -1 and 1 a seed could have done it.

    A seed of OPD is held against the range of the *other* seeds; its own number would widen the range and hide it.

    Returns
    -------
    DataFrame
        ``run, metric, value, distance, low, high, inside``, one row per setting or seed of OPD, and diagnostic; ``low``
        and ``high`` end the 95% prediction interval for one more seed. Empty where OPD has too few seeds for one.
    """
    first = rows["recipe"].isin(list(SETTINGS))
    opd, out = rows.loc[rows["recipe"] == "opd"], []
    shown_runs = pd.concat([rows.loc[first], opd.sort_values("seed")])
    for metric in matching.METRICS:
        for recipe, seed, value in shown_runs[["recipe", "seed", metric]].itertuples(index=False):
            others = opd if recipe in SETTINGS else opd.loc[opd["seed"] != seed]
            low, high = further_seed(others[metric].to_numpy(float))
            run = words(recipe) if recipe in SETTINGS else f"OPD, seed {seed}"
            distance = (value - (low + high) / 2) / ((high - low) / 2)
            shown = (run, metric_of(metric).words, value, distance, low, high)
            out.append((*shown, low <= value <= high))
    table = pd.DataFrame(out, columns=["run", "metric", "value", "distance", "low", "high", "inside"])
    return table.loc[table["distance"].notna()].reset_index(drop=True)


def say_settings(rows: pd.DataFrame, ranges: pd.DataFrame) -> list[str]:
    """One sentence for each question: update sparsity of its settings, and how many diagnostics leave OPD's seeds."""
    said = []
    for question, recipes in QUESTIONS.items():
        parts = []
        for recipe in recipes:
            own, mine = rows.loc[rows["recipe"] == recipe], ranges.loc[ranges["run"] == words(recipe)]
            if own.empty:
                continue
            beyond = list(mine.loc[~mine["inside"].astype(bool), "metric"])
            tail = f"{len(beyond)} of {len(mine)} diagnostics outside the range of a further seed of OPD"
            tail += f" ({', '.join(beyond)})" if beyond else ""
            where = f"sparsity {own['update_sparsity'].mean():.1%}, gain {own['gain'].mean():+.1%}"
            parts.append(f"{words(recipe)}: {where}; {tail}")
        said.append(f"**{question}.** " + (". ".join(parts) if parts else "Not measured in these tables") + ".")
    return said


def model_table(names: Iterable[str] = MODEL_NAMES, folder: Path = MODELS) -> pd.DataFrame:
    """Sizes of the shipped models and the accuracy that their cards print; a model that was not built is left out."""
    found = [name for name in names if (folder / name / "config.json").is_file()]
    facts = model_facts(found).reindex(columns=["model", "parameters", "layers", "megabytes"])
    return facts.assign(
        **{"greedy": [_card(n, "greedy") for n in found], "sampled": [_card(n, "sampled") for n in found]}
    )


def _card(name: str, kind: str) -> float:
    """Read the mean accuracy that a model's card prints."""
    card = (Path(resolve_model(name)) / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"mean {kind} (\d\.\d+)", card)
    return float(found.group(1)) if found else float("nan")
