"""Two fixed questions with their answers, one about an image, and what a family's processor makes of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import BadRequest
from learners.data.examples import Example, Message, Picture, Text

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from learners.data.collate import Encoder

SIDE = 224
ANSWER = "yes, a red one"


@dataclass(frozen=True, slots=True)
class Reader:
    """A model's processor, and our own encoder of examples around it."""

    processor: ProcessorMixin
    encoder: Encoder


def open_reader(model_dir: Path) -> Reader:
    """Raises `BadRequest` for a processor that prepares no images."""
    from transformers import AutoProcessor

    from learners.data.collate import Encoder

    processor = AutoProcessor.from_pretrained(model_dir, local_files_only=True)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise BadRequest(f"{type(processor).__name__} prepares no images: add the processor's files to {model_dir}")
    return Reader(processor, Encoder(processor))


def examples() -> tuple[Example, ...]:
    """Without and with an image."""
    return (
        Example("text", 1, (Message("user", (Text("is red a color?"),)),), ANSWER),
        Example("image", 2, (Message("user", (picture(), Text("is there a circle in the image?"))),), ANSWER),
    )


def picture() -> Picture:
    """A red disc on white, as PNG."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(image).ellipse((40, 60, 160, 180), fill="red")
    raw = io.BytesIO()
    image.save(raw, "PNG")
    return Picture(content=raw.getvalue())


def renders_images(processor: ProcessorMixin) -> bool:
    """Whether the chat template shows an image part. Raises `BadRequest` without a template."""
    if not getattr(processor, "chat_template", None):
        raise BadRequest("the processor has no chat template, so nobody can chat with it: add chat_template.jinja")
    text = {"type": "text", "text": "hello"}
    plain, shown = (_rendered(processor, parts) for parts in ([text], [{"type": "image"}, text]))
    return plain != shown


def vision_tokens(processor: ProcessorMixin, text_ids: tuple[int, ...], image_ids: tuple[int, ...]) -> tuple[str, ...]:
    """The added tokens of a prompt with an image that one without has not."""
    tokenizer = processor.tokenizer
    added = tokenizer.added_tokens_decoder
    fresh = dict.fromkeys(number for number in image_ids if number not in text_ids and number in added)
    return tuple(tokenizer.convert_ids_to_tokens(list(fresh)))


def _rendered(processor: ProcessorMixin, parts: list[dict[str, str]]) -> str:
    chat = [{"role": "user", "content": parts}]
    return str(processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
