"""What training takes of a computer's memory that it would not take of a card's: parts that are true on a CPU only.

Products in bf16 are compiled by oneDNN, the library under torch, for every shape that occurs: for each weight's shape
with each number of tokens, however many layers have it. A compiled product stays for good, and more is kept of the last
``CACHED``. Both sizes were measured (torch 2.13, AMD EPYC with AVX-512 in bf16), from 64 x 64 to 576 x 49,152.
"""

from __future__ import annotations

import math
from typing import Any

from opdgeom_utils.fit.memory import Setting, widths

LIBRARIES_CPU = 600_000_000  # Python, torch and transformers (0.49), and what opening a first model adds (0.1)
KERNEL_BYTES, CACHED_BYTES, CACHED = 400_000, 300_000, 1024  # of a compiled product, and more of the last so many
PADDING = 1.4  # largest micro-batch over micro_tokens: prompts and completions are padded apart; 1,410 of 1,024 counted


def attention_bytes(config: Any) -> int:
    """Bytes that a token adds in a layer where attention runs in fp32, with keys and values repeated for every head."""
    heads, keys, _ = widths(config)
    return max(0, 8 * heads - 10 * keys)


def prompt_bytes(config: Any) -> int:
    """Bytes of a token in the one layer that is computed, without a gradient, in bf16 products: of every prompt."""
    return 14 * config.hidden_size + 8 * widths(config)[2]


def products(config: Any, setting: Setting, passes: int) -> int:
    """Products of different shapes in a run of so many micro-batches.

    A rollout has every number of rows, as its texts end one by one; its products are those of the layers and the
    head. A micro-batch has three for each: forward, gradient of the input, gradient of the weight. As micro-batches are
    filled up to one number of tokens, few numbers occur: about twice as many as the longest text has tokens, and twice
    that of tokens that count (900 updates of SFT at 62: 100 and 218). Of those a short run meets a part only.
    """
    hidden, (heads, keys, inner) = config.hidden_size, widths(config)
    layer = len({(hidden, heads), (hidden, keys), (heads, hidden), (hidden, inner), (inner, hidden)})
    tokens, counted = (_met(passes, many * setting.tokens) for many in (2, 4))
    return (layer + 1) * setting.sequences + 3 * (layer * tokens + counted)


def compiled_bytes(number: int) -> int:
    """Bytes of so many compiled products.

    >>> compiled_bytes(1000), compiled_bytes(2024)
    (700000000, 1116800000)
    """
    return KERNEL_BYTES * number + CACHED_BYTES * min(number, CACHED)


def _met(draws: int, kinds: int) -> int:
    """Count how many of so many kinds are expected to be met in so many even draws."""
    return round(kinds * (1 - math.exp(-draws / kinds)))
