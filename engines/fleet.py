"""A set of replicas that are asked as one: what one of them fails, all of them have failed.

Nothing is undone here: who called knows what must stay. Every call waits until each replica has answered, so that
an undo never overtakes what it undoes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from engines.adapter import Parcel
from engines.errors import EngineFault, Refused, TandemError
from engines.replica import Replica
from engines.types import LoadedAdapter, ProbePrompt, ProbeScore, VersionName

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Miss:
    """A replica that did not do what it was asked, and why."""

    replica: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class Fleet:
    """Some replicas of one engine, and in whose name their slots are leased, for how long at a time."""

    replicas: tuple[Replica, ...]
    owner: str
    ttl_s: float

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(replica.name for replica in self.replicas)

    async def copy(self, parcel: Parcel) -> None:
        """Each replica then has files of its own to load from."""
        await self._all(lambda replica: replica.copy(parcel))

    async def lacking(self, version: VersionName, hashes: Mapping[str, str]) -> Fleet:
        """Those that have no copy made of just these files: file name -> SHA-256 (hex)."""
        answers = await self._all(lambda replica: replica.has_copy(version, hashes))
        has_copy = dict(zip(self.names, answers, strict=True))
        return self.only(lambda replica: not has_copy[replica.name])

    async def load(self, version: VersionName) -> tuple[LoadedAdapter, ...]:
        """Loads and pins on all, in the order of `replicas`; raises if one of them does not."""
        return await self._all(lambda replica: replica.load(self.owner, version, self.ttl_s))

    async def probe(self, version: VersionName, prompts: Sequence[ProbePrompt]) -> tuple[tuple[ProbeScore, ...], ...]:
        """Scores of each replica, in the order of `replicas`."""
        return await self._all(lambda replica: replica.probe(version, prompts))

    async def release(self, version: VersionName) -> tuple[Miss, ...]:
        """Unloads on every replica that can; returns those that could not."""
        answers = await self._ask(lambda replica: replica.release(self.owner, version))
        return _misses(self.names, answers)

    def judge(self, check: Callable[..., T], *answers: Sequence[object]) -> tuple[T, ...]:
        """`check` of each replica's answers; what it refuses of all of them is refused, of some it is their fault."""
        return self._settle([_outcome(check, *each) for each in zip(*answers, strict=True)])

    def only(self, is_wanted: Callable[[Replica], bool]) -> Fleet:
        return replace(self, replicas=tuple(replica for replica in self.replicas if is_wanted(replica)))

    async def _all(self, ask: Callable[[Replica], Awaitable[T]]) -> tuple[T, ...]:
        return self._settle(await self._ask(ask))

    def _settle(self, answers: Sequence[T | BaseException]) -> tuple[T, ...]:
        misses = _misses(self.names, answers)
        if misses:
            raise _verdict(misses, len(self.replicas))
        return tuple(answer for answer in answers if not isinstance(answer, BaseException))

    async def _ask(self, ask: Callable[[Replica], Awaitable[T]]) -> list[T | BaseException]:
        return await asyncio.gather(*(ask(replica) for replica in self.replicas), return_exceptions=True)


def _outcome(check: Callable[..., T], *answers: object) -> T | BaseException:
    try:
        return check(*answers)
    except Refused as error:
        return error


def _misses(names: Sequence[str], answers: Sequence[object]) -> tuple[Miss, ...]:
    pairs = zip(names, answers, strict=True)
    return tuple(Miss(name, answer) for name, answer in pairs if isinstance(answer, BaseException))


def _verdict(misses: Sequence[Miss], num_asked: int) -> BaseException:
    """What one engine takes and another refuses is that engine's trouble; what all refuse is the adapter's."""
    other = next((miss.error for miss in misses if not isinstance(miss.error, Refused)), None)
    first = misses[0]
    if other is not None or len(misses) == num_asked or not isinstance(first.error, TandemError):
        return other or first.error
    return EngineFault(
        f"replica {first.replica} refused what the {num_asked - len(misses)} others took ({first.error.message}); "
        "nothing was changed: look at its log, or restart it, then publish again",
        detail=first.error.detail,
    )
