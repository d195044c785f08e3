"""Eight-bit weights: stored value times scale, by block, row or matrix; and scales that do not fit."""

import json

import pytest
import torch
from safetensors.torch import save_file

from opdgeom_utils.checkpoints import open_checkpoint
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
        ("a.weight_scale", torch.tensor([2.0])),
        ("a.weight_scale_inv", torch.tensor(2.0)),
        ("a.weight_scale_inv", torch.tensor([[2.0]]).to(torch.float8_e8m0fnu)),
    ],
)
def test_rows_or_the_matrix_share_a_scale(name, scale, tmp_path):
    stored = _weights(2, 3)
    opened = open_checkpoint(_folder(tmp_path, {"a.weight": stored, name: scale}))
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
