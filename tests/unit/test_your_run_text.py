"""The reading follows its rules on tables where the answer is known; a caveat appears when its cause is there."""

import math
from typing import Any

import pandas as pd
import pytest

from opdgeom_utils.chapters import your_run_caveats
from opdgeom_utils.chapters import your_run_text as text
from opdgeom_utils.chapters.your_run import OpenedRun
from opdgeom_utils.checkpoints import OpenCheckpoint
from opdgeom_utils.checkpoints.comparison import compare_opened
from opdgeom_utils.claims import load_reported
from opdgeom_utils.diagnose.matrix_rows import IDENTICAL
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.vocabulary import compared

PAPERS = {
    "update_sparsity": (0.081, 0.516, 0.772),
    "left_angle_mean_deg": (10, 1, 0.5),
    "right_angle_mean_deg": (10, 1, 0.5),
    "normalized_spectral_shift": (1e-3, 1e-4, 1e-5),
    "principal_overlap": (0.2966, 0.2731, 0.2665),
    "low_magnitude_overlap": (0.3188, 0.5359, 0.7348),
}


MOVED = pd.DataFrame({"step": [1], "note": [""]})


def rows(metric: str, own: list[float], null: list[float], dtype: str = "float32->float32") -> pd.DataFrame:
    n = len(own)
    return pd.DataFrame(
        {"step": [1] * n, "module": "q_proj", "shape": "8x8", "dtype": dtype, metric: own, f"{metric}_shuffled": null}
    )


@pytest.mark.parametrize(
    ("metric", "own", "null", "word"),
    [
        ("normalized_spectral_shift", [1.2, 1.2, 1.2, 0.9], [1.0] * 4, "more"),
        ("normalized_spectral_shift", [1.5, 1.5, 0.9, 0.9], [1.0] * 4, "about as much"),
        ("normalized_spectral_shift", [1.05] * 4, [1.0] * 4, "about as much"),
        ("left_angle_mean_deg", [0.5] * 4, [1.0] * 4, "less"),
        ("update_sparsity", [0.52] * 4, [0.50] * 4, "more"),
        ("update_sparsity", [0.505] * 4, [0.50] * 4, "about as much"),
        ("low_magnitude_overlap", [0.30] * 4, [0.34] * 4, "less"),
        ("update_sparsity", [math.nan], [0.5], "not judged"),
    ],
)
def test_rule_of_the_null(metric: str, own: list[float], null: list[float], word: str) -> None:
    assert text.against_null(rows(metric, own, null), metric).word == word


def test_rounded_weights_take_the_null_from_what_looks_through_bf16() -> None:
    for metric, word in (("update_sparsity", "not judged"), ("normalized_spectral_shift", "more")):
        found = text.against_null(rows(metric, [0.9] * 4, [0.5] * 4, "bfloat16->bfloat16"), metric)
        assert found.word == word
    assert "not judged" in text.null_words(text.AgainstNull(0.9, 0.5, 4, 4, 0, "not judged"), "update_sparsity")


@pytest.mark.parametrize(("column", "objective"), list(enumerate(["SFT", "OPD", "RLVR"])))
def test_a_run_on_a_papers_point_is_nearest_to_it(column: int, objective: str) -> None:
    own = {metric: [float(values[column])] for metric, values in PAPERS.items()}
    found = text.nearest(MOVED, pd.DataFrame({"recipe": ["mine"], **own}), "mine", load_reported())
    assert found == dict.fromkeys(compared(), objective)


def test_in_short_says_what_is_beyond_size_and_nothing_of_an_update_that_is_none() -> None:
    own = {metric: [float(values[1])] for metric, values in PAPERS.items()}
    nulls = {f"{metric}_shuffled": [values[0] / (2 if metric == "normalized_spectral_shift" else 1)]
             for metric, values in own.items()}  # fmt: skip
    table = MOVED.assign(module="q_proj", shape="8x8", dtype="float32->float32", **own, **nulls)
    said = text.in_short(table, pd.DataFrame({"recipe": ["mine"], **own}), "mine", load_reported())
    assert "it is more by normalized spectral shift; about as much by" in said
    assert said.endswith("One run has no interval.")
    none = table.assign(note=IDENTICAL)
    assert (
        text.in_short(none, pd.DataFrame({"recipe": ["mine"], **own}), "mine", load_reported())
        == (text.reading_of(none, pd.DataFrame({"recipe": ["mine"], **own}), "mine", load_reported())[0])
    )


def test_each_ruler_has_its_item_and_bounds_are_said() -> None:
    own = {metric: [float(values[0]) * 1.01] for metric, values in PAPERS.items()}
    ends = pd.DataFrame({"recipe": ["opd", "mine"], **{m: [0.01, *v] for m, v in own.items()}})
    table = pd.concat([rows(m, [1.0], [1.0]) for m in compared()], ignore_index=True)
    said = text.reading_of(table, ends, "mine", load_reported())
    assert len(said) == len(compared()) + 1
    assert "Update sparsity: 8.2%." in said[0]
    assert "between SFT (8.1%) and OPD (51.6%)" in said[0]
    assert "SFT is printed as a bound, >10" in said[1]
    assert "powers of ten only" in said[3]


def test_undefined_number_is_said_to_be_undefined() -> None:
    ends = pd.DataFrame({"recipe": ["opd", "mine"], **{m: [0.5, math.nan] for m in compared()}})
    table = pd.concat([rows(m, [math.nan], [1.0]) for m in compared()], ignore_index=True)
    said = text.reading_of(table, ends, "mine", load_reported())
    assert all("undefined" in item and "nothing is judged" in item for item in said[:-1])
    assert text.nearest(MOVED, ends, "mine", load_reported()) == {}
    assert text.nearest_words({}).startswith("No ruler")


def test_there_must_be_points() -> None:
    with pytest.raises(MetricInputError):
        text.between(0.5, {}, {})
    assert text.between(math.nan, {"SFT": 0.1}, {"SFT": "10%"}).startswith("nowhere")


def said(note: str = "", run_notes: tuple[str, ...] = (), k: int = 16, **columns: Any) -> list[str]:
    """Caveats of one matrix, 64 x 64, without those that always hold."""
    row = {"step": 1, "shape": "64x64", "dtype": "float32->float32", "angles_defined": True, "note": note} | columns
    table = pd.DataFrame([row]).astype({"angles_defined": "boolean"})
    one = OpenCheckpoint("one", {}, notes=run_notes)
    run = OpenedRun("mine", one, ((1, one),), (compare_opened(one, one),), ("A remark.",))
    return your_run_caveats.caveats(table, run, k)[: -len(your_run_caveats.ALWAYS)]


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ({"dtype": "float32->bfloat16"}, "stored in bfloat16"),
        ({"k": 65}, "1 of 1 matrices the small side is below k = 65"),
        ({"k": 512}, "the toy runs' 16"),
        ({"angles_defined": False}, "two singular values at the cut are equal"),
        ({"note": IDENTICAL}, "1 of 1 tensors are identical"),
        ({"note": "a: tensor w has 2 NaN"}, "could not be measured in full: tensor w has 2 NaN"),
        ({"run_notes": ("h.0.c_attn stays fused: x",)}, "1 fused matrices stay whole"),
    ],
)
def test_caveat_appears_with_its_cause_only(cause: dict[str, Any], words: str) -> None:
    assert any(words in sentence for sentence in said(**cause))
    assert not any(words in sentence for sentence in said())


def test_remarks_of_opening_are_passed_on() -> None:
    assert "A remark." in said()
