"""Hub ids on a cache laid out as the hub lays it out (blobs, refs, snapshots), without a network."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save

from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.diagnose import diagnose_pair
from opdgeom_utils.errors import CheckpointNotFoundError, CheckpointUnsafeError

OLD, NEW = "a" * 40, "b" * 40
NAME = "some-owner/some-model"


def _snapshot(repo, commit, files):
    """Write files as blobs, and a snapshot of links to them."""
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir(exist_ok=True)
    for name, content in files.items():
        blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")


def _files(value):
    weights = {f"model.layers.{i}.mlp.up_proj.weight": torch.full((3, 2), value + i) for i in range(2)}
    shards = {f"model-0000{i + 1}-of-00002.safetensors": {name: w} for i, (name, w) in enumerate(weights.items())}
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    return {file: save(held) for file, held in shards.items()} | {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "config.json": b'{"model_type": "qwen3"}',
    }


@pytest.fixture
def repo(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--some-owner--some-model"
    _snapshot(repo, OLD, _files(1.0))
    _snapshot(repo, NEW, _files(3.0))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(NEW)
    (repo / "refs" / "v1").write_text(OLD)
    return repo


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        (NAME, {}, 3.0),
        (f"{NAME}@v1", {}, 1.0),
        (f"{NAME}@{OLD}", {}, 1.0),
        (NAME, {"revision": "v1"}, 1.0),
        (f"{NAME}@v1", {"revision": "v1"}, 1.0),
    ],
)
def test_a_name_is_opened_at_its_revision(name, options, value, repo):
    opened = open_checkpoint(name, **options)
    assert [float(tensor.read()[0, 0]) for tensor in opened.tensors.values()] == [value, value + 1]
    assert opened.config == {"model_type": "qwen3"}


def test_two_revisions_are_compared(repo):
    table = diagnose_pair(f"{NAME}@v1", NAME, k=1, nulls=False)
    assert table["update_norm"].tolist() == pytest.approx([24**0.5] * 2)


def test_a_snapshot_is_a_folder_like_any_other(repo):
    assert len(open_checkpoint(repo / "snapshots" / OLD).tensors) == 2


def test_an_incomplete_download_names_the_shard(repo):
    (repo / "snapshots" / NEW / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"names model-00002-of-00002\.safetensors.*download it again"):
        open_checkpoint(NAME)


def test_what_is_not_cached_says_so_without_waiting(repo):
    for source in (f"{NAME}@v2", "some-owner/another-model"):
        with pytest.raises(CheckpointNotFoundError, match=rf"{source}: .*hub did not give it.*local folder"):
            open_checkpoint(source)
    with pytest.raises(CheckpointNotFoundError, match="says revision v1, the option main"):
        open_checkpoint(f"{NAME}@v1", revision="main")


def test_a_link_out_of_the_cache_is_refused(repo, tmp_path):
    shard = repo / "snapshots" / NEW / "model-00002-of-00002.safetensors"
    (tmp_path / "secret").write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointUnsafeError, match=r"model-00002-of-00002\.safetensors: is a link to .*secret"):
        open_checkpoint(NAME)
