"""Steps of a trajectory: found in every part of a path, in any order, in run folders as trainers leave them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from opdgeom_utils import diagnose_trajectory
from opdgeom_utils.chapters.your_run import open_run
from opdgeom_utils.diagnose import steps
from opdgeom_utils.diagnose.steps import checkpoints_inside, numbered
from opdgeom_utils.errors import CheckpointNotFoundError, MetricInputError, NotebookParameterError

Q = "model.layers.0.self_attn.q_proj.weight"


def save(path: Path, scale: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({Q: scale * torch.eye(4)}, path)
    return path


@pytest.mark.parametrize(
    ("names", "expected", "remark"),
    [
        (["r/checkpoint-1000", "r/checkpoint-200", "r/checkpoint-40"], [1000, 200, 40], ""),
        (["r/global_step_50/actor/huggingface", "r/global_step_100/actor/huggingface"], [50, 100], ""),
        (["/data/step_7/r/checkpoint-1", "/data/step_7/r/checkpoint-2"], [1, 2], ""),
        (["r/step1000/x", "r/step200/x"], [1000, 200], ""),
        (["r/iter_0000100", "r/iter_0000020"], [100, 20], ""),
        (["maker/run@step_2", "maker/run-step_5"], [2, 5], ""),
        (["r/epoch=1-step=500.ckpt", "r/epoch=0-step=250.ckpt"], [500, 250], ""),
        (["r/epoch_0/step_250", "r/epoch_1/step_500"], [250, 500], ""),
        (["r/epoch_1/step_250", "r/epoch_0/step_250", "r/epoch_0/step_9"], [3, 2, 1], steps.ANEW),
        (["r/epoch_0/step_300", "r/epoch_1/step_200"], [1, 2], steps.ANEW),
        (["r/epoch-10", "r/epoch-2"], [10, 2], steps.EPOCHS),
        (["r/hf-1000/m", "r/hf-200/m"], [1000, 200], steps.ALIKE),
        (["r/alpha-0.5", "r/alpha-0.25"], [1, 2], steps.IN_ORDER),
        (["r/late", "r/early"], [1, 2], steps.IN_ORDER),
        (["r/global_step_50/actor"], [50], ""),
        (["r/final"], [0], steps.IN_ORDER),
        (["/data/step2/my run/final"], [0], steps.IN_ORDER),  # the second step of a pipeline is no update
        (["r/step_50/model.safetensors"], [50], ""),
        (["r/checkpoint-1k"], [0], steps.IN_ORDER),
        (["step-3.5-flash/run-9", "step-3.5-flash/run-10"], [9, 10], steps.ALIKE),
        (["r/step-3.5-flash/step_1", "r/step-4/step_2"], [1, 2], ""),
        (["r/stage_2/step_5", "r/stage_1/step_5", "r/stage_1/step_9"], [3, 1, 2], steps.ANEW),
        (["r/phase-1/checkpoint-5", "r/phase-2/checkpoint-9"], [5, 9], ""),
        (["r/round3/model", "r/round1/model"], [3, 1], steps.EPOCHS),
    ],
)
def test_steps_of_names(names: list[str], expected: list[int], remark: str) -> None:
    assert numbered(names) == (expected, remark)


@pytest.mark.parametrize(
    "names",
    [
        ["r/checkpoint-5", "r/final"],
        ["a/checkpoint-5", "b/checkpoint-5"],
        ["r/global_step_50/actor", "r/global_step_50/critic", "r/global_step_60/actor"],
    ],
)
def test_steps_that_are_missing_or_given_twice_are_refused(names: list[str]) -> None:
    with pytest.raises(MetricInputError, match="the names hold the steps"):
        numbered(names)


@pytest.mark.parametrize("step", ["1.5k", "10k", "1,000", "0x10", "1e3", "0.25"])
def test_a_step_that_is_no_whole_number_is_no_step(tmp_path: Path, step: str) -> None:
    """Two such names have no order that is sure: the shell's puts 10k before 2k."""
    with pytest.raises(MetricInputError, match=f"checkpoint-{step}.*no whole number.*rename"):
        numbered([f"r/checkpoint-{step}", "r/checkpoint-2k"])
    before = save(tmp_path / "before.safetensors")
    save(tmp_path / f"run/checkpoint-{step}/model.safetensors")
    save(tmp_path / "run/checkpoint-5/model.safetensors")
    for measure in (lambda run: diagnose_trajectory(before, run, nulls=False), lambda run: open_run(str(before), run)):
        with pytest.raises(MetricInputError, match="no whole number"):
            measure(str(tmp_path / "run"))


def test_a_folder_without_a_step_asks_for_pairs(tmp_path: Path) -> None:
    before = save(tmp_path / "before.safetensors")
    ends = [save(tmp_path / f"run/{name}/model.safetensors", 2) for name in ("early", "late")]
    with pytest.raises(MetricInputError, match=r"early, late.*pairs \(step, path\)"):
        diagnose_trajectory(before, tmp_path / "run", nulls=False)
    assert diagnose_trajectory(before, [(1, ends[0]), (2, ends[1])], nulls=False)["step"].tolist() == [1, 2]


LAYOUTS = {
    "trainer": ("checkpoint-10/model.safetensors", "checkpoint-200/model.safetensors"),
    "verl": (
        "global_step_10/actor/huggingface/model.safetensors",
        "global_step_10/critic/huggingface/model.safetensors",
        "global_step_200/actor/huggingface/model.safetensors",
    ),
    "epochs": ("epoch_0/step_10/model.safetensors", "epoch_1/step_200/model.safetensors"),
    "a folder between": ("ckpts/checkpoint-10/model.safetensors", "ckpts/checkpoint-200/model.safetensors"),
    "step files": ("checkpoints/step_000010.safetensors", "checkpoints/step_000200.safetensors"),
    "with a copy of the best": ("checkpoint-10/a.safetensors", "checkpoint-200/a.safetensors", "best/a.safetensors"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_run_folders_of_trainers(tmp_path: Path, layout: str) -> None:
    """The update of step n is (n / 1000) I of size 4, so its norm n / 500 shows which checkpoint is at which step."""
    run, before = tmp_path / "my run", save(tmp_path / "before.safetensors")
    for place in LAYOUTS[layout]:
        save(run / place, 1 + (200 if "200" in place else 10) / 1000)
    (run / "latest").symlink_to(run / Path(LAYOUTS[layout][0]).parts[0])
    table = diagnose_trajectory(before, run, nulls=False)
    assert table["step"].tolist() == [10, 200]
    assert table["update_norm"].round(5).tolist() == [0.02, 0.4]
    opened = open_run(str(before), str(run))
    assert [step for step, _ in opened.checkpoints] == [10, 200]
    assert len({checkpoint.label for _, checkpoint in opened.checkpoints}) == 2
    assert any("best" in remark for remark in opened.remarks) == ("best" in layout)


def test_a_step_without_weights_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    run, before = tmp_path / "run", save(tmp_path / "before.safetensors")
    save(run / "checkpoint-10/model.safetensors")
    (run / "checkpoint-20").mkdir()
    (run / "checkpoint-20/config.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointNotFoundError, match="checkpoint-20"):
        diagnose_trajectory(before, run, nulls=False)
    with pytest.raises(CheckpointNotFoundError, match="checkpoint-20"):
        open_run(str(before), str(run))


def test_weights_that_lie_deeper_without_a_step_are_one_checkpoint_or_a_question(tmp_path: Path) -> None:
    before = save(tmp_path / "before.safetensors")
    save(tmp_path / "run/actor/huggingface/model.safetensors")
    assert len(open_run(str(before), str(tmp_path / "run")).checkpoints) == 1
    save(tmp_path / "two/a/model.safetensors"), save(tmp_path / "two/b/model.safetensors")
    with pytest.raises(NotebookParameterError, match="several checkpoints and none names a step"):
        open_run(str(before), str(tmp_path / "two"))


def test_folders_that_lie_in_each_other_end(tmp_path: Path) -> None:
    save(tmp_path / "run/checkpoint-5/model.safetensors")
    (tmp_path / "run/self").symlink_to(tmp_path / "run")
    assert [path.name for path in checkpoints_inside(tmp_path / "run")[0]] == ["checkpoint-5"]


def test_a_list_in_the_shells_order_is_sorted(tmp_path: Path) -> None:
    before = save(tmp_path / "before.safetensors")
    ends = [save(tmp_path / f"checkpoint-{n}/model.safetensors", 1 + n / 1000).parent for n in (200, 30)]
    ends.sort()
    assert [path.name for path in ends] == ["checkpoint-200", "checkpoint-30"]
    for table in (
        diagnose_trajectory(before, ends, nulls=False),
        diagnose_trajectory(before, [str(path) for path in ends], nulls=False),
    ):
        assert table[["step", "update_norm"]].round(5).values.tolist() == [[30, 0.06], [200, 0.4]]
    assert [step for step, _ in open_run(str(before), [str(path) for path in ends]).checkpoints] == [30, 200]
