"""The tables of the chapters on control: which variant did what to OPD's path, its spaces and its skill.

Everything is cut from the long table of :mod:`opdgeom_utils.measures.long_table`. A variant that a profile has not, or
a seed that was not trained, is simply not there; :func:`say_seeds` says how many seeds each number rests on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from opdgeom_utils.chapters.settings import SETTINGS
from opdgeom_utils.chapters.update_path import K
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.measures.paths import SIDES
from opdgeom_utils.vocabulary import label

TOKENS = {
    "opd_top50": "top 50%", "opd_top25": "top 25%", "opd_top10": "top 10%", "opd_top5": "top 5%",
    "opd_random50": "random 50%", "opd_random25": "random 25%",
    "opd_random10": "random 10%", "opd_random5": "random 5%",
    "opd_top25_raw": "top 25% (not rescaled)", "opd_random25_raw": "random 25% (not rescaled)",
}  # fmt: skip
WRITERS = {
    "opd_teacher_writes": "teacher writes", "opd_anchor_writes": "anchor writes", "opd_base_writes": "base writes",
    "opd_full_vocab": "full vocabulary", "opd_teacher_writes_full_vocab": "teacher, full vocabulary",
}  # fmt: skip
HALF_OR_QUARTER = ("opd_top50", "opd_random50", "opd_top25", "opd_random25")
MAIN_TOKENS = (*HALF_OR_QUARTER, "opd_top5", "opd_random5")  # drawn; the others are to be unfolded
OTHER_WRITERS = ("opd_teacher_writes", "opd_anchor_writes", "opd_base_writes")
ALPHAS = {"75": 0.75, "50": 0.5, "25": 0.25, "05": 0.05, "01": 0.01}
RAW = {f"mix_{name}": f"alpha {alpha:g}" for name, alpha in ALPHAS.items()}
EQUAL = {f"equal_mix_{name}": f"alpha {alpha:g} (equal norms)" for name, alpha in ALPHAS.items()}
MAIN_MIXTURES = tuple(f"{kind}mix_{name}" for name in ("50", "25", "05") for kind in ("", "equal_"))
MIX_ORDER = ["1", *(f"{alpha:g}" for alpha in ALPHAS.values()), "0"]
MIX_PLACES = {name: (f"{a:g}", "raw") for name, a in zip(RAW.values(), ALPHAS.values(), strict=True)}
MIX_PLACES |= {name: (f"{a:g}", "equal norms") for name, a in zip(EQUAL.values(), ALPHAS.values(), strict=True)}
VARIANTS = {**TOKENS, **WRITERS, **RAW, **EQUAL}
PARTS = ("path", "function", "moments", "overlaps")  # of the long table, what these chapters read
WORDS = {**VARIANTS, **SETTINGS, "random_credit": "random credit"}
PLACE = 40
GATE = "rlvr_leaves_opds_path"  # the claim on which those about paths rest
OTHER_SEED, AGAINST = "another seed of OPD", "OPD and RLVR"
STRIP = ["row", "panel", "kind", "seed", "value"]


def variant_label(recipe: str) -> str:
    """Name of a variant in a figure.

    >>> variant_label("opd_top25"), variant_label("mix_05"), variant_label("opd")
    ('top 25%', 'alpha 0.05', 'OPD')
    """
    return WORDS.get(recipe, label(recipe))


def another_seed(recipe: str) -> str:
    """Row of a recipe's own other seeds.

    >>> another_seed("rlvr"), another_seed("opd") == OTHER_SEED
    ('another seed of RLVR', True)
    """
    return f"another seed of {label(recipe)}"


def common_update(measures: pd.DataFrame) -> int:
    """Return the update at which runs are compared: OPD's end where its variants are as long, else 40 at the most."""
    ends = pick(measures, quantity="stable_rank", null="").groupby("recipe")["step"].agg("max").to_dict()
    if "opd" not in ends:
        raise MetricInputError("the measures hold no stable rank of opd, expected its path")
    variants = [ends[name] for name in VARIANTS if name in ends]
    as_long = bool(variants) and min(variants) >= ends["opd"]
    return int(ends["opd"] if as_long else min(PLACE, ends["opd"]))


def path_table(measures: pd.DataFrame, recipes: Iterable[str]) -> pd.DataFrame:
    """One panel per variant with the path of its stable rank, and OPD's and RLVR's over the same updates in each.

    Returns ``panel, recipe, seed, step, value``; ``recipe`` is ``OPD``, ``RLVR`` or ``this variant``. Without any
    variant there is one panel, of the two alone.
    """
    until = common_update(measures)
    rows = pick(measures, quantity="stable_rank", null="", scope="attention", other_recipe="")
    rows = pd.DataFrame(rows.loc[rows["step"] <= until])
    held = set(rows["recipe"])
    here = [name for name in recipes if name in held]
    own = pick(rows, recipe=["opd", "rlvr"])
    own = own.assign(recipe=own["recipe"].map(label))
    parts = []
    for name in here:
        variant = pick(rows, recipe=name).assign(recipe="this variant")
        parts.append(pd.concat([own, variant]).assign(panel=variant_label(name)))
    table = pd.concat(parts) if parts else own.assign(panel="OPD and RLVR")
    return table.filter(items=["panel", "recipe", "seed", "step", "value"]).reset_index(drop=True)


def path_gaps(
    measures: pd.DataFrame, recipes: Iterable[str], quantity: str = "stable_rank", *, until: int | None = None
) -> pd.DataFrame:
    """Distance of each variant's path from OPD's of the same seed, beside OPD of the next seed and RLVR.

    The mean, over the checkpoints up to the common update that both have, of ``|log(run / OPD)|``: what the rule of the
    claims takes. Returns ``row, panel, kind, seed, value``; ``kind`` is ``variant`` or ``null``.
    ``until``: another update than the common one.
    """
    until = common_update(measures) if until is None else until
    rows = pick(measures, quantity=quantity, null="", scope="attention", other_recipe="").sort_values("step")
    paths: dict[tuple[str, int], dict[int, float]] = {}
    for recipe, seed, step, value in rows.filter(items=["recipe", "seed", "step", "value"]).itertuples(index=False):
        if step <= until:
            paths.setdefault((recipe, int(seed)), {})[step] = value
    seeds = sorted(int(s) for r, s in paths if r == "opd")
    pairs = [(variant_label(n), "variant", s, (n, s)) for n in recipes for s in seeds]
    turned = zip(seeds, seeds[1:] + seeds[:1], strict=True)
    pairs += [(OTHER_SEED, "null", s, ("opd", t)) for s, t in turned if s != t]
    pairs += [("RLVR", "null", s, ("rlvr", s)) for s in seeds]
    found = []
    for row, kind, seed, key in pairs:
        own, opd = paths.get(key, {}), paths["opd", seed]
        steps = [step for step in opd if step in own]
        if steps:
            gaps = np.abs(np.log([own[step] / opd[step] for step in steps]))
            found.append((row, "distance from OPD's path", kind, seed, float(gaps.mean())))
    return pd.DataFrame(found, columns=STRIP)


def at_update(
    measures: pd.DataFrame, recipes: Sequence[str], quantities: Mapping[str, str], **cell: Any
) -> pd.DataFrame:
    """One number per run at the common update, between two checkpoints by a straight line.

    ``recipes``: runs to show; OPD and RLVR are shown beside them as what they are compared with.
    ``quantities``: quantity -> name of its panel.
    """
    place, found = common_update(measures), []
    for quantity, panel in quantities.items():
        rows = pick(measures, recipe=[*recipes, "opd", "rlvr"], quantity=quantity, null="", **cell).sort_values("step")
        for name in dict.fromkeys([*recipes, "opd", "rlvr"]):
            for seed, own in pick(rows, recipe=name).groupby("seed"):
                steps = own["step"].to_numpy(float)
                if steps.min() <= place <= steps.max():
                    value = float(np.interp(place, steps, own["value"].to_numpy(float)))
                    kind = "null" if name in ("opd", "rlvr") else "variant"
                    found.append((variant_label(name), panel, kind, seed, value))
    return pd.DataFrame(found, columns=STRIP)


def overlap_table(measures: pd.DataFrame, recipes: Sequence[str], *, k: int = K) -> pd.DataFrame:
    """Overlap of each variant's update with OPD's of the same seed, and what seeds and objectives make of it.

    Nulls: OPD with OPD of other seeds, OPD with RLVR, and chance, the share that a random space of this size has.
    """
    rows = pick(measures, quantity="overlap", k=k, side=list(SIDES), null="", scope="attention")
    rows = pd.DataFrame(rows.loc[rows["step"] == common_update(measures)])
    same = rows["other_seed"] == rows["seed"]
    own = rows["recipe"].isin(recipes) & (rows["other_recipe"] == "opd") & same
    seeds = (rows["recipe"] == "opd") & (rows["other_recipe"] == "opd") & ~same
    against = (rows["recipe"] == "opd") & (rows["other_recipe"] == "rlvr") & same
    parts = [
        rows[own].assign(row=rows["recipe"].map(variant_label), kind="variant"),
        rows[seeds].assign(row=OTHER_SEED, kind="null"),
        rows[against].assign(row=AGAINST, kind="null"),
    ]
    table = pd.concat([*parts, _chance_rows(measures, k)])
    means = table.groupby(["row", "side", "kind", "seed"], sort=False).agg({"value": "mean"}).reset_index()
    order = [*map(variant_label, recipes), OTHER_SEED, AGAINST, "chance"]
    means = means.assign(panel=means["side"] + " space").sort_values(
        "row", key=lambda names: names.map(order.index), kind="stable"
    )
    return means.filter(items=STRIP).reset_index(drop=True)


def _chance_rows(measures: pd.DataFrame, k: int) -> pd.DataFrame:
    """Overlap of two random spaces of dimension ``k``, which depends on the shapes only, as rows of a null."""
    rows = pick(measures, quantity="moment_alignment", null="random", k=k, step=0)
    return rows.assign(row="chance", kind="null").filter(items=["row", "kind", "side", "seed", "value"])


def sweep(table: pd.DataFrame, settings: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Turn rows of variants into curves: ``settings`` gives each row's label its place and its curve.

    >>> rows = pd.DataFrame([["top 50%", "overlap", "variant", 0, 0.5]], columns=STRIP)
    >>> sweep(rows, {"top 50%": ("50%", "top")})[["setting", "series", "value"]].values.tolist()
    [['50%', 'top', 0.5]]
    """
    parts = [
        table[table["row"] == row].assign(setting=setting, series=series)
        for row, places in settings.items()
        for setting, series in [places]
    ]
    return pd.concat(parts).filter(items=["setting", "series", "panel", "seed", "value"]).reset_index(drop=True)


def say_distances(gaps: pd.DataFrame) -> str:
    """List which variants are nearer to OPD's path than another seed of OPD, and which are further than RLVR, by means.

    >>> rows = [("a", "variant", 0.1), (OTHER_SEED, "null", 0.2), ("RLVR", "null", 0.3), ("b", "variant", 0.4)]
    >>> print(say_distances(pd.DataFrame(rows, columns=["row", "kind", "value"]).assign(panel="p", seed=0)))
    - By means, another seed of OPD is 0.200 away, RLVR 0.300 (1 seed).
    - Nearer than another seed: a.
    - Further than RLVR: b.
    """
    means = {str(row): float(own["value"].to_numpy(float).mean()) for row, own in gaps.groupby("row", sort=False)}
    variants = list(dict.fromkeys(gaps.loc[gaps["kind"] == "variant", "row"]))
    if OTHER_SEED not in means or "RLVR" not in means:
        return "- These tables lack another seed of OPD, or RLVR, so there is nothing to hold a distance against."
    seed, rlvr, n = means[OTHER_SEED], means["RLVR"], gaps.loc[gaps["row"] == "RLVR", "seed"].nunique()
    said = [f"By means, another seed of OPD is {seed:.3f} away, RLVR {rlvr:.3f} ({n} seed{'s' * (n != 1)})."]
    groups = {
        "Nearer than another seed": [r for r in variants if means[r] < seed],
        "Further than another seed, nearer than RLVR": [r for r in variants if seed <= means[r] <= rlvr],
        "Further than RLVR": [r for r in variants if means[r] > max(rlvr, seed)],
    }
    said += [f"{words}: {', '.join(rows)}." for words, rows in groups.items() if rows]
    return "\n".join(f"- {line}" for line in said)


def say_seeds(table: pd.DataFrame) -> str:
    """Say in one sentence how many seeds the rows of a figure rest on; one seed is a sweep.

    >>> say_seeds(pd.DataFrame({"row": ["a", "a", "b"], "seed": [0, 1, 0]}))
    '1 row has 2 seeds. 1 row has one seed: a sweep, drawn without a bar.'
    """
    counts = table.groupby("row", sort=False)["seed"].nunique().value_counts().sort_index(ascending=False)
    said = [
        f"{rows} {'row has' if rows == 1 else 'rows have'} "
        + (f"{n} seeds." if n != 1 else "one seed: a sweep, drawn without a bar.")
        for n, rows in counts.items()
    ]
    return " ".join(said) or "No run of these is in the tables."
