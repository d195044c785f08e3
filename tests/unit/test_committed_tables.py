"""Tables of a chapter: cut to the seeds asked for, and said in words what they rest on."""

from dataclasses import replace

import pandas as pd
import pytest

from opdgeom_utils.chapters import committed_tables
from opdgeom_utils.claims import load_claims
from opdgeom_utils.errors import NotebookParameterError, UnknownProfileError
from opdgeom_utils.results import Tables


def tables() -> Tables:
    frame = pd.DataFrame({"recipe": ["opd"] * 3 + ["sft"] * 3, "seed": [0, 1, 2] * 2, "x": range(6)})
    return Tables(frame, frame, frame)


def test_only_the_seeds_asked_for_stay_in_every_table() -> None:
    kept = committed_tables.only_seeds(tables(), "first_regime", [2, 0], "committed tables")
    assert kept.seeds == (0, 2)
    assert sorted(set(kept.geometry["seed"])) == [0, 2]
    assert [len(t) for t in (kept.geometry, kept.training, kept.accuracy)] == [4, 4, 4]
    assert kept.source == "Profile first_regime, 2 recipes, 2 seeds, committed tables."


def test_smoke_says_that_it_is_no_evidence() -> None:
    assert committed_tables.only_seeds(tables(), "smoke", [1], "runs measured live").source.endswith("not evidence.")


@pytest.mark.parametrize("seeds", [[], [99], [0, 99]])
def test_a_seed_that_the_profile_lacks_is_an_error(seeds: list[int]) -> None:
    with pytest.raises(NotebookParameterError, match=r"has \[0, 1, 2\]"):
        committed_tables.tables_for("smoke", seeds)


def test_unknown_profile_is_named() -> None:
    with pytest.raises(UnknownProfileError, match="expected one of confined, first_regime"):
        committed_tables.tables_for("no-such-profile", [1])


def test_a_claim_is_judged_by_the_regime_that_it_names() -> None:
    ledger = [
        claim for claim in load_claims() if claim.id in ("sparsity_is_that_of_noise_seen", "random_credit_is_noise")
    ]
    assert {claim.profile for claim in ledger} == {"first_regime", "toy"}
    found = {}
    for profile, seeds in (("first_regime", [0, 1, 2, 3, 4]), ("toy", [0, 1, 2])):
        card = committed_tables.published_card(committed_tables.tables_for(profile, seeds), ledger)
        assert card["id"].tolist() == [claim.id for claim in ledger]
        found[profile] = card.set_index("id")["verdict"].to_dict()
    assert found["first_regime"] == found["toy"]
    assert set(found["toy"].values()) == {"reproduced"}


def test_tables_of_no_regime_judge_every_claim_themselves() -> None:
    ledger = [claim for claim in load_claims() if claim.id == "random_credit_is_noise"]
    toy = replace(committed_tables.tables_for("toy", [0, 1, 2]), profile="another")
    none = replace(toy, geometry=toy.geometry[toy.geometry["recipe"] == "opd"])
    assert committed_tables.published_card(none, ledger)["verdict"].tolist() == ["not testable"]
