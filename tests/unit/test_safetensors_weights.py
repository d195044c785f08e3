"""What stands in the header of a safetensors file beside the tensors: other names, and where a slice begins."""

import json
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file, save_model
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from opdgeom_utils import diagnose_pair
from opdgeom_utils.checkpoints import EMBEDDING, HEAD, open_checkpoint
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointMismatchError, CheckpointNotFoundError

Q = "model.layers.0.self_attn.q_proj.weight"


def _tensors(seed, vocabulary=40):
    generator = torch.Generator().manual_seed(seed)
    shapes = {EMBEDDING: (vocabulary, 8), Q: (7, 8), "model.norm.weight": (8,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _slices(folder, tensors, ranks=2, dim=0):
    """What each rank writes, after the definition: its chunk, and where it begins."""
    folder.mkdir()
    for rank in range(ranks):
        cut, begins = {}, {}
        for name, tensor in tensors.items():
            axis = min(dim, tensor.ndim - 1)
            size = -(-tensor.shape[axis] // ranks)
            cut[name] = tensor.narrow(axis, rank * size, min(size, tensor.shape[axis] - rank * size)).contiguous()
            begins[name] = {"saved_offsets": [rank * size if each == axis else 0 for each in range(tensor.ndim)]}
        noted = {"DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(begins), "format": "pt"}
        save_file(cut, folder / _file(rank + 1), metadata=noted)
    return folder


def _file(rank):
    return f"shard-0000{rank}-model-00001-of-00001.safetensors"


@pytest.mark.parametrize("dim", [0, 1])
def test_slices_of_all_ranks_give_the_whole(dim, tmp_path):
    before, after = _tensors(0), _tensors(1)
    save_file(before, tmp_path / "base.safetensors")
    folder = _slices(tmp_path / "hf", after, ranks=3 if dim == 0 else 2, dim=dim)
    tensors = pickle.loads(pickle.dumps(open_checkpoint(folder).tensors))
    assert all(torch.equal(tensors[name].read(), expected) for name, expected in after.items())
    assert torch.equal(tensors[EMBEDDING].read_part((slice(19, 22),)), after[EMBEDDING][19:22])
    table = diagnose_pair(tmp_path / "base.safetensors", folder, k=1, nulls=False).set_index("name")
    for name in (EMBEDDING, Q):
        assert table.update_norm[name] == pytest.approx(float((after[name] - before[name]).double().norm()))


def test_what_torch_itself_writes_is_read(tmp_path):
    tensors = _tensors(0)
    for distributed in (True, False):
        folder = tmp_path / str(distributed)
        dcp.save(
            dict(tensors),
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=distributed),
            no_dist=True,
        )
        opened = open_checkpoint(folder).tensors
        assert all(torch.equal(opened[name].read(), expected) for name, expected in tensors.items())


def test_one_file_of_slices_is_never_a_model(tmp_path):
    folder = _slices(tmp_path / "hf", _tensors(0))
    for rank in (1, 2):
        with pytest.raises(CheckpointNotFoundError, match=rf"{_file(rank)}: holds slices .*pass the folder"):
            open_checkpoint(folder / _file(rank))


def test_missing_slices_are_never_a_padded_vocabulary(tmp_path):
    folder = _slices(tmp_path / "hf", _tensors(1) | {Q: torch.ones(21, 8)}, ranks=3)
    save_file(_tensors(0) | {Q: torch.ones(14, 8)}, tmp_path / "base.safetensors")
    last = (folder / _file(3)).read_bytes()
    (folder / _file(3)).unlink()  # the others cannot know of it
    with pytest.raises(CheckpointMismatchError, match=r"model\.embed_tokens\.weight is \(40, 8\) and \(28, 8\)"):
        diagnose_pair(tmp_path / "base.safetensors", folder, nulls=False)
    table = diagnose_pair(tmp_path / "base.safetensors", folder, nulls=False, strict=False)
    assert set(table.name) == {Q}
    (folder / _file(3)).write_bytes(last)
    (folder / _file(2)).unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"slices of ranks \[2\] are not there"):
        open_checkpoint(folder)
    (folder / _file(3)).rename(folder / "a.safetensors")
    with pytest.raises(CheckpointDamagedError, match=r"slices of tensor .* hold \d+ of the \d+ entries"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "noted", ["{", "[]", '{"w": {}}', '{"w": {"saved_offsets": [-1]}}', '{"w": {"saved_offsets": [0, 0]}}']
)
def test_offsets_that_lie_are_refused(noted, tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"DCP_SHARDING_INFO": noted})
    with pytest.raises(CheckpointDamagedError, match=r"x\.safetensors: (its DCP_SHARDING_INFO|the slice of tensor w)"):
        open_checkpoint(tmp_path)


def test_slices_of_two_steps_are_found_where_they_overlap(tmp_path):
    for number, value in enumerate((1.0, 2.0)):
        noted = {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [0]}})}
        save_file({"w": torch.full((4,), value)}, tmp_path / f"{number}.safetensors", metadata=noted)
    with pytest.raises(CheckpointDamagedError, match="is not what another rank holds of the same entries"):
        open_checkpoint(tmp_path).tensors["w"].read()


class _Tied(torch.nn.Module):
    def __init__(self, body, inner):
        super().__init__()
        setattr(self, body, torch.nn.Module())
        embedding = torch.nn.Embedding(5, 4)
        setattr(getattr(self, body), inner, embedding)
        self.lm_head = torch.nn.Linear(4, 5, bias=False)
        self.lm_head.weight = embedding.weight


@pytest.mark.parametrize(("body", "inner"), [("model", "embed_tokens"), ("transformer", "wte")])
def test_a_shared_tensor_goes_by_the_name_of_the_embedding(body, inner, tmp_path):
    """``save_model`` keeps the first name of the alphabet, the head's, and notes the embedding's in the header."""
    model, name = _Tied(body, inner), f"{body}.{inner}.weight"
    save_model(model, str(tmp_path / "model.safetensors"))
    opened = open_checkpoint(tmp_path)
    (found,) = opened.tensors
    assert found.endswith(f"{inner}.weight")
    assert torch.equal(opened.tensors[found].read(), model.lm_head.weight.detach())
    save_file({name: model.lm_head.weight.detach() + 1}, tmp_path / "other.safetensors")
    table = diagnose_pair(tmp_path / "other.safetensors", tmp_path / "model.safetensors", k=1, nulls=False)
    assert dict(zip(table.name, table.update_norm, strict=True)) == {found: pytest.approx(20**0.5)}


def test_notes_about_other_things_change_no_name(tmp_path):
    noted = {"format": "pt", "model.embed_tokens.weight": "elsewhere", "a": HEAD, "source": Q}
    save_file({HEAD: torch.ones(5, 4), Q: torch.ones(2, 2)}, tmp_path / "model.safetensors", metadata=noted)
    assert sorted(open_checkpoint(tmp_path).tensors) == sorted([HEAD, Q])
