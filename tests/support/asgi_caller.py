"""A client of an ASGI application in this process: whole answers, streams, and clients that hang up."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """Of a stream that has come to its end."""
        lines = [line for line in self.body.split(b"\n\n") if line]
        assert lines[-1] == b"data: [DONE]"
        return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


class Call:
    """One request under way."""

    def __init__(self, app: Any, method: str, path: str, body: Any, token: str, headers: dict[str, str]) -> None:
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        raw = b"" if body is None else json.dumps(body).encode()
        self._incoming.put_nowait({"type": "http.request", "body": raw, "more_body": False})
        self._sent: list[dict[str, Any]] = []
        self._first_part = asyncio.Event()
        given = {"authorization": f"Bearer {token}", **headers}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
            "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
        }  # fmt: skip
        self._task = asyncio.create_task(app(scope, self._incoming.get, self._send))

    async def reply(self) -> Reply:
        await self._task
        parts = [message.get("body", b"") for message in self._sent if message["type"] == "http.response.body"]
        return Reply(self._sent[0]["status"], b"".join(parts))

    async def first_part(self) -> None:
        """Returns once some of the answer's body is here."""
        await self._first_part.wait()

    async def hang_up_after_first_part(self) -> None:
        await self.first_part()
        self.hang_up()

    def hang_up(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def _send(self, message: Any) -> None:
        self._sent.append(message)
        if message["type"] == "http.response.body":
            self._first_part.set()


class Caller:
    """Makes calls with the right token."""

    def __init__(self, app: Any, token: str) -> None:
        self.app = app
        self._token = token

    def begin(self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str) -> Call:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return Call(self.app, method, path, body, self._token if token is None else token, given)

    async def call(self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str) -> Reply:
        return await self.begin(method, path, body, token, **headers).reply()
