"""Checkpoints in, one tidy table of every metric and its nulls out.

One row per matrix (and per step). Norms, biases and tensors that are not matrices get a row with their sparsity only.
The reference's factors and masks are computed once per matrix and shared by all metrics, nulls and checkpoints.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from opdgeom_utils.checkpoints import CheckpointSource, layer_of, module_of, open_checkpoint
from opdgeom_utils.checkpoints.comparison import aligned
from opdgeom_utils.checkpoints.parameter_names import names_of_module
from opdgeom_utils.diagnose.fan_out import Job, as_folder, fan_out
from opdgeom_utils.diagnose.schedule import walks_at
from opdgeom_utils.diagnose.settings import Settings
from opdgeom_utils.diagnose.steps import Checkpoints, in_step_order
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.metrics.schedules import Rates
from opdgeom_utils.storage import write_json


def diagnose_pair(
    reference: CheckpointSource,
    tuned: CheckpointSource,
    *,
    eta: float | int = 1e-3,
    alpha: float | int = 0.3,
    rank: int = 64,
    k: int = 512,
    modules: Sequence[str] | None = None,
    device: str = "auto",
    n_jobs: int = 1,
    nulls: bool | str = "expected",
    seed: int = 0,
    learning_rates: Rates | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float | int = 0.0,
    strict: bool = True,
    out: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Measure where one checkpoint moved away from another, matrix by matrix.

    Parameters
    ----------
    reference, tuned : str, path, torch.nn.Module or OpenCheckpoint
        The model before and after: a folder, a ``.safetensors`` file, a hub id (``name@revision``), an adapter's
        folder, a loaded module, or what :func:`~opdgeom_utils.checkpoints.open_checkpoint` returned.
    eta : float
        Relative tolerance of the bf16 comparison; inert below 0.0039.
    alpha : float
        Size of the two reference masks, 0 to 1.
    rank : int
        Rank of the reconstruction behind the principal mask; clipped to ``min(out, in)``.
    k : int
        Dimension of the singular spaces, and number of singular values for the Hill estimator; clipped likewise.
    modules : sequence of str, optional
        Keep only these, such as ``["q_proj", "k_proj"]``. A plain name also selects every expert's matrix of that name:
        ``up_proj`` keeps ``expert_3.up_proj`` and ``shared_expert.up_proj`` too; ``expert_3.up_proj`` keeps that one.
        What is outside the language model has a name of its own: ``vision_tower.q_proj``, ``mtp.q_proj``.
    device : str
        ``"auto"`` takes a GPU if there is one; everything is float64.
    n_jobs : int
        Processes over matrices, one thread each; -1 means one per core. The numbers do not depend on it. Inside
        ``joblib.parallel_config(backend="dask")`` the same call uses that cluster (``"ray"`` too, after
        ``ray.util.joblib.register_ray()``); its workers must see the checkpoints under the same paths.
    nulls : str or bool
        ``"expected"``: what a shuffled and a random update give on average, which costs next to nothing. ``"exact"`` or
        True: one of each made and measured, and the reference against itself, in twice the time. False: none.
    seed : int
        Seed of the exact nulls; each matrix draws its own from it and its name.
    learning_rates : sequence of float, optional
        The rate of each update between the two; adds what noise would have done along them, see Returns.
    betas, weight_decay
        Of the optimiser, as for :func:`~opdgeom_utils.metrics.noise_walk_rms`. They matter with ``learning_rates``.
    strict : bool
        Whether a tensor on one side only, of two shapes or with two claimants is an error; else it is left out.
    out : path, optional
        A folder that keeps each matrix as soon as it is measured. The same call after a kill measures only what is
        missing; if a tensor or an option has changed, the matrices concerned are measured again.

    Returns
    -------
    pd.DataFrame
        One row per tensor, in layer order. First ``name, layer, module, shape, dtype, n_entries`` (layer -1 outside the
        language model's layers). Then the metrics, under the names of :mod:`opdgeom_utils.metrics`: fractions 0 to 1,
        angles in degrees, ``update_norm`` and ``reference_norm`` Frobenius norms, ``stable_rank_bf16`` of the update
        that bf16 shows, and ``gap_at_k``, the reference's ``(s_k - s_{k+1}) / s_1``, and ``angles_defined``: False
        where this gap, or the tuned matrix's, is below 1e-8. A top-k space is arbitrary there, and its angles are NaN.
        On a side that has no more than ``k`` directions the space is all of it: its angle is 0, whatever was trained.
        ``note`` says in words what is odd about a row: NaN or infinite weights (then no metric is given), or no change
        at all. Then the nulls; expected ones say in ``null_note`` where drift and rotation had to be drawn. With
        ``learning_rates``, then ``walk_ratio``, ``coherence`` and ``noise_sparsity``, and, with the suffix ``_noise``,
        where :func:`~opdgeom_utils.metrics.noise_place` puts noise. Undefined values are NaN; tensors that are not
        matrices have ``update_sparsity`` and ``noise_sparsity`` only.
        In ``attrs["comparisons"]``, and with ``out`` in ``comparisons.json``: what was compared and what was not.

    Raises
    ------
    CheckpointNotFoundError, CheckpointDamagedError, CheckpointUnsafeError, CheckpointMismatchError
        When a checkpoint is missing, unreadable, not only tensors, or of another architecture.
    MetricInputError
        When an option is out of range or a module is unknown.

    Notes
    -----
    The static diagnostics of arXiv 2606.07082, with nulls that the paper does not have. The paper uses alpha 0.3 in its
    text and figure, rank 64, k 512, eta 1e-3. If ``dtype`` says that the tuned weights were stored in bf16, the
    shuffled null of sparsity and overlaps is biased; see :func:`opdgeom_utils.diagnose.nulls.shuffled_update`.

    Examples
    --------
    Only the second weight moves visibly: 1.001 is 1 in bf16.

    >>> before, after = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    >>> _ = before.weight.data.copy_(torch.tensor([[1.0, 2.0]])), after.weight.data.copy_(torch.tensor([[1.001, 2.5]]))
    >>> table = diagnose_pair(before, after, nulls=False)
    >>> table[["name", "shape", "update_sparsity", "stable_rank"]].values.tolist()
    [['weight', '1x2', 0.5, 1.0]]
    """
    walks = walks_at([0], learning_rates, betas=betas, weight_decay=weight_decay)
    settings = Settings(eta, alpha, rank, k, nulls, seed, _device(device), walks)
    table = _table(reference, [(0, tuned)], modules=modules, settings=settings, n_jobs=n_jobs, strict=strict, out=out)
    return table.drop(columns="step")


def diagnose_trajectory(
    reference: CheckpointSource,
    checkpoints: Checkpoints | str | os.PathLike[str],
    *,
    eta: float | int = 1e-3,
    alpha: float | int = 0.3,
    rank: int = 64,
    k: int = 512,
    modules: Sequence[str] | None = None,
    device: str = "auto",
    n_jobs: int = 1,
    nulls: bool | str = "expected",
    seed: int = 0,
    learning_rates: Rates | Mapping[int, Rates] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float | int = 0.0,
    strict: bool = True,
    out: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Measure a run's checkpoints against one reference: :func:`diagnose_pair` for each, sharing the reference's work.

    Parameters
    ----------
    reference : str, path or torch.nn.Module
        The model before training.
    checkpoints : iterable, or a folder
        Paths whose names hold the step (``step_000050.safetensors``, ``checkpoint-50``, ``global_step_50``), pairs
        ``(step, checkpoint)``, objects with ``.step`` and ``.path``, or a folder of such files.
    learning_rates : sequence of float, or a mapping from a step to one, optional
        The rate of each update of the whole run: a checkpoint at step t has had the first t of them. Where steps are no
        updates, a mapping gives the rates up to each checkpoint; one that it leaves out gets no columns of noise.
    eta, alpha, rank, k, modules, device, n_jobs, nulls, seed, betas, weight_decay, strict, out
        As for :func:`diagnose_pair`. A matrix keeps one null seed over all steps.

    Returns
    -------
    pd.DataFrame
        The columns of :func:`diagnose_pair` after ``step``; one row per step and tensor, steps ascending.

    Raises
    ------
    CheckpointNotFoundError, CheckpointDamagedError, CheckpointMismatchError
        When a checkpoint is missing, unreadable, or is of another architecture.
    MetricInputError
        When there are no checkpoints, a step is missing or given twice, or an option is out of range.

    Examples
    --------
    >>> before, after = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    >>> _ = before.weight.data.copy_(torch.tensor([[1.0, 2.0]])), after.weight.data.copy_(torch.tensor([[1.0, 3.0]]))
    >>> diagnose_trajectory(before, [(0, before), (5, after)], nulls=False)[["step", "update_norm"]].values.tolist()
    [[0.0, 0.0], [5.0, 1.0]]
    """
    steps = in_step_order(checkpoints)
    walks = walks_at([step for step, _ in steps], learning_rates, betas=betas, weight_decay=weight_decay)
    settings = Settings(eta, alpha, rank, k, nulls, seed, _device(device), walks)
    return _table(reference, steps, modules=modules, settings=settings, n_jobs=n_jobs, strict=strict, out=out)


def _table(
    reference: CheckpointSource,
    steps: list[tuple[int, CheckpointSource]],
    *,
    modules: Sequence[str] | None,
    settings: Settings,
    n_jobs: int,
    strict: bool,
    out: str | os.PathLike[str] | None,
) -> pd.DataFrame:
    """Check every checkpoint before computing anything, then measure each matrix at all steps."""
    opened = open_checkpoint(reference)
    before, after, reports = aligned(opened, [open_checkpoint(source) for _, source in steps], strict=strict)
    if settings.walks and (adapters := [one.label for one in after if one.adapted is not None]):
        raise MetricInputError(
            f"learning_rates are given and {adapters[0]} is an adapter: Adam moved its factors, not the matrices that "
            "are measured, so noise along these rates says nothing of them. Leave learning_rates out; "
            "GeometryCallback sets the factors beside noise during training."
        )
    numbers = tuple(step for step, _ in steps)
    jobs = [
        Job(
            identity={"name": name, "layer": layer_of(name), "module": module_of(name)},
            steps=numbers,
            before=before.tensors[name],
            after=[checkpoint.tensors[name] for checkpoint in after],
        )
        for name in selected(list(before.tensors), modules)
    ]
    folder = as_folder(out)
    table = fan_out(jobs, settings, n_jobs=n_jobs, out=folder)
    measured = {job.identity["name"] for job in jobs}
    comparisons = [
        {"step": step} | _of_the_table(report.as_dict(), set(before.tensors), measured, list(opened.tensors))
        for step, report in zip(numbers, reports, strict=True)
    ]
    table.attrs["comparisons"] = comparisons
    if folder is not None:
        write_json(folder / "comparisons.json", comparisons)
    return table


def _of_the_table(report: dict[str, Any], kept: set[str], measured: set[str], names: Sequence[str]) -> dict[str, Any]:
    """Bring a report to what the table holds: what ``modules`` left out, and what another checkpoint lacks, apart.

    ``names`` are all of the reference, ``kept`` those that every checkpoint has.
    """
    said = " ".join(str(entry) for value in report.values() if isinstance(value, list) for entry in value).split()
    elsewhere = [name for name in names if name not in kept and name not in said] + [
        name for name in report["compared"] if name not in kept
    ]
    return report | {
        "compared": [name for name in report["compared"] if name in measured],
        "not_selected": [name for name in report["compared"] if name in kept - measured],
        "missing_at_another_step": sorted(set(elsewhere)),
    }


def selected(names: list[str], modules: Sequence[str] | None) -> list[str]:
    """Keep the names of some kinds of tensor, as ``modules`` of :func:`diagnose_pair` says them.

    Raises MetricInputError when there is no such kind, or none is asked for.
    """
    if modules is None:
        return names
    if isinstance(modules, str):
        raise MetricInputError(f"modules is the string {modules!r}, expected a list; write [{modules!r}].")
    known = sorted({part for name in names for part in names_of_module(name)})
    unknown = sorted(set(modules) - set(known))
    if unknown or not modules:
        raise MetricInputError(f"modules are {list(modules)}, expected some of {known}.")
    return [name for name in names if not names_of_module(name).isdisjoint(modules)]


def _device(device: str) -> str:
    if device == "auto":
        return device  # decided where the work is done
    try:
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, TypeError, AssertionError) as error:
        raise MetricInputError(
            f"device {device!r} cannot be used here with float64 ({str(error).splitlines()[0]}); use 'cpu' or 'auto'."
        ) from error
    return device
