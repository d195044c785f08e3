"""One side of a pair, student or teacher: what its configuration and tokenizer say, without any weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from opdgeom_utils.checkpoints.hub_files import hub_folder
from opdgeom_utils.errors import CheckpointDamagedError, CheckpointNotFoundError
from opdgeom_utils.models import resolve_model

SMALL_FILES = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers")
REASON = 300  # characters of an error that are shown
NO_LIMIT = 10**9  # a tokenizer without a limit says 1e30
ASKED = [{"role": "user", "content": "How much is 2 + 2?"}]
OPEN_THOUGHT = "<think>"
SWITCHES = ("enable_thinking", "thinking")  # what templates call the word that turns thoughts on and off


@dataclass(frozen=True)
class Side:
    """A model as its files describe it.

    ``config``: of its language model.
    ``stops``: tokens at which generation ends: of ``generation_config.json``, else of ``config.json``; ascending.
    ``n_parameters``: every parameter once.
    ``lora_entries``: parameters of a LoRA of rank 1 on every linear map but the head.
    ``quantised``: whether the configuration says that the weights are stored in fewer than 16 bits.
    ``folder``: where its files lie.
    ``stacked``: whether experts lie in stacks, of which ``lora_entries`` counts none.
    """

    name: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerFast
    stops: tuple[int, ...]
    n_parameters: int
    lora_entries: int
    quantised: bool
    folder: Path | None = None
    stacked: bool = False

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
        except Exception as error:  # a template is a program: it can divide by zero
            raise CheckpointDamagedError(
                f"{self.name}: its chat template cannot write a plain question ({error}); mend chat_template.jinja."
            ) from error
        return str(text)

    @property
    def switch(self) -> str | None:
        """The word by which the template turns thoughts on and off, None where it knows none."""
        if self.template is None:
            return None
        return next((word for word in SWITCHES if self.asked(**{word: True}) != self.asked(**{word: False})), None)

    @property
    def thinking(self) -> str:
        """``switch`` where the template thinks unless told otherwise, ``told`` where it does so only when told to.

        ``always`` where it opens a thought and knows no such word, else ``no``.
        """
        if word := self.switch:
            return "told" if self.asked() == self.asked(**{word: False}) else "switch"
        opened = self.template is not None and self.asked().rstrip().endswith(OPEN_THOUGHT)
        return "always" if opened else "no"


def open_side(source: str | Path) -> Side:
    """Read what a model's small files say; the hub is asked for those files only.

    ``source``: a folder, a shipped model (``anchor``) or a hub id (``name`` or ``name@revision``). A path and a name
    with a slash are a folder where there is one, whatever the shipped models are called.
    Raises CheckpointNotFoundError when there is no such model, no configuration or no tokenizer. Raises
    CheckpointDamagedError when the files describe no causal language model that this version of transformers knows.

    >>> side = open_side("anchor")
    >>> side.rows, len(side.tokens), side.stops, side.longest
    (53, 53, (1,), 128)
    """
    folder = _folder_of(source)
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
    except Exception as error:  # each model's configuration checks itself in its own way
        reason = " ".join(str(error).split())[:REASON] or type(error).__name__
        raise CheckpointDamagedError(
            f"{source}: its files describe no causal language model that can be built here ({reason}); code of the "
            "model's own is not run. Update transformers, or check a model of the same shape."
        ) from error
    if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys():  # transformers makes one up
        raise CheckpointNotFoundError(
            f"{source} has a tokenizer_config.json and no vocabulary beside it (tokenizer.json, tokenizer.model, ...); "
            "save the tokenizer beside the model (tokenizer.save_pretrained)."
        )
    config = whole.get_text_config()
    if missing := [name for name in NEEDED if not getattr(config, name, None)]:
        raise CheckpointDamagedError(
            f"{source}: its configuration says no {', '.join(missing)}, and memory cannot be counted from it; check a "
            "model of the same shape."
        )
    linear = [m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and not n.endswith("lm_head")]
    return Side(
        name=str(source),
        config=config,
        tokenizer=tokenizer,
        stops=_stops(source, folder, config),
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        lora_entries=sum(sum(layer.weight.shape) for layer in linear),
        quantised=bool(getattr(whole, "quantization_config", None)),
        folder=folder.resolve(),
        stacked=any(p.dim() == 3 and "experts" in name for name, p in model.named_parameters()),
    )


def _folder_of(source: str | Path) -> Path:
    """Return the folder where a model's small files are; the hub is asked where there is none."""
    try:
        place = Path(source).expanduser()
    except RuntimeError as error:  # ~name, of someone who is not known here
        raise CheckpointNotFoundError(f"{source}: there is no such home folder; write the whole path.") from error
    if place.is_file():
        raise CheckpointNotFoundError(
            f"{source} is a file; give the folder with config.json and the tokenizer. What has none, such as a GGUF "
            "file, was made from a model that has: check that one."
        )
    if not str(source).strip():
        raise CheckpointNotFoundError("a model's name is empty; give a folder, a shipped model or a hub id.")
    if place.is_dir() and (isinstance(source, Path) or "/" in source):
        return place
    name = resolve_model(str(source))
    return Path(name) if Path(name).is_dir() else hub_folder(name, patterns=SMALL_FILES)


def _stops(source: str | Path, folder: Path, config: PreTrainedConfig) -> tuple[int, ...]:
    """Tokens at which transformers' ``generate`` stops."""
    file = folder / "generation_config.json"
    try:
        declared = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        found = declared.get("eos_token_id", getattr(config, "eos_token_id", None))
    except (AttributeError, ValueError) as error:
        raise CheckpointDamagedError(
            f"{source}: its generation_config.json is no block of settings ({error}); restore the file, or delete it."
        ) from error
    ids = found if isinstance(found, list | tuple) else [] if found is None else [found]
    if any(type(token) is not int for token in ids):
        raise CheckpointDamagedError(
            f"{source}: its eos_token_id is {found!r}, expected a token's id or a list of ids; mend "
            f"{file.name if file.is_file() else 'config.json'}."
        )
    return tuple(sorted(set(ids)))
