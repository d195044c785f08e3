"""Troubles that users of trainers reported in public, each as a small checkpoint: read right, or refused in words.

``tests/REPORTS.md`` lists them with their sources and what came of each.
"""

import json
import struct
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint import save as save_distributed

from opdgeom_utils import comparison_report, diagnose_pair, open_checkpoint
from opdgeom_utils.errors import OpdGeomError
from tests.reported import HIDDEN, QWEN3, VOCABULARY, Q, adapter, lora, moved, norm_of, saved, weights


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(tmp_path / "base", weights())


def test_an_adapter_file_without_tensors_is_refused(base, tmp_path):
    """trl 4416, peft 2892, DeepSpeed 7900: ZeRO-3 leaves an adapter file of 40 bytes."""
    tuned = adapter(tmp_path / "tuned", {}, base)
    with pytest.raises(OpdGeomError, match=r"(?i)no tensor|empty"):
        diagnose_pair(base, tuned)


def test_a_saved_module_of_size_zero_is_refused(base, tmp_path):
    """peft 2450: under ZeRO-3 ``modules_to_save`` is written as tensors of shape (0,)."""
    factors = lora("base_model.model.model.layers.0.self_attn.q_proj")
    hollow = factors | {"base_model.model.model.embed_tokens.weight": torch.zeros(0)}
    tuned = adapter(tmp_path / "tuned", hollow, base, modules_to_save=["embed_tokens"])
    with pytest.raises(OpdGeomError, match=r"(?s)embed_tokens.*(ZeRO|empty|\(0,\)|\[0\])"):
        diagnose_pair(base, tuned)


def test_a_hollow_full_model_is_refused(base, tmp_path):
    """accelerate 2155: a model saved inside its sharding: embeddings of shape (0,), the norm at half its size."""
    hollow = weights() | {"model.embed_tokens.weight": torch.zeros(0), "model.norm.weight": torch.ones(HIDDEN // 2)}
    with pytest.raises(OpdGeomError, match=r"(?s)embed_tokens|norm"):
        diagnose_pair(base, saved(tmp_path / "tuned", hollow))


def test_a_header_entry_without_a_type_is_called_damaged(base, tmp_path):
    """torchtitan 3764: a shard with an entry whose dtype is the empty string."""
    tuned = saved(tmp_path / "tuned", moved(weights()))
    header = json.dumps({"lm_head.weight": {"dtype": "", "shape": [], "data_offsets": [0, 0]}}).encode()
    (tuned / "model-00002-of-00002.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (tuned / "model.safetensors").rename(tuned / "model-00001-of-00002.safetensors")
    where = dict.fromkeys(weights(), "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": where | {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (tuned / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OpdGeomError, match="00002-of-00002"):
        open_checkpoint(tuned)


def test_a_head_that_is_stored_twice_and_equal_is_tied(base, tmp_path):
    """transformers 30202, lmms-engine 157: the tied head is stored by one side only."""
    tuned = moved(weights())
    twice = saved(tmp_path / "twice", tuned | {"lm_head.weight": tuned["model.embed_tokens.weight"].clone()})
    once = saved(tmp_path / "once", tuned)
    tables = [diagnose_pair(base, folder, nulls=False) for folder in (twice, once)]
    assert tables[0]["name"].tolist() == tables[1]["name"].tolist()
    assert comparison_report(base, twice).complete


def test_a_head_that_has_moved_away_is_not_called_tied(base, tmp_path):
    """Automodel 2511: the configuration says tied, the stored head is another matrix."""
    own = moved(weights()) | {"lm_head.weight": torch.randn(VOCABULARY, HIDDEN)}
    report = comparison_report(base, saved(tmp_path / "tuned", own))
    assert "lm_head.weight" in str(report.as_dict())


def test_a_head_that_is_missing_without_being_tied_is_named(tmp_path):
    """Qwen3-VL-Embedding 89: not tied by its configuration, and no head in any shard."""
    untied = QWEN3 | {"tie_word_embeddings": False}
    full = weights() | {"lm_head.weight": torch.randn(VOCABULARY, HIDDEN)}
    before = saved(tmp_path / "before", full, untied)
    after = saved(tmp_path / "after", moved(weights()), untied)
    assert "lm_head.weight" in str(comparison_report(before, after).as_dict())
    with pytest.raises(OpdGeomError, match="lm_head"):
        diagnose_pair(before, after)


def test_unmerged_lora_weights_in_a_full_checkpoint_are_merged_or_refused(base, tmp_path):
    """verl 4553: a sharded save of a model with LoRA holds ``base_layer``, ``lora_A`` and ``lora_B``, not merged."""
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    state = {f"base_model.model.{name}": w for name, w in weights().items()}
    state[f"{stem}.base_layer.weight"] = state.pop(f"{stem}.weight")
    state |= {k.replace(".weight", ".default.weight"): v for k, v in lora(stem).items()}
    files, folder = saved(tmp_path / "files", state), tmp_path / "distributed"
    save_distributed({"model": state}, storage_writer=FileSystemWriter(folder), no_dist=True)
    (folder / "config.json").write_text(json.dumps(QWEN3))
    for tuned in (files, folder):
        with pytest.raises(OpdGeomError, match=r"(?i)lora"):
            diagnose_pair(base, tuned, nulls=False)


@pytest.mark.parametrize("prefix", ["base_model.model.model.", "base_model.model."])
def test_adapters_of_the_model_and_of_its_backbone_are_the_same(prefix, base, tmp_path):
    """peft 1579: an adapter trained on ``AutoModel`` lacks the ``model.`` of the causal model."""
    factors = lora(f"{prefix}layers.0.self_attn.q_proj")
    a, b = factors.values()
    table = diagnose_pair(base, adapter(tmp_path / "tuned", factors, base), nulls=False)
    assert norm_of(table, Q) == pytest.approx(float(torch.linalg.norm((2.0 * b @ a).double())), rel=1e-5)


def test_an_adapter_for_other_modules_is_refused(base, tmp_path):
    """tinker-cookbook 75: the adapter's keys name modules that the model does not have."""
    factors = lora("base_model.model.model.layers.0.mlp.experts.w1")
    with pytest.raises(OpdGeomError, match=r"experts\.w1"):
        diagnose_pair(base, adapter(tmp_path / "tuned", factors, base))


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_wrappers_of_a_compiled_model_are_taken_off(wrapper, base, tmp_path):
    """pytorch 94575, tinyworlds 13: names of a compiled or wrapped module."""
    tuned = moved(weights())
    expected = float(torch.linalg.norm((tuned[Q] - weights()[Q]).double()))
    wrapped = saved(tmp_path / "tuned", {f"{wrapper}{k}": v for k, v in tuned.items()})
    assert norm_of(diagnose_pair(base, wrapped, nulls=False), Q) == pytest.approx(expected, rel=1e-6)


def test_towers_before_and_after_their_names_changed_are_the_same(tmp_path):
    """vllm 18976, LlamaFactory 8338, Impromptu-VLA 52: Qwen2.5-VL's names changed with transformers 4.52."""
    config = {"model_type": "qwen2_5_vl", "text_config": QWEN3 | {"model_type": "qwen2_5_vl_text"}}
    tower = {"visual.blocks.0.attn.proj.weight": torch.ones(4, 4)}
    old = saved(tmp_path / "old", weights() | tower, config)
    tuned = moved(weights() | tower)
    names = {k: f"model.{k}" if k.startswith("visual") else k.replace("model.", "model.language_model.") for k in tuned}
    new = saved(tmp_path / "new", {names[k]: v for k, v in tuned.items()}, config)
    assert comparison_report(old, new).complete
    expected = float(torch.linalg.norm((tuned[Q] - weights()[Q]).double()))
    table = diagnose_pair(old, new, modules=["q_proj"], nulls=False)
    assert table["update_norm"].iloc[0] == pytest.approx(expected, rel=1e-6)


def test_a_text_model_stored_under_the_towers_name_is_read(base, tmp_path):
    """vllm 50355: a text model whose names keep ``model.language_model.`` of the trainer's larger model."""
    tuned = moved(weights())
    renamed = saved(tmp_path / "t", {k.replace("model.", "model.language_model.", 1): v for k, v in tuned.items()})
    expected = float(torch.linalg.norm((tuned[Q] - weights()[Q]).double()))
    table = diagnose_pair(base, renamed, modules=["q_proj"], nulls=False)
    assert table["update_norm"].iloc[0] == pytest.approx(expected, rel=1e-6)


def test_a_vocabulary_cut_to_the_tokenizer_is_compared_on_its_shared_rows(base, tmp_path):
    """peft 2415, lm-evaluation-harness 2748: padded embeddings on one side, the tokenizer's size on the other."""
    tuned, kept = moved(weights()), VOCABULARY - 6
    name = "model.embed_tokens.weight"
    cut = saved(tmp_path / "cut", tuned | {name: tuned[name][:kept].clone()})
    expected = float(torch.linalg.norm((tuned[name][:kept] - weights()[name][:kept]).double()))
    table = diagnose_pair(base, cut, nulls=False)
    assert norm_of(table, name) == pytest.approx(expected, rel=1e-5)
    said = str(table.attrs["comparisons"][0]["padded"])
    assert name in said
    assert str(kept) in said


def test_small_entries_that_every_rank_stores_whole_are_not_joined(tmp_path):
    """verl 7610: buffers in rank files are copies, not shards; joining them makes eight of one."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path / f"run{seed}" / "actor"
        folder.mkdir(parents=True)
        state = (weights() if not seed else moved(weights())) | {"model.layers.0.layer_scalar": torch.ones(1)}
        for rank in range(2):
            torch.save(state, folder / f"model_world_size_2_rank_{rank}.pt")
        (folder / "config.json").write_text(json.dumps(QWEN3))
        folders.append(folder)
    assert open_checkpoint(folders[0]).tensors["model.layers.0.layer_scalar"].shape == (1,)
    expected = float(torch.linalg.norm((moved(weights())[Q] - weights()[Q]).double()))
    assert norm_of(diagnose_pair(*folders, nulls=False), Q) == pytest.approx(expected, rel=1e-6)
