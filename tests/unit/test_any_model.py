"""The loop on models and tokenizers that are not the toy's: real configurations in real folders, tiny and untrained."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from opdgeom_utils import load_or_train, runs, training
from opdgeom_utils.batches import Batch, make_batches
from opdgeom_utils.errors import CheckpointNotFoundError, RecipeError
from opdgeom_utils.learner import Learner
from opdgeom_utils.models import load_tokenizer, resolve_model
from opdgeom_utils.precision import computing, prepare
from opdgeom_utils.recipes import load_recipe
from opdgeom_utils.rollouts import Rollouts, roll_out
from opdgeom_utils.runs import Run
from opdgeom_utils.scoring import check_head, token_scores
from opdgeom_utils.starting import shared_vocabulary
from opdgeom_utils.training import apply_update
from tests.tiny_world import DEFAULTS, World

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["What is the sum of 12 and 7? <answer>19</answer>", "State the final answer: 3 + 4 = 7\n#### 7", "0123456789"]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512}  # fmt: skip
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen3": (Qwen3Config, {"tie_word_embeddings": True}),
    "llama": (LlamaConfig, {"tie_word_embeddings": False}),
    "gemma2": (Gemma2Config, {"final_logit_softcapping": 2.0}),
    "gemma3": (Gemma3TextConfig, {"final_logit_softcapping": 2.0, "sliding_window": 64}),
    "granite": (GraniteConfig, {"logits_scaling": 6.0, "embedding_multiplier": 3.0}),
    "cohere": (CohereConfig, {"logit_scale": 0.3}),
}


TOKENS, PADDED = 1024, 1088  # fewer than 1,000 byte-level tokens are refused


def make_tokenizer(words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    core = Tokenizer(BPE())
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core.train_from_iterator(
        words, BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=ByteLevel.alphabet())
    )
    core.add_tokens([f"<unused{i}>" for i in range(TOKENS - core.get_vocab_size())])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=special[0], pad_token=special[0], chat_template=TEMPLATE
    )


def make_model(family: str, seed: int = 0, rows: int = TOKENS) -> PreTrainedModel:
    kind, own = CONFIGS[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = kind(**SIZES, **own, vocab_size=rows, pad_token_id=0, eos_token_id=0, bos_token_id=None)
        return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models in the standard layout, each with its tokenizer; teachers with a vocabulary that is padded."""
    folder, tokenizer = tmp_path_factory.mktemp("any"), make_tokenizer()
    for family in ("qwen3", "llama", "gemma3"):
        for seed, (name, rows) in enumerate((("student", TOKENS), ("teacher", PADDED))):
            make_model(family, seed, rows).save_pretrained(folder / f"{family}-{name}")
            tokenizer.save_pretrained(folder / f"{family}-{name}")
    return folder


def gym(_: Path) -> dict[str, Any]:
    return {
        "world": {"tasks": {"kind": "reasoning_gym"}, "prompt": "plain"},
        "mixture": {"chain_sum": [{"min_terms": 2, "max_terms": 2, "max_digits": 1}]},
    }


def file(folder: Path) -> dict[str, Any]:
    rows = [{"prompt": f"{i} + {i} =", "answer": str(2 * i), "completion": f"{2 * i}"} for i in range(90)]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"world": {"tasks": {"kind": "jsonl", "path": str(folder / "p.jsonl")}}, "mixture": {"problems": ["all"]}}


def dataset(folder: Path) -> dict[str, Any]:
    (folder / "gsm8k" / "main").mkdir(parents=True)
    for split, numbers in (("train", range(40)), ("test", range(40, 60))):
        rows = [{"question": f"What is {i} + {i}?", "answer": f"{i}+{i}\n#### {2 * i}"} for i in numbers]
        (folder / "gsm8k" / "main" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"gsm8k": {"path": str(folder / "gsm8k")}}
    return {
        "world": {"tasks": {"kind": "dataset", "datasets": source}, "prompt": "chat", "end": "<|im_end|>"},
        "mixture": {"gsm8k": ["all"]},
    }


def families(_: Path) -> dict[str, Any]:
    return {"world": {}, "mixture": {"sum": [1], "sort": [2]}}


Profile = Callable[..., str]


@pytest.fixture
def profile(
    world: World, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Profile:
    """Write a profile of a family of models and a kind of tasks, under a name of its own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def written(family: str, kind: Callable[[Path], dict[str, Any]], **defaults: Any) -> str:
        said = kind(tmp_path)
        models = {
            "base": str(folders / f"{family}-student"),
            "anchor": "run:sft@2",
            "teacher": str(folders / f"{family}-teacher"),
        }
        recipes = {
            "sft": {"objective": "sft", "start": "base", "anchor": "base", "teacher": None, "steps": 2,
                    "checkpoints": [1, 2], "group_size": 1, "seeds": [3]},
            "opd": {"objective": "opd"},
            "opd_exact": {"objective": "opd", "estimator": "full_vocab"},
            "rlvr": {"objective": "rlvr"},
        }  # fmt: skip
        content = {
            "world": {"models": models, **said["world"]},
            "defaults": {**DEFAULTS, "mixture": said["mixture"], "max_new_tokens": 4, **defaults},
            "recipes": recipes,
        }
        name = f"any-{abs(hash((request.node.nodeid, tmp_path)))}"
        (world.recipes / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return name

    return written


def bytes_of(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run.path / "checkpoints").iterdir())}


# --- from a profile to a run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind", "compute"),
    [("qwen3", dataset, "bfloat16"), ("llama", file, "float32"), ("gemma3", gym, "float32"),
     ("llama", families, "bfloat16")],
)  # fmt: skip
def test_a_profile_is_trained_from_nothing(
    family: str, kind: Callable[[Path], dict[str, Any]], compute: str, profile: Profile, world: World,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    name = profile(family, kind, compute=compute)
    run = load_or_train("opd", profile=name)
    assert f"the first {TOKENS} tokens are compared" in capsys.readouterr().out
    anchor = next(world.runs.glob("sft-s3-*")) / "checkpoints" / "step_000002.safetensors"
    start = load_file(run.reference / "model.safetensors")
    assert run.reference == world.runs / "models" / f"{name}-sft@2"
    trained = load_file(anchor)
    assert set(trained) == set(start)
    assert all(torch.equal(start[key], trained[key].to(torch.bfloat16)) for key in start)
    moved = load_file(run.checkpoints[-1].path)
    assert any(not torch.equal(moved[key], start[key].float()) for key in start)
    assert run.log[["loss", "reverse_kl_sampled", "kl_to_anchor"]].notna().all(axis=None)
    assert set(run.accuracy["step"]) == {0, 1, 2, 4}
    assert run.accuracy[["greedy_parsed", "sampled_parsed"]].isin([0, 1]).all(axis=None)
    assert load_or_train("rlvr", profile=name).log["loss"].notna().all()


def test_the_end_of_a_world_is_what_sft_teaches_and_what_rollouts_end_with(profile: Profile) -> None:
    learner = runs.make_learner(runs.run_of(load_recipe("sft", profile("qwen3", dataset)), 0), "cpu")
    shown = make_batches(learner)[0].rollouts
    last = [int(row[0][mask[0]][-1]) for row, mask in zip(shown.completion_ids, shown.mask, strict=True)]
    assert set(last) == {learner.tokenizer.convert_tokens_to_ids("<|im_end|>")} == {learner.tokenizer.eos_token_id}
    text = learner.tokenizer.decode(shown.prompt_ids[0][shown.prompt_mask[0]])
    assert text.startswith("<|im_start|>user\nQuestion: What is")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_model_that_is_not_trained_yet_is_named(profile: Profile) -> None:
    name = profile("llama", file)
    recipe = load_recipe("opd", name)
    assert recipe.start == recipe.anchor == f"run:{name}/sft@2"
    with pytest.raises(CheckpointNotFoundError, match=r"load_or_train\('sft'"):
        resolve_model(recipe.start)


def test_a_chain_of_models_without_an_end_is_refused(profile: Profile, world: World) -> None:
    name = profile("llama", file)
    content = yaml.safe_load((world.recipes / f"{name}.yaml").read_text())
    content["world"]["models"]["base"] = "run:opd@4"
    (world.recipes / f"{name}.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match="opd -> sft -> opd"):
        load_or_train("opd", profile=name)
    content["world"]["models"]["base"] = "run:rlvr@3"
    (world.recipes / f"{name}.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match=r"checkpoints \[1, 2, 4\] only"):
        load_or_train("sft", profile=name)


def test_sft_without_demonstrations_is_refused(profile: Profile, tmp_path: Path) -> None:
    name = profile("llama", file)
    rows = [{"prompt": f"{i}", "answer": "1"} for i in range(30)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(RecipeError, match="no demonstration"):
        load_or_train("sft", profile=name)


def test_ctrl_c_keeps_what_is_done_and_the_rerun_ends_the_same(
    profile: Profile, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, inner = profile("qwen3", file, steps=5, checkpoints=[1, 5]), training.apply_update
    with monkeypatch.context() as patch:
        patch.setenv("OPDGEOM_RUNS", str(tmp_path / "untouched"))
        expected = bytes_of(load_or_train("opd", profile=name))

    def stopped(learner: Learner, batch: Batch) -> training.Log:
        if learner.step == 3 and learner.recipe.name == "opd":
            raise KeyboardInterrupt
        return inner(learner, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "apply_update", stopped)
        load_or_train("opd", profile=name)
    assert "stopped after update 3" in capsys.readouterr().out
    again = load_or_train("opd", profile=name)
    assert "resuming after update 3 of 5" in capsys.readouterr().out
    assert bytes_of(again) == expected


# --- vocabularies ----------------------------------------------------------------------------------------------------


def test_unequal_tokenizers_are_refused_with_what_differs() -> None:
    own, other = make_tokenizer(), make_tokenizer(["quite other words, zebras and xylophones, zebras"])
    with pytest.raises(RecipeError, match=r"differ in \d+ entries, such as .*\(2\d\d\)"):
        shared_vocabulary(make_model("llama"), own, {"teacher": (make_model("llama"), other)})
    with pytest.raises(RecipeError, match=f"{TOKENS} tokens, the smallest model 200"):
        shared_vocabulary(make_model("llama", rows=200), own, {})


@pytest.mark.parametrize("family", CONFIGS)
def test_our_logits_are_the_model_s_own_in_every_family(family: str) -> None:
    model = make_model(family)
    with torch.no_grad():  # large enough that a cap or a scale shows
        model.get_input_embeddings().weight.mul_(20)
    check_head(model)


def test_a_head_that_is_not_known_is_refused() -> None:
    model = make_model("cohere")
    del model.config.logit_scale
    with pytest.raises(RecipeError, match="CohereForCausalLM"):
        check_head(model)


# --- parts and pieces are exact --------------------------------------------------------------------------------------


def gradients(learner: Learner, batch: Batch, **fields: Any) -> torch.Tensor:
    state = {key: value.clone() for key, value in learner.student.state_dict().items()}
    part = dataclasses.replace(learner, recipe=dataclasses.replace(learner.recipe, **fields))
    with computing(part.recipe.compute, part.device):
        apply_update(part, batch)
    found = torch.cat([p.grad.flatten().clone() for p in learner.student.parameters() if p.grad is not None])
    learner.student.load_state_dict(state)
    return found


@pytest.mark.parametrize("recipe", ["opd", "opd_exact", "rlvr"])
def test_accumulated_gradients_are_those_of_the_whole_batch(recipe: str, profile: Profile) -> None:
    short = {"prompts_per_update": 6, "max_new_tokens": 9, "grad_clip": 1e9, "compute": "float32"}
    name = profile("llama", gym, micro_batches=1, **short)
    run = runs.run_of(load_recipe(recipe, name), 0)
    runs.bring_models(run.recipe, "cpu")
    learner = runs.make_learner(run, "cpu")
    batch = make_batches(learner)[0]
    batch.rewards[:, 0] = 1 - batch.rewards[:, 1]
    batch.advantages = torch.where(batch.rollouts.mask, torch.randn(batch.advantages.shape), 0.0)
    whole = gradients(learner, batch)
    assert whole.norm() > 0
    for fields in ({"micro_batches": 3}, {"micro_tokens": 40}, {"micro_tokens": 1}, {"gradient_checkpointing": True}):
        torch.testing.assert_close(gradients(learner, batch, **fields), whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_logits_in_pieces_give_what_the_whole_gives(family: str) -> None:
    model, other, tokenizer = make_model(family), make_model(family, 1, PADDED).eval(), make_tokenizer()
    rollouts = _rollouts(model, tokenizer)
    found = []
    for at_once in (10**9, TOKENS * 4, 1):
        model.zero_grad()
        scores = token_scores(model, rollouts, beside=other, vocabulary=TOKENS, logits_at_once=at_once)
        (scores.log_probs.sum() + scores.kl.sum()).backward()
        found.append((*scores, torch.cat([p.grad.flatten() for p in model.parameters()])))
    for pieces in found[1:]:
        for one, whole in zip(pieces, found[0], strict=True):
            torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-6)


def _rollouts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Rollouts:
    generator = torch.Generator().manual_seed(0)
    return roll_out(model, tokenizer, WORDS, group_size=2, max_new_tokens=7, generator=generator)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2"])
def test_bf16_products_come_close_to_fp32(family: str) -> None:
    model, tokenizer = make_model(family), make_tokenizer()
    rollouts = _rollouts(model, tokenizer)
    whole = token_scores(model, rollouts).log_probs
    prepare(model, "bfloat16")
    with computing("bfloat16", torch.device("cpu")):
        half = token_scores(model, rollouts).log_probs
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole)
    torch.testing.assert_close(half, whole, rtol=0, atol=0.03)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_rollouts_in_training_do_not_depend_on_checkpointing(family: str, profile: Profile) -> None:
    """Checkpointed layers lose their cache in training mode, where rollouts after an update would be made."""
    name, drawn = profile(family, gym, max_new_tokens=9), []
    runs.bring_models(load_recipe("opd", name), "cpu")
    for checkpointed in (False, True):
        recipe = dataclasses.replace(load_recipe("opd", name), gradient_checkpointing=checkpointed)
        learner = runs.make_learner(runs.run_of(recipe, 0), "cpu")
        learner.student.train()
        batch = make_batches(learner)[0]
        drawn.append(batch.rollouts)
        assert float(apply_update(learner, batch)["grad_norm"]) > 0
    torch.testing.assert_close(drawn[1].log_probs, drawn[0].log_probs)
    assert torch.equal(drawn[1].completion_ids, drawn[0].completion_ids)


def test_a_tokenizer_saved_with_an_anchor_ends_as_its_world_does(profile: Profile) -> None:
    name = profile("qwen3", dataset)
    run = runs.run_of(load_recipe("rlvr", name), 0)
    runs.bring_models(run.recipe, "cpu")
    assert load_tokenizer(run.recipe.start).eos_token == "<|im_end|>"
