"""Small checkpoints in the forms that trainers leave, for the troubles that users reported in public."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, VOCABULARY = 16, 40
Q = "model.layers.0.self_attn.q_proj.weight"
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": HIDDEN,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "tie_word_embeddings": True,
}
Tensors = dict[str, torch.Tensor]


def weights(seed: int = 0, prefix: str = "model.") -> Tensors:
    """Two layers of a Qwen3, as a trainer would name them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed_tokens": (VOCABULARY, HIDDEN)}
    for i in range(2):
        shapes |= {f"layers.{i}.self_attn.{n}_proj": s for n, s in (("q", (16, HIDDEN)), ("k", (8, HIDDEN)))}
        shapes |= {f"layers.{i}.mlp.{n}_proj": s for n, s in (("up", (24, HIDDEN)), ("down", (HIDDEN, 24)))}
    made = {f"{prefix}{n}.weight": torch.randn(s, generator=generator) * 0.05 for n, s in shapes.items()}
    return made | {f"{prefix}norm.weight": torch.ones(HIDDEN)}


def moved(tensors: Tensors, seed: int = 1) -> Tensors:
    """The same tensors after a small random update."""
    generator = torch.Generator().manual_seed(seed)
    return {name: w + 1e-3 * torch.randn(w.shape, generator=generator) for name, w in tensors.items()}


def saved(folder: Path, tensors: Tensors, config: dict[str, object] | None = None) -> Path:
    """A folder as ``save_pretrained`` leaves it."""
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(QWEN3 if config is None else config))
    return folder


def adapter(folder: Path, tensors: Tensors, base: Path, **config: object) -> Path:
    """A folder as PEFT leaves it; rank 2, scale 2."""
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 4, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": ["q_proj"]} | config))
    return folder


def lora(prefix: str, seed: int = 2) -> Tensors:
    """Factors for the first ``q_proj``."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, HIDDEN, generator=generator), torch.randn(16, 2, generator=generator) * 0.01
    return {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}


def norm_of(table, name: str) -> float:
    """The norm that a table gives a matrix's update."""
    return float(table.set_index("name").loc[name, "update_norm"])
