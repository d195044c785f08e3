"""One side of a pair, student or teacher: what its configuration and tokenizer say, without any weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from opdgeom_utils.checkpoints.hub_files import hub_folder
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError
from opdgeom_utils.models import resolve_model

SMALL_FILES = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
NO_LIMIT = 10**9  # a tokenizer without a limit says 1e30
ASKED = [{"role": "user", "content": "How much is 2 + 2?"}]
OPEN_THOUGHT = "<think>"


@dataclass(frozen=True)
class Side:
    """A model as its files describe it.

    ``config``: of its language model.
    ``stops``: tokens at which generation ends: of ``generation_config.json``, else of ``config.json``; ascending.
    ``n_parameters``: every parameter once.
    ``lora_entries``: parameters of a LoRA of rank 1 on every linear map but the head.
    ``quantised``: whether the configuration says that the weights are stored in fewer than 16 bits.
    """

    name: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerFast
    stops: tuple[int, ...]
    n_parameters: int
    lora_entries: int
    quantised: bool

    @property
    def rows(self) -> int:
        """Entries of a logit vector: tokens and padding."""
        return int(self.config.vocab_size)

    @property
    def longest(self) -> int | None:
        """Longest text in tokens, None where nothing limits it."""
        limits = (getattr(self.config, "max_position_embeddings", None), self.tokenizer.model_max_length)
        return min((int(limit) for limit in limits if limit and limit < NO_LIMIT), default=None)

    @property
    def end(self) -> int | None:
        """The token that its tokenizer ends a text with."""
        found: Any = self.tokenizer.eos_token_id
        return found

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Token of each id."""
        return {i: token for token, i in self.tokenizer.get_vocab().items()}

    @property
    def template(self) -> str | None:
        """The chat template, None where there is none; of several the one called ``default``."""
        found: Any = self.tokenizer.chat_template
        return found.get("default") if isinstance(found, dict) else found or None

    def asked(self, **options: Any) -> str:
        """Return a short question in the chat template, up to where the answer begins."""
        try:
            text = self.tokenizer.apply_chat_template(
                ASKED, chat_template=self.template, tokenize=False, add_generation_prompt=True, **options
            )
        except (TemplateError, TypeError) as error:
            raise CheckpointDamagedError(
                f"{self.name}: its chat template cannot write a plain question ({error}); mend chat_template.jinja."
            ) from error
        return str(text)

    @property
    def thinking(self) -> str:
        """``switch`` where the template knows ``enable_thinking``, ``always`` where it opens a thought, else ``no``."""
        if self.template is None:
            return "no"
        if self.asked(enable_thinking=True) != self.asked(enable_thinking=False):
            return "switch"
        return "always" if self.asked().rstrip().endswith(OPEN_THOUGHT) else "no"


def open_side(source: str | Path) -> Side:
    """Read what a model's small files say; the hub is asked for those files only.

    ``source``: a folder, a shipped model (``anchor``) or a hub id (``name`` or ``name@revision``).
    Raises CheckpointNotFoundError when there is no such model, no configuration or no tokenizer. Raises
    CheckpointDamagedError when the files describe no causal language model that this version of transformers knows.

    >>> side = open_side("anchor")
    >>> side.rows, len(side.tokens), side.stops, side.longest
    (53, 53, (1,), 128)
    """
    name = resolve_model(Path(source).expanduser() if str(source).startswith("~") else source)
    folder = Path(name) if Path(name).is_dir() else hub_folder(name, patterns=SMALL_FILES)
    for file, remedy in (
        ("config.json", "give the folder of the whole model; of an adapter, give its base"),
        ("tokenizer_config.json", "save the tokenizer beside the model (tokenizer.save_pretrained)"),
    ):
        if not (folder / file).is_file():
            raise CheckpointNotFoundError(f"{source} has no {file}; {remedy}.")
    try:
        whole = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(whole)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        stops = _stops(folder, whole.get_text_config())
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointDamagedError(
            f"{source}: its files describe no causal language model that can be built here ({reason}); code of the "
            "model's own is not run. Update transformers, or check a model of the same shape."
        ) from error
    linear = [m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and not n.endswith("lm_head")]
    return Side(
        name=str(source),
        config=whole.get_text_config(),
        tokenizer=tokenizer,
        stops=stops,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        lora_entries=sum(sum(layer.weight.shape) for layer in linear),
        quantised=getattr(whole, "quantization_config", None) is not None,
    )


def _stops(folder: Path, config: PreTrainedConfig) -> tuple[int, ...]:
    """Tokens at which transformers' ``generate`` stops."""
    file = folder / "generation_config.json"
    declared = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = declared.get("eos_token_id", config.eos_token_id)
    return tuple(sorted({found} if isinstance(found, int) else set(found or ())))
