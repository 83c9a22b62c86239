"""A Qwen3-VL of a published size with random weights, and adapters of it that carry the learner's proof.

Nothing is downloaded: the numbers are those of Qwen3-VL-2B-Instruct's config.json, the tokenizer is the small model's,
filled up to that vocabulary, so that each id that is sampled is some text and Qwen's special tokens have Qwen's ids.
A program of its own, so that what it takes of a GPU is free again at its end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from engines.adapter import read_base, write_manifest
from learners.config import SftConfig
from learners.data.collate import Encoder
from learners.data.readers import read_data
from learners.lora import load_model, save_adapter
from learners.manifest import Origin
from learners.probe import Probe
from learners.toy.families.qwen3_vl import (
    CHAT_TEMPLATE,
    IMAGE_PAD,
    SPECIAL_TOKENS,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
)
from learners.toy.model import save
from learners.toy.tokenizer import END_OF_TEXT, TURN_END

VOCABULARY = 151_936
FIRST_SPECIAL = 151_643
SIDE = 256
"""Pixels that every picture is scaled to: 64 tokens."""
EFFECT = 0.4
"""Of an adapter, on what a linear gives: its deviation. It has the model say something else from the first token on."""
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262_144,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5_000_000.0,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}
VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 2048,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}
SMALLER = {
    "2b": ({}, {}),
    "narrow": (
        {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2},
        {"depth": 3, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": 256,
         "deepstack_visual_indexes": [0, 1, 2]},
    ),
}  # fmt: skip
"""What differs from the published numbers: `narrow` is for a look on a CPU."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SMALLER), help="of the model to make; none: only adapters are made")
    parser.add_argument("--model", type=Path, required=True, help="its directory")
    parser.add_argument("--like", type=Path, required=True, help="the small model, whose tokenizer it has")
    parser.add_argument("--rows", type=Path, required=True, help="whose questions the adapters are proven on")
    parser.add_argument("--adapters", type=Path, nargs="+", required=True, help="directories to write adapters into")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if arguments.size:
        write_model(arguments.model, arguments.like, arguments.size, arguments.device)
    write_adapters(arguments.model, arguments.rows, arguments.adapters, arguments.rank, arguments.device)
    return 0


def write_model(directory: Path, like: Path, size: str, device: str) -> None:
    """Weights in bfloat16, made on the device, and a processor as the published one's, over the tokenizer of `like`."""
    tokenizer = filled_tokenizer(like)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen3VLForConditionalGeneration(config_of(tokenizer, size))
    torch.set_default_dtype(torch.float32)
    save(model, processor_of(tokenizer), directory)


def config_of(tokenizer: PreTrainedTokenizerFast, size: str) -> Qwen3VLConfig:
    def id_of(token: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(token))

    text, vision = SMALLER[size]
    ends: dict[str, Any] = {"eos_token_id": id_of(TURN_END), "pad_token_id": id_of(END_OF_TEXT)}
    return Qwen3VLConfig(
        text_config=TEXT | text | ends,
        vision_config=VISION | vision,
        image_token_id=id_of(IMAGE_PAD),
        video_token_id=id_of(VIDEO_PAD),
        vision_start_token_id=id_of(VISION_START),
        vision_end_token_id=id_of(VISION_END),
        tie_word_embeddings=True,
        **ends,
    )


def filled_tokenizer(like: Path) -> PreTrainedTokenizerFast:
    """That of `like` with words that no text is split into before and after the special tokens."""
    said = json.loads(AutoTokenizer.from_pretrained(like, local_files_only=True).backend_tokenizer.to_str())
    known = {word: number for word, number in said["model"]["vocab"].items() if word not in SPECIAL_TOKENS}
    words = known | {f"\u0120w{number}": number for number in range(len(known), FIRST_SPECIAL)}
    said |= {"added_tokens": [], "model": said["model"] | {"vocab": words}}
    tokenizer = Tokenizer.from_str(json.dumps(said))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens([f"<w{number}>" for number in range(tokenizer.get_vocab_size(), VOCABULARY)])
    others = [token for token in SPECIAL_TOKENS if token not in (TURN_END, END_OF_TEXT)]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        model_max_length=TEXT["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
        extra_special_tokens=others,
    )


def processor_of(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    vision = {
        "patch_size": VISION["patch_size"],
        "merge_size": VISION["spatial_merge_size"],
        "temporal_patch_size": VISION["temporal_patch_size"],
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": SIDE**2, "longest_edge": SIDE**2},  # in pixels
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**vision),
        chat_template=CHAT_TEMPLATE,
    )


def write_adapters(model_dir: Path, rows: Path, directories: Sequence[Path], rank: int, device: str) -> None:
    """Random ones on every language linear, each with its manifest: what the learner's passes over some rows gave."""
    config = SftConfig(model=str(model_dir), data=str(rows), rank=rank, alpha=rank, device=device)
    base, data = read_base(model_dir), read_data(rows)
    model = load_model(config, base, None)
    encoder = Encoder(AutoProcessor.from_pretrained(model_dir, local_files_only=True))
    probe = Probe(model, encoder, data.examples, config.probe_size)
    origin = Origin(config, base, data.data_hash)
    for seed, directory in enumerate(directories, start=1):
        make_random(model, seed)
        directory.mkdir(parents=True)
        save_adapter(model, directory)
        manifest = origin.manifest(directory / "adapter_model.safetensors", {}, probe.records())
        write_manifest(directory, manifest)


def make_random(model: PeftModel, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
            if "lora_B" in name:
                parameter.normal_(0, EFFECT / parameter.shape[1] ** 0.5)


if __name__ == "__main__":
    sys.exit(main())
