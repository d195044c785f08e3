"""The tables: columns, agreement with the metrics one by one, nulls, trajectories, and errors."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from opdgeom_utils import metrics
from opdgeom_utils.diagnose import diagnose_pair, diagnose_trajectory, matrix_rows
from opdgeom_utils.diagnose.nulls import null_generator, random_of_norm, shuffled_update
from opdgeom_utils.errors import CheckpointMismatchError, MetricInputError

Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"
EMBEDDING, NORM = "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"
FRACTIONS = ["update_sparsity", "principal_overlap", "low_magnitude_overlap"]
ANGLES = ["left_angle_max_deg", "left_angle_mean_deg", "right_angle_max_deg", "right_angle_mean_deg"]
FORM = ["name", "layer", "module", "shape", "dtype", "n_entries"]
MEASURED = [
    *("update_sparsity", "update_norm", *ANGLES, "normalized_spectral_shift", "principal_overlap"),
    *("low_magnitude_overlap", "stable_rank", "hill"),
]
EXTRA = ["stable_rank_bf16", "reference_norm", "gap_at_k", "angles_defined", "note"]
NULLED = [*FRACTIONS, *ANGLES, "normalized_spectral_shift", "stable_rank"]


@dataclass(frozen=True)
class SavedStep:
    step: int
    path: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A reference in bf16 and three fp32 checkpoints that drift away from it."""
    folder = tmp_path_factory.mktemp("run")
    generator = torch.Generator().manual_seed(0)
    shapes = {EMBEDDING: (20, 24), Q: (24, 24), UP: (40, 24), NORM: (24,)}
    reference = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    save_file(reference, folder / "reference.safetensors")
    drift = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for step in (10, 5, 100):
        weights = {name: reference[name].float() + 2e-4 * step * drift[name] for name in shapes}
        save_file(weights, folder / f"step_{step:06d}.safetensors")
    return folder


@pytest.fixture(scope="module")
def pair(run):
    paths = run / "reference.safetensors", run / "step_000010.safetensors"
    return diagnose_pair(*paths, k=5, rank=6, nulls="exact")


def _weights(run, step, name):
    return load_file(run / "reference.safetensors")[name], load_file(run / f"step_{step:06d}.safetensors")[name]


def test_columns_are_the_agreed_ones_in_order(pair):
    nulls = [column for column in pair if column.endswith(("_shuffled", "_random", "_identical"))]
    assert list(pair)[: len(FORM + MEASURED)] == FORM + MEASURED
    assert list(pair)[len(FORM + MEASURED) :] == [*EXTRA, *nulls]
    expected = {f"{name}_{null}" for name in NULLED for null in ("shuffled", "random")}
    assert set(nulls) == expected | {f"{angle}_identical" for angle in ANGLES}


def test_rows_say_what_they_measure(pair):
    rows = pair.set_index("name")
    assert list(rows.index) == [EMBEDDING, NORM, UP, Q]
    assert rows.loc[UP, ["layer", "module", "shape", "n_entries"]].tolist() == [0, "up_proj", "40x24", 960]
    assert rows.loc[EMBEDDING, ["layer", "module", "shape"]].tolist() == [-1, "embed_tokens", "20x24"]
    assert set(pair["dtype"]) == {"bfloat16->float32"}
    assert pair["layer"].dtype.kind == pair["n_entries"].dtype.kind == "i"


@pytest.mark.parametrize("name", [Q, UP, EMBEDDING])
def test_each_number_is_the_metric_of_that_name(pair, run, name):
    w_ref, w_new = _weights(run, 10, name)
    delta = w_new.double() - w_ref.double()
    visible = metrics.update_mask(w_ref, w_new)
    angles = metrics.principal_angles(w_ref, w_new, k=5)
    s_ref = np.linalg.svd(w_ref.double().numpy(), compute_uv=False)
    expected = {
        "update_sparsity": metrics.update_sparsity(w_ref, w_new),
        "update_norm": float(delta.norm()),
        "left_angle_max_deg": float(angles.left_deg.max()),
        "left_angle_mean_deg": float(angles.left_deg.mean()),
        "right_angle_max_deg": float(angles.right_deg.max()),
        "right_angle_mean_deg": float(angles.right_deg.mean()),
        "normalized_spectral_shift": metrics.normalized_spectral_shift(w_ref, w_new),
        "principal_overlap": metrics.mask_overlap(metrics.principal_mask(w_ref, rank=6), visible),
        "low_magnitude_overlap": metrics.mask_overlap(metrics.low_magnitude_mask(w_ref), visible),
        "stable_rank": metrics.stable_rank(delta),
        "hill": metrics.hill_estimator(torch.linalg.svdvals(delta), k=5),
        "stable_rank_bf16": metrics.stable_rank(w_new.bfloat16().double() - w_ref.double()),
        "reference_norm": float(w_ref.double().norm()),
        "gap_at_k": (s_ref[4] - s_ref[5]) / s_ref[0],
    }
    row = pair.set_index("name").loc[name]
    for column, value in expected.items():
        assert row[column] == pytest.approx(value, rel=1e-9, abs=1e-9), column


@pytest.mark.parametrize("null", ["shuffled", "random"])
def test_each_null_is_the_metric_of_the_null_update(pair, run, null):
    w_ref, w_new = _weights(run, 10, Q)
    delta, generator = w_new.double() - w_ref.double(), null_generator(0, f"{Q}:{null}")
    if null == "shuffled":
        delta = shuffled_update(delta, generator=generator)
    else:
        delta = random_of_norm(tuple(delta.shape), float(delta.norm()), generator=generator)
    w_null = w_ref.double() + delta
    row = pair.set_index("name").loc[Q]
    visible = metrics.update_mask(w_ref, w_null)
    assert row[f"update_sparsity_{null}"] == metrics.update_sparsity(w_ref, w_null)
    low = metrics.mask_overlap(metrics.low_magnitude_mask(w_ref), visible)
    assert row[f"low_magnitude_overlap_{null}"] == low
    assert row[f"stable_rank_{null}"] == pytest.approx(metrics.stable_rank(delta))
    angles = metrics.principal_angles(w_ref, w_null, k=5)
    assert row[f"left_angle_max_deg_{null}"] == pytest.approx(float(angles.left_deg.max()))


def test_identical_null_is_rounding(pair):
    matrices = pair[pair["shape"].str.contains("x")]
    assert (matrices[[f"{angle}_identical" for angle in ANGLES]] < 1e-10).all().all()


def test_vectors_have_their_sparsity_only(pair, run):
    row = pair.set_index("name").loc[NORM]
    assert row["update_sparsity"] == metrics.update_sparsity(*_weights(run, 10, NORM))
    assert row.drop([*FORM[1:], "update_sparsity", "note"]).isna().all()


def test_a_model_against_itself(run):
    table = diagnose_pair(run / "reference.safetensors", run / "reference.safetensors", k=5)
    assert (table["update_sparsity"] == 1.0).all()
    assert set(table["note"]) == {"identical to the reference"}
    matrices = table[table["shape"].str.contains("x")]
    assert (matrices[["update_norm", "normalized_spectral_shift"]] == 0).all().all()
    assert (matrices[ANGLES] < 1e-10).all().all()
    undefined = ["principal_overlap", "low_magnitude_overlap", "stable_rank", "hill", "stable_rank_bf16"]
    assert matrices[undefined].isna().all().all()


def test_whole_spaces_by_default_and_narrow_matrices():
    before, after = torch.nn.Linear(1, 6, bias=True), torch.nn.Linear(1, 6, bias=True)
    row = diagnose_pair(before, after).set_index("name").loc["weight"]
    assert row["right_angle_max_deg"] == 0.0
    assert row["left_angle_max_deg"] > 0.0
    assert row["stable_rank"] == pytest.approx(1.0)
    assert row["gap_at_k"] == pytest.approx(1.0)
    assert math.isnan(row["hill"])


def test_tensors_of_three_dimensions_have_their_sparsity_only():
    before, after = torch.nn.Conv1d(2, 3, 2, bias=False), torch.nn.Conv1d(2, 3, 2, bias=False)
    row = diagnose_pair(before, after).iloc[0]
    assert (row["shape"], row["update_sparsity"]) == ("3x2x2", 0.0)
    assert math.isnan(row["update_norm"])


def test_modules_select_rows_and_nulls_can_be_left_out(run, pair):
    table = diagnose_pair(
        run / "reference.safetensors", run / "step_000010.safetensors", k=5, rank=6, modules=["q_proj"], nulls=False
    )
    assert table["name"].tolist() == [Q]
    assert not any(column.endswith(("_shuffled", "_random", "_identical")) for column in table)
    expected = pair[pair["name"] == Q].reset_index(drop=True)[list(table)]
    pd.testing.assert_frame_equal(table, expected)


def test_a_plain_module_name_selects_every_expert():
    model = torch.nn.Module()
    model.mlp = torch.nn.Module()
    model.mlp.experts = torch.nn.ModuleList(torch.nn.ModuleDict({"up_proj": torch.nn.Linear(2, 2)}) for _ in range(2))
    model.up_proj = torch.nn.Linear(2, 2)
    chosen = {
        name: set(diagnose_pair(model, model, nulls=False, modules=[name])["module"])
        for name in ("up_proj", "expert_1.up_proj")
    }
    assert chosen["up_proj"] == {"up_proj", "expert_0.up_proj", "expert_1.up_proj"}
    assert chosen["expert_1.up_proj"] == {"expert_1.up_proj"}


def test_the_seed_moves_the_nulls_only(run, pair):
    table = diagnose_pair(
        run / "reference.safetensors", run / "step_000010.safetensors", k=5, rank=6, seed=1, nulls=True
    )
    same = [column for column in table if not column.endswith(("_shuffled", "_random"))]
    pd.testing.assert_frame_equal(table[same], pair[same])
    assert not np.allclose(table["stable_rank_random"].dropna(), pair["stable_rank_random"].dropna())


def test_processes_do_not_change_the_numbers(run, pair):
    options = {"k": 5, "rank": 6, "nulls": "exact", "n_jobs": 2}
    table = diagnose_pair(run / "reference.safetensors", run / "step_000010.safetensors", **options)
    pd.testing.assert_frame_equal(table, pair, rtol=1e-12, atol=1e-11)


def test_a_trajectory_is_its_pairs_in_order_of_steps(run, pair):
    paths = [run / f"step_{step:06d}.safetensors" for step in (100, 5, 10)]
    table = diagnose_trajectory(run / "reference.safetensors", paths, k=5, rank=6, nulls="exact")
    assert list(table) == ["step", *pair]
    assert table["step"].tolist() == [5] * 4 + [10] * 4 + [100] * 4
    at_ten = table[table["step"] == 10].drop(columns="step").reset_index(drop=True)
    pd.testing.assert_frame_equal(at_ten, pair, rtol=1e-12, atol=1e-11)
    norms = table[table["name"] == Q]["update_norm"].to_numpy()
    np.testing.assert_allclose(norms / norms[0], [1, 2, 20], rtol=1e-4)


def test_checkpoints_are_given_in_any_form(run):
    paths = {step: run / f"step_{step:06d}.safetensors" for step in (5, 10, 100)}
    forms = [
        [str(path) for path in paths.values()],
        list(paths.items()),
        [(np.int64(step), path) for step, path in paths.items()],
        [SavedStep(step, path) for step, path in paths.items()],
        (path for path in paths.values()),
        run,
    ]
    tables = [
        diagnose_trajectory(run / "reference.safetensors", form, k=5, modules=["q_proj"], nulls=False) for form in forms
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


def test_a_folder_of_verls_steps_is_a_trajectory(run, tmp_path):
    for step in (5, 10):
        (tmp_path / f"global_step_{step}").symlink_to(run / f"step_{step:06d}.safetensors")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    table = diagnose_trajectory(run / "reference.safetensors", tmp_path, k=5, modules=["q_proj"], nulls=False)
    assert table["step"].tolist() == [5, 10]


def test_the_reference_is_factorised_once(run, monkeypatch):
    import opdgeom_utils.diagnose.matrix_rows as rows

    calls = []
    plain = rows.factorize
    monkeypatch.setattr(rows, "factorize", lambda w, cuts: (calls.append(cuts), plain(w, cuts=cuts))[1])
    diagnose_trajectory(run / "reference.safetensors", run, k=5, rank=6, modules=["q_proj"], nulls=False)
    assert calls == [(5, 6), (5,), (5,), (5,)]


def test_a_bad_checkpoint_stops_before_any_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr("opdgeom_utils.diagnose.fan_out.measure_checkpoints", None)
    save_file({Q: torch.ones(24, 24)}, tmp_path / "step_000020.safetensors")
    with pytest.raises(CheckpointMismatchError, match="step_000020"):
        diagnose_trajectory(
            run / "reference.safetensors", [run / "step_000010.safetensors", tmp_path / "step_000020.safetensors"]
        )


@pytest.mark.parametrize(("side", "bad"), [("reference", float("inf")), ("tuned", float("nan"))])
def test_nan_in_one_matrix_is_a_row_that_says_so(side, bad):
    before, after = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    (before if side == "reference" else after).weight.data[0, 0] = bad
    table = diagnose_pair(before, after).set_index("name")
    assert table.loc["weight", "note"] == "module Linear: tensor weight has 1 NaN or infinite values of 4"
    assert table.loc["weight"].drop([*FORM[1:], "note"]).isna().all()
    assert table.loc["bias", ["update_sparsity", "note"]].tolist() == [0.0, ""]


def test_a_matrix_that_goes_wrong_late_keeps_its_earlier_rows():
    models = [torch.nn.Linear(2, 2, bias=False) for _ in range(3)]
    models[2].weight.data[1, 1] = float("nan")
    table = diagnose_trajectory(models[0], [(1, models[1]), (2, models[2])], nulls=False)
    assert table["update_norm"].isna().tolist() == [False, True]
    assert [bool(note) for note in table["note"]] == [False, True]


def test_only_what_matches_is_compared_when_asked(run, tmp_path):
    weights = load_file(run / "step_000010.safetensors")
    del weights[UP]
    weights |= {Q: weights[Q][:5].clone(), EMBEDDING: torch.cat([weights[EMBEDDING], torch.zeros(4, 24)])}
    save_file(weights, tmp_path / "other.safetensors")
    options = {"k": 5, "rank": 6, "nulls": False}
    with pytest.raises(CheckpointMismatchError, match=r"strict=False"):
        diagnose_pair(run / "reference.safetensors", tmp_path / "other.safetensors", **options)
    table = diagnose_pair(run / "reference.safetensors", tmp_path / "other.safetensors", strict=False, **options)
    whole = diagnose_pair(run / "reference.safetensors", run / "step_000010.safetensors", **options)
    expected = whole[whole["name"].isin([EMBEDDING, NORM])].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, expected)
    (report,) = table.attrs["comparisons"]
    assert (report["compared"], report["only_in_reference"]) == ([EMBEDDING, NORM], [UP])
    assert report["reshaped"] == [f"{Q} is (24, 24) and (5, 24)"]
    assert report["padded"] == [f"{EMBEDDING} is (20, 24) and (24, 24)"]


def test_padded_vocabularies_are_cut_to_the_shortest_of_a_trajectory():
    rows_of_all = torch.randn(8 + 1024, 3, generator=torch.Generator().manual_seed(0))

    def model(rows):
        made = torch.nn.Module()
        made.model = torch.nn.Module()
        made.model.embed_tokens = torch.nn.Embedding.from_pretrained(rows_of_all[:rows].clone(), freeze=False)
        return made

    table = diagnose_trajectory(model(8), [(1, model(9)), (2, model(6))], nulls=False)
    assert table["shape"].tolist() == ["6x3", "6x3"]
    assert [report["padded"] for report in table.attrs["comparisons"]] == [
        [f"{EMBEDDING} is (8, 3) and (9, 3)"],
        [f"{EMBEDDING} is (8, 3) and (6, 3)"],
    ]
    with pytest.raises(CheckpointMismatchError, match="another shape"):
        diagnose_pair(model(8), model(8 + 1024))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modules": ["q_proj", "v_proj"]}, "v_proj.*expected some of.*q_proj"),
        ({"modules": "q_proj"}, "expected a list"),
        ({"modules": []}, "expected some of"),
        ({"k": 0}, "k is 0"),
        ({"rank": -1}, "rank is -1"),
        ({"alpha": 30}, "alpha is 30"),
        ({"eta": -1.0}, "eta is"),
        ({"n_jobs": 0}, "n_jobs is 0"),
        ({"device": "abacus"}, "abacus.*use 'cpu'"),
        ({"device": "meta"}, "meta.*use 'cpu'"),
    ],
)
def test_bad_options_are_refused_in_words(run, options, words):
    with pytest.raises(MetricInputError, match=words):
        diagnose_pair(run / "reference.safetensors", run / "step_000010.safetensors", **options)


@pytest.mark.parametrize(
    ("checkpoints", "words"),
    [
        ([], "expected at least one"),
        ([(3, "a.safetensors"), (3, "b.safetensors")], "each step once"),
        (["final.safetensors"], "has no step"),
        ("nowhere", "expected a folder of steps"),
    ],
)
def test_bad_lists_of_checkpoints_are_refused_in_words(run, checkpoints, words):
    with pytest.raises(MetricInputError, match=words):
        diagnose_trajectory(run / "reference.safetensors", checkpoints)


def test_a_value_beyond_bf16_is_a_row_that_says_so():
    before, after = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    after.weight.data[0, 1] = 3.4e38
    table = diagnose_pair(before, after).set_index("name")
    assert "tensor weight has entries up to 3.4e+38, beyond the largest bf16 number" in table.loc["weight", "note"]
    assert table.loc["weight", "update_sparsity":"hill"].isna().all()
    assert table.loc["bias", "note"] == ""


def test_a_principal_mask_without_a_gap_is_not_given_as_if_it_were_sure():
    before, after = (torch.nn.Linear(12, 12, bias=False, dtype=torch.float64) for _ in range(2))
    noise = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before.weight.data = torch.linalg.qr(noise)[0]
    after.weight.data = before.weight.data + 0.1
    sure, unsure = diagnose_pair(before, after, rank=12).iloc[0], diagnose_pair(before, after, rank=3).iloc[0]
    assert sure["note"] == ""
    assert "mask is arbitrary" in unsure["note"]
    assert pd.isna(unsure["principal_overlap"])
    assert pd.isna(unsure["principal_overlap_shuffled"])
    assert unsure["low_magnitude_overlap"] == sure["low_magnitude_overlap"]


def test_the_report_says_what_the_table_holds(run, tmp_path):
    weights = load_file(run / "step_000010.safetensors")
    del weights[UP]
    save_file(weights, tmp_path / "step_000020.safetensors")
    table = diagnose_trajectory(
        run / "reference.safetensors",
        [run / "step_000010.safetensors", tmp_path / "step_000020.safetensors"],
        strict=False, nulls=False, k=4, rank=4, modules=["q_proj"], out=tmp_path / "out",
    )  # fmt: skip
    first, second = table.attrs["comparisons"]
    assert first["compared"] == second["compared"] == [Q]
    assert sorted(first["not_selected"]) == sorted([EMBEDDING, NORM])
    assert first["missing_at_another_step"] == [UP]
    assert second["only_in_reference"] == [UP]
    assert json.loads((tmp_path / "out" / "comparisons.json").read_text()) == table.attrs["comparisons"]


def test_a_device_without_enough_memory_gives_way_to_the_processor(run, monkeypatch):
    plain = matrix_rows._rows
    asked = []

    def short_of_memory(name, before, after, settings):
        asked.append(settings.device)
        if len(asked) % 2:
            raise torch.OutOfMemoryError
        return plain(name, before, after, settings)

    monkeypatch.setattr(matrix_rows, "_rows", short_of_memory)
    table = diagnose_pair(run / "reference.safetensors", run / "step_000010.safetensors", k=4, nulls=False)
    assert set(asked[1::2]) == {"cpu"}
    assert table["note"].str.endswith("memory was too small").all()
    assert table["update_norm"].notna().sum() == 3
