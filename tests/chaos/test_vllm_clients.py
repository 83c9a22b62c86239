"""What clients do to a gateway over a real vLLM: they hang up by the hundred, and hold streams open at its SIGTERM."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from stack import WEIGHTS, Stack

from gateway.store import InteractionQuery, open_store

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
NUM_HANG_UPS = 500
NUM_AT_ONCE = 20
NUM_STREAMS = 100
NUM_TOKENS = 24
IDLE_TIMEOUT_S = 30.0
CHAT = "/v1/chat/completions"


Running = tuple[Stack, subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway over one vLLM, and its process."""
    root = tmp_path_factory.mktemp("vllm-clients")
    made = Stack.make(root, "vllm", WEIGHTS / "base-fp8", settings={"gateway.drain_timeout_s": 240.0})
    process = made.launch(sys.executable, "-m", "gateway.cli")
    try:
        yield made, process
    finally:
        made.stop()


def body_of(number: int, *, stream: bool, num_tokens: int) -> dict[str, object]:
    """A prompt of its own, so that no cache answers it; exactly `num_tokens` come."""
    messages = [{"role": "user", "content": f"what is number {number}?"}]
    return {"model": "vqa", "messages": messages, "stream": stream, "max_tokens": num_tokens, "ignore_eos": True}


async def test_500_clients_that_hang_up_leave_no_work_behind(running: Running) -> None:
    stack, _ = running
    places = asyncio.Semaphore(NUM_AT_ONCE)
    async with aiohttp.ClientSession(base_url=stack.url, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def hang_up(number: int) -> None:
            """Streaming or not; before or after the first byte."""
            async with places:
                stream = number % 2 == 0
                asking = asyncio.create_task(session.post(CHAT, json=body_of(number, stream=stream, num_tokens=200)))
                if number % 4 == 0:
                    response = await asking
                    assert response.status == 200
                    await response.content.readuntil(b"\n\n")
                    response.close()
                    return
                await until_running(session)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

        await asyncio.gather(*(hang_up(number) for number in range(NUM_HANG_UPS)))
        await until_idle(session)
        async with session.post(CHAT, json=body_of(0, stream=False, num_tokens=2)) as response:
            assert response.status == 200


async def test_sigterm_with_100_open_streams_finishes_them_all_and_exits_0(running: Running) -> None:
    stack, process = running
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        base_url=stack.url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout
    ) as session:
        responses = await asyncio.gather(
            *(session.post(CHAT, json=body_of(n, stream=True, num_tokens=NUM_TOKENS)) for n in range(NUM_STREAMS))
        )
        firsts = await asyncio.gather(*(response.content.readuntil(b"\n\n") for response in responses))
        process.send_signal(signal.SIGTERM)
        await refused(session)
        rests = await asyncio.gather(*(response.content.read() for response in responses))
    ids = set()
    for first, rest in zip(firsts, rests, strict=True):
        events = (first + rest).strip().split(b"\n\n")
        assert events[-1] == b"data: [DONE]"
        last = json.loads(events[-2].removeprefix(b"data: "))
        assert last["choices"][0]["finish_reason"] == "length"
        ids.add(last["id"])
    assert await asyncio.to_thread(process.wait, 60) == 0
    assert len(ids & stored(stack.data)) == NUM_STREAMS


async def until_running(session: aiohttp.ClientSession) -> None:
    """Until the engine has work, which this request may be a part of."""
    async with asyncio.timeout(IDLE_TIMEOUT_S):
        while (await replica_of(session))["in_flight"] == 0:  # noqa: ASYNC110  the gateway tells nobody
            await asyncio.sleep(0.02)


async def until_idle(session: aiohttp.ClientSession) -> None:
    """Until the gateway holds no request and the engine runs and queues none."""
    async with asyncio.timeout(IDLE_TIMEOUT_S):
        while True:
            replica = await replica_of(session)
            if replica["in_flight"] == replica["num_running"] == replica["num_waiting"] == 0:
                return
            await asyncio.sleep(0.1)


async def replica_of(session: aiohttp.ClientSession) -> dict[str, int]:
    async with session.get("/v1/replicas") as response:
        (replica,) = (await response.json())["data"]
    return dict(replica)


async def refused(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(IDLE_TIMEOUT_S):
        while True:
            async with session.post(CHAT, json=body_of(0, stream=False, num_tokens=1)) as response:
                if response.status == 503:
                    return
            await asyncio.sleep(0.05)


def stored(data: Path) -> set[str]:
    """Ids of the whole answers that the store holds."""
    store = open_store(f"sqlite:///{data}/tandem.db")
    try:
        rows = store.interactions.list(InteractionQuery(limit=1000)).rows
    finally:
        store.close()
    return {row.id for row in rows if row.status == 200 and row.answer}
