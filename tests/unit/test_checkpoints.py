"""Checkpoints of every readable form, and every way in which one can be wrong."""

import json
import os
import shutil
import struct

import pytest
import torch
from safetensors.torch import save_file

from opdgeom_utils.checkpoints import EMBEDDING, HEAD, matching_names, open_checkpoint
from opdgeom_utils.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointUnsafeError,
    MetricInputError,
)

Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def weights():
    return {EMBEDDING: torch.ones(5, 4), Q: torch.arange(16.0).reshape(4, 4).bfloat16(), NORM: torch.ones(4)}


@pytest.fixture
def folder(tmp_path, weights):
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def _shards(folder, weights, *, index=True, lie=None):
    names = list(weights)
    parts = {"model-00001-of-00002.safetensors": names[:1], "model-00002-of-00002.safetensors": names[1:]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in parts.items() for name in held} | (lie or {})
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


class _Tied(torch.nn.Module):
    """The shape of a causal language model with tied embeddings."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(5, 4)
        self.lm_head = torch.nn.Linear(4, 5, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight


def test_a_folder_a_file_and_shards_hold_the_same(folder, tmp_path, weights):
    sharded, unindexed = tmp_path / "sharded", tmp_path / "unindexed"
    for place, index in ((sharded, True), (unindexed, False)):
        place.mkdir()
        _shards(place, weights, index=index)
    for source in (folder, str(folder), folder / "model.safetensors", sharded, unindexed):
        tensors = open_checkpoint(source).tensors
        assert sorted(tensors) == sorted(weights)
        for name, expected in weights.items():
            assert (tensors[name].shape, tensors[name].dtype) == (tuple(expected.shape), expected.dtype)
            assert torch.equal(tensors[name].read(), expected)


def test_opening_reads_no_weights(folder, monkeypatch):
    def refuse(*_):
        raise AssertionError("a tensor was read on opening")

    monkeypatch.setattr("opdgeom_utils.checkpoints.StoredTensor.read_unchecked", refuse)
    open_checkpoint(folder)


def test_names_come_in_layer_order(tmp_path):
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (10, 2, 0)]
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "x.safetensors")
    assert list(open_checkpoint(tmp_path / "x.safetensors").tensors) == names[::-1]


def test_a_loaded_module_equals_its_file(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    held, filed = open_checkpoint(module), open_checkpoint(tmp_path)
    assert matching_names(held, filed) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert all(torch.equal(held.tensors[name].read(), filed.tensors[name].read()) for name in held.tensors)
    assert not held.tensors["0.weight"].read().requires_grad


def test_tied_embeddings_appear_once(tmp_path, weights):
    assert list(open_checkpoint(_Tied()).tensors) == [EMBEDDING]
    embedding = weights[EMBEDDING]
    cases = {
        "stored twice, undeclared": ({EMBEDDING: embedding, HEAD: embedding.clone()}, None, [EMBEDDING]),
        "stored twice, declared": ({EMBEDDING: embedding, HEAD: embedding.clone()}, True, [EMBEDDING]),
        "stored as the head": ({HEAD: embedding}, True, [EMBEDDING]),
        "equal but declared apart": ({EMBEDDING: embedding, HEAD: embedding.clone()}, False, [HEAD, EMBEDDING]),
        "different": ({EMBEDDING: embedding, HEAD: 2 * embedding}, None, [HEAD, EMBEDDING]),
        "a head alone, undeclared": ({HEAD: embedding}, None, [HEAD]),
    }
    for case, (tensors, tied, expected) in cases.items():
        place = tmp_path / case
        place.mkdir()
        save_file(tensors, place / "model.safetensors")
        if tied is not None:
            (place / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
        assert list(open_checkpoint(place).tensors) == expected, case


def test_compiled_and_wrapped_modules_keep_their_names():
    outer = torch.nn.Module()
    outer.module = torch.nn.Linear(2, 2, bias=False)
    assert list(open_checkpoint(outer).tensors) == ["weight"]


def test_buffers_are_left_out(tmp_path):
    tensors = {"w": torch.ones(2, 2), "position_ids": torch.arange(3), "mask": torch.ones(2, dtype=torch.bool)}
    save_file(tensors, tmp_path / "model.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert list(open_checkpoint(tmp_path).tensors) == ["w"]


def test_a_hub_id_is_downloaded_at_its_revision(folder, monkeypatch):
    asked = {}

    def download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert Q in open_checkpoint("Qwen/Qwen3-0.6B-Base@v1.0").tensors
    assert (asked["repo_id"], asked["revision"]) == ("Qwen/Qwen3-0.6B-Base", "v1.0")
    open_checkpoint("gpt2")
    assert (asked["repo_id"], asked["revision"]) == ("gpt2", None)


def test_a_hub_that_cannot_be_reached_says_so(monkeypatch):
    def download(*_, **__):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(CheckpointNotFoundError) as caught:
        open_checkpoint("Qwen/Qwen3-0.6B")
    assert all(word in str(caught.value) for word in ("Qwen/Qwen3-0.6B", "no route to host)", "local folder"))


@pytest.mark.parametrize("error", [TimeoutError("slow"), RuntimeError("of the network library"), Exception()])
def test_every_failure_of_the_hub_s_client_is_one_error(monkeypatch, error):
    def download(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(CheckpointNotFoundError, match="the hub did not give it"):
        open_checkpoint("Qwen/Qwen3-0.6B")


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_not_the_current_folder(name):
    with pytest.raises(CheckpointNotFoundError, match="name is empty"):
        open_checkpoint(name)


def test_offline_is_a_clear_error_without_waiting():
    with pytest.raises(CheckpointNotFoundError, match="hub did not give it"):
        open_checkpoint("some-owner/some-model-that-is-not-cached")


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "a/b/c", "run/step_000050.safetensors", "~/nowhere"])
def test_a_missing_path_never_asks_the_hub(path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(CheckpointNotFoundError, match="no such file or folder"):
        open_checkpoint(path)


def test_missing_files_are_named(tmp_path, weights):
    with pytest.raises(CheckpointNotFoundError, match=r"no \.safetensors file, found nothing"):
        open_checkpoint(tmp_path)
    (tmp_path / "readme.txt").touch()
    with pytest.raises(CheckpointNotFoundError, match=r"found readme\.txt; expected a folder saved by"):
        open_checkpoint(tmp_path)
    for index in (True, False):
        _shards(tmp_path, weights, index=index)
        (tmp_path / "model-00002-of-00002.safetensors").unlink()
        words = "1 of 2 shards" if not index else r"names model-00002-of-00002\.safetensors \(for .*not there"
        with pytest.raises(CheckpointNotFoundError, match=words):
            open_checkpoint(tmp_path)
        (tmp_path / "model.safetensors.index.json").unlink(missing_ok=True)


def test_an_adapter_alone_is_not_a_model(tmp_path):
    save_file({"a": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointNotFoundError, match=r"adapter without its adapter_config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-3], ["truncated inside tensor", "expected at least"]),
        (lambda data: data[:5], ["not a readable safetensors file"]),
        (lambda data: b"", ["not a readable safetensors file"]),
        (lambda data: b"\xff" * 64, ["not a readable safetensors file"]),
        (lambda data: data.replace(b"[4,4]", b"[4,5]"), [Q, "32 bytes", "need 40"]),
        (lambda data: data.replace(b'"BF16"', b'"F64" '), [Q, "32 bytes", "need 128"]),
    ],
)
def test_damaged_files_name_file_and_tensor(folder, damage, words):
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointDamagedError) as caught:
        open_checkpoint(folder)
    assert all(word in str(caught.value) for word in [str(file), *words])


def test_a_shifted_offset_is_found(folder):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header[NORM]["data_offsets"][1] += 4
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(CheckpointDamagedError, match=r"model\.norm\.weight 20 bytes"):
        open_checkpoint(folder)


def test_damage_after_opening_is_found_on_reading(folder):
    opened = open_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(b"gone")
    with pytest.raises(CheckpointDamagedError, match=r"model\.safetensors"):
        opened.tensors[Q].read()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"model\.safetensors"):
        opened.tensors[Q].read()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_name_file_and_tensor(folder, weights, bad):
    weights[Q][1, 2] = bad
    save_file(weights, folder / "model.safetensors")
    opened = open_checkpoint(folder)
    assert torch.equal(opened.tensors[NORM].read(), weights[NORM])
    with pytest.raises(CheckpointDamagedError) as caught:
        opened.tensors[Q].read()
    assert all(word in str(caught.value) for word in ("model.safetensors", Q, "1 NaN or infinite values of 16"))


def test_an_index_that_lies_is_found(tmp_path, weights):
    _shards(tmp_path, weights, lie={EMBEDDING: "model-00002-of-00002.safetensors"})
    with pytest.raises(
        CheckpointDamagedError, match=r"model-00002-of-00002.safetensors holds model.embed_tokens.weight"
    ):
        open_checkpoint(tmp_path)
    for content in ("{", "[]", "{}", '{"weight_map": 3}'):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(CheckpointDamagedError, match=r"index\.json: not a readable index"):
            open_checkpoint(tmp_path)


def test_an_unreadable_configuration_is_found(folder):
    for content in ("{", "[]"):
        (folder / "config.json").write_text(content)
        with pytest.raises(CheckpointDamagedError, match=r"config\.json"):
            open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/outside.safetensors", "a/../../b.safetensors", ""])
def test_an_index_that_leads_out_of_the_folder_is_refused(name, tmp_path, weights):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(weights, tmp_path / "outside.safetensors")
    index = inside / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {Q: name}}))
    with pytest.raises(CheckpointUnsafeError) as caught:
        open_checkpoint(inside)
    assert all(word in str(caught.value) for word in (str(index), Q, repr(name)))


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00001.safetensors"])
def test_a_link_that_leads_out_of_the_folder_is_refused(name, tmp_path, weights):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(weights, tmp_path / "outside.safetensors")
    (inside / name).symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(
        CheckpointUnsafeError, match=rf"{name}: is a link to .*outside\.safetensors, outside its folder"
    ):
        open_checkpoint(inside)
    (tmp_path / "also").symlink_to(tmp_path, target_is_directory=True)
    assert Q in open_checkpoint(tmp_path / "also").tensors, "a link to the folder itself is the user's own choice"


def test_a_tensor_that_changed_its_form_after_opening_is_found(folder, weights):
    opened = open_checkpoint(folder)
    save_file(weights | {Q: torch.ones(2, 2)}, folder / "model.safetensors")
    with pytest.raises(
        CheckpointDamagedError, match=rf"model\.safetensors: tensor {Q} has shape \(2, 2\), it was \(4, 4\)"
    ):
        opened.tensors[Q].read()


def test_what_is_open_is_returned(folder):
    opened = open_checkpoint(folder)
    assert open_checkpoint(opened) is opened


def test_a_whole_file_beside_shards_of_another_model_is_refused(tmp_path, weights):
    _shards(tmp_path, weights)
    save_file({name: w + 1 for name, w in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointDamagedError, match=r"holds two checkpoints, model\.safetensors and the shards"):
        open_checkpoint(tmp_path)


def test_a_pipe_in_the_place_of_weights_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointUnsafeError, match="no regular file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors.index.json", "config.json"])
def test_an_index_or_a_configuration_that_is_a_link_elsewhere_is_refused(tmp_path, weights, file):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir(), inside.mkdir()
    _shards(inside, weights)
    (inside / "config.json").write_text("{}")
    shutil.move(inside / file, outside / file)
    (inside / file).symlink_to(outside / file)
    with pytest.raises(CheckpointUnsafeError, match="outside its folder"):
        open_checkpoint(inside)


def test_two_checkpoints_in_one_folder_are_refused(tmp_path, weights):
    for step in (10, 20):
        save_file(weights, tmp_path / f"step_{step:06d}.safetensors")
    with pytest.raises(CheckpointDamagedError, match=r"both step_000010.safetensors and step_000020.safetensors"):
        open_checkpoint(tmp_path)


def test_quantised_weights_are_refused(tmp_path):
    save_file({"w": torch.ones(2, 2, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    with pytest.raises(MetricInputError, match="tensor w is stored as U8"):
        open_checkpoint(tmp_path)


def test_modules_without_values_are_refused():
    with pytest.raises(CheckpointNotFoundError, match="meta device"):
        open_checkpoint(torch.nn.Linear(2, 2, device="meta"))
    with pytest.raises(CheckpointNotFoundError, match="no parameters"):
        open_checkpoint(torch.nn.ReLU())


def test_other_architectures_are_told_apart_by_name(tmp_path, weights):
    save_file(weights, tmp_path / "a.safetensors")
    other = {name: tensor for name, tensor in weights.items() if name != NORM} | {
        Q: torch.ones(4, 6),
        "extra": torch.ones(1),
    }
    save_file(other, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointMismatchError) as caught:
        matching_names(open_checkpoint(tmp_path / "a.safetensors"), open_checkpoint(tmp_path / "b.safetensors"))
    found = [f"a.safetensors: {NORM}", "b.safetensors: extra", f"{Q} is (4, 4) and (4, 6)"]
    assert all(words in str(caught.value) for words in found)
