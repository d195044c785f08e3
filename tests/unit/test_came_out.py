"""What comes out of the chapters on control: the first sentence follows the numbers and the verdicts."""

import pandas as pd
import pytest

from opdgeom_utils.chapters import came_out
from opdgeom_utils.chapters.control import GATE, OTHER_SEED


def kept(random: float) -> pd.DataFrame:
    rows = [("opd", space, seed, value + 0.01 * seed) for space, value in
            (("early space", 0.8), ("random space", random)) for seed in (0, 1, 2)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["free", "space", "seed", "kept"])
    return table.assign(quantity="teacher_distance", sweep="space")


@pytest.mark.parametrize(("random", "needed"), [(0.3, True), (0.8, False)])
def test_the_early_space_is_needed_only_if_a_random_one_keeps_less(random: float, needed: bool) -> None:
    inside = pd.DataFrame({"free": ["opd"], "space": ["early space"], "sweep": ["space"], "inside": [0.75]})
    said = came_out.early_space(kept(random), inside)
    assert said.startswith("Held in its early space, OPD keeps 81% of its progress")
    assert ("not shown to be needed" not in said) is needed
    assert said.endswith("25% of OPD's update leaves it.")


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (0.0, "Neither fewer tokens nor another writer is shown"),
        (0.5, "another seed of OPD is teacher writes (seed by seed"),
    ],
)
def test_paths_are_told_apart_seed_by_seed(offset: float, words: str) -> None:
    rows = [("top 50%", 0.01), ("teacher writes", 0.1 + offset), (OTHER_SEED, 0.1), ("RLVR", 0.2)]
    gaps = pd.DataFrame([(r, s, v + 0.001 * s) for r, v in rows for s in (0, 1)], columns=["row", "seed", "value"])
    card = pd.DataFrame({"id": [GATE], "verdict": ["reproduced"]})
    said = came_out.tokens(gaps, ["top 50%"], ["teacher writes"], card)
    assert words in said
    assert said.splitlines()[0].endswith("the ruler can tell objectives apart.")
