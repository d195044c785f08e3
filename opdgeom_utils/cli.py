"""The command ``opdgeom``: a report on a run, its table alone, whether a pair fits, whether a card works."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from opdgeom_utils.errors import MetricInputError, OpdGeomError
from opdgeom_utils.project_files import PROJECT

TABLES = (".parquet", ".csv")
STOPPED = 130  # the exit status of what Ctrl-C stops
app = typer.Typer(
    name="opdgeom",
    help="Measure where a fine-tuning update lies, beside what its size alone explains.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _names(incomplete: str) -> list[str]:
    """Complete a checkpoint's name: shipped models, then paths."""
    shipped = [path.name for path in (PROJECT / "data" / "models").glob("*") if path.name.startswith(incomplete)]
    start = Path(incomplete)
    folder, beginning = (start, "") if not incomplete or incomplete.endswith("/") else (start.parent, start.name)
    inside = folder.expanduser().glob(f"{beginning}*")
    return sorted(shipped) + sorted(f"{folder / path.name}{'/' if path.is_dir() else ''}" for path in inside)


Reference = Annotated[str, typer.Argument(help="The model before training.", autocompletion=_names)]
Tuned = Annotated[
    list[str],
    typer.Argument(help="The model after it, several checkpoints, or a run's folder.", autocompletion=_names),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub names in TUNED.")]
Base = Annotated[
    str | None, typer.Option(metavar="MODEL", help="What an adapter is merged over, if not what its settings name.")
]
Modules = Annotated[
    list[str] | None, typer.Option(help="Only these kinds of matrix, such as q_proj,k_proj; may be repeated.")
]
K = Annotated[int | None, typer.Option("--k", help="How many leading directions; else chosen by the models' width.")]
Jobs = Annotated[int | None, typer.Option(help="Processes at once, -1 for one per core.", show_default="1")]
Strict = Annotated[
    bool | None, typer.Option("--strict/--no-strict", help="Refuse what has no counterpart, or list it.")
]
Rate = Annotated[
    float | None, typer.Option(help="The highest; else all rates from trainer_state.json beside TUNED, if there.")
]
Updates = Annotated[int | None, typer.Option(help="How many the run had; else the step in the last checkpoint's name.")]
Shape = Annotated[str | None, typer.Option(help="constant, linear or cosine.", show_default="constant")]
Warmup = Annotated[float | None, typer.Option(help="Share of the updates, 0 to 1, while the rate rises.")]
FinalRate = Annotated[float | None, typer.Option(help="Where linear or cosine ends.", show_default="0")]
Betas = Annotated[str | None, typer.Option(help="Adam's, such as 0.9,0.95.", show_default="0.9,0.999")]
Decay = Annotated[float | None, typer.Option(help="AdamW's coefficient.", show_default="0")]
Exact = Annotated[
    bool,
    typer.Option("--exact-nulls", help="Measure shuffled updates; else the nulls are expected values, nearly free."),
]
Pickle = Annotated[
    bool | None, typer.Option("--allow-pickle", help="Read pytorch_model.bin and its like: tensors only, no code.")
]


@app.command(no_args_is_help=True)
def report(
    reference: Reference = "",
    tuned: Tuned = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The HTML file; else one in ./reports.")] = None,
    label: Annotated[str | None, typer.Option(help="What the figures call the run.")] = None,
    revision: Revision = None,
    base: Base = None,
    modules: Modules = None,
    k: K = None,
    jobs: Jobs = None,
    strict: Strict = None,
    allow_pickle: Pickle = None,
    learning_rate: Rate = None,
    updates: Updates = None,
    schedule: Shape = None,
    warmup: Warmup = None,
    final_learning_rate: FinalRate = None,
    betas: Betas = None,
    weight_decay: Decay = None,
    exact_nulls: Exact = False,
    parameters: Annotated[
        Path | None, typer.Option(help="A YAML file of the chapter's parameters; what is given here wins.")
    ] = None,
) -> None:
    """Write where a run lies: one HTML file that opens anywhere, and the whole table beside it.

    REFERENCE and TUNED are folders, files, hub names (name@revision) or shipped models (base, anchor, teacher).
    Nothing is measured before the plan is printed. A killed call goes on where it was when it is made again. With a
    learning rate, or a trainer_state.json beside TUNED, the run also stands beside noise along its own schedule.
    A table that a monitor wrote while a run trained (geometry.parquet) is given alone.

    Examples
    --------
      opdgeom report base anchor

      opdgeom report Qwen/Qwen3-8B-Base ./my-run --jobs 4 --out my-run.html

      opdgeom report Qwen/Qwen3-8B-Base run/checkpoint-* --modules q_proj,k_proj --label "my run"

      opdgeom report Qwen/Qwen3-8B-Base ./my-run --learning-rate 1e-6 --updates 1000 --schedule cosine --warmup 0.1
    """
    with _plain_errors("no report was written", _goes_on):
        if reference.endswith(".parquet") and not tuned:
            from opdgeom_utils.report.watched import write_watched

            print(f"report ready\n  {write_watched(Path(reference), out).as_uri()}")
            return
        from opdgeom_utils.report.papermill_run import read_parameters
        from opdgeom_utils.report.write import taken_apart, write_report

        start = time.monotonic()
        several = taken_apart(tuned[0]) if len(tuned) == 1 else tuned
        said = _said(
            modules, exact_nulls, betas, weight_decay, reference=reference,
            tuned=several[0] if len(several) == 1 else several, label=label, revision=revision, base=base, k=k,
            n_jobs=jobs, strict=strict, allow_pickle=allow_pickle, learning_rate=learning_rate, updates=updates,
            schedule=schedule, warmup=warmup, final_learning_rate=final_learning_rate,
        )  # fmt: skip
        given = read_parameters(parameters.expanduser()) if parameters else {}
        page, table = write_report(given | said, out)
        print(f"report ready in {time.monotonic() - start:.0f} s\n  {page.as_uri()}\n  {table}")


@app.command(no_args_is_help=True)
def diagnose(
    reference: Reference,
    tuned: Tuned,
    out: Annotated[Path, typer.Option("--out", "-o", help="The table: a .parquet or a .csv file.")],
    revision: Revision = None,
    base: Base = None,
    modules: Modules = None,
    k: K = None,
    jobs: Jobs = None,
    strict: Strict = None,
    allow_pickle: Pickle = None,
    learning_rate: Rate = None,
    updates: Updates = None,
    schedule: Shape = None,
    warmup: Warmup = None,
    final_learning_rate: FinalRate = None,
    betas: Betas = None,
    weight_decay: Decay = None,
    exact_nulls: Exact = False,
    nulls: Annotated[bool, typer.Option("--nulls/--no-nulls", help="Give the nulls of every metric.")] = True,
) -> None:
    """Write the table alone: one row for each step and tensor, every metric and its nulls.

    The columns are those of opdgeom_utils.diagnose_trajectory, in Python; angles are in degrees, shares from 0 to 1.
    With a schedule, given or in a trainer_state.json beside TUNED: walk_ratio, coherence and noise_sparsity too.
    A killed call goes on where it was when it is made again.

    Examples
    --------
      opdgeom diagnose base anchor -o table.parquet

      opdgeom diagnose Qwen/Qwen3-8B-Base run/checkpoint-* --no-nulls -o table.csv

      opdgeom diagnose Qwen/Qwen3-8B-Base ./my-run --learning-rate 1e-6 --updates 1000 -o table.parquet
    """
    with _plain_errors("no table was written", _goes_on):
        if out.suffix not in TABLES:
            raise MetricInputError(f"the table is {out.name!r}, expected a name that ends in {' or '.join(TABLES)}.")
        from opdgeom_utils.report.write import write_table

        said = _said(
            modules, exact_nulls, betas, weight_decay, revision=revision, base=base, k=k, n_jobs=jobs, strict=strict,
            allow_pickle=allow_pickle, learning_rate=learning_rate, updates=updates, schedule=schedule, warmup=warmup,
            final_learning_rate=final_learning_rate,
        )  # fmt: skip
        said |= {"reference": reference, "tuned": tuned[0] if len(tuned) == 1 else tuned}
        said |= {} if nulls else {"nulls": False}
        print(*write_table(said, out.expanduser().absolute()), sep="\n")


def _said(
    modules: list[str] | None, exact_nulls: bool, betas: str | None, weight_decay: float | None, **options: Any
) -> dict[str, Any]:
    """Return the parameters of the chapter that were given, kinds of matrix however they are separated."""
    kinds = None if modules is None else " ".join(modules).replace(",", " ").split()
    options |= {"modules": kinds, "nulls": "exact" if exact_nulls else None}
    options["optimizer"] = _optimizer(betas, weight_decay)
    return {name: value for name, value in options.items() if value not in (None, "", [], {})}


def _optimizer(betas: str | None, weight_decay: float | None) -> dict[str, Any]:
    """Name what was said of the optimiser."""
    told: dict[str, Any] = {} if weight_decay is None else {"weight_decay": weight_decay}
    if betas is not None:
        try:
            told["betas"] = [float(part) for part in betas.replace(",", " ").split()]
        except ValueError as error:
            raise MetricInputError(f"betas is {betas!r}, expected two numbers, such as 0.9,0.999.") from error
    return told


@app.command(no_args_is_help=True)
def check(
    student: Annotated[str, typer.Argument(help="The model to be trained.", autocompletion=_names)],
    teacher: Annotated[str, typer.Argument(help="The model it learns from.", autocompletion=_names)],
    gpu_gb: Annotated[float | None, typer.Option(help="Memory of the card in GB; else it is not judged.")] = None,
    sequences: Annotated[int, typer.Option(help="Completions that are sampled at once.")] = 16,
    micro_batch: Annotated[
        int | None, typer.Option(help="Completions in one forward and backward pass.", show_default="all of them")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Longest prompt.")] = 256,
    completion_tokens: Annotated[int, typer.Option(help="Longest completion.")] = 256,
    lora_rank: Annotated[int | None, typer.Option(help="Train a LoRA of this rank; else every weight.")] = None,
    full_logits: Annotated[
        bool, typer.Option("--full-logits/--chunked", help="Hold all logits of a micro-batch at once, or a few.")
    ] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing/--no-checkpointing", help="Compute activations again when they are needed.")
    ] = True,
) -> None:
    """Say whether a student can be distilled from a teacher: tokens, ends, templates, lengths, memory; what to change.

    Only configurations and tokenizers are read, of folders, hub names (name@revision) or shipped models. The exit
    status is 1 where they do not fit; what goes wrong unless it is changed is listed and leaves it at 0.

    Examples
    --------
      opdgeom check Qwen/Qwen3-0.6B-Base Qwen/Qwen3-4B --gpu-gb 24

      opdgeom check ./student ./teacher --gpu-gb 16 --lora-rank 32 --completion-tokens 1024
    """
    with _plain_errors("nothing was checked"):
        from opdgeom_utils.fit import Setting, check_fit

        together = None if micro_batch is None else min(micro_batch, sequences)
        setting = Setting(
            sequences, together, prompt_tokens, completion_tokens, lora_rank, full_logits, checkpointing
        )  # fmt: skip
        fit = check_fit(student, teacher, gpu_gb=gpu_gb, setting=setting)
        print(fit.text())
    if not fit.fits:
        raise typer.Exit(1)


@app.command()
def gpu_check(
    out: Annotated[Path, typer.Option("--out", "-o", help="The JSON file.")] = Path("gpu-check.json"),
    device: Annotated[str, typer.Option(help="cuda; or cpu, together with --tiny.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="Small shapes: tries the check itself, not a card.")] = False,
) -> None:
    """Try this machine's CUDA card, in under 20 minutes and without a network, and write what was found as JSON.

    Do card and processor agree; how fast are the diagnostics on the matrices of Qwen3-0.6B and 8B; what do one OPD and
    one RLVR update take at the shapes of Qwen3-0.6B; do short runs of the toy profile learn as on a processor. Weights
    are random, nothing is fetched. A part that fails is recorded and the rest goes on; the exit status is then 1.

    Examples
    --------
      opdgeom gpu-check --out data/gpu/my-card.json

      opdgeom gpu-check --device cpu --tiny
    """
    out = out.expanduser()
    with _plain_errors(
        "the check was not finished", lambda: f" The parts that were finished are in {out}." if out.is_file() else ""
    ):
        if device not in ("cuda", "cpu"):
            raise MetricInputError(f"device is {device!r}, expected cuda or cpu.")
        from opdgeom_utils.gpu_check import check_card

        record = check_card(out, device=device, tiny=tiny)
        print(f"{'passed' if record['passed'] else 'FAILED'} in {record['seconds']:.0f} s: {out}")
    if not record["passed"]:
        raise typer.Exit(1)


def _goes_on() -> str:
    return " What was measured is kept: the same command goes on from there."


@contextmanager
def _plain_errors(what: str, kept: Callable[[], str] = str) -> Iterator[None]:
    """Say in plain words what stopped a command, without a traceback, and what of one that was stopped is kept."""
    try:
        yield
    except KeyboardInterrupt as stop:
        print(f"\n{what}: stopped.{kept()}", file=sys.stderr)
        raise typer.Exit(STOPPED) from stop
    except (OpdGeomError, OSError, ValueError, MemoryError) as error:
        print(f"\n{what}:\n{error}", file=sys.stderr)
        raise typer.Exit(1) from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    try:
        app(args=arguments, prog_name="opdgeom")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
