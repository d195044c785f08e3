"""Facts of a model are those of its files."""

import hashlib
import math
from pathlib import Path

import pytest
import torch

from opdgeom_utils import models
from opdgeom_utils.chapters import model_cards
from opdgeom_utils.errors import CheckpointNotFoundError
from opdgeom_utils.models import build_model
from opdgeom_utils.recipes import load_recipe, recipe_names


def test_facts_come_from_the_folder(tmp_path: Path) -> None:
    model = build_model("tiny", seed=0).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    facts = model_cards.model_facts([str(tmp_path)]).iloc[0]
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert (facts["layers"], facts["hidden"], facts["dtype"]) == (2, 32, "BF16")
    assert facts["sha256"] == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()[:12]


def test_a_missing_model_is_named() -> None:
    with pytest.raises(CheckpointNotFoundError, match="no-such-model"):
        model_cards.model_facts(["no-such-model"])


@pytest.mark.parametrize("name", sorted(folder.name for folder in models.MODELS.iterdir() if folder.is_dir()))
def test_the_card_of_a_shipped_model_speaks_of_its_bytes(name: str) -> None:
    folder = Path(models.resolve_model(name))
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text(encoding="utf-8")
    assert model_cards.model_facts([name])["dtype"].tolist() == ["BF16"]


def test_accuracy_is_what_the_card_prints(tmp_path: Path) -> None:
    card = Path(models.resolve_model("teacher"), "README.md").read_text(encoding="utf-8")
    accuracy = model_cards.card_accuracy("teacher")
    assert f"mean greedy {accuracy['greedy']:.3f}" in card
    assert f"mean sampled {accuracy['sampled']:.3f}" in card
    build_model("tiny", seed=0).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("An unmeasured model.\n")
    assert all(math.isnan(value) for value in model_cards.card_accuracy(str(tmp_path)).values())
    (tmp_path / "README.md").unlink()  # as trainers leave a folder
    assert all(math.isnan(value) for value in model_cards.card_accuracy(str(tmp_path)).values())


def test_every_model_that_a_recipe_names_is_shipped() -> None:
    recipes = [load_recipe(name, p) for p in ("toy", "first_regime") for name in recipe_names(p)]
    named = {model for recipe in recipes for model in (recipe.start, recipe.teacher, recipe.anchor) if model}
    assert named <= {folder.name for folder in models.MODELS.iterdir()}


def test_the_shipped_models_are_small_together() -> None:
    sizes = [file.stat().st_size for file in models.MODELS.rglob("*") if file.is_file()]
    assert sum(sizes) <= 20e6
