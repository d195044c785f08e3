"""Say where a run lies: execute the chapter on your own run, and write one HTML file and the table beside it.

``make report REFERENCE=... TUNED=...`` calls it. Hub names are downloaded, then the plan is printed, then the work
starts. The HTML file holds everything that it needs, so it opens from disk without a network. A killed call goes on
where it was when it is made again.
"""

import argparse
import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import yaml
from tqdm import tqdm

from opdgeom_utils.chapters.parameters import check_names
from opdgeom_utils.chapters.plan import plan_comparison
from opdgeom_utils.chapters.your_run import matching_k, open_run
from opdgeom_utils.diagnose.matrix_rows import Settings
from opdgeom_utils.errors import NotebookParameterError, OpdGeomError
from opdgeom_utils.models import pick_device
from opdgeom_utils.results import DIAGNOSE_OPTIONS
from opdgeom_utils.storage import write_atomic
from tools.notebooks import NotebookFailedError, parameters_of, read_parameters, read_source, run_papermill
from tools.report_page import BOOK_ONLY, report_page

ROOT = Path(__file__).resolve().parent.parent
CHAPTER = ROOT / "notebooks" / "10_your_model.md"
REPORTS = ROOT / "reports"
TRAJECTORY = "trajectory"
OPENING = ("reference", "tuned", "revision", "base", "modules", "label", "strict")
USAGE = (
    "Name both models: make report REFERENCE=<before> TUNED=<after>. Each is a folder, a file, a hub name or a shipped "
    "model (base, anchor, teacher); TUNED may be several checkpoints, or a folder of them. Or give both in a file: "
    "make report PARAMETERS=notebooks/params/<file>.yaml."
)
LOOK_EVERY = 0.5  # seconds between two looks at how far the work is


def make_report(parameters: dict[str, Any], target: Path) -> tuple[Path, Path]:
    """Execute the chapter with these parameters and write the page and the table.

    Parameters
    ----------
    parameters : dict
        Parameters of the chapter; ``reference`` and ``tuned`` at least.
    target : Path
        The HTML file; the table gets its name with ``.parquet``, the folder of finished matrices with ``.work``.

    Returns
    -------
    tuple of Path
        Page and table.

    Raises
    ------
    OpdGeomError
        When a parameter is unknown or missing, or a checkpoint cannot be opened or compared.
    NotebookFailedError
        When a cell of the chapter raises.
    """
    if not parameters.get("reference") or not parameters.get("tuned"):
        raise NotebookParameterError(USAGE)
    check_names(parameters, parameters_of(CHAPTER), CHAPTER.stem)
    total = print_plan(parameters)
    work = target.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    raw, out, given = work / "in.ipynb", work / "out.ipynb", work / "parameters.yaml"
    nbformat.write(without(read_source(CHAPTER), BOOK_ONLY), raw)
    given.write_text(yaml.safe_dump({**parameters, "out": str(work)}), encoding="utf-8")
    with progress(work / "parts", total):
        run_papermill(raw, out, given, ROOT, work / "log.txt", offline=False, cell_seconds=None)
    table = target.with_suffix(".parquet")
    write_atomic(table, (work / "diagnosis.parquet").read_bytes())
    single = len(set(pd.read_parquet(table, columns=["step"])["step"])) == 1
    leave_out = (BOOK_ONLY, TRAJECTORY) if single else (BOOK_ONLY,)
    title = f"Where {parameters.get('label', 'your run')} lies"
    page = report_page(nbformat.read(out, as_version=4), title=title, leave_out=leave_out)
    write_atomic(target, page.encode())
    return target, table


def without(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    """Drop the cells that carry a tag: what only the book shows is not worth your machine's time."""
    notebook.cells = [cell for cell in notebook.cells if tag not in cell.metadata.get("tags", [])]
    return notebook


def print_plan(parameters: dict[str, Any]) -> int:
    """Open what is compared, print what it will take, and return the number of tensors."""
    run = open_run(**{name: parameters[name] for name in OPENING if name in parameters})
    options = {**DIAGNOSE_OPTIONS, "k": parameters.get("k") or matching_k(run.reference)}
    settings = Settings(**options, nulls=True, seed=0, device=pick_device().type)
    planned = plan_comparison(run, settings, n_jobs=parameters.get("n_jobs", 1))
    for what, value in planned.table().itertuples(index=False):
        print(f"  {what:48s} {value}")
    for report in run.reports:
        print(f"  {report.tuned}: " + ("everything compared" if report.complete else "not everything can be compared"))
    return len(run.reference.tensors)


@contextmanager
def progress(folder: Path, total: int) -> Iterator[None]:
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


def local_name(name: str) -> str:
    """Make a path that exists absolute, because the notebook runs in another folder; leave other names as they are."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def given_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """Merge the parameter file with the options; an option that is given wins."""
    parameters = read_parameters(options.parameters) if options.parameters else {}
    words = {
        "reference": options.reference,
        "tuned": options.tuned[0] if options.tuned and len(options.tuned) == 1 else options.tuned,
        "revision": options.revision,
        "base": options.base,
        "label": options.label,
        "modules": options.modules,
        "k": options.k,
        "n_jobs": options.jobs,
    }
    parameters |= {name: value for name, value in words.items() if value}
    for name in ("reference", "tuned", "base"):
        value = parameters.get(name)
        if isinstance(value, str):
            parameters[name] = local_name(value)
        elif isinstance(value, list):
            parameters[name] = [local_name(str(item)) for item in value]
    return parameters


def target_of(out: Path | None, parameters: dict[str, Any]) -> Path:
    """Where the page goes: as asked for, or in ``reports``, named after the run and a checksum of its parameters.

    Examples
    --------
    >>> target_of(None, {"reference": "base", "tuned": "/runs/my run"}).name
    'base-to-my-run-d4e99d.html'
    >>> target_of(Path("report"), {}).name
    'report.html'
    """
    if out is not None:
        return (out if out.suffix == ".html" else out.with_name(f"{out.name}.html")).resolve()
    tuned = parameters.get("tuned", "")
    last = tuned[-1] if isinstance(tuned, list) else tuned
    names = [Path(str(name)).name for name in (parameters.get("reference", ""), last)]
    letters = "-to-".join(names).replace("@", "-at-")
    deciding = {name: value for name, value in parameters.items() if name not in ("label", "n_jobs")}
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return REPORTS / ("".join(c if c.isalnum() or c in "-_." else "-" for c in f"{letters}-{digest}") + ".html")


def main(arguments: list[str] | None = None) -> int:
    """Write the report, or say in plain words why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", help="the model before training")
    parser.add_argument("--tuned", nargs="+", help="the model after it, several checkpoints, or a folder of them")
    parser.add_argument("--revision", help="branch, tag or commit of the hub names in --tuned")
    parser.add_argument("--base", help="what an adapter is merged over, if not what its configuration names")
    parser.add_argument("--label", help="how the figures call the run")
    parser.add_argument("--modules", nargs="+", help="only these kinds of matrix, such as q_proj k_proj")
    parser.add_argument("--k", type=int, help="how many leading directions are compared")
    parser.add_argument("--jobs", type=int, help="processes at once, -1 for one per core")
    parser.add_argument("--parameters", type=Path, help="parameters of the chapter, a YAML file")
    parser.add_argument("--out", type=Path, help=f"the HTML file (default: in {REPORTS.relative_to(ROOT)})")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        parameters = given_parameters(options)
        page, table = make_report(parameters, target_of(options.out, parameters))
    except (OpdGeomError, NotebookFailedError, OSError, ValueError) as error:
        print(f"\nno report was written:\n{error}", file=sys.stderr)
        return 1
    print(f"report ready in {time.monotonic() - start:.0f} s\n  {page.as_uri()}\n  {table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
