"""What the path of an update looks like when nothing is learned: five processes, and what rounding alone does.

Each null has the run's own checkpoints, and makes a path of the same shape as the run's:

- ``random_walk``: in each window a Gaussian step with the norm that the run's own step had in that window.
- ``random_walk_decaying``: the same length in all, spread as a schedule would that falls by a cosine to a tenth.
- ``adam_random``: AdamW with the recipe's betas, eps, rates and weight decay, fed Gaussian gradients.
- ``activations``: the same optimiser; each gradient is made of real inputs of its layer and random output-side signals.
- ``shuffled_time``: the run's own windows, whole and not rescaled, added up in another order; mean of four orders.

The walks know norms and nothing else. ``shuffled_time`` keeps what the run did and forgets when: it is no process
without learning, but the bar that "early" has to pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.diagnose.nulls import null_generator, shuffled_update
from opdgeom_utils.learner import stream_seed
from opdgeom_utils.linalg.factors import Factors
from opdgeom_utils.linalg.gram import TallMatrix
from opdgeom_utils.measures.long_table import kept_measures
from opdgeom_utils.measures.paths import (
    KS,
    Curves,
    UpdatePath,
    factor,
    matrix_curves,
    read_path,
    rounded_rank,
    scope_rows,
    tagged,
    windows,
)
from opdgeom_utils.metrics.sparsity import bf16_realised
from opdgeom_utils.metrics.spectra import stable_rank_of
from opdgeom_utils.models import load_model, load_tokenizer
from opdgeom_utils.projection import activation_moments
from opdgeom_utils.rollouts import encode_pairs, roll_out
from opdgeom_utils.runs import Run
from opdgeom_utils.training import learning_rate_at
from opdgeom_utils.world import load_world

NULLS = ("random_walk", "random_walk_decaying", "adam_random", "activations", "shuffled_time")
ORDERS = 4
POOL, POOL_PROMPTS = 8, 64
LAST_STEP_SIZE = 0.1
INPUTS = ("overlap_activations",)
PLAIN = ("stable_rank", "sim_to_end", "captured_share")
DEEP = (*PLAIN, *INPUTS, "sim_consecutive")
Stacks = dict[str, Tensor]


def random_walk(stack: Float[Tensor, "t out in"], *, generator: torch.Generator) -> Float[Tensor, "t out in"]:
    """Walk with Gaussian steps of the run's own norms, window by window.

    Gaussian steps within a window add up to one Gaussian step, so single updates are not needed. The cosine between
    the walk at ``t`` and at its end is ``|walk_t| / |walk_end|`` on average, and a space of K out of n inputs holds a
    share K / n of each later step.

    Examples
    --------
    >>> run = torch.tensor([[[3.0, 4.0]], [[3.0, 5.0]]])
    >>> windows(random_walk(run, generator=null_generator(0, "w"))).flatten(1).norm(dim=1).round(decimals=4).tolist()
    [5.0, 1.0]
    """
    return _walk(stack, windows(stack).flatten(1).norm(dim=1), generator)


def decaying_walk(
    stack: Float[Tensor, "t out in"], steps: Sequence[int], *, generator: torch.Generator
) -> Float[Tensor, "t out in"]:
    """Walk with the run's own total of squared step norms, each update's norm falling by a cosine to a tenth.

    Examples
    --------
    >>> run = torch.tensor([[[3.0, 0.0]], [[3.0, 4.0]]])
    >>> norms = windows(decaying_walk(run, [1, 2], generator=null_generator(0, "w"))).flatten(1).norm(dim=1)
    >>> float(norms.square().sum().round(decimals=3)), bool(norms[0] > norms[1])
    (25.0, True)
    """
    share = torch.arange(steps[-1], dtype=torch.float64) / max(1, steps[-1] - 1)
    sizes = LAST_STEP_SIZE + (1 - LAST_STEP_SIZE) * (1 + torch.cos(math.pi * share)) / 2
    energy = torch.stack([part.square().sum() for part in torch.tensor_split(sizes, list(steps[:-1]))])
    own = float(windows(stack).double().square().sum())
    return _walk(stack, (energy * own / energy.sum()).sqrt().float(), generator)


def _walk(stack: Tensor, norms: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(stack.shape, generator=generator)
    return (noise * (norms / noise.flatten(1).norm(dim=1))[:, None, None]).cumsum(0)


def adam_path(
    path: UpdatePath, run: Run, moments: Sequence[Mapping[str, Tensor]], *, generator: torch.Generator
) -> Stacks:
    """Train on random gradients with the run's own optimiser, from its own start, for as many updates.

    Each gradient gets the norm that the run's own had after clipping. ``moments`` are second moments ``X'X`` of each
    matrix's inputs, one mapping per batch of a pool; each update draws one batch. Independent Gaussian output-side
    signals ``S`` make ``G = S'X``, whose rows are Gaussian with covariance ``X'X``: it is drawn as such. An empty pool
    makes entries independent. Returns the cumulative updates at the path's checkpoints, by name.
    """
    recipe = run.recipe
    weights = {name: torch.nn.Parameter(w.clone()) for name, w in path.reference.items()}
    optimizer = torch.optim.AdamW(
        list(weights.values()), lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps,
        weight_decay=recipe.weight_decay, fused=True,
    )  # fmt: skip
    roots = [{name: _root(batch[name]) for name in weights} for batch in moments]
    norms = run.log.sort_values("step")["grad_norm"].clip(upper=recipe.grad_clip).to_list()
    kept: dict[str, list[Tensor]] = {name: [] for name in weights}
    for step in range(recipe.steps):
        root = roots[int(torch.randint(len(roots), (1,), generator=generator))] if roots else {}
        for name, w in weights.items():
            noise = torch.randn(w.shape, generator=generator)
            w.grad = noise @ root[name].T if name in root else noise
        total = float(torch.stack([w.grad.norm() for w in weights.values() if w.grad is not None]).norm())
        for w in weights.values():
            w.grad = None if w.grad is None else w.grad * (norms[step] / total)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(recipe, step)
        optimizer.step()
        if step + 1 in path.steps:
            for name, w in weights.items():
                kept[name].append(w.detach() - path.reference[name])
    return {name: torch.stack(stack) for name, stack in kept.items()}


def _root(moment: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return a matrix ``R`` with ``R R' = moment``; the eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(moment.double())
    return (vectors * values.clamp(min=0).sqrt()).float()


def input_pool(run: Run, batches: int = POOL, prompts: int = POOL_PROMPTS) -> list[dict[str, Tensor]]:
    """Second moments of every matrix's inputs in the start model, over batches of what the run trains on.

    Its own completions, one a prompt, for OPD and RLVR; demonstrations for SFT. A pool of a few hundred completions
    stands for the run's own fresh batches of ``prompts_per_update * group_size``.
    """
    recipe, pool, world = run.recipe, [], load_world(run.recipe.profile)
    start, tokenizer, tasks = load_model(recipe.start), world.with_end(load_tokenizer(recipe.start)), world.open_tasks()
    for i in range(batches):
        problems = tasks.draw(recipe.mixture, prompts, f"inputs:{run.seed}:{i}", weights=recipe.weights)
        written, longest = [world.put(tokenizer, p.prompt) for p in problems], recipe.max_new_tokens
        if recipe.on_policy:
            generator = torch.Generator().manual_seed(stream_seed("inputs", run.seed, i))
            batch = roll_out(start, tokenizer, written, max_new_tokens=longest, generator=generator)
        else:
            batch = encode_pairs(tokenizer, written, [world.demonstrated(tokenizer, p.completion) for p in problems])
        pool.append(activation_moments(start, [batch]))
    return pool


def shuffled_windows(
    stack: Float[Tensor, "t out in"], steps: Sequence[int], order: Sequence[int]
) -> tuple[Float[Tensor, "t out in"], list[int]]:
    """Add a run's windows up in another order: the same end, and the updates taken at each place on the way.

    Examples
    --------
    >>> path, steps = shuffled_windows(torch.tensor([[[1.0]], [[4.0]]]), [2, 6], [1, 0])
    >>> path.flatten().tolist(), steps
    ([3.0, 4.0], [4, 6])
    """
    lengths = np.diff([0, *steps])
    return windows(stack)[list(order)].cumsum(0), np.cumsum(lengths[list(order)]).tolist()


def shuffled_curves(
    stack: Float[Tensor, "t out in"], steps: Sequence[int], orders: Sequence[Sequence[int]], ks: Sequence[int] = KS
) -> Curves:
    """Stable rank and similarity to the end, mean over orders of the windows, at the run's own checkpoints.

    A shuffled path passes other places: in between it is interpolated linearly; no order speaks before its first.
    """
    found: dict[tuple[str, str, int], list[np.ndarray]] = {}
    for order in orders:
        path, at = shuffled_windows(stack, steps, order)
        for key, values in matrix_curves(path, 0, ks, consecutive=False).items():
            if key[0] in ("stable_rank", "sim_to_end"):
                found.setdefault(key, []).append(np.interp(steps, at, values, left=np.nan))
    return {key: [_mean([c[i] for c in curves]) for i in range(len(steps))] for key, curves in found.items()}


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return float(np.mean(known)) if known else math.nan


def window_orders(count: int, seed: int) -> list[list[int]]:
    """Draw the orders of ``shuffled_time``, the same for every matrix of a run.

    >>> [sorted(order) for order in window_orders(3, 0)] == [[0, 1, 2]] * ORDERS
    True
    """
    generator = null_generator(seed, "shuffled_time")
    return [torch.randperm(count, generator=generator).tolist() for _ in range(ORDERS)]


def rounding_noise(
    w_ref: Float[Tensor, "out in"], delta_w: Float[Tensor, "out in"], *, generator: torch.Generator
) -> Float[Tensor, "out in"]:
    """Pure rounding noise at an update's size: what bf16 adds to the same entries at random places.

    The update is shuffled inside its matrix first. Its own rounding error would not do: where nothing shows, that is
    minus the update itself, with all of the update's structure.

    Examples
    --------
    >>> noise = rounding_noise(torch.ones(1, 2), torch.full((1, 2), 1e-4), generator=null_generator(0, "w"))
    >>> noise.round(decimals=6).tolist()
    [[-9.999999747378752e-05, -9.999999747378752e-05]]
    """
    moved = shuffled_update(delta_w, generator=generator)
    return bf16_realised(w_ref + moved) - bf16_realised(w_ref) - moved


def rounding_curves(w_ref: Float[Tensor, "out in"], stack: Float[Tensor, "t out in"], seed: int, name: str) -> Curves:
    """Stable rank of pure rounding noise, and of the run's last update scaled to each checkpoint's norm, then rounded.

    In float32 the second has one stable rank, whatever the norm: whatever moves is rounding.
    """
    generator, end = null_generator(seed, f"{name} rounding"), stack[-1]
    scaled = [end * (delta.norm() / end.norm()) for delta in stack]
    noise = [stable_rank_of(TallMatrix.of(rounding_noise(w_ref, d, generator=generator))) for d in stack]
    return {
        ("stable_rank", "", 0): noise,
        ("stable_rank_bf16", "", 0): [rounded_rank(w_ref, delta) for delta in scaled],
    }


def path_null_measures(run: Run) -> pd.DataFrame:
    """Measure every null of a headline run's path over its attention matrices, as rows of the long table.

    ``sim_to_end``, ``captured_share`` and ``stable_rank`` under each of :data:`NULLS` (no ``captured_share`` for
    ``shuffled_time``; ``sim_consecutive`` too for the two optimisers); ``stable_rank`` and ``stable_rank_bf16`` under
    ``rounding``; ``overlap_activations`` of the run itself (``null`` empty) and of the two optimisers.
    """
    return kept_measures(run.path, "path_nulls", lambda: _measure_nulls(run), __name__)


def _measure_nulls(run: Run) -> pd.DataFrame:
    path, pool = read_path(run).attention(), input_pool(run)
    inputs = {n: factor(torch.stack([batch[n] for batch in pool]).sum(0)) for n in path.updates}
    own = {n: _curves(stack, path, inputs[n], INPUTS) for n, stack in path.updates.items()}
    rows = _rows(path, own, "")
    for null, moments in (("adam_random", []), ("activations", pool)):
        stacks = adam_path(path, run, moments, generator=null_generator(run.seed, f"{run.recipe.name} {null}"))
        rows += _rows(path, {n: _curves(s, path, inputs[n], DEEP) for n, s in stacks.items()}, null)
    walks: dict[str, dict[str, Curves]] = {"random_walk": {}, "random_walk_decaying": {}}
    orders, others = window_orders(len(path.steps), run.seed), walks | {"shuffled_time": {}, "rounding": {}}
    for name, stack in path.updates.items():
        even, fall = (null_generator(run.seed, f"{run.recipe.name} {name} {null}") for null in walks)
        drawn = random_walk(stack, generator=even), decaying_walk(stack, path.steps, generator=fall)
        for null, walk in zip(walks, drawn, strict=True):
            walks[null][name] = _curves(walk, path, inputs[name], PLAIN)
        others["shuffled_time"][name] = shuffled_curves(stack, path.steps, orders)
        others["rounding"][name] = rounding_curves(path.reference[name], stack, run.seed, name)
    for null, curves in others.items():
        rows += _rows(path, curves, null)
    return tagged(run, rows)


def _curves(stack: Tensor, path: UpdatePath, inputs: Factors, kept: Sequence[str]) -> Curves:
    curves = matrix_curves(stack, path.early, consecutive="sim_consecutive" in kept, inputs=inputs)
    return {key: values for key, values in curves.items() if key[0] in kept}


def _rows(path: UpdatePath, curves: Mapping[str, Curves], null: str) -> list[dict[str, Any]]:
    return [row | {"null": null} for row in scope_rows(curves, path.steps, ["attention"])]
