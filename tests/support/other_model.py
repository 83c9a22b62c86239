"""Another model of a toy base's shape: the base with noise on its language side, head and embeddings included."""

from __future__ import annotations

import shutil
from pathlib import Path

from toys import TOYS, Toy

NOISE = 0.2
"""As a share of each tensor's own standard deviation: enough that every answer's log-probabilities move."""


LOUD_NOISE = 0.8
"""Enough that the answers differ."""


def write_other(directory: Path, toy: Toy = TOYS["qwen3_vl"], noise: float = NOISE) -> Path:
    """In bfloat16, as the toy base is."""
    import torch
    from safetensors.torch import load_file, save_file

    from engines.profiles import profile_of

    profile = profile_of(toy.base)
    shutil.copytree(toy.base, directory)
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in tensors.items():
        if not profile.is_vision(profile.model_module(name)):
            added = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * noise
            tensors[name] = (tensor.float() + added).to(tensor.dtype)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_other_fp8(root: Path, noise: float = NOISE) -> Path:
    """The same in FP8, as `base-fp8` is of the base."""
    from learners.toy.quantize import quantize

    directory = root / "other-fp8"
    quantize(write_other(root / "other", noise=noise), directory)
    return directory
