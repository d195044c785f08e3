"""What is compared and what is not, said name by name."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from opdgeom_utils.checkpoints import comparison_report
from opdgeom_utils.checkpoints.comparison import aligned, compare_opened, matching_names
from opdgeom_utils.checkpoints.parameter_names import EMBEDDING, HEAD
from opdgeom_utils.checkpoints.stored_tensors import OpenCheckpoint, StoredTensor
from opdgeom_utils.errors import CheckpointMismatchError


def _opened(label, shapes, **fields):
    tensors = {
        name: StoredTensor(label, name, shape, torch.float32, held=torch.ones(shape)) for name, shape in shapes.items()
    }
    return OpenCheckpoint(label, tensors, **fields)


ONE = {EMBEDDING: (8, 2), "q": (2, 2), "norm": (2,)}


def test_a_complete_comparison():
    report = compare_opened(_opened("a", ONE), _opened("b", ONE))
    assert (report.compared, report.complete) == (tuple(ONE), True)
    assert matching_names(_opened("a", ONE), _opened("b", ONE)) == list(ONE)
    assert json.loads(json.dumps(report.as_dict()))["compared"] == list(ONE)


@pytest.mark.parametrize(
    ("shapes", "fields", "field", "words"),
    [
        ({EMBEDDING: (8, 2), "q": (2, 2)}, {}, "only_in_reference", "only in a: norm"),
        ({**ONE, "k": (1, 1)}, {}, "only_in_tuned", "only in b: k"),
        ({**ONE, "q": (2, 3)}, {}, "reshaped", r"of another shape: q is \(2, 2\) and \(2, 3\)"),
        ({**ONE, EMBEDDING: (8, 3)}, {}, "reshaped", r"embed_tokens\.weight is \(8, 2\) and \(8, 3\)"),
        ({**ONE, EMBEDDING: (2000, 2)}, {}, "reshaped", r"embed_tokens\.weight is \(8, 2\) and \(2000, 2\)"),
        (ONE, {"ambiguous": ("v is stored as x and as y",)}, "ambiguous", "ambiguous: v is stored as x and as y"),
        (ONE, {"config": {"model_type": "llama"}}, "conflicts", "in conflict: model_type is qwen3 and llama"),
        (ONE, {"config": {"text_config": {"model_type": "m"}}}, "conflicts", "model_type is qwen3 and m"),
    ],
)
def test_each_difference_is_reported_and_refused(shapes, fields, field, words):
    one, other = _opened("a", ONE, config={"model_type": "qwen3"}), _opened("b", shapes, **fields)
    report = compare_opened(one, other)
    assert len(getattr(report, field)) == 1
    assert not report.complete
    with pytest.raises(CheckpointMismatchError, match=f"a and b are not one architecture.*{words}.*strict=False"):
        matching_names(one, other)
    before, (after,), (kept,) = aligned(one, [other], strict=False)
    assert list(before.tensors) == list(after.tensors) == list(kept.compared)
    assert getattr(kept, field) == getattr(report, field)


def test_padding_is_cut_and_reported():
    one, other = _opened("a", {**ONE, HEAD: (8, 2)}), _opened("b", {**ONE, EMBEDDING: (10, 2), HEAD: (7, 2)})
    before, (after,), (report,) = aligned(one, [other], strict=True)
    assert report.complete
    assert report.padded == (f"{EMBEDDING} is (8, 2) and (10, 2)", f"{HEAD} is (8, 2) and (7, 2)")
    for opened in (before, after):
        assert (opened.tensors[EMBEDDING].shape, opened.tensors[HEAD].shape) == ((8, 2), (7, 2))
        assert opened.tensors[HEAD].read().shape == (7, 2)


def test_nothing_in_common_is_an_error_even_when_not_strict():
    with pytest.raises(CheckpointMismatchError, match="have no tensor in common"):
        aligned(_opened("a", {"x": (1,)}), [_opened("b", {"y": (1,)})], strict=False)


def test_a_report_names_what_was_opened():
    report = comparison_report(torch.nn.Linear(2, 3), torch.nn.Linear(2, 3, bias=False))
    assert (report.reference, report.tuned) == ("module Linear", "module Linear")
    assert (report.compared, report.only_in_reference) == (("weight",), ("bias",))


def test_two_checkpoints_of_one_label_do_not_hide_what_is_missing():
    report = comparison_report(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False))
    assert report.reference == report.tuned
    assert not report.complete
    with pytest.raises(CheckpointMismatchError, match="only in module Linear: bias"):
        report.raise_if_incomplete()


def _rows(label, rows, head=None):
    tensors = {EMBEDDING: rows} | ({} if head is None else {HEAD: head, "lm_head.bias": torch.ones(len(head))})
    return OpenCheckpoint(
        label, {n: StoredTensor(label, n, tuple(w.shape), w.dtype, held=w) for n, w in (tensors | {"q": EYE}).items()}
    )


EYE = torch.eye(2)
TABLE = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
NEW = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (torch.cat([NEW, TABLE]), r"row i of the first is row i\+5 of the second"),
        (torch.cat([TABLE[:150], NEW, TABLE[150:]]), r"row i of the first is row i\+5 of the second"),
        (TABLE[3:], "row i of the first is row i-3 of the second"),
        (TABLE[torch.randperm(200, generator=torch.Generator().manual_seed(2))], "in another order"),
        (torch.cat([NEW, TABLE + 0.02 * TABLE.flip(1)]), r"row i of the first is row i\+5"),
    ],
    ids=["at the front", "in the middle", "cut at the front", "permuted", "at the front, and trained"],
)
def test_a_vocabulary_in_another_order_is_never_measured_row_by_row(rows, words):
    one, other = _rows("a", TABLE, TABLE + 1), _rows("b", rows, rows + 1)
    report = compare_opened(one, other)
    assert report.compared == ("q",)
    assert [text.split()[0] for text in report.reshaped] == [EMBEDDING, HEAD, "lm_head.bias"]
    with pytest.raises(CheckpointMismatchError, match=f"of another shape: .*another order .*{words}"):
        matching_names(one, other)
    _, (after,), _ = aligned(one, [other], strict=False)
    assert list(after.tensors) == ["q"]


@pytest.mark.parametrize(
    "rows",
    [
        torch.cat([TABLE, NEW]),
        torch.cat([TABLE, NEW]) + 0.1 * torch.cat([NEW, TABLE]),
        torch.cat([TABLE[:190], TABLE[190:191].expand(10, 16), NEW]),  # ten reserved tokens became one vector
    ],
    ids=["appended", "appended and trained", "one vector for many tokens"],
)
def test_appended_rows_are_padding(rows):
    report = compare_opened(_rows("a", TABLE), _rows("b", rows))
    assert report.complete
    assert report.compared == (EMBEDDING, "q")


def test_rows_of_other_tokens_are_refused_or_noted():
    others = torch.randn(205, 16, generator=torch.Generator().manual_seed(3))
    longer = compare_opened(_rows("a", TABLE), _rows("b", others))
    assert longer.compared == ("q",)
    assert longer.reshaped[0].startswith(f"{EMBEDDING} has rows of other tokens, (200, 16) and (205, 16) (128 of 128")
    same = compare_opened(_rows("a", TABLE), _rows("b", others[:200]))
    assert same.complete, "a model of its own, of one shape: it may have been trained far"
    assert same.notes[0].endswith("128 of 128 rows looked at lie further apart than 0.5 of their length; its rows may "
                                  "not mean the same tokens")  # fmt: skip
    few = torch.cat([TABLE, NEW])
    few[:10] = others[:10]
    assert compare_opened(_rows("a", TABLE), _rows("b", few)).notes[0].split(": ")[1].startswith("10 of 128 rows")
    few = few[:200]
    assert compare_opened(_rows("a", TABLE), _rows("b", few)).notes == (), "a few tokens trained far"


def test_rows_that_moved_where_no_block_is_looked_at_are_seen():
    rows = torch.randn(3000, 16, generator=torch.Generator().manual_seed(5))
    moved = torch.cat([rows[:100], rows[100:900].roll(1, 0), rows[900:]])
    (text,) = compare_opened(_rows("a", rows), _rows("b", moved)).reshaped
    assert text == f"{EMBEDDING} has rows in another order (row i of the first is row i+1 of the second)"


def test_a_slice_of_a_vocabulary_is_no_padding():
    for half in (TABLE[:100], TABLE[:50]):
        report = compare_opened(_rows("a", TABLE), _rows("b", half))
        assert (report.padded, report.compared) == ((), ("q",))


def test_only_rows_are_read_to_see_their_order(tmp_path, monkeypatch):
    for name, rows in (("a", TABLE), ("b", torch.cat([TABLE, NEW]))):
        save_file({EMBEDDING: rows}, tmp_path / f"{name}.safetensors")

    def refuse(*_):
        raise AssertionError("a whole tensor was read")

    monkeypatch.setattr("opdgeom_utils.checkpoints.stored_tensors.StoredTensor.read_unchecked", refuse)
    assert comparison_report(tmp_path / "a.safetensors", tmp_path / "b.safetensors").complete


TIED, APART = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}


@pytest.mark.parametrize(
    ("before", "after", "shared"),
    [
        (TIED, APART, True),
        ({"model_type": "qwen3", "tie_word_embeddings": True}, APART, True),
        ({"model_type": "gpt2"}, APART, True),  # tied by default, and its files do not say so
        ({"model_type": "mistral"}, APART, False),  # apart by default: a base without its head
        ({}, APART, False),
        (TIED, TIED, False),  # the second contradicts itself
        (APART, APART, False),
    ],
)
def test_a_tied_model_has_its_embedding_as_its_head_beside_one_that_untied_it(before, after, shared):
    one, other = _rows("a", TABLE), _rows("b", TABLE, TABLE + 0.01)
    other = replace(other, config=after, tensors={n: t for n, t in other.tensors.items() if n != "lm_head.bias"})
    for first, second in ((replace(one, config=before), other), (other, replace(one, config=before))):
        report = compare_opened(first, second)
        assert report.complete == shared
        assert (HEAD in report.compared) == shared
        assert len(report.notes) == shared


def test_types_are_in_conflict_only_if_none_is_stated_on_both_sides():
    stated = [
        *({"model_type": "qwen2_5_vl"}, {"model_type": "qwen2_5_vl", "text_config": {"model_type": "qwen2_5_vl_text"}}),
        {"model_type": "qwen2_5_vl_text"},
    ]
    opened = [_opened("a", ONE, config=config) for config in stated]
    assert all(compare_opened(one, other).conflicts == () for one in opened for other in opened)
    other = _opened("b", ONE, config={"model_type": "llava", "text_config": {"model_type": "llama"}})
    assert compare_opened(opened[1], other).conflicts == ("model_type is qwen2_5_vl and llama",)
