"""The diagnostics beside the paper's own procedure and the nearest public tool, on one generated pair, in one run.

    python benchmarks/diagnostics.py                      # all 28 layers of Qwen3-0.6B shapes: an hour on two cores
    python benchmarks/diagnostics.py --layers 1           # a few minutes
    python benchmarks/diagnostics.py --model qwen3-8b     # one layer of Qwen3-8B shapes
    python benchmarks/diagnostics.py --model smollm2-135m --weights MODEL/model.safetensors   # k is nearly all of 576
    python benchmarks/diagnostics.py --threads 2 --without "ours, trajectory"   # one table, one contender fewer

Every contender runs in a process of its own, on the same files, one after the other. The baselines get two threads,
ours two processes of one thread; a second table gives everybody one thread. What is sampled or extrapolated says so.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from joblib.externals.loky import get_reusable_executor
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

K, RANK, ALPHA, ETA = 512, 64, 0.3, 1e-3
N_CHECKPOINTS = 10


def shapes_of(hidden: int, intermediate: int, q: int, kv: int) -> dict[str, tuple[int, int]]:
    """(out, in) of one layer's matrices."""
    return {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }


MODELS = {
    "smollm2-135m": (30, shapes_of(576, 1536, 576, 192)),
    "qwen3-0.6b": (28, shapes_of(1024, 3072, 2048, 1024)),
    "qwen3-8b": (36, shapes_of(4096, 12288, 4096, 1024)),
    "qwen3-32b": (64, shapes_of(5120, 25600, 8192, 1024)),
}


# --- the pair ---------------------------------------------------------------------------------------------------------


def generate(folder: Path, model: str, layers: int, n_checkpoints: int, weights: Path | None) -> None:
    """Write a bf16 reference with heavy-tailed spectra, or that of a file, and checkpoints that drift by about 0.1%."""
    generator = torch.Generator().manual_seed(0)
    stored = load_file(weights) if weights else {}
    checkpoints: list[dict[str, torch.Tensor]] = [{} for _ in range(n_checkpoints + 1)]
    for layer in range(layers):
        for module, (n_out, n_in) in MODELS[model][1].items():
            tail = torch.arange(1, 257).float() ** -0.7
            leading = torch.randn(n_out, 256, generator=generator) * tail @ torch.randn(256, n_in, generator=generator)
            name = f"model.layers.{layer}.{module}.weight"
            w = 0.02 * (torch.randn(n_out, n_in, generator=generator) + leading)
            w = stored[name].float() if stored else w
            assert w.shape == (n_out, n_in), f"{name} in {weights} is {tuple(w.shape)}, expected {(n_out, n_in)}"
            channel = torch.randn(n_out, 16, generator=generator) @ torch.randn(16, n_in, generator=generator) / 4
            for step, tensors in enumerate(checkpoints):
                drift = 2e-5 * step**0.5 * (channel + torch.randn(n_out, n_in, generator=generator))
                tensors[name] = (w + drift if step else w).bfloat16()
    for step, tensors in enumerate(checkpoints):
        save_file(tensors, folder / f"step_{step:06d}.safetensors")


def each_pair(folder: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the matrices of the reference and of the last checkpoint, one by one."""
    files = sorted(folder.glob("step_*.safetensors"))
    with safe_open(files[0], "pt") as before, safe_open(files[-1], "pt") as after:
        for name in sorted(before.keys()):
            yield before.get_tensor(name), after.get_tensor(name)


# --- the contenders ---------------------------------------------------------------------------------------------------


def largest(score: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of the ``count`` largest entries."""
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[score.flatten().topk(count).indices] = True
    return mask.reshape(score.shape)


def arccos_degrees(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Principal angles as the paper takes them."""
    return torch.rad2deg(torch.arccos(torch.linalg.svdvals(a.T @ b).clamp(-1, 1)))


def elementwise(w_ref: torch.Tensor, w_new: torch.Tensor) -> torch.Tensor:
    """Visible changes, as the paper writes them."""
    before, after = w_ref.bfloat16().float(), w_new.bfloat16().float()
    return (after - before).abs() > ETA * torch.maximum(before.abs(), after.abs())


def paper_matrix(w_ref: torch.Tensor, w_new: torch.Tensor) -> list[float]:
    """Follow the paper's procedure as written: two decompositions, arccos, reconstruction, spectrum of the update."""
    visible = elementwise(w_ref, w_new)
    before, after = w_ref.double(), w_new.double()
    u0, s0, vh0 = torch.linalg.svd(before, full_matrices=False)
    u1, s1, vh1 = torch.linalg.svd(after, full_matrices=False)
    left, right = arccos_degrees(u0[:, :K], u1[:, :K]), arccos_degrees(vh0[:K].T, vh1[:K].T)
    count = round(ALPHA * before.numel())
    principal = largest(((u0[:, :RANK] * s0[:RANK]) @ vh0[:RANK]).abs(), count)
    low = largest(-before.abs(), count)
    s = torch.linalg.svdvals(after - before)
    overlaps = [float((mask & visible).sum() / visible.sum()) for mask in (principal, low)]
    hill = 1 / float((s[:K] / s[min(K, len(s)) - 1]).log().mean())
    return [
        *map(float, (left.max(), right.max(), (s1 - s0).norm() / s0.norm(), (s / s[0]).square().sum())),
        hill,
        *overlaps,
    ]


def peer_matrix(w_ref: torch.Tensor, w_new: torch.Tensor) -> list[float]:
    """Restate OPD-Param-Analysis, matrix by matrix: float32, four decompositions, four rank and mask ratios."""
    before, after = w_ref.float(), w_new.float()
    delta = after - before
    size, numbers = min(delta.shape), []
    for tolerance in (1e-8, 1e-7, 1e-6, 1e-5, 1e-4):  # coordinate sparsity, absolute and by closeness
        numbers += [(delta.abs() < tolerance).sum(), torch.isclose(delta, torch.zeros(()), atol=tolerance).sum()]
    numbers += [
        delta.abs().flatten().topk(round(part * delta.numel())).values.square().sum() for part in (0.001, 0.01, 0.05)
    ]
    s = torch.linalg.svdvals(delta)
    numbers.append((delta.norm() / s[0]).square())
    u0, s0, vh0 = torch.linalg.svd(before, full_matrices=False)
    u1, s1, _ = torch.linalg.svd(after, full_matrices=False)
    numbers.append((s1 - s0).norm() / s0.norm())
    for ratio in (0.01, 0.05, 0.1, 0.2):
        left, right = u0[:, : round(ratio * size)], vh0[: round(ratio * size)].T
        numbers += [m.square().sum() for m in (left.T @ delta @ right, left.T @ delta, delta @ right)]
        cosines = torch.linalg.svd(left.T @ u1[:, : round(ratio * size)], full_matrices=False)[1]
        numbers.append((1 - cosines.square()).clamp(min=0).sqrt().mean())
    u0, s0, vh0 = torch.linalg.svd(before, full_matrices=False)  # it decomposes the reference again for its masks
    for ratio in (0.01, 0.05, 0.1, 0.2):
        rank, count = round(ratio * size), round(ratio * delta.numel())
        principal = largest(((u0[:, :rank] * s0[:rank]) @ vh0[:rank]).abs(), count)
        low = largest(-before.abs(), count)
        for mask in (principal, low, principal & ~low, ~principal | low):
            numbers.append((mask & (delta != 0)).sum() / (delta != 0).sum())
    return [float(number) for number in numbers]


def baseline(matrix: Callable[[torch.Tensor, torch.Tensor], list[float]]) -> Callable[[Path, int], None]:
    """Run over all matrices, with as many threads as asked for."""

    def run(folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        for w_ref, w_new in each_pair(folder):
            matrix(w_ref, w_new)

    return run


def ours(nulls: bool | str, trajectory: bool = False) -> Callable[[Path, int], None]:
    """Our table, with one process of one thread for each thread of the baselines."""

    def run(folder: Path, threads: int) -> None:
        from opdgeom_utils import diagnose_pair, diagnose_trajectory

        torch.set_num_threads(1)
        reference, *checkpoints = sorted(folder.glob("step_*.safetensors"))
        options = {"k": K, "rank": RANK, "alpha": ALPHA, "eta": ETA, "nulls": nulls, "n_jobs": threads}
        if trajectory:
            diagnose_trajectory(reference, checkpoints, **options)
        else:
            diagnose_pair(reference, checkpoints[-1], **options)

    return run


def read_files(folder: Path, threads: int) -> None:
    """Copy both files' tensors into memory."""
    torch.set_num_threads(threads)
    for w_ref, w_new in each_pair(folder):
        w_ref.clone()
        w_new.clone()


def elementwise_only(folder: Path, threads: int) -> None:
    """Our sparsity, low-magnitude mask and its overlap."""
    from opdgeom_utils.metrics import low_magnitude_mask, mask_overlap, update_mask

    torch.set_num_threads(threads)
    for w_ref, w_new in each_pair(folder):
        visible = update_mask(w_ref, w_new)
        mask_overlap(low_magnitude_mask(w_ref), visible)


CONTENDERS = {
    "paper": baseline(paper_matrix),
    "peer": baseline(peer_matrix),
    "ours": ours(nulls=False),
    "ours, nulls": ours(nulls="expected"),
    "ours, exact nulls": ours(nulls="exact"),
    "ours, trajectory": ours(nulls=False, trajectory=True),
    "read": read_files,
    "elementwise": elementwise_only,
}


# --- the run ----------------------------------------------------------------------------------------------------------


def run_here(name: str, folder: Path, threads: int) -> None:
    """Time one contender in this process, after its imports and a warm-up, and print what it took as JSON."""
    import opdgeom_utils  # outside the timing

    assert opdgeom_utils.diagnose_pair
    torch.linalg.svd(torch.randn(32, 32, dtype=torch.float64))
    start, cpu = time.perf_counter(), os.times()
    CONTENDERS[name](folder, threads)
    spent = time.perf_counter() - start
    get_reusable_executor().shutdown(wait=True)  # a worker's time and memory are known once it has ended
    now = os.times()
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = sum(now[i] - cpu[i] for i in range(4))
    print(json.dumps({"seconds": spent, "cpu_seconds": seconds, "peak_mb": peak / 1024}))


def measure(name: str, folder: Path, threads: int) -> dict[str, float]:
    """Run one contender in its own process."""
    env = os.environ | {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    command = [sys.executable, __file__, "--only", name, "--folder", str(folder), "--threads", str(threads)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"  {name:18s} {found['seconds']:9.2f} s {found['cpu_seconds']:9.2f} cpu-s {found['peak_mb']:8.0f} MB",
        flush=True,
    )
    return found


def ratios(found: dict[str, dict[str, float]], clock: str) -> list[tuple[str, float, str]]:
    """Each figure of merit: what it is, its value, its target."""
    t = {name: values[clock] for name, values in found.items()}
    wanted = [
        ("paper / ours, one pair", "paper", "ours", 1, "at least 5, SmolLM2 4"),
        ("paper / ours, per checkpoint of ten", "paper", "ours, trajectory", N_CHECKPOINTS, "at least 8"),
        ("peer / ours, one pair", "peer", "ours", 1, "at least 6"),
        ("nulls on / off", "ours, nulls", "ours", 1, "at most 1.1"),
        ("exact nulls / none", "ours, exact nulls", "ours", 1, "at most 1.5"),
        ("elementwise / reading", "elementwise", "read", 1, "at most 3"),
    ]
    return [(what, n * t[a] / t[b], target) for what, a, b, n, target in wanted if a in t and b in t]


def work(model: str, layers: int) -> float:
    """Entries times the small side, summed: what the decompositions cost, but for a constant."""
    return layers * sum(n_out * n_in * min(n_out, n_in) for n_out, n_in in MODELS[model][1].values())


def extrapolate(found: dict[str, dict[str, float]], model: str, layers: int) -> None:
    """Print the time of larger models at the measured speed."""
    print("Extrapolated at the speed measured above (entries times small side; layers only, no embedding):")
    for other, (n_layers, _) in MODELS.items():
        factor = work(other, n_layers) / work(model, layers)
        shown = [name for name in ("paper", "ours", "ours, nulls", "ours, exact nulls") if name in found]
        hours = {name: found[name]["seconds"] * factor / 3600 for name in shown}
        print(f"  {other:10s} " + ", ".join(f"{name} {value:.2f} h" for name, value in hours.items()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=["smollm2-135m", "qwen3-0.6b", "qwen3-8b"], default="qwen3-0.6b")
    parser.add_argument("--weights", type=Path, help="safetensors file of the model: its matrices are the reference")
    parser.add_argument("--layers", type=int, help="how many layers (default: all, or 1 for Qwen3-8B)")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1], help="one table for each")
    parser.add_argument("--without", choices=list(CONTENDERS), nargs="+", default=[], help="contenders to leave out")
    parser.add_argument("--only", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        run_here(options.only, options.folder, options.threads[0])
        return
    layers = options.layers or (1 if options.model == "qwen3-8b" else MODELS[options.model][0])
    print(f"{options.model} shapes, {layers} of {MODELS[options.model][0]} layers, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: a contender's peak would begin at what this process holds when it is started.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as maker:
            maker.submit(generate, folder, options.model, layers, N_CHECKPOINTS, options.weights).result()
        for threads in options.threads:
            print(f"{threads} thread(s) for the baselines, {threads} process(es) for ours")
            chosen = [contender for contender in CONTENDERS if contender not in options.without]
            found = {contender: measure(contender, folder, threads) for contender in chosen}
            for clock in ("seconds", "cpu_seconds"):
                print(f"Ratios of {clock} (ten-checkpoint baseline: ten times its measured pair):")
                for what, value, target in ratios(found, clock):
                    print(f"  {what:38s} {value:6.2f}   {target}")
            extrapolate(found, options.model, layers)


if __name__ == "__main__":
    main()
