"""Every published figure, drawn from small seeded tables: it compiles, and its description has the table's numbers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest
import torch
import vl_convert

from opdgeom_utils import charts, claims
from opdgeom_utils.chapters import control, update_path
from opdgeom_utils.chapters.book_renderer import chart_description, static_spec
from opdgeom_utils.charts.palette import PALETTE, VERDICT_COLOURS
from opdgeom_utils.charts.toy_world import wilson_interval
from opdgeom_utils.claims import matching
from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.intervals import seed_interval
from opdgeom_utils.scopes import MODULES
from tests.chart_tables import (
    accuracy,
    card,
    credit_table,
    ends,
    family_table,
    geometry,
    held,
    held_steps,
    ladder,
    long_table,
    noise_curve,
    noise_marks,
    noise_overlaps,
    noise_runs,
    noise_walks,
    places,
    rounding_panels,
    seed_ranges,
    spectra,
    sweep,
)
from tests.control_world import measures, mixed_alignment

ETAS = (0.0, 1e-5, 1e-4, 1e-3, 3e-3, 0.0039, 0.005, 0.01, 0.02, 0.05, 0.1)
ALPHAS = (0.05, 0.1, 0.3, 0.5)
FOUR_WEIGHTS = torch.tensor([[1.0, 0.5], [1 / 64, 4.0]])
MASKED = torch.tensor([[8.0, 1.0], [1.0, 0.125]])
BY_HAND = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
#: A turn by thirty degrees about the first direction.
TILT = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.75**0.5, -0.5], [0.0, 0.5, 0.75**0.5]])
FIGURES: dict[str, Callable[[], alt.TopLevelMixin]] = {
    "accuracy_by_family": lambda: charts.accuracy_by_family(family_table()),
    "training_curves": lambda: charts.training_curves(accuracy()),
    "credit_per_token": lambda: charts.credit_per_token(credit_table()),
    "sparsity_comparison": lambda: charts.sparsity_comparison(ends(), claims.load_reported()),
    "rotation_comparison": lambda: charts.rotation_comparison(ends(), claims.load_reported()),
    "spectral_drift": lambda: charts.spectral_drift(ends(), claims.load_reported()),
    "mask_overlap": lambda: charts.mask_overlap(ends(), claims.load_reported()),
    "localisation": lambda: charts.localisation(geometry(), recipes=["sft", "opd", "rlvr"]),
    "localisation_null": lambda: charts.localisation(geometry(), "principal_overlap", against="shuffled"),
    "localisation_mean": lambda: charts.localisation(geometry(), "low_magnitude_overlap", against="mean"),
    "matched_controls": lambda: charts.matched_controls(places(), "update_sparsity"),
    "matched_controls_log": lambda: charts.matched_controls(places(), "normalized_spectral_shift"),
    "metric_against_norm": lambda: charts.metric_against_norm(matching.summarise(geometry()), "update_sparsity"),
    "metric_against_norm_log": lambda: charts.metric_against_norm(
        matching.summarise(geometry()), "left_angle_mean_deg", norm="relative_norm"
    ),
    "rounding": lambda: charts.metric_against_norm(
        matching.summarise(geometry()), "stable_rank", norm="relative_norm", null="bf16"
    ),
    "eta_sweep": lambda: charts.eta_sweep(sweep(eta=ETAS)),
    "alpha_rank_sweep": lambda: charts.alpha_rank_sweep(sweep(alpha=ALPHAS, rank=(16, 64, 128))),
    "alpha_sweep": lambda: charts.alpha_rank_sweep(sweep(alpha=ALPHAS)),
    "variant_paths": lambda: charts.variant_paths(control.path_table(measures(), control.WRITERS)),
    "variant_strips": lambda: charts.variant_strips(control.overlap_table(measures(), [*control.WRITERS]), "overlap"),
    "setting_sweep": lambda: charts.setting_sweep(
        mixed_alignment(), "overlap", setting="alpha", order=["0.75", "0.5", "0.25", "0.05", "0.01"]
    ),
    "scorecard": lambda: charts.scorecard(card()),
    "scorecard_path": lambda: charts.scorecard(card("rq2")),
    "scorecard_control": lambda: charts.scorecard(card("rq3")),
    "hero": lambda: charts.hero(ends(), claims.load_reported()),
    "run_trajectory": lambda: charts.run_trajectory(matching.summarise(geometry())),
    "kept_by_space": lambda: charts.kept_by_space(held(), "accuracy"),
    "kept_by_length": lambda: charts.kept_by_length(held_steps(), 0.1, 0.9),
    "inside_shares": lambda: charts.inside_shares(held()),
    "kept_along": lambda: charts.kept_along(held().query("free == 'opd'"), "rank", "rank", "accuracy"),
    "kept_along_share": lambda: charts.kept_along(held().query("free == 'opd'"), "share", "part", "accuracy"),
    "update_paths": lambda: charts.update_paths(
        {q: update_path.path_curves(long_table(), q) for q in ("stable_rank", "update_norm")}
    ),
    "against_nulls": lambda: charts.against_nulls(update_path.both_sides(long_table(), "sim_to_end", 4), "sim_to_end"),
    "rounding_floor": lambda: charts.rounding_floor(rounding_panels()),
    "shared_spaces": lambda: charts.shared_spaces(
        {side: update_path.shared_rows(long_table(), side, 4) for side in ("right", "left")}
    ),
    "path_slider": lambda: charts.path_slider(
        spectra(), {"stable rank": update_path.path_curves(long_table(), "stable_rank")}
    ),
    "settings_against_seeds": lambda: charts.settings_against_seeds(seed_ranges()),
    "walks": lambda: charts.walks(noise_walks()),
    "beside_noise": lambda: charts.beside_noise(noise_runs()),
    "gated_overlaps": lambda: charts.gated_overlaps(noise_overlaps()),
    "noise_sliders": lambda: charts.noise_sliders(noise_curve(), noise_marks()),
    "one_curve": lambda: charts.one_curve(ladder(), ladder().assign(statistic="stable rank")),
    "drawn_grid": lambda: charts.drawn_grid(FOUR_WEIGHTS, FOUR_WEIGHTS + 0.003),
    "drawn_planes": lambda: charts.drawn_planes(BY_HAND, TILT @ BY_HAND),
    "drawn_spectra": lambda: charts.drawn_spectra(BY_HAND, BY_HAND - torch.eye(3)),
    "drawn_shadow": lambda: charts.drawn_shadow(torch.tensor([[1.0, 0.0], [0.0, 5.0]]), torch.tensor([3.0, 4.0])),
    "drawn_ranks": lambda: charts.drawn_ranks({"SFT": BY_HAND, "shuffled null": 2 * torch.eye(3)}),
    "drawn_mask": lambda: charts.drawn_mask(MASKED, MASKED + 0.005, alpha=0.25),
}


def mean_of(metric: str, recipe: str = "opd") -> float:
    table = ends()
    return float(table.loc[table["recipe"] == recipe, metric].mean())


def held_mean(recipe: str, column: str, seed: int | None = None) -> float:
    table = held()
    own = table.loc[(table["recipe"] == recipe) & ((table["seed"] == seed) | (seed is None)), column]
    return float(own.mean())


def last_accuracy() -> float:
    table = accuracy()
    return float(table.loc[(table["recipe"] == "rlvr") & (table["step"] == 100), "sampled"].mean())


def last_rank(recipe: str) -> float:
    table = control.pick(measures(), recipe=recipe, quantity="stable_rank", step=40)
    return float(table["value"].mean())


def place_mean(place: str, recipe: str, metric: str) -> float:
    table = places()
    return float(table.loc[(table["place"] == place) & (table["recipe"] == recipe), metric].mean())


def highest_cell(metric: str = "update_sparsity", less: str | None = None) -> float:
    """Largest of RLVR's cells, each the mean over seeds, at the last step."""
    table = geometry()
    last = table.loc[(table["step"] == 100) & (table["recipe"] == "rlvr")]
    means = last.groupby(["layer", "module"])[[metric, f"{metric}_shuffled"]].mean()
    level = {"mean": means[metric].mean(), "shuffled": means[f"{metric}_shuffled"]}.get(str(less), 0.0)
    return float((means[metric] - level).max())


def swept(column: str, **settings: float) -> float:
    """Mean of OPD over seeds at one setting of the sweep."""
    grid = {"eta": ETAS} if "eta" in settings else {"alpha": ALPHAS}
    grid |= {"rank": (16, 64, 128)} if "rank" in settings else {}
    table = sweep(**grid)
    for name, value in settings.items():
        table = table.loc[table[name] == value]
    return float(table.loc[table["recipe"] == "opd", column].mean())


def path_mean(quantity: str, step: int, null: str = "", side: str = "", recipe: str = "opd") -> float:
    """Mean over seeds of the long table, without the code of tables and figures."""
    table = long_table()
    same = (table["quantity"] == quantity) & (table["step"] == step) & (table["null"] == null)
    return float(table.loc[same & (table["side"] == side) & (table["recipe"] == recipe), "value"].mean())


def between(share: float, before: int, after: int) -> float:
    """OPD's stable rank between two of its checkpoints, by the number of updates."""
    part = (100 * share - before) / (after - before)
    return (1 - part) * path_mean("stable_rank", before) + part * path_mean("stable_rank", after)


#: A number of each figure's table, computed here without the figure's code, as its description must print it.
NUMBERS: dict[str, Callable[[], str]] = {
    "accuracy_by_family": lambda: "base 0%, anchor 50%, teacher 100%",
    "training_curves": lambda: f"RLVR {last_accuracy():.1%} (95% interval",
    "credit_per_token": lambda: "OPD: from -4.00 to +0.25. RLVR: -0.50 on each.",
    "settings_against_seeds": lambda: "Outside: code only update sparsity +1.5.",
    "sparsity_comparison": lambda: f"OPD {mean_of('update_sparsity'):.1%} (95% interval",
    "rotation_comparison": lambda: f"OPD {mean_of('left_angle_mean_deg'):.3g} degrees (95% interval",
    "spectral_drift": lambda: f"shuffled null {mean_of('normalized_spectral_shift_shuffled'):.3g}, random null",
    "mask_overlap": lambda: f"shuffled null {mean_of('low_magnitude_overlap_shuffled'):.1%}, paper 53.59%",
    "localisation": lambda: f"highest {highest_cell():.1%} in",
    "localisation_null": lambda: f"highest {highest_cell('principal_overlap', 'shuffled'):.1%} in",
    "localisation_mean": lambda: f"highest {highest_cell('low_magnitude_overlap', 'mean'):.1%} in",
    "matched_controls": lambda: f"{place_mean('equal norm', 'control_sft', 'update_sparsity'):.1%} (95% interval",
    "matched_controls_log": lambda: f"OPD {place_mean('equal updates', 'opd', 'normalized_spectral_shift'):.3g} (95%",
    "metric_against_norm": lambda: f"RLVR {mean_of('update_sparsity', 'rlvr'):.1%} (95% interval",
    "metric_against_norm_log": lambda: f"OPD {mean_of('left_angle_mean_deg'):.3g} degrees (95% interval",
    "rounding": lambda: f"as bf16 shows it {mean_of('stable_rank_bf16'):.3g}",
    "eta_sweep": lambda: f"OPD {swept('update_sparsity', eta=0.1):.1%} (95% interval",
    "alpha_rank_sweep": lambda: f"OPD {2 * swept('principal_overlap', alpha=0.5, rank=128):.3g} (95% interval",
    "alpha_sweep": lambda: f"OPD {2 * swept('principal_overlap', alpha=0.5):.3g} (95% interval",
    "variant_paths": lambda: f"this variant {last_rank('opd_base_writes'):.3g} (one seed)",
    "variant_strips": lambda: "teacher writes 0.61 (95% interval 0.585 to 0.635, 3 seeds)",  # 0.60, 0.61 and 0.62
    "setting_sweep": lambda: "with RLVR: raw at 0.75 0.5 (95% interval",
    "scorecard": lambda: "7 reproduced, 7 partly, 7 not decided, 7 the opposite and 6 not testable",
    "scorecard_path": lambda: "8 reproduced, 8 partly, 7 not decided, 7 the opposite and 7 not testable",
    "scorecard_control": lambda: "5 reproduced, 5 partly, 4 not decided, 4 the opposite and 4 not testable",
    "hero": lambda: f"OPD: {mean_of('update_sparsity'):.1%} unchanged",
    "run_trajectory": lambda: f"as bf16 shows it {mean_of('stable_rank_bf16'):.3g}",
    "kept_by_space": lambda: f"SFT: early space {held_mean('sft_early space', 'kept'):.1%} (95% interval",
    "kept_by_length": lambda: "all but the early space: 71% kept, steps 80% as long",  # .7 and .72; .8 and .81
    "inside_shares": lambda: (
        f"OPD, left side: early space {held_mean('opd_early space, left side', 'inside'):.1%} (one"
    ),
    "kept_along": lambda: f"seed 2 at 4: {held_mean('opd_early space', 'kept', 2):.0%}",
    "kept_along_share": lambda: f"seed 1 at 10%: {held_mean('opd_random space', 'kept', 1):.0%}",
    "update_paths": lambda: f"OPD {path_mean('stable_rank', 100):.3g} (95% interval",
    "against_nulls": lambda: f"real inputs {path_mean('sim_to_end', 10, 'activations', 'left'):.3g} (95% interval",
    "rounding_floor": lambda: f"as bf16 shows it {path_mean('stable_rank_bf16', 2):.3g} (95% interval",
    "shared_spaces": lambda: "other seeds 0.52 (95% interval",
    "walks": lambda: "drunkards 2.5, straight 4",  # 5 and 0 from the start
    "beside_noise": lambda: "OPD 80.0%, measured 50.0%; RLVR 75.0%, measured 77.0%",
    "gated_overlaps": lambda: "two seeds: measured 60.0%, noise through bf16 55.0%, chance 37.0%",
    "one_curve": lambda: "RLVR: coherence 50.00% to 52.00%",
    "noise_sliders": lambda: "Measured visible shares: other 85.0%, SFT 92.0%, OPD 48.0%",
    "path_slider": lambda: f"OPD {between(0.2, 10, 40):.3g}",
    "drawn_grid": lambda: "at 1 it vanishes; from 0.5 it lands 0.0039 away; from 0.015625 it lands 0.0031 away; at 4",
    "drawn_planes": lambda: "left, outputs 30.0 degrees; right, inputs 0.0 degrees",
    "drawn_spectra": lambda: f"from 3 to 2; the changes together are {(3 / 14) ** 0.5:.2%}",  # (3, 2, 1) to (2, 1, 0)
    "drawn_shadow": lambda: f"36%, 64%; together {(0.36 + 16) / 26:.0%}",
    "drawn_ranks": lambda: f"SFT {14 / 9:.3g} of 3; shuffled null 3 of 3",
    "drawn_mask": lambda: "in 3 of 4 entries, 1 of them among the 1 smallest: an overlap of 33%; chance 25%",
}
#: Figures whose colour is a number.
MAPS = ("localisation", "localisation_null", "localisation_mean", "settings_against_seeds")
#: Figures of tables of numbers; a scorecard is one of words, a drawing is given whole matrices.
MEASURED = [name for name in FIGURES if not name.startswith(("scorecard", "drawn"))]
#: Float columns that say which number a row holds.
KEYS = ("step", "eta", "alpha", "rank", "share", "matched_at")
NARROW = 190
SIDES = 170


@cache
def spec_of(name: str) -> dict[str, Any]:
    return FIGURES[name]().to_dict()


def parts(node: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a specification."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from parts(child)


def rows_of(spec: dict[str, Any]) -> pd.DataFrame:
    """The largest of a specification's data sets."""
    return pd.DataFrame(max(spec["datasets"].values(), key=len))


def test_every_public_figure_is_drawn_here() -> None:
    assert set(charts.__all__) <= set(FIGURES)
    assert set(NUMBERS) == set(FIGURES)
    assert all(callable(getattr(charts, name)) for name in charts.__all__)


@pytest.mark.parametrize("name", FIGURES)
def test_figure_compiles_and_says_its_numbers(name: str) -> None:
    spec = spec_of(name)
    svg = vl_convert.vegalite_to_svg(static_spec(spec))
    assert NUMBERS[name]() in chart_description(spec)
    assert "NaN" not in svg
    assert "undefined" not in svg


@pytest.mark.parametrize("name", FIGURES)
def test_figure_follows_its_box_and_fits_a_phone(name: str) -> None:
    """One view follows its container; with a plot 190 pixels wide, labels and legend add at most 170."""
    spec = spec_of(name)
    if "facet" in spec or "concat" in spec:
        panels = spec["concat"] if "concat" in spec else [spec["spec"]]
        assert all(isinstance(panel["width"], int) for panel in panels)
        return
    assert spec["width"] == "container"
    svg = ET.fromstring(vl_convert.vegalite_to_svg({**static_spec(spec), "width": NARROW}))
    assert float(svg.attrib["width"]) <= NARROW + SIDES


@pytest.mark.parametrize("name", FIGURES)
def test_legends_stand_on_top_and_marks_have_tooltips(name: str) -> None:
    found = list(parts(spec_of(name)))
    legends = [p["legend"] for p in found if isinstance(p.get("legend"), dict)]
    assert legends
    assert all(legend["orient"] == "top" for legend in legends)
    assert any("tooltip" in p for p in found)


@pytest.mark.parametrize("name", FIGURES)
def test_one_colour_for_each_name_everywhere(name: str) -> None:
    """A map colours by a number, every other figure by names: each has its palette's colour, in every layer."""
    known, coloured = PALETTE | VERDICT_COLOURS, [part["color"] for part in parts(spec_of(name)) if "color" in part]
    scales = [colour["scale"] for colour in coloured if isinstance(colour, dict) and colour.get("scale")]
    named = [scale for scale in scales if "scheme" not in scale]
    assert scales
    assert bool(named) is (name not in MAPS)
    assert all(scale["range"] == [known[n] for n in scale["domain"]] for scale in named)


@pytest.mark.parametrize("name", ["sparsity_comparison", "rotation_comparison", "mask_overlap", "hero", "eta_sweep"])
def test_each_seed_is_a_point_beside_mean_and_null(name: str) -> None:
    rows = rows_of(spec_of(name))
    opd = rows.loc[rows["recipe"] == "OPD"]
    seeds = opd.loc[opd["role"] == "seed"].groupby("series")["seed"].nunique()
    assert seeds["OPD"] == seeds["shuffled null"] == 5
    assert {"OPD", "shuffled null"} <= set(opd.loc[opd["role"] == "mean", "series"])


def test_interval_is_the_students_t_interval() -> None:
    rows = rows_of(charts.sparsity_comparison(ends()).to_dict())
    own = rows.loc[(rows["series"] == "RLVR") & (rows["role"] == "mean")].iloc[0]
    table = ends()
    expected = seed_interval(table.loc[table["recipe"] == "rlvr", "update_sparsity"].to_numpy(float))
    assert (own["value"], own["low"], own["high"]) == pytest.approx((expected.mean, expected.low, expected.high))


def test_the_paper_is_drawn_where_it_prints_a_number() -> None:
    rows = rows_of(spec_of("hero"))
    paper = rows.loc[rows["role"] == "paper"].set_index("recipe")
    assert paper["x"].to_dict() == {"SFT": 0.081, "OPD": 0.516, "RLVR": 0.772}
    assert paper["tag"].to_dict() == {
        "SFT": "paper's SFT, >10°", "OPD": "paper's OPD, ~1°", "RLVR": "paper's RLVR, <0.5°"
    }  # fmt: skip


def test_hero_averages_both_sides() -> None:
    rows = rows_of(spec_of("hero"))
    own = rows.loc[(rows["role"] == "mean") & (rows["series"] == "OPD"), "y"].item()
    assert own == pytest.approx((mean_of("left_angle_mean_deg") + mean_of("right_angle_mean_deg")) / 2)


def test_one_seed_without_nulls_or_paper() -> None:
    """A run measured alone still gives every figure: no interval, nothing beside it."""
    table = ends()
    alone = table.loc[table["seed"] == 0]
    alone = alone[[c for c in alone.columns if not c.endswith(("_shuffled", "_random"))]]
    for figure in (charts.sparsity_comparison, charts.rotation_comparison, charts.mask_overlap, charts.hero):
        spec = figure(alone).to_dict()
        vl_convert.vegalite_to_svg(static_spec(spec))
        assert set(rows_of(spec)["series"]) == {"SFT", "OPD", "RLVR"}
    curve = charts.metric_against_norm(alone, "update_sparsity").to_dict()
    assert "one seed" in chart_description(curve)


def test_zero_stays_on_a_logarithmic_axis_and_its_words_stay_true() -> None:
    """A run that moved nothing is drawn at half the smallest positive value; the description says 0."""
    table = ends()
    moved = table["recipe"] != "rlvr"
    columns = ["normalized_spectral_shift", "left_angle_mean_deg", "right_angle_mean_deg"]
    still = table.assign(**{c: table[c].where(moved, 0.0) for c in columns})
    spec = charts.spectral_drift(still, nulls=()).to_dict()
    rows = rows_of(spec)
    assert "RLVR 0 (95% interval" in chart_description(spec)
    assert rows.loc[rows["recipe"] == "RLVR", "value"].max() == pytest.approx(still[columns[0]][moved].min() / 2)
    assert rows_of(charts.hero(still).to_dict())["y"].min() > 0


def test_an_undefined_overlap_is_left_out() -> None:
    table = ends()
    holes = table.assign(principal_overlap=table["principal_overlap"].where(table["recipe"] != "rlvr"))
    rows = rows_of(charts.mask_overlap(holes, nulls=()).to_dict())
    drawn = rows.loc[rows["row"] == "principal-mask overlap", "recipe"]
    assert set(drawn) == {"SFT", "OPD"}


def test_matched_controls_share_the_place_of_sft_and_name_what_is_lost() -> None:
    lost = places().assign(reason="")
    lost.loc[lost["place"] == "equal accuracy", "update_sparsity"] = np.nan
    lost = lost.drop(columns=[c for c in lost if c.endswith("_shuffled")])
    spec = charts.matched_controls(lost, "update_sparsity").to_dict()
    rows = rows_of(spec)
    assert "No run reaches equal accuracy." in chart_description(spec)
    assert set(rows.loc[rows["recipe"] == "control SFT", "slot"]) == {"SFT"}
    assert list(dict.fromkeys(rows["row"])) == ["the paper's steps", "equal updates", "equal norm"]


def test_both_kinds_of_sft_in_one_place_keep_apart() -> None:
    both = ends(("sft", "control_sft")).assign(place="one")
    rows = rows_of(charts.matched_controls(both, "update_sparsity").to_dict())
    assert rows.loc[rows["recipe"] == "control SFT", "slot"].unique().tolist() == [
        "control SFT", "control SFT, shuffled null",
    ]  # fmt: skip


def test_what_bf16_shows_is_no_null() -> None:
    """It takes the objective's own colour, dotted; a null takes grey."""
    rows = rows_of(spec_of("rounding"))
    assert set(rows["ink"]) == {"SFT", "OPD", "RLVR", "control SFT"}
    assert set(rows_of(spec_of("metric_against_norm"))["ink"]) > {"shuffled null"}


def test_norms_are_averaged_on_their_logarithmic_axis() -> None:
    table = pd.DataFrame(
        {"recipe": "opd", "seed": [0, 1], "step": 5, "total_norm": [1.0, 100.0], "stable_rank": [2.0, 4.0]}
    )
    rows = rows_of(charts.metric_against_norm(table, "stable_rank").to_dict())
    mean = rows.loc[rows["role"] == "mean"].iloc[0]
    assert (mean["x"], mean["value"]) == pytest.approx((10.0, 3.0))


def test_checkpoints_without_an_update_are_left_off_the_logarithmic_axis() -> None:
    table = pd.DataFrame(
        {"recipe": "opd", "seed": 0, "step": [0, 5], "total_norm": [0.0, 2.0], "stable_rank": [1.0, 3.0]}
    )
    rows = rows_of(charts.metric_against_norm(table, "stable_rank").to_dict())
    assert set(rows["step"]) == {5}


def test_a_long_log_is_averaged_over_windows() -> None:
    log = pd.DataFrame({"recipe": "opd", "seed": 0, "step": range(1, 801), "loss": [0.0, 2.0] * 400})
    rows = rows_of(charts.training_curves(log, "loss").to_dict())
    means = rows.loc[rows["role"] == "mean"]
    assert len(means) == 50
    assert set(means["value"]) == {1.0}
    assert means["x"].max() == 800


def test_families_are_averaged_before_seeds() -> None:
    rows = [
        ("opd", s, 4, f, a) for s, pair in enumerate(((0.2, 0.4), (0.4, 0.6))) for f, a in zip("ab", pair, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["recipe", "seed", "step", "family", "sampled"])
    points = rows_of(charts.training_curves(table).to_dict())
    assert points.loc[points["role"] == "seed", "value"].tolist() == pytest.approx([0.3, 0.5])


def test_sweep_divides_by_chance() -> None:
    table = pd.DataFrame(
        {"recipe": "opd", "seed": [0, 0], "alpha": [0.1, 0.5], "principal_overlap": [0.2, 0.25], "rank": 64}
    )
    spec = charts.alpha_rank_sweep(table).to_dict()
    rows = rows_of(spec)
    assert rows.loc[rows["role"] == "mean", "value"].tolist() == pytest.approx([2.0, 0.5])
    assert "facet" not in spec


def test_eta_zero_has_a_place() -> None:
    rows = rows_of(spec_of("eta_sweep"))
    assert set(rows.loc[rows["eta"] == 0, "x"].round(12)) == {1e-6}


def test_localisation_takes_the_last_step_and_the_layers_only() -> None:
    table = pd.concat([geometry(), geometry().head(5).assign(layer=-1, module="embed_tokens")])
    rows = rows_of(charts.localisation(table, recipes=["opd"]).to_dict())
    assert len(rows) == 4 * len(MODULES)
    assert rows["mean"].max() < 0.6
    assert set(rows["count"]) == {5}


def test_localisation_less_its_mean_adds_up_to_nothing() -> None:
    rows = rows_of(spec_of("localisation_mean"))
    assert rows.groupby("objective")["mean"].sum().abs().max() == pytest.approx(0, abs=1e-9)


def test_scorecard_gives_each_claim_its_cell() -> None:
    rows = rows_of(spec_of("scorecard_path"))
    assert len(rows) == len([claim for claim in claims.load_claims() if claim.question == "rq2"])
    assert not rows.duplicated(["middle", "centre"]).any()
    area = (rows["right"] - rows["left"] + 0.06) * (rows["bottom"] - rows["top"] + 0.08)
    of_cell = area.groupby([rows["condition"], rows["middle"].astype(int)])
    assert of_cell.std().fillna(0).max() < 1e-9  # the claims of a cell share it evenly
    assert of_cell.sum().between(0.74, 1.01).all()  # three as four would


def test_scorecard_refuses_a_claim_it_has_no_place_for() -> None:
    with pytest.raises(MetricInputError, match="no place for"):
        charts.scorecard(card().assign(diagnostic="weather"))


@pytest.mark.parametrize("figure", [charts.sparsity_comparison, charts.hero, charts.mask_overlap, charts.eta_sweep])
def test_a_table_without_the_column_is_refused(figure: Callable[..., Any]) -> None:
    with pytest.raises(MetricInputError, match="no column"):
        figure(pd.DataFrame({"recipe": ["opd"], "seed": [0]}))


def redrawn(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[pd.Series], pd.Series]) -> dict[str, Any]:
    """Draw a figure after ``change`` was made to every column of measured numbers that reaches it."""

    def changed(given: Any) -> Any:
        if isinstance(given, dict):
            return {title: changed(table) for title, table in given.items()}
        if not isinstance(given, pd.DataFrame) or "reported" in given:
            return given
        measured = [c for c in given.select_dtypes("float").columns if c not in KEYS]
        return given.assign(**{c: change(given[c].reset_index(drop=True)).to_numpy() for c in measured})

    for public in charts.__all__:
        draw = getattr(charts, public)
        given = lambda *tables, draw=draw, **options: draw(*map(changed, tables), **options)  # noqa: E731
        monkeypatch.setattr(charts, public, given)
    return FIGURES[name]().to_dict()


@pytest.mark.parametrize("name", MEASURED)
def test_one_undefined_number_ends_no_figure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = redrawn(monkeypatch, name, lambda values: values.where(values.index > 0))
    svg, said = vl_convert.vegalite_to_svg(static_spec(spec)), chart_description(spec)
    assert not re.search(r"\bnan\b", said, re.IGNORECASE)
    assert not said.startswith("Nothing to draw")
    assert "NaN" not in svg
    assert any("tooltip" in part for part in parts(spec))


@pytest.mark.parametrize("name", MEASURED)
def test_a_figure_with_nothing_to_draw_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = redrawn(monkeypatch, name, lambda values: values.where(values.index < 0))
    assert chart_description(spec).startswith("Nothing to draw: the table has no defined number of ")
    assert "Nothing to draw: the table has no" in vl_convert.vegalite_to_svg(static_spec(spec))
    svg = ET.fromstring(vl_convert.vegalite_to_svg({**static_spec(spec), "width": NARROW}))
    assert float(svg.attrib["width"]) <= NARROW + SIDES


def test_a_scorecard_without_claims_says_so() -> None:
    assert "no defined number of a verdict" in charts.scorecard(card().head(0)).to_dict()["description"]


def scale_labels(spec: dict[str, Any]) -> list[list[str]]:
    """Labels of every axis and legend of numbers, as they are drawn."""
    svg = ET.fromstring(vl_convert.vegalite_to_svg(static_spec(spec)))
    groups = [g for g in svg.iter() if re.search(r"role-(axis|legend)-label", g.attrib.get("class", ""))]
    labels = [[text.text or "" for text in group.iter() if text.tag.endswith("text")] for group in groups]
    return [own for own in labels if any(re.search(r"\d", text) for text in own)]


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("shrunk", [1.0, 1e-4, 0.0])
def test_no_scale_reads_the_same_twice(name: str, shrunk: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures as they are, and when all numbers lie within a ten-thousandth of each other, or are equal."""
    spec = redrawn(monkeypatch, name, lambda values: values.mean() + shrunk * (values - values.mean()))
    found = scale_labels(spec)
    assert found
    for labels in found:
        assert len(set(labels)) == len(labels), labels


@pytest.mark.parametrize("seed", range(12))
def test_no_name_lies_on_the_line_to_its_own_null(seed: int) -> None:
    """Means and nulls at random, for an objective and for a reader's own run: measured in the drawn picture."""
    draw = np.random.default_rng(seed)
    rows = []
    for recipe in ("opd", "my run"):
        row: dict[str, object] = {"recipe": recipe, "seed": 0}
        for suffix in ("", "_shuffled"):
            row[f"update_sparsity{suffix}"] = float(draw.uniform(0.2, 0.8))
            angle = 10 ** float(draw.uniform(-1, 1)) if seed % 3 else 1.0  # every third: at one height
            row |= {f"{side}_angle_mean_deg{suffix}": angle for side in ("left", "right")}
        if seed % 3 == 1:
            row["update_sparsity_shuffled"] = row["update_sparsity"]  # straight above or below
        rows.append(row)
    svg = ET.fromstring(vl_convert.vegalite_to_svg(static_spec(charts.hero(pd.DataFrame(rows)).to_dict())))
    paths = [p.attrib["d"] for p in svg.iter() if p.attrib.get("stroke-dasharray") == "2,3"]
    lines = [np.array(re.findall(r"-?[\d.]+", path), float).reshape(-1, 2) for path in paths]
    texts = [text for text in svg.iter() if text.attrib.get("font-size") == "12px" and "transform" in text.attrib]
    tags = {text.text: text.attrib for text in texts}
    assert len(lines) == 2
    for name in ("OPD", "my run"):
        x, y = map(float, re.findall(r"-?[\d.]+", tags[name]["transform"])[:2])
        half = 3 * len(name)
        left = x - half if tags[name]["text-anchor"] == "middle" else x
        nearest = min(lines, key=lambda line: float(np.hypot(*(line - [x, y]).T).min()))
        along = np.linspace(nearest[0], nearest[-1], 400)
        inside = (along[:, 0] > left) & (along[:, 0] < left + 2 * half) & (along[:, 1] > y - 8) & (along[:, 1] < y)
        assert not inside.any(), name


def test_runs_with_a_tag_are_named_beside_noise_and_the_others_are_not() -> None:
    svg = ET.fromstring(vl_convert.vegalite_to_svg(static_spec(charts.beside_noise(noise_runs()).to_dict())))
    assert {text.text for text in svg.iter() if text.attrib.get("font-size") == "11px"} >= {
        "paper's OPD",
        "paper's RLVR",
    }
    unnamed = charts.beside_noise(noise_runs().drop(columns="tag")).to_dict()
    assert "paper's" not in vl_convert.vegalite_to_svg(static_spec(unnamed))


def test_singular_values_of_a_zero_update_leave_the_spectrum_a_scale() -> None:
    spectrum = spectra()
    still = spectrum.assign(value=spectrum["value"].where(spectrum["recipe"] != "RLVR", 0.0))
    rows = rows_of(charts.path_slider(still, {}).to_dict())
    assert set(rows["series"]) == {"SFT", "OPD", "control SFT"}


def test_figures_leave_their_tables_alone_and_repeat_themselves() -> None:
    table = ends()
    before = table.copy()
    first, second = (charts.hero(table, claims.load_reported()).to_dict() for _ in range(2))
    pd.testing.assert_frame_equal(table, before)
    assert first == second


def test_family_intervals_have_width_at_the_ends() -> None:
    assert wilson_interval(0.0, 64)[0] == 0.0
    assert wilson_interval(0.0, 64)[1] > 0.04
    assert wilson_interval(1.0, 64)[1] == pytest.approx(1.0)


def test_the_first_mistake_is_flagged_once() -> None:
    flagged = [rows for rows in spec_of("credit_per_token")["datasets"].values() if len(rows) == 1]
    assert [row["position"] for rows in flagged for row in rows] == [3]


def test_map_takes_other_kinds_of_matrix_and_refuses_an_empty_one() -> None:
    fused = geometry().replace({"module": {"q_proj": "c_attn"}})
    spec = charts.localisation(fused, modules=["c_attn"], recipes=["opd"]).to_dict()
    assert set(rows_of(spec)["module"]) == {"c_attn"}
    with pytest.raises(MetricInputError, match="no matrix in a layer"):
        charts.localisation(fused, modules=["Wqkv"])


def test_trajectory_needs_a_column() -> None:
    with pytest.raises(MetricInputError, match="no column"):
        charts.run_trajectory(matching.summarise(geometry()), ["nothing"])


def test_the_slider_shows_one_moment_in_every_panel() -> None:
    """Each place of the slider has one value of every curve, between two checkpoints as the claims take it."""
    spec = spec_of("path_slider")
    (slider,) = spec["params"]
    tables = [pd.DataFrame(rows) for rows in spec["datasets"].values() if "step" not in rows[0]]
    assert len(tables) == 2
    for rows in tables:
        keys = ["series", "index"] if "index" in rows else ["series"]
        assert rows.groupby(keys)["share"].agg(tuple).nunique() == 1
        assert rows["share"].min() == slider["bind"]["min"]
        assert rows["share"].max() == 1
    point = next(rows for rows in tables if "index" not in rows).set_index(["series", "share"])["value"]
    assert point["OPD", 0.1] == pytest.approx(path_mean("stable_rank", 10))
    assert point["OPD", 0.7] == pytest.approx(between(0.7, 40, 100))


def test_one_menu_picks_a_curve_in_every_panel() -> None:
    spec = spec_of("update_paths")
    (menu,) = spec["params"]
    assert menu["bind"]["options"] == ["every curve", "SFT", "OPD", "RLVR", "control SFT"]
    assert all("picked" in str(panel) for panel in spec["concat"])


def test_sides_share_one_scale_and_rounding_panels_too() -> None:
    for name in ("against_nulls", "rounding_floor"):
        scales = [str(p["scale"]) for p in parts(spec_of(name)) if p.get("field") == "value" and "scale" in p]
        assert len(scales) > 2
        assert len(set(scales)) == 1
