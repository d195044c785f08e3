"""Say where a run lies: the plan first, then chapter 10 executed on the run, one HTML file and the whole table.

Hub names are downloaded before the plan is printed. The HTML file holds everything that it needs, so it opens from disk
without a network. A killed call goes on where it was when it is made again.
"""

import hashlib
import json
import shlex
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from tqdm import tqdm

from opdgeom_utils.chapters.parameters import check_given, declared_parameters
from opdgeom_utils.chapters.your_run import OpenedRun, matching_k, noise_options, open_run
from opdgeom_utils.checkpoints.hub_files import HUB_ID
from opdgeom_utils.diagnose import diagnose_trajectory
from opdgeom_utils.diagnose.fan_out import WAIT_SECONDS, say_waiting
from opdgeom_utils.diagnose.plan import plan_comparison
from opdgeom_utils.diagnose.schedule import OPTIONS as SCHEDULE
from opdgeom_utils.diagnose.settings import Settings
from opdgeom_utils.errors import NotebookParameterError, StorageError, ways
from opdgeom_utils.models import MODELS, pick_device
from opdgeom_utils.project_files import PROJECT
from opdgeom_utils.report.page import BOOK_ONLY, report_page
from opdgeom_utils.report.papermill_run import run_papermill, tagged
from opdgeom_utils.results import DIAGNOSE_OPTIONS
from opdgeom_utils.storage import locked, parquet_bytes, write_atomic

CHAPTER = PROJECT / "notebooks" / "10_your_model.ipynb"
REPORTS = "reports"
TRAJECTORY = "trajectory"
OPENING = ("reference", "tuned", "revision", "base", "modules", "label", "strict", "allow_pickle")
USAGE = (
    "Name both models: opdgeom report <before> <after>, or make report REFERENCE=<before> TUNED=<after>. Each is a "
    "folder, a file, a hub name or a shipped model (base, anchor, teacher); <after> may be several checkpoints, or a "
    "run's folder. Or give both in a file of parameters: --parameters FILE, or PARAMETERS=FILE."
)
LOOK_EVERY = 0.5  # seconds between two looks at how far the work is


def write_report(given: Mapping[str, Any], out: str | Path | None = None) -> tuple[Path, Path]:
    """Execute the chapter with these parameters and write the page and the table.

    ``given``: parameters of the chapter; ``reference`` and ``tuned`` at least.
    ``out``: the HTML file; the table gets its name with ``.parquet``, the folder of finished matrices with ``.work``.
    Without it, or where it is a folder, a file named after the run, in ``reports`` here or in that folder.
    Returns page and table. Raises OpdGeomError when a parameter is unknown or missing, a checkpoint cannot be opened or
    compared, nothing can be written there, or a cell of the chapter raises.
    """
    parameters = {**given, **{name: local(given[name]) for name in ("reference", "tuned", "base") if name in given}}
    if not parameters.get("reference") or not parameters.get("tuned"):
        raise NotebookParameterError(USAGE)
    chapter = nbformat.read(CHAPTER, as_version=4)
    check_given(parameters, declared_parameters(tagged(chapter, "parameters")[0].source), CHAPTER.stem)
    target = target_of(out, parameters)
    table = target.with_suffix(".parquet")
    _check_place(target)
    _check_table(table)
    total = _print_plan(parameters)
    work = work_folder(target)
    with locked(work / "page", wait_seconds=WAIT_SECONDS, note=say_waiting):
        _write(parameters, chapter, target, total)
    return target, table


def _write(parameters: Mapping[str, Any], chapter: nbformat.NotebookNode, target: Path, total: int) -> None:
    """Execute the chapter beside ``target`` and write page and table."""
    work, table = target.with_suffix(".work"), target.with_suffix(".parquet")
    # What only the book shows is not worth the reader's time.
    chapter.cells = [cell for cell in chapter.cells if BOOK_ONLY not in cell.metadata.get("tags", [])]
    raw, executed, written = work / "in.ipynb", work / "out.ipynb", work / "parameters.yaml"
    nbformat.write(chapter, raw)
    written.write_text(yaml.safe_dump({**parameters, "out": str(work)}), encoding="utf-8")
    with _progress(work / "parts", total):
        run_papermill(raw, executed, written, PROJECT, work / "log.txt", offline=False, cell_seconds=None)
    write_atomic(table, (work / "diagnosis.parquet").read_bytes())
    single = len(set(pd.read_parquet(table, columns=["step"])["step"])) == 1
    page = report_page(
        nbformat.read(executed, as_version=4),
        title=f"Where {parameters.get('label', 'your run')} lies",
        leave_out=(BOOK_ONLY, TRAJECTORY) if single else (BOOK_ONLY,),
    )
    write_atomic(target, page.encode())


def write_table(given: Mapping[str, Any], target: Path) -> list[str]:
    """Write the table alone, and return what there is to say of it.

    ``given``: as for :func:`write_report`; ``nulls`` may be False.
    ``target``: a ``.parquet`` or a ``.csv`` file; the folder of finished matrices lies beside it.
    Raises OpdGeomError when a checkpoint cannot be opened or compared, or nothing can be written there.
    """
    _check_place(target)
    run = _opened(given)
    beside_noise, said = _beside_noise(run, given)
    table = diagnose_trajectory(
        run.reference, run.checkpoints, **_options(run, given), **beside_noise, n_jobs=given.get("n_jobs", 1),
        strict=given.get("strict", True), out=work_folder(target),
    )  # fmt: skip
    write_atomic(target, parquet_bytes(table) if target.suffix == ".parquet" else table.to_csv(index=False).encode())
    return [f"{len(table)} rows, {len(run.checkpoints)} checkpoints: {target}", *said, *run.remarks]


def local(name: Any) -> Any:
    """Make paths that exist absolute, for the notebook runs in another folder; leave other names as they are."""
    if isinstance(name, list):
        return [local(item) for item in name]
    path = Path(str(name)).expanduser()
    return str(path.absolute()) if isinstance(name, str) and name and path.exists() else name


def taken_apart(name: str) -> list[str]:
    """Take apart a text that holds several names, as a variable of make does; a path with spaces stays whole.

    >>> taken_apart("maker/run@step_1 'maker/run@step_2'"), taken_apart("My Drive/run"), taken_apart("base anchor")
    (['maker/run@step_1', 'maker/run@step_2'], ['My Drive/run'], ['base', 'anchor'])
    """
    try:
        parts = shlex.split(name)
    except ValueError:  # a lone quote is part of a path
        return [name]
    here = [Path(part).expanduser().exists() for part in parts]
    known = [(MODELS / part).is_dir() or bool("/" in part and HUB_ID.fullmatch(part)) for part in parts]
    apart = len(parts) > 1 or parts != [name]
    return parts if apart and not Path(name).expanduser().exists() and (any(here) or all(known)) else [name]


def target_of(out: str | Path | None, parameters: Mapping[str, Any]) -> Path:
    """Where the page goes: as asked for, or in a folder, named after the run and a checksum of its parameters.

    ``out``: the file, or a folder that is there; None takes the folder ``reports`` here.

    >>> target_of(None, {"reference": "base", "tuned": "/runs/my run"}).name
    'base-to-my-run-d4e99d.html'
    >>> target_of("report", {}).name, target_of("/", {"reference": "base", "tuned": "run"}).name
    ('report.html', 'base-to-run-dcef56.html')
    """
    path = Path(REPORTS if out is None else out).expanduser()
    if out is not None and not path.is_dir():
        return (path if path.suffix == ".html" else path.with_name(f"{path.name}.html")).absolute()
    tuned = parameters.get("tuned", "")
    last = tuned[-1] if isinstance(tuned, list) else tuned
    names = [Path(str(name)).name for name in (parameters.get("reference", ""), last)]
    letters = "-to-".join(names).replace("@", "-at-")
    deciding = {name: value for name, value in parameters.items() if name not in ("label", "n_jobs")}
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode()).hexdigest()[:6]
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in letters)[:100]
    return path.absolute() / f"{plain}-{digest}.html"


def _check_place(target: Path) -> None:
    """Refuse a folder in the place of a file, before hours of work."""
    if target.is_dir():
        raise StorageError(f"{target} is a folder, expected the name of a file. Write elsewhere: {ways('out')}.")


def _check_table(table: Path) -> None:
    """Refuse to write over what is no table of a report, such as the one that a monitor keeps while a run trains."""
    _check_place(table)
    try:
        columns = set(pq.read_schema(table).names) if table.is_file() else {"reference_norm"}
    except (OSError, pa.ArrowException):
        return  # cut short, or no parquet at all: nobody can read it
    if "reference_norm" not in columns:
        raise StorageError(
            f"{table} would be written beside the page, and holds another table ({len(columns)} columns). Take another "
            f"name: {ways('out')}."
        )


def work_folder(target: Path) -> Path:
    """Make the folder that keeps finished matrices beside what will be written.

    Raises StorageError when nothing can be written there; it is said before anything is measured.
    """
    work = target.with_suffix(".work")
    try:
        work.mkdir(parents=True, exist_ok=True)
        write_atomic(work / "writable", b"")
    except OSError as error:
        raise StorageError(
            f"nothing can be written in {target.parent} ({error.strerror or error}). Write elsewhere: {ways('out')}."
        ) from error
    return work


def _print_plan(parameters: Mapping[str, Any]) -> int:
    """Open what is compared, print what it will take, and return the number of tensors."""
    run = _opened(parameters)
    settings = Settings(**_options(run, parameters), seed=0, device=pick_device().type)
    _, said = _beside_noise(run, parameters)
    opened = [checkpoint for _, checkpoint in run.checkpoints]
    planned = plan_comparison(run.reference, opened, settings, n_jobs=parameters.get("n_jobs", 1))
    for what, value in planned.table().itertuples(index=False):
        print(f"  {what:48s} {value}")
    for report in run.reports:
        print(f"  {report.tuned}: " + ("everything compared" if report.complete else "not everything can be compared"))
    for sentence in (*said, *run.remarks):
        print(f"  {sentence}")
    return len(run.reference.tensors)


def _opened(given: Mapping[str, Any]) -> OpenedRun:
    return open_run(**{name: given[name] for name in OPENING if name in given})


def _options(run: OpenedRun, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the diagnosis, but for noise."""
    k = matching_k(run.reference) if given.get("k") is None else given["k"]
    return {**DIAGNOSE_OPTIONS, "k": k, "nulls": given.get("nulls", "expected")}


def _beside_noise(run: OpenedRun, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options that set the run beside noise, and what there is to say of it."""
    told = {name: given[name] for name in SCHEDULE if name in given}
    return noise_options(run, **told, **(given.get("optimizer") or {}))


@contextmanager
def _progress(folder: Path, total: int) -> Iterator[None]:
    """Show how many tensors are finished while the notebook works: each leaves one file in ``folder``."""
    done = threading.Event()

    def watch() -> None:
        with tqdm(total=total, unit="tensor", desc="measured", disable=None) as bar:
            while not done.wait(LOOK_EVERY):
                bar.update(min(total, len(list(folder.glob("*.parquet")))) - bar.n)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
