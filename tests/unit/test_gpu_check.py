"""The check of a card on small shapes and a processor: every part runs, a fault is found, an error stops nothing."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import Qwen3Config

from opdgeom_utils import cli
from opdgeom_utils.chapters.one_gpu import WORDS, with_cards
from opdgeom_utils.errors import NoCardError, StaleResultsError, StorageError
from opdgeom_utils.gpu_check import PARTS, SCHEMA, agreement, check_card, presets, toy_runs
from opdgeom_utils.gpu_check.agreement import compared
from opdgeom_utils.gpu_check.parts import Found, Place
from opdgeom_utils.gpu_check.presets import Card, needed, plan_for, profile_for, profile_of_card
from opdgeom_utils.gpu_check.shapes import SHAPES, config_of
from opdgeom_utils.gpu_check.updates import _problems
from opdgeom_utils.training import Log
from tools.build_book import ROOT

TINY = Place(torch.device("cpu"), tiny=True)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu") / "check.json"
    assert cli.main(["gpu-check", "--device", "cpu", "--tiny", "--out", str(out)]) == 0
    return out


def test_every_part_runs_and_passes_on_small_shapes(record: Path) -> None:
    found = json.loads(record.read_text())
    assert found["schema"] == SCHEMA
    assert (found["device"], found["tiny"], found["card"], found["passed"]) == ("cpu", True, None, True)
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["parts"]) == set(PARTS) == set(WORDS)
    assert all(part["passed"] and part["seconds"] > 0 and not part["faults"] for part in found["parts"].values())
    results = {name: part["result"] for name, part in found["parts"].items()}
    differences = results["metrics_agree"]["largest_difference"]
    assert {"update_sparsity", "left_angle_max_deg", "stable_rank", "hill"} <= set(differences)
    assert set(results["diagnostics_8b"]["shapes"]) == set(agreement.KINDS)
    for name in ("update_opd", "update_rlvr"):
        assert results[name]["completion_length"] > 0
        assert min(results[name]["update_norm"], results[name]["grad_norm"]) > 0
        assert {"student, fp32", "peak while writing", "peak while learning"} <= set(results[name]["bytes"])
    assert results["toy_rlvr"]["cosine_of_updates"] == pytest.approx(1.0)


def test_a_part_that_fails_is_kept_and_the_rest_goes_on(tmp_path: Path) -> None:
    def broken(_: Place) -> Found:
        raise RuntimeError("CUDA error: an illegal memory access")

    parts = {"broken": broken, "wrong": lambda _: Found({"loss": float("nan")}, ["too far"]), "good": lambda _: Found()}
    out = tmp_path / "check.json"
    check_card(out, device="cpu", tiny=True, parts=parts)
    found = json.loads(out.read_text())
    passed = {name: part["passed"] for name, part in found["parts"].items()}
    assert passed == {"broken": False, "wrong": False, "good": True}
    assert found["parts"]["broken"]["faults"] == ["RuntimeError: CUDA error: an illegal memory access"]
    assert found["parts"]["wrong"]["result"] == {"loss": "nan"}
    assert not found["passed"]
    late = check_card(out, device="cpu", tiny=True, parts=parts, minutes=0.0)["parts"]["good"]
    assert late["faults"] == ["not run: the check had taken 0 minutes"]


def test_a_tiny_check_leaves_one_of_true_shapes_alone(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    check_card(out, device="cpu", tiny=True, parts={})
    check_card(out, device="cpu", tiny=True, parts={})
    out.write_text(out.read_text().replace('"tiny": true', '"tiny": false'))
    whole = out.read_bytes()
    with pytest.raises(StorageError, match=r"holds a check of true shapes.*--out tiny\.json"):
        check_card(out, device="cpu", tiny=True, parts={})
    assert out.read_bytes() == whole


def test_the_exit_status_tells_of_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("opdgeom_utils.gpu_check.record.PARTS", {"wrong": lambda _: Found({}, ["too far"])})
    command = ["gpu-check", "--device", "cpu", "--tiny", "--out", str(tmp_path / "check.json")]
    assert cli.main(command) == 1
    assert "too far" in capsys.readouterr().out


def test_ctrl_c_says_where_the_finished_parts_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(place: Place) -> Found:
        raise KeyboardInterrupt

    monkeypatch.setattr("opdgeom_utils.gpu_check.record.PARTS", {"one": lambda _: Found({}, []), "two": stopped})
    out = tmp_path / "check.json"
    assert cli.main(["gpu-check", "--device", "cpu", "--tiny", "--out", str(out)]) == cli.STOPPED
    assert f"not finished: stopped. The parts that were finished are in {out}." in capsys.readouterr().err
    assert set(json.loads(out.read_text())["parts"]) == {"one"}


def test_without_a_card_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["gpu-check", "--out", str(tmp_path / "check.json")]) == 1
    said = capsys.readouterr().err
    assert "finds no card; expected one that `nvidia-smi` lists" in said
    assert "opdgeom gpu-check --device cpu --tiny" in said
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NoCardError, match="goes with --tiny"):
        check_card(tmp_path / "check.json", device="cpu")


# --- what is compared can differ -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "inside", "outside"),
    [("left_angle_max_deg", 0.00009, 0.0002), ("update_sparsity", 0.00009, 0.0002), ("update_norm", 4e-7, 4e-6)],
)
def test_each_kind_of_number_has_its_tolerance(column: str, inside: float, outside: float) -> None:
    here = pd.DataFrame({"name": ["a", "b"], column: [0.5, float("nan")]})
    for away, fault in ((0.0, False), (inside, False), (outside, True), (float("nan"), True)):
        there = here.assign(**{column: [0.5 + away, float("nan")]})
        assert bool(compared(here, there)[column][1]) == fault


def test_a_device_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, calls = toy_runs.apply_update, []

    def other(learner: toy_runs.Learner, batch: toy_runs.Batch) -> Log:
        calls.append(learner)
        if len(calls) % 2 == 0:  # the device's
            batch = dataclasses.replace(batch, advantages=-batch.advantages)
        return inner(learner, batch)

    monkeypatch.setattr(toy_runs, "apply_update", other)
    faults = toy_runs.toy_run("opd")(TINY).faults
    assert any(fault.startswith("update 1: loss") for fault in faults)
    assert any(fault.startswith("cosine of the two updates is -") for fault in faults)


def test_a_student_that_rounds_more_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, calls = agreement._pass, []

    def coarser(device: torch.device | str, dtype: torch.dtype, compute: str) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(compute)
        return inner(device, dtype, "bfloat16" if len(calls) == 3 else compute)  # the device's float32

    monkeypatch.setattr(agreement, "_pass", coarser)
    faults = agreement.student_agrees(TINY).faults
    assert [fault.partition(" is ")[0] for fault in faults] == ["float32: log_probs", "float32: gradient"]


# --- shapes and plans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "billions"), [("0.6B", 0.596), ("1.7B", 1.721), ("4B", 4.022), ("8B", 8.191)])
def test_the_shapes_are_the_published_ones(size: str, billions: float) -> None:
    """Parameters by hand: attention, MLP and norms of each layer, the vocabulary once or twice, the last norm."""
    config = config_of(SHAPES[size])
    assert isinstance(config, Qwen3Config)
    hidden, wide, narrow = config.hidden_size, config.num_attention_heads * 128, 8 * 128
    layer = 2 * hidden * (wide + narrow) + 3 * hidden * config.intermediate_size + 2 * hidden + 2 * 128
    heads = 1 if config.tie_word_embeddings else 2
    count = config.num_hidden_layers * layer + heads * 151936 * hidden + hidden
    assert round(count / 1e9, 3) == billions


def test_a_profile_needs_what_its_plan_counts() -> None:
    n, plan = 596_049_920, plan_for("qwen3-0.6b", "opd")
    assert plan.parameters == n
    assert plan.memory["AdamW, two moments in fp32"] == 8 * n
    recipe = presets.qwen3_recipe("qwen3-0.6b", "opd")
    written = recipe.prompts_per_update * recipe.group_size * recipe.updates_per_rollout
    tokens = presets.PROMPT_TOKENS + recipe.max_new_tokens
    assert plan.memory["keys and values of the rollouts"] == 2 * 2 * 28 * 8 * 128 * written * tokens


def test_the_24_and_80_gb_profiles_fit_the_cards_they_are_named_for() -> None:
    free = {"qwen3-0.6b": 24 * 2**30 - 10**9, "qwen3-0.6b-80gb": 80 * 2**30 - 10**9}
    assert {profile: needed(profile) <= size for profile, size in free.items()} == dict.fromkeys(free, True)
    assert [profile_for(needed(name)) for name in presets.PROFILES] == list(presets.PROFILES)
    assert profile_for(needed("qwen3-0.6b-16gb") - 1) is None


def test_the_profile_of_a_card_is_taken_where_it_has_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = Card("Tesla T4", 16 * 10**9, 15 * 10**9, "7.5", bf16=False)
    monkeypatch.setattr(presets, "card_found", lambda: card)
    assert profile_of_card("toy") == "toy"
    assert "Tesla T4, 14 GB free (no bf16 of its own: several times slower): the smallest" in capsys.readouterr().out
    large = dataclasses.replace(card, name="H100", free_bytes=84 * 10**9, bf16=True)
    monkeypatch.setattr(presets, "card_found", lambda: large)
    assert profile_of_card("toy") == "toy"
    assert "`make runs PROFILE=qwen3-0.6b-80gb`" in capsys.readouterr().out
    monkeypatch.setattr(presets, "are_committed", lambda profile: True)
    assert profile_of_card("toy") == "qwen3-0.6b-80gb"


def test_prompts_have_the_length_that_was_asked_for(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in _problems(tmp_path, 200).read_text().splitlines()]
    assert {len(row["prompt"]) for row in rows} == {200}


# --- the page --------------------------------------------------------------------------------------------------------

PAGE = (ROOT / "book/one_gpu.md").read_text(encoding="utf-8")


def test_the_page_says_that_no_one_has_run_it(tmp_path: Path) -> None:
    text = with_cards(PAGE, tmp_path / "gpu")
    assert "No one has run it on a card yet" in text
    assert f"| {needed('qwen3-0.6b') / 2**30:.1f} |" in text
    assert "<!--" not in text


def test_the_page_shows_a_committed_record(record: Path, tmp_path: Path) -> None:
    found = json.loads(record.read_text())
    found |= {"tiny": False, "device": "cuda", "passed": False}
    found["card"] = {
        "name": "NVIDIA L4",
        "bytes": 24 * 2**30,
        "free_bytes": 23 * 2**30,
        "capability": "8.9",
        "bf16": True,
    }
    found["parts"]["diagnostics_8b"] |= {"passed": False, "faults": ["OutOfMemoryError: 4 GB"], "peak_bytes": 3 * 2**30}
    (tmp_path / "l4.json").write_text(json.dumps(found))
    text = with_cards(PAGE, tmp_path)
    assert "### NVIDIA L4\n\n24.0 GB, compute capability 8.9, bf16;" in text
    assert "not everything passed (`data/gpu/l4.json`)" in text
    assert "| diagnostics, one layer of Qwen3-8B | **no** |" in text
    assert " | 3.00 |" in text
    assert "- diagnostics, one layer of Qwen3-8B: OutOfMemoryError: 4 GB" in text
    assert "No one has run it" not in text


@pytest.mark.parametrize("change", [{"tiny": True}, {"schema": 0}, {"parts": {}}, {"card": None}])
def test_a_record_of_small_shapes_or_another_schema_is_refused(change: dict, record: Path, tmp_path: Path) -> None:
    found = json.loads(record.read_text()) | {"tiny": False, "card": {"name": "L4"}} | change
    (tmp_path / "l4.json").write_text(json.dumps(found))
    with pytest.raises(StaleResultsError, match=r"l4\.json is no whole record"):
        with_cards(PAGE, tmp_path)
