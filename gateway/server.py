"""Runs the application: uvicorn on uvloop, and a shutdown that loses nothing.

SIGTERM (or SIGINT): not ready, new completions refused, those under way go on for `drain_timeout_s`, then the recorder
is flushed and the process ends with 0. A second signal ends the waiting. Engines stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator

import uvicorn
import uvloop

from gateway.app import build_app
from gateway.config import TandemConfig
from gateway.connection import bounded_connection
from gateway.drain import Drain
from gateway.logs import configure_logging
from gateway.services import Services

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CLOSE_TIMEOUT_S = 1
_KEEP_ALIVE_S = 20
"""Longer than clients keep an idle connection (the OpenAI SDK 5 s, aiohttp 15 s): who closes first must be the client,
or a request that it is just sending is lost."""


class _Server(uvicorn.Server):
    """Signals are ours: uvicorn would close the door before those under way are done."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(config: TandemConfig) -> None:
    """Opens everything, serves until a signal, closes everything. Raises `TandemError` if it cannot start."""
    from gateway.cluster import open_services

    async with open_services(config) as services:
        await run(services)


def serve_forever(config: TandemConfig) -> None:
    """`serve` on a uvloop of its own, with its log: what the process of a gateway runs."""
    configure_logging(config.log_root)
    uvloop.run(serve(config))


async def run(services: Services) -> None:
    """Serves `services` until SIGTERM or SIGINT, then drains. Whoever opened the services closes them."""
    gateway = services.config.gateway
    server = _Server(
        uvicorn.Config(
            build_app(services),
            host=gateway.host,
            port=gateway.port,
            http=bounded_connection(gateway.write_timeout_s),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
        )
    )
    stopping = asyncio.create_task(_drain_on_signal(server, services))
    try:
        await server.serve()
    finally:
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping


async def _drain_on_signal(server: uvicorn.Server, services: Services) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, lambda: (second if first.is_set() else first).set())
    await first.wait()
    drain = services.drain
    drain.begin()
    timeout_s = services.config.gateway.drain_timeout_s
    _log.info("shutting down: %s under way, up to %g s", _describe(drain), timeout_s)
    waits = {asyncio.create_task(drain.wait_idle(timeout_s)), asyncio.create_task(second.wait())}
    _, unfinished = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in unfinished:
        wait.cancel()
    if not drain.is_idle:
        _log.warning("%s are cut off", _describe(drain))
    server.should_exit = True


def _describe(drain: Drain) -> str:
    return f"{drain.num_in_flight} completions and {drain.num_publishes} publishes"
