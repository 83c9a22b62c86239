"""An adapter of the small base as PEFT saves it, with weights that change much; no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LANGUAGE = ["q_proj", "down_proj"]
VISION = ["qkv", "linear_fc1", "projection_layer", "fc1"]
"""Of either family."""


def write_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """`options` go to PEFT's `LoraConfig`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": LANGUAGE, "task_type": "CAUSAL_LM", **options})
    adapted = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        if "magnitude" in name:
            parameter.data *= torch.rand_like(parameter) + 0.5
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder
