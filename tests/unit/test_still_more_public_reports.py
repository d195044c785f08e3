"""A third round of troubles that users reported in public; ``tests/REPORTS.md`` lists them with their sources."""

import json

import pandas as pd
import pytest
import torch
import torch.distributed.checkpoint as dcp
from peft import LoraConfig, get_peft_model
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Qwen3Config

from opdgeom_utils import comparison_report, diagnose_pair, open_checkpoint
from opdgeom_utils.chapters.your_run_caveats import rounded_with_the_tuned
from opdgeom_utils.errors import OpdGeomError
from tests.reported import HIDDEN, QWEN3, VOCABULARY, Q, adapter, lora, moved, norm_of, saved, weights

PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"
SMALL = {
    **{"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32},
}


@pytest.fixture
def base(tmp_path):
    return saved(tmp_path / "base", weights())


def test_an_alpha_of_zero_is_no_adapter_that_changed_nothing(base, tmp_path):
    """verl 1821, 5326: the merger wrote ``lora_alpha: 0``; the advice is to write the alpha of the training."""
    tuned = adapter(tmp_path / "t", lora(PREFIX), base, lora_alpha=0)
    with pytest.raises(OpdGeomError, match=r"alpha is 0 for .*q_proj.* Write the lora_alpha of the training"):
        open_checkpoint(tuned)
    settings = json.loads((tuned / "adapter_config.json").read_text())
    (tuned / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 6}))
    factors = lora(PREFIX)
    product = factors[f"{PREFIX}.lora_B.weight"].double() @ factors[f"{PREFIX}.lora_A.weight"].double()
    assert norm_of(diagnose_pair(base, tuned, nulls=False), Q) == pytest.approx(3 * float(product.norm()), rel=1e-4)


def test_an_adapter_below_a_base_saved_again_is_said(base, tmp_path):
    """verl 4704: what was called merged is the base, with the adapter in a folder below it."""
    whole = saved(tmp_path / "merged", weights())
    adapter(whole / "lora_adapter", lora(PREFIX), base)
    assert any("no part of its weights: lora_adapter/" in note for note in comparison_report(base, whole).notes)
    assert not comparison_report(base, base).notes


def test_weights_beside_an_adapter_are_listed_whatever_their_format(base, tmp_path):
    """Qwen-VL-Series-Finetune 231, GalleryGPT 8: what was trained in full lies in a pickle beside the adapter."""
    tuned = adapter(tmp_path / "t", lora(PREFIX), base)
    torch.save({"w": torch.ones(2)}, tuned / "non_lora_trainables.bin")
    torch.save({"state": {}}, tuned / "optimizer.pt")
    (note,) = [note for note in comparison_report(base, tuned).notes if "beside it" in note]
    assert "non_lora_trainables.bin lie" in note
    assert "optimizer.pt" not in note


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alora_invocation_tokens": [1, 2]}, "acts only after its invocation tokens"),
        ({"peft_type": "XLORA"}, "mixes its parts anew for each input"),
    ],
)
def test_no_one_is_told_to_merge_what_cannot_be_merged(settings, words, base, tmp_path):
    with pytest.raises(OpdGeomError, match=words) as error:
        open_checkpoint(adapter(tmp_path / "t", lora(PREFIX), base, **settings))
    assert "merge_and_unload" not in str(error.value)


@pytest.mark.parametrize("shape", [(4, 2, HIDDEN), (2, 3, 4, 4)], ids=["experts", "convolution"])
def test_factors_of_more_dimensions_are_named_for_what_they_are(shape, base, tmp_path):
    """unsloth 6930: factors of all experts in one tensor are packed in more than one order."""
    tuned = adapter(tmp_path / "t", {f"{PREFIX}.lora_A.weight": torch.ones(shape)}, base)
    with pytest.raises(OpdGeomError, match="factors of a convolution, or of all experts"):
        open_checkpoint(tuned)


@pytest.mark.parametrize("whole", [True, False], ids=["embedding saved", "rows alone"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_trained_rows_of_added_tokens_are_left_out_as_in_the_merged_model(tied, whole, tmp_path):
    """peft 2898: tokens were added, and only some rows trained; the whole embedding is saved beside them, or is not."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen3Config(**SMALL, tie_word_embeddings=tied)).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(VOCABULARY + 4, mean_resizing=False)
    rows = [1, VOCABULARY + 1]
    trained = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=rows))
    for parameter in trained.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    trained.save_pretrained(tmp_path / "tuned", save_embedding_layers=whole)
    trained.merge_and_unload().save_pretrained(tmp_path / "merged")
    opened = open_checkpoint(tmp_path / "tuned", base=tmp_path / "base")
    tables = [diagnose_pair(tmp_path / "base", one, nulls=False, k=2) for one in (opened, tmp_path / "merged")]
    assert tables[0]["name"].tolist() == tables[1]["name"].tolist()
    assert norm_of(tables[0], "model.embed_tokens.weight") > 0
    assert tables[0]["update_norm"].tolist() == pytest.approx(tables[1]["update_norm"].tolist(), rel=1e-5, nan_ok=True)
    said = [f"1 rows of model.embed_tokens.weight that its base of {VOCABULARY}" in note for note in opened.notes]
    assert any(said) != whole


def scaled(tensors, name, rows, columns):
    """Q in 8 bits with a scale for each block, under a name; and what it stands for."""
    w = tensors[Q]
    scale = torch.rand(-(-w.shape[0] // rows), -(-w.shape[1] // columns)) * 0.01 + 0.001
    whole = torch.stack([torch.stack([scale[i // rows, j // columns] for j in range(w.shape[1])]) for i in range(16)])
    stored = (w / whole).to(torch.float8_e4m3fn)
    scale = scale.reshape(()) if scale.numel() == 1 else scale
    return {**tensors, Q: stored, Q.replace(".weight", f".{name}"): scale}, stored.float() * whole


@pytest.mark.parametrize(
    ("name", "rows", "columns", "settings"),
    [
        ("weight_scale", 8, 4, {"config_groups": {"FP8_BLOCK": {"weights": {"block_structure": [8, 4]}}}}),
        ("scale_weight", 16, HIDDEN, None),
    ],
)
def test_scales_of_other_tools_are_multiplied_in(name, rows, columns, settings, base, tmp_path):
    """sglang 28132: compressed-tensors' blocks. stable-diffusion.cpp 1898: ``scale_weight``, read without its scale."""
    tensors, true = scaled(moved(weights()), name, rows, columns)
    tuned = saved(tmp_path / "t", tensors, QWEN3 | ({"quantization_config": settings} if settings else {}))
    table = diagnose_pair(base, tuned, nulls=False)
    assert norm_of(table, Q) == pytest.approx(float((true - weights()[Q]).double().norm()), rel=1e-4)


def test_eight_bits_beside_an_unknown_scale_are_not_read_as_they_are(tmp_path):
    """The same: DeepSeek's own files call it ``scale``."""
    tensors, _ = scaled(weights(), "scale", 8, 8)
    with pytest.raises(OpdGeomError, match=r"q_proj\.scale beside it, a scale of no form"):
        open_checkpoint(saved(tmp_path / "t", tensors))


def test_a_distributed_folder_saved_flat_keeps_names_that_begin_with_model(tmp_path):
    """A planner that does not flatten tells no paths; ``lm_head`` stood outside ``model`` and was left out."""
    head = torch.ones(VOCABULARY, HIDDEN)
    own = QWEN3 | {"tie_word_embeddings": False}
    reference = saved(tmp_path / "base", weights() | {"lm_head.weight": head}, own)
    state = moved(weights()) | {"lm_head.weight": head + 0.5}
    writer, planner = FileSystemWriter(tmp_path / "t"), DefaultSavePlanner(flatten_state_dict=False)
    dcp.save(state, storage_writer=writer, planner=planner, no_dist=True)
    table = diagnose_pair(reference, tmp_path / "t", nulls=False)
    assert norm_of(table, "lm_head.weight") == pytest.approx(0.5 * (VOCABULARY * HIDDEN) ** 0.5, rel=1e-5)
    assert norm_of(table, Q) == pytest.approx(float((state[Q] - weights()[Q]).double().norm()), rel=1e-4)


def test_a_model_that_fsdp_flattened_is_named(base, tmp_path):
    """verl 4290, dinov2 544: one tensor holds many weights."""
    name = "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module._flat_param"
    with pytest.raises(OpdGeomError, match=r"_flat_param holds many weights.*FULL_STATE_DICT"):
        comparison_report(base, saved(tmp_path / "t", {name: torch.ones(100)}))


def test_a_folder_of_the_hub_s_cache_says_which_snapshot_and_what_is_unfinished(tmp_path):
    root = tmp_path / "models--maker--model"
    saved(root / "snapshots" / "abc", weights())
    with pytest.raises(OpdGeomError, match=r"if one of snapshots/abc/ is meant, pass its path"):
        open_checkpoint(root)
    (root / "blobs").mkdir()
    (root / "blobs" / "1234.incomplete").write_bytes(b"x")
    (root / "snapshots" / "abc" / "model.safetensors").unlink()
    with pytest.raises(OpdGeomError, match=r"did not finish: give `hf download` again"):
        open_checkpoint(root / "snapshots" / "abc")


RENAMED = {
    "nemotron_h": {
        **{"layers_block_type": ["moe"], "n_routed_experts": 2, "moe_intermediate_size": 12, "n_group": 1},
        **{"num_experts_per_tok": 1, "moe_shared_expert_intermediate_size": 8, "topk_group": 1},
    },
    "ernie4_5_moe": {"moe_num_experts": 2, "moe_layer_start_index": 0, "moe_intermediate_size": 12, "moe_k": 1},
    "lfm2_moe": {
        **{"layer_types": ["full_attention"], "num_dense_layers": 0, "num_experts": 2, "num_experts_per_tok": 1},
        **{"moe_intermediate_size": 12},
    },
}


@pytest.mark.parametrize("kind", RENAMED)
def test_a_type_whose_files_have_other_names_than_its_memory_is_one_model(kind, tmp_path):
    """prime-rl 3014, NeMo Automodel 1625: ``backbone.`` on the hub, ``model.`` in what FSDP saves."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SMALL | RENAMED[kind]))
    model.save_pretrained(tmp_path / "hub")
    state = {name: w + 0.25 for name, w in model.state_dict().items()}
    tuned = saved(tmp_path / "memory", state, json.loads((tmp_path / "hub" / "config.json").read_text()))
    table = diagnose_pair(tmp_path / "hub", tuned, nulls=False, k=2).set_index("name")
    matrices = table[table["update_norm"].notna()]
    assert len(matrices) > 5
    assert matrices["update_norm"].tolist() == pytest.approx((0.25 * matrices["n_entries"] ** 0.5).tolist(), rel=1e-3)


@pytest.mark.parametrize(
    ("dtype", "moves"),
    [
        *(("float16->bfloat16", True), ("float32->float16", True), ("bfloat16->float8_e4m3fn", True)),
        *(("bfloat16->bfloat16", False), ("bfloat16->float32", False), ("float8_e4m3fn->float8_e4m3fn", False)),
    ],
)
def test_rounding_of_finer_references_is_seen_in_every_format(dtype, moves):
    """Weights in fp16 and a run kept in bf16: rounding moved each, and the shift was judged as training's."""
    before, after = (getattr(torch, name) for name in dtype.split("->"))
    w = torch.linspace(0.1, 0.9, 101).to(before)
    assert bool((w.double() != w.to(after).double()).any()) == moves
    rows = pd.DataFrame({"dtype": [dtype], "note": [""], "stable_rank": [3.0], "stable_rank_bf16": [2.0]})
    assert rounded_with_the_tuned(rows) == moves
