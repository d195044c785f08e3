"""What a report's names become: steps, revisions, folders of checkpoints, and refusals that say what to do."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from opdgeom_utils.chapters import your_run
from opdgeom_utils.chapters.your_run import matching_k, open_run
from opdgeom_utils.checkpoints import OpenCheckpoint, StoredTensor
from opdgeom_utils.errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    MetricInputError,
    NotebookParameterError,
)
from opdgeom_utils.models import resolve_model


def save(path: Path, **shapes: tuple[int, ...]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"model.layers.0.{name}.weight": torch.ones(shape) for name, shape in shapes.items()}, path)
    return str(path)


@pytest.fixture
def before(tmp_path: Path) -> str:
    return save(tmp_path / "before.safetensors", q_proj=(4, 4), norm=(4,))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_folder_of_steps_is_a_trajectory(before: str, tmp_path: Path, kind: str) -> None:
    ends = {"file": ("step_000020.safetensors", "step_000003.safetensors"),
            "folder": ("global_step_20/model.safetensors", "checkpoint-3/model.safetensors")}[kind]  # fmt: skip
    for end in ends:
        save(tmp_path / "run" / end, q_proj=(4, 4), norm=(4,))
    (tmp_path / "run/step_000003.sha256").write_text("a checksum, no checkpoint")
    run = open_run(before, str(tmp_path / "run"))
    assert [step for step, _ in run.checkpoints] == [3, 20]
    assert all(report.complete for report in run.reports)


def test_folder_with_weights_of_its_own_is_one_checkpoint_and_says_so(before: str, tmp_path: Path) -> None:
    for place in ("run/model.safetensors", "run/checkpoint-3/model.safetensors"):
        save(tmp_path / place, q_proj=(4, 4), norm=(4,))
    run = open_run(before, str(tmp_path / "run"))
    assert len(run.checkpoints) == 1
    assert "1 earlier steps, which are not looked at" in run.remarks[0]


def test_one_checkpoint_under_two_names_is_refused(before: str, tmp_path: Path) -> None:
    once = save(tmp_path / "run/step_3.safetensors", q_proj=(4, 4), norm=(4,))
    (tmp_path / "latest.safetensors").symlink_to(once)
    with pytest.raises(MetricInputError, match="are one checkpoint, "):
        open_run(before, [once, str(tmp_path / "latest.safetensors")])


@pytest.mark.parametrize(("trained", "asked"), [("before", True), ("after", False), ("both", False), ("none", False)])
def test_a_reference_that_a_trainer_left_may_be_the_trained_model(tmp_path: Path, trained: str, asked: bool) -> None:
    for name in ("before", "after"):
        save(tmp_path / name / "model.safetensors", q_proj=(4, 4), norm=(4,))
        if trained in (name, "both"):
            (tmp_path / name / "trainer_state.json").write_text("{}")
    run = open_run(str(tmp_path / "before"), str(tmp_path / "after"))
    assert (your_run.SWAPPED in run.remarks) == asked


def test_list_without_steps_is_numbered_in_its_order(before: str, tmp_path: Path) -> None:
    names = [save(tmp_path / f"{name}.safetensors", q_proj=(4, 4), norm=(4,)) for name in ("late", "early")]
    run = open_run(before, names)
    assert [(step, opened.label) for step, opened in run.checkpoints] == [
        (1, "late.safetensors"),
        (2, "early.safetensors"),
    ]
    assert "numbered in the order" in run.remarks[0]


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        (["a/checkpoint-3", "b/checkpoint-3"], "hold the steps"),
        (["a/checkpoint-3", "b/final"], "hold the steps"),
        ([], "empty list"),
        ("FILL-IN/Klear-Reasoner-8B", "in place of FILL-IN"),
        (" ", "is empty"),
    ],
)
def test_names_that_say_too_little_are_refused(before: str, tuned: str | list[str], message: str) -> None:
    with pytest.raises((NotebookParameterError, MetricInputError), match=message):
        open_run(before, tuned)


@pytest.mark.parametrize("label", ["", "OPD", "sft", "paper", "shuffled null", "x" * 41])
def test_label_of_another_mark_is_refused(before: str, label: str) -> None:
    with pytest.raises(NotebookParameterError, match="label is"):
        open_run(before, before, label=label)


def test_revision_is_for_hub_names_without_their_own(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []
    real = your_run.open_checkpoint

    def opened(source: str | Path, *, revision: str | None, base: str | None, allow_pickle: bool) -> OpenCheckpoint:
        assert (base, allow_pickle) == (None, False)
        if Path(source).exists():
            return real(source)
        asked.append((str(source), revision))
        return real(before)

    monkeypatch.setattr(your_run, "open_checkpoint", opened)
    run = open_run("maker/base", ["maker/run@step_2", "maker/run-step_5"], revision="late")
    assert set(asked) == {("maker/base", None), ("maker/run@step_2", None), ("maker/run-step_5", "late")}
    assert [opened.label for _, opened in run.checkpoints] == ["maker/run@step_2", "maker/run-step_5@late"]


def test_what_has_no_counterpart_is_an_error_or_listed(before: str, tmp_path: Path) -> None:
    after = save(tmp_path / "after.safetensors", q_proj=(4, 4), k_proj=(4, 4))
    with pytest.raises(CheckpointMismatchError, match="strict=False"):
        open_run(before, after)
    run = open_run(before, after, strict=False)
    assert list(run.reference.tensors) == ["model.layers.0.q_proj.weight"]
    assert run.reports[0].only_in_tuned == ("model.layers.0.k_proj.weight",)


@pytest.mark.parametrize("modules", [["norm"], ["nothing"], []])
def test_modules_without_a_matrix_are_refused(before: str, modules: list[str]) -> None:
    with pytest.raises(MetricInputError):
        open_run(before, before, modules=modules)


@pytest.mark.parametrize(
    ("side", "k"), [(4096, 512), (5120, 512), (2560, 256), (1024, 128), (192, 16), (32, 4), (4, 1)]
)
def test_k_follows_the_width(side: int, k: int) -> None:
    tensor = StoredTensor("", "w", (3 * side, side), torch.float32)
    assert matching_k(OpenCheckpoint("", {"w": tensor})) == k


def test_pages_do_not_show_where_a_folder_lies(before: str) -> None:
    assert open_run(before, before).reference.label == "before.safetensors"


def test_labels_are_distinct(before: str, tmp_path: Path) -> None:
    names = [f"global_step_{n}/actor/huggingface/before.safetensors" for n in (5, 6)]
    run = open_run(before, [save(tmp_path / name, q_proj=(4, 4), norm=(4,)) for name in names])
    labels = [run.reference.label, *(opened.label for _, opened in run.checkpoints)]
    assert labels[1:] == names
    assert len(set(labels)) == 3
    assert not any(str(tmp_path.parent) in label for label in labels)


def test_a_shipped_name_is_the_shipped_model_and_a_path_is_what_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `opdgeom check` has it: a folder of that name here does not take its place unseen."""
    (tmp_path / "anchor").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"anchor is taken for the model that comes with the book.*write \./anchor"):
        assert your_run._found("anchor") == resolve_model("anchor")
    assert Path(your_run._found("./anchor")).resolve() == tmp_path / "anchor"
    assert your_run._found(str(tmp_path / "anchor")) == str(tmp_path / "anchor")


def test_a_shipped_name_with_a_slip_is_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="Or did you mean 'anchor', which comes with the book"):
        open_run("base", "achor")
    with pytest.raises(CheckpointNotFoundError) as found:
        open_run("base", "org/nothing-like-it")
    assert "did you mean" not in str(found.value)
