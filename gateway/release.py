"""Releases: an engine goes over to another base model, on a task of its own that callers watch.

One release or publish at a time. What a gateway that died left behind is put right by the next one, from the database:
the generation that is live there is served, and whatever else runs is ended (`recover`, `strays`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from engines.actor_name import ActorName
from engines.adapter import base_hash_of, read_base
from engines.config import EngineConfig
from engines.errors import BadRequest, Conflict, NotFound, TandemError, Unavailable
from engines.export_probe import read_export_probe
from engines.same_place import KINDS, check_place
from gateway.config import TandemConfig
from gateway.generation import GenerationRow, GenerationState, ReleaseProgress, engine_of
from gateway.in_place import InPlaceSwap
from gateway.metrics import Metrics
from gateway.promotion import Publisher
from gateway.rolling import RollingSwap
from gateway.steps import StepClock
from gateway.store import Store
from gateway.swap import Ground, Side, Swap

_log = logging.getLogger(__name__)
INTERRUPTED = "the release was interrupted before its flip; nothing was changed"


def config_of(row: GenerationRow, config: TandemConfig) -> EngineConfig:
    """How a generation's replicas are made: as configured, but for the model."""
    engine = config.engines[row.engine]
    return engine if row.number == 1 else engine.model_copy(update={"model": str(row.model)})


def recover(store: Store, config: TandemConfig) -> tuple[GenerationRow, ...]:
    """The live generation of each configured engine; a release that was under way has failed. Blocks."""
    for row in store.generations.list():
        if row.state is GenerationState.ROLLING:
            store.generations.fail(row, INTERRUPTED)
    return tuple(store.generations.ensure(name, engine.model_path()) for name, engine in config.engines.items())


def strays(actors: Sequence[ActorName], live: Sequence[GenerationRow], installation: str) -> tuple[str, ...]:
    """Names of this installation's actors that are not those of their engine's live generation."""
    names = {row.engine: row.actors for row in live}
    ours = (actor for actor in actors if actor.installation == installation)
    return tuple(str(one) for one in ours if names.get(engine_of(one.engine), one.engine) != one.engine)


class Releaser:
    """`hosted`: the configuration of every generation that adapters may be verified for; releases add theirs."""

    def __init__(
        self,
        config: TandemConfig,
        hosted: dict[str, EngineConfig],
        ground: Ground,
        publisher: Publisher,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._hosted = hosted
        self._ground = ground
        self._store = ground.store
        self._publisher = publisher
        self._metrics = metrics
        self._clocks: dict[str, StepClock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def release(self, engine: str, path: Path, *, in_place: bool = False) -> GenerationRow:
        """Begins a release of the model in `path`, by a rolling swap or in place, and returns its row.

        Raises `BadRequest` for a directory that the engine can't serve, `Conflict` if another release or publish is
        under way, `NotFound` for an unknown engine. What goes wrong later is in the row.
        """
        base_hash = await asyncio.to_thread(self._check, engine, path, in_place=in_place)
        begun: asyncio.Future[GenerationRow] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(engine, path, base_hash, begun, in_place=in_place))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(begun)  # it goes on, whether or not somebody waits for the answer

    def progress_of(self, row: GenerationRow) -> ReleaseProgress:
        clock = self._clocks.get(row.name)
        if clock is None:
            return ReleaseProgress(row.steps)
        return ReleaseProgress(tuple(clock.steps), clock.now, is_under_way=True)

    async def close(self) -> None:
        """A release under way stops where it is: the next gateway puts it right."""
        for task in tuple(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _check(self, engine: str, path: Path, *, in_place: bool) -> str:
        """The model's hash; reads all of its weights."""
        if engine not in self._config.engines:
            raise NotFound(f"No engine '{engine[:80]}'; GET /v1/engines lists those there are.", param="engine")
        if self._config.engines[engine].kind == "remote":
            raise BadRequest(
                f"engine '{engine}' is a server elsewhere, which Tandem neither starts nor ends: serve the model there",
                param="engine",
            )
        profile = read_base(path).profile
        wanted = self._config.engines[engine].family
        if wanted not in ("auto", profile.name):
            raise BadRequest(f"{path} is a {profile.name}, and engine '{engine}' is for {wanted} models", param="path")
        if self._live(engine).model == path:
            raise Conflict(f"engine '{engine}' serves {path} already", param="path")
        if in_place:
            self._check_in_place(engine, path)
        read_export_probe(path)
        return base_hash_of(path)

    def _check_in_place(self, engine: str, path: Path) -> None:
        config, live = self._config.engines[engine], self._live(engine)
        if config.kind not in KINDS:
            raise BadRequest(
                f"{config.kind} does not swap weights in place: release it by a rolling swap", param="in_place"
            )
        check_place(live.model, path)
        num_ready = len(self._ground.routes.in_service(live.name))
        if num_ready < config.replicas:
            raise Unavailable(
                f"{num_ready} of {config.replicas} replicas of {live.name} are in service, and all are needed to be "
                "swapped in place: wait for them, or look at `tandem status`"
            )

    def _live(self, engine: str) -> GenerationRow:
        return next(row for row in self._store.generations.of(engine) if row.state is GenerationState.LIVE)

    async def _run(
        self, engine: str, path: Path, base_hash: str, begun: asyncio.Future[GenerationRow], *, in_place: bool
    ) -> None:
        try:
            async with self._publisher.only_publisher():
                old = await asyncio.to_thread(self._live, engine)
                host = old.actors if in_place else None
                new = await asyncio.to_thread(self._store.generations.begin, engine, path, base_hash, host)
                self._clocks[new.name] = StepClock(self._metrics)
                begun.set_result(new)
                await self._roll(old, new, self._clocks[new.name])
        except Exception as error:  # its caller hears of it, here or by the row
            if not begun.done():
                begun.set_exception(error)
            else:
                _log.exception("the release of %s ended", path)

    async def _roll(self, old: GenerationRow, new: GenerationRow, clock: StepClock) -> None:
        sides = (Side(old, config_of(old, self._config)), Side(new, config_of(new, self._config)))
        self._hosted[new.name] = sides[1].config
        records = await asyncio.to_thread(read_export_probe, new.model)
        kind: type[Swap] = InPlaceSwap if new.host else RollingSwap
        swap = kind(*sides, records, self._ground, clock, self._config.gateway.request_timeout_s)
        reason = None
        try:
            await swap.run()
            _log.info("%s is released: %s", new.name, new.model)
        except Exception as error:  # whatever ended it: the row says so
            reason = error.message if isinstance(error, TandemError) else f"{type(error).__name__}: {error}"
            _log.warning("the release of %s (%s) met trouble: %s", new.name, new.model, reason, exc_info=error)
        try:
            await asyncio.to_thread(self._note, new, clock, reason, is_live=swap.is_flipped)
        finally:
            del self._clocks[new.name]

    def _note(self, new: GenerationRow, clock: StepClock, reason: str | None, *, is_live: bool) -> None:
        if is_live:
            self._store.generations.note_steps(new, clock.steps, reason)
        else:
            self._store.generations.fail(new, reason or INTERRUPTED, clock.steps)
