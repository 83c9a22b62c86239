"""What a conversation is made of: messages of text and images, the images not decoded."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of a row, not decoded: a file, or the bytes of one."""

    path: Path | None = None
    content: bytes = b""

    def read(self) -> bytes:
        """The encoded bytes. Raises `OSError`."""
        return self.content if self.path is None else self.path.read_bytes()


@dataclass(frozen=True, slots=True)
class Text:
    text: str


Part = Text | Picture


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Text))


def pictures_of(messages: tuple[Message, ...]) -> tuple[Picture, ...]:
    """In the order in which the conversation shows them."""
    return tuple(part for message in messages for part in message.parts if isinstance(part, Picture))


def to_data_url(content: bytes) -> str:
    """Encoded PNG, JPEG or WebP bytes as a `data:` URL."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg" if content.startswith(b"\xff\xd8") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
