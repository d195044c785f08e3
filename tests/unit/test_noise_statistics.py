"""Runs beside noise, in worlds where both numbers are given: what counts as within a margin, and as beyond."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from opdgeom_utils.claims import noise_statistics, verdict
from opdgeom_utils.claims.look_up import LookUp, Sources
from opdgeom_utils.claims.schema import PAPER, load_claims
from opdgeom_utils.errors import CheckpointNotFoundError
from opdgeom_utils.recipes import load_recipe
from tests.claim_world import JITTER, hand_tables, look_up

LEDGER = {claim.id: claim for claim in load_claims(PAPER / "claims_noise.yaml")}
SEEN = "sparsity_is_that_of_noise_seen"
NOISE = {"sft": 0.1, "opd": 0.4, "rlvr": 0.7, "opd_random_credit": 0.4}


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise's sparsity of each recipe, given outright; its own test computes it."""
    monkeypatch.setattr(noise_statistics, "noise_sparsity_of", lambda recipe, profile: NOISE[recipe])


def gaps(**by: float) -> dict[str, dict[str, list[float]]]:
    """Runs whose sparsity is so far above noise's, five seeds close together."""
    return {name: {"update_sparsity": [NOISE[name] + gap + j for j in JITTER]} for name, gap in by.items()}


@pytest.mark.parametrize(
    ("sft", "opd", "rlvr", "word"),
    [
        (0.0, 0.02, -0.02, "reproduced"),
        (0.0, 0.04, 0.0, "partly"),
        (-0.04, 0.0, 0.05, "partly"),
        (0.05, -0.05, 0.5, "the opposite"),
        (0.0299, 0.0, 0.0, "partly"),  # within, but not by more than the seeds differ
    ],
)
def test_within_the_margin_on_both_sides_or_not(sft: float, opd: float, rlvr: float, word: str) -> None:
    claim = LEDGER[SEEN]
    found = verdict(claim, hand_tables(gaps(sft=sft, opd=opd, rlvr=rlvr)))
    assert found.verdict == word, found.reason


def test_room_on_each_side_is_the_margin_less_the_gap() -> None:
    look = look_up(gaps(opd=0.01))
    (found,) = noise_statistics.within_noise(look, recipes=["opd"], margin=0.03)
    above, below = (np.array(part.values) for part in found.parts)
    assert above == pytest.approx(0.02 - np.array(JITTER))
    assert below == pytest.approx(0.04 + np.array(JITTER))


@pytest.mark.parametrize("gap", [-0.2, 0.05])
def test_beyond_is_what_noise_leaves_unchanged_and_the_run_does_not(gap: float) -> None:
    (found,) = noise_statistics.beyond_noise(look_up(gaps(opd=gap)), recipes=["opd"])
    assert np.array(found.parts[0].values) == pytest.approx(-gap - np.array(JITTER))


@pytest.mark.parametrize("statistic", [noise_statistics.beyond_noise, noise_statistics.within_noise])
def test_a_recipe_with_too_few_prompts_has_no_number(statistic, monkeypatch: pytest.MonkeyPatch) -> None:
    own = load_recipe("opd", "first_regime")
    more = {"margin": 0.03} if statistic is noise_statistics.within_noise else {}
    monkeypatch.setattr(noise_statistics, "load_recipe", lambda *names: replace(own, prompts_per_update=64))
    look = look_up(gaps(opd=0.0))
    (found,) = statistic(look, recipes=["opd"], prompts=512, **more)
    assert all(math.isnan(value) for part in found.parts for value in part.values)
    assert look.problems == ["OPD takes 64 prompts an update; the claim is about 512 and more"]
    look = look_up(gaps(opd=0.0))
    (found,) = statistic(look, recipes=["opd"], prompts=64, **more)
    assert not any(math.isnan(value) for part in found.parts for value in part.values)


def test_a_recipe_that_no_profile_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NOISE, "nothing", 0.5)
    look = look_up(gaps(nothing=0.0))
    (found,) = noise_statistics.beyond_noise(look, recipes=["nothing"])
    assert np.isnan(found.parts[0].values).all()
    assert look.problems == ["profile first_regime has no recipe nothing"]


def test_every_claim_of_the_ledger_has_its_statistic_here() -> None:
    own = [claim for claim in LEDGER.values() if claim.condition != "agreement"]  # those are contrasts of measures
    assert {claim.statistic for claim in own} == set(noise_statistics.STATISTICS)
    assert set(noise_statistics.STATISTICS) == {"within_noise", "beyond_noise"}


def test_noise_that_the_tables_keep_is_read_and_no_weights_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of committed tables has no run folders, and so not the weights that a run began at."""

    def gone(recipe: str, profile: str) -> float:
        raise CheckpointNotFoundError(f"no weights of {recipe} in {profile}")

    monkeypatch.setattr(noise_statistics, "noise_sparsity_of", gone)
    look = look_up(gaps(opd=0.0))
    (lost,) = noise_statistics.beyond_noise(look, recipes=["opd"])
    assert all(map(math.isnan, lost.parts[0].values))
    assert "not on this machine" in look.problems[0]
    rows = {"recipe": "opd", "quantity": "noise_sparsity", "null": "", "value": [0.65, 0.1], "scope": ["all", "layers"]}
    look = LookUp(Sources(replace(look.sources.tables, measures=pd.DataFrame(rows))), look.scope, look.seeds)
    (found,) = noise_statistics.beyond_noise(look, recipes=["opd"])
    assert np.array(found.parts[0].values) == pytest.approx(0.65 - NOISE["opd"] - np.array(JITTER))
