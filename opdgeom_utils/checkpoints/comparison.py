"""What two checkpoints have in common, name by name, and everything that could not be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from opdgeom_utils.checkpoints.layouts import text_config
from opdgeom_utils.checkpoints.parameter_names import (
    embedding_and_head,
    is_padding,
    is_vocabulary,
    layer_of,
    module_of,
)
from opdgeom_utils.checkpoints.sampled_rows import order_of_rows, other_values, taken_from
from opdgeom_utils.checkpoints.stored_tensors import OpenCheckpoint, StoredTensor, part_of
from opdgeom_utils.checkpoints.tied_embeddings import heads_apart
from opdgeom_utils.checkpoints.weight_files import shortened
from opdgeom_utils.errors import CheckpointMismatchError, ways

ROTATED = ("q_proj", "k_proj", "q_norm", "k_norm")  # what rotary embeddings turn, by halves or by neighbours
TURNED = (
    "rows in another order (one of the two was converted by the rule for Meta's rotary embeddings, the other not; "
    "convert both from the trained weights by one rule)"
)
PERHAPS_OTHERS = "its rows may not mean the same tokens"


@dataclass(frozen=True)
class ComparisonReport:
    """Which tensors of two checkpoints are compared, and which are not, and why.

    ``only_in_reference``, ``only_in_tuned``: names on one side only.
    ``reshaped``: names with both shapes, and tensors of the vocabulary, queries or keys with rows in another order.
    ``ambiguous``: names that two stored tensors claim.
    ``padded``: vocabulary tensors of different lengths, compared on the rows that all of them have.
    ``left_out``: what is stored but is no weight: buffers, scales, the state of an optimiser.
    ``notes``: what else a reader should know: other architectures, an adapter's base, what stayed fused.
    ``conflicts``: notes that forbid a comparison unless it is asked for with ``strict=False``.
    """

    reference: str
    tuned: str
    compared: tuple[str, ...]
    only_in_reference: tuple[str, ...]
    only_in_tuned: tuple[str, ...]
    reshaped: tuple[str, ...]
    ambiguous: tuple[str, ...]
    padded: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    conflicts: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every weight of both checkpoints is compared."""
        return not self._problems()

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain lists and strings, for ``DataFrame.attrs`` and JSON."""
        return {name: value if isinstance(value, str) else list(value) for name, value in asdict(self).items()}

    def raise_if_incomplete(self) -> None:
        """Refuse a comparison that would leave something out.

        Raises CheckpointMismatchError when a name is on one side only, ambiguous, or of two shapes, or the checkpoints
        are of two architectures.
        """
        found = [f"{what}: {shortened(list(names))}" for what, names in self._problems()]
        if found:
            raise CheckpointMismatchError(
                f"{self.reference} and {self.tuned} are not one architecture. {'; '.join(found)}. Expected the same "
                f"names and shapes; pass the model that this one was trained from, or compare only what matches: "
                f"{ways('strict')}."
            )

    def _problems(self) -> list[tuple[str, tuple[str, ...]]]:
        problems = [  # pairs and no dict: both checkpoints may have one label
            (f"only in {self.reference}", self.only_in_reference),
            (f"only in {self.tuned}", self.only_in_tuned),
            ("of another shape", self.reshaped),
            ("ambiguous", self.ambiguous),
            ("in conflict", self.conflicts),
        ]
        return [(what, names) for what, names in problems if names]


def compare_opened(reference: OpenCheckpoint, tuned: OpenCheckpoint) -> ComparisonReport:
    """Compare names and shapes; of values, a few rows (:mod:`opdgeom_utils.checkpoints.sampled_rows`).

    They say whether an adapter stands on the reference, and whether rows of a vocabulary mean the same tokens in both.
    An adapter over a base whose embeddings are tied may untie them, and so may a model that says so; the other
    checkpoint's embedding is then its head too.

    >>> import torch
    >>> def opened(label: str, **shapes: tuple[int, ...]) -> OpenCheckpoint:
    ...     held = {n: StoredTensor(label, n, shape, torch.float32) for n, shape in shapes.items()}
    ...     return OpenCheckpoint(label, held)
    >>> report = compare_opened(opened("a", q=(2, 2), k=(2, 2)), opened("b", q=(2, 2), k=(1, 2), v=(1, 2)))
    >>> report.compared, report.reshaped, report.only_in_tuned
    (('q',), ('k is (2, 2) and (1, 2)',), ('v',))
    """
    reference, tuned = heads_apart(reference, tuned)
    before, after = reference.tensors, tuned.tensors
    both = [name for name in before if name in after]
    differ = [name for name in both if before[name].shape != after[name].shape]
    forms = {name: f"{name} is {before[name].shape} and {after[name].shape}" for name in differ}
    padded = [name for name in differ if _is_padding(name, before[name], after[name])]
    moved, remarks = _rows_moved(reference, tuned, [name for name in both if name not in differ or name in padded])
    forms |= {name: f"{name} has {text}" for name, text in moved.items()}
    padded = [name for name in padded if name not in moved]
    return ComparisonReport(
        reference=reference.label,
        tuned=tuned.label,
        compared=tuple(name for name in both if name not in forms or name in padded),
        only_in_reference=tuple(name for name in before if name not in after),
        only_in_tuned=tuple(name for name in after if name not in before),
        reshaped=tuple(text for name, text in forms.items() if name not in padded),
        ambiguous=tuple(dict.fromkeys(reference.ambiguous + tuned.ambiguous)),
        padded=tuple(forms[name] for name in padded),
        left_out=tuple(dict.fromkeys(reference.left_out + tuned.left_out)),
        notes=tuple(dict.fromkeys((*reference.notes, *tuned.notes, *remarks, *_shared_heads(reference, tuned)))),
        conflicts=_conflicts(reference, tuned),
    )


def matching_names(reference: OpenCheckpoint, tuned: OpenCheckpoint) -> list[str]:
    """Names of the tensors that both checkpoints hold, after proving that they hold the same ones.

    Raises CheckpointMismatchError when a name is on one side only, ambiguous, or its shapes differ.

    >>> import torch
    >>> one = OpenCheckpoint("a", {"w": StoredTensor("a", "w", (2, 2), torch.float32)})
    >>> matching_names(one, one)
    ['w']
    """
    report = compare_opened(reference, tuned)
    report.raise_if_incomplete()
    return [name for name in report.compared if name in reference.tensors and name in tuned.tensors]


def aligned(
    reference: OpenCheckpoint, tuned: Sequence[OpenCheckpoint], *, strict: bool
) -> tuple[OpenCheckpoint, list[OpenCheckpoint], list[ComparisonReport]]:
    """Cut a reference and its checkpoints down to the names and shapes that all have, and report each comparison.

    Raises CheckpointMismatchError when ``strict`` and something cannot be compared, or nothing can.
    """
    reference, *tuned = heads_apart(reference, *tuned)
    reports = [compare_opened(reference, checkpoint) for checkpoint in tuned]
    for report in reports:
        if strict:
            report.raise_if_incomplete()
    names = [name for name in reference.tensors if all(name in report.compared for report in reports)]
    if not names:
        raise CheckpointMismatchError(
            f"{reference.label} and {', '.join(report.tuned for report in reports)} have no tensor in common, expected "
            "checkpoints of one model; check the paths."
        )
    everyone = [reference, *tuned]
    rows = {
        name: min(checkpoint.tensors[name].shape[0] for checkpoint in everyone)
        for name in names
        if is_vocabulary(name) and reference.tensors[name].shape
    }
    cut = [replace(checkpoint, tensors=_common(checkpoint.tensors, names, rows)) for checkpoint in everyone]
    return cut[0], cut[1:], [replace(report, compared=tuple(names)) for report in reports]


def _common(
    tensors: Mapping[str, StoredTensor], names: Sequence[str], rows: Mapping[str, int]
) -> dict[str, StoredTensor]:
    """Keep some tensors, and of the vocabulary's the first rows."""
    return {
        name: part_of(tensors[name], slice(0, rows[name]))
        if name in rows and rows[name] < tensors[name].shape[0]
        else tensors[name]
        for name in names
    }


def _is_padding(name: str, one: StoredTensor, other: StoredTensor) -> bool:
    """Say whether two tensors differ only in a few rows at the end of the vocabulary."""
    if any(getattr(tensor.load, "open_ended", False) for tensor in (one, other)):
        return False  # its last slices may be missing
    return is_padding(name, one.shape, other.shape)


def _rows_moved(
    reference: OpenCheckpoint, tuned: OpenCheckpoint, names: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Say which tensors have their rows in another order, and which may have; a low rank moves none.

    Of queries and of keys the first matrix tells it for all.
    """
    moved, remarks = {}, []
    rotated = [name for name in names if layer_of(name) >= 0 and module_of(name) in ROTATED]
    first = {module_of(name): name for name in reversed(rotated) if len(reference.tensors[name].shape) == 2}
    names = [name for name in names if is_vocabulary(name)]
    for name in (*names, *first.values()):
        before, after = reference.tensors[name], tuned.tensors[name]
        if tuned.adapted and name in tuned.adapted and after.load is not None:
            continue
        order = order_of_rows(before, after)
        if order.moved and name in rotated:
            moved |= dict.fromkeys(rotated, TURNED)
        elif order.moved:
            moved[name] = f"rows in another order ({order.text})"
        elif name in rotated or not order.text:
            continue
        elif order.unrelated and before.shape != after.shape:
            moved[name] = f"rows of other tokens, {before.shape} and {after.shape} ({order.text})"
        elif order.unrelated or before.shape != after.shape:
            remarks.append(f"{name} is {before.shape} and {after.shape}: {order.text}; {PERHAPS_OTHERS}")
    words = next((moved[name] for name in names if name in moved), "")
    if words:  # a bias has one entry for each row
        moved |= {name: words for name in names if len(reference.tensors[name].shape) == 1}
    return moved, remarks


def _shared_heads(reference: OpenCheckpoint, tuned: OpenCheckpoint) -> list[str]:
    """Say which full model has its embedding as its head, beside one that has two."""
    said = []
    for one in (reference, tuned):
        embedding, head = embedding_and_head(one.tensors)
        if one.adapted is None and head in one.tensors and one.tensors[head] is one.tensors.get(embedding):
            said.append(f"{embedding} and {head} are one tensor in {one.label}, two in the other checkpoint")
    return said


def _conflicts(reference: OpenCheckpoint, tuned: OpenCheckpoint) -> tuple[str, ...]:
    found = []
    kinds = [_kinds(checkpoint.config) for checkpoint in (reference, tuned)]
    if all(kinds) and not set(kinds[0]) & set(kinds[1]):
        found.append(f"model_type is {kinds[0][-1]} and {kinds[1][-1]}")
    differing = other_values(reference, tuned) if tuned.adapted is not None else []
    if differing:
        found.append(
            f"the adapter does not change {shortened(differing)}, but its base has other values there than "
            f"{reference.label}: it was trained over another base"
        )
    taken = taken_from(reference, tuned) if tuned.adapted is not None else ""
    if taken:
        found.append(
            f"what the adapter adds to {taken} is a piece of the base's own matrix: its training began by taking that "
            "out of the base (as PiSSA does), though its settings do not say so. Give the adapter that was converted "
            "to plain LoRA, or the merged model"
        )
    return tuple(found)


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """Every type that a configuration states, of the whole and of its language model, less the ending of the latter."""
    stated = [config.get("model_type"), text_config(config).get("model_type")]
    return [kind.removesuffix("_text") for kind in stated if isinstance(kind, str)]
