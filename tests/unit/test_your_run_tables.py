"""Tables of a report: what is averaged, what is listed, and the parameter files of the published pairs."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from opdgeom_utils.chapters import your_run_tables
from opdgeom_utils.chapters.parameters import has_type
from opdgeom_utils.chapters.your_run import open_run
from opdgeom_utils.claims.schema import load_reported
from opdgeom_utils.errors import MetricInputError, NotebookParameterError
from opdgeom_utils.report.papermill_run import read_parameters
from tools.notebooks import parameters_of

ROWS = pd.DataFrame(
    {
        "step": 5,
        "name": [f"model.layers.0.{n}.weight" for n in ("q_proj", "experts.0.up_proj", "experts.1.up_proj", "norm")],
        "layer": 0,
        "module": ["q_proj", "expert_0.up_proj", "expert_1.up_proj", "norm"],
        "shape": ["2x2", "2x2", "2x2", "4"],
        "n_entries": 4,
        "update_sparsity": [0.0, 0.5, 1.0, 0.5],
        "update_norm": [1.0, 3.0, 4.0, float("nan")],
        "reference_norm": [10.0, 30.0, 40.0, float("nan")],
        "stable_rank": [2.0, 3.0, 5.0, float("nan")],
    }
)


def test_means_are_over_attention_and_sparsity_over_all() -> None:
    folded = your_run_tables.along_run(ROWS, "mine").iloc[0]
    assert (folded["recipe"], folded["stable_rank"], folded["update_sparsity"]) == ("mine", 2.0, 0.5)


def test_without_attention_all_matrices_are_averaged() -> None:
    folded = your_run_tables.along_run(ROWS.iloc[1:], "mine").iloc[0]
    assert folded["stable_rank"] == 4.0


def test_path_is_the_runs_own_from_two_checkpoints_on() -> None:
    toy = ROWS.iloc[:1].assign(profile="first_regime", recipe="opd", seed=0)
    along = your_run_tables.along_run(pd.concat([ROWS, ROWS.assign(step=9)]), "mine")
    assert your_run_tables.path_of(along, toy)[0] is along
    path, said = your_run_tables.path_of(along.iloc[:1], toy)
    assert path["recipe"].tolist() == ["opd"]
    assert "as an example" in said


def test_table_without_a_matrix_is_refused() -> None:
    with pytest.raises(MetricInputError, match="no row of the table is a matrix"):
        your_run_tables.matrices_of(ROWS.iloc[3:])


def test_cells_put_experts_together_and_leave_vectors_out() -> None:
    cells, kinds = your_run_tables.cells_of(ROWS, "mine")
    assert kinds == ["q_proj", "experts.up_proj"]
    assert cells.set_index("module")["update_sparsity"].to_dict() == {"q_proj": 0.0, "experts.up_proj": 0.75}


def test_cells_without_layers_stand_in_layer_zero() -> None:
    cells, _ = your_run_tables.cells_of(ROWS.assign(layer=-1), "mine")
    assert set(cells["layer"]) == {0}


def test_what_is_not_compared_is_listed() -> None:
    run = open_run("base", "anchor", modules=["q_proj"])
    table = your_run_tables.compared_table(run)
    assert table["what"].tolist() == ["compared with base", "in common, but not among the modules asked for"]
    assert table["count"].tolist() == [4, 42]


def test_every_published_pair_has_its_file(book_root: Path) -> None:
    printed = load_reported("table1_sparsity").query("group == 'published'")
    files = your_run_tables.published_pairs(book_root / "notebooks/params")
    assert set(zip(files["reference"], files["tuned"], strict=True)) == set(
        zip(printed["base"], printed["finetuned"], strict=True)
    )


def test_parameter_files_fit_the_chapter_and_say_that_they_were_not_run(book_root: Path) -> None:
    declared = parameters_of(book_root / "notebooks/10_your_model.md")
    for path in (book_root / "notebooks/params").glob("table1_*.yaml"):
        given = read_parameters(path)
        assert set(given) <= set(declared)
        assert all(has_type(value, eval(declared[name])) for name, value in given.items())
        assert path.read_text(encoding="utf-8").startswith("# Not run here: ")
        assert ("FILL-IN" in path.read_text(encoding="utf-8")) == ("TO FILL IN" in path.read_text(encoding="utf-8"))


def test_file_with_a_blank_does_not_run(book_root: Path) -> None:
    blank = [p for p in (book_root / "notebooks/params").glob("table1_*.yaml") if "FILL-IN/" in p.read_text()]
    assert blank
    for path in blank:
        given = read_parameters(path)
        with pytest.raises(NotebookParameterError, match="in place of FILL-IN"):
            open_run(given["reference"], given["tuned"])


def test_file_of_an_unknown_pair_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table1_x.yaml").write_text(yaml.safe_dump({"reference": "a/b", "tuned": "c/d"}))
    with pytest.raises(MetricInputError, match=r"not in table1_sparsity\.csv"):
        your_run_tables.published_pairs(tmp_path)
