"""Hundreds of damaged checkpoints of every form: an error of ours, or exactly the bytes that are there; nothing else.

Each mutation flips bits, cuts or lengthens a file, or edits its header. What opens all the same is compared with an
independent reading: for safetensors a parse written out here, for torch's formats ``torch.load`` with weights only.
"""

import io
import json
import random
import shutil
import struct
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save, save_file

from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.errors import OpdGeomError

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


def _mutated(content: bytes, dice: random.Random) -> bytes:
    """Damage a file in one of the ways in which files are damaged."""
    data = bytearray(content)
    kind = dice.choice(("flip", "flip", "flip", "byte", "cut", "grow", "swap", "digit"))
    if kind == "cut":
        return bytes(data[: dice.randrange(len(data))])
    if kind == "grow":
        return bytes(data) + bytes(dice.randrange(256) for _ in range(dice.randrange(1, 9)))
    places = [i for i, byte in enumerate(data) if kind != "digit" or 48 <= byte <= 57] or [0]
    for place in dice.sample(places, min(len(places), dice.randrange(1, 4))):
        if kind == "digit":
            data[place] = 48 + dice.randrange(10)
        elif kind == "swap":
            other = dice.randrange(len(data))
            data[place], data[other] = data[other], data[place]
        else:
            data[place] = data[place] ^ (1 << dice.randrange(8)) if kind == "flip" else dice.randrange(256)
    return bytes(data)


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


def _read(path, **options):
    """Read everything; None when it was refused with an error of ours."""
    try:
        return {name: tensor.read_unchecked() for name, tensor in open_checkpoint(path, **options).tensors.items()}
    except OpdGeomError as error:
        message = str(error)
    assert path.name in message, f"the message names no file: {message}"
    return None


def test_damaged_safetensors(tmp_path):
    dice, content, file, n_read = random.Random(0), save(WEIGHTS), tmp_path / "x.safetensors", 0
    for number in range(N_SAFETENSORS):
        damaged = _mutated(content, dice)
        file.write_bytes(damaged)
        found = _read(file)
        if found is None:
            continue
        n_read += 1
        expected = {name: value for name, value in _parsed(damaged).items() if name.removeprefix("module.")}
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


def _as_torch_reads(damaged: bytes, whole: bytes):
    """Bytes of each tensor by torch's reading; where it refuses what we need not read, by their places in the whole."""
    try:
        loaded = torch.load(io.BytesIO(damaged), weights_only=True)
    except Exception:
        return {name: damaged[start:end] for name, (start, end) in _places(whole).items()}
    return {name: _bytes(value) for name, value in loaded.items() if value.is_floating_point()}


def _places(whole: bytes):
    """First and last byte of each tensor in an archive of torch, whose entries are stored as they are."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        found = {entry.filename.rpartition("/")[2]: entry for entry in archive.infolist() if "/data/" in entry.filename}
    places = {}
    for number, name in enumerate(WEIGHTS):
        entry = found[str(number)]
        n_name, n_extra = struct.unpack("<HH", whole[entry.header_offset + 26 : entry.header_offset + 30])
        start = entry.header_offset + 30 + n_name + n_extra
        places[name] = (start, start + entry.file_size)
    return places


@pytest.mark.parametrize(
    ("name", "options"),
    [("pytorch_model.bin", {"allow_pickle": True}), ("model_world_size_1_rank_0.pt", {})],
)
def test_damaged_files_of_torch(name, options, tmp_path):
    dice, file, n_read = random.Random(1), tmp_path / name, 0
    torch.save(WEIGHTS, file)
    content = file.read_bytes()
    for number in range(2 * N_OTHERS):
        damaged = _mutated(content, dice) if number % 2 else _hit(content, dice)
        file.write_bytes(damaged)
        found = _read(tmp_path, **options)
        if found is not None:
            n_read += 1
            expected = _as_torch_reads(damaged, content)
            assert {key: _bytes(value) for key, value in found.items()} == expected, number
    assert 0 < n_read < 2 * N_OTHERS


def _hit(content: bytes, dice: random.Random) -> bytes:
    """Damage the part of an archive that says what is where: its pickle, or a header."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = dice.choice(archive.infolist())
    data = bytearray(content)
    data[entry.header_offset + dice.randrange(120)] ^= 1 << dice.randrange(8)
    return bytes(data)


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
    low_rank = {f"{prefix}.lora_A.weight": torch.ones(1, 3), f"{prefix}.lora_B.weight": torch.ones(2, 1)}
    save_file(low_rank, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": 1,
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
        if number:  # the first stays whole
            file.write_bytes(_mutated(file.read_bytes(), dice))
        try:
            opened = open_checkpoint(folder)
            values = {name: tensor.read_unchecked() for name, tensor in opened.tensors.items()}
        except OpdGeomError as error:
            refusal = str(error)
        else:
            refusal = ""
        if refusal:
            assert str(folder) in refusal or file.name in refusal
            outcomes.add("refused")
            continue
        outcomes.add("read")
        for name, value in values.items():
            assert value.shape == opened.tensors[name].shape
            same = name in WEIGHTS and torch.equal(value.float(), WEIGHTS[name].float())
            assert same or write is not _indexed or name not in WEIGHTS, "an index holds no values to damage"
        shutil.rmtree(folder)
    assert outcomes == {"refused", "read"}


def test_there_are_at_least_five_hundred():
    assert N_SAFETENSORS + 2 * 2 * N_OTHERS + 3 * N_OTHERS + len(HEADERS) >= 500
