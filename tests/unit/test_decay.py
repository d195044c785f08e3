"""Weight decay in the spectral shift: what a matrix's row gets, and the words for what is left."""

import pandas as pd
import pytest

from opdgeom_utils import metrics
from opdgeom_utils.chapters import decay
from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.measures.noise import rates_of
from opdgeom_utils.recipes import load_recipe


def tables(shift: dict[str, float], shuffled: float) -> BookTables:
    """Two seeds of each run at the end of OPD's 400 updates of the toy, one attention matrix each."""
    row = {"profile": "toy", "step": 400, "module": "q_proj", "n_entries": 100, "reference_norm": 10.0}
    row |= {"update_norm": 0.5, "update_sparsity": 0.1, decay.SHUFFLED: shuffled}
    rows = [
        row | {"recipe": name, "seed": seed, decay.DRIFT: own * (1 + seed / 1e6)}
        for name, own in shift.items()
        for seed in (-1, 1)
    ]
    frame = pd.DataFrame(rows)
    return BookTables(frame, frame, frame, profile="toy", seeds=(-1, 1), source="")


def test_a_row_gets_the_decay_of_its_own_recipe_and_update() -> None:
    """Rate 1e-4, decay .1, 400 updates: every weight loses 1 - (1 - 1e-5) ** 400 of itself."""
    rows = decay.with_decay(tables({"opd": 0.006}, 0.004)).geometry
    lost = 1 - (1 - 1e-5) ** 400
    assert rows["decay"].tolist() == pytest.approx([lost] * 2)
    assert rows["undecayed"].tolist() == pytest.approx([metrics.drift_without_decay(0.006, 0.05, lost)] * 2, rel=1e-5)
    recipe = load_recipe("opd", "toy")
    assert metrics.decay_shrinkage(rates_of(recipe), weight_decay=recipe.weight_decay) == pytest.approx(lost)


def test_what_is_left_is_said_by_the_intervals() -> None:
    lost = 1 - (1 - 1e-5) ** 400
    alone = metrics.drift_without_decay(0.006, 0.05, lost)
    found = decay.beside_shuffle(
        decay.with_decay(tables({"opd": 0.006, "rlvr": 0.006}, alone)), "final", ["opd", "rlvr"]
    )
    assert [interval.mean for interval in found["ratio_rest"]] == pytest.approx([1.0, 1.0], rel=1e-5)
    lead, numbers = decay.say(found, "final").split("\n")
    assert lead.startswith("Take weight decay away, and size explains the spectral shift: with it")
    assert "decay alone would shift the spectrum by 0.00399 (OPD, which shows 0.006)" in numbers
    half = decay.beside_shuffle(
        decay.with_decay(tables({"opd": 0.006, "rlvr": 0.012}, alone / 2)), "final", ["opd", "rlvr"]
    )
    assert decay.say(half, "final").splitlines()[0].endswith("from each other, without it they are told apart.")
    assert list(decay.shown(half)["run"]) == ["OPD", "RLVR"]


def test_tables_without_a_shuffled_null_say_nothing() -> None:
    made = tables({"opd": 0.006}, 0.004)
    bare = BookTables(*[made.geometry.drop(columns=decay.SHUFFLED)] * 3, profile="toy", seeds=(-1, 1), source="")
    assert decay.say(decay.beside_shuffle(decay.with_decay(bare), "final", ["opd"]), "final") == ""


def test_the_papers_recipes_have_a_decay_of_their_own() -> None:
    """OPD: 299 updates at 1e-6 with a decay of .1."""
    assert f"{1 - (1 - 1e-7) ** 299:.1e} (OPD; printed: of the order of 1e-04)" in decay.of_the_paper()


def test_null_objectives_are_told_apart_place_by_place() -> None:
    """One sentence where all places say one thing, and one for each where they do not."""
    shifts = {"opd": 0.006, "rlvr": 0.012, "opd_random_credit": 0.006, "rlvr_random_reward": 0.012}
    made = decay.with_decay(tables(shifts, 0.001))
    found = decay.beside_shuffle(made, "final", list(shifts))
    lead = decay.say(found, "final").splitlines()[0]
    alike = "OPD is not told apart from random credit and RLVR is not told apart from random reward"
    assert lead.endswith(f" Without it, at their ends, {alike}.")
    both = decay.say(found, "final", {"equal_updates": found}).splitlines()[0]
    assert both.endswith(f" Without it, at their ends and after as many updates, {alike}.")
    other = decay.beside_shuffle(
        decay.with_decay(tables(shifts | {"opd_random_credit": 0.02}, 0.001)), "final", list(shifts)
    )
    apart = decay.say(found, "final", {"equal_updates": other}).splitlines()[0]
    assert f"at their ends, {alike}. Without it, after as many updates, OPD is told apart from" in apart
