"""The first page's table: what each kind of run learned, how far it went, and whether its seeds agree."""

from __future__ import annotations

import math

import pandas as pd

from opdgeom_utils.chapters import mismatched
from opdgeom_utils.chapters.committed_tables import BookTables
from opdgeom_utils.chapters.first_nulls import walk_at_end
from opdgeom_utils.chapters.update_path import agreement
from opdgeom_utils.chapters.where import NULL_OBJECTIVES, OF_SFT
from opdgeom_utils.claims.matching import accuracy_gain, final
from opdgeom_utils.scopes import THROUGHOUT
from opdgeom_utils.vocabulary import label

NOTHING = (*OF_SFT.values(), *NULL_OBJECTIVES.values())
ORDER = (*(name for name in THROUGHOUT if name not in NOTHING), *NOTHING)


def runs_in_a_line(tables: BookTables) -> pd.DataFrame:
    """Lay out every kind of run at its own end, as text: what it learned, how far it went, whether its seeds agree.

    ``tables``: a profile's; of the published one, SFT's nulls are added. Columns: ``run``, ``right answers`` (sampled,
    at the start and at the end), ``times as far as noise`` (:func:`opdgeom_utils.metrics.walk_ratio` of the whole
    update), ``two seeds agree`` (cosine of their updates, attention matrices) and ``seeds``. Means over seeds. What a
    profile has not trained is left out, and what was not measured is a dash.
    """
    tables = mismatched.joined(tables)
    ends = final(accuracy_gain(tables.accuracy)).groupby("recipe").agg({"sampled": "mean", "gain": "mean"})
    seeds = tables.geometry.groupby("recipe")["seed"].agg("nunique").to_dict()
    shared = {} if tables.measures is None else agreement(tables.measures).set_index("recipe")["cosine"].to_dict()
    rows = []
    for name in ORDER:
        if name in seeds and name in ends.index:
            now, gain = ends.loc[name, ["sampled", "gain"]].to_numpy(float)
            said = {"run": label(name), "right answers": f"{now - gain:.0%} → {now:.0%}"}
            said["times as far as noise"] = f"{walk_at_end(tables, name):.2f}"
            agree = f"{shared[name]:z.2f}" if not math.isnan(shared.get(name, math.nan)) else "-"
            rows.append(said | {"two seeds agree": agree, "seeds": str(seeds[name])})
    return pd.DataFrame(rows)
