"""Questions with a picture, and adapters whose answers to them differ: what a real engine is asked in a scene."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from oracle import BASE, LearnedOracle, Messages, weights_by_version
from prompts import data_url
from safetensors.numpy import load_file, save_file
from scene import Scene

TEXTS = ("what color is the shape?", "what shape is in the image?")
NUM_PICTURES = 4


def picture_questions() -> list[Messages]:
    import easy_vqa

    pictures = Path(easy_vqa.__file__).parent / "data" / "test" / "images"
    return [
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
            }
        ]
        for url in (data_url(pictures / f"{number}.png") for number in range(NUM_PICTURES))
        for text in TEXTS
    ]


def faded(trained: Path, directory: Path) -> Path:
    """The adapter with its B side scaled to nearly nothing, as plain PEFT would save it: it answers as its base."""
    directory.mkdir()
    shutil.copy(trained / "adapter_config.json", directory)
    tensors = load_file(trained / "adapter_model.safetensors")
    scaled = {name: (t * np.float32(1e-6) if "lora_B" in name else t) for name, t in tensors.items()}
    save_file(scaled, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory


def learn(scene: Scene, oracle: LearnedOracle) -> None:
    """In quiet: publishes both adapters, and learns what the base and each of them answer."""
    oracle.learn(scene.stack, f"{scene.stack.engine}@0", BASE)
    known = []
    for _ in range(2):
        version = scene.publish()
        known.append(weights_by_version(scene.stack)[version])
        oracle.learn(scene.stack, version, known[-1])
    assert oracle.texts(known[0]) != oracle.texts(known[1]), "the adapters answer alike: nothing could be told by it"
