"""The first regime beside its null objectives: counts, intervals and sentences from made-up runs."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from scipy import stats

from opdgeom_utils.chapters import first_nulls
from opdgeom_utils.claims import matching
from opdgeom_utils.results import Tables

SEEDS = {0: -1.0, 1: 0.0, 2: 1.0}  # how far a seed lies from its recipe's mean, in hundredths


def tables(profile: str, means: dict[str, float], **moved: float) -> Tables:
    """Three seeds of each recipe after 40 and 80 updates, all diagnostics alike but for those named in ``moved``."""
    rows = []
    for recipe, mean in means.items():
        for seed, off in SEEDS.items():
            for step in (40, 80):
                row = {"profile": profile, "recipe": recipe, "seed": seed, "step": step, "module": "q_proj"}
                row |= {"n_entries": 100, "update_norm": 1.0, "reference_norm": 10.0}
                values = dict.fromkeys(matching.METRICS, mean)
                if recipe == "opd_random_credit":
                    values |= moved
                rows.append(row | {metric: value + off / 100 for metric, value in values.items()})
    frame = pd.DataFrame(rows)
    return Tables(frame, frame, frame)


ARCHIVED = {"opd": 1.0, "rlvr": 2.0, "control_sft": 3.0}
NULLS = {"opd": 1.0, "opd_random_credit": 1.0, "rlvr_random_reward": 4.0}


def test_a_null_is_told_apart_where_the_interval_of_the_difference_leaves_out_zero() -> None:
    """A difference of 0.2; both variances are 1e-4 with two degrees of freedom each, so Welch has four."""
    found = first_nulls.beside(tables("a", ARCHIVED), tables("b", NULLS, normalized_spectral_shift=1.2))
    pair = found[(found["run"] == "OPD") & (found["updates"] == 40)].set_index("metric")
    reach = float(stats.t.ppf(1 - 0.05 / 6 / 2, 4)) * math.sqrt(1e-4 / 3 + 1e-4 / 3)
    shift = pair.loc["normalized_spectral_shift"]
    assert shift["low"] == pytest.approx(-0.2 - reach)
    assert shift["high"] == pytest.approx(-0.2 + reach)
    assert pair["apart"].sum() == 1
    assert pair["nearer"].all()
    rlvr = found[found["run"] == "RLVR"]
    assert (rlvr["updates"] == 80).all()
    assert rlvr["apart"].all()
    assert not rlvr["nearer"].any()  # 2 from random reward, 1 from control SFT


@pytest.mark.parametrize(("now", "inside"), [(1.0, 36), (1.3, 0)])
def test_todays_code_is_held_against_the_range_of_one_more_seed(now: float, inside: int) -> None:
    """Three archived seeds with a deviation of 0.01 reach 9.92 * 0.01 * sqrt(4/3) = 0.115 at 99%."""
    assert first_nulls.same_world(tables("a", ARCHIVED), tables("b", NULLS | {"opd": now})) == (inside, 36)


def test_the_finding_names_what_lies_beside_what() -> None:
    archived = tables("a", ARCHIVED)
    far = first_nulls.say(first_nulls.beside(archived, tables("b", NULLS)), (35, 36), 1.0)
    assert far.startswith("In the first regime not every run lies where a run with nothing to learn does.\n")
    assert "in 35 of 36 numbers: so compare with care: the code has changed" in far
    near = first_nulls.beside(archived, tables("b", NULLS | {"rlvr_random_reward": 2.0}))
    said = first_nulls.say(near, (36, 36), 1.0)
    assert said.startswith(
        "In the first regime OPD and RLVR lie, by the paper's diagnostics, where runs with nothing to learn"
    )
    assert "Random reward has 1.00 to 1.00 times RLVR's numbers after 80 updates, and is told apart by 0 of 6" in said
    shown = first_nulls.shown(near, "OPD", 40)
    assert shown["difference"].tolist() == ["not told apart"] * 6
    assert list(shown)[1:3] == ["OPD", "random credit"]


def test_another_regime_has_no_such_sentence() -> None:
    assert first_nulls.beside_regime("first_regime", 13) == ""


def test_direction_is_said_to_tell_only_where_it_does() -> None:
    archived, nulls = first_nulls.both()
    assert first_nulls.say_direction(archived, nulls).startswith(" Direction tells them apart, by means: two seeds")
    assert nulls.measures is not None
    for value in (0.9, 0.35):  # above all of them; and under some by less than a tenth
        alike = replace(nulls, measures=nulls.measures.assign(value=value))
        assert first_nulls.say_direction(archived, alike).startswith(" By direction, by means: ")
