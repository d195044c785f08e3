"""One HTML file about a run that was watched while it trained, from the table that the monitor left."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nbformat.v4
import pandas as pd

from opdgeom_utils.chapters.book_renderer import render_chart
from opdgeom_utils.charts.watched import watched_run
from opdgeom_utils.errors import MonitorError
from opdgeom_utils.monitor.table import summary
from opdgeom_utils.report.page import report_page
from opdgeom_utils.storage import write_atomic

NEEDED = {"step", "name", "entries", "update_norm", "walk", "rms"}


def watched_numbers(table: Path) -> pd.DataFrame:
    """Return one row per measured step, as the trainer's log had it.

    Raises MonitorError when the file is no table of a monitor, or has no rows.
    """
    if not table.is_file():
        raise MonitorError(
            f"there is no file {table}; expected the table that a GeometryMonitor or GeometryCallback writes "
            "(geometry.parquet in the trainer's output folder, after the first measured step)."
        )
    try:
        rows = pd.read_parquet(table)
    except (OSError, ValueError) as error:
        raise MonitorError(f"{table} cannot be read as parquet ({error}); expected a monitor's table.") from error
    if not set(rows.columns) >= NEEDED or rows.empty:
        raise MonitorError(
            f"{table} has {len(rows)} rows and not all of the columns {sorted(NEEDED)}; expected the table that a "
            "GeometryMonitor or GeometryCallback writes (geometry.parquet in the trainer's output folder)."
        )
    steps: list[dict[str, Any]] = []
    for step, group in rows.groupby("step", sort=True):
        records: list[dict[str, Any]] = group.to_dict("records")
        steps.append({"step": step} | {k.removeprefix("geometry/"): v for k, v in summary(records).items()})
    return pd.DataFrame(steps)


def write_watched(table: Path, out: Path | None = None) -> Path:
    """Write the page beside the table, or to ``out``, and return where.

    Raises MonitorError as :func:`watched_numbers`. Raises StorageError when it cannot be written.
    """
    numbers = watched_numbers(table)
    step, ratio = numbers["step"].iloc[-1], numbers["walk_ratio"].iloc[-1] if "walk_ratio" in numbers else math.nan
    went = (
        f"At step {step} the watched matrices went {ratio:.2f} times as far as Adam carries them on gradients that are "
        "pure noise."
        if math.isfinite(ratio)
        else f"How far noise would go by step {step} is not known: the optimizer's steps are not Adam's own, or its "
        "rates were 0 (the page on watching a run lists which have a walk)."
    )
    words = (
        f"# A watched run\n\n{went} Grey and dashed is what noise, or a random walk, of the same size shows; a "
        "number that equals its null says nothing about the objective."
    )
    chart, shown = render_chart(watched_run(numbers).to_dict()), numbers.round(4).to_html(index=False)
    cells = [nbformat.v4.new_markdown_cell(words)]
    for content in (chart, {"text/html": f'<div style="overflow-x:auto">{shown}</div>'}):
        output = nbformat.v4.new_output("display_data", data=content)
        cells.append(nbformat.v4.new_code_cell("", outputs=[output]))
    page = report_page(nbformat.v4.new_notebook(cells=cells), title="A watched run")
    target = (table.with_suffix(".html") if out is None else out).expanduser().absolute()
    write_atomic(target, page.encode())
    return target
