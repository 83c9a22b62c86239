"""Recording, off the hot path: a bounded queue, and one thread that parses, stores images and commits rows.

Every completion that is begun is later committed, discarded (it had no answer), or dropped: a drop is counted in
`tandem_records_dropped_total` and logged. Feedback that names a completion before its commit waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime

from gateway.config import GatewayConfig
from gateway.media import CheckedImage, ImageStore
from gateway.metrics import Metrics
from gateway.route import Target
from gateway.store import Store
from gateway.transcript import read_transcript
from gateway.types import Interaction

_log = logging.getLogger(__name__)
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Exchange:
    """One completion as it went over the wire. `request` is JSON with hashes for `images`; `body` is what the client
    got, possibly cut off."""

    id: str
    created: datetime
    target: Target
    request: bytes
    images: tuple[CheckedImage, ...]
    stream: bool
    body: bytes
    ttft_s: float
    latency_s: float
    status: int

    @property
    def num_bytes(self) -> int:
        return len(self.request) + len(self.body) + sum(len(image.content) for image in self.images)


class Recorder:
    """`begin` and `discard` or `finish` belong to the event loop; the thread is the recorder's own."""

    def __init__(self, store: Store, images: ImageStore, metrics: Metrics, config: GatewayConfig) -> None:
        self._store = store
        self._images = images
        self._metrics = metrics
        self._max_bytes = config.max_queued_bytes
        self._queue: queue.Queue[Exchange | None] = queue.Queue(config.max_queued_records)
        self._lock = threading.Lock()
        self._queued_bytes = 0
        self._pending: dict[str, Future[None]] = {}
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def begin(self, completion_id: str) -> None:
        """From now on feedback on the completion waits for its row."""
        self._pending[completion_id] = Future()

    def rename(self, completion_id: str, given_id: str) -> bool:
        """The completion's row will be `given_id`'s. False, and nothing changes, if another one is on its way there."""
        if given_id in self._pending:
            return False
        future = self._pending.pop(completion_id, None)
        if future is not None:
            self._pending[given_id] = future
        return True

    def discard(self, completion_id: str) -> None:
        """There will be no row."""
        future = self._pending.pop(completion_id, None)
        if future is not None:
            future.set_result(None)

    def finish(self, exchange: Exchange) -> None:
        """Hands the exchange to the thread; never waits. Drops it, counted, if too much is queued."""
        with self._lock:
            fits = self._queued_bytes + exchange.num_bytes <= self._max_bytes
        try:
            if not fits:
                raise queue.Full
            if not self._thread.is_alive():
                self._drop([exchange], "closed")
                return
            self._queue.put_nowait(exchange)
        except queue.Full:
            self._drop([exchange], "queue_full")
        else:
            with self._lock:
                self._queued_bytes += exchange.num_bytes

    async def wait_for(self, completion_id: str, timeout_s: float) -> bool:
        """Whether a completion that this gateway began is settled by now; True at once for any other id."""
        future = self._pending.get(completion_id)
        if future is None:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Returns once everything queued is committed."""
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            ends = False
            while len(batch) < _BATCH and not self._queue.empty():
                item = self._queue.get()
                if item is None:
                    ends = True
                    break
                batch.append(item)
            self._write(batch)
            if ends:
                return

    def _write(self, batch: Sequence[Exchange]) -> None:
        try:
            self._commit(batch)
        except Exception as error:
            _log.warning("%d completions could not be stored together (%r); storing each alone", len(batch), error)
            for exchange in batch:
                self._write_one(exchange)
        finally:
            with self._lock:
                self._queued_bytes -= sum(exchange.num_bytes for exchange in batch)
            for exchange in batch:
                self.discard(exchange.id)

    def _write_one(self, exchange: Exchange) -> None:
        # The boundary of one exchange: whatever is wrong with it takes neither the others nor the thread with it.
        try:
            self._commit([exchange])
        except Exception:
            _log.exception("completion %s could not be stored", exchange.id)
            self._drop([exchange], "store_failed")

    def _commit(self, batch: Sequence[Exchange]) -> None:
        for exchange in batch:
            for image in exchange.images:
                self._images.put(image)
        self._store.interactions.add_all([_interaction(exchange) for exchange in batch])

    def _drop(self, batch: Sequence[Exchange], reason: str) -> None:
        self._metrics.count_dropped(reason, len(batch))
        for exchange in batch:
            _log.error("completion %s is not recorded (%s)", exchange.id, reason)
            self.discard(exchange.id)


def _interaction(exchange: Exchange) -> Interaction:
    transcript = read_transcript(exchange.body, stream=exchange.stream)
    if transcript.id not in (None, exchange.id) and not exchange.target.replica.endpoint.is_remote:
        _log.warning("an engine answered %s under the id %s", exchange.id, transcript.id)
    return Interaction(
        id=exchange.id,
        created=exchange.created,
        alias=exchange.target.alias,
        version=exchange.target.version,
        replica=exchange.target.replica.name,
        request=exchange.request.decode("utf-8"),
        answer=transcript.text,
        finish_reason=transcript.finish_reason,
        prompt_tokens=transcript.prompt_tokens,
        completion_tokens=transcript.completion_tokens,
        ttft_ms=round(exchange.ttft_s * 1000, 3),
        latency_ms=round(exchange.latency_s * 1000, 3),
        status=exchange.status,
        stream=exchange.stream,
        images=tuple(image.sha256 for image in exchange.images),
    )
