"""`tandem serve` and `tandem stop`."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Annotated

import typer

from engines.errors import DeadlineExceeded
from gateway.cli.console import print_json, say
from gateway.cli.options import ConfigOption, JsonOption, SetOption, gateway_url, load
from gateway.cli.pidfile import PidFile
from gateway.cli.traces import check_port, pid_file

if TYPE_CHECKING:
    from gateway.config import TandemConfig

_POLL_S = 0.1
_STOP_MARGIN_S = 20.0


def serve(
    config: ConfigOption = None,
    settings: SetOption = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background; return once ready.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start the gateway and its engines.

    tandem serve -c deploy/examples/demo.toml

    tandem serve -c deploy/examples/fake.toml --detach
    """
    resolved = load(config, settings)
    if detach:
        from gateway.cli.detached import start_detached

        started = start_detached(resolved, config, tuple(settings or ()))
        if as_json:
            print_json({"url": started.url, "pid": started.pid, "log": str(started.log)})
        else:
            print(started.url)
        say(next_commands(started.url))
        return
    _serve_here(resolved)


def stop(config: ConfigOption = None, settings: SetOption = None, as_json: JsonOption = False) -> None:
    """End the gateway, its engines and the Ray daemon that Tandem started.

    tandem stop -c deploy/examples/demo.toml

    tandem stop --json
    """
    from gateway import cluster

    resolved = load(config, settings)
    pid = end_gateway(resolved)
    stopped = asyncio.run(cluster.stop_all(resolved))
    if as_json:
        print_json({"gateway": pid, "stopped": list(stopped)})
    for name in stopped:
        say(f"stopped {name}")
    if pid is None and not stopped:
        say("nothing of this configuration was running")


def next_commands(url: str) -> str:
    return (
        f"ready at {url}/v1 (any OpenAI client). Next:\n"
        f'  tandem chat "what is in the picture?" -i image.png --url {url}\n'
        f"  tandem status --url {url}\n"
        f"  tandem versions ls --url {url}"
    )


def end_gateway(config: TandemConfig) -> int | None:
    """SIGTERM, then wait until it has drained; SIGKILL past its drain timeout. Returns the pid that ended, or None."""
    file = pid_file(config)
    pid = file.holder()
    if pid is None:
        return None
    say(f"draining the gateway (process {pid})")
    if not _signal_and_wait(file, pid, signal.SIGTERM, config.gateway.drain_timeout_s + _STOP_MARGIN_S):
        say(f"process {pid} did not drain in time: killing it")
        if not _signal_and_wait(file, pid, signal.SIGKILL, _STOP_MARGIN_S):
            raise DeadlineExceeded(f"process {pid} survived SIGKILL for {_STOP_MARGIN_S:.0f} s: look at it by hand")
    return pid


def _signal_and_wait(file: PidFile, pid: int, number: signal.Signals, timeout_s: float) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return True
    deadline = time.monotonic() + timeout_s
    while file.holder() == pid:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _serve_here(config: TandemConfig) -> None:
    from gateway import server

    pid_file(config).acquire()
    check_port(config)
    url = gateway_url(config)
    say(f"starting at {url}; engines take up to a minute. Ctrl-C ends the gateway and leaves the engines running.")
    threading.Thread(target=_announce, args=(url,), daemon=True).start()
    server.serve_forever(config)


def _announce(url: str) -> None:
    from gateway.client import GatewayClient

    with GatewayClient(url) as gateway:
        while not gateway.is_ready():
            time.sleep(_POLL_S)
    say(next_commands(url))
