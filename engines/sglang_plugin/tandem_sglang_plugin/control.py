"""The control routes, `/tandem/*`: adapters, probe, load."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .asgi import Scope
from .inner import Inner
from .load import stats
from .refusal import Refusal, bad_request
from .requests import Requests
from .scoring import Scorer
from .shelf import AdapterShelf, Held

ADAPTERS = "/tandem/adapters"
MAX_PROBE_PROMPTS = 64
_log = logging.getLogger("tandem_sglang_plugin")


class Body(BaseModel):
    """Unknown keys are errors, as on Tandem's side."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AddBody(Body):
    version: str
    slot_id: int
    path: str


class PromptBody(Body):
    text: str
    answer: str
    image: str | None
    num_tokens: int


class ProbeBody(Body):
    version: str
    prompts: list[PromptBody] = Field(max_length=MAX_PROBE_PROMPTS)


_Read = TypeVar("_Read", bound=Body)


class Control:
    """Answers the calls of Tandem's actor."""

    def __init__(self, inner: Inner, requests: Requests, shelf: AdapterShelf, scorer: Scorer) -> None:
        self._inner = inner
        self._requests = requests
        self._shelf = shelf
        self._scorer = scorer

    async def answer(self, scope: Scope, raw: bytes) -> dict[str, Any]:
        """The body of a 200; raises `Refusal`."""
        try:
            return await self._answer(scope, raw)
        except Refusal as refusal:
            _log.warning("%s: %s", refusal.message, refusal.detail)
            raise

    async def _answer(self, scope: Scope, raw: bytes) -> dict[str, Any]:
        method, path = scope["method"], scope["path"]
        if method == "DELETE":
            await self._shelf.remove(scope, path.removeprefix(f"{ADAPTERS}/"))
            return {}
        if (method, path) == ("POST", ADAPTERS):
            body = _read(AddBody, raw)
            return _reply(await self._shelf.add(scope, body.version, body.slot_id, body.path))
        if (method, path) == ("GET", ADAPTERS):
            return {"adapters": [_reply(held) for held in await self._shelf.held(scope)]}
        if (method, path) == ("POST", "/tandem/probe"):
            return {"scores": await self._scores(scope, _read(ProbeBody, raw))}
        return await stats(scope, self._inner, self._requests)

    async def _scores(self, scope: Scope, body: ProbeBody) -> list[dict[str, Any]]:
        # One at a time: a probe must not push the users' requests out of the batch, and in a batch of its own it
        # always scores the same.
        return [
            await self._scorer.score(scope, body.version, one.text, one.answer, one.image, one.num_tokens)
            for one in body.prompts
        ]


def _read(kind: type[_Read], raw: bytes) -> _Read:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise bad_request(f"{place}: {first['msg']}", place) from error


def _reply(held: Held) -> dict[str, Any]:
    return {"version": held.version, "slot_id": held.slot_id, "sha256": held.sha256, "modules": list(held.modules)}
