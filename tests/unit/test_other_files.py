"""What people bring that holds no weights to read: each is named for what it is, with a remedy that works."""

import json

import pytest
import torch
from safetensors.torch import save_file

from opdgeom_utils.chapters.your_run import open_run
from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, MetricInputError, OpdGeomError

W = "model.layers.0.self_attn.q_proj.weight"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 1234\n".encode()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model_world_size_1_rank_0.pt"])
@pytest.mark.parametrize(
    ("content", "words"),
    [(POINTER, "a pointer of git-lfs.*git lfs pull"), (b"<!DOCTYPE html><html>", "a web page.*hf download")],
)
def test_pointers_and_pages_in_the_place_of_weights(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(OpdGeomError, match=rf"{name}: {words}"):
            open_checkpoint(source, allow_pickle=True)


FILES = {
    "m.gguf": "GGUF file of llama.cpp",
    "model.onnx": "exported to ONNX",
    "tf_model.h5": r"TensorFlow model.*from_tf=True",
    "flax_model.msgpack": r"Flax model.*from_flax=True",
    "zero_pp_rank_0_mp_rank_00_model_states.pt": r"ZeRO.*zero_to_fp32\.py",
    "bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt": r"ZeRO.*zero_to_fp32\.py",
    "mp_rank_00_model_states.pt": r"ZeRO.*zero_to_fp32\.py",
    "model_optim_rng.pt": "Megatron-LM",
    "training_args.bin": "state of a training, no weights; pass the folder",
    "optimizer.pt": "state of a training, no weights; pass the folder",
    "optim_world_size_2_rank_0.pt": "state of a training",
    "model-rank-0-part-0.safetensors": "vLLM's sharded state",
}


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_named_for_what_they_are(name, tmp_path):
    (tmp_path / name).write_bytes(bytes(200))
    with pytest.raises(MetricInputError, match=rf"{name}: .*{FILES[name]}"):
        open_checkpoint(tmp_path / name, allow_pickle=True)


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".safetensors")])
def test_folders_of_them_too_in_python_and_in_a_report(name, tmp_path):
    save_file({W: torch.ones(2, 2)}, tmp_path / "base.safetensors")
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / name).write_bytes(bytes(200))
    (folder / "config.json").write_text("{}")
    for opening in (open_checkpoint, lambda path: open_run(str(tmp_path / "base.safetensors"), str(path))):
        with pytest.raises(CheckpointNotFoundError, match=rf"saved: no weights, but .*{FILES[name]}"):
            opening(folder)


def test_what_zero_leaves_in_a_checkpoint_of_the_trainer(tmp_path):
    partition = tmp_path / "global_step500" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    partition.parent.mkdir()
    torch.save({}, partition)
    (tmp_path / "zero_to_fp32.py").touch()
    for name in ("trainer_state.json", "training_args.bin", "rng_state_0.pth", "latest"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointNotFoundError, match=r"no weights, but a partition of .*ZeRO.*zero_to_fp32\.py"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("save", [save_file, torch.save])
def test_the_placeholders_of_zero_3_are_no_weights(save, tmp_path):
    file = tmp_path / ("model.safetensors" if save is save_file else "pytorch_model.bin")
    save({W: torch.zeros(0), "model.norm.weight": torch.ones(2)}, file)
    with pytest.raises(CheckpointDamagedError, match=r"1 of 2 tensors are empty, model\.layers.*zero_to_fp32\.py"):
        open_checkpoint(tmp_path, allow_pickle=True)


int32, uint8, int8, float32 = torch.int32, torch.uint8, torch.int8, torch.float32
QUANTISED = {
    "4 bits of bitsandbytes": {
        "a.weight": uint8,
        "a.weight.absmax": torch.float32,
        "a.weight.quant_map": torch.float32,
    },
    "8 bits of bitsandbytes": {"a.weight": int8, "a.SCB": torch.float32},
    "GPTQ": {"a.qweight": int32, "a.qzeros": int32, "a.g_idx": int32, "a.scales": torch.float16},
    "AWQ or GPTQ": {"a.qweight": int32, "a.qzeros": int32, "a.scales": torch.float16},
    "compressed-tensors": {"a.weight_packed": int32, "a.weight_scale": torch.bfloat16, "a.weight_shape": torch.int64},
    "MXFP4": {"mlp.experts.down_proj_blocks": uint8, "mlp.experts.down_proj_scales": uint8},
    "NVFP4": {"a.weight": uint8, "a.weight_scale": torch.float8_e4m3fn, "a.weight_scale_2": torch.float32},
    "MLX": {"a.weight": torch.uint32, "a.scales": torch.bfloat16, "a.biases": torch.bfloat16},
}


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_weights_are_named_by_their_method(method, tmp_path):
    tensors = {name: torch.ones(2, 2).to(dtype) for name, dtype in QUANTISED[method].items()}
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "x.bin")
    for source in (tmp_path, tmp_path / "x.bin"):
        with pytest.raises(
            MetricInputError, match=rf"\(as {method} leaves it\); pass the model before it was quantised"
        ):
            open_checkpoint(source, allow_pickle=True)


def test_a_checkpoint_of_lightning_is_read_as_the_state_dict_in_it(tmp_path):
    state = {"epoch": 3, "global_step": 7, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}]}
    torch.save(state | {"state_dict": {W: torch.full((2, 2), 5.0)}}, tmp_path / "last.ckpt")
    opened = open_checkpoint(tmp_path / "last.ckpt", allow_pickle=True)
    assert torch.equal(opened.tensors[W].read(), torch.full((2, 2), 5.0))
    assert sorted(opened.left_out) == ["epoch", "global_step", "optimizer_states"]


def _shards(folder, count, value):
    names = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    for number, name in enumerate(names):
        save_file({f"model.layers.{number}.a.weight": torch.full((2, 2), value)}, folder / name)
    return {f"model.layers.{number}.a.weight": name for number, name in enumerate(names)}


def test_files_of_another_save_beside_a_checkpoint_are_listed(tmp_path):
    _shards(tmp_path, 3, 1.0)
    index = {"weight_map": _shards(tmp_path, 2, 2.0)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save({W: torch.ones(2)}, tmp_path / "pytorch_model.bin")
    opened = open_checkpoint(tmp_path)
    assert [float(tensor.read()[0, 0]) for tensor in opened.tensors.values()] == [2.0, 2.0]
    beside = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)] + ["pytorch_model.bin"]
    assert list(opened.left_out) == [f"{name} (a file beside the checkpoint, not read)" for name in beside]


def test_two_saves_without_an_index_are_refused(tmp_path):
    _shards(tmp_path, 2, 1.0)
    _shards(tmp_path, 3, 2.0)
    with pytest.raises(CheckpointDamagedError, match=r"shards of checkpoints of \[2, 3\] files.*move the others away"):
        open_checkpoint(tmp_path)
    save_file({W: torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointDamagedError, match=r"two checkpoints, model\.safetensors and model-00001-of-00002"):
        open_checkpoint(tmp_path)


def test_other_files_beside_sharded_and_pickled_checkpoints_are_listed(tmp_path):
    for name in ("m.gguf", "tf_model.h5"):
        (tmp_path / name).touch()
    torch.save({W: torch.ones(2, 2)}, tmp_path / "pytorch_model.bin")
    words = "(a file beside the checkpoint, not read)"
    found = open_checkpoint(tmp_path, allow_pickle=True).left_out
    assert found == (f"m.gguf {words}", f"tf_model.h5 {words}")
    torch.save({W: torch.ones(2, 2)}, tmp_path / "model_world_size_1_rank_0.pt")
    found = open_checkpoint(tmp_path).left_out
    assert found == (f"m.gguf {words}", f"pytorch_model.bin {words}", f"tf_model.h5 {words}")
