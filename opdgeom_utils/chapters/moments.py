"""The tables of second moments: who shares OPD's leading directions, and what explains whose moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from opdgeom_utils.chapters.control import EQUAL, RAW, STRIP, K, sweep, words_of
from opdgeom_utils.measures.long_table import pick
from opdgeom_utils.vocabulary import label


def moment_table(
    measures: pd.DataFrame, recipes: Sequence[str], quantity: str, *, other: str = "opd", k: int = 0, step: int = 0
) -> pd.DataFrame:
    """Compare second moments of gradients: ``quantity`` of each objective with ``other``, beside its nulls.

    A quantity that ends in ``_independent`` has the same nulls: two halves are independent batches already.
    """
    plain = quantity.removesuffix("_independent").removesuffix("_noise")
    cell: dict[str, Any] = {"other_recipe": other, "k": k, "step": step, "side": ["right", "left"]}
    own = pick(measures, recipe=list(recipes), quantity=quantity, null="", **cell)
    names = {"half_batches": "other batches of OPD", "random_credit": "random credit", "random": "chance"}
    nulls = pd.concat(
        [
            pick(measures, recipe="opd", quantity=quantity if null == "random_credit" else plain, null=null, **cell)
            for null in names
        ]
    )
    table = pd.concat(
        [own.assign(row=own["recipe"].map(words_of), kind="variant"),
         nulls.assign(row=[names[null] for null in nulls["null"]], kind="null")]
    )  # fmt: skip
    order = [*map(words_of, recipes), *names.values()]
    table = table.assign(panel=table["side"] + " moment", place=table["row"].map(order.index))
    table = table.sort_values(["side", "place"], ascending=[False, True], kind="stable")
    return table.filter(items=STRIP).reset_index(drop=True)


def say_easy_bar(measures: pd.DataFrame, masks: Sequence[str], k: int, *, side: str = "left") -> str:
    """Say how masks, RLVR and random credit stand against OPD's own two halves: on the same batches, then on others.

    Each number is an overlap with OPD's leading directions over the overlap of two halves of OPD's own batches; above 1
    is nearer than OPD is to itself.
    """
    cell: dict[str, Any] = {"other_recipe": "opd", "k": k, "step": 0, "side": side}
    bar = pick(measures, recipe="opd", quantity="moment_alignment", null="half_batches", **cell)["value"].mean()
    said = []
    for words, quantity in (("same batches", "moment_alignment"), ("other batches", "moment_alignment_independent")):
        own = pick(measures, recipe=[*masks, "rlvr"], quantity=quantity, null="", **cell)
        means = own.groupby("recipe", sort=False)["value"].mean() / bar
        kept = means.reindex([name for name in masks if name in means])
        chance = pick(measures, recipe="opd", quantity=quantity, null="random_credit", **cell)["value"].mean() / bar
        text = f"On the {words}, {side}: masks {kept.min():.2f} to {kept.max():.2f}, random credit {chance:.2f}"
        said.append(text + (f", RLVR {means['rlvr']:.2f}" if "rlvr" in means else ""))
    return "; ".join(said) + f" times the overlap of two halves of OPD's batches ({bar:.2f})."


def fit_summary(measures: pd.DataFrame, recipes: Sequence[str], *, step: int = 0) -> pd.DataFrame:
    """One row per objective and side: how well OPD's second moment explains the objective's own, mean over seeds."""
    columns = {
        "moment_fit": "fit", "moment_fit_low": "low", "moment_fit_high": "high", "moment_fit_noise": "with noise",
        "moment_fit_independent": "other batches", "moment_scale": "scale c",
    }  # fmt: skip
    cell = {"other_recipe": "opd", "step": step, "side": ["right", "left"], "quantity": list(columns)}
    own = pick(measures, recipe=list(recipes), null="", **cell)
    table = pd.concat([own, pick(measures, recipe="opd", null="random_credit", **cell).assign(recipe="random_credit")])
    wide = table.pivot_table(index=["side", "recipe"], columns="quantity", values="value", sort=False)
    wide = wide.reindex(columns=[c for c in columns if c in wide]).rename(columns=columns)
    keys = [(side, name) for side in ("right", "left") for name in (*recipes, "random_credit")]
    wide = wide.reindex([key for key in keys if key in wide.index])
    names = [(side, words_of(name)) for side, name in wide.index]
    return wide.set_axis(pd.MultiIndex.from_tuples(names, names=["side", "objective"])).rename_axis(columns=None)


def mixture_summary(measures: pd.DataFrame, *, step: int = 0) -> pd.DataFrame:
    """One row per weight and side: how much of the mixture's second moment the formula explains, mean over seeds."""
    heads = {
        ("moment_fit", "opd+rlvr+cross"): "with cross",
        ("moment_fit", "opd+rlvr"): "without",
        ("moment_fit_independent", "opd+rlvr+cross"): "with, others",
        ("moment_fit_independent", "opd+rlvr"): "without, others",
    }
    rows = pick(measures, recipe=list(RAW), quantity=["moment_fit", "moment_fit_independent"], step=step, null="")
    rows = rows[rows["other_recipe"].str.startswith("opd+rlvr")]
    wide = rows.pivot_table(index=["side", "recipe"], columns=["quantity", "other_recipe"], values="value")
    keys = [(side, name) for side in ("right", "left") for name in RAW]
    wide = wide.reindex([key for key in keys if key in wide.index]).reindex(columns=list(heads))
    names = pd.MultiIndex.from_tuples([(side, words_of(name)) for side, name in wide.index], names=["side", "mixture"])
    return pd.DataFrame(wide.to_numpy(), index=names, columns=list(heads.values()))


def mixed_alignment(
    measures: pd.DataFrame, places: Mapping[str, tuple[str, str]], *, k: int = K, side: str = "left", step: int = 0
) -> pd.DataFrame:
    """Overlap of the mixed gradients' second moment with OPD's and with RLVR's, over the weight, as curves."""
    cell: dict[str, Any] = {"other_recipe": ["opd", "rlvr"], "k": k, "side": side, "step": step, "null": ""}
    rows = pick(measures, recipe=[*RAW, *EQUAL], quantity="moment_alignment", **cell)
    panels = "with " + rows["other_recipe"].map(label)
    rows = rows.assign(row=rows["recipe"].map(words_of), panel=panels, kind="variant")
    return sweep(rows.filter(items=STRIP), places)
