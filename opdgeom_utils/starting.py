"""A learner made ready: its models loaded and prepared, vocabularies compared, its problems looked at."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from opdgeom_utils.errors import RecipeError
from opdgeom_utils.fit.token_findings import NO_PADDING
from opdgeom_utils.learner import Learner
from opdgeom_utils.models import (
    UNTRAINED,
    build_model,
    build_tokenizer,
    load_model,
    load_tokenizer,
    pick_device,
)
from opdgeom_utils.precision import prepare
from opdgeom_utils.problems import Written
from opdgeom_utils.profile_files import place_of
from opdgeom_utils.recipes import Recipe, paths_of
from opdgeom_utils.rollouts import decode_completions, encode_pairs
from opdgeom_utils.scoring import check_head
from opdgeom_utils.tasks import END
from opdgeom_utils.world import load_world, tasks_of

PROBE = "2 plus 3 is 5."


def learner_of(recipe: Recipe, seed: int, device: str, other_update: dict[str, Tensor] | None = None) -> Learner:
    """Load the student and the models beside it, as they are before the first update.

    Raises RecipeError if the models cannot be compared token by token, or SFT finds problems without a demonstration.
    Raises CheckpointNotFoundError if a model is missing.
    """
    where, world = pick_device(device), load_world(recipe.profile)
    _check_device(recipe, where)
    check_mixture(recipe)
    if recipe.start.startswith(UNTRAINED):
        student, tokenizer = build_model(recipe.start.removeprefix(UNTRAINED), seed), build_tokenizer()
        torch.nn.Module.to(student, where)
    else:
        student, tokenizer = load_model(recipe.start, where), load_tokenizer(recipe.start)
    prepare(student, recipe.compute)
    world.with_end(tokenizer)
    check_texts(recipe.start, tokenizer)
    fixed: dict[str | None, PreTrainedModel | None] = {None: None}
    for name in {n for n in (recipe.teacher, recipe.anchor, recipe.writer) if n}:
        fixed[name] = prepare(load_model(name, where).eval(), recipe.compute, fixed=True)
    vocabulary = shared_vocabulary(student, tokenizer, {n: (m, load_tokenizer(n)) for n, m in fixed.items() if n and m})
    learner = Learner(
        recipe, seed, student, tokenizer, fixed[recipe.teacher], fixed[recipe.anchor], fixed[recipe.writer],
        vocabulary, world, other_update=other_update,
    )  # fmt: skip
    if recipe.gradient_checkpointing:
        keep_cache_without_gradient(student)
    check_demonstrations(recipe)
    return learner


def keep_cache_without_gradient(student: PreTrainedModel) -> None:
    """Let a student's layers be computed anew only where a gradient is asked for, so that its rollouts have a cache.

    In training mode transformers takes the cache away from checkpointed layers; a token would then be sampled from
    itself alone.
    """

    def follow(module: torch.nn.Module, _: object) -> None:
        if module.training != torch.is_grad_enabled():
            module.train(torch.is_grad_enabled())

    student.base_model.register_forward_pre_hook(follow)


def check_mixture(recipe: Recipe) -> None:
    """Refuse a recipe that has nothing to train on."""
    if not recipe.mixture:
        raise RecipeError(
            f"{place_of(recipe.profile, *paths_of(recipe, 'mixture'))}: mixture of recipe {recipe.name!r} is empty; "
            "expected families and their levels, under defaults or in the recipe"
        )


def _check_device(recipe: Recipe, device: torch.device) -> None:
    """Warn of a card that has no bf16 of its own: T4, V100 and older emulate it, several times slower."""
    half = recipe.compute == "bfloat16" and device.type == "cuda"
    if half and not torch.cuda.is_bf16_supported(including_emulation=False):
        warnings.warn(
            f"{torch.cuda.get_device_name(device)} has no bf16 of its own, and emulates it slowly; set compute: "
            "float32 in the recipe (more memory), or take a card of the Ampere generation or later",
            stacklevel=2,
        )


def check_demonstrations(recipe: Recipe) -> None:
    """Refuse SFT on problems that come without a demonstration, or with ones of which none would be graded right."""
    if recipe.on_policy:
        return
    tasks = tasks_of(recipe.profile)
    problems = tasks.draw(recipe.mixture, 64, "demonstrations", weights=recipe.weights)
    if without := sorted({p.family for p in problems if not p.completion}):
        raise RecipeError(
            f"recipe {recipe.name!r} is SFT, and problems of {', '.join(without)} have no demonstration; name the "
            "column that has it, add completion to each line of a file, or leave them to opd and rlvr"
        )
    if getattr(tasks, "mismatched", False):  # wrong on purpose: SFT's null objective
        return
    if not any(tasks.grade(p, Written(p.completion.removesuffix(END), ended=True)).reward for p in problems):
        raise RecipeError(
            f"recipe {recipe.name!r} is SFT, and of {len(problems)} demonstrations none would be graded right, such as "
            f"{problems[0].completion!r:.100}. Where answers stand in longer texts, say "
            "grade: mathematics beside kind: jsonl; or mend answer, completion or answer_in"
        )


def shared_vocabulary(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    others: Mapping[str, tuple[PreTrainedModel, PreTrainedTokenizerFast]],
) -> int | None:
    """Return how many tokens all models share, where some pad their vocabulary; None where all have as many.

    Raises RecipeError if two tokenizers differ in a token, or a model has fewer rows than the student's tokenizer has
    tokens.
    """
    own, sizes = tokenizer.get_vocab(), {student.config.vocab_size}
    for name, (model, other) in others.items():
        check_head(model)
        check_tokens(own, other.get_vocab(), f"the student and of {name}")
        sizes.add(model.config.vocab_size)
    check_head(student)
    if min(sizes) < len(own):
        raise RecipeError(f"the tokenizer has {len(own)} tokens, the smallest model {min(sizes)} rows for them")
    if len(sizes) == 1:
        return None
    print(f"vocabularies are padded to {sorted(sizes)}: the first {min(sizes)} tokens are compared")
    return min(sizes)


def check_tokens(own: Mapping[str, int], theirs: Mapping[str, int], whose: str) -> None:
    """Refuse two vocabularies that are not the same."""
    if differing := sorted(set(own.items()) ^ set(theirs.items()), key=lambda pair: (pair[1], pair[0])):
        shown = ", ".join(f"{token!r} ({number})" for token, number in differing[:4])
        raise RecipeError(
            f"the tokenizers of {whose} differ in {len(differing)} entries, such as {shown}; "
            "token by token they cannot be compared. Choose a teacher of the same tokenizer"
        )


def check_texts(source: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer that cannot bring texts to one length, or whose completions the verifier would not read."""
    if tokenizer.pad_token is None:
        raise RecipeError(f"the tokenizer of {source} {'; '.join(NO_PADDING)}")
    if tokenizer.eos_token is None:
        raise RecipeError(
            f"the tokenizer of {source} has no end token, so no completion would end. Set tokenizer.eos_token and save "
            "it beside the model"
        )
    written = encode_pairs(tokenizer, [PROBE], [PROBE])
    ((read,),) = decode_completions(tokenizer, written)
    if read.text != PROBE == tokenizer.decode(written.completion_ids[0, 0]):
        raise RecipeError(
            f"the tokenizer of {source} has {len(tokenizer)} tokens, and of so few each must be the very text that it "
            f"stands for; here {PROBE!r} is read back as {read.text!r}, so no answer would be found right. Take a "
            "tokenizer of 1,000 tokens or more, or one of single characters (as the shipped models have)"
        )
