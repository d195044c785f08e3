"""The first page's table of runs: every cell is what the tables say, and what was not measured is a dash."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from opdgeom_utils.chapters import at_a_glance, committed_tables, literature
from opdgeom_utils.claims.matching import accuracy_gain, final
from opdgeom_utils.measures.noise import walks_of_runs
from opdgeom_utils.results import load_tables


def test_every_line_says_what_the_tables_say() -> None:
    tables = committed_tables.tables_for("toy", [0, 1, 2])
    lines = at_a_glance.runs_in_a_line(tables).set_index("run")
    assert lines.index[:3].tolist() == ["SFT", "OPD", "RLVR"]
    assert set(lines.loc[["mismatched SFT", "random credit"], "seeds"]) == {"3"}
    own = tables.geometry[tables.geometry["recipe"] == "opd"]
    ratio = walks_of_runs(own[own["step"] == own["step"].max()])["walk_ratio"].mean()
    assert lines.loc["OPD", "times as far as noise"] == f"{ratio:.2f}"
    ends = final(accuracy_gain(tables.accuracy)).query("recipe == 'opd'")
    now, then = ends["sampled"].mean(), (ends["sampled"] - ends["gain"]).mean()
    assert lines.loc["OPD", "right answers"] == f"{then:.0%} → {now:.0%}"
    assert float(lines.loc["random credit", "two seeds agree"]) < 0.05 < float(lines.loc["RLVR", "two seeds agree"])


def test_what_a_profile_has_not_is_left_out() -> None:
    own = load_tables("smollm2-135m")
    tables = committed_tables.tables_for("smollm2-135m", [0, 1, 2])
    lines = at_a_glance.runs_in_a_line(replace(tables, measures=None)).set_index("run")
    assert set(lines["two seeds agree"]) == {"-"}
    assert (
        len(lines) == own.geometry["recipe"].isin(list(at_a_glance.ORDER)).groupby(own.geometry["recipe"]).any().sum()
    )


def test_the_papers_runs_beside_noise() -> None:
    published = literature.published()
    shown = literature.paper_beside_noise(published).set_index("the paper's")
    opd = published.set_index("run").loc["OPD-8B-T32B"]
    assert shown.loc["OPD"].tolist() == [
        f"{opd['sparsity']:.0%}", f"{opd['predicted']:.0%}", f"{opd['ratio']:.1f}", f"{opd['norm_ratio']:.1f}"
    ]  # fmt: skip
    assert shown.index.tolist() == ["SFT", "OPD", "RLVR"]
    assert pd.to_numeric(shown["times as far as noise"]).idxmax() == "OPD"
