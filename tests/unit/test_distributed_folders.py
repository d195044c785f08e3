"""Folders of ``torch.distributed.checkpoint``, written by it: names, chunks, and metadata that lies."""

import json
import pickle
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.errors import (
    CheckpointDamagedError,
    CheckpointNotFoundError,
    CheckpointUnsafeError,
    MetricInputError,
)
from tests.write_shards import full_tensors

W = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path):
    """A folder written by one process, as ``{"model": ..., "optim": ...}``."""
    state = {"model": {W: torch.arange(6.0).reshape(2, 3).bfloat16(), "n": torch.tensor(3)}, "optim": {"lr": 0.1}}
    dcp.save(state, checkpoint_id=tmp_path / "saved", no_dist=True)
    return tmp_path / "saved"


def _rewrite(folder, change):
    """Change the metadata as only a liar or a bad disk would."""
    file = folder / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    change(metadata)
    file.write_bytes(pickle.dumps(metadata))


@pytest.mark.xdist_group("shards")
def test_chunks_of_several_processes_give_the_whole(shards):
    opened, full = open_checkpoint(shards / "distributed"), full_tensors()
    assert sorted(opened.tensors) == sorted(full)
    assert all(torch.equal(opened.tensors[name].read(), expected) for name, expected in full.items())
    assert opened.left_out == ("optim.step",)


def test_the_model_is_found_under_its_key_and_the_rest_left_out(folder):
    opened = open_checkpoint(folder)
    assert list(opened.tensors) == [W]
    assert torch.equal(opened.tensors[W].read(), torch.arange(6.0).reshape(2, 3).bfloat16())
    assert sorted(opened.left_out) == ["model.n", "optim.lr"]


def test_a_bare_state_dict_keeps_its_names(tmp_path):
    dcp.save({W: torch.ones(2, 2), "model.norm.weight": torch.ones(2)}, checkpoint_id=tmp_path, no_dist=True)
    assert list(open_checkpoint(tmp_path).tensors) == [W, "model.norm.weight"]


def test_the_folder_of_a_trainer_is_opened_with_its_configuration(folder, tmp_path):
    outer = tmp_path / "checkpoint-10"
    shutil.copytree(folder, outer / "pytorch_model_fsdp_0")
    (outer / "config.json").write_text('{"model_type": "qwen3"}')
    for source in (outer, outer / "pytorch_model_fsdp_0"):
        opened = open_checkpoint(source)
        assert (list(opened.tensors), opened.config) == ([W], {"model_type": "qwen3"})


def test_opening_reads_no_chunk(folder, monkeypatch):
    monkeypatch.setattr("opdgeom_utils.checkpoints.distributed_folders.read_structure", None)
    assert list(open_checkpoint(folder).tensors) == [W]


def _outside(metadata):
    next(info for index, info in metadata.storage_data.items() if index.fqn.endswith(W)).relative_path = "../x.distcp"


def _longer(metadata):
    next(info for index, info in metadata.storage_data.items() if index.fqn.endswith(W)).length = 10**12


def _elsewhere(metadata):
    next(info for index, info in metadata.storage_data.items() if index.fqn.endswith(W)).offset += 7


def _larger(metadata):
    metadata.state_dict_metadata[f"model.{W}"].size = torch.Size([4, 3])


def _huge(metadata):
    metadata.state_dict_metadata[f"model.{W}"].size = torch.Size([10**9, 10**9])
    metadata.state_dict_metadata[f"model.{W}"].chunks[0].sizes = torch.Size([10**9, 10**9])


def _other_type(metadata):
    metadata.state_dict_metadata[f"model.{W}"].properties.dtype = torch.float32


def _lost(metadata):
    metadata.storage_data.clear()


def _code(metadata):
    metadata.planner_data = pytest.raises


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (_outside, CheckpointUnsafeError, rf"\.metadata: tensor model\.{W} names the file '\.\./x\.distcp'"),
        (_longer, CheckpointDamagedError, rf"__0_0\.distcp: truncated inside tensor model\.{W}"),
        (_elsewhere, CheckpointDamagedError, r"__0_0\.distcp"),
        (_larger, CheckpointDamagedError, rf"tensor model\.{W}: chunks of \[\(2, 3\)\] do not make \(4, 3\)"),
        (_huge, CheckpointDamagedError, rf"truncated inside tensor model\.{W}"),
        (_other_type, CheckpointDamagedError, rf"piece of tensor model\.{W} is \(2, 3\) of torch\.bfloat16"),
        (_lost, CheckpointDamagedError, r"\.metadata: not readable as the metadata"),
        (_code, CheckpointUnsafeError, r"\.metadata: its pickle asks for .*raises"),
    ],
)
def test_metadata_that_lies_is_found(change, error, words, folder):
    _rewrite(folder, change)
    with pytest.raises(error, match=words):
        open_checkpoint(folder).tensors[W].read()


def test_missing_and_truncated_files_are_named(folder):
    chunks = folder / "__0_0.distcp"
    content = chunks.read_bytes()
    chunks.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointDamagedError, match=r"__0_0\.distcp: truncated inside tensor"):
        open_checkpoint(folder)
    chunks.unlink()
    with pytest.raises(CheckpointNotFoundError, match=rf"__0_0\.distcp: no such file.*{W}"):
        open_checkpoint(folder)
    (folder / ".metadata").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointDamagedError, match=r"\.metadata: not readable"):
        open_checkpoint(folder)


@pytest.fixture(scope="module")
def trained():
    """A model and its optimiser after one step, as torch hands their states to a distributed checkpoint."""
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).square().sum().backward()
    optimiser.step()
    return get_model_state_dict(model), get_optimizer_state_dict(model, optimiser)


LAYOUTS = {
    "flat-beside-optimizer": lambda model, optim: {**model, "optimizer": optim, "train_state": {"seen": torch.ones(1)}},
    "flat-beside-another-name": lambda model, optim: {**model, "adamw": optim},
    "under-app": lambda model, optim: {"app": {"model": model, "optim": optim}},
    "optimiser-by-state_dict": lambda model, optim: {**model, "optimizer": {"state_dict": optim}},
    "in-a-training-state": lambda model, optim: {
        "trainer": {"state": {"module": model}, "optimizer": {"model": optim}}
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_state_of_an_optimiser_is_never_weights(layout, trained, tmp_path):
    model, optim = trained
    dcp.save(LAYOUTS[layout](model, optim), checkpoint_id=tmp_path, no_dist=True)
    opened = open_checkpoint(tmp_path)
    assert sorted(opened.tensors) == sorted(model)
    assert all(torch.equal(opened.tensors[name].read(), values) for name, values in model.items())
    assert sum(name.endswith(("exp_avg", "exp_avg_sq", "step")) for name in opened.left_out) == 3 * len(model)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_quantised_weights_are_refused_in_the_model_only(dtype, tmp_path):
    quantised = torch.ones(2).to(dtype)
    dcp.save({"model": {W: torch.ones(2)}, "states": {"q": quantised}}, checkpoint_id=tmp_path / "beside", no_dist=True)
    assert open_checkpoint(tmp_path / "beside").left_out == ("states.q",)
    dcp.save({"model": {W: torch.ones(2), "q": quantised}}, checkpoint_id=tmp_path / "inside", no_dist=True)
    with pytest.raises(MetricInputError, match=r"\.metadata: tensor model\.q is stored as u?int8, expected one of F64"):
        open_checkpoint(tmp_path / "inside")


@pytest.mark.parametrize("inner", ["pytorch_model_fsdp_0", "pytorch_model_fsdp", "model"])
def test_a_link_to_another_folder_is_not_followed(inner, folder, tmp_path):
    outer = tmp_path / "checkpoint-10"
    outer.mkdir()
    (outer / inner).symlink_to(folder)
    with pytest.raises(CheckpointUnsafeError, match=rf"{inner}: is a link to .*saved, outside its folder"):
        open_checkpoint(outer)


def test_a_relative_path_stays_that_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    opened = open_checkpoint(folder.name)
    monkeypatch.chdir("/")
    assert torch.equal(opened.tensors[W].read(), torch.arange(6.0).reshape(2, 3).bfloat16())
    assert opened.label == folder.name


def test_a_folder_larger_than_the_memory_is_read(folder):
    """The chunks of a real checkpoint, moved to the end of a file of 400 GB whose beginning is a hole."""
    hole, chunks = 400 * 10**9 + 1, folder / "__0_0.distcp"
    content = chunks.read_bytes()
    with chunks.open("wb") as stream:
        stream.seek(hole)
        stream.write(content)

    def moved(metadata):
        for info in metadata.storage_data.values():
            info.offset += hole

    _rewrite(folder, moved)
    assert torch.equal(open_checkpoint(folder).tensors[W].read(), torch.arange(6.0).reshape(2, 3).bfloat16())


def test_an_expert_reads_no_more_than_itself(tmp_path, entries_read):
    experts, inside, outside = 16, 8, 6
    stored = {
        "model.layers.0.mlp.experts.gate_up_proj": torch.randn(experts, 2 * inside, outside),
        "model.layers.0.mlp.experts.down_proj": torch.randn(experts, outside, inside),
    }
    dcp.save({"model": stored}, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
    opened = open_checkpoint(tmp_path)
    values = {name: tensor.read() for name, tensor in opened.tensors.items()}
    assert (len(values), len(entries_read)) == (3 * experts, 3 * experts)
    assert sum(entries_read) == sum(tensor.numel() for tensor in stored.values())
    for expert in range(experts):
        gate_up = torch.cat(
            [values[f"model.layers.0.mlp.experts.{expert}.{half}_proj.weight"] for half in ("gate", "up")]
        )
        assert torch.equal(gate_up, stored["model.layers.0.mlp.experts.gate_up_proj"][expert])
