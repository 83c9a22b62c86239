"""Ray's head, and our node of it, as a process connected to them sees them: whether they still answer, without Ray.

Ray's own calls wait for a head that has gone, for as long as the process is told to, and cannot be cut short.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from engines.errors import Unavailable

CONNECT_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class RayPeer:
    """A process of Ray's that ours cannot do without: `name` is for messages."""

    name: str
    host: str
    port: int

    def answers(self) -> bool:
        """Whether it takes connections; blocks for up to `CONNECT_TIMEOUT_S`."""
        try:
            socket.create_connection((self.host, self.port), timeout=CONNECT_TIMEOUT_S).close()
        except OSError:
            return False
        return True

    def __str__(self) -> str:
        return f"{self.name} at {self.host}:{self.port}"


def find_head() -> RayPeer:
    """The head that this process is connected to."""
    import ray

    host, _, port = str(ray.get_runtime_context().gcs_address).rpartition(":")
    return RayPeer("Ray's head", host, int(port))


def find_node() -> RayPeer:
    """The raylet that this process is connected to. Asks the head, and blocks."""
    import ray

    ours = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == ours)
    return RayPeer("Ray's node", str(node["NodeManagerAddress"]), int(node["NodeManagerPort"]))


def check_head() -> None:
    """Raises `Unavailable` if the head that this process is connected to takes no connections any more."""
    head = find_head()
    if not head.answers():
        raise Unavailable(
            f"{head} is gone, and with it the actors and their engines: run `tandem stop`, then "
            "`tandem serve` (with a cluster of your own, start that first)"
        )
