"""Asks a replica for an answer; if it fails before there is anything to send, another one that holds the version.

What is handed out has begun: a stream's first bytes, or a whole answer, are there. From then on nothing is asked again.
Every outcome is told to the route table, which ejects replicas that fail.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from engines.errors import DeadlineExceeded, TandemError, Unavailable
from gateway.call import Stopwatch
from gateway.retry import RetryBudget
from gateway.route import Hold, Target
from gateway.services import Services
from gateway.upstream import Answer, EngineFailed, Failure, Upstream

_log = logging.getLogger(__name__)
# A silent replica may be working still: asking another one would double the work.
_RETRYABLE = frozenset(Failure) - {Failure.SILENT}


@dataclass(frozen=True, slots=True)
class Question:
    """One request as an engine gets it, whichever replica it is."""

    id: str
    body: bytes
    stream: bool
    waiting: Stopwatch


class Reply:
    """An answer that has begun. `first`: its first bytes, or all of them if it is not a stream.

    They came `ttft_s` after the replica was asked.
    """

    def __init__(self, asker: Asker, hold: Hold, answer: Answer, first: bytes) -> None:
        self.content_type = answer.content_type
        self.target = hold.target
        self.first = first
        self.ttft_s = hold.elapsed_s()
        self._asker = asker
        self._hold = hold
        self._answer = answer

    async def read_more(self) -> bytes:
        """What has arrived, at least one byte; empty at the end. Raises `EngineFailed`."""
        return await self._asker.read_more(self._answer, self._hold)

    def succeed(self) -> None:
        """All of it was read."""
        self._hold.succeed()


class Asker:
    def __init__(self, services: Services) -> None:
        self._config = services.config.gateway
        self._routes = services.routes
        self._metrics = services.metrics
        self._upstream = Upstream(self._config)
        self._budget = RetryBudget()

    @asynccontextmanager
    async def open(self, question: Question, hold: Hold) -> AsyncIterator[Reply]:
        """Leaving the block before the answer's end aborts the engine's work; `hold` moves with a retry.

        Raises what the engine refused, or `EngineFailed`.
        """
        self._budget.deposit()
        answer, first = await self._ask(question, hold)
        try:
            yield Reply(self, hold, answer, first)
        finally:
            answer.close()

    async def read_more(self, answer: Answer, hold: Hold) -> bytes:
        try:
            async with asyncio.timeout(self._config.gap_timeout_s):
                return await answer.read_chunk()
        except TimeoutError:
            failed = _silent("The engine fell silent in the middle of its answer; ask again.")
        except EngineFailed as error:
            failed = error
        self._note(failed, hold)
        raise failed

    async def close(self) -> None:
        await self._upstream.close()

    async def _ask(self, question: Question, hold: Hold) -> tuple[Answer, bytes]:
        try:
            return await self._attempt(question, hold)
        except EngineFailed as failed:
            other = self._other(hold.target, failed)
        hold.move(other)
        return await self._attempt(question, hold)

    async def _attempt(self, question: Question, hold: Hold) -> tuple[Answer, bytes]:
        try:
            async with asyncio.timeout(self._config.first_token_timeout_s if question.stream else None):
                return await self._begin(question, hold.target)
        except TimeoutError:
            failed = _silent("The engine did not begin to answer in time; retry in a moment.")
        except EngineFailed as error:
            failed = error
        except TandemError:
            # It refuses what it was asked, and so lives.
            hold.succeed()
            raise
        self._note(failed, hold)
        raise failed

    async def _begin(self, question: Question, target: Target) -> tuple[Answer, bytes]:
        answer = await self._upstream.ask(target.replica.endpoint, question.body, question.id, question.waiting)
        try:
            first = await (answer.read_chunk() if question.stream else answer.read_all())
            if not first:
                raise EngineFailed(Failure.WENT_AWAY, Unavailable("The engine answered nothing; retry in a moment."))
        except BaseException:
            answer.close()
            raise
        return answer, first

    def _note(self, failed: EngineFailed, hold: Hold) -> None:
        name = hold.target.replica.name
        # A replica that lacks a version answers others well.
        if failed.kind is not Failure.NOT_HELD and hold.fail(unreachable=failed.kind is Failure.UNREACHABLE):
            self._metrics.replica_ejected.labels(name).inc()
            _log.warning("replica %s gets no requests for a while: %s", name, failed.kind)

    def _other(self, target: Target, failed: EngineFailed) -> Target:
        """Raises `failed` if nobody else may be asked."""
        if failed.kind not in _RETRYABLE:
            raise failed
        try:
            other = self._routes.elsewhere(target, frozenset({target.replica.name}))
        except Unavailable:
            raise failed from None
        # A replica that was not reached did no work that a retry would double.
        if failed.kind is not Failure.UNREACHABLE and not self._budget.withdraw():
            _log.warning("not asked again, as too many requests fail: %s of %s", failed.kind, target.replica.name)
            raise failed
        self._metrics.count_retry(failed.kind)
        return other


def _silent(message: str) -> EngineFailed:
    return EngineFailed(Failure.SILENT, DeadlineExceeded(message))
