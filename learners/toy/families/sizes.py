"""How large the toys are, whatever their family."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

TEXT: MappingProxyType[str, Any] = MappingProxyType(
    {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "initializer_range": 0.05,
        "tie_word_embeddings": False,
    }
)
VISION_DEPTH, VISION_HIDDEN, VISION_INTERMEDIATE, VISION_HEADS = 4, 128, 256, 4
