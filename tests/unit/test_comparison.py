"""What is compared and what is not, said name by name."""

import json

import pytest
import torch

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
