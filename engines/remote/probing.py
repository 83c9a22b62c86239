"""The probe of a remote server: what it can't do, by asking it for each.

About ten short answers. Only the plain one must come. An ability is missing if the server refuses what asks for it,
fails on it, or answers as if it had not been asked; unknown if its answers don't tell. What is merely in the way (a
deadline, a lost connection, a busy server) ends the probe with its error.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from functools import partial
from typing import Any

from engines.capabilities import Ability, Capabilities
from engines.errors import BadRequest, EngineFault
from engines.remote.answers import ChatAnswer
from engines.remote.client import NoPermission, RemoteClient

QUESTION = "What is the color of the shape? Answer with one word."
MAX_TOKENS = 8
# A red square on white, 64 by 64 pixels: no family of models takes less for too small.
IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAZklEQVR42u3asQkAIAwAQSPuv3JcIWIR"
    "hfvawoMUgonMHD83x+cBAAAAAAAAdLZKpyJ6bld4pxkhAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAgKNq/8QP79"
    "UZIQAAAAAAAICLNr3gB3+Zs752AAAAAElFTkSuQmCC"
)


class Known(Enum):
    """Whether a server has an ability."""

    YES = auto()
    NO = auto()
    UNKNOWN = auto()


class Prober:
    """Asks one model of one server the same question in many ways."""

    def __init__(self, client: RemoteClient, model: str) -> None:
        self._client = client
        self._model = model

    async def ask_as(self, request_id: str) -> ChatAnswer:
        return await self._client.ask(self._body(QUESTION, {}), request_id)

    async def ask(self, **fields: Any) -> ChatAnswer:
        return await self._client.ask(self._body(QUESTION, fields), uuid.uuid4().hex)

    async def ask_with_image(self) -> ChatAnswer:
        parts = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": IMAGE}}]
        return await self._client.ask(self._body(parts, {}), uuid.uuid4().hex)

    async def num_events(self) -> int:
        """Events with something to say, of a streamed answer."""
        events = await self._client.ask_streaming(self._body(QUESTION, {"stream": True}), uuid.uuid4().hex)
        return sum(bool(event.choices) for event in events)

    def _body(self, content: Any, fields: dict[str, Any]) -> dict[str, Any]:
        fixed = {"model": self._model, "max_tokens": MAX_TOKENS, "temperature": 0.0}
        return {**fixed, "messages": [{"role": "user", "content": content}], **fields}


async def find_capabilities(client: RemoteClient, model: str) -> Capabilities:
    """Raises what `RemoteClient.ask` raises if the server gives no plain answer, or can't be asked on."""
    prober, request_id = Prober(client, model), uuid.uuid4().hex
    plain = await prober.ask_as(request_id)
    known = {ability: await _try(check, prober) for ability, check in _CHECKS.items()}
    known[Ability.IMAGES] = await _try(partial(_takes_images, plain), prober)
    known[Ability.REQUEST_IDS] = _known(plain.id == f"chatcmpl-{request_id}")
    # Nobody but the server knows whether it goes on after a hang-up, and no server of this kind takes our adapters.
    known |= {Ability.ADAPTERS: Known.NO, Ability.ABORTS: Known.UNKNOWN}
    return Capabilities(_those(known, Known.NO), _those(known, Known.UNKNOWN))


Check = Callable[[Prober], Awaitable[Known]]


async def _try(check: Check, prober: Prober) -> Known:
    try:
        return await check(prober)
    except (BadRequest, NoPermission, EngineFault):  # it refuses this, or fails on it; our key it took before
        return Known.NO


def _those(known: dict[Ability, Known], wanted: Known) -> frozenset[Ability]:
    return frozenset(ability for ability, value in known.items() if value is wanted)


def _known(holds: bool) -> Known:
    return Known.YES if holds else Known.NO


async def _takes_images(plain: ChatAnswer, prober: Prober) -> Known:
    """A server that leaves an image out counts no token more, and says the same."""
    seen = await prober.ask_with_image()
    if plain.usage is None or seen.usage is None:
        return Known.UNKNOWN
    if seen.usage.prompt_tokens > plain.usage.prompt_tokens:
        return Known.YES
    return Known.NO if seen.first.text == plain.first.text else Known.UNKNOWN


async def _streams(prober: Prober) -> Known:
    return _known(await prober.num_events() > 0)


async def _gives_logprobs(prober: Prober) -> Known:
    return _known((await prober.ask(logprobs=True)).first.has_logprobs)


async def _gives_top_logprobs(prober: Prober) -> Known:
    return _known((await prober.ask(logprobs=True, top_logprobs=1)).first.has_logprobs)


async def _gives_several(prober: Prober) -> Known:
    return _known(len((await prober.ask(n=2, temperature=1.0)).choices) == 2)


async def _takes_seeds(prober: Prober) -> Known:
    """The same seed twice and another: an answer can differ for reasons of numerics, so that "no" is never sure."""
    texts = [(await prober.ask(seed=seed, temperature=2.0)).first.text for seed in (1, 1, 2)]
    return Known.YES if texts[0] == texts[1] != texts[2] else Known.UNKNOWN


async def _gives_token_ids(prober: Prober) -> Known:
    return _known(bool((await prober.ask(return_token_ids=True)).first.token_ids))


_CHECKS: dict[Ability, Check] = {
    Ability.STREAMING: _streams,
    Ability.LOGPROBS: _gives_logprobs,
    Ability.TOP_LOGPROBS: _gives_top_logprobs,
    Ability.N: _gives_several,
    Ability.SEED: _takes_seeds,
    Ability.TOKEN_IDS: _gives_token_ids,
}
