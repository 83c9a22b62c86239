"""Ray under a running job: once its head, or the node that the job is on, is gone, the job can only end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from engines.errors import Unavailable
from engines.ray_head import RayPeer

LOOK_EVERY_S = 1.0
PATIENCE_S = 10.0
"""Well under the minute after which Ray ends a process that has no head, without a word of ours."""


class RayWatch:
    """`is_gone`: nothing may be asked of Ray any more; its calls would not come back."""

    def __init__(self, peers: Sequence[RayPeer], patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._answered_s = dict.fromkeys(peers, time.monotonic())
        self.is_gone = False

    async def watch(self) -> None:
        """For ever. Raises `Unavailable`, naming it, once one has not answered for `patience_s`."""
        while True:
            for peer in self._answered_s:
                await self._look_at(peer)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look_at(self, peer: RayPeer) -> None:
        if await asyncio.to_thread(peer.answers):
            self._answered_s[peer] = time.monotonic()
        elif time.monotonic() - self._answered_s[peer] > self._patience_s:
            self.is_gone = True
            raise Unavailable(
                f"{peer} has been gone for {self._patience_s:g} s, and with it the job's workers: once a cluster "
                "runs again, resume the job, which goes on from its newest checkpoint"
            )
