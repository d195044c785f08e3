"""The path of an update: one pass over a run's checkpoints, every number of research question 2 on its matrices.

``dW_t = W_t - W_0`` is the cumulative update at checkpoint ``t``; a *window* is what happened between one checkpoint
and the next. Right spaces are spanned by the leading right singular vectors (inputs), left ones by the left (outputs).
The paper has right spaces, K = 16 and attention matrices only (arXiv 2606.07082, "trajectory of dW_t").
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils import storage
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.linalg.factors import Factors, factorize
from opdgeom_utils.linalg.gram import TallMatrix
from opdgeom_utils.measures.long_table import as_measures, kept_measures, nearest_step
from opdgeom_utils.metrics.sparsity import bf16_realised
from opdgeom_utils.metrics.spectra import stable_rank_from, stable_rank_of, tail_exponent
from opdgeom_utils.models import load_model, stored_state
from opdgeom_utils.runs import Run
from opdgeom_utils.scopes import ATTENTION, MODULES, SCOPES, THROUGHOUT

KS = (1, 2, 4, 8, 16)
VARIANT_KS = (4, 16)
EARLY = 0.2
HILL_K = 16
SPECTRUM = 32
SIDES = ("right", "left")
FIRST_LAYER_ONLY = ("smoke",)

Key = tuple[str, str, int]  # quantity, side, k
Curves = dict[Key, list[float]]


@dataclass(frozen=True)
class UpdatePath:
    """Cumulative updates of a run's matrices at its checkpoints, by name, float32."""

    steps: tuple[int, ...]  # updates taken at each checkpoint, rising
    reference: Mapping[str, Tensor]  # W_0, (out, in)
    updates: Mapping[str, Tensor]  # dW_t, (checkpoints, out, in)

    @property
    def early(self) -> int:
        """Index of the checkpoint nearest to a fifth of the run; of two equally near, the earlier."""
        return self.steps.index(nearest_step(self.steps, EARLY * self.steps[-1]))

    def attention(self) -> UpdatePath:
        """Return the path of the attention matrices only."""
        kept = [name for name in self.updates if _projection_of(name) in ATTENTION]
        return UpdatePath(self.steps, {n: self.reference[n] for n in kept}, {n: self.updates[n] for n in kept})


def _projection_of(name: str) -> str:
    """Kind of a matrix from its Hugging Face name.

    >>> _projection_of("model.layers.0.self_attn.q_proj.weight")
    'q_proj'
    """
    return name.split(".")[-2]


def read_path(run: Run, steps: Sequence[int] = ()) -> UpdatePath:
    """Read the layers' matrices of a finished run at its checkpoints, or only at ``steps``, less those it started from.

    Raises :class:`MetricInputError` if a step is no checkpoint of the run.
    """
    points = [c for c in run.checkpoints if not steps or c.step in steps]
    unknown = sorted(set(steps) - {c.step for c in points})
    if unknown:
        raise MetricInputError(
            f"{run.recipe.name} has no checkpoint at {unknown}; choose from {list(run.recipe.checkpoints)}"
        )
    start = stored_state(load_model(run.recipe.start))
    names = [n for n, w in start.items() if ".layers." in n and w.dim() == 2]
    if run.recipe.profile in FIRST_LAYER_ONLY:
        names = [n for n in names if ".layers.0." in n]
    if run.is_large:
        names = [n for n in names if _projection_of(n) in ATTENTION]
    states = [storage.read_tensors(c.path) for c in points]
    updates = {n: torch.stack([state[n].float() - start[n].float() for state in states]) for n in names}
    return UpdatePath(tuple(c.step for c in points), {n: start[n].float() for n in names}, updates)


def factor(delta_w: Float[Tensor, "out in"], rank: int = max(KS)) -> Factors:
    """Singular values and leading vectors of one update, float64."""
    return factorize(delta_w, cuts=(rank,))


def similarity(a: Factors, b: Factors, side: str, k: int) -> float:
    """Sim_K of two updates: mean squared cosine between their leading spaces, 0 to 1; nan if one update is zero.

    The paper's ``||V_K(a)' V_K(b)||_F^2 / K`` on the right; the same with ``U_K`` on the left. ``k`` is clipped to
    the number of singular values.

    Examples
    --------
    >>> one, other = factor(torch.tensor([[0.0, 2.0], [0.0, 0.0]])), factor(torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
    >>> similarity(one, other, "right", 1), similarity(one, other, "left", 1)
    (1.0, 0.0)
    """
    if float(a.s[0]) == 0 or float(b.s[0]) == 0:
        return math.nan
    first, second = basis(a, side, k), basis(b, side, k)
    return min(1.0, float((first.T @ second).square().sum()) / first.shape[1])


def basis(factors: Factors, side: str, k: int) -> Float[Tensor, "dim k"]:
    """Leading singular vectors of one side as columns, at most as many as there are."""
    return factors.vh[:k].T if side == "right" else factors.u[:, :k]


def captured_share(delta_w: Float[Tensor, "out in"], space: Float[Tensor, "dim k"], side: str) -> float:
    """Share of an update's squared norm inside a space of inputs (right) or outputs (left), 0 to 1; nan for zero.

    Examples
    --------
    Squared entries 9 and 16; the space is the second input.

    >>> captured_share(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0], [1.0]]), "right")
    0.64
    """
    w, q = delta_w.double(), space.double()
    whole = float(w.square().sum())
    inside = float((w @ q if side == "right" else q.T @ w).square().sum())
    return min(1.0, inside / whole) if whole > 0 else math.nan


def windows(stack: Float[Tensor, "t out in"]) -> Float[Tensor, "t out in"]:
    """Return what each window added: the first cumulative update, then the differences.

    >>> windows(torch.tensor([[[1.0]], [[4.0]]])).flatten().tolist()
    [1.0, 3.0]
    """
    return torch.cat([stack[:1], stack[1:] - stack[:-1]])


def matrix_curves(
    stack: Float[Tensor, "t out in"],
    early: int,
    ks: Sequence[int] = KS,
    *,
    consecutive: bool = True,
    inputs: Factors | None = None,
) -> Curves:
    """Every curve of one matrix along its checkpoints: one number per checkpoint, nan where undefined.

    ``early`` is the index of the checkpoint whose leading space ``captured_share`` asks about. To compare windows with
    the windows before them (``consecutive``) takes as long as all the rest. ``inputs``, factors of the second moment of
    the layer's inputs, add ``overlap_activations`` of the right spaces.
    """
    cumulative, own = [factor(delta) for delta in stack], windows(stack)
    side_of = max(stack.shape[1:])
    curves: Curves = {
        ("stable_rank", "", 0): [stable_rank_from(f.s) for f in cumulative],
        ("update_norm", "", 0): [float(f.s.norm()) for f in cumulative],
        ("hill", "", HILL_K): [tail_exponent(f.s, k=HILL_K, largest_side=side_of) for f in cumulative],
    }
    steps = [factor(delta) for delta in own] if consecutive else []
    for side in SIDES:
        for k in ks:
            space = basis(cumulative[early], side, k)
            curves["sim_to_end", side, k] = [similarity(f, cumulative[-1], side, k) for f in cumulative]
            curves["captured_share", side, k] = [captured_share(delta, space, side) for delta in own]
            if consecutive:
                pairs = itertools.pairwise(steps)
                curves["sim_consecutive", side, k] = [math.nan, *(similarity(a, b, side, k) for a, b in pairs)]
    if inputs is not None:
        for k in ks:
            curves["overlap_activations", "right", k] = [similarity(f, inputs, "right", k) for f in cumulative]
    for i in range(SPECTRUM):
        curves["singular_value", "", i + 1] = [float(f.s[i]) if i < len(f.s) else math.nan for f in cumulative]
    return curves


def rounded_rank(w_ref: Float[Tensor, "out in"], delta_w: Float[Tensor, "out in"]) -> float:
    """Stable rank of an update as weights stored in bf16 show it: both weights are rounded first; nan if none shows.

    >>> rounded_rank(torch.ones(2, 2), torch.diag(torch.tensor([1.0, 1e-4])))
    1.0
    """
    return stable_rank_of(TallMatrix.of(bf16_realised(w_ref + delta_w).double().sub_(bf16_realised(w_ref))))


def scope_rows(
    curves: Mapping[str, Curves], steps: Sequence[int], scopes: Iterable[str] = ("attention", "all")
) -> list[dict[str, Any]]:
    """Fold matrices into rows of the long table: unweighted mean over a scope, undefined numbers left out.

    Examples
    --------
    >>> curves = {"a.q_proj.w": {("x", "", 0): [1.0]}, "a.up_proj.w": {("x", "", 0): [3.0]}}
    >>> [(row["scope"], row["value"]) for row in scope_rows(curves, [2])]
    [('attention', 1.0), ('all', 2.0)]
    """
    rows = []
    for scope in scopes:
        own = [c for name, c in curves.items() if scope == "all" or _projection_of(name) in ATTENTION]
        for quantity, side, k in own[0] if own else ():
            if quantity == "singular_value" and scope == "all":
                continue  # matrices of different shapes have no common index
            for step, values in zip(steps, zip(*(c[quantity, side, k] for c in own), strict=True), strict=True):
                known = [v for v in values if math.isfinite(v)]
                if known:
                    row = {"step": step, "scope": scope, "side": side, "k": k, "quantity": quantity}
                    rows.append(row | {"value": float(np.mean(known))})
    return rows


def window_rows(path: UpdatePath) -> list[dict[str, Any]]:
    """Say how far each window moves an entry and which way, for each kind of matrix in place of a scope.

    ``window_rms``: root mean square of what a window added to an entry. ``window_cosine``, -1 to 1: the window's cosine
    with the one before it, both as one vector over all matrices of a kind; nan for the first, which is left out.

    >>> path = UpdatePath((2, 4), {}, {"layers.0.q_proj.weight": torch.tensor([[[3.0, 4.0]], [[3.0, 3.0]]])})
    >>> [(row["step"], row["quantity"], round(row["value"], 3)) for row in window_rows(path)]
    [(2, 'window_rms', 3.536), (4, 'window_rms', 0.707), (4, 'window_cosine', -0.8)]
    """
    rows = []
    for kind in MODULES:
        own = [windows(stack).flatten(1) for name, stack in path.updates.items() if _projection_of(name) == kind]
        if not own:
            continue
        moved = torch.cat(own, dim=1)
        found = {
            "window_rms": moved.square().mean(1).sqrt().tolist(),
            "window_cosine": [math.nan, *torch.cosine_similarity(moved[1:], moved[:-1]).tolist()],
        }
        for quantity, values in found.items():
            row = {"scope": kind, "side": "", "k": 0, "quantity": quantity}
            known = zip(path.steps, values, strict=True)
            rows += [row | {"step": step, "value": value} for step, value in known if math.isfinite(value)]
    return rows


def scopes_of(run: Run) -> tuple[str, ...]:
    """Scopes of a run's measures: of a large model only the attention matrices are read."""
    return ("attention",) if run.is_large else tuple(SCOPES)


def tagged(run: Run, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Make the long table from rows of one run."""
    names = {"profile": run.recipe.profile, "recipe": run.recipe.name, "seed": run.seed}
    return as_measures([{**names, **row} for row in rows])


def path_measures(run: Run) -> pd.DataFrame:
    """Measure a run's path: ranks, norms, spectra and spaces at every checkpoint, as rows of the long table.

    Quantities are ``stable_rank, stable_rank_bf16, update_norm, hill, sim_to_end, sim_consecutive, captured_share`` and
    ``singular_value`` (``k`` is its index from 1, attention matrices), and those of :func:`window_rows`. Recipes
    outside of :data:`~opdgeom_utils.scopes.THROUGHOUT` get K of 4 and 16 only, no spectra and no windows.
    """
    throughout = run.recipe.name in THROUGHOUT
    return kept_measures(run.path, "path", lambda: _measure_path(run, throughout), __name__, throughout)


def _measure_path(run: Run, throughout: bool) -> pd.DataFrame:
    path = read_path(run)
    curves: dict[str, Curves] = {}
    for name, stack in path.updates.items():
        own = matrix_curves(stack, path.early, KS if throughout else VARIANT_KS, consecutive=not run.is_large)
        own["stable_rank_bf16", "", 0] = [rounded_rank(path.reference[name], delta) for delta in stack]
        curves[name] = own if throughout else {key: v for key, v in own.items() if key[0] != "singular_value"}
    moved = window_rows(path) if throughout and not run.is_large else []
    return tagged(run, [*scope_rows(curves, path.steps, scopes_of(run)), *moved])
