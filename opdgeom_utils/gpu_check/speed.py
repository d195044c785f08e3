"""How fast the diagnostics are, and what they hold, on the matrices of a Qwen3 layer."""

from __future__ import annotations

import time

import torch

from opdgeom_utils.diagnose import diagnose_pair
from opdgeom_utils.diagnose.matrix_rows import TOO_LARGE
from opdgeom_utils.gpu_check.agreement import KINDS, moved_pair
from opdgeom_utils.gpu_check.parts import Found, Part, Place, seconds_since
from opdgeom_utils.gpu_check.shapes import SHAPES, TINY, config_of, random_model

K = 512  # the paper's


def diagnostics(size: str) -> Part:
    """Return the part that measures one layer of a size in bf16, every metric and expected null, as users do."""

    def part(place: Place) -> Found:
        shape = TINY if place.tiny else SHAPES[size]
        config = config_of(shape, layers=1)
        config.vocab_size = TINY.rows  # embeddings are left out
        before, after = moved_pair(random_model(config, "cpu", torch.float32), torch.bfloat16)
        began = time.perf_counter()
        table = diagnose_pair(before, after, modules=KINDS, k=K, device=str(place.device))
        each = seconds_since(began, place.device)
        odd = table.loc[table["note"].astype(str) != "", ["name", "note"]]
        missing = table.loc[table["stable_rank"].isna() | table["right_angle_max_deg"].isna(), "name"]
        faults = [f"{name}: {note}" for name, note in odd.itertuples(index=False) if TOO_LARGE in note]
        faults += [f"{name}: a metric is not defined" for name in missing]
        shapes = {name.split(".")[-2]: shape for name, shape in zip(table["name"], table["shape"], strict=True)}
        return Found(
            {"shapes": shapes, "k": K, "layers": shape.layers, "seconds_a_layer": each,
             "minutes_of_the_model": round(each * shape.layers / 60, 2)},
            faults,
        )  # fmt: skip

    return part
