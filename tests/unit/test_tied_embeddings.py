"""Embeddings that input and output share: stored twice, and untied by adapters of real PEFT."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from opdgeom_utils.checkpoints import EMBEDDING, HEAD, comparison_report, matching_names, open_checkpoint
from opdgeom_utils.diagnose import diagnose_pair
from opdgeom_utils.errors import CheckpointMismatchError
from tests.random_adapter import random_adapter

SIZES = {
    **{"vocab_size": 20, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "pad_token_id": 0, "head_dim": 4},
}
NOTE = f"{EMBEDDING} and {HEAD} are one tensor in the base, untied by the adapter in"
TOKENS = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 17]}
KINDS = {  # options of the adapter, and which of the two it changes: None if they stay tied
    "low rank of the head": ({"target_modules": ["q_proj", "lm_head"]}, {HEAD}),
    "low rank of the embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, {EMBEDDING}),
    "low rank of both": ({"target_modules": ["lm_head", "embed_tokens"]}, {HEAD, EMBEDDING}),
    "low rank of both, tied": ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, None),
    "rows of tokens": (TOKENS, None),
    "other rows of the head": (
        TOKENS | {"trainable_token_indices": {"lm_head": [5], "embed_tokens": [2]}},
        {HEAD, EMBEDDING},
    ),
    "whole head": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, {HEAD}),
    "whole embedding": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, {EMBEDDING}),
    "both whole": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}, {HEAD, EMBEDDING}),
    "both whole, tied": (
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        None,
    ),
}


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True)).save_pretrained(folder)
    return folder


def _adapter(base, folder, **options):
    return random_adapter(AutoModelForCausalLM.from_pretrained(base), folder, **options)


def _logits(tensors):
    """Logits of a model that is put together from opened tensors, its embeddings apart."""
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=False))
    state = {name: tensor.read() for name, tensor in tensors.items()}
    model.load_state_dict({HEAD: state[EMBEDDING], **state})
    return model.eval()(torch.arange(20)[None]).logits.detach()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_over_tied_embeddings_computes_what_peft_computes(kind, tied, tmp_path):
    """Not what PEFT merges: merging a low rank into a shared tensor changes the other side too."""
    options, changes = KINDS[kind]
    folder = _adapter(tied, tmp_path / "adapter", **options)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tied), folder).eval()
    opened = open_checkpoint(folder)
    expected = peft(torch.arange(20)[None]).logits.detach()
    torch.testing.assert_close(_logits(opened.tensors), expected, rtol=1e-4, atol=1e-5)
    assert opened.adapted & {HEAD, EMBEDDING} == (changes or {EMBEDDING})
    assert [note for note in opened.notes if "untied" in note] == (
        [f"{NOTE} {' and '.join(sorted(changes))}"] if changes else []
    )
    table = diagnose_pair(tied, folder, k=2, nulls=False).set_index("name")
    assert (HEAD in table.index) == bool(changes)
    embedding = open_checkpoint(tied).tensors[EMBEDDING].read().double()
    for name in {HEAD, EMBEDDING} & set(table.index):
        moved = float((opened.tensors[name].read().double() - embedding).norm())
        assert table.loc[name, "update_norm"] == pytest.approx(moved, rel=1e-5)
        assert (moved > 0) == (name in opened.adapted)


def test_checkpoints_of_one_run_get_a_head_each_where_one_has_it(tied, tmp_path):
    plain, whole, both = (
        _adapter(tied, tmp_path / name, **options)
        for name, options in (
            ("plain", {"target_modules": ["q_proj"]}),
            ("whole", KINDS["whole head"][0]),
            ("both", KINDS["both whole, tied"][0]),
        )
    )
    for one, other in ((plain, whole), (whole, plain), (whole, both), (both, whole)):
        report = comparison_report(one, other)
        assert report.complete
        assert HEAD in report.compared
    assert HEAD not in comparison_report(plain, both).compared
    assert HEAD not in matching_names(open_checkpoint(tied), open_checkpoint(whole))


def test_a_tied_base_stored_twice_is_one_before_an_adapter_changes_it(tied, tmp_path):
    weights = load_file(tied / "model.safetensors")
    twice = tmp_path / "twice"
    twice.mkdir()
    save_file({**weights, HEAD: weights[EMBEDDING].clone()}, twice / "model.safetensors")
    (twice / "config.json").write_bytes((tied / "config.json").read_bytes())
    for kind in ("low rank of both, tied", "low rank of the embedding", "whole head"):
        folder = _adapter(tied, tmp_path / kind, **KINDS[kind][0])
        once, opened = open_checkpoint(folder), open_checkpoint(folder, base=twice)
        assert list(opened.tensors) == list(once.tensors)
        assert all(torch.equal(opened.tensors[name].read(), once.tensors[name].read()) for name in once.tensors)
        assert comparison_report(twice, opened).complete


def test_a_head_that_the_base_does_not_have_is_refused(tied, tmp_path):
    folder = _adapter(tied, tmp_path / "adapter", **KINDS["whole head"][0])
    settings = json.loads((tied / "config.json").read_text())
    apart = tmp_path / "apart"
    apart.mkdir()
    (apart / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": False}))
    save_file(load_file(tied / "model.safetensors"), apart / "model.safetensors")
    opened = open_checkpoint(folder, base=apart)
    with pytest.raises(CheckpointMismatchError, match=r"only in .*adapter: lm_head\.weight"):
        diagnose_pair(apart, opened, nulls=False)
    table = diagnose_pair(apart, opened, k=2, nulls=False, strict=False)
    assert HEAD not in set(table["name"])
    assert table.attrs["comparisons"][0]["only_in_tuned"] == [HEAD]


def test_nan_in_tied_embeddings_stored_twice_is_a_row_and_not_a_mismatch(tied, tmp_path):
    weights = load_file(tied / "model.safetensors")
    weights[EMBEDDING][3, 3] = float("nan")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((tied / "config.json").read_bytes())
    save_file({**weights, HEAD: weights[EMBEDDING].clone()}, broken / "model.safetensors")
    table = diagnose_pair(tied, broken, k=2, nulls=False).set_index("name")
    assert "1 NaN or infinite" in table.loc[EMBEDDING, "note"]
    save_file({**weights, HEAD: weights[EMBEDDING] + 1}, broken / "model.safetensors")
    assert comparison_report(tied, broken).only_in_tuned == (HEAD,)
