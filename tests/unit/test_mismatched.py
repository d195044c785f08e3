"""SFT beside mismatched demonstrations: what tells them apart, and what a difference from OPD needs."""

import dataclasses
import itertools

import pandas as pd
import pytest

from opdgeom_utils import tasks
from opdgeom_utils.chapters import mismatched
from opdgeom_utils.claims import matching
from opdgeom_utils.measures.long_table import DEFAULTS
from opdgeom_utils.results import Tables
from opdgeom_utils.worlds.mismatched_families import Tasks

SHIFT, LEFT = "normalized_spectral_shift", "left_angle_mean_deg"
MEANS = {"opd": 1.0, "control_sft": 1.0, "control_sft_mismatched": 1.0, "sft": 3.0, "sft_mismatched": 3.0}
LIKE = {"control_sft": 0.6, "control_sft_mismatched": 0.6, "opd_random_credit": 0.4}
COSINES = {"control_sft": 0.95, "control_sft_mismatched": 0.8, "sft": 0.85, "sft_mismatched": 0.86}
COSINES |= {"opd_random_credit": 0.0}


def profile_of(recipe: str) -> str:
    return mismatched.PROFILE if recipe in mismatched.NULLS.values() else "toy"


def tables(moved: dict[tuple[str, str], float] | None = None, *, gain: float = -0.4) -> Tables:
    """Three seeds a recipe, a hundredth apart; every diagnostic is the recipe's mean but for those ``moved``."""
    rows, scores, shared = [], [], []
    for recipe, mean in MEANS.items():
        for seed, off in enumerate((-0.01, 0.0, 0.01)):
            for step in (200, 400):
                row = {"profile": profile_of(recipe), "recipe": recipe, "seed": seed, "step": step, "module": "q_proj"}
                values = {m: (moved or {}).get((recipe, m), mean) + off for m in matching.METRICS}
                rows.append(row | {"n_entries": 100, "update_norm": step / 200, "reference_norm": 10.0} | values)
                own = {"family": "sum", "n_prompts": 4, "sampled": 0.5 + gain * step / 400}
                scores += [row | own, row | own | {"step": 0, "sampled": 0.5}]
    for recipe, cosine in COSINES.items():
        row = DEFAULTS | {"profile": profile_of(recipe), "recipe": recipe, "other_recipe": recipe, "step": 400}
        row |= {"quantity": "update_cosine", "scope": "attention", "seed": 0, "other_seed": 1, "value": cosine}
        shared.append(row)
    for recipe, like in LIKE.items():
        for seed, off in enumerate((-0.01, 0.0, 0.01)):
            for step, side in itertools.product((80, 400), ("right", "left")):
                row = DEFAULTS | {"profile": profile_of(recipe), "recipe": recipe, "seed": seed, "step": step, "k": 4}
                row |= {"quantity": "sim_to_end", "scope": "attention", "side": side}
                shared.append(row | {"value": like + off if step == 80 else 1.0})
    accuracy = pd.DataFrame(scores).drop_duplicates(["recipe", "seed", "step"])
    return Tables(pd.DataFrame(rows), accuracy, accuracy, pd.DataFrame(shared))


def test_a_demonstration_is_another_problems() -> None:
    mixture = {"sum": [2, 3], "gcd": [3, 4], "prog": [2, 3]}
    shown, true = (kind().draw(mixture, 200, "0:3") for kind in (Tasks, tasks.Tasks))
    assert [(e.prompt, e.family, e.level) for e in shown] == [(e.prompt, e.family, e.level) for e in true]
    wrong = [tasks.verify(example.prompt, example.completion) for example in shown]
    assert sum(wrong) < 20  # by chance, where few answers are possible
    assert all(tasks.verify(example.prompt, example.completion) for example in true)
    assert shown == Tasks().draw(mixture, 200, "0:3")
    assert Tasks().held_out(mixture, 4) == tasks.Tasks().held_out(mixture, 4)


def test_a_difference_from_opd_needs_learning_where_the_null_lacks_it() -> None:
    far = {("control_sft", SHIFT): 2.0, ("control_sft", LEFT): 2.0, ("control_sft_mismatched", LEFT): 1.8}
    found = mismatched.needs(tables(far)).set_index("metric")
    assert found["apart"].sum() == 2
    assert found["needs"].to_dict() == dict.fromkeys(matching.METRICS, "") | {
        SHIFT: "it takes learning",
        LEFT: "no learning is needed",
    }
    far[("control_sft_mismatched", LEFT)] = 0.2
    assert mismatched.needs(tables(far)).set_index("metric").loc[LEFT, "needs"] == "the null lies beyond OPD"
    held = mismatched.beside(tables(far)).set_index(["run", "place", "metric"])["apart"]
    assert held[held].index.tolist() == [("control_sft", p, m) for p in mismatched.PLACES for m in (LEFT, SHIFT)]


@pytest.mark.parametrize(
    ("gain", "verb"), [(-0.4, "gains nothing (from 50% to 10% right)"), (0.1, "still learns (from")]
)
def test_the_finding_says_what_the_nulls_are_and_what_they_show(gain: float, verb: str) -> None:
    made = tables({("control_sft", SHIFT): 2.0, ("sft_mismatched", SHIFT): 3.3}, gain=gain)
    lead, rest = mismatched.say(made).split("\n")
    assert lead.startswith(f"SFT on the solutions of other problems {verb}")
    assert "ends with 1.00 to 1.10 times SFT's numbers; 1 of 6 diagnostics tell the two apart there, 1 at equal" in lead
    assert "two of its seeds is 0.86, of SFT's 0.85: agreement of seeds alone is no sign that a run got better" in lead
    assert "1 of 6 diagnostics tell it from control SFT after as many updates, 1 at equal norm." in rest
    assert "a cosine of 0.80 (control SFT 0.95, random credit 0.00)" in rest
    assert "At equal norm 1 of 6 tell OPD from control SFT (normalized spectral shift: it takes learning)." in rest
    shared = made.measures
    assert shared is not None
    other = shared.assign(value=shared["value"].where(shared["quantity"] != "update_cosine", 0.1))
    assert "its seeds do not agree" in mismatched.say(dataclasses.replace(made, measures=other))
    assert "At equal norm 0 of 6 tell OPD from control SFT." in mismatched.say(tables(gain=gain))


def test_one_seed_tells_nothing_apart() -> None:
    made = tables({("control_sft", SHIFT): 2.0})
    one = made.geometry[(made.geometry["seed"] == 0) | ~made.geometry["recipe"].isin(mismatched.NULLS.values())]
    assert not mismatched.beside(dataclasses.replace(made, geometry=one))["apart"].any()


def test_the_table_names_what_each_difference_needs() -> None:
    shown = mismatched.shown(tables({("control_sft", SHIFT): 2.0})).set_index("diagnostic")
    assert shown["mismatched control"].tolist() == shown["OPD"].tolist()
    assert shown["apart from OPD"].tolist().count("no") == 5
    assert "yes: it takes learning" in shown["apart from OPD"].tolist()


@pytest.mark.parametrize(
    ("like", "above", "below", "lesson"),
    [
        (0.6, True, False, "So a run need not gain accuracy to lock."),
        (0.5, True, True, "So it does not lock as a run that learns does."),
        (0.4, False, True, "So it does not lock as a run that learns does."),
    ],
)
def test_locking_is_held_against_control_sft_and_random_credit(
    monkeypatch: pytest.MonkeyPatch, like: float, above: bool, below: bool, lesson: str
) -> None:
    monkeypatch.setitem(LIKE, "control_sft_mismatched", like)
    found = mismatched.locking(tables())
    assert found["above"].tolist() == [above] * 2
    assert found["below"].tolist() == [below] * 2
    said = mismatched.say(tables())
    assert f"{like:.2f} on the side of the inputs (control SFT 0.60, random credit 0.40)" in said
    assert f"{lesson} Seeds of the nulls: 3 of control SFT's, 3 of SFT's." in said
