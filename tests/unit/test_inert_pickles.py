"""Small pickles that unfold without end: refused at once, wherever what they hold would be hashed, printed, walked."""

import io
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from opdgeom_utils.checkpoints.inert_pickles import InertUnpickler

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
    """Build levels of an object that holds the one before twice, from the memo."""
    levels = (b"0" + join % (number, number) + b"q%c" % (number + 1) for number in range(LEVELS))
    return start + b"q\x00" + b"".join(levels)


BOMBS = {
    "pairs": b"K\x01" + b"2\x86" * LEVELS,
    "remembered-pairs": _repeated(b"K\x01", b"h%ch%c\x86"),
    "lists": _repeated(b"]", b"](h%ch%ce"),
}
DTENSOR = ("torch.distributed.tensor", "DTensor")
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


def _sharded(mesh, placement):
    spec = "torch.distributed.tensor._dtensor_spec.DTensorSpec"
    meta = _called("torch.distributed.tensor._dtensor_spec.TensorMeta", b"(K\x04t", b"N", b"N")
    made = _made(spec, mesh=mesh, placements=b"(" + placement + b"t", tensor_meta=meta)
    state = b"}(" + _text("_spec") + made + _text("_local_tensor") + _tensor(b"(K\x04t") + b"u"
    build, kind = (
        f"c{module}\n{name}\n".encode() for module, name in (("torch._utils", "_rebuild_wrapper_subclass"), DTENSOR)
    )
    return _called("torch._tensor._rebuild_from_type_v2", build, kind, b")", state)


def _mesh(shape):
    layout = _made("torch.distributed._mesh_layout._MeshLayout", shape=shape, stride=b"K\x01")
    return _made("torch.distributed.device_mesh.DeviceMesh", _layout=layout, _rank_map=_tensor(b"(K\x01t"))


def _rank_file(value):
    """The bytes of a rank's file with one tensor."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}" + _text("w") + value + b"s.")
        archive.writestr("archive/data/0", bytes(16))
    return written.getvalue()


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
        "mesh": _sharded(_mesh(bomb), shard),
        "dimension": _sharded(_mesh(b"K\x01"), _made("torch.distributed.tensor.placement_types.Shard", dim=bomb)),
    }
    for place, value in values.items():
        yield place, "model_world_size_1_rank_0.pt", _rank_file(value)
    for place in ("size", "path", "offset"):
        yield place, ".metadata", _metadata(**{place: bomb})


def _write(folder, name, content):
    folder.mkdir()
    (folder / name).write_bytes(content)


def _limited():
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30,) * 2)


def test_what_unfolds_without_end_is_refused_at_once(tmp_path):
    for kind, bomb in BOMBS.items():
        for place, name, content in _files(bomb):
            assert len(content) < 3000
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
    from opdgeom_utils.checkpoints import open_checkpoint

    shard = _made("torch.distributed.tensor.placement_types.Shard", dim=b"K\x00")
    for place, value in {"plain": _tensor(b"(K\x04t"), "sharded": _sharded(_mesh(b"K\x01"), shard)}.items():
        _write(tmp_path / place, "model_world_size_1_rank_0.pt", _rank_file(value))
        assert open_checkpoint(tmp_path / place).tensors["w"].read().tolist() == [0.0] * 4
    _write(tmp_path / "metadata", ".metadata", _metadata())
    with pytest.raises(ValueError, match="stored at 'x', None, None"):
        open_checkpoint(tmp_path / "metadata")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_objects_pass(protocol):
    found = {"a": (1, (2, 3), [4.5, None, "x"]), ("b", 2): {3, 4} if protocol > 3 else [3], "c": (), "d": 10**30}
    content = pickle.dumps([found, found["a"], "a" * 300, *range(300)], protocol=protocol)
    assert InertUnpickler(Path("x"), content).load()[:2] == [found, found["a"]]
