"""A metric is added in one place, and what pages say of metrics, objectives and nulls comes from their records."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import opdgeom_utils
from opdgeom_utils.chapters.glossary import metric_entries, null_entries, objective_entries, with_entries
from opdgeom_utils.charts.palette import PALETTE
from opdgeom_utils.diagnose.settings import COLUMNS, NULL_COLUMNS
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.scopes import HEADLINE
from opdgeom_utils.vocabulary import METRICS, NULLS, OBJECTIVES, compared

PACKAGE = Path(opdgeom_utils.__file__).parent
PAGE = (PACKAGE.parent / "book/glossary.md").read_text(encoding="utf-8")
RECORD = """
    Metric("largest_change", "largest change of an entry", "largest absolute entry of the update.", unit="units",
           per_matrix=True, compared=True),
"""
FUNCTION = """ "largest_change": lambda w_ref, w_new, row: float((w_new - w_ref).abs().max()), """
SCRIPT = """
import json, sys
import pandas as pd, torch
from safetensors.torch import save_file
from opdgeom_utils import charts, diagnose_pair
from opdgeom_utils.chapters import glossary, where
from opdgeom_utils.claims import matching

w_ref = torch.arange(64.0).reshape(8, 8)
w_new = w_ref.clone()
w_new[2, 3] += 0.75
for name, weights in (("before", w_ref), ("after", w_new)):
    save_file({"model.layers.0.self_attn.q_proj.weight": weights}, f"{name}.safetensors")
options = dict(eta=1e-3, alpha=0.3, rank=2, k=2, nulls=False, n_jobs=1)
table = diagnose_pair("before.safetensors", "after.safetensors", **options)
ends = pd.DataFrame({"place": "one", "recipe": "opd", "seed": [0, 1], "largest_change": [1.0, 3.0]})
ends["update_sparsity"] = 0.5
figure = charts.matched_controls(ends, "largest_change").to_dict()
axes = {layer["encoding"]["x"]["title"] for layer in figure["layer"]}
print(json.dumps({
    "column": table["largest_change"].tolist(),
    "axes": sorted(axes),
    "said": figure["description"],
    "glossary": glossary.metric_entries()["largest change of an entry"],
    "compared": list(matching.METRICS),
    "printed": where.beside_nulls(ends, ["largest_change", "update_sparsity"])["measure"].tolist(),
}))
"""


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a copy of the package says after one record and its function were written into it."""
    folder = tmp_path_factory.mktemp("added")
    copy = folder / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for module, after, text in (
        ("vocabulary.py", "_OF_MATRICES = (", RECORD),
        ("diagnose/matrix_rows.py", "Mapping[str, Any]], float]] = {", FUNCTION),
    ):
        source = (copy / module).read_text(encoding="utf-8")
        assert source.count(after) == 1, f"{module} has no longer one place for it"
        (copy / module).write_text(source.replace(after, after + text), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_metric_is_added_in_one_place(added: dict[str, object]) -> None:
    title = "largest change of an entry (units)"
    assert added["column"] == [0.75]
    assert added["axes"] == [title]
    assert str(added["said"]).startswith("Largest change of an entry (units) where runs are compared. one: OPD 2 units")
    assert added["glossary"] == "`largest_change`: largest absolute entry of the update."
    assert added["printed"] == [title, "update sparsity"]
    assert "largest_change" in str(added["compared"])


def test_the_glossary_defines_everything_once() -> None:
    page = with_entries(PAGE)
    terms = [
        line
        for block in re.findall(r"```\{glossary\}\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
        if line and not line.startswith(" ")
    ]
    assert len(set(terms)) == len(terms)
    assert {*metric_entries(), *objective_entries(), *null_entries()} <= set(terms)
    assert set(re.findall(r"\{term\}`(?:[^`<]*<)?([^`<>]+)>?`", page)) <= set(terms)
    assert "<!--" not in page


def test_a_page_without_its_mark_is_refused() -> None:
    with pytest.raises(MetricInputError, match="no line <!-- nulls -->"):
        with_entries(PAGE.replace("<!-- nulls -->", ""))


def test_every_metric_of_a_table_is_defined() -> None:
    """A column has a definition of its own, or its entry has one."""
    entries = metric_entries()
    measured = [m for m in METRICS.values() if m.per_matrix or m.compared]
    assert all(f"`{m.name}`" in entries[m.entry or m.words] for m in measured)
    assert len({m.words for m in METRICS.values()}) == len(METRICS)


def test_columns_are_those_that_tables_have_always_had() -> None:
    metrics = [
        "update_sparsity", "update_norm", "left_angle_max_deg", "left_angle_mean_deg", "right_angle_max_deg",
        "right_angle_mean_deg", "normalized_spectral_shift", "principal_overlap", "low_magnitude_overlap",
        "stable_rank", "hill",
    ]  # fmt: skip
    keys = ["name", "layer", "module", "shape", "dtype", "n_entries"]
    assert [
        *keys, *metrics, "stable_rank_bf16", "reference_norm", "gap_at_k", "angles_defined", "note",
    ] == COLUMNS  # fmt: skip
    nulled = [metric for metric in metrics if metric not in ("update_norm", "hill")]
    angles = [metric for metric in metrics if metric.endswith("_deg")]
    drawn = [f"{metric}_{null}" for null in ("shuffled", "random") for metric in nulled]
    assert [*drawn, *(f"{angle}_identical" for angle in angles)] == NULL_COLUMNS
    assert compared() == (
        "update_sparsity", "left_angle_mean_deg", "right_angle_mean_deg", "normalized_spectral_shift",
        "principal_overlap", "low_magnitude_overlap",
    )  # fmt: skip


def test_every_objective_and_null_of_a_figure_has_a_colour() -> None:
    drawn = [null.label for null in NULLS.values() if null.name != "identical"]
    assert {*drawn, *(objective.label for objective in OBJECTIVES.values())} <= set(PALETTE)
    assert set(HEADLINE) <= set(OBJECTIVES)
