"""Gradients in, rows of the long table out: alignments, fits, norms and cosines, with nulls and bootstrap intervals.

Quantities, each the unweighted mean over the attention matrices; ``other_recipe`` is what the recipe is compared with:

``moment_alignment``
    Overlap (0 to 1) of the leading ``k`` directions of two second moments, both from all batches. Nulls:
    ``half_batches`` (two halves of OPD's own batches), ``random_credit`` (OPD beside credit drawn at random),
    ``random`` (chance).
``moment_fit``
    Explained share of the recipe's moment: by the best multiple of the other's, or, for a mixture, by the formula with
    (``opd+rlvr+cross``) or without (``opd+rlvr``) its cross term. Nulls: as above, and ``identity`` (the best multiple
    of the identity). ``moment_scale`` is the fitted multiple.
``moment_fit_noise``
    The same with a multiple of the identity fitted too.
``..._independent``
    The recipe's moment from one half of the batches, what explains it from the other half; both ways round, mean. The
    mixture's formula gets a fitted multiple there, as the size of the gradients differs between halves.
``..._low``, ``..._high``
    Ends of the 95% bootstrap interval over batches: 1.96 standard deviations of the replicates on either side.
``gradient_norm``, ``gradient_cosine``, ``gradient_ratio``
    Mean over batches: norm over all attention matrices, cosine with the other's gradient on the same batch, norm over
    the other's. Null ``other_batch``: cosine of OPD's own gradients on different batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from opdgeom_utils import runs, storage
from opdgeom_utils.measures.gradient_moments import RANDOM_CREDIT, Gradients, MomentPlan, collect_gradients
from opdgeom_utils.measures.long_table import as_measures, kept_measures, nearest_step
from opdgeom_utils.metrics.second_moment import (
    SIDES,
    bootstrap_weights,
    explained_share,
    fit_moment,
    leading_directions,
    mixed_moment,
    moment_products,
    space_overlap,
)
from opdgeom_utils.models import load_stored_state

FULL = MomentPlan()
SMALL = MomentPlan(batches=4, prompts=2, group_size=4, replicates=0, layers=(0,))
ALPHAS = {"mix_75": 0.75, "mix_50": 0.5, "mix_25": 0.25, "mix_05": 0.05, "mix_01": 0.01}
KS = (4, 16)
Row = dict[str, Any]
Products = dict[str, Tensor]


def moment_rows(gradients: Gradients, *, replicates: int) -> list[Row]:
    """Measure all second moments of one set of gradients; without ``replicates`` of the bootstrap, no intervals.

    The rows of the long table lack profile, seed and step.
    """
    parts: list[Row] = []
    whole = gradients | mixtures_of(gradients)
    for matrix in gradients["opd"]:
        mine = {name: by[matrix] for name, by in whole.items()}
        for side in SIDES:
            parts += [row | {"side": side} for row in _of_matrix(mine, side, replicates)]
    keys = ["recipe", "side", "k", "quantity", "null", "other_recipe"]
    frame = pd.DataFrame(parts).groupby(keys, sort=False).agg({"value": "mean"}).reset_index()
    return [*({str(k): v for k, v in row.items()} for row in frame.to_dict("records")), *gradient_rows(gradients)]


def _of_matrix(gradients: dict[str, Tensor], side: str, replicates: int) -> Iterator[Row]:
    products = {name: moment_products(g, g, side=side) for name, g in gradients.items()}
    cross = moment_products(gradients["opd"], gradients["rlvr"], side=side)
    products["cross"] = cross + cross.mT
    n = len(cross)
    weights = torch.stack([torch.full((n,), 1.0 / n), *_halves(n)]).double()
    if replicates:
        weights = torch.cat([weights, bootstrap_weights(n, replicates)])
    moments = {name: torch.einsum("rn,nij->rij", weights, p) for name, p in products.items()}
    yield from _alignments(moments)
    yield from _fits(moments)
    yield from _mixtures(moments)


def mixtures_of(gradients: Gradients) -> Gradients:
    """Mix the gradients of OPD and RLVR batch by batch: raw, and with RLVR's brought to the norm of OPD's first.

    >>> opd, rlvr = {"w": torch.tensor([[[3.0, 0.0]]])}, {"w": torch.tensor([[[0.0, 1.0]]])}
    >>> mixed = mixtures_of({"opd": opd, "rlvr": rlvr})
    >>> mixed["mix_50"]["w"].tolist(), mixed["equal_mix_50"]["w"].tolist()
    ([[[1.5, 0.5]]], [[[1.5, 1.5]]])
    """
    opd, rlvr = gradients["opd"], gradients["rlvr"]
    norms = [torch.stack([g.double().square().sum((1, 2)) for g in by.values()]).sum(0).sqrt() for by in (opd, rlvr)]
    scale = (norms[0] / norms[1]).nan_to_num(posinf=0.0).float()[:, None, None]
    raw = {n: {m: a * opd[m] + (1 - a) * rlvr[m] for m in opd} for n, a in ALPHAS.items()}
    equal = {f"equal_{n}": {m: a * opd[m] + (1 - a) * scale * rlvr[m] for m in opd} for n, a in ALPHAS.items()}
    return raw | equal


def _is_mixture(name: str) -> bool:
    return name.removeprefix("equal_") in ALPHAS


def _halves(n: int) -> tuple[Tensor, Tensor]:
    """Return weights that take every other batch, and the rest."""
    even = (torch.arange(n) % 2 == 0).float()
    return even / even.sum(), (1 - even) / (1 - even).sum()


def _alignments(moments: Products) -> Iterator[Row]:
    """Overlap of every objective's leading space with OPD's, the mixtures' with RLVR's too; OPD's own null."""
    top = {
        n: _directions(m[:3] if _is_mixture(n) else m) for n, m in moments.items() if n != "cross"
    }  # the mixtures without bootstrap: it takes most of the time
    pairs = [(name, "opd") for name in top if name != "opd"] + [(name, "rlvr") for name in top if _is_mixture(name)]
    for k in KS:
        spaces = {name: basis[..., :k] for name, basis in top.items()}
        for name, other in pairs:
            count = min(len(spaces[name]), len(spaces[other]))
            same = space_overlap(spaces[name][:count], spaces[other][:count])
            apart = (
                space_overlap(spaces[name][1], spaces[other][2]) + space_overlap(spaces[name][2], spaces[other][1])
            ) / 2
            yield from _rows(name, other, "moment_alignment", same, apart, k=k)
        own = spaces["opd"]
        keep = {"recipe": "opd", "other_recipe": "opd", "quantity": "moment_alignment", "k": k}
        yield keep | {"null": "half_batches", "value": float(space_overlap(own[1], own[2]))}
        yield keep | {"null": "random", "value": k / own.shape[-2]}


def _directions(moments: Tensor) -> Tensor:
    """Leading directions of each moment; nan for one that is zero, as it has none."""
    empty = moments.diagonal(dim1=-2, dim2=-1).sum(-1) == 0
    return leading_directions(moments, max(KS)).masked_fill(empty[:, None, None], math.nan)


def _fits(moments: Products) -> Iterator[Row]:
    """Explain every objective's moment by a multiple of OPD's, with and without noise; OPD's own by its other half."""
    opd = moments["opd"]
    for name in (n for n in moments if n not in ("opd", "cross") and not _is_mixture(n)):
        own = moments[name]
        for quantity, noise in (("moment_fit", False), ("moment_fit_noise", True)):
            yield from _rows(name, "opd", quantity, *_explained(own, opd, _fitted(noise)))
        keep = {"recipe": name, "null": "", "other_recipe": "opd", "k": 0} | _null_of(name)
        yield keep | {"quantity": "moment_scale", "value": fit_moment(own[0], opd[0]).scale}
    keep = {"recipe": "opd", "other_recipe": "opd", "quantity": "moment_fit", "k": 0}
    _, halves = _explained(opd, opd, _fitted(noise=False))
    yield keep | {"null": "half_batches", "value": halves}
    eye = torch.eye(opd.shape[-1], dtype=torch.float64)
    for name in (n for n in moments if n not in ("cross", RANDOM_CREDIT) and not _is_mixture(n)):
        yield keep | {"recipe": name, "null": "identity", "value": fit_moment(moments[name][0], eye).r2}


def _mixtures(moments: Products) -> Iterator[Row]:
    """Explain every mixture's moment by the formula, with and without its cross term."""
    for name, alpha in ALPHAS.items():
        for other in ("opd+rlvr+cross", "opd+rlvr"):
            cross = moments["cross"] if other.endswith("cross") else None
            formula = mixed_moment(moments["opd"], moments["rlvr"], cross, alpha=alpha)
            same, _ = _explained(moments[name], formula, explained_share)
            _, apart = _explained(moments[name][:3], formula[:3], _fitted(noise=False))
            yield from _rows(name, other, "moment_fit", same, apart)


def _fitted(noise: bool) -> Callable[[Tensor, Tensor], float]:
    return lambda target, base: fit_moment(target, base, noise=noise).r2


def _explained(own: Tensor, other: Tensor, share: Callable[[Tensor, Tensor], float]) -> tuple[Tensor, float]:
    """Explained share on all batches and on each replicate; and across the two halves, mean of both ways round."""
    same = torch.tensor([share(own[i], other[i]) for i in range(len(own))])
    return same, (share(own[1], other[2]) + share(own[2], other[1])) / 2


def _rows(name: str, other: str, quantity: str, same: Tensor, apart: Tensor | float, *, k: int = 0) -> Iterator[Row]:
    """Rows of one number: itself, on independent batches, and the ends of its bootstrap interval."""
    keep = {"recipe": name, "other_recipe": other, "null": "", "k": k} | _null_of(name)
    yield keep | {"quantity": quantity, "value": float(same[0])}
    yield keep | {"quantity": f"{quantity}_independent", "value": float(apart)}
    if len(same) > 4:
        reach = 1.96 * float(same[3:].std())
        yield keep | {"quantity": f"{quantity}_low", "value": float(same[0]) - reach}
        yield keep | {"quantity": f"{quantity}_high", "value": min(1.0, float(same[0]) + reach)}


def _null_of(name: str) -> Row:
    """Random credit is no recipe: it is the null of OPD beside itself."""
    return {"recipe": "opd", "null": RANDOM_CREDIT} if name == RANDOM_CREDIT else {}


def gradient_rows(gradients: Gradients) -> list[Row]:
    """Norms, ratios and cosines of whole gradients, batch by batch, then the mean.

    A batch in which RLVR has no gradient, as no group has unequal rewards, has no cosine and no ratio.
    """
    flat = {name: torch.cat([g.flatten(1) for g in by.values()], dim=1).double() for name, by in gradients.items()}
    norms = {name: value.norm(dim=1) for name, value in flat.items()}
    opd, rows = flat["opd"], []
    for name, value in flat.items():
        keep = {"recipe": name, "k": 0, "side": "", "null": "", "other_recipe": "opd"} | _null_of(name)
        rows.append(keep | {"quantity": "gradient_norm", "other_recipe": "", "value": float(norms[name].mean())})
        if name == "opd":
            continue
        cosine = (value * opd).sum(1) / (norms[name] * norms["opd"])
        ratio = norms["opd"] / norms[name]
        rows.append(keep | {"quantity": "gradient_cosine", "value": float(cosine.nanmean())})
        if name == "rlvr":
            ratio = ratio[norms[name] > 0]
            value = float(ratio.mean()) if len(ratio) else math.nan
            rows.append(keep | {"recipe": "opd", "other_recipe": "rlvr", "quantity": "gradient_ratio", "value": value})
    unit = opd / norms["opd"][:, None]
    apart = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
    null = {"recipe": "opd", "k": 0, "side": "", "null": "other_batch", "other_recipe": "opd"}
    return [*rows, null | {"quantity": "gradient_cosine", "value": float(apart.mean())}]


def moment_measures(run: runs.Run, *, plan: MomentPlan | None = None) -> pd.DataFrame:
    """Rows of one seed's second moments, at the anchor (step 0) and at OPD's weights half way.

    A finished run of ``opd`` gives the models, the seed of the prompts and the weights half way. Without a ``plan``,
    16 batches are drawn where the recipe has 16 prompts an update or more, else few and small ones. Half way has half
    the batches and no bootstrap.
    """
    plan = plan or (FULL if run.recipe.prompts_per_update >= FULL.prompts else SMALL)
    halved = replace(plan, batches=max(2, plan.batches // 2), replicates=0)
    tables = [
        kept_measures(run.path, f"moments-{step}", partial(_measure, run, step, own), __name__, own)
        for step, own in ((0, plan), (nearest_step(run.recipe.checkpoints, run.recipe.steps / 2), halved))
    ]
    return pd.concat(tables, ignore_index=True)


def _measure(run: runs.Run, step: int, plan: MomentPlan) -> pd.DataFrame:
    learner = runs.make_learner(run, "auto")
    if step:
        load_stored_state(learner.student, storage.read_tensors(runs.checkpoint_path(run.path, step)))
    rows = moment_rows(collect_gradients(learner, plan), replicates=plan.replicates)
    same = {"profile": run.recipe.profile, "seed": run.seed, "step": step, "scope": "attention"}
    return as_measures([row | same for row in rows])
