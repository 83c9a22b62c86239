"""The ASGI guard that runs inside vLLM's API server; it needs no vLLM itself."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from engines.vllm import PLUGIN_DIR

TOKEN = "the-token"


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TANDEM_ENGINE_TOKEN", TOKEN)
    monkeypatch.syspath_prepend(str(PLUGIN_DIR))
    import tandem_vllm_plugin.guard as module

    yield module
    for name in [name for name in sys.modules if name.startswith("tandem_vllm_plugin")]:
        del sys.modules[name]


class Wire:
    """One request's two ends: what the client sends, and what it got."""

    def __init__(self, *incoming: dict[str, Any]) -> None:
        self._incoming = list(incoming)
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        return self._incoming.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)


def scope(path: str = "/health", kind: str = "http", token: str = TOKEN) -> dict[str, Any]:
    return {"type": kind, "method": "GET", "path": path, "headers": [(b"authorization", f"Bearer {token}".encode())]}


async def reads_twice_then_answers(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def answers_then_reads_twice(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.body", "body": b""})
    await receive()
    await receive()


GONE = {"type": "http.disconnect"}


async def test_a_client_that_leaves_before_the_end_is_counted_once(guard: Any) -> None:
    await guard.EngineGuard(reads_twice_then_answers)(scope(), (wire := Wire(GONE, GONE)).receive, wire.send)
    assert guard.AbortCount.total == 1


async def test_a_client_that_leaves_after_the_end_is_not_counted(guard: Any) -> None:
    await guard.EngineGuard(answers_then_reads_twice)(scope(), (wire := Wire(GONE, GONE)).receive, wire.send)
    assert guard.AbortCount.total == 0


@pytest.mark.parametrize(
    ("asked", "status"),
    [(scope(token=""), 401), (scope(token="other"), 401), (scope("/docs"), 404), (scope("/tandem/adapters/x"), 404)],
)
async def test_what_is_refused_never_reaches_the_app(guard: Any, asked: dict[str, Any], status: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pytest.fail("the app was reached")

    wire = Wire()
    await guard.EngineGuard(app)(asked, wire.receive, wire.send)
    assert wire.sent[0]["status"] == status


async def test_a_websocket_is_closed(guard: Any) -> None:
    wire = Wire()
    await guard.EngineGuard(reads_twice_then_answers)(scope(kind="websocket"), wire.receive, wire.send)
    assert wire.sent == [{"type": "websocket.close", "code": 1008}]
