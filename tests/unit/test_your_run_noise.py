"""What a report says of noise: its numbers and its words, on tables where the answer is known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from opdgeom_utils import diagnose_pair, metrics
from opdgeom_utils.chapters import your_run_noise
from opdgeom_utils.chapters.your_run_noise import NOISE, noise_caveats, noise_of, noise_reading, with_noise
from opdgeom_utils.charts import hero
from opdgeom_utils.diagnose.matrix_rows import IDENTICAL

PLACES = {
    "left_angle_mean_deg": 0.5, "right_angle_mean_deg": 0.25, "normalized_spectral_shift": 1e-4,
    "principal_overlap": 0.28, "low_magnitude_overlap": 0.55,
}  # fmt: skip


def table(ratio: float = 1.0, sparsity: float = 0.5, expected: float = 0.5, dtype: str = "float32") -> pd.DataFrame:
    rows = {"step": [1, 5, 5, 5], "module": ["q_proj", "q_proj", "o_proj", "norm"], "shape": ["2x2", "2x2", "4x2", "4"]}
    frame = pd.DataFrame(rows | {"n_entries": [4, 4, 8, 4], "dtype": f"float32->{dtype}", "update_sparsity": sparsity})
    frame = frame.assign(walk_ratio=ratio, coherence=(ratio**2 - 1) / 99, noise_sparsity=expected)
    frame = frame.assign(**{f"{name}_noise": value for name, value in PLACES.items()})
    frame.loc[3, ["walk_ratio", "coherence", *(f"{name}_noise" for name in PLACES)]] = np.nan
    frame.loc[0, "walk_ratio"] = 99.0  # an earlier checkpoint is not read
    return frame


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(40.0, "not as told"), (4.0, "further than noise"), (1.05, "as far as noise goes"), (0.5, "less far than noise")],
)
def test_length_follows_its_rule(ratio: float, words: str) -> None:
    said = noise_reading(table(ratio))
    assert f"{ratio:g} times as far" in said[0]
    assert words in said[0]


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (0.4, "More entries changed than noise"),
        (0.505, "what noise at this rate gives"),
        (0.7, "Fewer entries changed"),
    ],
)
def test_sparsity_follows_its_rule(own: float, words: str) -> None:
    said = noise_reading(table(sparsity=own))
    assert f"Predicted by noise: 50.0% unchanged; measured: {own:.1%}" in said[1]
    assert words in said[1]


def test_rows_are_weighted_by_entries_and_squares_are_averaged() -> None:
    rows = table()
    rows.loc[1, ["walk_ratio", "noise_sparsity"]] = 4.0, 0.2
    found = noise_of(rows)
    assert found["walk_ratio"] == pytest.approx(math.sqrt((4 * 16 + 8 * 1) / 12))
    assert found["noise_sparsity"] == pytest.approx((4 * 0.2 + 8 * 0.5 + 4 * 0.5) / 16)
    assert found["left_angle_mean_deg_noise"] == 0.5


def test_noise_has_a_place_on_the_map_beside_the_run() -> None:
    ends = pd.DataFrame([{"recipe": "mine", "seed": 0, "update_sparsity": 0.4, **PLACES}])
    drawn = with_noise(ends, table(expected=0.75))
    assert drawn["recipe"].tolist() == ["mine", NOISE]
    assert drawn.loc[1, "update_sparsity"] == 0.75
    assert drawn.loc[1, list(PLACES)].tolist() == list(PLACES.values())
    assert f"{NOISE}: 75.0% unchanged" in hero(drawn).to_dict()["description"]
    assert "low-magnitude overlap 55.0%" in noise_reading(table())[2]


def test_without_a_schedule_nothing_is_said() -> None:
    rows = table().drop(columns=["walk_ratio", "coherence", "noise_sparsity"])
    ends = pd.DataFrame([{"recipe": "mine", "seed": 0}])
    assert noise_reading(rows) == noise_caveats(rows) == []
    assert with_noise(ends, rows) is ends
    assert noise_of(table().assign(noise_sparsity=np.nan)) == {}


def test_rounded_weights_are_a_caveat() -> None:
    amounts, merged = noise_caveats(table())
    assert "amounts and no directions" in amounts
    assert "merged from a LoRA" in merged
    assert any("as they were stored, rounded" in said for said in noise_caveats(table(dtype="bfloat16")))


def walked_on_noise(updates: int, smaller: float) -> tuple[torch.nn.Linear, pd.DataFrame]:
    """Start and table of a layer after updates of Adam on noise, its weights so many times smaller than normal."""
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.nn.Linear(96, 128, bias=False) for _ in range(2))
    before.weight.data.copy_((torch.randn(128, 96, generator=generator) / smaller).bfloat16())
    after.weight.data.copy_(before.weight.data)
    running = torch.optim.Adam(after.parameters(), lr=1e-5)
    for _ in range(updates):
        after.weight.grad = torch.randn(128, 96, generator=generator)
        running.step()
    return before, diagnose_pair(before, after, k=8, learning_rates=[1e-5] * updates).assign(step=updates)


def test_a_walk_that_torch_made_is_read_as_one() -> None:
    """Weights after 40 updates of Adam on noise: one walk long, as sparse and as turned as noise was said to be."""
    before, measured = walked_on_noise(40, 30)
    found, row = noise_of(measured), measured.iloc[0]
    assert found["walk_ratio"] == pytest.approx(1, abs=0.03)
    assert found["coherence"] == pytest.approx(0, abs=0.01)
    assert found["noise_sparsity"] == pytest.approx(row["update_sparsity"], abs=0.01)
    for name in your_run_noise.PLACED:
        assert found[f"{name}_noise"] == pytest.approx(row[name], rel=0.3)  # one draw
    place = metrics.noise_place(before.weight.detach(), [1e-5] * 40, k=8)
    assert found["low_magnitude_overlap_noise"] == pytest.approx(place.low_magnitude_overlap)
    assert found["principal_overlap_noise"] == pytest.approx(place.principal_overlap)


def test_noise_in_a_few_matrices_is_read_as_noise_and_the_others_as_not_trained() -> None:
    """Only the MLP walks: what did not move says nothing of the length, and counts apart in sparsity."""
    rows = table().assign(name=["q", "q", "o", "norm"], note=["", IDENTICAL, IDENTICAL, IDENTICAL])
    rows.loc[rows["note"] != "", ["walk_ratio", "coherence"]] = 0.0, -0.01
    walked = rows.iloc[:1].assign(step=5, name="up", module="up_proj", walk_ratio=1.0, coherence=0.0, n_entries=16)
    said = noise_reading(pd.concat([rows, walked], ignore_index=True))
    assert said[0].startswith("**Beside noise: 1 times as far, over one matrix.**")
    assert "as far as noise goes" in said[0]
    assert "50.0% of the entries lie in tensors that have not changed at all; over the others 50.0% is" in said[1]
    assert noise_reading(rows.iloc[1:]) == []


def test_a_few_updates_of_noise_are_not_read_as_more_than_noise() -> None:
    """Five updates of pure noise: moves are not normal yet, so the prediction is too high by more than the rule."""
    _, measured = walked_on_noise(5, 50)
    found = noise_of(measured)
    assert found["update_sparsity"] < found["noise_sparsity"] - 0.01
    assert "not judged" in noise_reading(measured)[1]
    straight = 25 / metrics.noise_walk_rms([1.0] * 5) ** 2
    assert found["straight"] == pytest.approx(straight, rel=1e-6)


def test_one_update_cannot_go_further_than_its_rate() -> None:
    rows = table(10.0).assign(coherence=np.nan)
    assert "further than these rates could carry" in noise_reading(rows)[0]


def test_rounding_is_named_where_it_shortens_or_makes_the_update() -> None:
    assert "rounding hid its smaller steps" in noise_reading(table(0.5, dtype="bfloat16"))[0]
    assert "rounding" not in noise_reading(table(0.5))[0]
    off_grid = table(8.0, dtype="bfloat16").assign(stable_rank=3.0, stable_rank_bf16=2.0)
    assert "not judged: rounding moved the weights too" in noise_reading(off_grid)[0]
