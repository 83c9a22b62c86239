"""uvicorn's HTTP connection with a bound on a client that does not read.

Closing such a connection would wait for the client to take what is buffered: it is aborted. To the application that is
a hang-up like any other.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def bounded_connection(write_timeout_s: float) -> type[asyncio.Protocol]:
    """A protocol for `uvicorn.Config(http=...)`: ends a connection of which nothing was read for `write_timeout_s`."""

    class BoundedConnection(HttpToolsProtocol):
        _stalled: asyncio.TimerHandle | None = None
        _left_bytes = 0

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch()

        def resume_writing(self) -> None:
            self._unwatch()
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            # The answer is complete, and some of it may still wait to be read.
            if self.transport.get_write_buffer_size() and self._stalled is None:
                self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            self._left_bytes = self.transport.get_write_buffer_size()
            self._stalled = self.loop.call_later(write_timeout_s, self._check)

        def _unwatch(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

        def _check(self) -> None:
            if self.transport.get_write_buffer_size() >= self._left_bytes:
                self.transport.abort()
            else:
                self._watch()

    return BoundedConnection
