"""What an update of a variant learns from: which tokens get credit, and who wrote them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opdgeom_utils import objectives, tasks
from opdgeom_utils.batches import Batch, make_batches, student_log_probs
from opdgeom_utils.learner import Learner
from opdgeom_utils.models import build_model, build_tokenizer
from opdgeom_utils.objectives import keep_scale, kept_tokens
from opdgeom_utils.recipes import Recipe
from opdgeom_utils.rollouts import Rollouts
from opdgeom_utils.training import apply_update

MakeRecipe = Callable[..., Recipe]


def learner_of(recipe: Recipe, seed: int = 0) -> Learner:
    writer = build_model("tiny", 3).eval() if recipe.writer else None
    models = build_model("tiny", 1), build_tokenizer(), build_model("tiny", 2).eval()
    return Learner(recipe, seed, *models, writer=writer)


def completions(lengths: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Random ``r`` of one completion for each length, 0 on what is padded, as the credit is."""
    mask = torch.arange(max(lengths))[None, None] < torch.tensor(lengths)[:, None, None]
    return torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)) * mask, mask


# --- which tokens ----------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    fraction=st.floats(0.01, 1.0),
    by=st.sampled_from(["top", "random"]),
    seed=st.integers(0, 99),
)
def test_the_right_number_is_kept_and_never_padding(lengths: list[int], fraction: float, by: str, seed: int) -> None:
    r, mask = completions(lengths, seed)
    kept = kept_tokens(r, mask, fraction=fraction, by=by, generator=torch.Generator().manual_seed(seed))
    assert not (kept & ~mask).any()
    for row, length in zip(kept[:, 0].sum(-1).tolist(), lengths, strict=True):
        assert row >= 1
        assert abs(row - fraction * length) <= 0.5 + 1e-5 or row == 1
    rescaled = (kept * keep_scale(kept, mask)).sum(-1)
    torch.testing.assert_close(rescaled, mask.sum(-1).float())


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_top_keeps_the_largest_signed_r(lengths: list[int], seed: int) -> None:
    r, mask = completions(lengths, seed)
    kept = kept_tokens(r, mask, fraction=0.5)
    for values, keep, length in zip(r[:, 0], kept[:, 0], lengths, strict=True):
        real, chosen = values[:length], keep[:length]
        if (~chosen).any():
            assert float(real[chosen].min()) > float(real[~chosen].max())


def test_all_negative_r_still_keeps_real_tokens() -> None:
    """Padding has r = 0, above every real value here, and must not be chosen for it."""
    r = torch.tensor([[[-3.0, -1.0, -2.0, 0.0, 0.0]]])
    mask = torch.tensor([[[True, True, True, False, False]]])
    assert kept_tokens(r, mask, fraction=0.34).tolist() == [[[False, True, False, False, False]]]


def test_random_is_random_and_repeatable() -> None:
    r, mask = completions([40, 40], 0)
    draws = [
        kept_tokens(r, mask, fraction=0.25, by="random", generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    often = sum(
        kept_tokens(r, mask, fraction=0.25, by="random", generator=torch.Generator().manual_seed(s)).float()
        for s in range(200)
    )
    assert isinstance(often, Tensor)
    assert float((often / 200 - 0.25).abs().max()) < 0.15, "no place is preferred"


@pytest.mark.parametrize(("fraction", "by"), [(0.0, "top"), (1.1, "top"), (-1.0, "random"), (0.5, "bottom")])
def test_a_fraction_or_a_word_out_of_range_is_refused(fraction: float, by: str) -> None:
    r, mask = completions([3], 0)
    with pytest.raises(ValueError, match="fraction"):
        kept_tokens(r, mask, fraction=fraction, by=by)


@pytest.mark.parametrize("by", ["top", "random"])
@pytest.mark.parametrize("rescaled", [True, False])
def test_credit_of_a_sparsified_batch(by: str, rescaled: bool, make_recipe: MakeRecipe) -> None:
    """Against the same batch in full: kept credit is the old one times T / kept (or the old one), the rest is 0."""
    full = make_batches(learner_of(make_recipe(objective="opd")))[0]
    recipe = make_recipe(objective="opd", keep_fraction=0.5, keep_by=by, keep_rescaled=rescaled)
    part = make_batches(learner_of(recipe))[0]
    assert torch.equal(part.rollouts.completion_ids, full.rollouts.completion_ids)
    kept, mask = part.advantages != 0, full.rollouts.mask
    scale = mask.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True) if rescaled else 1.0
    torch.testing.assert_close(part.advantages, full.advantages * kept * scale)
    assert (kept.sum(-1) == (mask.sum(-1) * 0.5).round().clamp_min(1)).all()
    if by == "top":
        dropped = (-full.advantages).masked_fill(kept | ~mask, -torch.inf).amax(-1)
        assert ((-full.advantages).masked_fill(~kept, torch.inf).amin(-1) >= dropped).all()


def test_the_loss_of_kept_tokens_is_over_all_tokens(make_recipe: MakeRecipe) -> None:
    """The mean goes over all T tokens: with the scale T / kept it is the mean over the kept ones."""
    learner = learner_of(make_recipe(objective="opd", keep_fraction=0.5))
    batch = make_batches(learner)[0]
    loss = apply_update(learner, batch)["loss"]
    assert loss == pytest.approx(-float(batch.advantages.sum() / batch.rollouts.mask.sum()), abs=1e-5)


def test_two_batches_of_one_round_keep_other_tokens_and_a_second_call_the_same(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        objective="opd", keep_fraction=0.5, keep_by="random", updates_per_rollout=2, checkpoints=[2, 4]
    )
    first, again = (make_batches(learner_of(recipe)) for _ in range(2))
    assert all(torch.equal(a.advantages, b.advantages) for a, b in zip(first, again, strict=True))
    width = min(batch.advantages.shape[-1] for batch in first)
    one, two = ((batch.advantages != 0)[..., :width] for batch in first)
    assert not torch.equal(one, two)


# --- who writes ------------------------------------------------------------------------------------------------------


def plain_log_probs(model: torch.nn.Module, rollouts: Rollouts) -> Tensor:
    """Log-probabilities from one plain forward for every completion, nothing padded."""
    result = torch.zeros(rollouts.mask.shape)
    for b in range(rollouts.mask.shape[0]):
        prompt = rollouts.prompt_ids[b][rollouts.prompt_mask[b]]
        for g in range(rollouts.mask.shape[1]):
            ids = rollouts.completion_ids[b, g][rollouts.mask[b, g]]
            with torch.no_grad():
                logits = model(torch.cat([prompt, ids])[None]).logits[0]
            rows = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
            result[b, g, : len(ids)] = rows.gather(-1, ids[:, None])[:, 0]
    return result


def written(make_recipe: MakeRecipe, **changes: object) -> tuple[Learner, list[Batch]]:
    values = {"objective": "opd", "writer": "other", "updates_per_rollout": 2, "checkpoints": [2, 4], **changes}
    learner = learner_of(make_recipe(**values))
    return learner, make_batches(learner)


def test_ratios_are_against_the_student_whoever_wrote(make_recipe: MakeRecipe) -> None:
    learner, batches = written(make_recipe, prompts_per_update=3)
    for batch in batches:
        expected = plain_log_probs(learner.student, batch.rollouts)
        torch.testing.assert_close(batch.rollouts.log_probs, expected, rtol=1e-4, atol=1e-4)
        assert not (batch.rollouts.log_probs * ~batch.rollouts.mask).any()


def test_the_writer_s_completions_are_the_writer_s(make_recipe: MakeRecipe) -> None:
    """The same stream of randomness through the other model gives just these completions."""
    learner, batches = written(make_recipe, updates_per_rollout=1)
    assert learner.writer is not None
    alone = Learner(make_recipe(objective="opd"), 0, learner.writer, learner.tokenizer, learner.teacher)
    expected = make_batches(alone)[0].rollouts
    assert torch.equal(batches[0].rollouts.completion_ids, expected.completion_ids)
    own = make_batches(learner_of(make_recipe(objective="opd")))[0].rollouts
    assert not torch.equal(own.completion_ids, expected.completion_ids)


def test_credit_of_written_tokens_is_minus_r_of_the_student(make_recipe: MakeRecipe) -> None:
    learner, (batch, _) = written(make_recipe)
    assert learner.teacher is not None
    teacher = plain_log_probs(learner.teacher, batch.rollouts)
    expected = (teacher - plain_log_probs(learner.student, batch.rollouts)) * batch.rollouts.mask
    torch.testing.assert_close(batch.advantages, expected, rtol=1e-3, atol=1e-3)


def test_the_first_update_on_written_text_is_not_clipped(make_recipe: MakeRecipe) -> None:
    learner, (batch, _) = written(make_recipe)
    assert apply_update(learner, batch)["clip_rate"] == 0.0


def test_a_student_that_writes_for_itself_scores_what_it_sampled(make_recipe: MakeRecipe) -> None:
    learner = learner_of(make_recipe(objective="opd", prompts_per_update=3))
    rollouts = make_batches(learner)[0].rollouts
    torch.testing.assert_close(student_log_probs(learner, rollouts), rollouts.log_probs * rollouts.mask)


def test_the_writer_is_left_as_it_was(make_recipe: MakeRecipe) -> None:
    learner, (batch, _) = written(make_recipe)
    apply_update(learner, batch)
    assert learner.writer is not None
    for now, then in zip(learner.writer.parameters(), build_model("tiny", 3).parameters(), strict=True):
        assert torch.equal(now, then)
        assert now.grad is None


# --- a mixture taken apart -------------------------------------------------------------------------------------------


def test_terms_are_the_two_credits_and_only_there_where_they_are_needed(make_recipe: MakeRecipe) -> None:
    apart = make_batches(learner_of(make_recipe(objective="mixed", alpha=0.25, equal_gradients=True)))[0]
    raw = make_batches(learner_of(make_recipe(objective="mixed", alpha=0.25)))[0]
    assert raw.terms is None
    assert apart.terms is not None
    opd, rlvr = apart.terms
    torch.testing.assert_close(objectives.mixed_advantages(opd, rlvr, alpha=0.25), raw.advantages)


def test_random_credit_is_the_real_credit_somewhere_else(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(objective="opd", prompts_per_update=8)
    real = make_batches(learner_of(recipe))[0]
    null, again = (make_batches(learner_of(replace(recipe, random_credit=True)))[0] for _ in range(2))
    assert torch.equal(null.rollouts.completion_ids, real.rollouts.completion_ids)
    mask = real.rollouts.mask
    torch.testing.assert_close(null.advantages[mask].abs().sort().values, real.advantages[mask].abs().sort().values)
    assert not null.advantages[~mask].any()
    assert torch.equal(null.advantages, again.advantages)
    assert abs(torch.corrcoef(torch.stack([null.advantages[mask], real.advantages[mask]]))[0, 1]) < 0.5


def test_random_rewards_are_the_real_ones_of_other_completions(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(objective="rlvr", prompts_per_update=8, group_size=4)
    monkeypatch.setattr(tasks, "verify", lambda prompt, text: float(len(text) % 2))
    real, null = (make_batches(learner_of(r))[0] for r in (recipe, replace(recipe, random_reward=True)))
    assert 0 < real.rewards.mean() < 1
    assert real.rewards.sum() == null.rewards.sum()
    assert not torch.equal(real.rewards, null.rewards)
    torch.testing.assert_close(null.advantages, objectives.rlvr_advantages(null.rewards, null.rollouts.mask))
