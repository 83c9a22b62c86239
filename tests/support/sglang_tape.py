"""A recording of what a real SGLang server answered, and the ASGI application that answers from it.

`Recorder` passes calls on to a server and writes down what it says; `Replay` says it again. Both stand where SGLang's
application stands: behind the gate. A part of a completion is said again only after as many different calls have
begun as had when it was recorded, so that what followed an abort follows an abort.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

RECORDING = Path(__file__).parents[1] / "data" / "sglang" / "exchanges.json"
CALL_TIMEOUT_S = 60.0
CHAT, ABORT = "/v1/chat/completions", "/abort_request"
NOTHING: dict[str, Any] = {"status": 200, "parts": []}


@dataclass(frozen=True)
class Tape:
    """`is_seeded`: the recorded server ran with deterministic inference. `tests` are calls and answers by test."""

    is_seeded: bool
    tests: dict[str, list[dict[str, Any]]]

    @classmethod
    def load(cls, path: Path) -> Tape:
        whole = json.loads(path.read_text())
        return cls(whole["server"]["is_seeded"], whole["tests"])


def begin_recording(path: Path, *, is_seeded: bool) -> None:
    """An empty recording in place of what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"server": {"is_seeded": is_seeded}, "tests": {}}))


class _Calls:
    """Gives equal calls of one test equal keys, however SGLang's request ids and the adapters' paths are called."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self.begun: dict[str, int] = {}
        self.changed = asyncio.Condition()

    async def begin(self, scope: Any, raw: bytes) -> str:
        body = json.loads(raw) if raw else None
        key = f"{scope['method']} {scope['path']} {json.dumps(self._plain(body), sort_keys=True)}"
        async with self.changed:
            self.begun[key] = self.begun.get(key, 0) + 1
            self.changed.notify_all()
        return key

    async def wait_until_begun(self, number: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.begun) >= number)

    def _plain(self, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        plain = {**body}
        if "rid" in plain:
            plain["rid"] = self._names.setdefault(plain["rid"], f"rid-{len(self._names)}")
        if "lora_path" in plain and "lora_name" in plain:
            plain["lora_path"] = "somewhere"
        return plain


class Recorder:
    """One test's calls to the server at `url`, added to the recording in `path` as they end."""

    def __init__(self, url: str, path: Path, test: str) -> None:
        self._url = url
        self._path = path
        self._test = test
        self._calls = _Calls()
        self._said: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raw = (await receive())["body"]
        key = await self._calls.begin(scope, raw)
        said: dict[str, Any] = {"call": key, "status": 0, "parts": []}
        self._said.append(said)
        target = self._url + scope["path"] + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
        headers = {"Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.request(scope["method"], target, data=raw or None, headers=headers) as answer,
        ):
            said["status"] = answer.status
            await send({"type": "http.response.start", "status": answer.status, "headers": []})
            async for part in answer.content.iter_any():
                said["parts"].append([len(self._calls.begun), part.decode()])
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self._write()

    def _write(self) -> None:
        whole = json.loads(self._path.read_text())
        whole["tests"][self._test] = self._said
        self._path.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")


class Replay:
    """One test's recording; a call made more often than it was recorded gets the last answer again."""

    def __init__(self, said: list[dict[str, Any]]) -> None:
        self._said: dict[str, list[dict[str, Any]]] = {}
        for one in said:
            self._said.setdefault(one["call"], []).append(one)
        self._calls = _Calls()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        key = await self._calls.begin(scope, (await receive())["body"])
        # How often it is aborted depends on how soon SGLang lets go.
        answers = self._said.get(key, [NOTHING] if scope["path"] == ABORT else [])
        assert answers, f"not in the recording: {key[:300]}"
        said = answers[min(self._calls.begun[key], len(answers)) - 1]
        await send({"type": "http.response.start", "status": said["status"], "headers": []})
        for num_begun, part in said["parts"]:
            if scope["path"] == CHAT:
                await self._calls.wait_until_begun(num_begun)
            await send({"type": "http.response.body", "body": part.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
