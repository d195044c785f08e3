"""The tables of second moments: who shares OPD's leading directions, and what explains whose moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from opdgeom_utils.chapters.control import STRIP, variant_label
from opdgeom_utils.measures.long_table import pick


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
        [own.assign(row=own["recipe"].map(variant_label), kind="variant"),
         nulls.assign(row=[names[null] for null in nulls["null"]], kind="null")]
    )  # fmt: skip
    order = [*map(variant_label, recipes), *names.values()]
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
