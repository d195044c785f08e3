"""Files are whole or absent, whatever fails; locks are waited for."""

import errno
import json
import os
import resource
import threading
from pathlib import Path

import pytest
import torch

from opdgeom_utils import storage
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, RunLockedError, StorageError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.5], dtype=torch.bfloat16)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.bin"
    storage.write_atomic(path, b"a longer first content")
    storage.write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(path.parent) == ["file.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_content_and_nothing_else(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    storage.write_atomic(tmp_path / "file.bin", b"old")
    monkeypatch.setattr(*((os, "fsync") if where == "fsync" else (Path, "replace")), full)
    with pytest.raises(StorageError, match=r"file\.bin: No space left on device") as raised:
        storage.write_atomic(tmp_path / "file.bin", b"new")
    assert isinstance(raised.value, OSError)
    assert (tmp_path / "file.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_a_write_that_the_kernel_cuts_short_leaves_nothing(tmp_path: Path) -> None:
    """A real refusal, in the middle of the data: the process may not write files of more than 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match=r"big\.bin"):
            storage.write_atomic(tmp_path / "big.bin", bytes(300_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_an_unwritable_place_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="could not write"):
        storage.write_atomic(tmp_path / "file" / "below.bin", b"x")
    with (
        pytest.raises(StorageError, match="could not write"),
        storage.locked(tmp_path / "file" / "run", wait_seconds=1.0),
    ):
        pass


def test_json_is_stable(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [2], "b": 1}
    assert (tmp_path / "a.json").read_text().index('"a"') < (tmp_path / "a.json").read_text().index('"b"')


def test_tensors_round_trip(tmp_path: Path) -> None:
    digest = storage.write_tensors(tmp_path / "w.safetensors", {**TENSORS, "t": TENSORS["a"].T})
    found = storage.read_tensors(tmp_path / "w.safetensors")
    assert set(found) == {"a", "b", "t"}
    assert found["b"].dtype == torch.bfloat16
    assert torch.equal(found["a"], TENSORS["a"])
    assert torch.equal(found["t"], TENSORS["a"].T)
    assert (tmp_path / "w.sha256").read_text() == f"{digest}  w.safetensors\n"


@pytest.mark.parametrize("place", [0, 9, -1])
def test_a_flipped_bit_is_found(place: int, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    storage.write_tensors(path, TENSORS)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointDamagedError, match="damaged: sha256"):
        storage.read_tensors(path)


def test_truncated_missing_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    storage.write_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointDamagedError):
        storage.read_tensors(path)
    (tmp_path / "w.sha256").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointDamagedError):
        storage.read_tensors(path)
    (tmp_path / "w.sha256").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"w\.sha256"):
        storage.read_tensors(path)
    with pytest.raises(CheckpointNotFoundError):
        storage.read_tensors(tmp_path / "other.safetensors")


def test_a_held_lock_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    notes: list[str] = []
    with (
        storage.locked(tmp_path / "run", wait_seconds=5.0),
        pytest.raises(RunLockedError, match="in use by another process"),
        storage.locked(tmp_path / "run", wait_seconds=0.3, note=notes.append),
    ):
        pytest.fail("two holders of one lock")
    assert notes == ["run: another process is training this run; waiting for it"]


def test_a_released_lock_is_taken_by_who_waits(tmp_path: Path) -> None:
    order: list[str] = []
    told = threading.Event()

    def waiter() -> None:
        with storage.locked(tmp_path, wait_seconds=20.0, note=lambda _: told.set()):
            order.append("waiter")

    thread = threading.Thread(target=waiter)
    with storage.locked(tmp_path, wait_seconds=5.0):
        thread.start()
        assert told.wait(10)
        order.append("first")
    thread.join(20)
    assert order == ["first", "waiter"]
