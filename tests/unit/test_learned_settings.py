"""Settings where OPD learns: a made setting lies where it was put, and each rule holds and fails by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from opdgeom_utils.chapters import control, one_curve
from opdgeom_utils.chapters import learned_settings as settings
from opdgeom_utils.chapters import learned_variants as learned
from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.surviving import NO, UNTESTED, YES
from opdgeom_utils.claims import matching
from opdgeom_utils.measures.long_table import as_measures

AT = 120
# Factor of OPD's six diagnostics, factor of its stable rank, cosine with it, share of the distance closed.
MADE = {
    "opd_random_credit": (1.20, 0.7, 0.0, 0.0),
    "opd_mathematics": (1.05, 1.02, 0.6, 0.4),
    "opd_code": (1.50, 1.30, 0.1, 0.4),
    "opd_student_small": (1.05, 1.02, 0.9, 0.05),
}
OTHERS = {"rlvr": 1.30, "control_sft": 0.70, "rlvr_random_reward": 1.1, "control_sft_mismatched": 3.0}


def geometry(profile: str, made: dict[str, float], seeds: int) -> pd.DataFrame:
    """One attention matrix a run; OPD's diagnostics are 0.1, and each seed's a thousandth larger than the last's."""
    rows = [
        {"profile": profile, "recipe": name, "seed": seed, "step": AT, "module": "q_proj", "n_entries": 100}
        | dict.fromkeys(matching.METRICS, 0.1 * factor * (1 + 0.001 * seed))
        | {"update_norm": 1.0, "reference_norm": 9.0}
        for name, factor in ({"opd": 1.0} | made).items() for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def tables(seeds: int = 3, **made: tuple[float, float, float, float]) -> BookTables:
    """Return runs of ``MADE``, of which ``made`` replaces some; seeds of OPD have a cosine of 0.7."""
    rows, logs, runs = [], [], MADE | made
    attention = {"scope": "attention", "step": AT}
    for seed in range(seeds):
        for name, (_, rank, cosine, closed) in ({"opd": (1.0, 1.0, 1.0, 0.4)} | runs).items():
            own = {"recipe": name, "seed": seed}
            wobble = 1 + 0.001 * seed * (name != "opd")
            rows += [
                own | attention | {"quantity": "stable_rank", "step": s, "value": 7 * rank * wobble} for s in (50, AT)
            ]
            rows += [own | {"step": AT, "quantity": "accuracy", "value": 0.6}]
            there = {"other_seed": seed, "other_step": AT, "other_recipe": "opd", "quantity": "update_cosine"}
            rows += [own | attention | there | {"value": cosine - 0.001 * seed}] if name != "opd" else []
            loss = np.r_[np.ones(60), np.full(60, 1 - closed)]
            logs.append(pd.DataFrame({"recipe": name, "seed": seed, "step": range(1, AT + 1), "loss": loss}))
        rows += [
            {"recipe": "opd", "seed": seed, "other_recipe": "opd", "other_seed": o, "other_step": AT, "value": 0.7}
            | attention | {"quantity": "update_cosine"} for o in range(seeds) if o != seed
        ]  # fmt: skip
    rows += [
        {"recipe": "opd", "seed": s, "step": 0, "quantity": "teacher_distance", "value": 0.7} for s in range(seeds)
    ]
    rows += [
        {"recipe": "opd", "seed": s, "step": AT, "quantity": "teacher_distance", "value": 0.5} for s in range(seeds)
    ]
    rows += [{"recipe": "opd_top25", "seed": 0, "quantity": "stable_rank", "value": 7.0} | attention]
    measures = as_measures([row | {"profile": "rq3"} for row in rows])
    where = geometry("rq3", {name: values[0] for name, values in runs.items()}, seeds)
    return BookTables(where, pd.concat(logs), where, "rq3", tuple(range(seeds)), "", measures)


def toy(seeds: int = 5, **made: float) -> BookTables:
    """Return the toy's other objectives."""
    where = geometry("toy", OTHERS | made, seeds)
    return BookTables(where, where, where, "toy", tuple(range(seeds)), "")


def judged(made: BookTables, beside: BookTables | None = None) -> pd.DataFrame:
    """Answers, a row per setting and a column per rule."""
    found = settings.answers(made, settings.numbers(made, beside or toy()))
    return found.pivot_table(index="run", columns="asked", values="holds", aggfunc="first")


def test_a_place_is_the_mean_log_ratio_to_opd_of_the_same_seed() -> None:
    found = settings.places(tables(), ["opd_code"], AT).groupby(["panel", "row"])["value"].agg("mean")
    assert found[settings.PLACE, "code only"] == pytest.approx(np.log(1.5))
    nexts = [np.log(1.001), np.log(1.002 / 1.001), np.log(1.002)]  # seeds 1, 2 and 0 beside 0, 1 and 2
    assert found[settings.PLACE, control.OTHER_SEED] == pytest.approx(np.mean(nexts))
    assert found[settings.SPARSITY, "code only"] == pytest.approx(0.15 * 1.001)


def test_the_toys_opd_is_not_mixed_with_that_of_the_settings() -> None:
    found = settings.numbers(tables(), toy())
    assert found.groupby(["panel", "row"]).size()[settings.SPARSITY, "OPD"] == 3


def test_every_rule_holds_or_fails_by_itself() -> None:
    found = judged(tables())
    near, far, small = (found.loc[run] for run in ("mathematics only", "code only", "student of two layers"))
    assert (near[settings.PLACE], far[settings.PLACE]) == (YES, NO)
    assert (near[settings.SPARSITY], far[settings.SPARSITY]) == (YES, NO)  # between 0.07 and 0.13
    assert (near[learned.DIRECTION], far[learned.DIRECTION]) == (YES, NO)  # over and under 0.35
    assert (near[learned.PATH], far[learned.PATH]) == (YES, NO)
    assert (near[settings.OWN], small[settings.OWN]) == (YES, NO)


def test_no_cosine_is_taken_of_a_student_of_another_size() -> None:
    assert judged(tables()).loc["student of two layers", learned.DIRECTION] == UNTESTED
    shown = learned.shown(settings.answers(tables(), settings.numbers(tables(), toy())), settings.RULES)
    assert shown.set_index("run").loc["student of two layers", "goes OPD's way"] == f"{UNTESTED}: -"


def test_near_is_nearer_than_random_credit_too() -> None:
    """A setting that lies further than a run with nothing to learn is not shown to be near, nor far."""
    assert judged(tables(opd_mathematics=(1.25, 1.0, 0.6, 0.4))).loc["mathematics only", settings.PLACE] == learned.OPEN


def test_two_seeds_test_nothing() -> None:
    assert set(judged(tables(2)).to_numpy().ravel()) == {UNTESTED}
    made = tables(2)
    found = settings.numbers(made, toy())
    assert settings.say(made, found, settings.answers(made, found)).startswith("What another teacher, student or task")


def test_words_follow_the_numbers() -> None:
    made = tables()
    found = settings.numbers(made, toy())
    lead, numbers = settings.say(made, found, settings.answers(made, found)).split("\n")
    assert lead == (
        "Where OPD learns, OPD's place is shown to be moved less than by RLVR, control SFT and random credit by "
        "mathematics only and student of two layers and further than by RLVR or control SFT by code only. By means "
        "(log ratio over six diagnostics) another seed moves it 0.00, random credit 0.18, RLVR 0.26 and control SFT "
        "0.36. Between another seed and RLVR: mathematics only 0.05 and student of two layers 0.05. As far as RLVR or "
        "further: code only 0.41. Shown to move it further than another seed: mathematics only, code only and student "
        "of two layers. (Learned less than was asked: student of two layers.) By update sparsity 2 of 3 lie between "
        "control SFT and RLVR after as many updates (random credit and random reward too). That they go its way holds "
        "of: mathematics only; not code only. That they stay on its path holds of: mathematics only and student of "
        "two layers; not code only."
    )
    assert "code only 0.41" in numbers  # log 1.5
    assert numbers.endswith(" Seeds: 3.")
    near = tables(opd_code=(1.001, 1.02, 0.6, 0.4))
    found = settings.numbers(near, toy())
    said = settings.say(near, found, settings.answers(near, found))
    assert "further than another seed: mathematics only and student of two layers. (Learned less" in said


def test_a_run_off_the_curve_is_found_and_one_on_it_is_not() -> None:
    """Rungs of OPD at coherences that grow with their norm; a setting on their line, and one of twice its height."""
    made = tables()
    rungs = dict(zip(one_curve.LADDER, np.linspace(1.5, 3.0, len(one_curve.LADDER)), strict=True))
    walk = 3e-3
    rows = [
        {"profile": profile, "recipe": name, "seed": seed, "step": AT, "module": "q_proj", "n_entries": 10_000}
        | dict.fromkeys([*one_curve.OF_GEOMETRY, *matching.METRICS], value) | {"update_norm": length * walk * 100}
        | {"reference_norm": 9.0}
        for profile, name, length, value in (
            *(("toy", rung, at, at) for rung, at in rungs.items()), ("toy", "opd_random_credit", 1.0, 1.0),
            ("rq3", "opd_mathematics", 2.0, 2.0), ("rq3", "opd_code", 2.0, 4.0),
        ) for seed in range(3)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    of = {profile: table[table["profile"] == profile] for profile in ("toy", "rq3")}
    found = settings.on_the_curve(replace(made, geometry=of["rq3"]), replace(toy(), geometry=of["toy"]))
    counts = settings.curve_counts(found)
    assert counts["mathematics only"] == (0, len(one_curve.OF_GEOMETRY))
    assert counts["code only"] == (len(one_curve.OF_GEOMETRY),) * 2
    said = settings.say_curve(found)
    assert said.endswith(
        "1 of 2 kinds on it.\nThat is, on it: mathematics only; off it, in so many statistics: code only (7 of 7)."
    )
    shown = settings.curve_table(found).set_index("run")
    assert shown["on the curve"].to_dict() == {"mathematics only": "yes", "code only": "no"}
