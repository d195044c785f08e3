"""Mixtures where both objectives learn: a made mixture is placed where it was put, and each rule holds and fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from opdgeom_utils.chapters import learned_mixtures as learned
from opdgeom_utils.chapters import learned_variants as variants
from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.surviving import NO, UNTESTED, YES
from opdgeom_utils.measures.long_table import as_measures

BETWEEN = 0.4  # the cosine of OPD's update with RLVR's
# Factor from OPD's stable rank, OPD's share of the direction, share of OPD's progress, accuracy.
MADE = {
    "rlvr": (1.3, 0.0, -0.1, 0.66),
    "mix_50": (1.02, 0.88, 0.9, 0.65),
    "mix_05": (1.25, 0.3, 0.4, 0.6),
    "equal_mix_50": (1.05, 0.5, 0.6, 0.66),
}


def cosines_of(share: float) -> tuple[float, float]:
    """Cosines with OPD and with RLVR of a direction that is ``share`` of the one, by vectors."""
    opd, rlvr = np.array([1.0, 0.0]), np.array([BETWEEN, (1 - BETWEEN**2) ** 0.5])
    made = share * opd + (1 - share) * rlvr
    made = made / np.linalg.norm(made)
    return float(made @ opd), float(made @ rlvr)


def tables(
    seeds: int = 3, ratio: float = 9.0, gain: float = 0.16, null: float = 0.8, **made: tuple[float, ...]
) -> BookTables:
    """OPD has stable rank 7 and goes from 0.7 to 0.5; its seeds have a cosine of 0.7; all else is ``MADE``.

    ``null``: stable rank of random credit, as a share of OPD's.
    """
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        wobble = 0.001 * seed
        at = {"seed": seed, "step": 120}
        rows += [{"recipe": "opd", "seed": seed, "step": 0, "quantity": "teacher_distance", "value": 0.7}]
        rows += [{"recipe": "opd", "seed": seed, "step": 0, "quantity": "gradient_ratio", "value": ratio}]
        rows += [
            at | {"recipe": name, "other_recipe": name, "other_seed": other, "other_step": 120, "scope": "attention"}
            | {"quantity": "update_cosine", "value": 0.7 + wobble}
            for name in ("opd", "rlvr") for other in range(seeds) if other != seed
        ]  # fmt: skip
        for name, (factor, share, progress, accuracy) in ({"opd": (1.0, 1.0, 1.0, 0.64)} | MADE | made).items():
            own = at | {"recipe": name}
            rank = {"quantity": "stable_rank", "scope": "attention"}
            # The seeds of OPD are alike to 1%, so a run that is 2% away is further than another seed.
            rows += [
                own | rank | {"step": step, "value": (factor + wobble) * (7.0 + 0.05 * seed)} for step in (50, 120)
            ]
            rows += [own | {"quantity": "teacher_distance", "value": 0.7 - (progress + wobble) * 0.2}]
            rows += [own | {"quantity": "accuracy", "value": accuracy + wobble * (name != "opd")}]
            there = {"other_seed": seed, "other_step": 120, "quantity": "update_cosine", "scope": "attention"}
            for other, value in zip(("opd", "rlvr"), cosines_of(share + wobble * (name != "rlvr")), strict=True):
                rows += [own | there | {"other_recipe": other, "value": value}] if other != name else []
        credit = {"recipe": "opd_random_credit", "seed": seed, "quantity": "stable_rank", "scope": "attention"}
        rows += [credit | {"step": step, "value": null * (7.0 + 0.05 * seed)} for step in (50, 120)]
    ends = {"opd": 0.64, "rlvr": 0.5 + gain} | {n: (MADE | made)[n][3] for n in learned.MIXTURES if n in MADE | made}
    scores = [
        {"profile": "mixing", "recipe": name, "seed": s, "step": step, "family": "sum", "n_prompts": 64, "sampled": v}
        for name, end in ends.items() for s in range(seeds) for step, v in ((0, 0.5), (120, end + 0.001 * s))
    ]  # fmt: skip
    log = pd.DataFrame({"recipe": ["opd"], "seed": 0, "step": 1, "loss": 1.0})
    measures = as_measures([row | {"profile": "mixing"} for row in rows])
    return BookTables(pd.DataFrame(scores), log, pd.DataFrame(scores), "mixing", tuple(range(seeds)), "", measures)


def judged(made: BookTables) -> pd.DataFrame:
    """Apply the rules to made runs."""
    assert made.measures is not None
    return learned.answers(learned.numbers(made), learned.expected_shares(made.measures))


def said(made: BookTables) -> str:
    """Sentences of made runs."""
    assert made.measures is not None
    found, expected = learned.numbers(made), learned.expected_shares(made.measures)
    return learned.say(made, found, expected, learned.answers(found, expected))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.1])
def test_the_share_of_a_made_direction_is_the_one_it_was_made_with(share: float) -> None:
    assert learned.share_of(*cosines_of(share), BETWEEN) == pytest.approx(share)


def test_a_share_that_nothing_defines_is_no_number() -> None:
    assert np.isnan(learned.share_of(0.5, 0.5, 1.0))
    assert np.isnan(learned.share_of(0.3, -0.3, 0.4))


def test_shares_of_the_gradient_by_strength_and_by_weight() -> None:
    measures = tables().measures
    assert measures is not None
    expected = learned.expected_shares(measures)
    assert expected.loc["alpha 0.5"].tolist() == pytest.approx([0.9, 0.5])
    assert expected.loc["alpha 0.05"].tolist() == pytest.approx([0.45 / 1.4, 0.05])
    assert expected.loc["alpha 0.5 (equal norms)"].tolist() == [0.5, 0.5]


def test_every_rule_holds_or_fails_by_itself() -> None:
    found = judged(tables())
    assert found["way"].tolist() == ["OPD's", "RLVR's", "neither"]
    assert found["nearer"].tolist() == [learned.STRENGTH, learned.STRENGTH, ""]
    assert found["path"].tolist() == [YES, NO, YES]
    assert found["progress"].tolist() == [YES, NO, NO]
    assert found["gain"].tolist() == [NO, NO, YES]


def test_weight_is_told_from_strength() -> None:
    found = judged(tables(mix_50=(1.0, 0.52, 0.9, 0.65), mix_05=(1.0, 0.06, 0.9, 0.65)))
    assert found["nearer"].tolist() == [learned.WEIGHT, learned.WEIGHT, ""]


def test_near_the_path_counts_only_nearer_than_random_credit() -> None:
    assert judged(tables(null=1.01)).loc["alpha 0.5", "path"] != YES


def test_two_seeds_test_nothing() -> None:
    assert set(judged(tables(2)).to_numpy().ravel()) == {UNTESTED}
    assert said(tables(2)).startswith("What a mixture of objectives does where both learn is not tested")


def test_a_mixture_that_was_not_trained_is_not_testable() -> None:
    made = tables()
    assert made.measures is not None
    without = BookTables(**{**vars(made), "measures": made.measures[made.measures["recipe"] != "mix_05"]})
    assert judged(without).loc["alpha 0.05"].unique().tolist() == [UNTESTED]


def test_words_follow_the_numbers() -> None:
    lead, numbers = said(tables()).split("\n")
    assert lead == (
        "Where both objectives learn, the strength of a gradient counts in a mixture, beside its weight: at half OPD "
        "and half RLVR OPD's share of the direction is 0.88, where strength predicts 0.90 and weight 0.50. With both "
        "gradients at one norm it is 0.50, where either predicts 0.50; of 5% OPD it is 0.30 (strength: 0.32). RLVR "
        "leaves OPD's stable-rank path; shown to stay on it: alpha 0.5 and alpha 0.5 (equal norms); shown to leave it: "
        "alpha 0.05."
    )
    assert "0.88 (0.88 to 0.88) at alpha 0.5, where strength gives 0.90 and alpha 0.50; 0.30" in numbers
    assert "RLVR has gained 16.1 points" in numbers
    assert said(tables(gain=0.0)).startswith("Where they learned less than was asked")
    assert "is not shown to count in a mixture" in said(tables(equal_mix_50=(1.05, 0.88, 0.6, 0.66)))
    assert "path does not tell: RLVR itself" in said(tables(rlvr=(1.0, 0.0, -0.1, 0.66)))


def test_objectives_of_one_direction_place_no_mixture() -> None:
    made = tables()
    assert made.measures is not None
    seeds = (made.measures["quantity"] == "update_cosine") & (made.measures["recipe"] == made.measures["other_recipe"])
    measures = made.measures.assign(value=made.measures["value"].where(~seeds, 0.41 - 0.02 * made.measures["seed"]))
    alike = BookTables(**{**vars(made), "measures": measures})
    assert "not told apart by direction" in said(alike)
    assert set(judged(alike)[["way", "share", "nearer"]].to_numpy().ravel()) == {learned.UNPLACED}


def test_the_panels_of_the_figure() -> None:
    found = learned.numbers(tables())
    wanted = {variants.PATH, variants.DIRECTION, learned.WITH_RLVR, learned.SHARE, variants.PROGRESS, variants.ACCURACY}
    assert set(found["panel"]) == wanted
    shown = learned.shown(judged(tables()), pd.DataFrame(learned.expected_shares(tables().measures)))
    assert shown.columns.tolist()[:5] == ["mixture", "goes whose way", "OPD's share", "by strength", "by alpha"]
