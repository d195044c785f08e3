"""Drawings of the measures: what stands in them is what the measure is."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd
import pytest
import torch

from opdgeom_utils import charts
from opdgeom_utils.errors import MetricInputError
from tests.unit.test_charts import BY_HAND, FOUR_WEIGHTS, TILT


def tables(chart: alt.TopLevelMixin) -> list[pd.DataFrame]:
    return [pd.DataFrame(rows) for rows in chart.to_dict()["datasets"].values()]


def test_the_grid_is_that_of_bf16_and_a_step_lands_on_its_nearest_line() -> None:
    """Above 1 the lines are 1/128 apart, below it 1/256: eight significant digits."""
    grid, marks = sorted(tables(charts.drawn_grid(FOUR_WEIGHTS, FOUR_WEIGHTS + 0.003)), key=lambda t: "series" in t)
    at_one = grid.loc[grid["weight"] == "1", "distance"].sort_values()
    at_half = grid.loc[grid["weight"] == "0.5", "distance"].sort_values()
    assert at_one[at_one >= 0].tolist() == [0.0, 2**-7]
    assert at_half[at_half >= 0].tolist() == [0.0, 2**-8, 2**-7]
    assert np.diff(grid.loc[grid["weight"] == "0.015625", "distance"].sort_values())[-1] == 2**-13
    for weight, own in marks.groupby("weight"):
        places, lines = own.set_index("series")["distance"], grid.loc[grid["weight"] == weight, "distance"]
        nearest = lines.iloc[(lines - places["exact step"]).abs().argmin()]
        assert places["after rounding"] == pytest.approx(nearest, abs=1e-12)


def test_the_arc_spans_the_largest_angle() -> None:
    """Turned about the first direction by thirty degrees, seen both planes of a side differ, or do not."""
    spokes = [t for t in tables(charts.drawn_planes(BY_HAND, TILT @ BY_HAND)) if {"series", "place"} <= set(t)]
    flat = [t for t in spokes if set(t["series"]) == {"before", "after"} and len(t) == 4]
    assert len(flat) == 2
    left, right = (t.loc[t["place"] == 1].set_index("series")[["x", "y"]] for t in flat)
    assert np.hypot(*(left.loc["before"] - left.loc["after"])) > 0.1
    assert right.loc["before"].to_numpy() == pytest.approx(right.loc["after"].to_numpy(), abs=1e-5)


def test_planes_need_three_dimensions() -> None:
    with pytest.raises(MetricInputError, match=r"expected \(3, 3\), found \(2, 2\)"):
        charts.drawn_planes(torch.eye(2), torch.eye(2))


def test_the_box_has_the_area_of_the_bars() -> None:
    drawn = tables(charts.drawn_ranks({"SFT": torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0]))}))
    bars = next(t for t in drawn if "left" in t)
    box = next(t for t in drawn if "place" in t and len(t) == 3)
    assert bars["value"].sum() == pytest.approx(box["x"].max()) == 1.5


def test_shadows_are_at_right_angles() -> None:
    ends = max(tables(charts.drawn_shadow(torch.tensor([[1.0, 0.0], [0.0, 5.0]]), torch.tensor([3.0, 4.0]))), key=len)
    at = ends.loc[ends["x"].ne(0) | ends["y"].ne(0)].set_index("line")[["x", "y"]]
    for row in ("0", "1"):
        rest = at.loc[f"row of the update {row}"] - at.loc[f"its shadow {row}"]
        assert rest @ at.loc[f"its shadow {row}"] == pytest.approx(0, abs=1e-6)
