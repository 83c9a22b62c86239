"""Prompts in, accepted groups out: the loop's side of the pump. Everything here belongs to one event loop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engines.errors import BadRequest, DeadlineExceeded, Unavailable
from engines.types import VersionName
from rollout.config import RolloutConfig
from rollout.crew import Crew, Place
from rollout.prompt_queue import PromptQueue, QueueSnapshot
from rollout.staleness import Staleness
from rollout.types import Group, Prompt, Target, Task
from rollout.worker import Worker

SAMPLE_MARGIN_S = 30.0
"""What a worker may take over `group_timeout_s`, which it keeps itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sampled for: `order` names a row of `prompts` at each position; `first_step` steps are done."""

    prompts: Sequence[Prompt]
    order: Sequence[int]
    group_size: int
    groups_per_step: int
    max_staleness: int
    first_step: int = 0


@dataclass(frozen=True, slots=True)
class Buffered:
    """An accepted group and its position in the schedule."""

    position: int
    group: Group


@dataclass(frozen=True, slots=True)
class PumpSnapshot:
    """What a checkpoint keeps: the positions used up, and the groups that were accepted and not yet taken."""

    queue: QueueSnapshot = field(default_factory=QueueSnapshot)
    buffered: tuple[Buffered, ...] = ()


@dataclass(frozen=True, slots=True)
class Taken:
    """Groups to learn from, oldest version first, with their positions in the schedule.

    `dropped`: one line for each group that came to nothing since the last time.
    """

    groups: tuple[Group, ...]
    positions: tuple[int, ...]
    waited_s: float
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PumpStats:
    """Counts since the start. `dropped` by why: stale, failed, thin, other_version.

    `given_up`: ids of the prompts that are not tried again. `busy_s` and `idle_s`: with at least one group running,
    and with none.
    """

    running: int
    buffered: int
    started: int
    accepted: int
    dropped: Mapping[str, int]
    given_up: tuple[str, ...]
    lost_samples: int
    busy_s: float
    idle_s: float


@dataclass(slots=True)
class _Running:
    """A group being sampled."""

    position: int
    task: Task
    place: Place
    started_s: float
    work: asyncio.Task[None] | None = None
    is_stale: bool = False


class Flow:
    """Starts groups as `Staleness` allows, and keeps those that are good enough until they are taken."""

    def __init__(
        self, workers: Sequence[Worker], plan: Plan, config: RolloutConfig, restored: PumpSnapshot | None = None
    ) -> None:
        snapshot = restored or PumpSnapshot()
        self._plan = plan
        self._config = config
        self._crew = Crew(workers)
        self._queue = PromptQueue(plan.order, snapshot.queue.positions())
        self._buffer = list(snapshot.buffered)
        for buffered in self._buffer:
            self._queue.claim(buffered.position)
        version = plan.first_step + 1
        num_accepted = plan.first_step * plan.groups_per_step + len(self._buffer)
        self._staleness = Staleness(
            plan.max_staleness, plan.groups_per_step, config.max_running, version, version, num_accepted
        )
        self._version: VersionName | None = None
        self._targets: tuple[Target, ...] = ()
        self._running: dict[int, _Running] = {}
        self._failures: Counter[int] = Counter()
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._given_up: list[str] = []
        self._lines: list[str] = []
        self._defect: BaseException | None = None
        self._changed = asyncio.Event()
        self._arrived = asyncio.Event()
        self._busy_s = 0.0
        self._idle_s = 0.0
        self._clocked_s = time.monotonic()

    async def run(self) -> None:
        """Until cancelled, or until a defect ends it; then nothing runs any more."""
        try:
            while self._defect is None:
                self._changed.clear()
                self._start_what_may()
                await self._wait_for_change()
        except Exception as error:
            self._fail(error)
        finally:
            await self._cancel_all()

    async def take(self, num_groups: int, timeout_s: float) -> Taken:
        """See `Pump.take`."""
        if num_groups > self._plan.groups_per_step:
            raise BadRequest(f"{num_groups} groups were asked for; a step has {self._plan.groups_per_step}")
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait_for_groups(num_groups)
        except TimeoutError:
            raise DeadlineExceeded(self._what_is_missing(num_groups, timeout_s)) from None
        taken = sorted(self._buffer, key=lambda one: one.group.version.number)[:num_groups]
        for one in taken:
            self._buffer.remove(one)
            self._queue.consume(one.position)
        lines, self._lines = tuple(self._lines), []
        positions = tuple(one.position for one in taken)
        return Taken(tuple(one.group for one in taken), positions, time.monotonic() - began_s, lines)

    def learned(self) -> None:
        self._staleness.learned()
        self._sweep()
        for running in self._running.values():
            if running.work is not None and not self._staleness.is_fresh(running.task.version.number):
                running.is_stale = True
                running.work.cancel()

    def use(self, version: VersionName, targets: tuple[Target, ...]) -> None:
        if self._version is not None and version.number < self._version.number:
            return
        self._version = version
        self._targets = targets
        self._staleness.delivered(version.number)
        self._notify()

    def set_cap(self, max_running: int) -> None:
        self._staleness.limit(min(max_running, self._config.max_running))
        self._notify()

    def in_use(self) -> frozenset[VersionName]:
        return frozenset(running.task.version for running in self._running.values())

    def snapshot(self) -> PumpSnapshot:
        return PumpSnapshot(self._queue.snapshot(), tuple(self._buffer))

    def stats(self) -> PumpStats:
        self._clock()
        return PumpStats(
            running=len(self._running),
            buffered=len(self._buffer),
            started=self._counts["started"],
            accepted=self._counts["accepted"],
            dropped=dict(self._dropped),
            given_up=tuple(self._given_up),
            lost_samples=self._counts["lost_samples"],
            busy_s=self._busy_s,
            idle_s=self._idle_s,
        )

    def _start_what_may(self) -> None:
        while self._version is not None and self._targets and self._staleness.capacity() > 0:
            place = self._crew.choose(time.monotonic()) if self._queue.num_waiting else None
            position = self._queue.next() if place is not None else None
            if place is None or position is None:
                return
            self._start(position, place, self._version)

    def _start(self, position: int, place: Place, version: VersionName) -> None:
        prompt = self._plan.prompts[self._queue.row(position)]
        task = Task(prompt, version, self._targets, self._plan.group_size)
        self._clock()
        running = _Running(position, task, place, time.monotonic())
        self._counts["started"] += 1
        self._running[position] = running
        place.num_running += 1
        self._staleness.started()
        running.work = asyncio.create_task(self._sample(running), name=f"group {prompt.id}")
        running.work.add_done_callback(lambda _: self._end(running))

    async def _sample(self, running: _Running) -> None:
        try:
            self._judge(running, await self._ask(running))
        except (Unavailable, DeadlineExceeded) as error:
            self._crew.failed(running.place, running.started_s, time.monotonic())
            self._retry(running, "failed", str(error), is_rows_fault=False)
        except Exception as error:
            self._fail(error)

    async def _ask(self, running: _Running) -> Group:
        timeout_s = self._config.group_timeout_s + SAMPLE_MARGIN_S
        worker = running.place.worker
        try:
            async with asyncio.timeout(timeout_s):
                if running.place.num_failures:
                    await worker.revive()
                return await worker.sample(running.task)
        except TimeoutError:
            raise DeadlineExceeded(f"{worker.name} did not answer within {timeout_s:g} s") from None

    def _judge(self, running: _Running, group: Group) -> None:
        self._counts["lost_samples"] += group.num_lost
        self._rate(running, group)
        if group.version != running.task.version:
            reason = f"{group.version} answered for {running.task.version}"
            self._retry(running, "other_version", reason, is_rows_fault=False)
        elif len(group.scores) < self._config.min_group:
            self._retry_thin(running, group)
        elif not self._staleness.is_fresh(group.version.number):
            running.is_stale = True
        else:
            self._accept(running, group)

    def _rate(self, running: _Running, group: Group) -> None:
        """The worker, by what came of its group: of a row's own fault it is neither well nor ill."""
        is_as_asked = group.version == running.task.version
        if group.trajectories and is_as_asked:
            self._crew.succeeded(running.place)
        elif group.num_transient or not is_as_asked:
            self._crew.failed(running.place, running.started_s, time.monotonic())

    def _retry_thin(self, running: _Running, group: Group) -> None:
        # Whether there were enough, had nothing been away.
        is_rows_fault = len(group.scores) + group.num_transient < self._config.min_group
        kind, reason = "thin", group.losses[0] if group.losses else "no reason was given"
        if group.other_version and not is_rows_fault:
            kind, reason = "other_version", group.other_version
        reason = f"{len(group.scores)} of {running.task.num_samples} samples came: {reason}"
        self._retry(running, kind, reason, is_rows_fault=is_rows_fault)

    def _accept(self, running: _Running, group: Group) -> None:
        self._clock()
        del self._running[running.position]
        self._staleness.accepted()
        self._counts["accepted"] += 1
        self._failures.pop(running.position, None)
        self._buffer.append(Buffered(running.position, group))

    def _retry(self, running: _Running, kind: str, reason: str, *, is_rows_fault: bool) -> None:
        """Gives the prompt back, or up after `max_attempts` that failed by its own fault."""
        self._leave(running)
        position, name = running.position, running.task.prompt.id
        self._failures[position] += is_rows_fault
        if self._failures[position] < self._config.max_attempts:
            self._queue.give_back(position)
            self._drop(kind, f"prompt {name}: {kind}: {reason}")
        else:
            self._queue.consume(position)
            self._given_up.append(name)
            self._drop(kind, f"prompt {name}: given up after {self._failures[position]} attempts: {kind}: {reason}")

    def _end(self, running: _Running) -> None:
        """Of every group, however it ended; what is still counted as running was cancelled, or met a defect."""
        self._clock()
        running.place.num_running -= 1
        if self._running.get(running.position) is running:
            self._leave(running)
            self._queue.give_back(running.position)
            if running.is_stale:
                self._drop(
                    "stale", f"prompt {running.task.prompt.id}: {running.task.version} was too old while sampled"
                )
        self._notify()

    def _leave(self, running: _Running) -> None:
        self._clock()
        del self._running[running.position]
        self._staleness.lost()

    def _sweep(self) -> None:
        stale = [one for one in self._buffer if not self._staleness.is_fresh(one.group.version.number)]
        for one in stale:
            self._buffer.remove(one)
            self._staleness.dropped()
            self._queue.give_back(one.position)
            self._drop("stale", f"prompt {one.group.prompt.id}: {one.group.version} was too old when it was to be used")
        if stale:
            self._notify()

    def _drop(self, kind: str, line: str) -> None:
        self._dropped[kind] += 1
        self._lines.append(line)

    def _fail(self, error: BaseException) -> None:
        self._defect = self._defect or error
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._arrived.set()

    async def _wait_for_change(self) -> None:
        try:
            async with asyncio.timeout(self._crew.rest_s(time.monotonic())):
                await self._changed.wait()
        except TimeoutError:
            return  # a worker has rested

    async def _wait_for_groups(self, num_groups: int) -> None:
        while True:
            self._arrived.clear()
            self._sweep()
            if self._defect is not None:
                raise self._defect
            if len(self._buffer) >= min(num_groups, self._queue.num_left):
                return
            await self._arrived.wait()

    def _what_is_missing(self, num_groups: int, timeout_s: float) -> str:
        wanted = min(num_groups, self._queue.num_left)
        why = f"{len(self._running)} are being sampled"
        if self._version is None:
            why = "no version was delivered to an engine"
        elif not self._targets:
            why = f"no engine holds {self._version}"
        last = f"; the last that came to nothing: {self._lines[-1]}" if self._lines else ""
        return f"{len(self._buffer)} of {wanted} groups were there after {timeout_s:g} s: {why}{last}"

    async def _cancel_all(self) -> None:
        works = [running.work for running in self._running.values() if running.work is not None]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

    def _clock(self) -> None:
        """Books the time since the last change as busy or idle; to be called before each change of what runs."""
        now_s = time.monotonic()
        since_s = now_s - self._clocked_s
        self._clocked_s = now_s
        if self._running:
            self._busy_s += since_s
        else:
            self._idle_s += since_s
