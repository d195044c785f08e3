"""The reading follows its rules on tables where the answer is known; a caveat appears when its cause is there."""

import math
from typing import Any

import pandas as pd
import pytest
import torch

from opdgeom_utils import diagnose_pair
from opdgeom_utils.chapters import your_run_caveats
from opdgeom_utils.chapters import your_run_text as text
from opdgeom_utils.chapters.committed_tables import tables_for
from opdgeom_utils.chapters.your_run import OpenedRun
from opdgeom_utils.checkpoints import OpenCheckpoint, StoredTensor
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
        ({"k": 65}, "1 of 1 matrices k = 65 is no less than the small side"),
        ({"k": 64}, "its angle is 0, whatever was trained"),
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


Q, V = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.v_proj.weight")
UP = "model.layers.0.mlp.up_proj.weight"


def measured(change: dict[str, torch.Tensor], finer: float = 0.0, **dtypes: torch.dtype) -> pd.DataFrame:
    """Table of three random matrices, to which ``change`` is added; ``finer`` takes the reference off bf16's grid."""
    generator = torch.Generator().manual_seed(0)
    shapes = {Q: (64, 64), V: (64, 64), UP: (96, 64)}
    before = {n: (torch.randn(s, generator=generator) / 8).bfloat16().float() * (1 + finer) for n, s in shapes.items()}
    after = {n: (w + change.get(n, 0)).to(dtypes.get("after", torch.float32)) for n, w in before.items()}
    sides = (
        OpenCheckpoint(side, {n: StoredTensor(side, n, tuple(w.shape), w.dtype, held=w) for n, w in weights.items()})
        for side, weights in (("before", before), ("after", after))
    )
    return diagnose_pair(*sides, k=8).assign(step=1)


def low_rank(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return 0.01 * torch.randn(rows, 1, generator=generator) @ torch.randn(1, 64, generator=generator)


def test_what_was_not_trained_takes_no_part_in_a_verdict() -> None:
    """A merged LoRA of q_proj alone turns less than its shuffle; the frozen v_proj beside it must not hide that."""
    table = measured({Q: low_rank(64)})
    found = text.against_null(table, "left_angle_mean_deg")
    row = table.set_index("name").loc[Q]
    assert (found.n, found.word) == (1, "less")
    assert found.own == row["left_angle_mean_deg"]
    assert any("1 of 2 attention matrices have not changed at all" in said for said in caveats_of(table))


def test_where_attention_was_not_trained_the_others_are_read() -> None:
    table = measured({UP: low_rank(96)})
    found = text.against_null(table, "right_angle_mean_deg")
    assert found.own == table.set_index("name").loc[UP, "right_angle_mean_deg"] > 0.01
    assert any("No attention matrix has changed" in said and "(up_proj)" in said for said in caveats_of(table))
    assert not any("attention matri" in said for said in caveats_of(measured({Q: low_rank(64), V: low_rank(64)})))
    assert not any("attention matri" in said for said in caveats_of(measured({})))


def test_weights_that_were_rounded_before_they_were_kept_in_float32_are_known() -> None:
    noise = 2e-4 * torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    whole = measured({Q: noise})
    w = (torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) / 8).bfloat16().float()
    rounded = measured({Q: (w + noise).bfloat16().float() - w})
    of_one = torch.zeros(64, 64).index_put((torch.tensor([3]), torch.tensor([4])), torch.tensor(0.3003))
    assert not your_run_caveats.narrow_formats(whole)
    assert not your_run_caveats.narrow_formats(measured({Q: of_one}))  # of one entry the rank is 1, rounded or not
    assert your_run_caveats.narrow_formats(rounded) == ["bfloat16 (and kept in float32 since)"]
    assert text.against_null(whole, "update_sparsity").word == "about as much"
    assert text.against_null(rounded, "update_sparsity").word == "not judged"


def test_a_finer_reference_beside_bf16_is_not_judged() -> None:
    """Nothing was trained: the weights were only saved in bf16, and every number is of rounding."""
    saved = measured({}, finer=1e-3, after=torch.bfloat16)
    assert saved["update_norm"].min() > 0
    assert {text.against_null(saved, metric).word for metric in compared()} == {"not judged"}
    assert any("the reference holds finer numbers" in said for said in caveats_of(saved))
    trained = measured({Q: low_rank(64)}, after=torch.bfloat16)
    assert text.against_null(trained, "left_angle_mean_deg").word == "less"
    assert not any("finer numbers" in said for said in caveats_of(trained))


def test_a_reference_of_8_bits_beside_wider_weights_is_a_caveat() -> None:
    trained = measured({Q: low_rank(64)}, after=torch.bfloat16)
    kept = trained.assign(dtype="float8_e4m3fn->bfloat16")
    assert any("stored in float8_e4m3fn, the tuned weights were not" in said for said in caveats_of(kept))
    for same in ("bfloat16->bfloat16", "float8_e4m3fn->float8_e4m3fn"):
        assert not any("the tuned weights were not" in said for said in caveats_of(trained.assign(dtype=same)))


def test_only_what_the_toys_nulls_do_is_said_of_them() -> None:
    """In every toy run with nothing to learn, rotation and drift exceed the shuffle; sparsity and overlaps do not."""
    tables = tables_for("toy", [0, 1, 2, 3, 4], ["opd_random_credit", "rlvr_random_reward"]).geometry
    idle = tables.loc[tables["recipe"].isin(["opd_random_credit", "rlvr_random_reward"])]
    for metric in compared():
        words = {text.against_null(run, metric).word for _, run in idle.groupby(["recipe", "seed"])}
        said = text.null_words(text.AgainstNull(0.9, 0.5, 4, 4, 0, "more"), metric)
        assert ("nothing to learn" in said) == (words == {"more"})


def caveats_of(table: pd.DataFrame) -> list[str]:
    one = OpenCheckpoint("one", {})
    run = OpenedRun("mine", one, ((1, one),), (compare_opened(one, one),))
    return your_run_caveats.caveats(table, run, 8)
