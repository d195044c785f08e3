"""``pytorch_model.bin``: only when asked for, only tensors, never code."""

import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.diagnose import diagnose_pair
from opdgeom_utils.errors import (
    CheckpointDamagedError,
    CheckpointNotFoundError,
    CheckpointUnsafeError,
    MetricInputError,
)
from tests.damage import RunsCode, mutated, outcome_of, time_limit

WEIGHTS = {
    "model.a.weight": torch.arange(6.0).reshape(2, 3).bfloat16(),
    "model.b.bias": torch.ones(3),
    "n": torch.tensor(3),
}


@pytest.fixture
def folder(tmp_path):
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    return tmp_path


def _is_read(opened):
    names = ["model.a.weight", "model.b.bias"]
    return list(opened.tensors) == names and all(torch.equal(opened.tensors[n].read(), WEIGHTS[n]) for n in names)


def test_it_is_refused_unless_asked_for(folder):
    for source in (folder, folder / "pytorch_model.bin"):
        with pytest.raises(CheckpointUnsafeError, match=r"pytorch_model\.bin: is a pickle.*allow_pickle=True"):
            open_checkpoint(source)
        opened = open_checkpoint(source, allow_pickle=True)
        assert _is_read(opened)
        assert opened.left_out == ("n",)


def test_what_was_opened_so_can_be_diagnosed(folder):
    opened = open_checkpoint(folder, allow_pickle=True)
    table = diagnose_pair(opened, opened, k=1, nulls=False, n_jobs=2)
    assert table["note"].tolist() == ["identical to the reference"] * 2


def test_shards_with_an_index(tmp_path):
    names = {"model.a.weight": "pytorch_model-00001-of-00002.bin", "model.b.bias": "pytorch_model-00002-of-00002.bin"}
    for name, file in names.items():
        torch.save({name: WEIGHTS[name]}, tmp_path / file)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert _is_read(open_checkpoint(tmp_path, allow_pickle=True))
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(
        CheckpointNotFoundError, match=r"names pytorch_model-00002-of-00002\.bin \(for model\.b\.bias\)"
    ):
        open_checkpoint(tmp_path, allow_pickle=True)
    index.write_text(json.dumps({"weight_map": {"w": "../other.bin"}}))
    with pytest.raises(CheckpointUnsafeError, match=r"index\.json: tensor w names the file '\.\./other\.bin'"):
        open_checkpoint(tmp_path, allow_pickle=True)


def test_a_model_inside_a_training_state_is_found(tmp_path):
    torch.save({"model": WEIGHTS, "epoch": 3}, tmp_path / "last.pt")
    opened = open_checkpoint(tmp_path / "last.pt", allow_pickle=True)
    assert _is_read(opened)
    assert sorted(opened.left_out) == ["epoch", "model.n"]


def test_a_module_with_its_versions_is_read(tmp_path):
    module = torch.nn.LayerNorm(3)
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    assert sorted(open_checkpoint(tmp_path, allow_pickle=True).tensors) == ["bias", "weight"]


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_is_refused_and_not_run(write, tmp_path, capsys):
    write({"w": RunsCode()}, tmp_path / "pytorch_model.bin")
    with pytest.raises((CheckpointUnsafeError, CheckpointDamagedError), match=r"pytorch_model\.bin"):
        open_checkpoint(tmp_path, allow_pickle=True)
    assert capsys.readouterr().out == ""


def test_code_is_named(tmp_path):
    torch.save({"w": torch.ones(1), "x": RunsCode()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        CheckpointUnsafeError, match=r"asks for (builtins|__builtin__)\.print, which is no part of a tensor"
    ):
        open_checkpoint(tmp_path, allow_pickle=True)


def _before_archives(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def test_files_from_before_torch_1_6_are_read(tmp_path):
    _before_archives({"model": WEIGHTS, "epoch": 3}, tmp_path / "old.bin")
    opened = open_checkpoint(tmp_path / "old.bin", allow_pickle=True)
    assert _is_read(opened)
    assert sorted(opened.left_out) == ["epoch", "model.n"]
    _before_archives({"model": {}}, tmp_path / "old.bin")
    with pytest.raises(CheckpointDamagedError, match=r"old\.bin: tensor model\.a\.weight is gone"):
        opened.tensors["model.a.weight"].read()


def test_code_in_a_file_from_before_torch_1_6_is_named_and_not_run(tmp_path, capsys):
    _before_archives({"w": torch.ones(1), "x": RunsCode()}, tmp_path / "old.bin")
    with pytest.raises(CheckpointUnsafeError, match=r"old\.bin: its pickle asks for print, which is no part of a"):
        open_checkpoint(tmp_path / "old.bin", allow_pickle=True)
    assert capsys.readouterr().out == ""


def test_damage_to_a_file_from_before_torch_1_6_is_an_error_of_ours_or_what_torch_reads(tmp_path):
    dice, file, n_read = random.Random(4), tmp_path / "old.bin", 0
    _before_archives(WEIGHTS, file)
    content = file.read_bytes()
    for number in range(80):
        file.write_bytes(mutated(content, dice))

        def read():
            opened = open_checkpoint(file, allow_pickle=True)
            return {name: tensor.read_unchecked() for name, tensor in opened.tensors.items()}

        found = outcome_of(read, str(file))
        if found is not None:
            n_read += 1
            expected = torch.load(file, weights_only=True)
            assert all(torch.equal(value.nan_to_num(), expected[name].nan_to_num()) for name, value in found.items()), (
                number
            )
    assert 0 < n_read < 80


def test_damage_after_opening_is_found_on_reading(folder):
    opened = open_checkpoint(folder, allow_pickle=True)
    (folder / "pytorch_model.bin").write_bytes(b"gone")
    with pytest.raises(CheckpointDamagedError, match=r"pytorch_model\.bin"):
        opened.tensors["model.a.weight"].read()


def test_what_was_read_can_be_written_to_and_the_file_stays(folder):
    before = (folder / "pytorch_model.bin").read_bytes()
    tensor = open_checkpoint(folder, allow_pickle=True).tensors["model.a.weight"]
    tensor.read().zero_()
    assert torch.equal(tensor.read(), WEIGHTS["model.a.weight"])
    assert (folder / "pytorch_model.bin").read_bytes() == before


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
def test_what_was_read_is_let_go(folder):
    """Else reading one tensor after the other would hold the whole file, as torch's own mapping of it does."""
    tensors = open_checkpoint(folder, allow_pickle=True).tensors
    held = tensors["model.a.weight"].read()
    assert str(folder) in Path("/proc/self/maps").read_text()
    del held
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_views_of_one_storage_and_parts_of_them(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    torch.save({"turned": whole.T, "columns": whole[:, 1::2], "empty": whole[:0]}, tmp_path / "x.bin")
    tensors = open_checkpoint(tmp_path / "x.bin", allow_pickle=True).tensors
    assert torch.equal(tensors["turned"].read(), whole.T)
    assert torch.equal(tensors["columns"].read_part((slice(1, 3), -1)), whole[1:3, 5])
    assert tensors["empty"].read_unchecked().shape == (0, 6)


def test_tensors_without_plain_values_are_refused(tmp_path):
    for value in (torch.ones(2, 2).to_sparse(), torch.empty(2, device="meta")):
        torch.save({"w": value}, tmp_path / "x.bin")
        with pytest.raises(
            CheckpointDamagedError, match=r"x\.bin: not a readable file .*a tensor whose values are not"
        ):
            open_checkpoint(tmp_path / "x.bin", allow_pickle=True)


def test_weights_and_a_link_that_leads_elsewhere(tmp_path, folder):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "pytorch_model.bin").symlink_to(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointUnsafeError, match="outside its folder"):
        open_checkpoint(tmp_path / "linked", allow_pickle=True)


def test_one_name_inside_the_model_and_beside_it(tmp_path):
    torch.save({"model": {"w": torch.ones(2), "step": torch.tensor(3)}, "step": 5, "w": 6}, tmp_path / "last.pt")
    opened = open_checkpoint(tmp_path / "last.pt", allow_pickle=True)
    assert (list(opened.tensors), sorted(opened.left_out)) == (["w"], ["model.step", "step", "w"])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_quantised_weights_are_refused_as_in_safetensors(dtype, tmp_path):
    torch.save({"a": torch.ones(2), "q": torch.ones(2).to(dtype)}, tmp_path / "x.bin")
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(MetricInputError, match=rf"x\.bin: tensor q is stored as {kind}, expected one of F64, F32"):
        open_checkpoint(tmp_path / "x.bin", allow_pickle=True)


def test_a_relative_path_stays_that_file(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    opened = open_checkpoint(folder.name, allow_pickle=True)
    monkeypatch.chdir("/")
    assert (_is_read(opened), opened.label) == (True, folder.name)


def test_a_pipe_in_the_place_of_the_file_is_not_waited_for(folder):
    opened = open_checkpoint(folder, allow_pickle=True)
    (folder / "pytorch_model.bin").unlink()
    os.mkfifo(folder / "pytorch_model.bin")
    with time_limit(20), pytest.raises(CheckpointUnsafeError, match=r"model\.bin: is no regular file, but a pipe"):
        opened.tensors["model.a.weight"].read()
