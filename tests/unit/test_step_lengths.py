"""Whether progress is the length of the held steps: the line, and rules that hold and fail, on numbers made for it."""

from __future__ import annotations

import pandas as pd
import pytest

from opdgeom_utils.chapters import confined, step_lengths
from opdgeom_utils.chapters.learned_variants import OPEN
from opdgeom_utils.chapters.surviving import NO, UNTESTED, YES
from tests.unit.test_confined import tables, with_lengths

SEEN = {"opd_project_update": 0.4, "opd_project_update_random": 0.1, "opd_project_update_k16": 0.6}
BLIND = ("opd_project_update_random_k108", "opd_project_update_complement", "opd_project_update_complement_k16")


def found(**kept: float) -> pd.DataFrame:
    """Steps of 0.4, 0.1 and 0.6 keep as much, so the line is the diagonal; unseen spaces have steps of a half."""
    made = with_lengths(
        tables(**SEEN, **kept), **{name: length**2 for name, length in {**SEEN, **dict.fromkeys(kept, 0.5)}.items()}
    )
    return step_lengths.points(made, confined.progress(made))


def test_the_line_goes_through_what_it_has_seen() -> None:
    rows = found(**dict.fromkeys(BLIND, 0.9))
    assert rows.loc[~rows["blind"], "space"].nunique() == len(SEEN)
    assert step_lengths.line(rows) == pytest.approx((0.0, 1.0), abs=0.002)  # seeds are a thousandth apart


def test_every_rule_holds_or_fails_by_itself() -> None:
    """On the line, above it, and within a tenth of its edge; the early space keeps 60%, all but it 65% or 55%."""
    rules = step_lengths.answers(found(**dict(zip(BLIND, (0.52, 0.7, 0.65), strict=True))))
    assert rules["holds"].tolist() == [YES, NO, NO, NO]
    assert rules["found"].tolist()[1].startswith("+20%")
    rules = step_lengths.answers(found(**dict(zip(BLIND, (0.52, 0.599, 0.55), strict=True))))
    assert rules["holds"].tolist() == [YES, OPEN, YES, YES]


def test_spaces_that_were_not_trained_test_nothing() -> None:
    rows = found()
    assert set(step_lengths.answers(rows)["holds"]) == {UNTESTED}
    assert step_lengths.say(rows).endswith("of one line; in others it is not tested.")


def test_words_follow_the_numbers() -> None:
    said = step_lengths.say(found(**dict(zip(BLIND, (0.52, 0.7, 0.55), strict=True))))
    assert said == (
        "Whatever the space the progress of a run whose step is held does not only follow the length of its steps: "
        "over 3 spaces it lies within 0% of one line, and three that the line had not seen within 20% (by the rule, "
        "on it random space of 108 and all but the early space of 16; off it all but the early space). So the early "
        "space is needed: held in its 16 directions OPD keeps 60%, held in all but them 55% (+5% (+5% to +5%)), and "
        "in all but its leading four 70%."
    )
    said = step_lengths.say(found(**dict.fromkeys(BLIND, 0.52)))
    assert said.startswith(
        "Whatever the space the progress of a run whose step is held follows the length of its steps"
    )
    said = step_lengths.say(found(**dict(zip(BLIND, (0.52, 0.599, 0.65), strict=True))))
    assert said.startswith("By means the progress of a run whose step is held does not only follow the length")
    assert "not shown to be on it all but the early space; off it all but the early space of 16" in said
    assert "So the early space is not shown to be needed: " in said
