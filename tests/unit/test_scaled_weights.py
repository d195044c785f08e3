"""Eight-bit weights: stored value times scale, by block, row or matrix; and scales that do not fit."""

import itertools
import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.checkpoints.scaled_weights import Scaled
from opdgeom_utils.checkpoints.stored_tensors import StoredTensor
from opdgeom_utils.diagnose import diagnose_pair
from opdgeom_utils.errors import CheckpointDamagedError

E4M3 = torch.float8_e4m3fn


def _folder(path, tensors, block=None):
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    quantised = {"quant_method": "fp8", "weight_block_size": block}
    (path / "config.json").write_text(json.dumps({"quantization_config": quantised}))
    return path


def _weights(*shape):
    return (torch.arange(float(torch.Size(shape).numel())).reshape(shape) % 13 - 6).to(E4M3)


def test_blocks_share_a_scale(tmp_path):
    stored, scale = _weights(5, 7), torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.25, 8.0]])
    opened = open_checkpoint(_folder(tmp_path, {"a.weight": stored, "a.weight_scale_inv": scale}, [3, 3]))
    expected = torch.stack(
        [torch.stack([stored[i, j].float() * scale[i // 3, j // 3] for j in range(7)]) for i in range(5)]
    )
    tensor = opened.tensors["a.weight"]
    assert torch.equal(tensor.read(), expected)
    assert (tensor.dtype, tensor.shape, opened.left_out) == (E4M3, (5, 7), ("a.weight_scale_inv",))


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("a.weight_scale", torch.tensor([[2.0], [3.0]])),
        ("a.weight_scale", torch.tensor([2.0, 3.0])),
        ("a.weight_scale", torch.tensor([2.0])),
        ("a.weight_scale_inv", torch.tensor(2.0)),
        ("a.weight_scale_inv", torch.tensor([[2.0]]).to(torch.float8_e8m0fnu)),
    ],
)
def test_rows_or_the_matrix_share_a_scale(name, scale, tmp_path):
    stored = _weights(2, 3)
    opened = open_checkpoint(_folder(tmp_path, {"a.weight": stored, name: scale}))
    scale = scale.unsqueeze(-1) if scale.shape == (2,) else scale
    assert torch.equal(opened.tensors["a.weight"].read(), stored.float() * scale.float())


def test_packed_experts_have_their_own_blocks(tmp_path):
    stored, scale = _weights(2, 4, 4), torch.rand(2, 2, 1)
    name = "mlp.experts.down_proj"
    folder = _folder(tmp_path, {name: stored, f"{name}_scale_inv": scale}, [2, 4])
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen3_moe"}
    (folder / "config.json").write_text(json.dumps(config))
    read = open_checkpoint(folder).tensors["mlp.experts.1.down_proj.weight"].read()
    assert torch.equal(read, stored[1].float() * scale[1].repeat_interleave(2, dim=0))


def test_the_arithmetic_is_that_of_transformers(tmp_path):
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    stored, scale = _weights(6, 10), torch.rand(2, 3)
    opened = open_checkpoint(_folder(tmp_path, {"a.weight": stored, "a.weight_scale_inv": scale}, [4, 4]))
    assert torch.equal(opened.tensors["a.weight"].read(), _dequantize_fp8_weight(stored, scale, [4, 4], torch.float32))


def test_scales_of_activations_are_left_out(tmp_path):
    tensors = {"a.weight": _weights(2, 2), "a.weight_scale": torch.tensor(2.0), "a.input_scale": torch.tensor(1.0)}
    assert sorted(open_checkpoint(_folder(tmp_path, tensors)).left_out) == ["a.input_scale", "a.weight_scale"]


def test_eight_bits_without_scales_keep_their_values(tmp_path):
    stored = _weights(2, 3)
    save_file({"a.weight": stored, "b": stored.to(torch.float8_e5m2)}, tmp_path / "x.safetensors")
    opened = open_checkpoint(tmp_path / "x.safetensors")
    assert torch.equal(opened.tensors["a.weight"].read(), stored.float())
    assert torch.equal(opened.tensors["b"].read(), stored.to(torch.float8_e5m2).float())


@pytest.mark.parametrize(
    ("tensors", "block", "words"),
    [
        ({"a.weight": _weights(4, 4)}, [2, 2], "a.weight is quantised, but no a.weight_scale_inv"),
        (
            {"a.weight": _weights(4, 4), "a.weight_scale_inv": torch.ones(3, 2)},
            [2, 2],
            r"does not fit a.weight \(4, 4\)",
        ),
        ({"a.weight": _weights(4, 4), "a.weight_scale_inv": torch.ones(2, 2)}, None, "in blocks of 1 x 4"),
        ({"a.weight": torch.ones(4, 4), "a.weight_scale_inv": torch.ones(2, 2)}, [2, 2], "has no 8-bit weight"),
        ({"a.weight": _weights(4, 4), "a.weight_scale_inv": torch.ones(2, 2)}, [0, 2], "in blocks of 0 x 2"),
    ],
)
def test_scales_that_do_not_fit_are_refused(tensors, block, words, tmp_path):
    with pytest.raises(CheckpointDamagedError, match=rf"model\.safetensors: .*{words}"):
        open_checkpoint(_folder(tmp_path, tensors, block))


def _as_module(tensors, path):
    module = torch.nn.Module()
    module.a = torch.nn.Module()
    for name, tensor in tensors.items():
        setattr(module.a, name.removeprefix("a."), torch.nn.Parameter(tensor, requires_grad=False))
    return module


def _as_ranks(tensors, path):
    for rank in range(2):  # replicas, which are compared with each other
        torch.save(tensors, path / f"model_world_size_2_rank_{rank}.pt")
    return path


def _as_distributed(tensors, path):
    dcp.save({"model": tensors}, checkpoint_id=path, no_dist=True)
    return path


def _as_pickle(tensors, path):
    torch.save(tensors, path / "pytorch_model.bin")
    return path


def _as_safetensors(tensors, path):
    save_file(tensors, path / "model.safetensors")
    return path


FORMS = [_as_module, _as_ranks, _as_distributed, _as_pickle, _as_safetensors]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [E4M3, torch.float8_e5m2])
def test_eight_bits_are_widened_in_every_form(dtype, form, tmp_path):
    stored = (torch.arange(12.0).reshape(4, 3) % 7 - 3).to(dtype)
    opened = open_checkpoint(form({"a.weight": stored}, tmp_path), allow_pickle=True)
    assert (opened.tensors["a.weight"].dtype, opened.tensors["a.weight"].shape) == (dtype, (4, 3))
    assert torch.equal(opened.tensors["a.weight"].read(), stored.float())
    assert diagnose_pair(opened, opened, k=1, nulls=False)["note"].tolist() == ["identical to the reference"]


@pytest.mark.parametrize("form", FORMS)
def test_scales_are_folded_in_every_form(form, tmp_path):
    tensors = {"a.weight": _weights(4, 3), "a.weight_scale": torch.tensor([[1.0], [2.0], [3.0], [4.0]])}
    opened = open_checkpoint(form(tensors, tmp_path), allow_pickle=True)
    assert torch.equal(opened.tensors["a.weight"].read(), tensors["a.weight"].float() * tensors["a.weight_scale"])


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_scale_that_is_missing_is_noticed_in_every_form(form, tmp_path):
    source = form({"a.weight": _weights(4, 3)}, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(CheckpointDamagedError, match=r"a\.weight is quantised, but no a\.weight_scale_inv"):
        open_checkpoint(source, allow_pickle=True)


def _held(values):
    return StoredTensor("memory", "w", tuple(values.shape), values.dtype, held=values)


@pytest.mark.parametrize(
    ("scale", "block"),
    [((3, 2, 3), (3, 2)), ((3, 5, 1), (1, 6)), ((3, 5), (1, 6)), ((), (1, 6)), ((1,), (1, 6)), ((3, 1, 1), (8, 8))],
)
def test_a_part_is_that_of_the_whole(scale, block):
    scaled = Scaled(_held(_weights(3, 5, 6)), _held(torch.rand(scale)), block)
    whole = scaled()
    assert whole.shape == (3, 5, 6)
    each = [0, 1, 2, slice(1, 3), slice(None), slice(0, None, 2), slice(4, 5), slice(1, 1)]
    for cuts in [(), *((cut,) for cut in each), *itertools.product(each, each), *itertools.product(each, each, each)]:
        assert torch.equal(scaled(cuts), whole[cuts]), cuts


def test_a_scaled_expert_reads_no_more_than_itself(tmp_path, entries_read):
    name, stored, scale = "mlp.experts.down_proj", _weights(16, 4, 6), torch.rand(16, 2, 2)
    dcp.save({"model": {name: stored, f"{name}_scale_inv": scale}}, checkpoint_id=tmp_path, no_dist=True)
    config = {"model_type": "qwen3_moe", "quantization_config": {"weight_block_size": [2, 3]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = stored.float() * scale.repeat_interleave(2, dim=1).repeat_interleave(3, dim=2)
    for expert in range(16):
        tensor = open_checkpoint(tmp_path).tensors[f"mlp.experts.{expert}.down_proj.weight"]
        assert torch.equal(tensor.read(), expected[expert])
    assert sum(entries_read) == stored.numel() + scale.numel()


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_relative_path_stays_that_folder_in_every_form(form, tmp_path, monkeypatch):
    form({"a.weight": torch.arange(6.0).reshape(2, 3)}, tmp_path)
    monkeypatch.chdir(tmp_path)
    opened = open_checkpoint(".", allow_pickle=True)
    monkeypatch.chdir("/")
    assert torch.equal(opened.tensors["a.weight"].read(), torch.arange(6.0).reshape(2, 3))
    assert opened.label == "."
