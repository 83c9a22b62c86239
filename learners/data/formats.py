"""The row types that a data file may hold, and what each means as examples.

    {"image": ..., "text": question, "answer": ...}            `image` may be absent, or `images` a list
    {"messages": [{"role", "content"}, ...], "images": [...]}  content: text with `<image>` tags, or OpenAI's parts

An image is a path (relative to the file), a `data:` URL, or `{"bytes": ...}`. Tags and bare `{"type": "image"}` parts
take the images of `images` in order; images without a tag go before the first user message's text. Columns that
training does not need are left alone. Every other row raises `BadRequest` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.errors import BadRequest
from engines.profiles import PROFILES
from learners.data.examples import Example, Message, Part, Picture, Role, Text
from learners.data.images import find_picture

ACCEPTED = '{"image", "text", "answer"} or {"messages", "images"}'
IMAGE_TAG = "<image>"
CONTROL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    *sorted({token for profile in PROFILES.values() for token in profile.vision_tokens}),
)


R = TypeVar("R", bound="MediaRow")


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class TextPart(_Row):
    type: Literal["text"]
    text: str


class ImageUrl(_Row):
    url: str


class ImageUrlPart(_Row):
    type: Literal["image_url"]
    image_url: ImageUrl | str

    @property
    def source(self) -> object:
        return self.image_url.url if isinstance(self.image_url, ImageUrl) else self.image_url


class ImagePart(_Row):
    type: Literal["image"]
    image: Any = None

    @property
    def source(self) -> object:
        return self.image


ContentPart = Annotated[TextPart | ImageUrlPart | ImagePart, Field(discriminator="type")]


class RowMessage(_Row):
    role: Role
    content: str | list[ContentPart]


class MediaRow(_Row):
    """A row with images; each kind has its own way to say what the conversation is."""

    image: Any = None
    images: list[Any] | None = None

    @property
    def sources(self) -> list[Any]:
        return [*([] if self.image is None else [self.image]), *(self.images or [])]

    def messages_of(self) -> list[RowMessage]:
        raise NotImplementedError


class QuestionRow(MediaRow):
    """The reference row."""

    text: str = Field(min_length=1)
    answer: str = Field(min_length=1)

    def messages_of(self) -> list[RowMessage]:
        return [RowMessage(role="user", content=self.text), RowMessage(role="assistant", content=self.answer)]


class MessagesRow(MediaRow):
    """A conversation."""

    messages: list[RowMessage] = Field(min_length=2)

    def messages_of(self) -> list[RowMessage]:
        return self.messages

    @model_validator(mode="after")
    def _order(self) -> MessagesRow:
        roles = [message.role for message in self.messages]
        if "system" in roles[1:]:
            raise ValueError("a system message must be the first one")
        turns = [role for role in roles if role != "system"]
        if "assistant" not in turns:
            raise ValueError("there is no assistant message to learn from")
        if turns != [("user", "assistant")[index % 2] for index in range(len(turns))] or turns[-1] != "assistant":
            raise ValueError("user and assistant must take turns, the user first and the assistant last")
        return self


def parse_row(values: object, line: int, folder: Path) -> tuple[Example, ...]:
    """One row as examples, one for each assistant turn. Raises `BadRequest` with the reason."""
    row = _typed(values)
    messages = messages_from(row, folder)
    return tuple(_examples(messages, line))


def check_media(values: object) -> Mapping[str, Any]:
    """Raises `BadRequest` unless a row is an object of text and images."""
    if not isinstance(values, Mapping):
        raise BadRequest(f"a row is an object, not {type(values).__name__}")
    for medium in ("videos", "audios", "video", "audio"):
        if values.get(medium):
            raise BadRequest(f"'{medium}': only text and images can be learned from")
    return values


def validate_row(kind: type[R], values: Mapping[str, Any]) -> R:
    """Raises `BadRequest` naming the first field at fault."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from error


def _typed(values: object) -> QuestionRow | MessagesRow:
    values = check_media(values)
    if values.get("messages") is not None:
        return validate_row(MessagesRow, values)
    if values.get("text") is not None and values.get("answer") is not None:
        return validate_row(QuestionRow, values)
    raise BadRequest(
        f"neither 'messages' nor 'text' and 'answer' among its keys: {', '.join(map(str, values))[:200]}; "
        f"rows are {ACCEPTED}"
    )


def messages_from(row: MediaRow, folder: Path) -> list[Message]:
    """The row's conversation, its images in their places. Raises `BadRequest`."""
    pending = [find_picture(source, folder) for source in row.sources]
    queue = iter(pending)
    messages = [Message(given.role, tuple(_parts(given, queue, folder))) for given in row.messages_of()]
    unplaced = tuple(queue)
    if unplaced:
        first = next(index for index, message in enumerate(messages) if message.role == "user")
        messages[first] = Message("user", unplaced + messages[first].parts)
    for message in messages:
        _check_message(message)
    return messages


def _parts(message: RowMessage, queue: Iterator[Picture], folder: Path) -> Iterator[Part]:
    if isinstance(message.content, str):
        yield from _tagged(message.content, queue)
        return
    for part in message.content:
        if isinstance(part, TextPart):
            yield from _tagged(part.text, queue)
        elif part.source is None:
            yield _take(queue)
        else:
            yield find_picture(part.source, folder)


def _tagged(text: str, queue: Iterator[Picture]) -> Iterator[Part]:
    for index, piece in enumerate(text.split(IMAGE_TAG)):
        if index:
            yield _take(queue)
        if piece:
            yield Text(piece)


def _take(queue: Iterator[Picture]) -> Picture:
    picture = next(queue, None)
    if picture is None:
        raise BadRequest(f"more {IMAGE_TAG} tags or image parts than images")
    return picture


def _check_message(message: Message) -> None:
    for token in CONTROL_TOKENS:
        if token in message.text:
            raise BadRequest(f"the text of a {message.role} message contains {token}, which steers the model")
    if message.role != "user" and any(isinstance(part, Picture) for part in message.parts):
        raise BadRequest(f"a {message.role} message cannot show images")
    if message.role == "assistant" and not message.text:
        raise BadRequest("an assistant message is empty")


def _examples(messages: list[Message], line: int) -> Iterator[Example]:
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    for number, index in enumerate(turns, start=1):
        name = str(line) if len(turns) == 1 else f"{line}#{number}"
        yield Example(name, line, tuple(messages[:index]), messages[index].text)
