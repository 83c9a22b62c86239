"""A feedback body: the reserved metrics and the kind of value that each takes."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any

import uuid_utils
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from engines.errors import BadRequest, UnsupportedField
from gateway.types import Feedback, FeedbackStatus

METRICS = ("thumb", "rating", "correction", "preference", "comment")
MAX_TEXT_CHARS = 32_768
_Text = Annotated[StrictStr, Field(max_length=MAX_TEXT_CHARS)]
_Key = Annotated[StrictStr, Field(min_length=1, max_length=64)]
_TagValue = Annotated[StrictStr, Field(max_length=512)]


class FeedbackBody(BaseModel):
    """One signal about one completion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    completion_id: StrictStr | None = Field(None, min_length=1, max_length=64)
    episode_id: StrictStr | None = Field(None, max_length=64)
    metric: StrictStr = Field(min_length=1, max_length=64)
    value: StrictBool | StrictInt | StrictFloat | _Text
    comment: _Text | None = None
    tags: Annotated[dict[_Key, _TagValue], Field(max_length=16)] = Field(default_factory=dict)


def read_feedback(body: FeedbackBody, idempotency_key: str | None) -> Feedback:
    """A row to be stored. Raises `BadRequest` naming the field."""
    if body.episode_id is not None:
        raise UnsupportedField("episode_id: no episodes are served; name a completion_id.", param="episode_id")
    if body.completion_id is None:
        raise BadRequest("completion_id: is required; it is the id of an answer.", param="completion_id")
    _check_value(body)
    _check_storable(body)
    return Feedback(
        id=f"fb-{uuid_utils.uuid7()}",
        completion_id=body.completion_id,
        metric=body.metric,
        value=json.dumps(body.value),
        comment=body.comment,
        created=datetime.now(UTC),
        status=FeedbackStatus.ACCEPTED,
        idempotency_key=idempotency_key,
        body_sha256=_hash(body),
        tags=tuple(sorted(body.tags.items())),
    )


def named_completions(row: Feedback) -> tuple[str, ...]:
    """The completions that must be recorded before `row` can be."""
    return (row.completion_id, str(json.loads(row.value))) if row.metric == "preference" else (row.completion_id,)


def _check_value(body: FeedbackBody) -> None:
    value = body.value
    match body.metric:
        case "thumb":
            _require(isinstance(value, bool), "true or false")
        case "rating":
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            _require(is_number and 0 <= float(value) <= 1, "a number from 0 to 1")
        case "correction":
            _require(isinstance(value, str) and value != "", "what the answer should have been, as a string")
        case "comment":
            _require(isinstance(value, str) and value != "", "a string")
        case "preference":
            _require(isinstance(value, str) and value != "", "the id of the completion that was preferred")
            if value == body.completion_id:
                raise BadRequest("value: a completion cannot be preferred over itself.", param="value")
        case _:
            raise BadRequest(f"metric: '{body.metric}' is not known; there are {', '.join(METRICS)}.", param="metric")


def _require(condition: bool, expected: str) -> None:
    if not condition:
        raise BadRequest(f"value: must be {expected}.", param="value")


def _check_storable(body: FeedbackBody) -> None:
    """Databases take neither NUL nor half a surrogate pair."""
    for name, text in (("comment", body.comment), ("value", body.value), ("completion_id", body.completion_id)):
        _check_text(name, text)
    for key, text in body.tags.items():
        _check_text("tags", key)
        _check_text("tags", text)


def _check_text(name: str, text: Any) -> None:
    if isinstance(text, str) and ("\x00" in text or any("\ud800" <= char <= "\udfff" for char in text)):
        raise BadRequest(f"{name}: has a NUL or half of a surrogate pair; send valid Unicode.", param=name)


def _hash(body: FeedbackBody) -> str:
    return hashlib.sha256(json.dumps(body.model_dump(), sort_keys=True).encode()).hexdigest()
