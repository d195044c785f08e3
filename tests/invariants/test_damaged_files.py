"""Hundreds of damaged checkpoints of every form: an error of ours, or exactly the bytes that are there; nothing else.

Each mutation flips bits, cuts or lengthens a file, or edits its header. What opens all the same is compared with an
independent reading: for safetensors a parse written out here, for torch's formats ``torch.load`` with weights only.
"""

import io
import json
import pickle
import random
import shutil
import struct

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save, save_file

from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.errors import OpdGeomError
from tests.damage import hit_archive, mutated, outcome_of, with_damaged_pickle

N_SAFETENSORS, N_OTHERS = 260, 60
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu},
}
WEIGHTS = {
    "model.layers.0.a.weight": torch.arange(6.0).reshape(2, 3),
    "model.layers.0.b.weight": torch.arange(4.0).reshape(2, 2).bfloat16(),
    "model.norm.weight": torch.ones(3),
}


def _parsed(content: bytes) -> dict[str, tuple[torch.dtype, list[int], bytes]]:
    """Read a safetensors file by its definition: eight bytes of length, a header, then the data."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    return {
        name: (DTYPES[entry["dtype"]], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] in DTYPES
    }


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _read(path, *names, **options):
    """Read everything; None when it was refused."""

    def read():
        return {name: tensor.read_unchecked() for name, tensor in open_checkpoint(path, **options).tensors.items()}

    return outcome_of(read, path.name, str(path), *names)


def test_damaged_safetensors(tmp_path):
    dice, content, file, n_read = random.Random(0), save(WEIGHTS), tmp_path / "x.safetensors", 0
    for number in range(N_SAFETENSORS):
        damaged = mutated(content, dice)
        file.write_bytes(damaged)
        found = _read(file)
        if found is None:
            continue
        n_read += 1
        expected = _parsed(damaged)
        assert sorted(found) == sorted(expected), number
        for name, tensor in found.items():
            dtype, shape, data = expected[name]
            stored = torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if data else torch.empty(shape)
            wide = stored.float() if dtype.itemsize == 1 else stored
            assert (list(tensor.shape), _bytes(tensor)) == (shape, _bytes(wide)), number
    assert 20 < n_read < N_SAFETENSORS - 60, "some mutations must be harmless and some must not"


HEADERS = {
    "an offset beyond the end": lambda h: h["model.norm.weight"]["data_offsets"].__setitem__(1, 10**15),
    "an offset below zero": lambda h: h["model.norm.weight"]["data_offsets"].__setitem__(0, -4),
    "two tensors in one place": lambda h: h["model.norm.weight"].update(h["model.layers.0.a.weight"]),
    "a hole": lambda h: h.pop("model.layers.0.a.weight"),
    "a negative size": lambda h: h["model.norm.weight"].update(shape=[-3]),
    "a huge size": lambda h: h["model.norm.weight"].update(shape=[2**62, 2**62]),
    "sizes whose product overflows": lambda h: h["model.norm.weight"].update(shape=[2**63, 2]),
    "an unknown type": lambda h: h["model.norm.weight"].update(dtype="Q7"),
    "a wider type": lambda h: h["model.norm.weight"].update(dtype="F64"),
    "a narrower type": lambda h: h["model.norm.weight"].update(dtype="F16"),
    "whole numbers for floats": lambda h: h["model.norm.weight"].update(dtype="I32"),
    "no shape": lambda h: h["model.norm.weight"].pop("shape"),
    "a word for a size": lambda h: h["model.norm.weight"].update(shape=["three"]),
    "offsets the wrong way round": lambda h: h["model.norm.weight"]["data_offsets"].reverse(),
    "metadata that are no words": lambda h: h.update(__metadata__={"format": 3}),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_headers_that_lie(lie, tmp_path):
    content, file = save(WEIGHTS), tmp_path / "x.safetensors"
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    HEADERS[lie](header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(OpdGeomError, match=r"x\.safetensors"):
        _ = [tensor.read() for tensor in open_checkpoint(file).tensors.values()]


def _as_torch_reads(damaged: bytes):
    loaded = torch.load(io.BytesIO(damaged), weights_only=True)
    return {name: _bytes(value) for name, value in loaded.items() if value.is_floating_point()}


@pytest.mark.parametrize(
    ("name", "options"), [("pytorch_model.bin", {"allow_pickle": True}), ("model_world_size_1_rank_0.pt", {})]
)
def test_damaged_files_of_torch(name, options, tmp_path):
    dice, file, n_read = random.Random(1), tmp_path / name, 0
    torch.save(WEIGHTS, file)
    content = file.read_bytes()
    for number in range(2 * N_OTHERS):
        damaged = mutated(content, dice) if number % 2 else hit_archive(content, dice)
        file.write_bytes(damaged)
        found = _read(tmp_path, **options)
        if found is not None:
            n_read += 1
            assert {key: _bytes(value) for key, value in found.items()} == _as_torch_reads(damaged), number
    assert 0 < n_read < 2 * N_OTHERS


def test_pickles_that_lie_with_a_right_checksum(tmp_path):
    """Whatever the pickle says, what is read lies inside the file, and is what torch reads if torch reads it."""
    dice, file, n_read = random.Random(3), tmp_path / "model_world_size_1_rank_0.pt", 0
    torch.save(WEIGHTS, file)
    content = file.read_bytes()
    for number in range(2 * N_OTHERS):
        damaged = with_damaged_pickle(content, dice)
        file.write_bytes(damaged)
        found = _read(tmp_path)
        if found is None:
            continue
        n_read += 1
        try:
            expected = _as_torch_reads(damaged)
        except (RuntimeError, ValueError, AttributeError, pickle.UnpicklingError):
            continue
        assert {key: _bytes(value) for key, value in found.items()} == expected, number
    assert 0 < n_read < 2 * N_OTHERS


def _distributed(folder):
    dcp.save(WEIGHTS, checkpoint_id=folder, no_dist=True)
    return [folder / ".metadata", folder / "__0_0.distcp"]


def _indexed(folder):
    names = list(WEIGHTS)
    for file, held in (("a.safetensors", names[:1]), ("b.safetensors", names[1:])):
        save_file({name: WEIGHTS[name] for name in held}, folder / file)
    places = {name: "a.safetensors" if name == names[0] else "b.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text('{"num_attention_heads": 2, "head_dim": 2, "tie_word_embeddings": true}')
    return [folder / "model.safetensors.index.json", folder / "config.json"]


def _adapted(folder):
    save_file(WEIGHTS, folder / "base.safetensors")
    prefix = "base_model.model.model.layers.0.a"
    low_rank = {f"{prefix}.lora_A.weight": torch.ones(40, 3), f"{prefix}.lora_B.weight": torch.ones(2, 40)}
    save_file(low_rank, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": 40,
        "lora_alpha": 2,
        "base_model_name_or_path": str(folder / "base.safetensors"),
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return [folder / "adapter_config.json", folder / "adapter_model.safetensors"]


@pytest.mark.parametrize("write", [_distributed, _indexed, _adapted])
def test_damaged_folders(write, tmp_path):
    """What still opens reads as before where only names, settings or padding were hit; it never crashes or hangs."""
    whole = tmp_path / "whole"
    whole.mkdir()
    write(whole)
    dice, outcomes = random.Random(2), set()
    for number in range(N_OTHERS):
        folder = tmp_path / str(number)
        folder.mkdir()
        file = dice.choice(write(folder))
        file.write_bytes(mutated(file.read_bytes(), dice))
        values = _read(folder, file.name)
        if values is None:
            outcomes.add("refused")
            continue
        outcomes.add("read")
        for name, value in values.items():
            same = name in WEIGHTS and torch.equal(value.float(), WEIGHTS[name].float())
            assert same or write is not _indexed or name not in WEIGHTS, "an index holds no values to damage"
        shutil.rmtree(folder)
    assert outcomes == {"refused", "read"}
