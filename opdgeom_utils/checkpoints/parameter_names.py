"""What a parameter's plain name says: its layer, its module in plain terms, and whether it is a weight at all.

Only the language model's own layers count as layers. A vision tower, an audio encoder or the heads that predict further
tokens (``mtp``) have layers of the same names and numbers; their tensors are in layer -1, and their module bears the
tower's name.
"""

import re
from collections.abc import Iterable

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INPUT = (  # what families call the module that turns tokens into vectors, and below, vectors into tokens
    *("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "embeddings", "shared", "word_embedding"),
    *("token_embedding", "tokens_embed", "embedding"),
)
OUTPUT = ("lm_head", "embed_out", "generator_lm_head", "lm_loss", "output", "output_layer", "output_projection")
VOCABULARY = re.compile(rf"(?:.+\.)?(?:(?P<embedding>{'|'.join(INPUT)})|(?P<head>{'|'.join(OUTPUT)}))\.(?:weight|bias)")
PADDING_AT_MOST = 1024  # rows; a larger difference of vocabularies is no padding
BUFFER = re.compile(  # tables, masks and running statistics, which no optimiser touches
    r"(?:.+\.)?(?:(?:\w+_)?inv_freq|freqs_cis|(?:rope|rotary\w*)\.freqs|(?:cos|sin)_cached?|alibi|embed_positions\.weights"
    r"|masked_bias|(?:causal|future|attn|attention)_mask(?:_cache)?|position_(?:ids|indices)|token_type_ids"
    r"|relative_position_index|num_batches_tracked|running_(?:mean|var)|final_logits_bias|_extra_state|version"
    r"|(?:cos_sin|rope|k|v|kv|key|value)_cache|tril|(?:tril|triu|bias|local|window|sliding_window)_mask|sinusoid\w*"
    r"|(?:alibi_)?slopes|slope_rate|(?:query|key|diagonal)_decay|_float_tensor|(?:local_)?tokens_per_expert)"
)
MASK = re.compile(r"(?:.+\.)?(?:\w*attn|\w*attention)\.bias")  # in GPT-2, GPT-J and GPT-NeoX; elsewhere a vector
COUNTER = re.compile(r"(?:.+\.)?(?:global_)?(?:step|steps|n_steps|iteration|n_updates)")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
EXPERT = re.compile(r"(?:^|\.)experts\.(\d+)\.(\w+)(?:\.(?:weight|bias))?$")
SHARED = re.compile(r"(?:^|\.)(shared_experts?)\.(\w+)\.(?:weight|bias)$")
OF_EXPERT = re.compile(r"(^|\.)expert_\d+\.")
TOWER = re.compile(r"vision|visual|image|video|audio|speech|talker|mtp|draft|encoder|projector|connector")
AROUND = (  # what a language model's own layers lie in
    *("model", "base_model", "transformer", "decoder", "backbone", "gpt_neox", "gpt_neox_japanese", "biogpt", "rwkv"),
    *("language_model", "language", "text_model", "llm", "thinker"),
)


def layer_of(name: str) -> int:
    """Return the number of the language model's layer in a parameter's name, -1 if there is none.

    >>> layer_of("model.layers.12.mlp.up_proj.weight"), layer_of("model.norm.weight")
    (12, -1)
    >>> layer_of("model.visual.blocks.3.attn.proj.weight"), layer_of("mtp.layers.0.self_attn.q_proj.weight")
    (-1, -1)
    """
    match = LAYER.search(name)
    return int(match.group(1)) if match and not tower_of(name) else -1


def module_of(name: str) -> str:
    """Return the module of a parameter in plain terms: the last part of its name, after the expert's number if any.

    What is outside the language model bears the name of its tower first.

    >>> module_of("model.layers.0.self_attn.q_proj.weight"), module_of("model.norm.weight")
    ('q_proj', 'norm')
    >>> module_of("model.layers.0.mlp.experts.3.up_proj.weight")
    'expert_3.up_proj'
    >>> module_of("model.vision_tower.encoder.layers.3.self_attn.q_proj.weight")
    'vision_tower.q_proj'
    """
    tower, module = tower_of(name), _own_module(name)
    return f"{tower}.{module}" if tower and tower != module else module


def kind_of(name: str) -> str:
    """Return the module of a parameter, with the experts of a layer under one name.

    >>> kind_of("model.layers.0.mlp.experts.3.up_proj.weight"), kind_of("model.norm.weight")
    ('experts.up_proj', 'norm')
    """
    return OF_EXPERT.sub(r"\1experts.", module_of(name))


def names_of_module(name: str) -> set[str]:
    """Return what a parameter's module may be called: its own name and, for an expert's, the one without the expert.

    >>> sorted(names_of_module("model.layers.0.mlp.experts.3.up_proj.weight"))
    ['expert_3.up_proj', 'up_proj']
    >>> names_of_module("mtp.layers.0.self_attn.q_proj.weight")
    {'mtp.q_proj'}
    """
    module = module_of(name)
    shared = re.sub(r"(^|\.)shared_experts?\.", r"\1", module) if SHARED.search(name) else module
    return {module, OF_EXPERT.sub(r"\1", shared)}


def is_buffer(name: str, shape: tuple[int, ...] | None = None) -> bool:
    """Say whether a tensor is known by its name to be no weight; some names need the shape, if it is known.

    >>> is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq"), is_buffer("model.layers.0.mlp.up_proj.weight")
    (True, False)
    >>> is_buffer("transformer.h.0.attn.bias", (1, 1, 8, 8)), is_buffer("layers.0.attn.bias", (8,))
    (True, False)
    """
    if BUFFER.fullmatch(name):
        return True
    if MASK.fullmatch(name):
        return shape is None or (len(shape) == 4 and shape[:2] == (1, 1))
    return bool(COUNTER.fullmatch(name)) and (shape is None or shape in ((), (1,)))


def is_vocabulary(name: str) -> bool:
    """Say whether a tensor has one row for each token, under whatever name its family gives it.

    >>> [is_vocabulary(name) for name in ("transformer.wte.weight", "lm_head.bias", "transformer.wpe.weight")]
    [True, True, False]
    """
    return bool(VOCABULARY.fullmatch(name)) and layer_of(name) < 0


def is_padding(name: str, one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Say whether two forms of a tensor differ only in a few rows of the vocabulary; half of one is a slice of it.

    >>> [is_padding("lm_head.weight", (1000, 8), (rows, 8)) for rows in (1000, 1016, 500)]
    [False, True, False]
    """
    if len(one) != len(other) or not one or one[1:] != other[1:] or not is_vocabulary(name):
        return False
    return 0 < abs(one[0] - other[0]) < min(PADDING_AT_MOST, one[0], other[0])


def embedding_and_head(names: Iterable[str]) -> tuple[str, str]:
    """Name the language model's input embedding and its head among some tensors; a usual name where one is missing.

    >>> embedding_and_head(["visual.embeddings.weight", "transformer.wte.weight"])
    ('transformer.wte.weight', 'lm_head.weight')
    """
    found = {}
    for name in names:
        match = VOCABULARY.fullmatch(name) if name.endswith("weight") and is_vocabulary(name) else None
        if match and not tower_of(name):
            found.setdefault(match.lastgroup, name)
    return found.get("embedding", EMBEDDING), found.get("head", HEAD)


def tower_of(name: str) -> str:
    """Return which part of a model outside the language model a parameter belongs to, empty if to none.

    >>> tower_of("model.visual.patch_embed.proj.weight"), tower_of("model.layers.0.self_attn.q_proj.weight")
    ('visual', '')
    """
    name = name.removeprefix("transformer.encoder.")  # where ChatGLM keeps a language model's layers
    layer = LAYER.search(name)
    before = name[: layer.start()].split(".") if layer else name.split(".")[:-1]
    named = next((part for part in before if TOWER.search(part)), "")
    if named or not layer or not before[-1] or before[-1] in AROUND:
        return named
    return next(part for part in before if part not in AROUND)


def _own_module(name: str) -> str:
    expert, shared = EXPERT.search(name), SHARED.search(name)
    if expert:
        return f"expert_{expert.group(1)}.{expert.group(2)}"
    if shared:
        return f"{shared.group(1)}.{shared.group(2)}"
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 and parts[-1] in ("weight", "bias") else parts[-1]
