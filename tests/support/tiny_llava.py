"""A LLaVA of random weights, built from a configuration: a vision-language model of no family that Tandem knows.

Its vision tower (CLIP) calls its linears as the language model (Llama) does: q_proj, k_proj, v_proj.
"""

from __future__ import annotations

from pathlib import Path

SIDE, PATCH = 64, 8
IMAGE_TOKEN = "<|image_pad|>"
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- '<|image_pad|>' if part['type'] in ['image', 'image_url'] else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def write_tiny_llava(directory: Path, tokenizer_of: Path) -> Path:
    """Weights, configuration and processor, with the tokenizer of another model; returns `directory`."""
    import torch
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(_config(tokenizer)).float()
    model.save_pretrained(directory)
    _name_as_published(directory / "model.safetensors")
    _processor(tokenizer).save_pretrained(directory)
    return directory


def _name_as_published(weights: Path) -> None:
    """Models of this family call the tower's modules so, and engines know no other name."""
    from safetensors.torch import load_file, save_file

    renamed = {name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in load_file(weights).items()}
    save_file(renamed, weights, metadata={"format": "pt"})


def _config(tokenizer: object) -> object:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=4096,
        initializer_range=0.2,
        tie_word_embeddings=False,
        **ends,
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    return LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image_token_id,
        vision_feature_layer=-1,
        image_seq_length=(SIDE // PATCH) ** 2,
        **ends,
    )


def _processor(tokenizer: object) -> object:
    from transformers import CLIPImageProcessor, LlavaProcessor

    square = {"height": SIDE, "width": SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )
