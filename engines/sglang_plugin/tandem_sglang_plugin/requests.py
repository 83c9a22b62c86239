"""The requests that are inside the engine now, by the id that SGLang knows them by."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from .asgi import Scope
from .inner import Exchange, Inner

ABORT_AGAIN_S = 0.1


class Requests:
    """A request is inside from before SGLang sees it until its answer's end, whether anybody waits for that or not.

    `num_aborted` is how many clients hung up before that, `hit_tokens` how many tokens the prefix cache has saved.
    """

    def __init__(self, inner: Inner) -> None:
        self._inner = inner
        self._inside: dict[str, str] = {}
        self._left = asyncio.Event()
        self.num_aborted = 0
        self.hit_tokens = 0

    def __len__(self) -> int:
        return len(self._inside)

    def begin(self, outer: Scope, version: str, path: str, body: dict[str, Any]) -> tuple[str, Exchange]:
        """Sends `body` to SGLang under an id that was never used before."""
        request_id = uuid.uuid4().hex
        self._inside[request_id] = version
        leave = partial(self._leave, request_id)
        return request_id, self._inner.begin(outer, "POST", path, {**body, "rid": request_id}, leave)

    def are_inside(self, request_ids: Iterable[str]) -> bool:
        """Whether any of them still is."""
        return any(request_id in self._inside for request_id in request_ids)

    def of(self, version: str) -> tuple[str, ...]:
        return tuple(request_id for request_id, name in self._inside.items() if name == version)

    async def end(self, outer: Scope, request_ids: Iterable[str]) -> None:
        """Aborts until all of them have left. Again and again, since SGLang forgets an abort of a request that it is
        still reading."""
        asked = set(request_ids)
        while inside := asked & self._inside.keys():
            self._left.clear()
            for request_id in inside:
                with suppress(TimeoutError):  # it is asked again
                    await self._inner.call(outer, "POST", "/abort_request", {"rid": request_id})
            await self._wait_until_one_leaves()

    async def _wait_until_one_leaves(self) -> None:
        try:
            await asyncio.wait_for(self._left.wait(), ABORT_AGAIN_S)
        except TimeoutError:
            return

    def _leave(self, request_id: str) -> None:
        del self._inside[request_id]
        self._left.set()
