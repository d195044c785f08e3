"""Chapter 10 on models with undefined numbers: its cells run to the end, and the sentences say what is undefined."""

import math
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from safetensors.torch import save_file

from opdgeom_utils.report.page import BOOK_ONLY
from opdgeom_utils.report.write import CHAPTER, TRAJECTORY

SHAPES = {"self_attn.q_proj": (16, 16), "self_attn.o_proj": (16, 16), "mlp.up_proj": (24, 16), "input_layernorm": (16,)}
NAMES = [f"model.layers.{i}.{name}.weight" for i in (0, 1) for name in SHAPES]
ODD = "model.layers.1.self_attn.o_proj.weight"
Weights = dict[str, torch.Tensor]


def model(seed: int = 0, scale: float = 0.05) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: SHAPES[name.split(".", 3)[3].removesuffix(".weight")] for name in NAMES}
    return {name: scale * torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def moved(weights: Weights) -> Weights:
    return {name: weights[name] + step for name, step in model(1, 1e-3).items()}


def filled(value: float, names: list[str], weights: Weights | None = None) -> Weights:
    return {n: torch.full_like(w, value) if n in names else w for n, w in (weights or model()).items()}


CASES = {
    "one NaN": (model(), moved(model()) | {ODD: torch.eye(16).where(torch.eye(16) < 1, math.nan)}),
    "one matrix of NaN": (model(), filled(math.nan, [ODD], moved(model()))),
    "a model of NaN": (model(), filled(math.nan, NAMES)),
    "a reference of NaN": (filled(math.nan, NAMES), model()),
    "one matrix of zeros": (filled(0.0, [ODD]), moved(filled(0.0, [ODD]))),
    "zeros after": (model(), filled(0.0, [ODD], moved(model()))),
    "a reference of zeros": (filled(0.0, NAMES), model()),
    "one constant matrix": (filled(0.05, [ODD]), moved(filled(0.05, [ODD]))),
    "one value beyond bf16": (model(), filled(3.4e38, [ODD], moved(model()))),
    "no update": (model(), model()),
}


def run_chapter(tmp_path: Path, reference: Weights, tuned: list[Weights]) -> dict[str, Any]:
    """Run the cells that a report runs, draw every figure, and return what they defined."""
    paths = [tmp_path / f"step_{step}.safetensors" for step in range(len(tuned) + 1)]
    for path, weights in zip(paths, [reference, *tuned], strict=True):
        save_file(weights, path)
    given = {"reference": str(paths[0]), "tuned": [str(path) for path in paths[1:]], "label": "mine", "k": 4}
    space: dict[str, Any] = {"__annotations__": {}}
    skipped = {BOOK_ONLY} | ({TRAJECTORY} if len(tuned) == 1 else set())
    for cell in nbformat.read(CHAPTER, as_version=4).cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type != "code" or tags & skipped:
            continue
        *before, last = cell.source.rstrip().splitlines()
        is_figure = last.startswith("charts.")
        exec("\n".join(before if is_figure else [*before, last]), space)
        if is_figure:
            assert eval(last, space).to_dict()["description"]
        if "parameters" in tags:
            space |= given
    return space


@pytest.mark.parametrize("case", CASES)
def test_no_undefined_number_ends_the_chapter(tmp_path: Path, case: str) -> None:
    space = run_chapter(tmp_path, CASES[case][0], [CASES[case][1]])
    said, minded = " ".join(space["said"]), " ".join(space["minded"])
    alone = {"a model of NaN": "Nothing could be measured", "a reference of NaN": "Nothing could be measured",
             "no update": "Nothing has changed: all 8 tensors"}.get(case)  # fmt: skip
    if alone:
        assert len(space["said"]) == 1
        assert alone in said
    else:
        assert len(space["said"]) == 7
    if case in ("one NaN", "one matrix of NaN", "one value beyond bf16"):
        assert "1 tensors could not be measured in full: tensor model.layers." in minded
        assert str(tmp_path) not in minded


def test_undefined_numbers_in_the_middle_of_a_path(tmp_path: Path) -> None:
    space = run_chapter(tmp_path, model(), [moved(model()), filled(math.nan, NAMES), moved(moved(model()))])
    assert len(space["said"]) == 7
    assert "8 tensors could not be measured in full at earlier checkpoints" in " ".join(space["minded"])


def test_no_update_has_no_nearest_point(tmp_path: Path) -> None:
    space = run_chapter(tmp_path, model(), [model()])
    text, table, ends = (space[name] for name in ("your_run_text", "table", "ends"))
    assert text.nearest(table, ends, "mine", space["reported"]) == {}
