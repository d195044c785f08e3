"""What a parameter's plain name says: its layer, and its module in plain terms."""

import re

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
VOCABULARY = (EMBEDDING, HEAD, "lm_head.bias")  # tensors with one row for each token
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
EXPERT = re.compile(r"(?:^|\.)experts\.(\d+)\.(\w+)(?:\.(?:weight|bias))?$")
SHARED = re.compile(r"(?:^|\.)(shared_experts?)\.(\w+)\.(?:weight|bias)$")


def layer_of(name: str) -> int:
    """Return the layer number in a parameter's name, -1 if there is none.

    Examples
    --------
    >>> layer_of("model.layers.12.mlp.up_proj.weight"), layer_of("model.norm.weight")
    (12, -1)
    """
    match = LAYER.search(name)
    return int(match.group(1)) if match else -1


def module_of(name: str) -> str:
    """Return the module of a parameter in plain terms: the last part of its name, after the expert's number if any.

    Examples
    --------
    >>> module_of("model.layers.0.self_attn.q_proj.weight"), module_of("model.norm.weight")
    ('q_proj', 'norm')
    >>> module_of("model.layers.0.mlp.experts.3.up_proj.weight")
    'expert_3.up_proj'
    """
    expert, shared = EXPERT.search(name), SHARED.search(name)
    if expert:
        return f"expert_{expert.group(1)}.{expert.group(2)}"
    if shared:
        return f"{shared.group(1)}.{shared.group(2)}"
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 and parts[-1] in ("weight", "bias") else parts[-1]
