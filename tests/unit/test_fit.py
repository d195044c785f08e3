"""Will they fit: each trouble that users meet, in a folder that has it; the bytes against real modules and losses."""

import json
import math
import weakref
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    FalconConfig,
    Gemma3Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3MoeConfig,
)

from opdgeom_utils import cli
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, MetricInputError
from opdgeom_utils.fit import Fit, Setting, check_fit
from opdgeom_utils.fit.memory import ACTIVATIONS, CHUNKED, FULL, KV, LOGIT_BYTES, memory_parts
from opdgeom_utils.fit.sides import open_side

END, TURN, ANSWER, THOUGHT = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUIET = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}  # fmt: skip
GPT2_CONFIG = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4)
QWEN3 = {  # as published: width, layers, heads, inner width; 8 heads of keys and values of 128 each, tied
    "0.6B": (1024, 28, 16, 3072),
    "1.7B": (2048, 28, 16, 6144),
    "4B": (2560, 36, 32, 9728),
}
WEIGHTS = ("model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin", "model.gguf", "x.pt")
Save = Callable[..., Path]


def qwen3(size: str, rows: int = 151_936) -> Qwen3Config:
    width, layers, heads, inner = QWEN3[size]
    return Qwen3Config(
        vocab_size=rows, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, head_dim=128,
        num_key_value_heads=8, intermediate_size=inner, tie_word_embeddings=True, max_position_embeddings=32_768,
    )  # fmt: skip


def bpe(
    regular: int, specials: Iterable[str], text: str = "the sum of two numbers is a number 1234567890"
) -> Tokenizer:
    """Train byte pairs on a text, fill up with unused tokens to a size, and add special tokens after these."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator([text], BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    vocabulary = model["vocab"] | {f"<unused {i}>": i for i in range(len(model["vocab"]), regular)}
    full = Tokenizer(BPE(vocabulary, [tuple(pair) for pair in model["merges"]]))
    full.pre_tokenizer, full.decoder = trained.pre_tokenizer, decoders.ByteLevel()
    full.add_special_tokens(list(specials))
    return full


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a model's small files, without weights; an instruct Qwen3 in small unless told otherwise."""

    def saved(
        name: str,
        *,
        config: PreTrainedConfig | None = None,
        core: Tokenizer | None = None,
        end: str | None = ANSWER,
        pad: str | None = END,
        stops: Any = (300, 302),
        template: str | None = CHAT,
        longest: int | None = None,
    ) -> Path:
        folder = tmp_path / name
        (config or Qwen3Config(**TINY, vocab_size=320)).save_pretrained(folder)
        limits = {} if longest is None else {"model_max_length": longest}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core or bpe(300, (END, TURN, ANSWER, THOUGHT)), eos_token=end, pad_token=pad, **limits
        )
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        if stops is not None:
            content = {"eos_token_id": list(stops) if isinstance(stops, tuple) else stops}
            (folder / "generation_config.json").write_text(json.dumps(content))
        return folder

    return saved


def found(fit: Fit, topic: str) -> tuple[str, str, str]:
    """Level, finding and advice of the one finding of a topic."""
    (one,) = [finding for finding in fit.findings if finding.topic == topic]
    return one.level, one.found, one.advice


def levels(fit: Fit) -> dict[str, str]:
    """What is not fine."""
    return {f.topic: f.level for f in fit.findings if f.level != "fine" and f.topic not in ("logits", "learning rate")}


def test_a_pair_of_one_family_has_nothing_to_change(save: Save) -> None:
    student, teacher = save("student"), save("teacher")
    for side in (student, teacher):
        (side / "model.safetensors").write_bytes(b"weights that nobody reads")
    fit = check_fit(student, teacher, gpu_gb=8)
    assert (fit.fits, levels(fit)) == (True, {})
    assert found(fit, "vocabulary")[1] == "logits of 320 entries on both sides for 304 tokens"


# --- true sizes: a base student and an instruct teacher of Qwen3 ------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> Tokenizer:
    return bpe(151_643, (END, TURN, ANSWER, THOUGHT))


@pytest.fixture
def base_and_instruct(save: Save, large: Tokenizer) -> tuple[Path, Path]:
    student = save("base", config=qwen3("0.6B"), core=large, end=END, stops=151_643, template=None, pad=TURN)
    teacher = save("4B", config=qwen3("4B"), core=large, stops=(151_645, 151_643), template=CHAT + QUIET)
    return student, teacher


def test_a_base_student_of_an_instruct_teacher_at_true_size(base_and_instruct: tuple[Path, Path]) -> None:
    fit = check_fit(*base_and_instruct, gpu_gb=24)
    assert fit.fits
    assert levels(fit) == {"end tokens": "change", "chat template": "change", "thinking mode": "change"}
    assert found(fit, "vocabulary")[1] == "logits of 151,936 entries on both sides for 151,647 tokens"
    _, ends, advice = found(fit, "end tokens")
    assert "student stops at <|endoftext|> (151643), its tokenizer writes <|endoftext|> (151643)" in ends
    assert "teacher stops at <|endoftext|> (151643), <|im_end|> (151645), its tokenizer writes <|im_end|>" in ends
    assert "eos_token_id = [151643, 151645]" in advice
    assert "measure how many answers parse" in found(fit, "chat template")[2]
    assert "enable_thinking=False" in found(fit, "thinking mode")[2]
    assert "one fp32 copy for 16 x 256 tokens is 2.49 GB, 148 times the hidden states" in found(fit, "logits")[1]
    assert "unstable" in found(fit, "logits")[2]
    assert "2e-5 to 5e-5 (a LoRA of rank 32: 1e-4)" in found(fit, "learning rate")[1]


def test_memory_of_qwen3_as_it_is_known(save: Save, large: Tokenizer, base_and_instruct: tuple[Path, Path]) -> None:
    student, teacher = base_and_instruct
    fit = check_fit(student, teacher)
    for side, size in ((fit.student, "0.6B"), (fit.teacher, "4B")):
        width, layers, heads, inner = QWEN3[size]
        attention = 2 * width * 128 * heads + 2 * width * 128 * 8 + 2 * 128
        assert side.n_parameters == 151_936 * width + layers * (attention + 3 * width * inner + 2 * width) + width
    trained = ("weights, fp32", "gradients, fp32", "AdamW, two moments in fp32")
    assert sum(fit.memory[part] for part in trained) == pytest.approx(9.5e9, rel=5e-3)
    assert fit.memory["teacher, bf16"] == pytest.approx(8.0e9, rel=1e-2)
    assert fit.memory[FULL] == 16 * fit.memory[CHUNKED]
    # 24 GB hold a full student beside 4B if the loss is chunked; 16 GB hold a LoRA, or the full one beside 1.7B
    whole = check_fit(student, teacher, gpu_gb=24, setting=Setting(full_logits=True))
    assert found(whole, "memory")[2] == "take the loss in chunks of tokens"
    assert not whole.fits
    advice = found(check_fit(student, teacher, gpu_gb=16), "memory")[2]
    assert advice.startswith("train a LoRA of rank 32 over bf16 weights; or keep this setting and take a teacher of")
    assert check_fit(student, teacher, gpu_gb=16, setting=Setting(lora_rank=32)).fits
    smaller = save("1.7B", config=qwen3("1.7B"), core=large)
    assert check_fit(student, smaller, gpu_gb=16).memory["teacher, bf16"] == pytest.approx(3.44e9, rel=2e-3)
    assert check_fit(student, smaller, gpu_gb=16, setting=Setting(micro_batch=4)).fits
    tiny = check_fit(student, teacher, gpu_gb=6)
    assert "put the teacher on another card" in found(tiny, "memory")[2]


def test_the_teacher_that_is_proposed_would_fit(save: Save) -> None:
    student, teacher = save("student", config=qwen3("0.6B")), save("teacher", config=qwen3("1.7B"))
    whole = check_fit(student, teacher)
    card = (whole.peak - 0.1 * whole.memory["teacher, bf16"]) / 2**30
    level, said, advice = found(check_fit(student, teacher, gpu_gb=card), "memory")
    assert (level, f"{whole.peak / 2**30:.1f} GB are needed" in said) == ("stop", True)
    assert f"a teacher of at most {0.9 * whole.teacher.n_parameters / 1e9:.1f} billion parameters" in advice
    assert levels(check_fit(student, teacher, gpu_gb=whole.peak / 2**30 + 1e-9)) == {}


# --- vocabularies -----------------------------------------------------------------------------------------------------


def test_padded_vocabularies_are_compared_on_the_common_part(save: Save, large: Tokenizer) -> None:
    student = save("student", config=Qwen3Config(**TINY, vocab_size=151_936), core=large)
    teacher = save("teacher", config=Qwen3Config(**TINY, vocab_size=152_064), core=large)
    level, said, advice = found(check_fit(student, teacher), "vocabulary")
    assert level == "change"
    assert "logits of 151,936 and 152,064 entries (student, teacher) for 151,647 tokens" in said
    assert "first 151,647 entries" in advice
    assert "student.resize_token_embeddings(152064)" in advice
    assert "teacher.resize_token_embeddings(152064)" in found(check_fit(teacher, student), "vocabulary")[2]


def test_an_embedding_without_rows_for_its_tokens_stops(save: Save) -> None:
    short = save("short", config=Qwen3Config(**TINY, vocab_size=302))
    level, said, advice = found(check_fit(save("student"), short), "vocabulary")
    assert (level, "id 303, its embedding only 302 rows" in said) == ("stop", True)
    assert "resize_token_embeddings(304)" in advice


def test_other_tokenizers_stop_with_what_differs(save: Save) -> None:
    other = bpe(300, (END, TURN, ANSWER, THOUGHT), text="quite another text, zzz zzz qux qux")
    fit = check_fit(save("student"), save("teacher", core=other))
    level, said, advice = found(fit, "tokens")
    ours, theirs = fit.student.tokens, fit.teacher.tokens
    first = next(i for i in range(304) if ours[i] != theirs[i])
    assert (level, fit.fits, f"{first} is {ours[first]!r} and {theirs[first]!r}" in said) == ("stop", False, True)
    assert f"{sum(ours[i] != theirs[i] for i in range(304))} of 304 ids mean different tokens" in said
    assert "more" in said
    assert "GOLD" in advice


def test_a_special_token_under_another_id_stops(save: Save) -> None:
    swapped = save("teacher", core=bpe(300, (TURN, END, ANSWER, THOUGHT)), stops=(301, 302))
    assert found(check_fit(save("student"), swapped), "tokens")[:2] == (
        "stop",
        "2 of 304 ids mean different tokens, in student and teacher: "
        f"300 is {END!r} and {TURN!r}, 301 is {TURN!r} and {END!r}",
    )


def test_tokens_that_one_side_has_more_are_named(save: Save) -> None:
    student = save("student", core=bpe(300, (END, TURN, ANSWER)))
    level, said, _ = found(check_fit(student, save("teacher")), "tokens")
    assert (level, "303 tokens agree" in said, "has 1 more: 303 '<think>'" in said) == ("change", True, True)


def test_texts_that_are_cut_differently_are_told(save: Save) -> None:
    core = bpe(300, (END, TURN, ANSWER, THOUGHT))
    digits = pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    fit = check_fit(save("student"), save("teacher", core=core))
    level, said, _ = found(fit, "tokens")
    counts = [len(side.tokenizer("1234").input_ids) for side in (fit.student, fit.teacher)]
    assert (level, counts[1], counts[0] < 4, "cut differently" in said) == ("change", 4, True, True)


@pytest.mark.parametrize("normalizer", [normalizers.NFC(), normalizers.NFD(), normalizers.Strip()], ids=str)
def test_normalizers_that_change_texts_are_told(save: Save, normalizer: normalizers.Normalizer) -> None:
    core = bpe(300, (END, TURN, ANSWER, THOUGHT))
    core.normalizer = normalizer
    level, said, _ = found(check_fit(save("student"), save("teacher", core=core)), "tokens")
    assert (level, "the 304 tokens agree, but texts are cut differently" in said) == ("change", True)


def test_a_token_that_one_side_never_reads_as_one_is_told(save: Save) -> None:
    content = json.loads(bpe(300, (END, TURN, ANSWER, THOUGHT)).to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != THOUGHT]
    content["model"]["vocab"] |= {END: 300, TURN: 301, ANSWER: 302, THOUGHT: 303}
    teacher = save("teacher", core=Tokenizer.from_str(json.dumps(content)))
    level, said, _ = found(check_fit(save("student"), teacher), "tokens")
    assert (level, "'a <think> b' into 5 and 11 tokens" in said) == ("change", True)  # its seven letters and signs


def test_a_mark_before_every_text_is_told(save: Save) -> None:
    core = bpe(300, (END, TURN, ANSWER, THOUGHT))
    core.post_processor = processors.TemplateProcessing(single=f"{TURN} $A", special_tokens=[(TURN, 301)])
    marked, plain = save("marked", core=core), save("plain")
    assert found(check_fit(plain, marked), "tokens")[:2] == (
        "change",
        "the 304 tokens agree, but around a text the student's tokenizer puts nothing, the teacher's "
        "<|im_start|> (301)",
    )
    assert levels(check_fit(marked, save("marked too", core=core))) == {}


# --- ends, templates, lengths, sizes ----------------------------------------------------------------------------------


def test_ends_come_from_where_generate_takes_them(save: Save) -> None:
    config = Qwen3Config(**TINY, vocab_size=320, eos_token_id=300)
    assert open_side(save("config", config=config, stops=None)).stops == (300,)
    assert open_side(save("one", config=config, stops=302)).stops == (302,)
    assert open_side(save("several", config=config, stops=(302, 300))).stops == (300, 302)


def test_no_end_and_an_end_that_is_padding(save: Save) -> None:
    endless = save("endless", end=None, stops=None, config=Qwen3Config(**TINY, vocab_size=320, eos_token_id=None))
    fit = check_fit(endless, save("teacher"))
    assert "endless declares no end token" in found(fit, "end tokens")[1]
    padded = check_fit(save("padded", pad=ANSWER), save("teacher"))
    assert levels(padded) == {"padding token": "change"}
    assert "pads with its end token, <|im_end|> (302)" in found(padded, "padding token")[1]
    bare = check_fit(save("bare", pad=None), save("teacher"))
    assert found(bare, "padding token")[:2] == (
        "change", "the student's tokenizer has no padding token, and texts of one batch are padded"
    )  # fmt: skip


def test_an_end_that_generate_reads_over_is_told_where_both_sides_have_it(save: Save) -> None:
    fit = check_fit(save("student", stops=300), save("teacher", stops=300))  # Llama 3 as it came out: ends in a turn's
    level, said, advice = found(fit, "end tokens")
    assert (level, said.count("stops at <|endoftext|> (300), its tokenizer writes <|im_end|> (302)")) == ("change", 2)
    assert "to [300, 302]" in advice
    config = Qwen3Config(**TINY, vocab_size=320, eos_token_id=None)
    endless = check_fit(save("a", stops=None, config=config), save("b", stops=None, config=config))
    assert "stops at nothing, its tokenizer writes <|im_end|> (302)" in found(endless, "end tokens")[1]


@pytest.mark.parametrize("said", ['"302"', "[[302]]", "302.0", "true"])
def test_an_end_that_is_no_id_is_refused(save: Save, said: str) -> None:
    (folder := save("side")).joinpath("generation_config.json").write_text(f'{{"eos_token_id": {said}}}')
    with pytest.raises(CheckpointDamagedError, match=r"expected a token's id .*; mend generation_config\.json"):
        open_side(folder)


def test_templates_are_compared_by_what_they_write(save: Save, tmp_path: Path) -> None:
    plain = CHAT.replace("{{ m.role }}", "{{ m['role'] }}")
    assert levels(check_fit(save("student"), save("teacher", template=plain))) == {}
    assert levels(check_fit(save("none", template=None), save("bare", template=None))) == {}
    other = CHAT.replace("assistant", "model")
    level, said, _ = found(check_fit(save("student"), save("teacher", template=other)), "chat template")
    assert (level, "assistant" in said, "model" in said) == ("change", True, True)
    level, said, advice = found(check_fit(save("student"), tmp_path / "bare"), "chat template")
    assert (level, said) == ("change", "the student has one, the teacher has none")
    assert "teacher_tokenizer.chat_template = student_tokenizer.chat_template" in advice


def test_thinking_is_seen_in_what_the_template_writes(save: Save) -> None:
    plain, switch = save("plain"), save("switch", template=CHAT + QUIET)
    always = save("always", template=CHAT + "<think>\n")
    assert [open_side(side).thinking for side in (plain, switch, always)] == ["no", "switch", "always"]
    assert levels(check_fit(plain, switch)) == {"thinking mode": "change"}
    assert levels(check_fit(switch, save("as well", template=CHAT + QUIET))) == {"thinking mode": "note"}
    level, _, advice = found(check_fit(plain, always), "thinking mode")
    assert (level, "answers at once" in advice, "256 tokens" in advice) == ("change", True, True)


@pytest.mark.parametrize("word", ["enable_thinking", "thinking"])
def test_thoughts_that_come_only_when_told_to(save: Save, word: str) -> None:
    told = save("told", template=CHAT + f"{{% if {word} is defined and {word} %}}<think>\n{{% endif %}}")
    assert open_side(told).thinking == "told"
    level, said, advice = found(check_fit(save("plain"), told), "thinking mode")
    assert (level, "the teacher thinks only when told to" in said) == ("note", True)
    assert advice == f"leave thoughts off on both sides: {word}=False"
    other = save("other", template=CHAT + QUIET)
    both = "thinking=False (student) and enable_thinking=False (teacher)"
    advice = found(check_fit(told, other), "thinking mode")[2]
    assert (both if word == "thinking" else "prompts with enable_thinking=False on both sides") in advice


def test_lengths_count_prompt_and_completion_on_both_sides(save: Save) -> None:
    teacher = save("teacher", config=Qwen3Config(**TINY, vocab_size=320, max_position_embeddings=600))
    setting = Setting(prompt_tokens=200, completion_tokens=401)
    level, said, advice = found(check_fit(save("student"), teacher, setting=setting), "lengths")
    assert (level, "32,768 and 600 tokens" in said, "601" in said) == ("stop", True, True)
    assert advice == "complete at most 400 tokens"
    short = found(check_fit(save("short", longest=150), teacher, setting=setting), "lengths")[2]
    assert short == "prompt and completion together have at most 150, such as 75 and 75"
    assert levels(check_fit(save("student"), teacher, setting=Setting(prompt_tokens=200, completion_tokens=400))) == {}


def test_a_teacher_can_be_too_large(save: Save) -> None:
    student = save("student")
    for width, level in ((128, "fine"), (512, "change")):
        teacher = save(f"teacher {width}", config=Qwen3Config(**{**TINY, "hidden_size": width}, vocab_size=320))
        ratio = open_side(teacher).n_parameters / open_side(student).n_parameters
        assert (ratio > 10) == (level == "change")
        assert found(check_fit(student, teacher), "teacher")[:2] == (
            level,
            f"the teacher has {ratio:.1f} times the student's parameters",
        )


def test_a_model_is_no_teacher_of_itself_and_a_smaller_one_is_asked_after(save: Save) -> None:
    student = save("student")
    level, said, _ = found(check_fit(student, student / ".." / "student"), "teacher")
    assert (level, said) == ("change", "student and teacher are the same files")
    large = save("large", config=Qwen3Config(**{**TINY, "hidden_size": 512}, vocab_size=320))
    ratio = open_side(student).n_parameters / open_side(large).n_parameters
    level, said, advice = found(check_fit(large, student), "teacher")
    assert (level, f"{ratio:.2f} times" in said, "exchanged" in advice) == ("note", True, True)


def test_a_quantised_student_is_not_trained_in_full(save: Save) -> None:
    student, teacher = save("student"), save("teacher")
    content = json.loads((student / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (student / "config.json").write_text(json.dumps(content))
    assert levels(check_fit(student, teacher)) == {"quantised weights": "stop"}
    assert levels(check_fit(student, teacher, setting=Setting(lora_rank=8))) == {"quantised weights": "note"}


def test_quantised_weights_are_said(save: Save) -> None:
    teacher = save("teacher")
    content = json.loads((teacher / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (teacher / "config.json").write_text(json.dumps(content))
    assert levels(check_fit(save("student"), teacher)) == {"quantised weights": "note"}


# --- bytes against what torch holds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (LlamaConfig, {}),
        (Qwen3Config, {}),
        (MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 3}),
        (Qwen3MoeConfig, {"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 64}),
    ],
)
@pytest.mark.parametrize(("inner", "kv_heads", "layers"), [(384, 2, 2), (640, 4, 6)])
def test_activations_are_near_what_autograd_saves(
    save: Save, kind: type[PreTrainedConfig], more: dict[str, int], inner: int, kv_heads: int, layers: int
) -> None:
    config = kind(
        vocab_size=320, hidden_size=128, num_hidden_layers=layers, num_attention_heads=4, head_dim=32,
        num_key_value_heads=kv_heads, intermediate_size=inner, **more,
    )  # fmt: skip
    side = open_side(save("side", config=config))
    setting = Setting(4, 4, 20, 30, checkpointing=False)
    model = AutoModelForCausalLM.from_config(config).model
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copies = {2 * p.numel() for p in model.parameters() if p.dim() == 2}  # casts of the weights are a part of their own
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.nbytes() not in copies:
            saved[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.zeros(4, 50, dtype=torch.long))
    real = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert memory_parts(side, side, setting)[ACTIVATIONS] == pytest.approx(real, rel=0.3)


def test_keys_and_values_are_those_of_a_real_cache(save: Save) -> None:
    side = open_side(save("side"))
    model = AutoModelForCausalLM.from_config(side.config, dtype=torch.bfloat16)
    cache = model(input_ids=torch.zeros(3, 12, dtype=torch.long), use_cache=True).past_key_values
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert memory_parts(side, side, Setting(3, 3, 5, 7))[KV] == real


def test_a_falcon_has_one_head_of_keys(save: Save) -> None:
    config = FalconConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    side = open_side(save("side", config=config))
    assert memory_parts(side, side, Setting())[KV] == 2 * 2 * 8 * 2 * 16 * 512  # bf16, keys and values, two layers


def test_layers_that_differ_are_counted_by_the_largest(save: Save) -> None:
    sizes = {"num_hidden_layers": 6, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8, "global_head_dim": 16}
    config = Gemma4TextConfig(**{**TINY, **sizes}, vocab_size=320, vocab_size_per_layer_input=320)
    side = open_side(save("side", config=config))
    assert check_fit(side.folder or "", save("student"), setting=Setting(4)).memory[KV] == 2 * 2 * 2 * 16 * 6 * 4 * 512


def test_all_that_is_sampled_is_learned_from_at_once_unless_told_otherwise(save: Save) -> None:
    side = open_side(save("side"))
    said = [memory_parts(side, side, Setting(8, micro)) for micro in (None, 8, 4)]
    assert said[0] == said[1] != said[2]


def test_experts_are_counted_and_their_lora_is_said_to_be_left_out(save: Save) -> None:
    config = MixtralConfig(**TINY, vocab_size=320, num_local_experts=4)
    side, model = open_side(save("side", config=config)), AutoModelForCausalLM.from_config(config)
    assert side.n_parameters == sum(p.numel() for p in model.parameters())
    assert side.n_parameters > 2 * 4 * 3 * 32 * 48  # two layers, four experts, three matrices
    other = save("other", config=config)
    assert levels(check_fit(side.folder or "", other, setting=Setting(lora_rank=4))) == {"experts": "note"}
    assert levels(check_fit(side.folder or "", other)) == {}


@pytest.mark.parametrize("config", [Qwen3Config(**TINY, vocab_size=320), GPT2_CONFIG], ids=["qwen3", "gpt2"])
def test_a_lora_has_as_many_parameters_as_peft_makes(save: Save, config: PreTrainedConfig) -> None:
    side = open_side(save("side", config=config))
    model = get_peft_model(AutoModelForCausalLM.from_config(side.config), LoraConfig(r=3, target_modules="all-linear"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parts = memory_parts(side, side, Setting(lora_rank=3))
    assert parts["LoRA of rank 3, fp32"] == 4 * trained
    assert parts["weights, bf16"] == 2 * side.n_parameters


class _Held(TorchDispatchMode):
    """The most bytes that tensors made inside it held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.now:
                self.now[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.now.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.now.values()))
        return out


def test_a_plain_loss_over_the_vocabulary_holds_so_many_copies() -> None:
    hidden = torch.randn(64, 8).bfloat16().requires_grad_()
    head = torch.randn(4000, 8).bfloat16()

    def loss() -> torch.Tensor:
        student = (hidden @ head.T).float().log_softmax(-1)
        with torch.no_grad():
            teacher = (hidden @ head.T).float().log_softmax(-1)
        return (student.exp() * (student - teacher)).sum(-1).mean()

    with _Held() as held:
        loss().backward()
    assert held.most / (64 * 4000) == pytest.approx(LOGIT_BYTES, rel=0.1)


# --- what is not there, and the command -------------------------------------------------------------------------------


def test_what_is_missing_is_said_with_what_to_do(save: Save, tmp_path: Path) -> None:
    side = save("side")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointNotFoundError, match=r"empty has no config\.json; .* of an adapter, give its base"):
        open_side(tmp_path / "empty")
    bare = save("bare")
    (bare / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"bare has no tokenizer_config\.json; save the tokenizer"):
        open_side(bare)
    with pytest.raises(CheckpointDamagedError, match="no causal language model that can be built here"):
        open_side(save("own code", config=PreTrainedConfig(vocab_size=320)))
    broken = save("broken", template=CHAT + "{{ raise_exception('no such role') }}")
    with pytest.raises(CheckpointDamagedError, match=r"broken: its chat template .*no such role"):
        check_fit(side, broken)
    for wrong in ({"gpu_gb": 0.0}, {"gpu_gb": -24}, {"gpu_gb": float("nan")}, {"gpu_gb": math.inf}):
        with pytest.raises(MetricInputError, match="expected a positive number"):
            check_fit(side, side, **wrong)
    for counts in ({"sequences": 0}, {"lora_rank": 0}, {"micro_batch": -1}):
        with pytest.raises(MetricInputError, match="expected counts of at least 1"):
            Setting(**counts)


def test_a_folder_is_not_taken_for_a_shipped_model_of_its_name(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("teacher")
    monkeypatch.chdir(tmp_path)
    for source in ("./teacher", "teacher/", Path("teacher"), str(tmp_path / "teacher")):
        assert (open_side(source).rows, open_side(source).folder) == (320, tmp_path / "teacher")
    shipped = check_fit("anchor", "teacher")
    assert shipped.teacher.rows == 53
    level, said, advice = found(shipped, "name")
    assert (level, advice) == ("change", "write ./teacher for the folder")
    assert "teacher is taken for the model that comes with the book" in said


def test_a_tokenizer_that_transformers_makes_up_is_refused(save: Save) -> None:
    folder = save("side", config=LlamaConfig(**TINY, vocab_size=320))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    assert len(AutoTokenizer.from_pretrained(folder)) == 1  # no error, and a vocabulary of one token
    with pytest.raises(CheckpointNotFoundError, match=r"side has a tokenizer_config\.json and no vocabulary beside it"):
        open_side(folder)


def test_what_cannot_be_read_ends_in_plain_words(save: Save, tmp_path: Path) -> None:
    def changed(name: str, **fields: Any) -> Path:
        content = json.loads(((folder := save(name)) / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | fields))
        return folder

    for folder, reason in (
        (changed("text", hidden_size="32"), "Field 'hidden_size' expected int, got str"),
        (changed("heads", num_attention_heads=0), "modulo by zero"),
        (changed("padding", pad_token_id=999), "Padding_idx must be within num_embeddings"),
    ):
        with pytest.raises(CheckpointDamagedError, match=f"no causal language model .*{reason}"):
            open_side(folder)
    for content in ("[]", "{", ""):
        (folder := save("broken")).joinpath("generation_config.json").write_text(content)
        with pytest.raises(CheckpointDamagedError, match=r"its generation_config\.json is no block of settings"):
            open_side(folder)
    with pytest.raises(CheckpointDamagedError, match=r"cannot write a plain question \(division by zero"):
        check_fit(save("zero", template="{{ 1 / 0 }}"), save("side"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointNotFoundError, match=r"model\.gguf is a file; give the folder"):
        open_side(tmp_path / "model.gguf")
    with pytest.raises(CheckpointNotFoundError, match="a model's name is empty"):
        open_side(" ")
    with pytest.raises(CheckpointNotFoundError, match="no such home folder"):
        open_side("~nobody-of-this-name/model")


def test_other_families_are_read_too(save: Save) -> None:
    mamba = save("mamba", config=MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2))
    assert check_fit(mamba, mamba).memory[KV] == 0
    words = Gemma3TextConfig(**TINY, vocab_size=320)
    both = save("gemma", config=Gemma3Config(text_config=words))
    assert open_side(both).longest == words.max_position_embeddings
    assert check_fit(both, save("student")).memory[KV] == 2 * 2 * (2 * 8) * 2 * 16 * 512  # bf16, keys and values


def test_an_encoder_is_no_student(save: Save) -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=320)
    (folder := save("vision", config=config)).joinpath("config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "model_type": "vit"})
    )
    with pytest.raises(CheckpointDamagedError, match="no causal language model"):
        open_side(folder)


def test_of_a_hub_name_only_small_files_are_fetched(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = save("cached"), []

    def snapshot(repo_id: str, *, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        asked.extend([repo_id, revision, *(name for name in WEIGHTS if any(fnmatch(name, p) for p in allow_patterns))])
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert open_side("some-owner/some-model@v2").rows == 320
    assert asked == ["some-owner/some-model", "v2"]


def test_the_command_exits_with_1_where_they_do_not_fit(save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = str(save("student")), str(save("teacher", template=CHAT + QUIET))
    assert cli.main(["check", student, teacher, "--gpu-gb", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"student  {student}: ")
    assert lines[-1] == "they fit; change first: thinking mode."
    assert lines[2].startswith("change   thinking mode: ")
    assert cli.main(["check", student, teacher, "--gpu-gb", "0.5", "--lora-rank", "8", "--micro-batch", "99"]) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "they do not fit: memory."
    assert "LoRA of rank 8, fp32" in said
    assert cli.main(["check", student, "no-such-model"]) == 1
    assert "nothing was checked" in capsys.readouterr().err
