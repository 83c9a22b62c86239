"""Where a gateway of one configuration leaves its traces: its pid, its log, its port."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from engines.errors import Conflict
from gateway.cli.pidfile import PidFile

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config import TandemConfig


def pid_file(config: TandemConfig) -> PidFile:
    return PidFile(config.run_root / "gateway.pid")


def log_file(config: TandemConfig) -> Path:
    return config.log_root / "gateway.log"


def check_port(config: TandemConfig) -> None:
    """Raises `Conflict` if something listens there: better now than after the engines have started."""
    address = (config.gateway.host, config.gateway.port)
    try:
        socket.create_server(address).close()
    except OSError as error:
        raise Conflict(
            f"{address[0]}:{address[1]} cannot be listened on ({error.strerror}): end what runs there, or choose "
            "another with --set gateway.port=N"
        ) from None
