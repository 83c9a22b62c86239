"""The gateway in the background: started, watched until it is ready, and left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import BadRequest, Conflict, DeadlineExceeded, Unavailable
from gateway.cli.console import ExitCode, say
from gateway.cli.options import DEFAULT_FILE, gateway_url
from gateway.cli.traces import check_port, log_file, pid_file

if TYPE_CHECKING:
    from gateway.config import TandemConfig

_POLL_S = 0.1
_MARGIN_S = 60.0
_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class Detached:
    url: str
    pid: int
    log: Path


def start_detached(config: TandemConfig, file: Path | None, settings: tuple[str, ...]) -> Detached:
    """Returns once `/readyz` says yes. Raises `Unavailable` with the log's end if the gateway dies first."""
    holder = pid_file(config).holder()
    if holder is not None:
        raise Conflict(f"a gateway already runs here (process {holder}): use it, or end it first with `tandem stop`")
    check_port(config)
    log = log_file(config)
    log.parent.mkdir(parents=True, exist_ok=True)
    start = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        child = subprocess.Popen(
            _command(file, settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    say(f"starting (log: {log})")
    url = gateway_url(config)
    _wait_until_ready(child, url, log, start, _timeout_s(config))
    return Detached(url, child.pid, log)


def _command(file: Path | None, settings: tuple[str, ...]) -> list[str]:
    command = [sys.executable, "-m", "gateway.cli", "serve"]
    path = file or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    if path is not None:
        command += ["--config", str(path.absolute())]
    for setting in settings:
        command += ["--set", setting]
    return command


def _timeout_s(config: TandemConfig) -> float:
    return max((engine.start_timeout_s for engine in config.engines.values()), default=0.0) + _MARGIN_S


def _wait_until_ready(child: subprocess.Popen[bytes], url: str, log: Path, start: int, timeout_s: float) -> None:
    from gateway.client import GatewayClient

    deadline = time.monotonic() + timeout_s
    with GatewayClient(url) as gateway:
        while child.poll() is None:
            if gateway.is_ready():
                return
            if time.monotonic() > deadline:
                child.terminate()
                raise DeadlineExceeded(
                    f"the gateway was not ready within {timeout_s:.0f} s; its log ends:\n{_tail(log, start)}"
                )
            time.sleep(_POLL_S)
    kind = BadRequest if child.returncode == ExitCode.USAGE else Unavailable
    raise kind(
        f"the gateway ended with code {child.returncode} before it was ready; the end of {log}:\n{_tail(log, start)}"
    )


def _tail(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])
