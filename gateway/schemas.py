"""The body of a chat completion: parsed once, checked by name, its images taken out.

What is checked here is what could hurt an engine or what the gateway itself needs; any other field passes through.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError, model_validator
from pydantic_core import from_json, to_json

from engines.capabilities import Ability
from engines.errors import BadRequest, UnsupportedField
from gateway.config import GatewayConfig
from gateway.errors import plain_message
from gateway.media import CheckedImage
from gateway.messages import read_messages
from gateway.text import check_text

MAX_DEPTH = 64
MAX_VALUES = 200_000
REFUSED_FIELDS = frozenset(
    {
        "prompt_logprobs",
        "priority",
        "request_id",
        "cache_salt",
        "mm_processor_kwargs",
        "media_io_kwargs",
        "prompt_embeds",
        "image_embeds",
        "vllm_xargs",
        "kv_transfer_params",
        "best_of",
        "use_beam_search",
        "api_base",
    }
)
REFUSED_PREFIXES = ("chat_template", "lora_")
_Stop = Annotated[StrictStr, Field(min_length=1, max_length=256)]


class ChatFields(BaseModel):
    """The fields that the gateway checks. Null is the same as absent, as the OpenAI API has it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: StrictStr = Field(min_length=1, max_length=200)
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=2048)
    n: StrictInt | None = Field(None, ge=1, le=8)
    max_tokens: StrictInt | None = Field(None, ge=1, le=10**6)
    max_completion_tokens: StrictInt | None = Field(None, ge=1, le=10**6)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: StrictInt | None = Field(None, ge=-(2**63), lt=2**63)
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = Field(None, ge=0, le=20)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=300)] | None = None
    stream: StrictBool | None = None
    stream_options: dict[str, Any] | None = None
    store: StrictBool | None = None
    user: Annotated[StrictStr, Field(max_length=512)] | None = None
    tools: Annotated[list[Any], Field(max_length=128)] | None = None
    return_token_ids: Any = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> ChatFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream=true")
        return self


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked request. `fields` is the engine's JSON object without `model`; `recorded` is the client's, with hashes
    for images; `checked` are the values of the fields that the gateway checks."""

    model: str
    stream: bool
    store: bool
    fields: bytes
    recorded: bytes
    images: tuple[CheckedImage, ...]
    checked: ChatFields

    def needs(self) -> frozenset[Ability]:
        """What the request asks of a server beyond plain text."""
        asked = {
            Ability.IMAGES: self.images,
            Ability.STREAMING: self.checked.stream,
            Ability.LOGPROBS: self.checked.logprobs and not self.checked.top_logprobs,
            Ability.TOP_LOGPROBS: self.checked.top_logprobs,
            Ability.N: (self.checked.n or 1) > 1,
            Ability.SEED: self.checked.seed is not None,
            Ability.TOKEN_IDS: self.checked.return_token_ids,
        }
        return frozenset(ability for ability, is_asked in asked.items() if is_asked)

    def for_engine(self, model: str) -> bytes:
        """The body that the engine gets: the same, under the name that it knows the version by."""
        return b'{"model":' + json.dumps(model).encode() + b"," + self.fields[1:]


def parse_chat(body: bytes, config: GatewayConfig) -> ChatRequest:
    """Raises `BadRequest`'s family, `TooLarge` or `BadMediaType`; `param` names the field at fault."""
    document = _parse(body)
    _refuse_fields(document)
    try:
        fields = ChatFields.model_validate(document)
    except ValidationError as error:
        _raise_invalid(error)
    messages = read_messages(fields.messages, config)
    recorded = {**document, "messages": messages.recorded}
    check_text(recorded, config)
    return ChatRequest(
        model=fields.model,
        stream=bool(fields.stream),
        store=fields.store is not False,
        fields=to_json(
            {name: value for name, value in document.items() if name != "model"} | {"messages": messages.sent}
        ),
        recorded=to_json(recorded),
        images=messages.images,
        checked=fields,
    )


def _parse(body: bytes) -> dict[str, Any]:
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise _bad_json("The body is not valid JSON: UTF-8, finite numbers, whole surrogate pairs.") from None
    if not isinstance(document, dict):
        raise _bad_json("The body must be a JSON object.")
    _check_shape(document)
    return document


def _bad_json(message: str) -> BadRequest:
    error = BadRequest(message)
    error.code = "invalid_json"
    return error


def _check_shape(document: dict[str, Any]) -> None:
    level: list[Any] = [document]
    num_values = 0
    for _ in range(MAX_DEPTH):
        num_values += sum(map(len, level))
        if num_values > MAX_VALUES:
            raise _bad_json(f"The body has more than {MAX_VALUES} values.")
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise _bad_json(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _children(node: Any) -> list[Any]:
    values = node.values() if isinstance(node, dict) else node
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise _bad_json("A number in the body is not finite.")
    return [value for value in values if isinstance(value, dict | list)]


def _refuse_fields(document: dict[str, Any]) -> None:
    for name in document:
        if name in REFUSED_FIELDS or name.startswith(REFUSED_PREFIXES):
            raise UnsupportedField(
                f"'{name[:80]}' is not taken: it reaches into the engine. Leave it out.", param=name[:80]
            )


def _raise_invalid(error: ValidationError) -> NoReturn:
    problem = error.errors(include_url=False, include_context=False)[0]
    # The tail of a union's location names its branch, which is not a field.
    parts = [part for part in problem["loc"] if isinstance(part, int) or part in ChatFields.model_fields]
    param = ".".join(map(str, parts)) or "body"
    raise BadRequest(f"{param}: {plain_message(problem)}", param=param) from error
