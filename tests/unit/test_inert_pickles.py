"""Small pickles that unfold without end: refused at once, wherever what they hold would be hashed, printed, walked."""

import io
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.serialization import get_safe_globals, safe_globals

from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.checkpoints.inert_pickles import require_small
from opdgeom_utils.errors import CheckpointUnsafeError
from tests.damage import archived

LEVELS = 60  # 2 ** 60 parts
SECONDS = 120  # for a process that imports torch and refuses all of them
OPENED_IN_A_PROCESS = """
import sys
from pathlib import Path
from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.errors import OpdGeomError
for folder in sorted(Path(sys.argv[1]).iterdir()):
    print(folder.name, flush=True)
    try:
        open_checkpoint(folder)
    except OpdGeomError as error:
        assert len(str(error)) < 2000 and str(folder) in str(error), str(error)[:500]
        print(f"{folder.name} was refused", flush=True)
"""


def _repeated(start, join):
    """Build levels of an object that holds the one before twice, from the memo, and put all of them into one tuple."""
    levels = (join % (number, number) + b"q%c" % (number + 1) for number in range(LEVELS))
    return b"(" + start + b"q\x00" + b"".join(levels) + b"t"


BOMBS = {
    "pairs": _repeated(b"K\x01", b"h%ch%c\x86"),
    "lists": _repeated(b"]", b"](h%ch%ce"),
    "dictionaries": _repeated(b"}", b"}(K\x00h%cK\x01h%cu"),
    # every list is put into the one before while it is still empty, and filled then
    "filled-later": b"]q\x00" + b"".join(b"(]q%ch%ce0h%c" % (n + 1, n + 1, n + 1) for n in range(LEVELS)) + b"0h\x00",
    "deep": b")" + b"\x85" * 2000,
}
ONLY_OF_PICKLE = {"doubled": b"K\x01" + b"2\x86" * LEVELS}  # an instruction that torch does not know
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


def _text(text):
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _called(name, *arguments):
    module, name = name.rsplit(".", 1)
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def _made(name, **state):
    return _called(name) + b"}(" + b"".join(_text(key) + value for key, value in state.items()) + b"ub"


def _tensor(shape, stride=b"(K\x01t", storage=STORAGE):
    return _called("torch._utils._rebuild_tensor_v2", storage, b"K\x00", shape, stride, b"\x89", b"}")


def _sharded(mesh, placement, tensor="torch.distributed.tensor."):
    """A tensor of four entries; older versions of torch named the same classes otherwise."""
    spec, meta = f"{tensor}_dtensor_spec.DTensorSpec", f"{tensor}_dtensor_spec.TensorMeta"
    told = _made(spec, mesh=mesh, placements=b"(" + placement + b"t", tensor_meta=_called(meta, b"(K\x04t", b"N", b"N"))
    state = b"}(" + _text("_spec") + told + _text("_local_tensor") + _tensor(b"(K\x04t") + b"u"
    kind = f"c{tensor.removesuffix('.')}\nDTensor\n".encode()
    layout, device = (
        _called("torch.serialization._get_layout", _text("torch.strided")),
        _called("torch.device", _text("cpu")),
    )
    form = kind + b"ctorch\nfloat32\n" + b"(K\x04t" + b"(K\x01t" + b"K\x00" + layout + device + b"\x89"
    build = b"ctorch._utils\n_rebuild_wrapper_subclass\n"
    return _called("torch._tensor._rebuild_from_type_v2", build, kind, b"(" + form + b"t", state)


def _mesh(shape, coordinate=b"](K\x00e"):
    layout = _made("torch.distributed._mesh_layout._MeshLayout", shape=shape, stride=b"K\x01")
    parts = {"_layout": layout, "_rank_map": _tensor(b"(K\x01t"), "_coordinate_on_dim": coordinate}
    return _made("torch.distributed.device_mesh.DeviceMesh", **parts)


def _rank_file(value):
    """The bytes of a rank's file with one tensor."""
    storages = {"byteorder": b"little", "data/0": bytes(16)}
    return archived({"data.pkl": b"\x80\x02}" + _text("w") + value + b"s."} | storages)


def _metadata(size=b"(K\x04t", path=b"(X\x01\x00\x00\x00wt", offset=b"(K\x00t"):
    of = "torch.distributed.checkpoint.metadata."
    properties = _made(f"{of}TensorProperties", dtype=b"ctorch\nfloat32\n")
    chunks = b"(" + _made(f"{of}ChunkStorageMetadata", offsets=b"(K\x00t", sizes=b"(K\x04t") + b"l"
    entry = _made(f"{of}TensorStorageMetadata", properties=properties, size=size, chunks=chunks)
    index = _made(f"{of}MetadataIndex", fqn=_text("w"), offset=offset)
    info = _made("torch.distributed.checkpoint.filesystem._StorageInfo", relative_path=_text("x"))
    told = {
        "state_dict_metadata": (_text("w"), entry),
        "planner_data": (_text("w"), path),
        "storage_data": (index, info),
    }
    return (
        b"\x80\x02" + _made(f"{of}Metadata", **{key: b"}" + b"".join(pair) + b"s" for key, pair in told.items()}) + b"."
    )


def _files(bomb):
    """Every place where an object in a file is hashed, printed or walked."""
    shard = _made("torch.distributed.tensor.placement_types.Shard", dim=b"K\x00")
    storage = STORAGE.replace(_text("0"), bomb)
    values = {
        "shape": _tensor(bomb),
        "stride": _tensor(b"(K\x04t", bomb),
        "key-of-storage": _tensor(b"(K\x04t", storage=storage),
        "key": b"}" + bomb + b"Ns",
        "called": bomb + b")R",
        "made": bomb + b")\x81",
        "mesh": _sharded(_mesh(bomb), shard),
        "dimension": _sharded(_mesh(b"K\x01"), _made("torch.distributed.tensor.placement_types.Shard", dim=bomb)),
    }
    for place, value in values.items():
        yield place, "model_world_size_1_rank_0.pt", _rank_file(value)
    yield "coordinate", "model_world_size_1_rank_0.pt", _rank_file(_sharded(_mesh(b"K\x01", bomb), shard))
    for place in ("size", "path", "offset"):
        yield place, ".metadata", _metadata(**{place: bomb})


def _write(folder, name, content):
    folder.mkdir()
    (folder / name).write_bytes(content)


def _limited():
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30,) * 2)


def test_what_unfolds_without_end_is_refused_at_once(tmp_path):
    for kind, bomb in (BOMBS | ONLY_OF_PICKLE).items():
        for place, name, content in _files(bomb):
            assert len(content) < 8000
            _write(tmp_path / f"{kind}-{place}", name, content)
    split = {"dim": b"K\x00", "split_factor": b"\x8a\x08" + (2**50).to_bytes(8, "little")}
    strided = _sharded(_mesh(b"K\x01"), _made("torch.distributed.tensor.placement_types._StridedShard", **split))
    _write(tmp_path / "split", "model_world_size_1_rank_0.pt", _rank_file(strided))
    done = subprocess.run(
        [sys.executable, "-c", OPENED_IN_A_PROCESS, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        preexec_fn=_limited,
        timeout=SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]} {done.stderr[-2000:]}"
    said = done.stdout.splitlines()
    assert [name for name in said if name.endswith("refused")] == [
        f"{folder.name} was refused" for folder in sorted(tmp_path.iterdir())
    ]


def test_the_files_that_carry_it_are_read_without_it(tmp_path):
    """Without a bomb the same files get as far as their numbers: they are refused for it and for nothing else."""
    shard = _made("torch.distributed.tensor.placement_types.Shard", dim=b"K\x00")
    older = _made("torch.distributed.device_mesh.DeviceMesh", mesh=_tensor(b"(K\x01t"), _coordinate_on_dim=b"](K\x00e")
    values = {
        "plain": _tensor(b"(K\x04t"),
        "sharded": _sharded(_mesh(b"K\x01"), shard),
        "sharded-by-torch-2.3": _sharded(older, shard, "torch.distributed._tensor."),
    }
    for place, value in values.items():
        _write(tmp_path / place, "model_world_size_1_rank_0.pt", _rank_file(value))
        assert open_checkpoint(tmp_path / place).tensors["w"].read().tolist() == [0.0] * 4
    _write(tmp_path / "metadata", ".metadata", _metadata())
    with pytest.raises(ValueError, match="'_StorageInfo' object has no attribute 'offset'"):
        open_checkpoint(tmp_path / "metadata")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_objects_are_small(protocol):
    found = {"a": (1, (2, 3), [4.5, None, "x"]), ("b", 2): {3, 4} if protocol > 3 else [3], "c": (), "d": 10**30}
    content = pickle.dumps([found, found["a"], "a" * 300, *range(300)], protocol=protocol)
    require_small(io.BytesIO(content), len(content))


def test_a_memo_beyond_the_pickle_is_refused():
    with pytest.raises(ValueError, match="LONG_BINPUT 2147483647 in a pickle of 8 bytes"):
        require_small(io.BytesIO(b"Nr\xff\xff\xff\x7f0."), 8)


class _Allowed:
    """Code that a process has told torch to allow."""

    def __setstate__(self, state):
        raise AssertionError("code was run")


def test_what_this_process_allows_torch_is_not_allowed_here(tmp_path):
    made = _Allowed()
    made.x = 1
    torch.save({"w": torch.ones(1), "x": made}, tmp_path / "x.bin")
    with safe_globals([_Allowed]):
        with pytest.raises(CheckpointUnsafeError, match=r"x\.bin: its pickle asks for .*_Allowed, which is no part"):
            open_checkpoint(tmp_path / "x.bin", allow_pickle=True)
        assert get_safe_globals().count(_Allowed) == 1
