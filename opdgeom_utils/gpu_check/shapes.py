"""Qwen3 in its published shapes, by transformers' own classes and with random weights: no file is read, no network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import torch
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.fit.sides import Side
from opdgeom_utils.models import PAD
from opdgeom_utils.tasks import CHARACTERS, END

SIZE = re.compile(r"Qwen3-(?P<size>[\d.]+B)")


@dataclass(frozen=True)
class Shape:
    """What decides the sizes of a Qwen3's tensors; ``tokens`` of the ``rows`` of its vocabulary have a meaning."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    tied: bool
    kv_heads: int = 8
    head_width: int = 128
    rows: int = 151_936
    tokens: int = 151_669


SHAPES = {
    "0.6B": Shape(1024, 28, 16, 3072, tied=True),
    "1.7B": Shape(2048, 28, 16, 6144, tied=True),
    "4B": Shape(2560, 36, 32, 9728, tied=True),
    "8B": Shape(4096, 36, 32, 12288, tied=False),
}
TINY = Shape(48, 2, 4, 96, tied=True, kv_heads=2, head_width=16, rows=80, tokens=64)


def size_of(model: str) -> str:
    """Return the size that a name says.

    >>> size_of("Qwen/Qwen3-1.7B"), size_of("Qwen/Qwen3-0.6B-Base")
    ('1.7B', '0.6B')
    """
    found = SIZE.search(model)
    if not found or found["size"] not in SHAPES:
        raise MetricInputError(f"{model!r} is no Qwen3 of a size that is known here: {', '.join(SHAPES)}.")
    return found["size"]


def config_of(shape: Shape, *, layers: int | None = None) -> Qwen3Config:
    """Return a configuration, of fewer layers if asked.

    >>> config_of(SHAPES["0.6B"]).hidden_size
    1024
    """
    return Qwen3Config(
        vocab_size=shape.rows,
        hidden_size=shape.hidden,
        num_hidden_layers=layers or shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        intermediate_size=shape.mlp,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def random_model(config: Qwen3Config, device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """Make an untrained model where it will stay; torch's own random numbers on the processor go on as before."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


@cache
def made_tokenizer(tokens: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token a character, filled up to ``tokens`` with words that no prompt has.

    >>> tokenizer = made_tokenizer(100)
    >>> len(tokenizer), len(tokenizer("47+38=")["input_ids"])
    (100, 6)
    """
    own = [PAD, END, *CHARACTERS]
    vocabulary = {token: i for i, token in enumerate([*own, *(f"<{i}>" for i in range(len(own), tokens))])}
    core = Tokenizer(WordLevel(vocabulary, unk_token=PAD))
    core.pre_tokenizer, core.decoder = Split(Regex("."), behavior="isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=END, padding_side="left")


def side_of(size: str) -> Side:
    """Return what a plan needs to know of a size.

    >>> round(side_of("0.6B").n_parameters / 1e9, 3)
    0.596
    """
    shape = SHAPES[size]
    model = random_model(config_of(shape), "meta", torch.bfloat16)
    count = sum(parameter.numel() for parameter in model.parameters())
    return Side(f"Qwen3-{size}", model.config, made_tokenizer(shape.tokens), (1,), count, 0, quantised=False)
