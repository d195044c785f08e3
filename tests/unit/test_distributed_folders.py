"""Folders of ``torch.distributed.checkpoint``, written by it: names, chunks, and metadata that lies."""

import pickle
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp

from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, CheckpointUnsafeError
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
    monkeypatch.setattr("opdgeom_utils.checkpoint_forms.distributed_folders.read_structure", None)
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
