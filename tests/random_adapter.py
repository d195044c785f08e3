"""An adapter of PEFT as if it had been trained: every weight that it trains gets a random value."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model


def random_adapter(model: Any, folder: Path, **options: Any) -> Path:
    """Write an adapter of rank 2 and alpha 8 over a model, with further settings of LoRA."""
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=8, **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.rand(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder
