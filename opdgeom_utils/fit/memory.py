"""What an on-policy distillation takes of a card's memory, by part, counted from shapes.

Parts are told in 10^9 bytes. Cards count in 2^30: one of 24 GB holds 25.8 of these.

The student is trained by AdamW: in full with fp32 master weights under bf16 autocast, or as a LoRA over bf16 weights.
The teacher is in bf16. Counted exactly: weights, gradients, AdamW, one copy of the logits. Roughly: activations, which
assume attention that keeps no square of the length (flash, SDPA), the number of logit copies that a plain loss holds,
and the keys and values of a rollout, an upper bound for models with a sliding window or compressed keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.fit.sides import Side

GB, CARD_GB = 10**9, 2**30
LIBRARIES = GB  # CUDA context, work space of the kernels
CHUNK = 256  # tokens whose logits exist at once in a chunked loss
LOGIT_BYTES = 20  # for each entry of the logits: reverse KL over the vocabulary, both sides, forward and backward
RANK = 32  # of the LoRA that is proposed
GRADIENTS, KV, ACTIVATIONS = "gradients, fp32", "keys and values of the rollouts", "activations"
FULL, CHUNKED = "logits, all at once", f"logits, {CHUNK} tokens at a time"
IN_TURN = (GRADIENTS, KV, ACTIVATIONS, FULL, CHUNKED)  # of a rollout, or of the learning after it


@dataclass(frozen=True)
class Setting:
    """How the training is run.

    ``sequences``, ``micro_batch``: completions that are sampled at once; completions in one forward and backward pass,
    None for all that are sampled.
    ``prompt_tokens``, ``completion_tokens``: longest prompt and longest completion.
    ``lora_rank``: None trains every weight.
    ``full_logits``: whether all logits of a micro-batch exist at once; else ``CHUNK`` tokens' at a time.
    ``checkpointing``: whether activations are computed again in the backward pass.
    """

    sequences: int = 16
    micro_batch: int | None = None
    prompt_tokens: int = 256
    completion_tokens: int = 256
    lora_rank: int | None = None
    full_logits: bool = False
    checkpointing: bool = True

    def __post_init__(self) -> None:
        counts = [self.sequences, self.prompt_tokens, self.completion_tokens, self.micro_batch, self.lora_rank]
        if min(count for count in counts if count is not None) < 1:
            raise MetricInputError(f"{self}: expected counts of at least 1; without a LoRA leave its rank out.")

    @property
    def together(self) -> int:
        """Completions in one forward and backward pass.

        >>> Setting(sequences=8).together
        8
        """
        return self.sequences if self.micro_batch is None else self.micro_batch

    @property
    def tokens(self) -> int:
        """Longest text."""
        return self.prompt_tokens + self.completion_tokens


def memory_parts(student: Side, teacher: Side, setting: Setting) -> dict[str, int]:
    """Bytes of each part; both ways of holding the logits are there, whichever the setting takes.

    >>> from opdgeom_utils.fit.sides import open_side
    >>> parts = memory_parts(open_side("anchor"), open_side("teacher"), Setting())
    >>> parts["gradients, fp32"] / parts["teacher, bf16"]
    2.0
    """
    n, completions = student.n_parameters, setting.together * setting.completion_tokens
    if setting.lora_rank is None:
        trained = {"weights, fp32": 4 * n, "their bf16 copy under autocast": 2 * n}
    else:
        n = setting.lora_rank * student.lora_entries
        trained = {"weights, bf16": 2 * student.n_parameters, f"LoRA of rank {setting.lora_rank}, fp32": 4 * n}
    copies = LOGIT_BYTES * max(student.rows, teacher.rows)
    return {
        **trained,
        GRADIENTS: 4 * n,
        "AdamW, two moments in fp32": 8 * n,
        "teacher, bf16": 2 * teacher.n_parameters,
        "libraries": LIBRARIES,
        KV: 4 * widths(student.config)[1] * student.config.num_hidden_layers * setting.sequences * setting.tokens,
        ACTIVATIONS: _activations(student.config, setting),
        FULL: copies * completions,
        CHUNKED: copies * min(CHUNK, completions),
    }


def peak(parts: dict[str, int], setting: Setting) -> int:
    """Bytes at the fullest moment: what stays, and the larger of rollout and learning."""
    learning = parts[GRADIENTS] + parts[ACTIVATIONS] + parts[FULL if setting.full_logits else CHUNKED]
    return sum(size for part, size in parts.items() if part not in IN_TURN) + max(parts[KV], learning)


def one_copy(side: Side, setting: Setting) -> int:
    """Bytes of one fp32 copy of the logits of every completion."""
    return 4 * side.rows * setting.sequences * setting.completion_tokens


def smaller(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """Yield what to change and the setting that has it: one thing, else two and more, what costs least first."""
    changes = [
        ("take the loss in chunks of tokens", {"full_logits": False}),
        ("turn on gradient checkpointing", {"checkpointing": True}),
        ("4 completions in a micro-batch, and accumulate", {"micro_batch": min(4, setting.together)}),
        ("1 completion in a micro-batch, and accumulate", {"micro_batch": 1}),
        (f"train a LoRA of rank {RANK} over bf16 weights", {"lora_rank": setting.lora_rank or RANK}),
        ("sample 4 completions at once", {"sequences": min(4, setting.sequences)}),
    ]
    setting = replace(setting, micro_batch=setting.together)
    useful = [change for change in changes if replace(setting, **change[1]) != setting]
    for count in range(1, len(useful) + 1):
        for chosen in combinations(useful, count):
            values = {name: value for _, change in chosen for name, value in change.items()}
            yield "; ".join(word for word, _ in chosen), replace(setting, **values)


def widths(config: Any) -> tuple[int, int, int]:
    """Entries of a token in one layer: of its queries, of its keys (its values have as many), inside a dense MLP.

    Where layers differ, the most of each.
    """
    try:
        heads, width = _heads(config)
        keys = (getattr(config, "num_key_value_heads", None) or heads) * width
        if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
            keys = width  # Falcon's word for one head of keys
        dense = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        inner = max(dense) if isinstance(dense, list | tuple) else dense
    except RuntimeError:  # transformers refuses to name one number where layers have several
        layers = [widths(layer) for layer in config.per_layer_config]
        heads, keys, inner = (max(sizes) for sizes in zip(*layers, strict=True))
        return heads, keys, inner
    return heads * width, keys, inner


def _mlp_bytes(config: Any) -> int:
    """Bytes of a token that one layer's MLP keeps for the backward pass, the layer's norms and residuals left out.

    Experts are chosen copies of a token that autocast leaves in fp32: input and output, both inner projections, the
    activation and their product.
    """
    try:
        chosen = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", None) or 0
        inner = widths(config)[2]
        expert = getattr(config, "moe_intermediate_size", None) or inner
        return max(8 * inner, chosen * (16 * expert + 8 * config.hidden_size))
    except RuntimeError:
        return max(map(_mlp_bytes, config.per_layer_config))


def _activations(config: Any, setting: Setting) -> int:
    """Count what the backward pass needs of the layers: all of it, or the layers' inputs and one layer's."""
    tokens, hidden = setting.together * setting.tokens, config.hidden_size
    heads, keys, _ = widths(config)
    # Bytes a token, counted from what layers of Llama, Qwen3 and Mixtral save.
    layer = 26 * hidden + 10 * (heads + keys) + _mlp_bytes(config)
    layers = config.num_hidden_layers
    return tokens * (4 * hidden * layers + layer if setting.checkpointing else layer * layers)


def _heads(config: Any) -> tuple[int, int]:
    """Attention heads and the width of one; none where there is no attention."""
    heads = getattr(config, "num_attention_heads", None) or 0
    return heads, getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
