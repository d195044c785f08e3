"""Which space a projected run is held in: the bases that its recipe's ``projection_space`` names."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from opdgeom_utils.learner import Learner, stream_seed
from opdgeom_utils.projection import Projector, activation_moments, leading_space, projected_layers, random_space
from opdgeom_utils.rollouts import Rollouts, encode_pairs, roll_out


def make_projector(learner: Learner) -> Projector:
    """Build the projection of a run that has reached ``projection_from``; the space is that of the recipe."""
    recipe = learner.recipe
    space, rank, side = recipe.projection_space, recipe.projection_rank, recipe.projection_side
    layers = dict(projected_layers(learner.student))
    if space == "random":
        dims = {name: layer.weight.shape[1 if side == "right" else 0] for name, layer in layers.items()}
        bases = {n: random_space(d, rank, stream_seed("space", learner.seed, n)) for n, d in dims.items()}
    elif space == "activations":
        moments = activation_moments(*_start_and_its_batch(learner))
        bases = {name: leading_space(moments[name], rank).float() for name in layers}
    else:
        updates = learner.other_update or learner.cumulative_update()
        bases = {name: leading_space(updates[name], rank, side) for name in layers}
    return Projector({n: b.to(learner.device) for n, b in bases.items()}, side, complement=space == "complement")


def _start_and_its_batch(learner: Learner) -> tuple[PreTrainedModel, list[Rollouts]]:
    """Return the model before training, and 256 completions such as it trains on: its own, or demonstrations."""
    recipe, start = learner.recipe, copy.deepcopy(learner.student)
    with torch.no_grad():
        for parameter, value in zip(start.parameters(), learner.start_weights, strict=True):
            parameter.copy_(value)
    problems = learner.tasks.draw(recipe.mixture, 256, f"activations:{learner.seed}", weights=recipe.weights)
    prompts, longest = [learner.world.put(learner.tokenizer, p.prompt) for p in problems], recipe.max_new_tokens
    if not recipe.on_policy:
        shown = [learner.world.demonstrated(learner.tokenizer, p.completion) for p in problems]
        return start, [encode_pairs(learner.tokenizer, prompts, shown, learner.device)]
    generator = torch.Generator(learner.device).manual_seed(stream_seed("activations", learner.seed))
    return start, [roll_out(start, learner.tokenizer, prompts, max_new_tokens=longest, generator=generator)]
