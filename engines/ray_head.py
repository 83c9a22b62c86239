"""Ray's head as a process connected to it sees it: whether it still answers, asked without Ray.

Ray's own calls wait for a head that has gone, for as long as the process is told to, and cannot be cut short.
"""

from __future__ import annotations

import socket

from engines.errors import Unavailable

CONNECT_TIMEOUT_S = 2.0


def check_head() -> None:
    """Raises `Unavailable` if the head that this process is connected to takes no connections any more."""
    import ray

    address = str(ray.get_runtime_context().gcs_address)
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise Unavailable(
            f"Ray's head at {address} is gone, and with it the actors and their engines: run `tandem stop`, then "
            "`tandem serve` (with a cluster of your own, start that first)"
        ) from error
